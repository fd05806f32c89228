//! qcow2 images from anywhere, as the base of a disk: refused, or a disk whose bytes are the same however they are read.
//!
//! ```text
//!  script: where it is read first, and how much at once │ the image
//!  model:  the same bytes whole and in parts; what is said to be zeros is zeros; what is answered is what was asked for
//! ```

use std::cell::OnceCell;

use bytes::Bytes;
use gateway::content::Content;
use gateway::content::disk::{Base, Config, Disk, DiskError, Fill, Mode, Piece, SIZE_BYTES_MAX};
use tokio::runtime::Runtime;

use crate::corpus;
use crate::script::Script;

/// What is read of a disk: a few clusters. It may say that it has 16 TiB.
const READ_BYTES: u64 = 128 * 1024;
const CLUSTER: usize = 4096;

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let place = script.large_number();
    let at_once = u64::from(script.number()) + 1;
    let base = Base::Image(Content::Inline(Bytes::copy_from_slice(script.rest())));
    let config = Config { base, mode: Mode::ReadOnly, directory: std::env::temp_dir(), attachments_max: 1 };
    let build = || tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    RUNTIME.with(|runtime| {
        runtime.get_or_init(build).block_on(async {
            match Disk::make(config).await {
                Ok(disk) => look(&disk, place, at_once).await,
                Err(error) => check_sentence(&error),
            }
        });
    });
}

fn check_sentence(error: &DiskError) {
    let sentence = error.to_string();
    // The name of a backing file is told, and a cluster may be one name.
    assert!(sentence.len() < 40_000, "a sentence of {} bytes", sentence.len());
}

async fn look(disk: &Disk, place: u64, at_once: u64) {
    assert!(disk.size() <= SIZE_BYTES_MAX);
    let offset = if place < disk.size() { place } else { place % disk.size().max(1) };
    let length = READ_BYTES.min(disk.size() - offset);
    let whole = match read(disk, offset, length).await {
        Ok(whole) => whole,
        Err(error) => return check_sentence(&error),
    };
    let mut parts = Vec::new();
    while (parts.len() as u64) < length {
        let part = at_once.min(length - parts.len() as u64);
        let more = read(disk, offset + parts.len() as u64, part).await;
        parts.extend(more.expect("all of it could be read before"));
    }
    assert!(parts == whole, "other bytes, read {at_once} at once");
    let mut at = 0;
    for extent in disk.view().extents(offset, length).await.expect("all of it could be read before") {
        assert!(extent.length > 0 && at + extent.length <= length, "{extent:?} at {at}");
        let bytes = &whole[at as usize..(at + extent.length) as usize];
        assert!(extent.fill == Fill::Data || bytes.iter().all(|byte| *byte == 0), "{extent:?} at {at} is not zero");
        at += extent.length;
    }
    assert!(at > 0 || length == 0, "something is known of any range");
}

async fn read(disk: &Disk, offset: u64, length: u64) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    for piece in disk.view().read(offset, length).await? {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeros(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    assert_eq!(bytes.len() as u64, length, "as many bytes as were asked for");
    Ok(bytes)
}

/// Images of some clusters of 4 KiB: bytes as they are, zeros, compressed ones; a backing file; nothing at all.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let header = |version: u8, size: u64, features: u8, compression: u8| {
        let mut image = vec![0; 3 * CLUSTER];
        let fields: [(usize, &[u8]); 8] = [
            (0, b"QFI\xfb\0\0\0"),
            (7, &[version]),
            (20, &12_u32.to_be_bytes()),
            (24, &size.to_be_bytes()),
            (36, &512_u32.to_be_bytes()),
            (40, &(CLUSTER as u64).to_be_bytes()),
            (79, &[features]),
            (96, &[0, 0, 0, 4, 0, 0, 0, 112, compression]),
        ];
        for (at, bytes) in fields {
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
        image
    };
    let entry = |image: &mut Vec<u8>, at: usize, entry: u64| image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
    let mut plain = header(3, 1 << 20, 0, 0);
    entry(&mut plain, CLUSTER, 2 * CLUSTER as u64);
    for (number, place) in [3 * CLUSTER as u64, 4 * CLUSTER as u64, 1, 3 * CLUSTER as u64].into_iter().enumerate() {
        entry(&mut plain, 2 * CLUSTER + 8 * number, place);
    }
    plain.extend([b'a'; CLUSTER]);
    plain.extend([0; 100]);
    plain.extend([b'b'; CLUSTER - 100]);
    // Deflate: a block of a fixed code with 4096 times one letter would need a compressor; stored bytes are deflate as well.
    let mut packed = header(2, 8192, 0, 0);
    entry(&mut packed, CLUSTER, 2 * CLUSTER as u64);
    entry(&mut packed, 2 * CLUSTER, 1 << 62 | 8 << 58 | (3 * CLUSTER as u64));
    packed.extend([1, 0, 16, 255, 239]);
    packed.extend([b'c'; CLUSTER]);
    // zstd: one frame with one block that repeats a byte 4096 times (RFC 8878, 3.1.1.2).
    let mut frame = header(3, 8192, 8, 1);
    entry(&mut frame, CLUSTER, 2 * CLUSTER as u64);
    entry(&mut frame, 2 * CLUSTER + 8, 1 << 62 | (3 * CLUSTER as u64));
    frame.extend([0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 15, 3, 128, 0, b'd']);
    let mut backed = header(3, 8192, 0, 0);
    backed[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 112, 0, 0, 0, 4]);
    let mut seeds: Vec<Vec<u8>> =
        [plain, packed, frame, backed].iter().map(|image| [&[0, 1, 0][..], image].concat()).collect();
    seeds.extend(corpus(include_str!("../../corpus/qcow2.hex")));
    seeds
}
