//! Archives that a job's author found somewhere: taken apart, packed again, and the result once more.
//!
//! ```text
//!  script: kind, compression, what is kept, taken out or added, wrapped for U-Boot? │ the archive
//!  model:  what was made can be read, and made of it again in the same way it is the same; nothing is larger than the limit
//! ```

use std::cell::OnceCell;
use std::path::Path;

use bytes::Bytes;
use gateway::content::Content;
use gateway::content::cache::{Cache, Config};
use gateway::content::edit::{Addition, Recipe, Rework, Step};
use job_schema::Pattern;
use job_schema::job::{ArchiveKind, Compression, UbootArchitecture, UbootCompression, UbootFormat, UbootSystem};
use tokio::runtime::Runtime;

use crate::corpus;
use crate::script::Script;

/// What a step may give here: enough for any input's files, and a bomb is soon over.
const BYTES_MAX: u64 = 1 << 20;
const KINDS: [ArchiveKind; 5] =
    [ArchiveKind::Cpio, ArchiveKind::Tar, ArchiveKind::Zip, ArchiveKind::Iso, ArchiveKind::None];

struct Shop {
    runtime: Runtime,
    cache: Cache,
    folder: tempfile::TempDir,
}

thread_local! {
    static SHOP: OnceCell<Shop> = const { OnceCell::new() };
}

pub(super) fn run(bytes: &[u8]) {
    SHOP.with(|shop| shop.get_or_init(open_shop).edit(bytes));
}

fn open_shop() -> Shop {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let config = Config { edit_bytes_max: BYTES_MAX, ..Config::new(folder.path()) };
    Shop { runtime, cache: Cache::new(config).expect("a cache in a new folder"), folder }
}

impl Shop {
    fn edit(&self, bytes: &[u8]) {
        let mut script = Script(bytes);
        let rework = rework(&mut script);
        let is_wrapped = script.byte() % 8 == 7;
        let archive = Bytes::copy_from_slice(script.rest());
        if is_wrapped {
            self.wrap(&archive);
        }
        if let Ok(made) = self.make(&archive, Step::Archive(rework.clone())) {
            assert!(made.len() as u64 <= BYTES_MAX, "{} bytes were made", made.len());
            self.make_again(&made, &rework);
        }
        // Results are kept for the next job that asks; here nobody does.
        empty(&self.folder.path().join("edited"));
    }

    fn make(&self, source: &Bytes, step: Step) -> Result<Bytes, String> {
        let recipe = Recipe { source: Some(Content::Inline(source.clone())), steps: vec![step] };
        let content = Content::Edited(self.cache.editor().edit(recipe));
        let made = self.runtime.block_on(async {
            let reader = content.open().await?;
            let size = reader.complete_size().await?;
            reader.read_at(0, size as usize).await
        });
        made.map_err(|error| {
            let sentence = error.to_string();
            assert!(sentence.len() < 40_000, "a sentence of {} bytes", sentence.len());
            sentence
        })
    }

    /// What we packed can be taken apart, and packed in the same way it is the same.
    fn make_again(&self, made: &Bytes, rework: &Rework) {
        let Rework { kind, compression, .. } = *rework;
        let plain = Rework { kind, compression, keep: Vec::new(), pick: None, add: Vec::new() };
        match self.make(made, Step::Archive(plain.clone())) {
            _ if kind == ArchiveKind::None => {}
            Ok(again) => {
                assert!(again == made, "{kind:?} packed again is another: {} and {} bytes", again.len(), made.len());
            }
            // Nothing but zeros is a tar without files, and more often a download that went wrong: it is not taken for an archive.
            Err(_) if kind == ArchiveKind::Tar && self.is_all_zeros(made) => {}
            Err(sentence) => panic!("our own {kind:?} cannot be read: {sentence}"),
        }
    }

