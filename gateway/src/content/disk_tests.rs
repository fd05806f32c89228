//! Disks against a plain array of bytes that is written to in the same way.

use bytes::Bytes;

use super::*;

/// Three blocks and a bit, so that the last block is short.
const SIZE: usize = 3 * BLOCK_BYTES as usize + 700;

struct Scene {
    folder: tempfile::TempDir,
    disk: Disk,
}

fn image() -> Vec<u8> {
    (0..SIZE).map(|index| (index % 251) as u8 + 1).collect()
}

fn config(folder: &tempfile::TempDir, base: Base) -> Config {
    Config { base, mode: Mode::CopyOnWrite, directory: folder.path().to_owned(), attachments_max: 2 }
}

async fn over_an_image() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, image()).unwrap();
    let disk = Disk::make(config(&folder, Base::Image(Content::File(path)))).await.unwrap();
    Scene { folder, disk }
}

async fn empty(size_bytes: u64) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::make(config(&folder, Base::Zeros { size_bytes })).await.unwrap();
    Scene { folder, disk }
}

async fn all(disk: &Disk) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in disk.view().read(0, u64::MAX).await.unwrap() {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeros(length) => bytes.resize(bytes.len() + length as usize, 0),
        }
    }
    bytes
}

#[tokio::test]
async fn a_disk_reads_as_an_array_that_was_changed_in_the_same_way() {
    use rand::{RngExt, SeedableRng};
    for seed in 0..20 {
        let scene = if seed % 2 == 0 { over_an_image().await } else { empty(SIZE as u64).await };
        let mut model = if seed % 2 == 0 { image() } else { vec![0; SIZE] };
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        for step in 0..60 {
            let start = random.random_range(0..SIZE);
            let end = random.random_range(start + 1..=SIZE);
            let (offset, length) = (start as u64, (end - start) as u64);
            let view = scene.disk.view();
            match random.random_range(0..3) {
                0 => {
                    model[start..end].fill(step as u8);
                    let data = Bytes::from(vec![step as u8; end - start]);
                    view.write(offset, data, Durability::Memory).await.unwrap();
                }
                1 => {
                    model[start..end].fill(0);
                    let hole = if step % 2 == 0 { Hole::Allowed } else { Hole::Refused };
                    view.zero(offset, length, hole, Speed::Any, Durability::Memory).await.unwrap();
                }
                _ => {
                    // What was trimmed is the base's or zeros from then on: the model learns which.
                    let before = all(&scene.disk).await;
                    view.trim(offset, length, Durability::Memory).await.unwrap();
                    let after = all(&scene.disk).await;
                    for at in 0..SIZE {
                        let is_allowed = after[at] == before[at] || ((start..end).contains(&at) && after[at] == 0);
                        assert!(is_allowed, "seed {seed} step {step}: byte {at} after a trim of {start}..{end}");
                    }
                    model = after;
                }
            }
            assert!(all(&scene.disk).await == model, "seed {seed} step {step}: {start}..{end}");
        }
    }
}

#[tokio::test]
async fn writers_of_two_halves_of_one_block_lose_nothing() {
    for _ in 0..50 {
        let scene = over_an_image().await;
        let (first, second, whole) = (scene.disk.view(), scene.disk.view(), scene.disk.view());
        let half = BLOCK_BYTES / 2;
        let write = |view: View, offset: u64, byte: u8, length: u64| {
            tokio::spawn(async move {
                let data = Bytes::from(vec![byte; length as usize]);
                view.write(offset, data, Durability::Memory).await.unwrap();
            })
        };
        let tasks = [
            write(first, 1, 0xaa, half - 1),
            write(second, half, 0xbb, half),
            write(whole, BLOCK_BYTES, 0xcc, BLOCK_BYTES + 1),
        ];
        for task in tasks {
            task.await.unwrap();
        }
        let mut expected = image();
        expected[1..2048].fill(0xaa);
        expected[2048..4096].fill(0xbb);
        expected[4096..8193].fill(0xcc);
        assert!(all(&scene.disk).await == expected);
    }
}

