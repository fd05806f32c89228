//! What the bytes of a qcow2 image mean (QEMU, docs/interop/qcow2.txt): its header, and the entries of its tables.
//!
//! ```text
//!  header ─► level 1 table: an entry per level 2 table ─► level 2 table: an entry per cluster ─► Place
//!                  0: all of it reads as zeros                0, or its bit 0: zeros │ raw bytes │ compressed bytes
//! ```
//! What an image may ask of others is refused here by name: a backing file, a data file, a key. So reading one opens nothing but itself.

use std::fmt;

/// The header of version 3, with the byte that names the compression.
pub(super) const HEADER_BYTES: usize = 105;
/// Of the level 1 table: 32 MiB, QEMU's own limit (QCOW_MAX_L1_SIZE).
const TABLE_ENTRIES_MAX: u64 = 4 * 1024 * 1024;
/// An entry of a table is a 64-bit number.
pub(super) const ENTRY_BYTES: u64 = 8;

/// "QFI\xfb".
pub(in super::super) const MAGIC: &[u8] = b"QFI\xfb";
/// Bits 9 to 55 of an entry are where something begins.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ALL_ZEROS: u64 = 1;

/// Bits of `incompatible_features`. A dirty image has wrong reference counts, which nobody needs who only reads.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const SUBCLUSTERS: u64 = 1 << 4;

/// An image's measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Of the disk.
    pub(super) size: u64,
    pub(super) cluster_bits: u32,
    /// Where the level 1 table begins.
    pub(super) table: u64,
    /// Its entries that the disk needs.
    pub(super) entries: u64,
    pub(super) compression: Compression,
    has_zero_bit: bool,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Deflate without a header.
    Zlib,
    /// A frame of its own.
    Zstd,
}

/// Where a cluster's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it reads as zeros.
    Zeros,
    /// As they are, from here on.
    At(u64),
    /// In at most `length` bytes from `offset` on.
    Compressed {
        /// Where they begin.
        offset: u64,
        /// How many there may be.
        length: u64,
    },
}

/// Why an image is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Fewer bytes than a header.
    Short,
    /// A version that is neither 2 nor 3.
    Version(u32),
    /// It shows another image where it has nothing itself.
    Backing(String),
    /// Its clusters are in another file.
    DataFile,
    /// It wants a key.
    Encrypted,
    /// Whoever wrote it last found it broken.
    Corrupt,
    /// Its clusters are divided.
    Subclusters,
    /// A feature of later versions.
    Feature(u64),
    /// A compression of later versions.
    Compression(u8),
    /// The size of its clusters.
    ClusterBits(u32),
    /// The disk's size.
    Size {
        /// In bytes.
        size: u64,
        /// As much as a disk may have.
        size_max: u64,
    },
    /// Its tables cannot be what they say.
    Table(String),
    /// Something lies where the image has no bytes.
    Behind {
        /// What.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// Compressed bytes that do not unpack.
    Unpack {
        /// Where they begin.
        offset: u64,
        /// What the decoder said.
        reason: String,
    },
}

impl Layout {
    /// Reads a header. `head` is how the image begins; the name of a backing file may lie in it, too.
    pub(super) fn read(head: &[u8], size_max: u64) -> Result<Layout, Unreadable> {
        let word = |at: usize| be32(head, at).ok_or(Unreadable::Short);
        let long = |at: usize| be64(head, at).ok_or(Unreadable::Short);
        let version = word(4)?;
        if !(2..=3).contains(&version) {
            return Err(Unreadable::Version(version));
        }
        refuse_others(head, long(8)?, word(16)?, word(32)?)?;
        let compression = if version == 3 { features(long(72)?, word(100)?, head)? } else { Compression::Zlib };
        let (cluster_bits, size) = (word(20)?, long(24)?);
        // From 512 bytes to 2 MiB: what the format allows and QEMU takes.
        if !(9..=21).contains(&cluster_bits) {
            return Err(Unreadable::ClusterBits(cluster_bits));
        }
        if size > size_max {
            return Err(Unreadable::Size { size, size_max });
        }
        let (there, table) = (u64::from(word(36)?), long(40)?);
        let layout = Layout { size, cluster_bits, table, entries: 0, compression, has_zero_bit: version == 3 };
        let entries = size.div_ceil(layout.span());
        if entries > TABLE_ENTRIES_MAX || entries > there {
            let what = format!("{there} entries of level 1 for a disk of {size} bytes that needs {entries}");
            return Err(Unreadable::Table(what));
        }
        if entries > 0 && !table.is_multiple_of(layout.cluster_bytes()) {
            return Err(Unreadable::Table(format!("its level 1 table begins inside a cluster, at byte {table}")));
        }
        Ok(Layout { entries, ..layout })
    }

    /// The size of a cluster.
    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How much of the disk one level 2 table, which fills a cluster, tells of.
    pub(super) fn span(&self) -> u64 {
        self.cluster_bytes() / ENTRY_BYTES * self.cluster_bytes()
    }