    fn is_all_zeros(&self, made: &Bytes) -> bool {
        let (kind, compression) = (ArchiveKind::None, Compression::None);
        let unpack = Rework { kind, compression, keep: Vec::new(), pick: None, add: Vec::new() };
        self.make(made, Step::Archive(unpack)).is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    }

    fn wrap(&self, bytes: &Bytes) {
        let format = UbootFormat {
            os: UbootSystem::Linux,
            compression: UbootCompression::None,
            architecture: UbootArchitecture::Arm64,
            kind: if bytes.len().is_multiple_of(2) { "script" } else { "ramdisk" }.to_owned(),
        };
        let image = self.make(bytes, Step::Uboot(format)).expect("bytes that fit");
        assert!(image.starts_with(&[0x27, 0x05, 0x19, 0x56]) && image.ends_with(bytes));
        let data = image.len() - 64;
        assert_eq!(image[12..16], (data as u32).to_be_bytes(), "the length in the header");
    }
}

fn rework(script: &mut Script<'_>) -> Rework {
    let kind = script.one_of(&KINDS);
    let compression = script.one_of(&[Compression::None, Compression::None, Compression::Gz, Compression::Bz2]);
    let chosen = script.byte();
    let pattern = |text: &str| Pattern::parse(text).expect("a good pattern");
    let keep = match chosen % 4 {
        0 => vec![(pattern(r"(.*)/([^/]*)"), Some(r"\2/\1".to_owned())), (pattern("[a-z]+"), None)],
        1 => vec![(pattern(r"(?s).*"), Some(r"../\g<0>".to_owned()))],
        _ => Vec::new(),
    };
    let pick = (kind == ArchiveKind::None).then(|| pattern("bin/.*"));
    let addition = Addition { path: "etc/added".to_owned(), mode: 0o640, content: Content::Inline(Bytes::from("x")) };
    let add = if chosen / 4 % 2 == 1 && pick.is_none() { vec![addition] } else { Vec::new() };
    Rework { kind, compression, keep, pick, add }
}

fn empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("our own folder").flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
}

/// Each kind of archive, as it is and in each compression that we write; xz and zstd stand in the corpus, made by their own tools.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let shop = open_shop();
    let file = |(path, mode, text): &(&str, u32, &str)| Addition {
        path: (*path).to_owned(),
        mode: *mode,
        content: Content::Inline(Bytes::copy_from_slice(text.as_bytes())),
    };
    let files = [
        ("etc/hostname", 0o100_644, "dut-1\n"),
        ("bin/run", 0o100_755, "#!/bin/sh\necho ahoy\n"),
        ("bin/again", 0o120_777, "run"),
        ("a/long/way", 0o100_600, "long"),
        ("empty", 0o100_644, ""),
    ];
    let pack = |kind: ArchiveKind, compression: Compression| {
        let add = files.iter().map(file).collect();
        let recipe = Recipe {
            source: None,
            steps: vec![Step::Archive(Rework { kind, compression, keep: Vec::new(), pick: None, add })],
        };
        let content = Content::Edited(shop.cache.editor().edit(recipe));
        let made = shop.runtime.block_on(async { content.open().await?.read_at(0, 1 << 20).await });
        made.expect("an archive of a few files").to_vec()
    };
    let mut seeds = Vec::new();
    for (number, from) in KINDS[..4].iter().enumerate() {
        for compression in [Compression::None, Compression::Gz, Compression::Bz2] {
            let archive = pack(*from, compression);
            for to in 0..5 {
                seeds.push([&[to, number as u8, to * 3, to], &archive[..]].concat());
            }
        }
    }
    // Initial RAM disks stand one behind the other.
    let [early, late] = [Compression::None, Compression::Gz].map(|compression| pack(ArchiveKind::Cpio, compression));
    seeds.push([&[0, 0, 2, 0][..], &early, &[0; 512], &late].concat());
    seeds.extend(corpus(include_str!("../../corpus/archive.hex")));
    seeds
}
