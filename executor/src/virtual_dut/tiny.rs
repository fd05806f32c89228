//! A boot payload of under a kilobyte, for machines that need no Linux: tests, probes, first steps with a new board.
//!
//! Source, words of its command line and behaviour: `fixtures/virtual-dut/tiny.S`. It is committed as built, so that nobody
//! needs an assembler; the test below builds it again where there is one.

/// A multiboot image for BIOS machines.
pub const ELF: &[u8] = include_bytes!("../../../fixtures/virtual-dut/tiny.elf");

/// An arm64 kernel image and EFI program for QEMU's `virt` machine (`fixtures/virtual-dut/tiny-arm64.S`): it says what it was booted with.
pub const ARM64: &[u8] = include_bytes!("../../../fixtures/virtual-dut/tiny-arm64");

/// What it says last before it powers the machine off.
pub const LAST_WORDS: &str = "TINY: power off";

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_is_smaller_than_a_kibibyte_and_has_a_multiboot_header() {
        assert!(ELF.len() < 1024, "{}", ELF.len());
        let header = [0x02, 0xb0, 0xad, 0x1b, 3, 0, 0, 0];
        assert!(ELF.windows(header.len()).any(|window| window == header));
    }

    #[test]
    fn the_committed_binary_is_what_its_source_builds() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/virtual-dut");
        let built = tempfile::tempdir().unwrap();
        let (object, elf) = (built.path().join("tiny.o"), built.path().join("tiny.elf"));
        let mut assemble = Command::new("as");
        assemble.arg("--32").arg("-o").arg(&object).arg(source.join("tiny.S"));
        let mut link = Command::new("ld");
        link.args(["-m", "elf_i386", "-n", "--no-warn-rwx-segments", "-s", "-T"]).arg(source.join("tiny.ld"));
        link.arg("-o").arg(&elf).arg(&object);
        for tool in [&mut assemble, &mut link] {
            match tool.status() {
                Ok(status) => assert!(status.success(), "{tool:?}: {status}"),
                Err(error) => return eprintln!("SKIPPED: no binutils: {error}"),
            }
        }
        assert_eq!(loaded_bytes(&std::fs::read(elf).unwrap()), loaded_bytes(ELF), "see fixtures/virtual-dut/README.md");
    }

    #[test]
    fn the_committed_arm64_image_is_what_its_source_builds() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/virtual-dut");
        let built = tempfile::tempdir().unwrap();
        let (object, image) = (built.path().join("tiny.o"), built.path().join("image"));
        let mut assemble = Command::new("aarch64-linux-gnu-as");
        assemble.arg("-o").arg(&object).arg(source.join("tiny-arm64.S"));
        let mut copy = Command::new("aarch64-linux-gnu-objcopy");
        copy.args(["-O", "binary", "-j", ".text"]).arg(&object).arg(&image);
        for tool in [&mut assemble, &mut copy] {
            match tool.status() {
                Ok(status) => assert!(status.success(), "{tool:?}: {status}"),
                Err(error) => return eprintln!("SKIPPED: no binutils for arm64: {error}"),
            }
        }
        assert_eq!(std::fs::read(image).unwrap(), ARM64, "see fixtures/virtual-dut/README.md");
    }

    /// What the program headers load: section tables differ between versions of the linker.
    fn loaded_bytes(elf: &[u8]) -> Vec<u8> {
        let word = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap()) as usize;
        let half = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
        let (table, entry_size, entries) = (word(28), half(42), half(44));
        let headers = (0..entries).map(|number| table + number * entry_size);
        headers
            .filter(|&at| word(at) == 1)
            .flat_map(|at| elf[word(at + 4)..word(at + 4) + word(at + 16)].to_vec())
            .collect()
    }
}
