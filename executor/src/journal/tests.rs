//! Sessions in virtual time, killed at some moment and heard again.

use std::collections::VecDeque;

use super::*;
use crate::session::{Standing, Which};
use crate::verdict::Status;
use bytes::Bytes;
use job_schema::template::Rendered;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const JOB: &str = "version: 1
target: {tags: []}
timeouts: {overall: {minutes: 30}, boot_cycle: {minutes: 3, retries: 3}, console_activity: {seconds: 20, retries: 2}, first_console_activity: {seconds: 30, retries: 2}, watchdogs: {dog: {seconds: 15, retries: 1}}}
console_patterns:
  session_end: {regex: 'the end'}
  job_success: {regex: 'good'}
  session_reboot: {regex: 'again'}
  machine_unfit_for_service: {regex: 'broken'}
  watchdogs: {dog: {start: {regex: 'leash'}, reset: {regex: 'walk'}, stop: {regex: 'home'}}}
deployment: {start: {kernel: {url: 'http://host/kernel', cmdline: a}}}
";

fn job(text: &str) -> Arc<Job> {
    Arc::new(Job::parse(&Rendered::plain("job.yml", text)).unwrap_or_else(|problems| panic!("{problems}")))
}

/// A session whose clock the test moves, with its log and its journal.
struct Scene {
    job: Arc<Job>,
    log: Arc<JobLog>,
    session: Recorded,
    start: Instant,
    now: Instant,
    actions: Vec<Action>,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let log = JobLog::create(folder.path()).unwrap();
        let (job, start) = (job(JOB), Instant::now());
        let journal = Journal::create(&log, &job, start).unwrap();
        let session = Recorded::kept(Session::new(Arc::clone(&job), None, start), journal);
        let mut scene = Scene { job, log, session, start, now: start, actions: Vec::new(), folder };
        scene.drain();
        scene
    }

    fn booted() -> Scene {
        let mut scene = Scene::new();
        scene.event(Event::SetupDone).event(Event::PowerIsOff).event(Event::PowerIsOn);
        scene
    }

    fn drain(&mut self) {
        while let Some(action) = self.session.poll_action() {
            self.actions.push(action);
        }
    }

    /// As the runner does it.
    fn event(&mut self, event: Event) -> &mut Self {
        if let Event::Console(bytes) = &event {
            self.log.append_console(bytes).unwrap();
        }
        self.session.handle_event(event, self.now);
        self.session.handle_timeout(self.now);
        self.drain();
        self
    }

    fn console(&mut self, text: &str) -> &mut Self {
        self.event(Event::Console(Bytes::copy_from_slice(text.as_bytes())))
    }

    fn pass(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while let Some(wake) = self.session.poll_timeout().filter(|wake| *wake <= end) {
            self.now = wake;
            self.session.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
        self
    }

    fn heard(&self) -> Heard {
        Heard::read(self.folder.path()).unwrap().expect("its session began")
    }

    /// A server that starts now finds this, on the clock of the first one.
    fn replayed(&self) -> Replayed {
        self.heard().replay(&self.job, &self.log, self.start).unwrap()
    }

    fn lines(&self) -> usize {
        self.heard().lines.len()
    }

    fn journal_bytes(&self) -> u64 {
        std::fs::metadata(self.folder.path().join(JOURNAL)).unwrap().len()
    }
}

fn goes_on(replayed: Replayed) -> Session {
    match replayed {
        Replayed::GoesOn(session) => *session,
        Replayed::Ended { verdict, .. } => panic!("it ended: {verdict}"),
    }
}

/// Anything that can happen, most of it often enough to matter.
fn anything(random: &mut SmallRng, wishes: &mut VecDeque<Event>) -> Event {
    if let Some(wish) = wishes.pop_front().filter(|_| random.random_bool(0.7)) {
        return wish;
    }
    let said =
        ["noise", "noise\n", "more\nand more\n", "good\n", "leash\n", "walk\n", "home\n", "again\n", "le", "ash\n"];
    match random.random_range(0..40) {
        0..=24 => Event::Console(Bytes::from(said[random.random_range(0..said.len())])),
        25..=29 => Event::BootProgress,
        30..=32 => Event::FirmwareSeen,
        33 => Event::ConsoleAway { reason: "unplugged".into() },
        34..=36 => Event::ConsoleBack,
        37 => Event::Evidence("http /kernel: 5 bytes, complete".into()),
        38 => Event::Console(Bytes::from("the end\n")),
        _ => Event::SetupDone,
    }
}