    /// Where a level 2 table begins, by its entry; `None`: all of it reads as zeros.
    pub(super) fn second_table(&self, entry: u64) -> Result<Option<u64>, Unreadable> {
        let offset = entry & OFFSET;
        match offset {
            0 => Ok(None),
            _ if offset.is_multiple_of(self.cluster_bytes()) => Ok(Some(offset)),
            _ => Err(Unreadable::Table(format!("a level 2 table begins inside a cluster, at byte {offset}"))),
        }
    }

    /// Where a cluster is, by its entry.
    pub(super) fn place(&self, entry: u64) -> Result<Place, Unreadable> {
        if entry & COMPRESSED != 0 {
            // The lower bits are where it begins, at any byte; those above count the sectors of 512 bytes that follow the first.
            let count_bits = self.cluster_bits - 8;
            let offset_bits = 62 - count_bits;
            let offset = entry & ((1 << offset_bits) - 1);
            let sectors = ((entry >> offset_bits) & ((1 << count_bits) - 1)) + 1;
            return Ok(Place::Compressed { offset, length: sectors * 512 - offset % 512 });
        }
        if self.has_zero_bit && entry & ALL_ZEROS != 0 {
            return Ok(Place::Zeros);
        }
        let offset = entry & OFFSET;
        match offset {
            0 => Ok(Place::Zeros),
            _ if offset.is_multiple_of(self.cluster_bytes()) => Ok(Place::At(offset)),
            _ => Err(Unreadable::Table(format!("a cluster begins inside another, at byte {offset}"))),
        }
    }
}

/// What lies in other files, or behind a key.
fn refuse_others(head: &[u8], name_at: u64, name_bytes: u32, encryption: u32) -> Result<(), Unreadable> {
    if name_at != 0 {
        let name = usize::try_from(name_at).ok().and_then(|at| head.get(at..)?.get(..name_bytes as usize));
        return Err(Unreadable::Backing(
            name.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default(),
        ));
    }
    if encryption != 0 { Err(Unreadable::Encrypted) } else { Ok(()) }
}

