//! What a loader reads of an Android boot image's header. Written apart from `executor/src/boot/android.rs`, which makes such images. ◆
//!
//! | at | versions 0 to 2 | versions 3 and 4 |
//! |---|---|---|
//! | 8 | kernel's size | kernel's size |
//! | 12 | | RAM disk's size |
//! | 16 | RAM disk's size | |
//! | 36 | size of a page | |
//! | 40 | version | version |
//! | 44 | | command line, 1536 bytes |
//! | 64, 608 | command line, 512 and 1024 bytes | |
//! | 1648 | device tree's size (version 2) | |

/// As much of an image as is looked at: the pages of versions 3 and 4.
pub const HEADER_BYTES: usize = 4096;

/// What it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The header's version.
    pub version: u32,
    /// The kernel's size.
    pub kernel: u64,
    /// The RAM disk's size.
    pub ramdisk: u64,
    /// The device tree's size.
    pub dtb: u64,
    /// The command line.
    pub cmdline: String,
}

impl Header {
    /// The header of an image of `bytes`, of which this is the start; or what a loader says instead.
    pub fn read(start: &[u8], bytes: u64) -> Result<Header, &'static str> {
        if !start.starts_with(b"ANDROID!") {
            return Err("bad boot image magic");
        }
        let word = |at: usize| -> Result<u64, &'static str> {
            let word = start.get(at..at + 4).ok_or("boot image too short")?;
            Ok(u64::from(u32::from_le_bytes(word.try_into().expect("four bytes"))))
        };
        let text = |at: usize, length: usize| start.get(at..at + length).ok_or("boot image too short");
        let version = word(40)? as u32;
        let (page, mut header) = match version {
            0..=2 => {
                let dtb = if version == 2 { word(1648)? } else { 0 };
                let cmdline = until_zero(&[text(64, 512)?, text(608, 1024)?].concat());
                (word(36)?, Header { version, kernel: word(8)?, ramdisk: word(16)?, dtb, cmdline })
            }
            3 | 4 => {
                let cmdline = until_zero(text(44, 1536)?);
                (4096, Header { version, kernel: word(8)?, ramdisk: word(12)?, dtb: 0, cmdline })
            }
            _ => return Err("unknown boot image version"),
        };
        if !page.is_power_of_two() {
            return Err("bad boot image page size");
        }
        let parts = [page, header.kernel, header.ramdisk, header.dtb];
        if parts.iter().map(|part| part.next_multiple_of(page)).sum::<u64>() != bytes {
            return Err("boot image has another size than its header says");
        }
        header.cmdline = header.cmdline.trim().to_owned();
        Ok(header)
    }
}

fn until_zero(text: &[u8]) -> String {
    String::from_utf8_lossy(text.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_boot_image_is_refused_as_loaders_refuse_it() {
        let mut image = vec![0; 4096];
        assert_eq!(Header::read(&image, 4096), Err("bad boot image magic"));
        image[..8].copy_from_slice(b"ANDROID!");
        assert_eq!(Header::read(&image[..20], 20), Err("boot image too short"));
        assert_eq!(Header::read(&image, 4096), Err("bad boot image page size"));
        image[37] = 8;
        assert_eq!(Header::read(&image, 4096), Err("boot image has another size than its header says"));
        assert_eq!(Header::read(&image, 2048), Ok(Header::default()));
        image[40] = 9;
        assert_eq!(Header::read(&image, 4096), Err("unknown boot image version"));
    }
}