/// What the ring would answer.
fn answers(actions: &[Action]) -> impl Iterator<Item = Event> + '_ {
    actions.iter().filter_map(|action| match action {
        Action::CutPower => Some(Event::PowerIsOff),
        Action::BootWith { .. } => Some(Event::PowerIsOn),
        Action::HandOver { boot, .. } => Some(Event::HandOver { boot: *boot, news: HandOver::Found }),
        Action::Say(_) | Action::DeclareUnfit { .. } | Action::End(_) => None,
    })
}

#[test]
fn a_session_that_heard_the_same_again_goes_on_as_the_one_that_was_killed() {
    let mut went_on = 0;
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut scene = Scene::new();
        scene.event(Event::SetupDone);
        let mut wishes: VecDeque<Event> = answers(&scene.actions).collect();
        for _ in 0..random.random_range(0..120) {
            scene.pass(Duration::from_millis(random.random_range(0..6000)));
            let event = anything(&mut random, &mut wishes);
            let before = scene.actions.len();
            scene.event(event);
            wishes.extend(answers(&scene.actions[before..]));
        }
        // Long enough that everything has its line.
        scene.pass(KEEP_EVERY);
        let ended = scene.actions.iter().find_map(|action| match action {
            Action::End(verdict) => Some(verdict.clone()),
            _ => None,
        });
        let mut again = match (scene.replayed(), ended) {
            (Replayed::GoesOn(session), None) => *session,
            (Replayed::Ended { verdict, .. }, Some(expected)) => {
                assert_eq!(verdict, expected, "seed {seed}");
                continue;
            }
            (Replayed::GoesOn(_), Some(expected)) => panic!("seed {seed}: it had ended {expected}"),
            (Replayed::Ended { verdict, .. }, None) => panic!("seed {seed}: it had not ended {verdict}"),
        };
        went_on += 1;
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..40 {
            let event = anything(&mut random, &mut wishes);
            let time = scene.now + Duration::from_millis(random.random_range(0..9000));
            for (actions, session) in [(&mut first, &mut scene.session.session), (&mut second, &mut again)] {
                while let Some(wake) = session.poll_timeout().filter(|wake| *wake <= time) {
                    session.handle_timeout(wake);
                }
                session.handle_event(event.clone(), time);
                actions.extend(std::iter::from_fn(|| session.poll_action()));
            }
            scene.now = time;
            assert_eq!(first, second, "seed {seed}");
        }
        let next = (scene.session.session.poll_timeout(), scene.session.session.standing());
        assert_eq!((again.poll_timeout(), again.standing()), next, "seed {seed}");
    }
    assert!(went_on > 100, "only {went_on} of 300 had not ended by themselves");
}

#[test]
fn what_the_console_said_just_before_the_kill_counts_though_it_has_no_line_yet() {
    let mut scene = Scene::booted();
    scene.console("booting\n").pass(KEEP_EVERY);
    // In the log, and nobody came to hear it.
    scene.log.append_console(b"all is good\nthe ").unwrap();
    assert_eq!(goes_on(scene.replayed()).standing(), Standing::Booted(Which::Start));
    let told = scene.log.records().last().unwrap().event.clone();
    assert_eq!(told, JobEvent::PatternMatched { patterns: vec!["job_success".into()], line: "all is good".into() });
    scene.log.append_console(b"end\n").unwrap();
    let Replayed::Ended { verdict, unfit } = scene.replayed() else { panic!("session_end is in the log") };
    assert_eq!((verdict.status, unfit), (Status::Pass, None));
}

#[test]
fn a_verdict_that_nobody_heard_any_more_is_there_after_a_restart() {
    let mut scene = Scene::booted();
    scene.console("it is broken\n");
    let Some(Action::End(expected)) = scene.actions.last().cloned() else { panic!("it ends by that") };
    let Replayed::Ended { verdict, unfit } = scene.replayed() else { panic!("it had ended") };
    assert_eq!((verdict, unfit.as_deref()), (expected, Some("it is broken")));
}

#[test]
fn the_farms_absence_is_no_time_of_the_job_but_for_its_deadline() {
    let mut scene = Scene::booted();
    scene.console("leash\n").pass(Duration::from_secs(5));
    let heard = scene.heard();
    assert_eq!(heard.until(), Duration::from_secs(5));
    let mut session = goes_on(scene.replayed());
    let left = session.poll_timeout().unwrap() - scene.now;
    assert_eq!(left, Duration::from_secs(10), "of the watchdog's 15 s, 5 have passed");
    let away = Duration::from_secs(3600);
    session.stood_still(away);
    let now = scene.now + away;
    session.handle_event(Event::PickedUp { away }, now);
    assert_eq!(session.poll_timeout().unwrap() - now, Duration::from_secs(10));
    session.set_deadline(now + Duration::from_secs(7), now);
    assert_eq!(session.poll_timeout().unwrap() - now, Duration::from_secs(7));
}

