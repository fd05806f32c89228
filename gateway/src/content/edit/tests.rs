//! Archives against themselves, against the system's own tools, and against whoever spoils them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::*;

/// An editor in a folder of its own, and what it makes.
struct Scene {
    folder: tempfile::TempDir,
    editor: Editor,
}

fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let editor = Editor::new(folder.path(), STEP_BYTES_MAX).unwrap();
    Scene { folder, editor }
}

impl Scene {
    async fn make(&self, source: Option<&[u8]>, steps: Vec<Step>) -> Result<Vec<u8>, String> {
        let source = source.map(|bytes| Content::Inline(Bytes::copy_from_slice(bytes)));
        let content = Content::Edited(self.editor.edit(Recipe { source, steps }));
        let reader = content.open().await.map_err(|error| error.to_string())?;
        let size = reader.complete_size().await.unwrap();
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            bytes.extend(reader.read_at(bytes.len() as u64, LARGE_READ_BYTES).await.unwrap());
        }
        Ok(bytes)
    }

    async fn pack(&self, kind: ArchiveKind, compression: Compression, files: &[(&str, u32, &str)]) -> Vec<u8> {
        self.make(None, vec![Step::Archive(Rework { add: additions(files), kind, compression, ..nothing() })])
            .await
            .unwrap()
    }

    /// The text of the file that is wanted.
    async fn pick(&self, archive: &[u8], pattern: &str) -> Result<String, String> {
        let pick = Some(Pattern::parse(pattern).unwrap());
        let bytes = self.make(Some(archive), vec![Step::Archive(Rework { pick, ..nothing() })]).await?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    /// What a tool of the system makes of `input`, with files in the scene's folder; `None` where it is not installed.
    fn tool(&self, command: &str, input: &[u8]) -> Option<Vec<u8>> {
        let mut shell = Command::new("sh");
        shell.args(["-ec", command]).current_dir(self.folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        match output.status.code() {
            Some(127) => {
                eprintln!("SKIPPED: not installed: {command}");
                None
            }
            _ => {
                assert!(output.status.success(), "{command}: {output:?}");
                Some(output.stdout)
            }
        }
    }
}

fn limit(bytes_max: u64) -> Limit {
    Limit { bytes_max, stop: Arc::default() }
}

fn nothing() -> Rework {
    let (kind, compression) = (ArchiveKind::None, Compression::None);
    Rework { kind, compression, keep: Vec::new(), pick: None, add: Vec::new() }
}

fn additions(files: &[(&str, u32, &str)]) -> Vec<Addition> {
    let addition = |(path, mode, text): &(&str, u32, &str)| Addition {
        path: (*path).to_owned(),
        mode: *mode,
        content: Content::Inline(Bytes::copy_from_slice(text.as_bytes())),
    };
    files.iter().map(addition).collect()
}

const KINDS: [ArchiveKind; 4] = [ArchiveKind::Cpio, ArchiveKind::Iso, ArchiveKind::Tar, ArchiveKind::Zip];

const FILES: [(&str, u32, &str); 5] = [
    ("etc/hostname", 0o100_644, "dut-1\n"),
    ("bin/run", 0o100_755, "#!/bin/sh\necho ahoy\n"),
    ("bin/again", 0o120_777, "run"),
    (
        "a name that is longer than one hundred bytes/so that the header of a tar has no room for it/and somebody has to say it elsewhere",
        0o100_600,
        "long",
    ),
    ("empty", 0o100_644, ""),
];

/// Everything in an archive: path, mode, and text or target.
fn list(bytes: &[u8]) -> BTreeMap<String, (u32, String)> {
    let mut found = BTreeMap::new();
    let spool = |stream: &mut dyn Read| {
        let mut file = tempfile::tempfile().unwrap();
        io::copy(stream, &mut file)?;
        file.rewind().map(|()| file)
    };
    let mut visit = |member: Member, content: &mut dyn Read| {
        let mut text = String::new();
        content.read_to_string(&mut text).unwrap();
        found.insert(member.path.clone(), (member.mode, member.link.clone().unwrap_or(text)));
        Ok(Flow::On)
    };
    member::each(Box::new(io::Cursor::new(bytes.to_vec())), &limit(STEP_BYTES_MAX), &spool, &mut visit).unwrap();
    found
}

#[tokio::test]
async fn what_is_packed_in_any_kind_and_compression_is_read_again_as_it_was() {
    let scene = scene();
    for kind in KINDS {
        for compression in [Compression::None, Compression::Gz, Compression::Bz2] {
            let found = list(&scene.pack(kind, compression, &FILES).await);
            for (path, mode, text) in FILES {
                assert_eq!(found[path], (mode, text.to_owned()), "{path} in {kind:?}, {compression:?}");
            }
        }
    }
}

#[tokio::test]
async fn every_kind_becomes_every_other_with_its_files() {
    let scene = scene();
    for from in KINDS {
        let archive = scene.pack(from, Compression::Gz, &FILES).await;
        for kind in KINDS {
            let made = scene.make(Some(&archive), vec![Step::Archive(Rework { kind, ..nothing() })]).await.unwrap();
            let found = list(&made);
            for (path, mode, text) in FILES {
                assert_eq!(found[path], (mode, text.to_owned()), "{path} from {from:?} to {kind:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_system_s_own_tools_read_what_is_packed() {
    let scene = scene();
    let table = [
        (ArchiveKind::Cpio, "command -v busybox >/dev/null || exit 127; busybox cpio -i --quiet --to-stdout bin/run"),
        (ArchiveKind::Tar, "tar -xO bin/run"),
        (ArchiveKind::Zip, "command -v unzip >/dev/null || exit 127; cat > a.zip; unzip -p a.zip bin/run"),
        (
            ArchiveKind::Iso,
            "command -v xorriso >/dev/null || exit 127; cat > a.iso; xorriso -osirrox on -indev a.iso -extract /bin/run out 2>/dev/null; cat out",
        ),
        (ArchiveKind::Iso, "command -v bsdtar >/dev/null || exit 127; bsdtar -xOf - bin/run"),
        // The kernel's own reader, in a mount namespace; where it may not mount, as if it were not installed.
        (
            ArchiveKind::Iso,
            "cat > c.iso; mkdir -p m; unshare -m sh -ec 'mount -o loop,ro c.iso m 2>/dev/null || exit 127; cat m/bin/$(readlink m/bin/again)'",
        ),
        (ArchiveKind::Iso, "command -v isoinfo >/dev/null || exit 127; cat > b.iso; isoinfo -R -x /bin/run -i b.iso"),
    ];
    for (kind, command) in table {
        let archive = scene.pack(kind, Compression::None, &FILES).await;
        if let Some(text) = scene.tool(command, &archive) {
            assert_eq!(String::from_utf8_lossy(&text), "#!/bin/sh\necho ahoy\n", "{command}");
        }
    }
}

#[tokio::test]
async fn archives_of_the_system_s_own_tools_are_read() {
    let scene = scene();
    let tree = "mkdir -p t/boot t/deep; printf board > t/boot/board.dtb; ln -sf board.dtb t/boot/link; printf x > t/deep/x; cd t; ";
    let table = [
        "command -v busybox >/dev/null || exit 127; find . | busybox cpio -o -H newc",
        "command -v cpio >/dev/null || exit 127; find . | cpio -o -H newc --quiet | gzip",
        "tar -c .",
        "tar --format=pax -c . | bzip2",
        "tar -c . | xz",
        "tar -c . | zstd -q",
        "(tar -c boot | zstd -q; printf '\\120\\052\\115\\030\\002\\000\\000\\000ab') | cat",
        "command -v zip >/dev/null || exit 127; zip -qr - .",
        "command -v xorriso >/dev/null || exit 127; xorriso -as mkisofs -R -quiet -o ../x.iso . 2>/dev/null; cat ../x.iso",
        "command -v xorriso >/dev/null || exit 127; xorriso -as mkisofs -J -quiet -o ../j.iso . 2>/dev/null; gzip < ../j.iso",
        "command -v genisoimage >/dev/null || exit 127; genisoimage -quiet -R -o ../g.iso .; cat ../g.iso",
        "command -v bsdtar >/dev/null || exit 127; bsdtar -c --format=iso9660 -f - .",
    ];
    for command in table {
        if let Some(archive) = scene.tool(&format!("{tree}{command}"), b"") {
            assert_eq!(scene.pick(&archive, r"boot/[a-z]+\.dtb").await.as_deref(), Ok("board"), "{command}");
        }
    }
}

#[tokio::test]
async fn an_initial_ram_disk_of_several_archives_is_read_through_all_of_them() {
    let scene = scene();
    let mut disk = scene.pack(ArchiveKind::Cpio, Compression::None, &[("early", 0o100_644, "microcode")]).await;
    disk.resize(disk.len().next_multiple_of(512), 0);
    disk.extend(scene.pack(ArchiveKind::Cpio, Compression::Gz, &[("init", 0o100_755, "system")]).await);
    let found = list(&disk);
    assert_eq!((found["early"].1.as_str(), found["init"].1.as_str()), ("microcode", "system"));
}

#[tokio::test]
async fn files_are_kept_renamed_and_added_and_an_added_one_replaces_its_namesake() {
    let scene = scene();
    let archive = scene.pack(ArchiveKind::Tar, Compression::Gz, &FILES).await;
    let keep = |path: &str, rewrite: Option<&str>| (Pattern::parse(path).unwrap(), rewrite.map(str::to_owned));
    let rework = Rework {
        kind: ArchiveKind::Cpio,
        keep: vec![keep("bin/(run)", Some(r"/usr/bin/\1")), keep("etc/.*", None)],
        add: additions(&[("/etc/hostname", 0o644, "another\n"), ("new", 0o100_600, "new")]),
        ..nothing()
    };
    let found = list(&scene.make(Some(&archive), vec![Step::Archive(rework)]).await.unwrap());
    let directory = || (0o040_755, String::new());
    let expected = [
        ("etc", directory()),
        ("etc/hostname", (0o100_644, "another\n".to_owned())),
        ("new", (0o100_600, "new".to_owned())),
        ("usr", directory()),
        ("usr/bin", directory()),
        ("usr/bin/run", (0o100_755, "#!/bin/sh\necho ahoy\n".to_owned())),
    ];
    assert_eq!(found, expected.map(|(path, what)| (path.to_owned(), what)).into());
}

#[tokio::test]
async fn steps_work_on_what_the_step_before_made() {
    let scene = scene();
    let archive = scene.pack(ArchiveKind::Zip, Compression::None, &[("boot/script", 0o100_644, "echo hi")]).await;
    let pick = Some(Pattern::parse("boot/.*").unwrap());
    let steps = vec![Step::Archive(Rework { pick, ..nothing() }), Step::Uboot(UbootFormat::default())];
    let image = scene.make(Some(&archive), steps).await.unwrap();
    let hex: String = image.iter().map(|byte| format!("{byte:02x}")).collect();
    // Made by `SOURCE_DATE_EPOCH=0 mkimage -A arm64 -O linux -T script -C none -n '' -d FILE OUT`, but for the name's effect on the CRC:
    // the CRC in bytes 4 to 8 is the one of the header with that field zero.
    let (head, tail) = (&hex[..8], &hex[16..]);
    assert_eq!(head, "27051956");
    let rest = "000000000000000f00000000000000009fa551b405160600";
    assert_eq!(tail, format!("{rest}{}{}", "0".repeat(64), "00000007000000006563686f206869"));
    if let Some(made) = scene.tool("command -v mkimage >/dev/null || exit 127; cat > s; SOURCE_DATE_EPOCH=0 mkimage -A arm64 -O linux -T script -C none -n '' -d s o >/dev/null; cat o", b"echo hi") {
        assert_eq!(made, image);
    }
}

#[tokio::test]
async fn a_ram_disk_is_wrapped_for_u_boot_without_a_list_and_an_unknown_type_names_the_known_ones() {
    let scene = scene();
    let format = |kind: &str| Step::Uboot(UbootFormat { kind: kind.to_owned(), ..UbootFormat::default() });
    let image = scene.make(Some(b"123456789"), vec![format("ramdisk")]).await.unwrap();
    assert_eq!(image.len(), 64 + 9);
    assert_eq!(image[24..32], [0xcb, 0xf4, 0x39, 0x26, 5, 22, 3, 0]);
    let error = scene.make(Some(b"x"), vec![format("floppy")]).await.unwrap_err();
    assert_eq!(
        error,
        "cannot make 1 bytes inline, edited: U-Boot has no image type `floppy` here; use one of filesystem, firmware, flat_dt, \
         kernel, kernel_noload, multi, ramdisk, script, standalone"
    );
}

#[tokio::test]
async fn compression_alone_is_taken_off_and_put_on() {
    let scene = scene();
    let plain = "the same text again and again, ".repeat(1000);
    let step = |compression| vec![Step::Archive(Rework { compression, ..nothing() })];
    let packed = scene.make(Some(plain.as_bytes()), step(Compression::Gz)).await.unwrap();
    assert!(packed.len() < 1000 && packed.starts_with(&[0x1f, 0x8b]));
    let repacked = scene.make(Some(&packed), step(Compression::Bz2)).await.unwrap();
    assert!(repacked.starts_with(b"BZh"));
    assert_eq!(scene.make(Some(&repacked), step(Compression::None)).await.unwrap(), plain.as_bytes());
}

#[tokio::test]
async fn the_same_recipe_over_the_same_bytes_is_made_once_and_other_bytes_make_another() {
    let scene = scene();
    scene.pack(ArchiveKind::Tar, Compression::None, &[("a", 0o644, "1")]).await;
    scene.pack(ArchiveKind::Tar, Compression::None, &[("a", 0o644, "1")]).await;
    let made = || std::fs::read_dir(scene.folder.path().join("edited")).unwrap().count();
    assert_eq!(made(), 1);
    scene.pack(ArchiveKind::Tar, Compression::None, &[("a", 0o644, "2")]).await;
    scene.pack(ArchiveKind::Tar, Compression::None, &[("a", 0o600, "2")]).await;
    assert_eq!(made(), 3);
}

#[tokio::test]
async fn evil_and_wrong_archives_end_with_a_sentence_and_leave_nothing() {
    let scene = scene();
    let mut escape = scene.pack(ArchiveKind::Cpio, Compression::None, &[("aa/evil", 0o644, "x")]).await;
    let at = escape.windows(7).position(|part| part == b"aa/evil").unwrap();
    escape[at..at + 2].copy_from_slice(b"..");
    let cut =
        scene.pack(ArchiveKind::Cpio, Compression::None, &[("file", 0o644, &"x".repeat(5000))]).await[..2000].to_vec();
    let mut nested = b"inside".to_vec();
    for _ in 0..4 {
        nested = scene.tool("gzip", &nested).unwrap();
    }
    let before = "cannot make";
    let table: [(&[u8], &str); 5] = [
        (&escape, "the path `../evil` in it leads out of the archive (`..`)"),
        (&cut, "it ends in the middle of a file"),
        (&nested, "it is compressed more than 3 times over"),
        (b"no archive", "it is no archive that is read here: cpio (newc), ISO 9660, tar and zip, plain or in bz2, gz, xz or zstd"),
        (b"070701 but no more than that, and so no header of a cpio, whose numbers are hexadecimal, eight digits each; see newc", "its cpio headers are broken"),
    ];
    for (archive, sentence) in table {
        let error = scene
            .make(Some(archive), vec![Step::Archive(Rework { kind: ArchiveKind::Tar, ..nothing() })])
            .await
            .unwrap_err();
        assert!(error.starts_with(before) && error.ends_with(&format!(": {sentence}")), "{error}");
    }
    let left: Vec<_> = std::fs::read_dir(scene.folder.path().join("edited"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    // The two that were made here to be spoilt.
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named_with_some_that_are() {
    let scene = scene();
    let archive = scene.pack(ArchiveKind::Tar, Compression::None, &FILES[..3]).await;
    let error = scene.pick(&archive, r"boot/.*\.dtb").await.unwrap_err();
    let expected = "no file in it is `boot/.*\\.dtb`; it has etc/hostname, bin/run, bin/again";
    assert!(error.ends_with(expected), "{error}");
    let error = scene.pick(&archive, "bin/again").await.unwrap_err();
    assert!(error.ends_with("`bin/again` matches, and is no plain file; name the file that it leads to"), "{error}");
}

#[tokio::test]
async fn no_cut_and_no_changed_byte_of_an_archive_stops_the_server() {
    let scene = scene();
    for kind in KINDS {
        let good = scene.pack(kind, Compression::None, &FILES[..3]).await;
        // A step that divides no header's length, so that all fields are hit in turn.
        for at in (0..good.len()).step_by(good.len() / 97) {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            for bytes in [&bad[..], &good[..at]] {
                let spool = |_: &mut dyn Read| tempfile::tempfile();
                let mut visit =
                    |_: Member, content: &mut dyn Read| io::copy(content, &mut io::sink()).map(|_| Flow::On);
                // An answer is all that is asked for.
                let _ =
                    member::each(Box::new(io::Cursor::new(bytes.to_vec())), &limit(STEP_BYTES_MAX), &spool, &mut visit);
            }
        }
    }
}

#[test]
fn a_bomb_ends_at_the_limit_of_a_step() {
    let mut file = tempfile::tempfile().unwrap();
    let limit = limit(64);
    let error = io::copy(&mut io::repeat(0).take(100), &mut Capped { target: &mut file, bytes: 0, limit: &limit });
    assert_eq!(error.unwrap_err().to_string(), "it would be larger than 64 bytes");
    let farm = Limit { bytes_max: STEP_BYTES_MAX, stop: Arc::default() };
    assert_eq!(farm.check("it would be", u64::MAX).unwrap_err().to_string(), "it would be larger than 32 GiB");
}

#[test]
fn a_bomb_of_zeros_that_are_skipped_ends_at_the_limit_and_when_nobody_waits() {
    // Zeros are what fills the gaps between initial RAM disks; nothing of these would ever be written.
    let header = format!("070701{}{:08x}{:08x}", "0".repeat(88), 11, 0);
    let mut packed = [header.as_bytes(), b"TRAILER!!!\0\0\0\0", &vec![0; 3 << 20]].concat();
    for _ in 0..2 {
        let mut packer = Packer::new(Vec::new(), Compression::Gz);
        packer.write_all(&packed).unwrap();
        packed = packer.finish().unwrap();
    }
    assert!(packed.len() < 1000, "{} bytes", packed.len());
    let spool = |_: &mut dyn Read| tempfile::tempfile();
    let each = |limit: &Limit| {
        member::each(Box::new(io::Cursor::new(packed.clone())), limit, &spool, &mut |_, _| Ok(Flow::On))
    };
    each(&limit(4 << 20)).unwrap();
    assert_eq!(each(&limit(1 << 20)).unwrap_err().to_string(), "what it unpacks to is larger than 1048576 bytes");
    let left = Limit { bytes_max: STEP_BYTES_MAX, stop: Arc::new(AtomicBool::new(true)) };
    assert_eq!(each(&left).unwrap_err().to_string(), "nobody waits for it any more");
}
