//! The crate `async-tftp` as a peer: the same requests to both engines bring the same bytes, and offers that mean the same.
//!
//! ```text
//!  request ─┬─► our engine    ─► offer, bytes, error code, access ─┐
//!           └─► the crate's   ─► offer, bytes, error code, access ─┴─► equal, but for what DIFFERENCES has
//! ```

use super::*;

/// Names and values of a request's options.
type Options = &'static [(&'static str, &'static str)];

/// Where the crate departs from us in what a polite client sees: a request, our offer, its offer, and why. The order of an offer's
/// options is none: ours repeats the client's, the crate has its own.
const DIFFERENCES: &[(Options, Option<&str>, Option<&str>, &str)] = &[
    (
        &[("timeout", "3")],
        Some("timeout=3"),
        None,
        "taken, it would shut the same port out for up to 25 min: 20 tries of 255 s",
    ),
    (&[("tsize", "7")], Some("tsize=1000"), None, "the crate knows a question for the size only by its 0"),
    (
        &[("blksize", "512"), ("blksize", "8")],
        Some("blksize=512"),
        Some("blksize=8"),
        "the first of a name holds, the last there",
    ),
    (
        &[("blksize", "65536")],
        Some("blksize=1468"),
        None,
        "beyond RFC 2348 and still a wish for much; no number at all there",
    ),
];

/// What both engines answer alike, and how.
const OFFERS: &[(Options, Option<&str>)] = &[
    (&[], None),
    (&[("blksize", "1428")], Some("blksize=1428")),
    (&[("blksize", "8")], Some("blksize=8")),
    (&[("blksize", "65464")], Some("blksize=1468")),
    (&[("BlkSize", "1024"), ("windowsize", "4")], Some("blksize=1024 windowsize=4")),
    (&[("tsize", "0")], Some("tsize=1000")),
    (&[("tsize", "0"), ("blksize", "512"), ("windowsize", "1")], Some("blksize=512 tsize=1000 windowsize=1")),
    (&[("windowsize", "65535")], Some("windowsize=64")),
    // No number, no number in the range, no known name: as if they were not there.
    (&[("blksize", "7")], None),
    (&[("blksize", "many"), ("tsize", "0")], Some("tsize=1000")),
    (&[("windowsize", "0"), ("timeout", "0"), ("timeout", "256")], None),
    (&[("rollover", "0"), ("multicast", ""), ("blksize", "600")], Some("blksize=600")),
];

async fn both() -> [Scene; 2] {
    let with = |engine| scene_with(Config { engine, ..Config::default() });
    [with(Engine::Own).await, with(Engine::AsyncTftp).await]
}

/// In lower case and in the alphabet's order.
fn sorted(offer: Option<String>) -> Option<String> {
    let mut words: Vec<_> = offer?.to_lowercase().split(' ').map(str::to_owned).collect();
    words.sort();
    Some(words.join(" "))
}

/// The offer and the bytes.
async fn exchange(scene: &Scene, name: &str, options: &[(&str, &str)]) -> (Option<String>, Vec<u8>) {
    let mut client = scene.client().await;
    let bytes = client.fetch(name, options).await.unwrap();
    (sorted(client.offer), bytes)
}