fn features(bits: u64, header_bytes: u32, head: &[u8]) -> Result<Compression, Unreadable> {
    for (bit, refusal) in
        [(CORRUPT, Unreadable::Corrupt), (DATA_FILE, Unreadable::DataFile), (SUBCLUSTERS, Unreadable::Subclusters)]
    {
        if bits & bit != 0 {
            return Err(refusal);
        }
    }
    match bits & !(DIRTY | COMPRESSION) {
        0 => {}
        unknown => return Err(Unreadable::Feature(unknown)),
    }
    // The bit says that the byte is there and not 0.
    match head.get(HEADER_BYTES - 1) {
        _ if bits & COMPRESSION == 0 => Ok(Compression::Zlib),
        Some(1) if header_bytes as usize >= HEADER_BYTES => Ok(Compression::Zstd),
        Some(kind) => Err(Unreadable::Compression(*kind)),
        None => Err(Unreadable::Short),
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The number at `at`, `None` behind the end.
pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Short => f.write_str("it ends inside its header"),
            Unreadable::Version(version) => write!(f, "it is of version {version}; versions 2 and 3 are read"),
            Unreadable::Backing(name) => write!(
                f,
                "it shows its backing file `{name}` where it has nothing itself, and no other file is opened for it; `qemu-img convert -O qcow2` \
                 makes one image of both"
            ),
            Unreadable::DataFile => f.write_str(
                "its clusters are in a data file of their own, and no other file is opened for it; `qemu-img convert -O qcow2` makes one image of \
                 both",
            ),
            Unreadable::Encrypted => {
                f.write_str("it is encrypted; `qemu-img convert` writes it out without encryption")
            }
            Unreadable::Corrupt => f.write_str("it is marked as corrupt; `qemu-img check -r all` repairs it"),
            Unreadable::Subclusters => {
                f.write_str("it has extended entries (subclusters); `qemu-img convert -O qcow2` writes it without")
            }
            Unreadable::Feature(bits) => write!(f, "it needs what later versions of the format have (feature bits {bits:#x})"),
            Unreadable::Compression(kind) => {
                write!(f, "its compression has number {kind}; 0 (zlib) and 1 (zstd) are read")
            }
            Unreadable::ClusterBits(bits) => write!(f, "its clusters have 2^{bits} bytes; 2^9 to 2^21 are read"),
            Unreadable::Size { size, size_max } => {
                write!(f, "it says that the disk has {size} bytes; {size_max} are the most that a disk may have")
            }
            Unreadable::Table(what) => write!(f, "{what}; it is damaged, or was made to look so"),
            Unreadable::Behind { what, offset } => {
                write!(f, "{what} would lie at byte {offset}, behind its end; it is cut off, or damaged")
            }
            Unreadable::Unpack { offset, reason } => write!(f, "the compressed cluster at byte {offset} is damaged: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_MAX: u64 = 1 << 44;

    /// A header of version 3: clusters of 64 KiB, a disk of 1 GiB, two entries at the third cluster.
    fn header(changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; 512];
        let fields: [(usize, &[u8]); 6] = [
            (0, b"QFI\xfb\0\0\0\x03"),
            (20, &[0, 0, 0, 16]),
            (24, &[0, 0, 0, 0, 0x40, 0, 0, 0]),
            (36, &[0, 0, 0, 2]),
            (40, &[0, 0, 0, 0, 0, 3, 0, 0]),
            (96, &[0, 0, 0, 4, 0, 0, 0, 112]),
        ];
        for (at, bytes) in fields.iter().chain(changes) {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn refusal(changes: &[(usize, &[u8])]) -> String {
        Layout::read(&header(changes), SIZE_MAX).unwrap_err().to_string()
    }

    #[test]
    fn a_header_says_how_large_the_disk_is_and_where_its_table() {
        let layout = Layout::read(&header(&[]), SIZE_MAX).unwrap();
        assert_eq!((layout.size, layout.cluster_bytes(), layout.table, layout.entries), (1 << 30, 65536, 0x3_0000, 2));
        assert_eq!(layout.compression, Compression::Zlib);
        let zstd = header(&[(79, &[8]), (104, &[1])]);
        assert_eq!(Layout::read(&zstd, SIZE_MAX).unwrap().compression, Compression::Zstd);
        assert!(Layout::read(&header(&[(79, &[1])]), SIZE_MAX).is_ok(), "dirty is well enough for reading");
    }

    #[test]
    fn what_an_image_asks_of_others_is_refused_by_name() {
        let backing = refusal(&[(8, &[0, 0, 0, 0, 0, 0, 1, 0]), (16, &[0, 0, 0, 11]), (256, b"/etc/shadow")]);
        assert!(backing.starts_with("it shows its backing file `/etc/shadow` where it has nothing"), "{backing}");
        let far = refusal(&[(8, &[0xff; 8]), (16, &[0xff; 4])]);
        assert!(far.starts_with("it shows its backing file `` where"), "{far}");
        assert!(refusal(&[(79, &[4])]).starts_with("its clusters are in a data file of their own"));
        assert!(refusal(&[(35, &[2])]).starts_with("it is encrypted"));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_the_reason() {
        assert_eq!(Layout::read(&header(&[])[..80], SIZE_MAX), Err(Unreadable::Short));
        assert_eq!(refusal(&[(7, &[1])]), "it is of version 1; versions 2 and 3 are read");
        assert!(refusal(&[(79, &[2])]).starts_with("it is marked as corrupt"));
        assert!(refusal(&[(79, &[16])]).starts_with("it has extended entries"));
        assert!(refusal(&[(72, &[0x80])]).ends_with("(feature bits 0x8000000000000000)"));
        assert_eq!(refusal(&[(79, &[8]), (104, &[9])]), "its compression has number 9; 0 (zlib) and 1 (zstd) are read");
        assert_eq!(refusal(&[(23, &[22])]), "its clusters have 2^22 bytes; 2^9 to 2^21 are read");
        let huge =
            "it says that the disk has 4611686018427387904 bytes; 17592186044416 are the most that a disk may have";
        assert_eq!(refusal(&[(24, &[0x40, 0, 0, 0, 0, 0, 0, 0])]), huge);
        assert!(refusal(&[(39, &[1])]).starts_with("1 entries of level 1 for a disk of 1073741824 bytes that needs 2"));
        // 1 TiB in clusters of 512 bytes: a table that QEMU does not take, either.
        let long = refusal(&[(23, &[9]), (24, &[0, 0, 1, 0, 0, 0, 0, 0]), (36, &[0xff; 4])]);
        assert!(long.contains("that needs 33554432"), "{long}");
        assert!(refusal(&[(47, &[1])]).starts_with("its level 1 table begins inside a cluster"));
    }

    #[test]
    fn entries_of_every_value_have_a_meaning() {
        let layout = Layout::read(&header(&[]), SIZE_MAX).unwrap();
        assert_eq!(layout.place(0), Ok(Place::Zeros));
        assert_eq!(layout.place(1), Ok(Place::Zeros));
        assert_eq!(layout.place((1 << 63) | 0x5_0001), Ok(Place::Zeros), "allocated, and zeros all the same");
        assert_eq!(layout.place((1 << 63) | 0x5_0000), Ok(Place::At(0x5_0000)));
        assert!(matches!(layout.place(0x5_0200), Err(Unreadable::Table(_))));
        // 8 bits count sectors: bits 54 to 61. Two more, from byte 0x5_0123 on.
        let packed = layout.place(COMPRESSED | (2 << 54) | 0x5_0123);
        assert_eq!(packed, Ok(Place::Compressed { offset: 0x5_0123, length: 3 * 512 - 0x123 }));
        let largest = layout.place(u64::MAX);
        assert_eq!(largest, Ok(Place::Compressed { offset: (1 << 54) - 1, length: 256 * 512 - 511 }));
        assert_eq!(layout.second_table(!OFFSET), Ok(None));
        assert_eq!(layout.second_table((1 << 63) | 0x4_0000), Ok(Some(0x4_0000)));
        assert!(layout.second_table(0x4_0200).is_err());
    }
}