#[test]
fn a_job_can_be_picked_up_a_second_time() {
    let mut scene = Scene::booted();
    scene.console("booting\n").pass(Duration::from_secs(5));
    let heard = scene.heard();
    let session = goes_on(heard.replay(&scene.job, &scene.log, scene.start).unwrap());
    let journal = Journal::go_on(&heard, &scene.log, scene.start).unwrap();
    scene.session = Recorded::kept(session, journal);
    scene.event(Event::PickedUp { away: Duration::from_secs(9) });
    scene.console("all is good\n").pass(Duration::from_secs(5));
    let mut again = goes_on(scene.replayed());
    again.handle_event(Event::Console(Bytes::from("the end\n")), scene.now);
    let verdict = std::iter::from_fn(|| again.poll_action()).find_map(|action| match action {
        Action::End(verdict) => Some(verdict),
        _ => None,
    });
    let verdict = verdict.unwrap();
    assert_eq!(verdict.status, Status::Pass);
    let gap = "boot 1: the farm was restarted and away for 9.0 s; what the DUT said meanwhile is lost";
    assert!(verdict.evidence.iter().any(|entry| entry == gap), "{:#?}", verdict.evidence);
}

#[test]
fn a_flood_and_a_download_cost_a_line_a_second() {
    let mut scene = Scene::booted();
    let before = scene.lines();
    for _ in 0..1000 {
        scene.console("x".repeat(1000).as_str()).event(Event::BootProgress).event(Event::FirmwareSeen);
        scene.pass(Duration::from_millis(10));
    }
    let lines = scene.lines() - before;
    assert!((10..=25).contains(&lines), "{lines} lines in 10 s");
    scene.pass(Duration::from_secs(15));
    let length = scene.journal_bytes();
    scene.pass(Duration::from_secs(2));
    assert_eq!(scene.journal_bytes(), length, "silence costs nothing but time");
}

#[test]
fn a_line_that_was_cut_short_was_not_heard() {
    let mut scene = Scene::booted();
    scene.console("booting\n").pass(KEEP_EVERY);
    let path = scene.folder.path().join(JOURNAL);
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"at\":99,\"heard\":\"cancel");
    std::fs::write(&path, &text).unwrap();
    let heard = scene.heard();
    assert_eq!(goes_on(scene.replayed()).standing(), Standing::Booted(Which::Start));
    drop(Journal::go_on(&heard, &scene.log, scene.start).unwrap());
    assert!(!std::fs::read_to_string(&path).unwrap().contains("cancel"), "what comes next begins a line of its own");
}

#[test]
fn what_cannot_be_gone_on_with_says_why() {
    let why = |scene: &Scene, job: &Arc<Job>| match scene.heard().replay(job, &scene.log, scene.start) {
        Err(why) => why,
        Ok(_) => panic!("it can be"),
    };
    let mut scene = Scene::booted();
    scene.console("booting\n").pass(KEEP_EVERY);
    let other = job(&JOB.replace("all is good", "all is well").replace("seconds: 20", "seconds: 21"));
    assert_eq!(why(&scene, &other), "the job reads otherwise now: the farm file was changed");
    std::fs::write(scene.folder.path().join("console.log"), "boo").unwrap();
    let told = why(&scene, &scene.job);
    assert!(told.starts_with("its console's log lacks what it heard: "), "{told}");
    std::fs::write(scene.folder.path().join(JOURNAL), "").unwrap();
    let told = Heard::read(scene.folder.path()).err();
    assert_eq!(told.as_deref(), Some("what it heard could not be kept"));
    std::fs::remove_file(scene.folder.path().join(JOURNAL)).unwrap();
    assert!(Heard::read(scene.folder.path()).unwrap().is_none());
}

#[test]
fn a_console_that_its_log_does_not_keep_cannot_be_heard_again() {
    let mut scene = Scene::booted();
    scene.console("booting\n");
    // As beyond the log's limit: heard, not kept.
    scene.session.handle_event(Event::Console(Bytes::from("more than a log keeps\n")), scene.now);
    scene.pass(Duration::from_secs(5));
    let told = Heard::read(scene.folder.path()).err();
    assert_eq!(told.as_deref(), Some("what it heard could not be kept"));
}

#[test]
fn an_event_that_is_heard_before_the_bytes_that_came_with_it_costs_no_journal() {
    let mut scene = Scene::booted();
    scene.console("booting\n");
    // As the runner does it when both come at once: the log has the bytes by then.
    scene.log.append_console(b"more\n").unwrap();
    scene.session.handle_event(Event::Evidence("http /kernel: 5 bytes, complete".into()), scene.now);
    scene.session.handle_event(Event::Console(Bytes::from("more\n")), scene.now);
    scene.pass(KEEP_EVERY);
    goes_on(scene.replayed());
}
