//! Hubs with a console of ours at the other end: a driver that hands out one end of a pipe each time it is opened.

use std::path::Path;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::hub::TypeError;
use super::*;
use crate::blueprint::console::ConsoleStream;
use crate::lease::Pass;

/// Nothing here takes longer than a moment, but on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A console whose far ends a test puts in, and keeps.
struct Wire(tokio::sync::Mutex<mpsc::Receiver<DuplexStream>>);

impl Console for Wire {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let next = self.0.lock().await.try_recv();
            let stream = next.map_err(|_| io::Error::other("nothing is plugged in"))?;
            Ok(Box::new(stream) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }
}

/// Where a test plugs its ends in.
struct Plug(mpsc::Sender<DuplexStream>);

impl Plug {
    fn in_(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.0.try_send(theirs).expect("there is room");
        ours
    }
}

fn wire() -> (Arc<Wire>, Plug) {
    let (plug, ends) = mpsc::channel(8);
    (Arc::new(Wire(tokio::sync::Mutex::new(ends))), Plug(plug))
}

fn pass() -> Pass {
    Pass::of(&Arc::new(AtomicU64::new(0)), 1)
}

fn left() -> Owner {
    Owner { id: "left".into(), full_name: "lab-dut-1".into(), mac: "52:54:00:77:00:01".into() }
}

fn farm(folder: &Path, limits: Limits) -> Arc<Consoles> {
    Consoles::new(folder.to_owned(), limits)
}

fn said(piece: Piece) -> Bytes {
    match piece {
        Piece::Said { bytes, .. } => bytes,
        other => panic!("{other:?}"),
    }
}

async fn next(reader: &mut Reader) -> Piece {
    timeout(PATIENCE, reader.next()).await.expect("there is something to read").expect("the console is there")
}

/// Bytes up to this length, over gaps.
async fn read(reader: &mut Reader, length: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < length {
        if let Piece::Said { bytes, .. } = next(reader).await {
            read.extend_from_slice(&bytes);
        }
    }
    read
}

/// The console, once it is open.
async fn opened(hub: &Hub) {
    timeout(PATIENCE, async { while hub.settle().await.is_err() {} }).await.expect("it is plugged in");
}

#[tokio::test]
async fn what_is_said_outside_of_leases_is_kept_and_a_lease_begins_with_now() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let hub = farm(folder.path(), Limits::default()).open("left.console", driver, Some(left())).unwrap();
    dut.write_all(b"before the lease\n").await.unwrap();
    let mut session = hub.open(&pass()).await.unwrap();
    assert_eq!(session.place().offset(), 17, "what lay there is not the lease's");
    dut.write_all(b"within").await.unwrap();
    let mut heard = [0; 6];
    session.read_exact(&mut heard).await.unwrap();
    assert_eq!((&heard, session.place().offset()), (b"within", 23));
    drop(session);
    dut.write_all(b" and after").await.unwrap();
    let mut reader = hub.attach_reader(Since::Offset(0));
    assert_eq!(read(&mut reader, 33).await, b"before the lease\nwithin and after");
    assert_eq!(read(&mut hub.attach_reader(Since::Offset(7)), 26).await, b"the lease\nwithin and after");
    assert_eq!(read(&mut hub.attach_reader(Since::Last(5)), 5).await, b"after");
    assert_eq!(hub.attach_reader(Since::Now).now(), None);
}

#[tokio::test]
async fn typing_is_for_the_lease_and_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let hub = farm(folder.path(), Limits::default()).open("left.console", driver, Some(left())).unwrap();
    let pass = pass();
    let mut session = hub.open(&pass).await.unwrap();
    session.write_all(b"by the stream ").await.unwrap();
    let writer = hub.writer(pass.clone());
    writer.type_on(Bytes::from("by a writer")).await.unwrap();
    let mut typed = [0; 25];
    dut.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"by the stream by a writer");
    pass.revoke();
    let refused = session.write_all(b"late").await.unwrap_err();
    assert_eq!(refused.to_string(), "the lease that this handle came from has ended");
    assert!(matches!(writer.type_on(Bytes::from("late")).await, Err(TypeError::Revoked(_))));
    let refused = hub.open(&pass).await.err().unwrap();
    assert_eq!(refused.to_string(), "the lease that this handle came from has ended");
}

#[tokio::test]
async fn a_console_that_goes_away_is_opened_again_and_the_gap_is_marked() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let hub = farm(folder.path(), Limits::default()).open("left.console", driver, Some(left())).unwrap();
    let pass = pass();
    let mut session = hub.open(&pass).await.unwrap();
    dut.write_all(b"one").await.unwrap();
    let mut heard = Vec::new();
    drop(dut);
    session.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"one", "its end is the stream's end");
    let refused = hub.open(&pass).await.err().unwrap();
    assert_eq!(refused.to_string(), "nothing is plugged in");
    let mut dut = plug.in_();
    dut.write_all(b"two").await.unwrap();
    opened(&hub).await;
    let mut again = hub.open_from(&pass, Some(session.place().offset())).await.unwrap();
    let mut heard = [0; 3];
    again.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"two", "nothing between the opening and the lease's is missing");
    let mut reader = hub.attach_reader(Since::Offset(1));
    assert_eq!(said(next(&mut reader).await), "ne");
    let Piece::Away { offset: 3, reason, .. } = next(&mut reader).await else { panic!("no gap") };
    assert_eq!(reason, "the console closed");
    assert!(matches!(next(&mut reader).await, Piece::Back { offset: 3, .. }));
    assert_eq!(said(next(&mut reader).await), "two");
}