#[tokio::test]
async fn a_disk_of_twenty_gigabytes_takes_no_space_and_says_where_its_bytes_are() {
    let scene = empty(20 << 30).await;
    assert_eq!(scene.disk.layer_bytes(), 0);
    let view = scene.disk.view();
    view.write(10 << 30, Bytes::from(vec![7; 8192]), Durability::Disk).await.unwrap();
    assert!(scene.disk.layer_bytes() <= 64 * 1024, "{} bytes for two blocks", scene.disk.layer_bytes());
    let extents = view.extents(0, 20 << 30).await.unwrap();
    let expected = [(10 << 30, Fill::Zeros), (8192, Fill::Data), ((10 << 30) - 8192, Fill::Zeros)];
    assert_eq!(extents, expected.map(|(length, fill)| Extent { length, fill }));
    view.trim(10 << 30, 8192, Durability::Memory).await.unwrap();
    assert_eq!(view.extents(0, 20 << 30).await.unwrap(), [Extent { length: 20 << 30, fill: Fill::Zeros }]);
    assert!(std::fs::read_dir(scene.folder.path()).unwrap().next().is_none(), "the layer's file has no name");
}

#[tokio::test]
async fn a_reset_brings_the_base_back_and_tells_those_who_are_attached() {
    let scene = over_an_image().await;
    let attachment = scene.disk.attach().unwrap();
    attachment.view().write(5, Bytes::from_static(b"written"), Durability::Memory).await.unwrap();
    assert!(all(&scene.disk).await != image());
    assert!(!attachment.view().is_stale());
    scene.disk.reset().await.unwrap();
    assert!(attachment.view().is_stale());
    attachment.view().write(5, Bytes::from_static(b"too late"), Durability::Disk).await.unwrap();
    assert!(all(&scene.disk).await == image(), "a late write of an old attachment reaches the old layer only");
    assert!(!scene.disk.attach().unwrap().view().is_stale());
}

#[tokio::test]
async fn a_third_attachment_waits_until_one_of_two_is_gone() {
    let scene = empty(4096).await;
    let first = scene.disk.attach().unwrap();
    let _second = scene.disk.attach().unwrap();
    assert_eq!(scene.disk.attach().unwrap_err(), Busy { attachments_max: 2 });
    drop(first);
    assert!(scene.disk.attach().is_ok());
}

#[tokio::test]
async fn a_read_only_disk_refuses_every_change_and_makes_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let base = Base::Image(Content::Inline(Bytes::from(image())));
    let disk = Disk::make(Config { mode: Mode::ReadOnly, ..config(&folder, base) }).await.unwrap();
    let view = disk.view();
    let refused = view.write(0, Bytes::from_static(b"x"), Durability::Memory).await.unwrap_err();
    assert_eq!(refused.to_string(), "the disk is read-only");
    assert!(matches!(view.trim(0, 4096, Durability::Memory).await, Err(DiskError::ReadOnly)));
    let zeroed = view.zero(0, 4096, Hole::Allowed, Speed::Any, Durability::Memory).await;
    assert!(matches!(zeroed, Err(DiskError::ReadOnly)));
    view.flush().await.unwrap();
    assert!(all(&disk).await == image());
    assert_eq!(disk.mode(), Mode::ReadOnly);
}

#[tokio::test]
async fn holes_of_the_image_are_known_without_reading_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 65536).unwrap();
    let disk = Disk::make(config(&folder, Base::Image(Content::File(path)))).await.unwrap();
    let extents = disk.view().extents(0, 1 << 20).await.unwrap();
    let expected = [(65536, Fill::Zeros), (4096, Fill::Data), ((1 << 20) - 65536 - 4096, Fill::Zeros)];
    assert_eq!(extents, expected.map(|(length, fill)| Extent { length, fill }));
}

async fn kept(folder: &std::path::Path, base: Base) -> (Disk, Beginning) {
    let config = Config { base, mode: Mode::CopyOnWrite, directory: folder.to_owned(), attachments_max: 2 };
    Disk::keep(config).await.unwrap()
}

async fn write(disk: &Disk, offset: u64, byte: u8, length: usize, durability: Durability) {
    disk.view().write(offset, Bytes::from(vec![byte; length]), durability).await.unwrap();
}

