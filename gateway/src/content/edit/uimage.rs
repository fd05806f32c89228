//! U-Boot's legacy image around any bytes: 64 bytes of header, all numbers big-endian (U-Boot's include/image.h).
//!
//! ```text
//!  0          4           8      12     16     20      24         28   29    30     31       32      64
//!  ├ 27051956 ┼ head CRC ─┼ time ┼ size ┼ load ┼ entry ┼ data CRC ┼ OS ┼ CPU ┼ type ┼ packed ┼ name ─┼ data
//! ```
//! A script has a list of lengths before its text: its own, and a zero (what `mkimage -T script` writes). Times are zero, so that the
//! same bytes give the same image.

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

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

/// A boot script of our own, which U-Boot's `source` takes.
pub fn script(text: &str, architecture: UbootArchitecture) -> Vec<u8> {
    let format = UbootFormat { architecture, kind: "script".to_owned(), ..UbootFormat::default() };
    let mut image = Cursor::new(Vec::new());
    wrap(&format, &mut text.as_bytes(), &mut image).expect("memory takes a script, which is short and of a known type");
    image.into_inner()
}

/// Writes `content` as an image into `target`, which is empty.
pub(super) fn wrap(
    format: &UbootFormat,
    content: &mut dyn Read,
    target: &mut (impl Read + Write + Seek),
) -> io::Result<()> {
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

fn checksum(content: &mut impl Read) -> io::Result<u32> {
    let (mut crc, mut buffer) = (Crc::new(), vec![0; 64 * 1024]);
    loop {
        match content.read(&mut buffer)? {
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_script_is_what_u_boot_s_own_tool_makes_of_it_for_every_architecture_where_it_is_installed() {
        let folder = tempfile::tempdir().unwrap();
        let (source, image) = (folder.path().join("script"), folder.path().join("image"));
        std::fs::write(&source, "echo of any length\n").unwrap();
        let names = [
            ("arm", UbootArchitecture::Arm32),
            ("arm64", UbootArchitecture::Arm64),
            ("x86", UbootArchitecture::X86),
            ("x86_64", UbootArchitecture::X86_64),
            ("riscv", UbootArchitecture::Riscv64),
        ];
        for (name, architecture) in names {
            let mut tool = Command::new("mkimage");
            tool.args(["-A", name, "-O", "linux", "-T", "script", "-C", "none", "-n", ""]).arg("-d").arg(&source);
            match tool.arg(&image).env("SOURCE_DATE_EPOCH", "0").output() {
                Ok(output) => assert!(output.status.success(), "{output:?}"),
                Err(error) => return eprintln!("SKIPPED: no mkimage: {error}"),
            }
            assert_eq!(script("echo of any length\n", architecture), std::fs::read(&image).unwrap(), "{name}");
        }
    }
}