#[tokio::test]
async fn a_restart_is_a_gap_and_the_log_is_whole_up_to_the_last_write() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let before = farm(folder.path(), Limits::default());
    let hub = before.open("left.console", driver, Some(left())).unwrap();
    dut.write_all(b"said\0to the \xff\xfbfirst").await.unwrap();
    hub.settle().await.unwrap();
    let marks = folder.path().join("left.console/00000000000000000000.marks");
    let killed = std::fs::read(&marks).unwrap();
    drop((hub, before));
    // As a killed process leaves it: with half a line, and without a goodbye.
    std::fs::write(&marks, [killed.as_slice(), b"19 2026"].concat()).unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let hub = farm(folder.path(), Limits::default()).open("left.console", driver, Some(left())).unwrap();
    dut.write_all(b"second").await.unwrap();
    hub.settle().await.unwrap();
    let mut reader = hub.attach_reader(Since::Offset(0));
    assert_eq!(said(next(&mut reader).await), b"said\0to the \xff\xfbfirst".as_slice());
    let Piece::Away { offset: 19, reason, .. } = next(&mut reader).await else { panic!("no gap") };
    assert_eq!(reason, "the farm was not running");
    assert!(matches!(next(&mut reader).await, Piece::Back { offset: 19, .. }));
    assert_eq!(said(next(&mut reader).await), "second");
}

#[tokio::test]
async fn a_reader_that_is_late_reads_the_files_and_is_told_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let limits = Limits { bytes_max: 256 * 1024, ..Limits::default() };
    let hub = farm(folder.path(), limits).open("left.console", driver, Some(left())).unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    opened(&hub).await;
    let mut whole = hub.attach_reader(Since::Now);
    let mut never_reads = hub.attach_reader(Since::Now);
    let (written, heard) = tokio::join!(dut.write_all(&bytes[..100_000]), read(&mut whole, 100_000));
    written.unwrap();
    assert!(heard == bytes[..100_000], "one that keeps up, or nearly");
    // In the middle of a file that is about to be removed.
    let mut in_the_middle = hub.attach_reader(Since::Offset(1));
    assert_eq!(said(next(&mut in_the_middle).await)[0], 1);
    dut.write_all(&bytes[100_000..]).await.unwrap();
    hub.settle().await.unwrap();
    let extent = hub.extent();
    assert_eq!(extent.end, 1_000_000);
    assert!((700_000..=800_000).contains(&extent.first), "256 KiB are kept: {extent:?}");
    let Piece::Lost { offset: 0, bytes: lost, why } = next(&mut never_reads).await else { panic!("nothing is told") };
    assert_eq!((lost, why.as_str()), (extent.first, "they are no longer kept"));
    let rest = read(&mut never_reads, 1_000_000 - extent.first as usize).await;
    assert!(rest == bytes[extent.first as usize..], "what is kept is what was said");
    let before = in_the_middle.position();
    let mut after = before;
    while let Some(piece) = in_the_middle.now() {
        match piece {
            Piece::Said { offset, bytes: said, .. } => {
                assert_eq!(offset, after);
                assert!(said == bytes[offset as usize..offset as usize + said.len()]);
                after = offset + said.len() as u64;
            }
            Piece::Lost { offset, bytes, .. } => {
                assert_eq!(offset, after);
                after += bytes;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(after, 1_000_000, "its place is always known");
}

#[tokio::test]
async fn a_lease_that_does_not_read_holds_the_console_up_for_a_while_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let hub = farm(folder.path(), Limits::default()).open("left.console", driver, Some(left())).unwrap();
    let mut session = hub.open(&pass()).await.unwrap();
    let flood = tokio::spawn(async move {
        dut.write_all(&vec![b'x'; 4 << 20]).await.unwrap();
        dut
    });
    let mut watching = hub.attach_reader(Since::Now);
    read(&mut watching, 1 << 20).await;
    // 1 MiB behind, what is read at once, and what lies in the pipe: no more was taken from the DUT.
    assert!(hub.extent().end < 2 << 20, "{:?}", hub.extent());
    let mut heard = vec![0; 4 << 20];
    timeout(PATIENCE, session.read_exact(&mut heard)).await.unwrap().unwrap();
    assert!(heard.iter().all(|byte| *byte == b'x'));
    flood.await.unwrap();
}

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_a_mebibyte_and_readers_that_keep_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let consoles = farm(folder.path(), Limits::default());
    // A file where the log's folder should be: the disk takes nothing.
    let in_the_way = folder.path().join("left.console");
    let hub = consoles.open("left.console", driver, Some(left())).unwrap();
    std::fs::write(&in_the_way, "").unwrap();
    let mut session = hub.open(&pass()).await.unwrap();
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..40 {
        let mut heard = vec![0; piece.len()];
        let (written, read) = tokio::join!(dut.write_all(&piece), session.read_exact(&mut heard));
        written.and(read).unwrap();
        assert!(heard == piece, "the job goes on");
    }
    let refused = hub.extent().refused.unwrap();
    assert!(refused.contains("bytes are lost: "), "{refused}");
    std::fs::remove_file(&in_the_way).unwrap();
    hub.look_after(Timestamp::now());
    assert_eq!(hub.extent().refused, None, "it goes on when there is room");
    let mut late = hub.attach_reader(Since::Offset(0));
    let mut pieces = Vec::new();
    while let Some(piece) = late.now() {
        pieces.push(piece);
    }
    let lost = pieces.iter().find_map(|piece| match piece {
        Piece::Lost { offset, bytes, .. } => Some((*offset, *bytes)),
        _ => None,
    });
    let kept: usize =
        pieces.iter().map(|piece| if let Piece::Said { bytes, .. } = piece { bytes.len() } else { 0 }).sum();
    let (0, lost) = lost.expect("what is lost is told") else { panic!("{lost:?}") };
    assert_eq!(lost as usize + kept, 40 * piece.len());
    assert!(kept <= 1 << 20, "{kept} bytes waited");
}

