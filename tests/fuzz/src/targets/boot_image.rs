//! Android boot images of any header that a job can ask for, and parts of any length: refused, or an image that reads back.
//!
//! ```text
//!  script: numbers and texts of the header │ the command line │ lengths of kernel, RAM disks, device trees
//! ```
//! The room that makes them is a part of the binary, not of a library: the file is taken as it is.

#[path = "../../../../executor/src/boot/android.rs"]
mod android;

use job_schema::job::{Artifact, ArtifactSource, Fastboot};

use self::android::{BootImage, Piece, Sizes};
use crate::corpus;
use crate::script::Script;

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let header = header(&mut script);
    let cmdline = String::from_utf8_lossy(script.piece()).into_owned();
    let sizes = Sizes { kernel: script.large_number(), ramdisk: script.large_number(), dtb: script.large_number() };
    let kernel = Artifact { source: ArtifactSource::Data(String::new()), format: Vec::new() };
    let image = BootImage { kernel, ramdisk: Vec::new(), dtb: Vec::new(), cmdline, header };
    match image.pieces(sizes) {
        Ok(pieces) => check(&image, sizes, &pieces),
        Err(sentence) => assert!(!sentence.is_empty() && sentence.len() < 4096),
    }
}

fn header(script: &mut Script<'_>) -> Fastboot {
    let mut number = || match script.byte() % 3 {
        0 => None,
        _ => Some(script.large_number()),
    };
    let numbers = [(); 6].map(|()| number());
    let version = script.one_of(&[None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(5)]);
    let page = script.one_of(&[None, Some(0), Some(2048), Some(4096), Some(131_072), Some(4097), Some(u64::MAX)]);
    let mut text = || Some(String::from_utf8_lossy(script.piece()).into_owned());
    let [base, kernel_offset, ramdisk_offset, dtb_offset, tags_offset, _] = numbers;
    Fastboot {
        header_version: version,
        pagesize: page,
        base,
        kernel_offset,
        ramdisk_offset,
        dtb_offset,
        tags_offset,
        board: text(),
        os_version: text(),
        os_patch_level: text(),
        ..Fastboot::default()
    }
}

/// The header says what follows it, and each part begins on a page.
fn check(image: &BootImage, sizes: Sizes, pieces: &[Piece]) {
    let [Piece::Bytes(header), ..] = pieces else { panic!("the header comes first") };
    assert!(header.starts_with(b"ANDROID!"));
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let version = word(40);
    let asked = image.header.pagesize.filter(|page| *page != 0).unwrap_or(2048);
    let page = if version < 3 { asked } else { 4096 };
    let behind_the_kernel = if version == 2 { 0 } else { sizes.dtb };
    assert_eq!(u64::from(word(8)), sizes.kernel + behind_the_kernel, "the kernel's size");
    assert_eq!(u64::from(word(if version < 3 { 16 } else { 12 })), sizes.ramdisk, "the RAM disk's size");
    assert!(version > 2 || u64::from(word(36)) == page, "the page's size");
    let line = if version < 3 { [&header[64..576], &header[608..1632]].concat() } else { header[44..1580].to_vec() };
    let end = line.iter().position(|byte| *byte == 0).expect("a zero ends the command line");
    assert!(image.cmdline.as_bytes().starts_with(&line[..end]));
    let mut at = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let follows_kernel = index > 0 && pieces[index - 1] == Piece::Kernel;
        at += match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Kernel => on_page(at, page, sizes.kernel),
            Piece::Ramdisk => on_page(at, page, sizes.ramdisk),
            Piece::Dtb if follows_kernel => sizes.dtb,
            Piece::Dtb => on_page(at, page, sizes.dtb),
        };
    }
    assert_eq!(at % page, 0, "whole pages");
}

fn on_page(at: u64, page: u64, size: u64) -> u64 {
    assert_eq!(at % page, 0, "a part begins on a page");
    size
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let seed = |version: u8, page: u8, kernel: &[u8]| {
        let numbers = [1, 4, 0x80, 0, 0, 0, 0, 1, 2, 0x80, 0, 0, 0, 0];
        let texts = [&[0, 6][..], b"redfin", &[0, 6], b"12.0.1", &[0, 7], b"2023-10", &[0, 9], b"console=x"].concat();
        [&numbers[..], &[version, page], &texts, kernel, &[2, 16, 0, 1, 10]].concat()
    };
    let mut seeds = vec![seed(3, 3, &[2, 20, 0]), seed(1, 0, &[3, 1, 0, 0]), seed(2, 4, &[4, 255, 255, 255, 255])];
    seeds.push(seed(0, 2, &[8, 255, 255, 255, 255, 255, 255, 255, 255]));
    seeds.push(seed(5, 0, &[2, 20, 0]));
    seeds.extend(corpus(include_str!("../../corpus/boot_image.hex")));
    seeds
}
