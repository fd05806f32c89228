//! The shelf with disks of a few blocks: who meets whom, what is left, and when it is gone.

use bytes::Bytes;
use gateway::content::disk::{Durability, Piece};
use job_schema::job::NbdContent;

use super::super::disks::User;
use super::*;
use crate::job_log::JobLog;

struct Scene {
    folder: tempfile::TempDir,
    shelf: Shelf,
    log: Arc<JobLog>,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path().join("disks")).unwrap();
        let log = JobLog::create(&folder.path().join("job")).unwrap();
        Scene { folder, shelf, log }
    }

    /// As after a kill: nothing was closed.
    fn again(&mut self) {
        self.shelf = Shelf::open(self.folder.path().join("disks")).unwrap();
    }

    async fn take(&self, export: &NbdExport, job: &str, dut: &str, subject: &str) -> Result<(Disk, Held), String> {
        let NbdContent::Empty { size_bytes } = export.content else { unreachable!("only these are asked for") };
        let user = User { job, dut, subject, log: &self.log };
        let base = Base::Zeros { size_bytes };
        self.shelf.take(Ask { export, base, source: ["empty", "empty"], user: &user }).await
    }

    fn ids(&self) -> Vec<String> {
        self.shelf.list().into_iter().map(|disk| disk.id).collect()
    }

    fn notes(&self) -> Vec<String> {
        let text = |record: &crate::job_log::Record| match &record.event {
            JobEvent::Note { text, .. } => Some(text.clone()),
            _ => None,
        };
        self.log.records().iter().filter_map(|record| text(record)).collect()
    }
}

fn never() -> NbdExport {
    NbdExport {
        name: "cache".parse().unwrap(),
        readonly: false,
        content: NbdContent::Empty { size_bytes: 64 * 1024 },
        reset_on: ResetOn::Never,
        shared: false,
        expiration: None,
        max_connections: 2,
        lifetime: job_schema::job::Lifetime::default(),
        tls: false,
    }
}

fn shared() -> NbdExport {
    NbdExport { shared: true, ..never() }
}

async fn write(disk: &Disk, byte: u8) {
    disk.view().write(0, Bytes::from(vec![byte; 4096]), Durability::Disk).await.unwrap();
}

async fn first_byte(disk: &Disk) -> u8 {
    match disk.view().read(0, 1).await.unwrap().remove(0) {
        Piece::Data(bytes) => bytes[0],
        Piece::Zeros(_) => 0,
    }
}

