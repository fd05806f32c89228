//! Who may read what, tried with values.

use super::*;

const DUT: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 77, 0, 11));
const OTHER: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 77, 0, 12));

struct Scene {
    namespaces: Namespaces<&'static str>,
    publication: Publication<&'static str>,
    seen: Arc<Mutex<Vec<AccessEvent>>>,
    start: Instant,
}

fn scene() -> Scene {
    let namespaces = Namespaces::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let publication = namespaces.publish(DUT, Arc::new(move |event| log.lock().unwrap().push(event))).unwrap();
    Scene { namespaces, publication, seen, start: Instant::now() }
}

impl Scene {
    fn put(&self, name: &str, content: &'static str, exposure: Exposure) {
        self.publication.put(Protocol::Http, Name::Exact(name.into()), content, exposure, Origin::Job, self.start);
    }

    fn open_at(&self, seconds: u64, name: &str) -> Result<&'static str, Refusal> {
        let now = self.start + Duration::from_secs(seconds);
        self.namespaces.open(Caller::Address(DUT), Protocol::Http, name, now).map(|opened| opened.content)
    }
}

#[test]
fn a_dut_reads_its_own_namespace_and_no_other() {
    let scene = scene();
    scene.put("/a", "mine", Exposure::default());
    assert_eq!(scene.open_at(0, "/a"), Ok("mine"));
    let stranger = scene.namespaces.open(Caller::Address(OTHER), Protocol::Http, "/a", scene.start);
    assert_eq!(stranger.unwrap_err(), Refusal::UnknownCaller);
    let tftp = scene.namespaces.open(Caller::Address(DUT), Protocol::Tftp, "/a", scene.start);
    assert_eq!(tftp.unwrap_err(), Refusal::NoSuchName);
}

#[test]
fn the_key_opens_the_namespace_from_any_address_and_a_wrong_key_does_not() {
    let scene = scene();
    scene.put("/a", "mine", Exposure::default());
    let key = scene.publication.key().as_str().to_owned();
    let opened = scene.namespaces.open(Caller::Key(&key, OTHER), Protocol::Http, "/a", scene.start);
    assert_eq!(opened.unwrap().content, "mine");
    let guessed = scene.namespaces.open(Caller::Key("0", OTHER), Protocol::Http, "/a", scene.start);
    assert_eq!(guessed.unwrap_err(), Refusal::UnknownCaller);
}

#[test]
fn access_count_is_counted_per_boot() {
    let scene = scene();
    scene.put("/a", "once", Exposure { access_count: Some(1), ..Exposure::default() });
    assert_eq!(scene.open_at(0, "/a"), Ok("once"));
    assert_eq!(scene.open_at(0, "/a"), Err(Refusal::Exhausted { access_count: 1 }));
    scene.publication.begin_boot();
    assert_eq!(scene.open_at(0, "/a"), Ok("once"));
}

#[test]
fn a_look_and_a_resumed_range_are_not_accesses() {
    let scene = scene();
    scene.put("/a", "once", Exposure { access_count: Some(1), ..Exposure::default() });
    let caller = Caller::Address(DUT);
    assert_eq!(scene.namespaces.look(caller, Protocol::Http, "/a", scene.start), Ok("once"));
    assert!(
        scene.namespaces.resume(caller, Protocol::Http, "/a", scene.start).is_ok(),
        "a range before any read opens"
    );
    assert!(scene.namespaces.resume(caller, Protocol::Http, "/a", scene.start).is_ok(), "a second range goes on");
    assert_eq!(scene.open_at(0, "/a"), Err(Refusal::Exhausted { access_count: 1 }));
}

#[test]
fn a_range_goes_on_with_a_read_and_never_becomes_another() {
    let scene = scene();
    let caller = Caller::Address(DUT);
    let range = || scene.namespaces.resume(caller, Protocol::Http, "/a", scene.start).map(|opened| opened.access);
    scene.put("/a", "twelve bytes", Exposure { access_count: Some(1), ..Exposure::default() });
    let mut broken = scene.namespaces.open(caller, Protocol::Http, "/a", scene.start).unwrap().access;
    broken.is_of(12);
    broken.took(5, scene.start);
    broken.end(Outcome::Aborted("unplugged".into()));
    let mut rest = range().expect("7 bytes were never sent");
    rest.took(7, scene.start);
    rest.end(Outcome::Complete);
    assert_eq!(range().unwrap_err(), Refusal::Exhausted { access_count: 1 });
    scene.publication.begin_boot();
    assert!(range().is_ok(), "a new boot has nothing sent");
    scene.put("/b", "b", Exposure { access_count: Some(2), ..Exposure::default() });
    let read_to_its_end = || {
        let mut access = scene.namespaces.resume(caller, Protocol::Http, "/b", scene.start)?.access;
        access.is_of(1);
        access.took(1, scene.start);
        Ok::<(), Refusal>(())
    };
    assert_eq!((read_to_its_end(), read_to_its_end()), (Ok(()), Ok(())), "the second range is the second access");
    assert_eq!(read_to_its_end(), Err(Refusal::Exhausted { access_count: 2 }));
}

