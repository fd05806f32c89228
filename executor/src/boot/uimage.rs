//! U-Boot's legacy image format, as far as boot scripts need it. ◆
//!
//! ```text
//!  0          4           8    12     16    20   24        28  29    30    31    32       64        68   72
//!  ├ 27051956 ┼ head CRC ─┼ 0 ─┼ size ┼ 0 ──┼ 0 ─┼ data CRC ┼ OS ┼ CPU ┼ 6 ───┼ 0 ──┼ name ──┼ length ┼ 0 ──┼ script
//!    magic                time        load  entry                       script  no compression
//! ```
//! All numbers are big-endian. The header's CRC is taken with its own field zero. After it a script is a list of one file: its length,
//! a zero, its text (U-Boot's include/image.h, and what `mkimage -T script` writes).

use job_schema::job::UbootArchitecture;

/// `IH_MAGIC`.
const MAGIC: u32 = 0x2705_1956;
/// `IH_OS_LINUX`.
const LINUX: u8 = 5;
/// `IH_TYPE_SCRIPT`.
const SCRIPT: u8 = 6;
/// The name's field; a name without room for a zero at its end is cut.
const NAME_BYTES: usize = 32;

/// A boot script that U-Boot's `source` takes. Its time is zero, so that the same script is the same bytes.
pub fn script(text: &str, architecture: UbootArchitecture, name: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("scripts are made here, and are short");
    let data = [&length.to_be_bytes(), &[0; 4], text.as_bytes()].concat();
    let mut image = header(&data, processor(architecture), name);
    let checksum = crc32(&image);
    image[4..8].copy_from_slice(&checksum.to_be_bytes());
    image.extend(data);
    image
}

fn header(data: &[u8], processor: u8, name: &str) -> Vec<u8> {
    let size = u32::try_from(data.len()).expect("scripts are made here, and are short");
    let mut header = Vec::with_capacity(64);
    for word in [MAGIC, 0, 0, size, 0, 0, crc32(data)] {
        header.extend(word.to_be_bytes());
    }
    header.extend([LINUX, processor, SCRIPT, 0]);
    let mut field = [0; NAME_BYTES];
    for (byte, of_name) in field.iter_mut().take(NAME_BYTES - 1).zip(name.bytes()) {
        *byte = of_name;
    }
    header.extend(field);
    header
}

/// `IH_ARCH_…` of U-Boot's include/image.h.
fn processor(architecture: UbootArchitecture) -> u8 {
    match architecture {
        UbootArchitecture::Arm32 => 2,
        UbootArchitecture::X86 => 3,
        UbootArchitecture::Arm64 => 22,
        UbootArchitecture::X86_64 => 24,
        UbootArchitecture::Riscv32 | UbootArchitecture::Riscv64 => 26,
    }
}

/// CRC-32 of ISO 3309, as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_script_has_the_bytes_that_u_boot_s_own_tool_gives_it() {
        // Made by `SOURCE_DATE_EPOCH=0 mkimage -A arm64 -O linux -T script -C none -n wharf -d FILE OUT` (u-boot-tools 2023.01).
        let expected = "270519564f52eebc000000000000000f00000000000000009fa551b4051606007768617266000000\
                        00000000000000000000000000000000000000000000000000000007000000006563686f206869";
        let hex: String =
            script("echo hi", UbootArchitecture::Arm64, "wharf").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn u_boot_s_own_tool_makes_the_same_of_every_architecture_where_it_is_installed() {
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
            tool.args(["-A", name, "-O", "linux", "-T", "script", "-C", "none", "-n", "a name"]).arg("-d").arg(&source);
            match tool.arg(&image).env("SOURCE_DATE_EPOCH", "0").output() {
                Ok(output) => assert!(output.status.success(), "{output:?}"),
                Err(error) => return eprintln!("SKIPPED: no mkimage: {error}"),
            }
            assert_eq!(
                script("echo of any length\n", architecture, "a name"),
                std::fs::read(&image).unwrap(),
                "{name}"
            );
        }
    }
}
