//! U-Boot's legacy image around any bytes: 64 bytes of header, all numbers big-endian (U-Boot's include/image.h).
//!
//! ```text
//!  0          4           8      12     16     20      24         28   29    30     31       32      64
//!  ├ 27051956 ┼ head CRC ─┼ time ┼ size ┼ load ┼ entry ┼ data CRC ┼ OS ┼ CPU ┼ type ┼ packed ┼ name ─┼ data
//! ```
//! A script has a list of lengths before its text: its own, and a zero (what `mkimage -T script` writes). Times are zero, so that the
//! same bytes give the same image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use flate2::Crc;
use job_schema::job::{UbootArchitecture, UbootCompression, UbootFormat, UbootSystem};

use super::evil;

const HEADER_BYTES: u64 = 64;
/// `IH_TYPE_…`, by mkimage's names.
const TYPES: &[(&str, u8)] = &[
    ("filesystem", 7),
    ("firmware", 5),
    ("flat_dt", 8),
    ("kernel", 2),
    ("kernel_noload", 14),
    ("multi", 4),
    ("ramdisk", 3),
    ("script", 6),
    ("standalone", 1),
];

/// Writes `content` as an image into `target`, an empty file.
pub(super) fn wrap(format: &UbootFormat, content: &mut dyn Read, target: &mut File) -> io::Result<()> {
    let kind = TYPES.iter().find(|(name, _)| *name == format.kind).map(|(_, number)| *number).ok_or_else(|| {
        let names: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
        evil(format!("U-Boot has no image type `{}` here; use one of {}", format.kind, names.join(", ")))
    })?;
    let list_bytes = if format.kind == "script" { 8 } else { 0 };
    target.seek(SeekFrom::Start(HEADER_BYTES + list_bytes))?;
    let length = io::copy(content, target)?;
    let size = u32::try_from(length + list_bytes)
        .map_err(|_| evil("it is larger than 4 GiB, more than a U-Boot image holds".to_owned()))?;
    if list_bytes > 0 {
        target.seek(SeekFrom::Start(HEADER_BYTES))?;
        target.write_all(&[(length as u32).to_be_bytes(), [0; 4]].concat())?;
    }
    target.seek(SeekFrom::Start(HEADER_BYTES))?;
    let checksum = checksum(target)?;
    target.rewind()?;
    target.write_all(&header(format, kind, size, checksum))
}

fn checksum(file: &mut File) -> io::Result<u32> {
    let (mut crc, mut buffer) = (Crc::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc.sum()),
            count => crc.update(&buffer[..count]),
        }
    }
}

fn header(format: &UbootFormat, kind: u8, size: u32, checksum: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    for word in [0x2705_1956, 0, 0, size, 0, 0, checksum] {
        header.extend(u32::to_be_bytes(word));
    }
    let UbootSystem::Linux = format.os;
    let UbootCompression::None = format.compression;
    header.extend([5, processor(format.architecture), kind, 0]);
    header.resize(HEADER_BYTES as usize, 0);
    let mut crc = Crc::new();
    crc.update(&header);
    header[4..8].copy_from_slice(&crc.sum().to_be_bytes());
    header
}

/// `IH_ARCH_…`.
fn processor(architecture: UbootArchitecture) -> u8 {
    match architecture {
        UbootArchitecture::Arm32 => 2,
        UbootArchitecture::X86 => 3,
        UbootArchitecture::Arm64 => 22,
        UbootArchitecture::X86_64 => 24,
        UbootArchitecture::Riscv32 | UbootArchitecture::Riscv64 => 26,
    }
}