#[tokio::test]
async fn a_ping_is_answered_on_a_duts_own_console_and_a_spoof_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let consoles = farm(folder.path(), Limits::default());
    let hub = consoles.open("left.console", driver, Some(left())).unwrap();
    let mut news = consoles.subscribe();
    dut.write_all(b"\nSALAD.ping\n").await.unwrap();
    let mut pong = [0; 11];
    timeout(PATIENCE, dut.read_exact(&mut pong)).await.unwrap().unwrap();
    assert_eq!(&pong, b"SALAD.pong\n");
    dut.write_all(b"SALAD.machine_id=52:54:00:77:00:01\nSALAD.machine_id=right\n").await.unwrap();
    hub.settle().await.unwrap();
    let heard: Vec<_> = std::iter::from_fn(|| news.try_recv().ok()).map(|heard| (heard.word, heard.refused)).collect();
    let spoof = Some("it says that it is `right` on the console of lab-dut-1".to_owned());
    assert_eq!(
        heard,
        [
            (Word::Ping, None),
            (Word::MachineId("52:54:00:77:00:01".into()), None),
            (Word::MachineId("right".into()), spoof)
        ]
    );
    assert_eq!(consoles.machine_id("left.console").as_deref(), Some("52:54:00:77:00:01"));
}

#[tokio::test]
async fn a_line_of_no_dut_is_answered_while_a_discovery_runs_and_found_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let consoles = farm(folder.path(), Limits::default());
    let hub = consoles.open("line-3", driver, None).unwrap();
    let mut news = consoles.subscribe();
    dut.write_all(b"SALAD.ping\n").await.unwrap();
    hub.settle().await.unwrap();
    let refused = news.try_recv().unwrap();
    assert_eq!(refused.refused.as_deref(), Some("the console belongs to no DUT, and no discovery runs"));
    let discovery = consoles.discover();
    dut.write_all(b"\nSALAD.ping\nSALAD.machine_id=new\n").await.unwrap();
    let mut pong = [0; 11];
    timeout(PATIENCE, dut.read_exact(&mut pong)).await.unwrap().unwrap();
    let heard = timeout(PATIENCE, async {
        loop {
            let heard = news.recv().await.unwrap();
            if heard.word != Word::Ping {
                return heard;
            }
        }
    });
    let heard = heard.await.unwrap();
    assert_eq!((heard.console.as_str(), heard.word, heard.refused), ("line-3", Word::MachineId("new".into()), None));
    drop(discovery);
    assert!(consoles.get("left").is_none());
    consoles.belongs_to("line-3", Some(left()));
    assert_eq!(consoles.get("left").unwrap().name(), "line-3");
    assert_eq!(consoles.get("lab-dut-1").unwrap().name(), "line-3");
}

#[tokio::test]
async fn a_reader_of_a_console_that_is_no_more_comes_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, plug) = wire();
    let mut dut = plug.in_();
    let consoles = farm(folder.path(), Limits::default());
    let hub = consoles.open("vm-2.console", driver, None).unwrap();
    dut.write_all(b"the end").await.unwrap();
    hub.settle().await.unwrap();
    let mut reader = hub.attach_reader(Since::Offset(0));
    consoles.close("vm-2.console", "its machine is no more");
    let mut words = Vec::new();
    while let Some(piece) = timeout(PATIENCE, reader.next()).await.unwrap() {
        words.push(match piece {
            Piece::Said { bytes, .. } => String::from_utf8_lossy(&bytes).into_owned(),
            Piece::Away { reason, .. } => reason,
            Piece::Back { .. } => "back".into(),
            Piece::Lost { why, .. } => why,
        });
    }
    assert_eq!(words, ["the end", "its machine is no more"]);
}