#[tokio::test]
async fn a_kept_disk_has_what_was_flushed_when_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let image = Content::Inline(Bytes::from(image()));
    for base in [Base::Image(image), Base::Zeros { size_bytes: SIZE as u64 }] {
        let directory = folder.path().join(format!("{:?}", std::mem::discriminant(&base)));
        let (disk, beginning) = kept(&directory, base.clone()).await;
        assert_eq!(beginning, Beginning::New);
        write(&disk, 100, 0xaa, 50, Durability::Memory).await;
        write(&disk, BLOCK_BYTES, 0xbb, BLOCK_BYTES as usize, Durability::Disk).await;
        disk.view().zero(2 * BLOCK_BYTES, 10, Hole::Allowed, Speed::Any, Durability::Memory).await.unwrap();
        disk.view().flush().await.unwrap();
        let before = all(&disk).await;
        // Nobody says goodbye to it: what is in its files is all there is.
        std::mem::forget(disk);
        let (again, beginning) = kept(&directory, base.clone()).await;
        assert_eq!(beginning, Beginning::Continued);
        assert!(all(&again).await == before);
        assert_eq!((before[100], before[4096], before[8192]), (0xaa, 0xbb, 0));
    }
}

#[tokio::test]
async fn what_was_not_flushed_may_be_lost_and_never_shows_up_later() {
    let folder = tempfile::tempdir().unwrap();
    let base = Base::Image(Content::Inline(Bytes::from(image())));
    let (disk, _) = kept(folder.path(), base.clone()).await;
    write(&disk, 0, 0xaa, BLOCK_BYTES as usize, Durability::Memory).await;
    std::mem::forget(disk);
    let (again, _) = kept(folder.path(), base).await;
    assert!(all(&again).await == image(), "its bit never came to the map");
    // Its bytes are in the file all the same. A write in part must not bring them back.
    write(&again, 0, 0xcc, 10, Durability::Memory).await;
    let mut expected = image();
    expected[..10].fill(0xcc);
    assert!(all(&again).await == expected);
}

#[tokio::test]
async fn a_kept_disk_begins_anew_when_its_image_is_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, image()).unwrap();
    let directory = folder.path().join("kept");
    let (disk, _) = kept(&directory, Base::Image(Content::File(path.clone()))).await;
    write(&disk, 0, 0xaa, 8192, Durability::Disk).await;
    std::fs::write(&path, vec![9; SIZE]).unwrap();
    let (again, beginning) = kept(&directory, Base::Image(Content::File(path))).await;
    assert_eq!(beginning, Beginning::Anew);
    assert!(all(&again).await == vec![9; SIZE]);
}

#[tokio::test]
async fn flushes_of_many_at_once_keep_what_each_of_them_had_written() {
    let folder = tempfile::tempdir().unwrap();
    let size = 64 * BLOCK_BYTES;
    let image = Content::Inline(Bytes::from(vec![1; size as usize]));
    let (disk, _) = kept(folder.path(), Base::Image(image.clone())).await;
    let writers = (0..64).map(|block| {
        let disk = disk.clone();
        tokio::spawn(async move { write(&disk, block * BLOCK_BYTES, 2, BLOCK_BYTES as usize, Durability::Disk).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    std::mem::forget(disk);
    let (again, _) = kept(folder.path(), Base::Image(image)).await;
    assert!(all(&again).await == vec![2; size as usize]);
}

#[tokio::test]
async fn two_disks_with_the_same_bytes_have_their_own_modes_and_places() {
    let scene = over_an_image().await;
    let reader = scene.disk.another(Mode::ReadOnly, 1);
    assert_eq!((reader.mode(), scene.disk.mode()), (Mode::ReadOnly, Mode::CopyOnWrite));
    write(&scene.disk, 5, 0xaa, 3, Durability::Memory).await;
    assert!(all(&reader).await == all(&scene.disk).await);
    let refused = reader.view().write(0, Bytes::from_static(b"x"), Durability::Memory).await;
    assert!(matches!(refused, Err(DiskError::ReadOnly)));
    let _only = reader.attach().unwrap();
    assert_eq!(reader.attach().unwrap_err(), Busy { attachments_max: 1 });
    assert!(scene.disk.attach().is_ok() && !reader.is(&scene.disk));
}

#[tokio::test]
async fn a_disk_larger_than_any_file_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let error = Disk::make(config(&folder, Base::Zeros { size_bytes: 1 << 62 })).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "a disk of 4611686018427387904 bytes is too large; 17592186044416 bytes are the most"
    );
}