/// Until whoever left has closed what it had.
async fn settled(scene: &Scene) {
    let opened: Vec<_> = scene.shelf.lock().values().map(|kept| Arc::clone(&kept.opened)).collect();
    for opened in opened {
        while opened.lock().await.is_some() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn the_next_job_of_the_same_dut_finds_what_the_last_one_wrote_and_no_other_does() {
    let mut scene = Scene::new();
    let (disk, held) = scene.take(&never(), "job 1", "one", "anna").await.unwrap();
    write(&disk, 7).await;
    drop((disk, held));
    let (again, _held) = scene.take(&never(), "job 2", "one", "anna").await.unwrap();
    assert_eq!(first_byte(&again).await, 7);
    let larger = NbdExport { name: "other".parse().unwrap(), ..never() };
    for (export, dut, subject) in
        [(never(), "two", "anna"), (never(), "one", "bert"), (larger, "one", "anna"), (shared(), "one", "anna")]
    {
        let (other, _held) = scene.take(&export, "job 3", dut, subject).await.unwrap();
        assert_eq!(first_byte(&other).await, 0, "{dut} {subject} {export:?}");
    }
    scene.again();
    let (after, _held) = scene.take(&never(), "job 4", "one", "anna").await.unwrap();
    assert_eq!(first_byte(&after).await, 7, "after a kill of the farm");
    let id = &scene.notes()[0]["The disk cache is new; it is kept as ".len()..];
    assert_eq!(scene.notes().last().unwrap(), &format!("The disk cache is {id}, with what was written to it before"));
}

#[tokio::test]
async fn a_shared_disk_is_one_for_all_its_users_each_with_its_own_mode_and_places() {
    let scene = Scene::new();
    let (writer, _writes) = scene.take(&shared(), "job 1", "one", "anna").await.unwrap();
    let reading = NbdExport { readonly: true, max_connections: 1, ..shared() };
    let (reader, _reads) = scene.take(&reading, "job 2", "two", "anna").await.unwrap();
    write(&writer, 9).await;
    assert_eq!(first_byte(&reader).await, 9);
    assert_eq!((writer.mode(), reader.mode()), (Mode::CopyOnWrite, Mode::ReadOnly));
    let _place = reader.attach().unwrap();
    assert!(reader.attach().is_err() && writer.attach().is_ok());
    let refused = scene.take(&shared(), "job 3", "three", "anna").await.err().unwrap();
    assert_eq!(refused, "job 1 writes to it, and only one job does so at a time; try again when that has ended");
    assert!(scene.take(&shared(), "job 1", "two", "anna").await.is_ok(), "its other DUTs may");
    assert_eq!(scene.shelf.list()[0].users, ["job 1", "job 2"]);
}

#[tokio::test]
async fn a_shared_disk_that_begins_anew_with_its_jobs_is_gone_with_the_last_of_them() {
    let scene = Scene::new();
    let export = NbdExport { reset_on: ResetOn::JobStart, ..shared() };
    let (disk, first) = scene.take(&export, "job 1", "one", "anna").await.unwrap();
    write(&disk, 5).await;
    let reading = NbdExport { readonly: true, ..export.clone() };
    let (other, second) = scene.take(&reading, "job 2", "two", "anna").await.unwrap();
    drop(first);
    assert_eq!(first_byte(&other).await, 5);
    drop(second);
    while !scene.ids().is_empty() {
        tokio::task::yield_now().await;
    }
    let (anew, _held) = scene.take(&export, "job 3", "one", "anna").await.unwrap();
    assert_eq!(first_byte(&anew).await, 0);
}

#[tokio::test]
async fn a_disk_is_gone_when_its_time_after_the_last_job_is_over_also_over_restarts() {
    let mut scene = Scene::new();
    let week = NbdExport { expiration: Some(Duration::from_secs(7 * 24 * 3600)), ..never() };
    let (disk, held) = scene.take(&week, "job 1", "one", "anna").await.unwrap();
    write(&disk, 7).await;
    let later = |days: i64| Timestamp::now().checked_add(jiff::SignedDuration::from_hours(24 * days)).unwrap();
    scene.shelf.sweep(later(30));
    assert_eq!(scene.ids().len(), 1, "it is used");
    assert_eq!(scene.shelf.list()[0].expires, None);
    // Killed while it was used: its time begins with the next start.
    std::mem::forget((disk, held));
    scene.again();
    let next = scene.shelf.sweep(later(6)).unwrap();
    assert!(next > Duration::from_secs(23 * 3600) && next < Duration::from_secs(25 * 3600), "{next:?}");
    assert_eq!(scene.ids().len(), 1);
    scene.shelf.sweep(later(8));
    assert!(scene.ids().is_empty());
    let (anew, _held) = scene.take(&week, "job 2", "one", "anna").await.unwrap();
    assert_eq!(first_byte(&anew).await, 0);
}

#[tokio::test]
async fn a_person_removes_what_nobody_uses() {
    let scene = Scene::new();
    let (disk, held) = scene.take(&never(), "job 1", "one", "anna").await.unwrap();
    write(&disk, 7).await;
    let id = scene.ids().remove(0);
    let used = scene.shelf.remove(&id).unwrap_err();
    assert_eq!(used.to_string(), format!("the disk {id} is used by job 1; it can be removed afterwards"));
    // As the leases' keeper does, on a thread that knows no runtime.
    std::thread::spawn(move || drop((disk, held))).join().unwrap();
    settled(&scene).await;
    let listed = scene.shelf.list().remove(0);
    assert_eq!((listed.size_bytes, listed.stored_bytes, listed.dut.as_deref()), (65536, 4096, Some("one")));
    scene.shelf.remove(&id).unwrap();
    let nothing = scene.shelf.remove(&id).unwrap_err();
    assert_eq!(nothing.to_string(), format!("no disk `{id}`; `wharf disks` lists them"));
    let (anew, _held) = scene.take(&never(), "job 2", "one", "anna").await.unwrap();
    assert_eq!(first_byte(&anew).await, 0);
}

#[tokio::test]
async fn what_a_crash_left_half_made_or_half_removed_is_gone_after_the_start() {
    let mut scene = Scene::new();
    let (disk, held) = scene.take(&never(), "job 1", "one", "anna").await.unwrap();
    drop((disk, held));
    settled(&scene).await;
    let folder = scene.folder.path().join("disks");
    let id = scene.ids().remove(0);
    fs::create_dir_all(folder.join("half-made")).unwrap();
    fs::create_dir_all(folder.join(format!("{id}.gone-1"))).unwrap();
    let unreadable = folder.join("unreadable");
    fs::create_dir_all(&unreadable).unwrap();
    fs::write(unreadable.join(RECORD), "{").unwrap();
    scene.again();
    assert!(scene.ids().iter().eq([&id]));
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let expected = [id, "unreadable".to_owned()];
    while names() != expected {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn many_who_ask_for_a_shared_disk_at_once_get_one() {
    let scene = Scene::new();
    let reading = NbdExport { readonly: true, ..shared() };
    let takes = (0..20).map(|job| {
        let (reading, scene) = (&reading, &scene);
        async move { scene.take(reading, &format!("job {job}"), "one", "anna").await.unwrap() }
    });
    let taken = futures_util::future::join_all(takes).await;
    assert_eq!((scene.ids().len(), taken.len()), (1, 20));
    let new = scene.notes().iter().filter(|note| note.contains("is new")).count();
    assert_eq!(new, 1, "{:?}", scene.notes());
}