#[test]
fn an_access_to_a_name_with_a_limit_is_written_down_before_it_is_granted() {
    let scene = scene();
    let written = Arc::new(Mutex::new(Vec::new()));
    let (log, seen) = (Arc::clone(&written), Arc::clone(&scene.seen));
    scene.publication.record_with(Arc::new(move |counted: &Counted| {
        assert!(seen.lock().unwrap().is_empty(), "nobody has heard of the access yet");
        log.lock().unwrap().push(counted.entry.clone());
        if counted.entry == "/full" { Err("the disk is full".to_owned()) } else { Ok(()) }
    }));
    let (once, first_read) = (Some(1), Some(Duration::from_secs(60)));
    scene.put("/free", "f", Exposure { duration: first_read, ..Exposure::default() });
    scene.put("/once", "o", Exposure { access_count: once, ..Exposure::default() });
    scene.put("/first", "1", Exposure { first_read, ..Exposure::default() });
    scene.put("/full", "x", Exposure { access_count: once, ..Exposure::default() });
    let read = |name| {
        let read = scene.open_at(0, name);
        scene.seen.lock().unwrap().clear();
        read
    };
    for name in ["/free", "/once", "/once", "/first", "/first"] {
        let _ = read(name);
    }
    assert_eq!(
        *written.lock().unwrap(),
        ["/once", "/first"],
        "each that counts, and the first of those that age from it"
    );
    let refusal = Refusal::NotRecorded { reason: "the disk is full".to_owned() };
    assert_eq!(scene.open_at(0, "/full"), Err(refusal.clone()));
    let (protocol, name) = (Protocol::Http, "/full".to_owned());
    assert_eq!(*scene.seen.lock().unwrap(), [AccessEvent::Refused { protocol, name, peer: DUT, refusal }]);
}

#[test]
fn what_was_read_before_a_restart_is_read() {
    let scene = scene();
    let first_read = Some(Duration::from_secs(5));
    let put = || scene.put("/a", "a", Exposure { access_count: Some(2), first_read, ..Exposure::default() });
    let counted = Counted { protocol: Protocol::Http, entry: "/a".into() };
    scene.publication.remember(counted, 1, scene.start);
    put();
    assert_eq!(scene.publication.readings(), [(Protocol::Http, "/a".to_owned(), Reading::Read)]);
    let range = scene.namespaces.resume(Caller::Address(DUT), Protocol::Http, "/a", scene.start);
    assert!(range.is_ok(), "the second and last access");
    assert_eq!(scene.open_at(0, "/a"), Err(Refusal::Exhausted { access_count: 2 }));
    scene.publication.clear();
    put();
    assert_eq!(scene.open_at(6, "/a"), Err(Refusal::FirstReadOver { first_read: Duration::from_secs(5) }));
    scene.publication.begin_boot();
    assert_eq!(scene.open_at(6, "/a"), Ok("a"), "a new boot begins anew");
}

#[test]
fn a_running_access_can_be_joined_until_its_name_expires() {
    let scene = scene();
    let (access_count, duration) = (Some(1), Some(Duration::from_secs(5)));
    scene.put("/disk", "d", Exposure { access_count, duration, ..Exposure::default() });
    assert_eq!(scene.open_at(0, "/disk"), Ok("d"));
    let join_at = |seconds| {
        let now = scene.start + Duration::from_secs(seconds);
        scene.namespaces.join(Caller::Address(DUT), Protocol::Http, "/disk", now)
    };
    assert_eq!(join_at(5), Ok("d"), "joining is not another access");
    assert_eq!(join_at(6), Err(Refusal::Expired { duration: Duration::from_secs(5) }));
    assert_eq!(scene.seen.lock().unwrap().len(), 3, "opened, ended, and one refusal");
}

#[test]
fn a_caller_sees_its_own_names_only() {
    let scene = scene();
    scene.put("/a", "a", Exposure::default());
    let names =
        |address, protocol| scene.namespaces.names(Caller::Address(address), protocol, Door::main(Transport::Clear));
    assert_eq!(names(DUT, Protocol::Http), ["/a"]);
    assert!(names(DUT, Protocol::Nbd).is_empty() && names(OTHER, Protocol::Http).is_empty());
    let key = scene.publication.key().as_str().to_owned();
    assert_eq!(scene.namespaces.address_of(Caller::Key(&key, OTHER)), Some(DUT));
    assert_eq!(scene.namespaces.address_of(Caller::Address(OTHER)), None);
}

