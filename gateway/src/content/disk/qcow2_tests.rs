//! Images made by hand, the honest and the hostile; `it/disks.rs` compares those that qemu-img makes.

use std::io::Write;

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::super::{Base, Config, Disk, Durability, Extent, Mode};
use super::*;

/// Clusters of 4 KiB: one level 2 table tells of 2 MiB.
const CLUSTER: usize = 4096;
const SPAN: u64 = 2 << 20;

/// An image whose header fills the first cluster, whose level 1 table the second; what comes then is put where it goes.
struct Made(Vec<u8>);

impl Made {
    fn new(size: u64) -> Made {
        let mut made = Made(vec![0; 2 * CLUSTER]);
        made.put(0, b"QFI\xfb\0\0\0\x03");
        made.put(20, &12_u32.to_be_bytes());
        made.put(24, &size.to_be_bytes());
        made.put(36, &512_u32.to_be_bytes());
        made.put(40, &(CLUSTER as u64).to_be_bytes());
        made.put(96, &[0, 0, 0, 4, 0, 0, 0, 112]);
        made
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Appends a cluster, and says where.
    fn cluster(&mut self, bytes: &[u8]) -> u64 {
        let at = self.0.len();
        self.0.extend_from_slice(bytes);
        self.0.resize(at + bytes.len().next_multiple_of(CLUSTER), 0);
        at as u64
    }

    /// A level 2 table of those entries, for the level 1 entry `index`.
    fn table(&mut self, index: usize, entries: &[u64]) {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let at = self.cluster(&bytes);
        self.put(CLUSTER + index * 8, &at.to_be_bytes());
    }

    /// The entry of a cluster that was compressed to `packed`.
    fn packed(&mut self, packed: &[u8]) -> u64 {
        let sectors = (packed.len().div_ceil(512) - 1) as u64;
        (1 << 62) | (sectors << (62 - 4)) | self.cluster(packed)
    }

    async fn open(self) -> Result<Disk, DiskError> {
        let base = Base::Image(Content::Inline(self.0.into()));
        let directory = std::env::temp_dir();
        Disk::make(Config { base, mode: Mode::CopyOnWrite, directory, attachments_max: 4 }).await
    }

    async fn refusal(self) -> String {
        self.open().await.map(|disk| panic!("{disk:?}")).unwrap_err().to_string()
    }
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn numbered(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| ((index / 3 + seed) % 251) as u8 + 1).collect()
}

async fn bytes(disk: &Disk, offset: u64, length: u64) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    for piece in disk.view().read(offset, length).await? {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeros(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    Ok(bytes)
}

/// Raw, packed, zeros that are marked, nothing, two raw ones in a row; then a span without a table, and one with a cluster at its end.
fn every_kind(compress: fn(&[u8]) -> Vec<u8>) -> (Made, Vec<u8>) {
    let size = 2 * SPAN + 3 * CLUSTER as u64 + 100;
    let mut made = Made::new(size);
    let (raw, two) = (made.cluster(&numbered(1, CLUSTER)), made.cluster(&numbered(2, 2 * CLUSTER)));
    let packed = made.packed(&compress(&numbered(3, CLUSTER)));
    made.table(0, &[raw, packed, 1, 0, two, two + CLUSTER as u64]);
    let last = made.packed(&compress(&numbered(4, CLUSTER)));
    made.table(2, &[0, 0, 0, last]);
    let mut expected = vec![0; size as usize];
    let at = |cluster: usize| cluster * CLUSTER;
    expected[..at(1)].copy_from_slice(&numbered(1, CLUSTER));
    expected[at(1)..at(2)].copy_from_slice(&numbered(3, CLUSTER));
    expected[at(4)..at(6)].copy_from_slice(&numbered(2, 2 * CLUSTER));
    let end = 2 * SPAN as usize + at(3);
    expected[end..].copy_from_slice(&numbered(4, CLUSTER)[..100]);
    (made, expected)
}

#[tokio::test]
async fn every_kind_of_cluster_reads_as_it_was_before_it_became_an_image() {
    let zstd = |bytes: &[u8]| compress_to_vec(bytes, CompressionLevel::Fastest);
    for (compress, features) in [(deflated as fn(&[u8]) -> Vec<u8>, None), (zstd, Some([(79, 8), (104, 1)]))] {
        let (mut made, mut expected) = every_kind(compress);
        for (at, byte) in features.into_iter().flatten() {
            made.put(at, &[byte]);
        }
        let disk = made.open().await.unwrap();
        let size = disk.size();
        assert_eq!(size, expected.len() as u64);
        assert!(bytes(&disk, 0, size).await.unwrap() == expected);
        assert!(bytes(&disk, 5000, 20_000).await.unwrap() == expected[5000..25_000]);
        // A write in part over a packed cluster keeps the rest of it.
        disk.view().write(4100, Bytes::from_static(b"written"), Durability::Memory).await.unwrap();
        expected[4100..4107].copy_from_slice(b"written");
        assert!(bytes(&disk, 0, size).await.unwrap() == expected);
        let kinds: Vec<_> = disk.view().extents(0, size).await.unwrap();
        let (data, zeros) = (Fill::Data, Fill::Zeros);
        let of = |length, fill| Extent { length, fill };
        let span = 2 * SPAN + 3 * 4096 - 6 * 4096;
        assert_eq!(kinds, [of(8192, data), of(8192, zeros), of(8192, data), of(span, zeros), of(100, data)]);
    }
}

#[tokio::test]
async fn many_who_read_one_packed_cluster_unpack_it_once_and_all_get_it() {
    let mut made = Made::new(SPAN);
    let packed = made.packed(&deflated(&numbered(7, CLUSTER)));
    made.table(0, &[packed; 512]);
    let disk = made.open().await.unwrap();
    let reads = (0..64).map(|index| {
        let disk = disk.clone();
        tokio::spawn(async move { bytes(&disk, index * 512, 512).await.unwrap() })
    });
    for (index, read) in reads.collect::<Vec<_>>().into_iter().enumerate() {
        let start = index * 512 % CLUSTER;
        assert!(read.await.unwrap() == numbered(7, CLUSTER)[start..start + 512], "read {index}");
    }
}

#[tokio::test]
async fn an_image_that_lies_about_its_tables_is_refused_when_it_is_opened() {
    let mut behind = Made::new(SPAN);
    behind.put(CLUSTER, &(1_u64 << 40).to_be_bytes());
    let told = behind.refusal().await;
    assert!(
        told.ends_with("a level 2 table would lie at byte 1099511627776, behind its end; it is cut off, or damaged")
    );
    let mut aslant = Made::new(SPAN);
    aslant.put(CLUSTER, &0x1200_u64.to_be_bytes());
    assert!(aslant.refusal().await.contains("a level 2 table begins inside a cluster, at byte 4608"));
    let mut far = Made::new(SPAN);
    far.put(40, &(1_u64 << 62).to_be_bytes());
    assert!(far.refusal().await.contains("its level 1 table would lie at byte 4611686018427387904"));
    let mut huge = Made::new(1 << 62);
    huge.put(36, &u32::MAX.to_be_bytes());
    assert!(huge.refusal().await.contains("it says that the disk has 4611686018427387904 bytes"));
    // As many entries as the largest disk needs, in a file that has none of them.
    let mut long = Made::new(SIZE_BYTES_MAX);
    long.put(20, &16_u32.to_be_bytes());
    long.put(36, &(4_u32 << 20).to_be_bytes());
    long.put(40, &(1_u64 << 16).to_be_bytes());
    assert!(long.refusal().await.contains("its level 1 table would lie at byte 65536, behind its end"));
    let short = Made(b"QFI\xfb\0\0\0\x03".to_vec()).refusal().await;
    assert_eq!(short, "cannot read the qcow2 image 8 bytes inline: it ends inside its header");
}

#[tokio::test]
async fn an_entry_that_leads_astray_fails_the_read_of_its_cluster_and_no_other() {
    let mut made = Made::new(SPAN);
    let good = made.cluster(&numbered(1, CLUSTER));
    let rubbish = made.packed(&[0xff; 512]);
    let short = made.packed(&deflated(&numbered(2, 100)));
    let bomb = made.packed(&deflated(&vec![0; 1 << 20]));
    let behind_packed = (1 << 62) | (1 << 50);
    // A table that is its own data, and its image's header: bytes like any others.
    made.table(0, &[good, 1 << 40, 0x1200, rubbish, short, behind_packed, bomb, CLUSTER as u64, 0]);
    let disk = made.open().await.unwrap();
    let refused = async |cluster: u64| bytes(&disk, cluster * 4096, 4096).await.unwrap_err().to_string();
    assert!(
        refused(1)
            .await
            .ends_with("a cluster would lie at byte 1099511627776, behind its end; it is cut off, or damaged")
    );
    assert!(refused(2).await.contains("a cluster begins inside another, at byte 4608"));
    assert!(refused(3).await.contains("is damaged: "));
    assert!(refused(4).await.ends_with("is damaged: it has 100 bytes instead of 4096"));
    assert!(refused(5).await.contains("the compressed cluster at byte 1125899906842624 is damaged"));
    assert!(bytes(&disk, 6 * 4096, 4096).await.unwrap() == [0; 4096], "no more of it is unpacked than a cluster holds");
    assert!(bytes(&disk, 0, 4096).await.unwrap() == numbered(1, CLUSTER));
    assert_eq!(bytes(&disk, 7 * 4096, 8).await.unwrap().len(), 8);
    assert!(disk.view().extents(0, SPAN).await.is_err(), "and nothing is said of what is not known");
}

#[tokio::test]
async fn images_changed_anywhere_end_in_bytes_or_an_error() {
    use rand::{RngExt, SeedableRng};
    for seed in 0..300 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let (mut made, _) = every_kind(deflated);
        for _ in 0..random.random_range(1..8) {
            // The header, the tables, or anywhere.
            let length = made.0.len();
            let at = match random.random_range(0..3) {
                0 => random.random_range(4..112),
                1 => CLUSTER + random.random_range(0..24),
                _ => random.random_range(0..length),
            };
            made.0[at] ^= 1 << random.random_range(0..8);
        }
        if random.random_range(0..4) == 0 {
            made.0.truncate(random.random_range(8..made.0.len()));
        }
        let Ok(disk) = made.open().await else { continue };
        for _ in 0..8 {
            let at = random.random_range(0..disk.size().max(1));
            let _ = bytes(&disk, at, 100_000).await;
            let _ = disk.view().extents(at, 100_000).await;
        }
    }
}