#[tokio::test]
async fn both_engines_make_the_same_offer_but_for_the_listed_differences() {
    let scenes = both().await;
    for scene in &scenes {
        scene.put("/a", Content::Inline(bytes(1000)));
    }
    let [own, foreign] = &scenes;
    let alike = OFFERS.iter().map(|(options, offer)| (*options, *offer, *offer));
    let differing = DIFFERENCES.iter().map(|(options, ours, theirs, _why)| (*options, *ours, *theirs));
    for (options, ours, theirs) in alike.chain(differing) {
        for (scene, expected) in [(own, ours), (foreign, theirs)] {
            let (offer, came) = exchange(scene, "/a", options).await;
            assert_eq!(offer.as_deref(), expected, "{options:?}");
            assert!(came == bytes(1000), "{options:?}: {} bytes came, or others", came.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_engines_deliver_the_same_bytes_of_every_size_and_record_the_same_access() {
    const ROLL_OVER: usize = 65535 * 512;
    let windows: Options = &[("windowsize", "7"), ("tsize", "0")];
    let lock_step: Options = &[];
    let small = [0, 1, 511, 512, 513, 1024].map(|size| [(size, lock_step), (size, windows)]);
    // A window of 7 lies over the number 65535; the last block's is 0, and it is empty or not.
    let large = [(ROLL_OVER, windows), (ROLL_OVER + 1, windows)];
    let all = small.into_iter().flatten().chain(large);
    let [own, foreign] = both().await;
    let whole = bytes(ROLL_OVER + 1);
    let mut count = 0;
    for (size, options) in all {
        let expected = whole.slice(..size);
        let name = format!("/{size}");
        let offer = match (options.is_empty(), size) {
            (true, _) => None,
            (false, 0) => Some("windowsize=7".to_owned()),
            (false, _) => Some(format!("tsize={size} windowsize=7")),
        };
        for scene in [&own, &foreign] {
            scene.put(&name, Content::Inline(expected.clone()));
        }
        let (ours, theirs) = tokio::join!(exchange(&own, &name, options), exchange(&foreign, &name, options));
        for (made, came) in [ours, theirs] {
            assert_eq!(made, offer, "{size}");
            assert!(came == expected, "{size}, {options:?}: {} bytes came, or others", came.len());
        }
        count += 1;
        for scene in [&own, &foreign] {
            let seen = scene.seen(2 * count as usize).await;
            let of_this = &seen[seen.len() - 2..];
            assert_eq!(of_this, [opened(count, &name), ended(count, &name, size as u64, Outcome::Complete)]);
        }
    }
}

#[tokio::test]
async fn both_engines_refuse_with_the_same_code() {
    for scene in both().await {
        let past = Exposure { duration: Some(Duration::ZERO), ..Exposure::default() };
        scene.put_for("/late", inline("late"), past);
        scene.put_for("/once", inline("once"), Exposure { access_count: Some(1), ..Exposure::default() });
        scene.put("/broken", Content::File("/no/such/file".into()));
        let mut client = scene.client().await;
        assert_eq!(client.fetch("once", &[]).await.unwrap(), b"once");
        scene.seen(2).await;
        for (name, code) in [("once", 2), ("late", 2), ("missing", 1), ("/_/n/0/once", 1), ("broken", 0)] {
            let (told, _) = scene.client().await.fetch(name, &[]).await.unwrap_err();
            assert_eq!(told, code, "{name}");
        }
        let client = &mut scene.client().await;
        client.send_to_server(b"\0\x02mine\0octet\0").await;
        assert!(matches!(client.hear().await, Heard::Error(2, _)));
    }
}

#[tokio::test]
async fn both_engines_know_a_file_by_every_spelling_and_a_namespace_by_its_key() {
    for scene in both().await {
        scene.put("/boot/a", inline("a"));
        let keyed = format!("/_/n/{}/boot/a", scene.publication.key().as_str());
        for name in ["boot/a", "/boot/a", "//boot\\a", &keyed] {
            assert_eq!(scene.client().await.fetch(name, &[]).await.unwrap(), b"a", "{name}");
        }
    }
}

#[tokio::test]
async fn only_ours_takes_a_request_with_a_byte_of_padding_and_translates_netascii() {
    let [own, foreign] = both().await;
    for scene in [&own, &foreign] {
        scene.put("/padded", inline("padded"));
        scene.put("/plain", inline("plain"));
    }
    let mut client = own.client().await;
    client.send_to_server(b"\0\x01padded\0octet\0\0").await;
    assert_eq!(client.fetch_on(&mut Vec::new()).await.unwrap(), b"padded");
    let mut client = foreign.client().await;
    client.send_to_server(b"\0\x01padded\0octet\0\0").await;
    // Were the first request taken, this one would be a repetition from the same port, and the first be answered.
    assert_eq!(client.fetch("plain", &[]).await.unwrap(), b"plain");
    for (scene, expected) in both().await.into_iter().zip(["a\r\nb", "a\nb"]) {
        scene.put("/text", inline("a\nb"));
        let mut client = scene.client().await;
        client.send_to_server(b"\0\x01text\0netascii\0").await;
        assert_eq!(client.fetch_on(&mut Vec::new()).await.unwrap(), expected.as_bytes());
    }
}

#[tokio::test]
async fn the_crates_engine_counts_a_probe_for_the_size_as_an_access_that_was_never_acknowledged() {
    let [_, foreign] = both().await;
    foreign.put("/a", Content::Inline(bytes(2000)));
    let mut client = foreign.client().await;
    client.ask("a", &[("tsize", "0")]).await;
    assert_eq!(client.hear().await, Heard::OptionAck("tsize=2000".into()));
    assert_eq!(foreign.seen(1).await, [opened(1, "/a")]);
    let sentence = "no acknowledgement for 6s".to_owned();
    assert_eq!(foreign.seen(2).await[1], ended(1, "/a", 512, Outcome::Failed(sentence)));
}

#[tokio::test]
async fn the_crates_engine_cuts_off_a_transfer_when_its_job_or_the_server_ends() {
    let [_, foreign] = both().await;
    foreign.put("/a", Content::Inline(bytes(2000)));
    let mut client = foreign.client().await;
    client.ask("a", &[]).await;
    assert!(matches!(client.hear().await, Heard::Data(1, _)));
    let Scene { server, publication, seen, namespaces: _ } = foreign;
    drop(publication);
    client.ack(1).await;
    assert_eq!(client.hear().await, Heard::Error(2, "Permission denied".into()));
    timeout(PATIENCE, server.drain()).await.expect("it waits for nobody");
    let sentence = "the job that published this has ended".to_owned();
    assert_eq!(seen.lock().unwrap()[1], ended(1, "/a", 512, Outcome::Failed(sentence)));
}