#[test]
fn first_read_and_duration_end_by_the_clock_they_name() {
    let scene = scene();
    let five = Some(Duration::from_secs(5));
    scene.put("/first", "f", Exposure { first_read: five, ..Exposure::default() });
    scene.put("/until", "u", Exposure { duration: five, ..Exposure::default() });
    assert_eq!(scene.open_at(5, "/until"), Ok("u"));
    assert_eq!(scene.open_at(6, "/until"), Err(Refusal::Expired { duration: Duration::from_secs(5) }));
    assert_eq!(scene.open_at(100, "/first"), Ok("f"));
    assert_eq!(scene.open_at(105, "/first"), Ok("f"));
    assert_eq!(scene.open_at(106, "/first"), Err(Refusal::FirstReadOver { first_read: Duration::from_secs(5) }));
}

#[test]
fn a_jobs_own_name_wins_over_a_generated_one_and_exact_over_pattern() {
    let scene = scene();
    let put = |name, content, origin| {
        scene.publication.put(Protocol::Http, name, content, Exposure::default(), origin, scene.start)
    };
    put(Name::Exact("/config.txt".into()), "generated", Origin::Generated);
    assert_eq!(scene.open_at(0, "/config.txt"), Ok("generated"));
    put(Name::Matching("/.*".into(), Arc::new(|_| true)), "pattern", Origin::Job);
    assert_eq!(scene.open_at(0, "/config.txt"), Ok("pattern"));
    put(Name::Matching("/config.txt".into(), Arc::new(|_| false)), "job", Origin::Job);
    assert_eq!(scene.open_at(0, "/config.txt"), Ok("job"), "a pattern's own text is an exact name");
}

#[test]
fn dropping_the_publication_closes_both_doors() {
    let scene = scene();
    scene.put("/a", "mine", Exposure::default());
    let key = scene.publication.key().as_str().to_owned();
    assert!(scene.namespaces.publish(DUT, Arc::new(|_| ())).is_err(), "one live namespace per address");
    let Scene { namespaces, publication, start, .. } = scene;
    let running = namespaces.open(Caller::Address(DUT), Protocol::Http, "/a", start).unwrap().access.liveness();
    assert!(running.is_live());
    drop(publication);
    assert!(!running.is_live(), "a transfer that runs hears of it");
    assert_eq!(namespaces.open(Caller::Address(DUT), Protocol::Http, "/a", start).unwrap_err(), Refusal::UnknownCaller);
    assert_eq!(
        namespaces.open(Caller::Key(&key, DUT), Protocol::Http, "/a", start).unwrap_err(),
        Refusal::UnknownCaller
    );
    assert!(namespaces.publish(DUT, Arc::new(|_| ())).is_ok());
}

#[test]
fn only_exact_names_are_published_exactly() {
    let scene = scene();
    scene.put("/a", "a", Exposure::default());
    let any = Name::Matching("/.*".into(), Arc::new(|_| true));
    scene.publication.put(Protocol::Http, any, "any", Exposure::default(), Origin::Job, scene.start);
    let publishes = |name| scene.namespaces.publishes(Caller::Address(DUT), Protocol::Http, name);
    assert_eq!((publishes("/a"), publishes("/b")), (true, false));
    assert!(scene.seen.lock().unwrap().is_empty(), "asking is not an access");
}

#[test]
fn bytes_that_trickle_are_told_once_a_second() {
    let scene = scene();
    scene.put("/a", "mine", Exposure::default());
    let mut access = scene.namespaces.open(Caller::Address(DUT), Protocol::Http, "/a", scene.start).unwrap().access;
    for tenths in 0..=30 {
        access.took(1, scene.start + Duration::from_millis(100 * tenths));
    }
    let progress = scene.seen.lock().unwrap().iter().filter(|event| **event == AccessEvent::Progress).count();
    assert_eq!(progress, 3);
}

#[test]
fn every_access_and_every_refusal_is_reported_once() {
    let scene = scene();
    scene.put("/a", "mine", Exposure::default());
    let opened = scene.namespaces.open(Caller::Address(DUT), Protocol::Http, "/a", scene.start).unwrap();
    let mut access = opened.access;
    access.took(300 * 1024, scene.start);
    access.end(Outcome::Complete);
    let _ = scene.open_at(0, "/missing");
    let name = || "/a".to_owned();
    let protocol = Protocol::Http;
    assert_eq!(
        *scene.seen.lock().unwrap(),
        [
            AccessEvent::Opened { access: 1, protocol, name: name(), peer: DUT },
            AccessEvent::Progress,
            AccessEvent::Ended { access: 1, protocol, name: name(), bytes: 300 * 1024, outcome: Outcome::Complete },
            AccessEvent::Refused { protocol, name: "/missing".into(), peer: DUT, refusal: Refusal::NoSuchName },
        ]
    );
}
