//! The session in virtual time: what happened goes in, what to do comes out.

use super::*;
use job_schema::template::Rendered;

/// A session whose clock the test moves.
struct Scene {
    session: Session,
    now: Instant,
    seen: Vec<Action>,
}

fn job(text: &str) -> Arc<Job> {
    let rendered = Rendered::plain("job.yml", text);
    Arc::new(Job::parse(&rendered).unwrap_or_else(|problems| panic!("{problems}")))
}

/// A job with this `timeouts` and this `console_patterns`, in flow style.
fn scene(timeouts: &str, patterns: &str) -> Scene {
    let text = format!(
        "version: 1\ntarget: {{tags: []}}\ntimeouts: {timeouts}\nconsole_patterns: {patterns}\n\
         deployment: {{start: {{kernel: {{url: 'http://host/kernel', cmdline: a}}}}}}\n"
    );
    let now = Instant::now();
    let mut scene = Scene { session: Session::new(job(&text), None, now), now, seen: Vec::new() };
    scene.drain();
    scene
}

/// The patterns of most tests.
const PATTERNS: &str = "{session_end: {regex: 'end'}, job_success: {regex: 'good'}, job_warn: {regex: 'odd'}, \
                        session_reboot: {regex: 'again'}, machine_unfit_for_service: {regex: 'broken'}}";

impl Scene {
    fn drain(&mut self) {
        while let Some(action) = self.session.poll_action() {
            self.seen.push(action);
        }
    }

    fn event(&mut self, event: Event) -> &mut Self {
        self.session.handle_event(event, self.now);
        self.drain();
        self
    }

    fn console(&mut self, text: &str) -> &mut Self {
        self.event(Event::Console(Bytes::copy_from_slice(text.as_bytes())))
    }

    /// Lets time pass, waking the session whenever it asks to be woken.
    fn pass(&mut self, seconds: u64) -> &mut Self {
        let end = self.now + Duration::from_secs(seconds);
        while let Some(wake) = self.session.poll_timeout().filter(|wake| *wake <= end) {
            self.now = wake;
            self.session.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
        self
    }

    /// Sets up and goes through off and on.
    fn boot(&mut self) -> &mut Self {
        self.event(Event::SetupDone).cycle()
    }

    fn cycle(&mut self) -> &mut Self {
        self.event(Event::PowerIsOff).event(Event::PowerIsOn)
    }

    fn verdict(&self) -> &Verdict {
        match self.seen.last() {
            Some(Action::End(verdict)) => verdict,
            other => panic!("no verdict yet, the last action is {other:?}"),
        }
    }

    fn ended_as(&self) -> (Status, Cause) {
        (self.verdict().status, self.verdict().cause)
    }

    fn is_running(&self) -> bool {
        !self.seen.iter().any(|action| matches!(action, Action::End(_)))
    }

    /// The boots so far, by deployment.
    fn boots(&self) -> Vec<Which> {
        let boot = |action: &Action| match action {
            Action::BootWith { deployment, .. } => Some(*deployment),
            _ => None,
        };
        self.seen.iter().filter_map(boot).collect()
    }
}

#[test]
fn power_is_cut_before_it_is_applied_and_the_console_decides() {
    let mut scene = scene("{}", PATTERNS);
    scene.event(Event::SetupDone);
    assert_eq!(scene.seen.last(), Some(&Action::CutPower));
    scene.event(Event::PowerIsOff);
    assert_eq!(scene.seen.last(), Some(&Action::BootWith { deployment: Which::Start, boot: 1 }));
    scene.event(Event::PowerIsOn).console("good\r\n").console("end\r\n");
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
    assert_eq!(scene.session.poll_timeout(), None);
}

#[test]
fn the_status_follows_ci_trons_order() {
    let table = [
        (PATTERNS, "good\nend\n", Status::Pass),
        (PATTERNS, "odd\ngood\nend\n", Status::Warn),
        (PATTERNS, "odd\nend\n", Status::Fail),
        (PATTERNS, "end\n", Status::Fail),
        ("{session_end: {regex: 'end'}}", "good\nend\n", Status::Complete),
        ("{session_end: {regex: 'end'}, job_success: {regex: 'end'}}", "end\n", Status::Pass),
    ];
    for (patterns, console, expected) in table {
        let mut scene = scene("{}", patterns);
        scene.boot().console(console);
        assert_eq!(scene.ended_as(), (expected, Cause::Test), "{patterns} on {console:?}");
    }
}

#[test]
fn a_line_counts_when_its_newline_has_come() {
    let mut scene = scene("{}", PATTERNS);
    scene.boot().console("good\nen").console("d");
    assert!(scene.is_running());
    scene.console("\n");
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
}

#[test]
fn overall_ends_the_job_as_incomplete_even_after_success() {
    let mut scene = scene("{overall: {seconds: 60}}", PATTERNS);
    scene.boot().event(Event::FirmwareSeen).console("good\n").pass(61);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Timeout));
    assert_eq!(scene.verdict().summary, "timeouts.overall of 60 s expired");
}

#[test]
fn a_boot_cycle_with_retries_boots_again_with_continue_and_then_gives_up() {
    let mut scene = scene("{boot_cycle: {seconds: 10, retries: 2}}", PATTERNS);
    for boot in 1..=3 {
        if boot == 1 {
            scene.boot()
        } else {
            scene.cycle()
        };
        scene.event(Event::FirmwareSeen).console("alive\n").pass(10);
    }
    assert_eq!(scene.boots(), [Which::Start, Which::Continue, Which::Continue]);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Timeout));
    assert_eq!(scene.verdict().summary, "timeouts.boot_cycle of 10 s expired for the 3. time");
}

#[test]
fn without_retries_a_reboot_request_ends_the_job() {
    let mut scene = scene("{}", PATTERNS);
    scene.boot().console("again\n");
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Test));
}

#[test]
fn a_reboot_request_counts_against_boot_cycle_retries_and_success_is_kept_across_boots() {
    let mut scene = scene("{boot_cycle: {seconds: 10, retries: 1}}", PATTERNS);
    scene.boot().console("good\nagain\n").cycle().console("end\n");
    assert_eq!(scene.boots(), [Which::Start, Which::Continue]);
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
}

#[test]
fn what_a_dut_wrote_before_its_power_was_cut_does_not_count_for_the_next_boot() {
    let mut scene = scene("{boot_cycle: {seconds: 10, retries: 1}}", PATTERNS);
    scene.boot().console("again\nen").console("end\n").event(Event::PowerIsOff).event(Event::PowerIsOn).console("d\n");
    assert!(scene.is_running(), "the late `end` and the half line belong to the first boot");
}

#[test]
fn first_console_activity_wants_a_newline_and_then_any_byte_is_activity() {
    let timeouts = "{first_console_activity: {seconds: 5}, console_activity: {seconds: 5}}";
    let mut mute = scene(timeouts, PATTERNS);
    mute.boot().event(Event::FirmwareSeen).pass(3).console("garbage without newline").pass(2);
    assert_eq!(mute.verdict().summary, "timeouts.first_console_activity of 5 s expired");
    let mut talking = scene(timeouts, PATTERNS);
    talking.boot().event(Event::FirmwareSeen).pass(4).console("hello\n").pass(4).console(".").pass(4).console(".");
    assert!(talking.is_running());
    talking.pass(5);
    assert_eq!(talking.verdict().summary, "timeouts.console_activity of 5 s expired");
}

#[test]
fn a_watchdog_runs_from_start_is_reset_before_it_is_stopped_and_barks_when_forgotten() {
    let patterns = "{session_end: {regex: 'end'}, watchdogs: {dog: {start: {regex: 'start'}, reset: {regex: 'beat'}, stop: {regex: 'stop'}}}}";
    let timeouts = "{watchdogs: {dog: {seconds: 5}}}";
    let mut fed = scene(timeouts, patterns);
    fed.boot()
        .console("beat\n")
        .pass(100)
        .console("start\n")
        .pass(4)
        .console("beat\n")
        .pass(4)
        .console("beat stop\n")
        .pass(4);
    assert!(fed.is_running(), "reset wins over stop in one line");
    fed.console("stop\n").pass(100).console("end\n");
    assert_eq!(fed.ended_as(), (Status::Complete, Cause::Test));
    let mut forgotten = scene(timeouts, patterns);
    forgotten.boot().event(Event::FirmwareSeen).console("start\n").pass(5);
    assert_eq!(forgotten.verdict().summary, "timeouts.watchdogs.dog of 5 s expired");
}

#[test]
fn a_watchdogs_retry_boots_again_and_the_next_boot_starts_without_it() {
    let patterns = "{session_end: {regex: 'end'}, watchdogs: {dog: {start: {regex: 'start'}, reset: {regex: 'beat'}, stop: {regex: 'stop'}}}}";
    let mut scene = scene("{watchdogs: {dog: {seconds: 5, retries: 1}}}", patterns);
    scene.boot().console("start\n").pass(5).cycle().pass(100).console("end\n");
    assert_eq!(scene.boots(), [Which::Start, Which::Continue]);
    assert_eq!(scene.ended_as(), (Status::Complete, Cause::Test));
}

#[test]
fn a_watchdog_without_a_timeout_is_inert() {
    let patterns = "{session_end: {regex: 'end'}, watchdogs: {dog: {start: {regex: 'start'}, reset: {regex: 'beat'}, stop: {regex: 'stop'}}}}";
    let mut scene = scene("{}", patterns);
    scene.boot().console("start\n").pass(1000);
    assert!(scene.is_running());
}

#[test]
fn setup_that_takes_too_long_is_a_setup_failure_with_the_artifact_as_cause() {
    let mut scene = scene("{infra_setup: {seconds: 20}}", PATTERNS);
    scene.pass(20);
    assert_eq!(scene.ended_as(), (Status::SetupFail, Cause::Artifact));
}

#[test]
fn the_jobs_deadline_is_kept() {
    let text = "version: 1\ntarget: {tags: []}\nconsole_patterns: {}\ndeployment: {start: {}}\n";
    let now = Instant::now();
    let session = Session::new(job(text), Some(now + Duration::from_secs(30)), now);
    let mut scene = Scene { session, now, seen: Vec::new() };
    scene.boot().console("alive\n").pass(30);
    assert_eq!(scene.verdict().summary, "timeouts.deadline of 30 s expired");
}

#[test]
fn an_unfit_dut_ends_the_session_and_is_reported() {
    let mut scene = scene("{}", PATTERNS);
    scene.boot().console("good\nbroken fan\n");
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Dut));
    assert!(scene.seen.contains(&Action::DeclareUnfit { line: "broken fan".into() }));
}

#[test]
fn a_dut_that_never_asks_the_network_for_anything_is_told_apart() {
    let mut scene = scene("{boot_cycle: {seconds: 10}}", PATTERNS);
    scene.boot().pass(10);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Network));
}

#[test]
fn a_dut_whose_firmware_speaks_but_never_asks_the_network_is_told_apart_too() {
    let mut scene = scene("{boot_cycle: {seconds: 10}}", PATTERNS);
    scene.boot().console("firmware of the DUT\n").pass(10);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Network));
    assert_eq!(
        scene.verdict().summary,
        "timeouts.boot_cycle of 10 s expired; the DUT never asked the network for anything in this boot, though its console is alive"
    );
}

#[test]
fn a_dut_that_fetched_something_without_our_dhcp_is_not_blamed_on_the_network() {
    let mut scene = scene("{boot_cycle: {seconds: 10}}", PATTERNS);
    scene.boot().event(Event::BootProgress).pass(10);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Timeout));
}

#[test]
fn firmware_boot_stops_at_the_first_dhcp_request() {
    let mut scene = scene("{firmware_boot: {seconds: 5}}", PATTERNS);
    scene.boot().pass(4).event(Event::FirmwareSeen).pass(100);
    assert!(scene.is_running());
    assert!(scene.seen.contains(&Action::Say(JobEvent::FirmwareBooted { seconds: 4.0 })));
}

#[test]
fn boot_progress_is_fed_by_artifacts_until_the_console_speaks() {
    let mut scene = scene("{boot_progress: {seconds: 5}}", PATTERNS);
    scene
        .boot()
        .pass(4)
        .event(Event::FirmwareSeen)
        .pass(4)
        .event(Event::BootProgress)
        .pass(4)
        .console("hello\n")
        .pass(100);
    assert!(scene.is_running());
    scene.console("end\n");
    assert_eq!(scene.ended_as(), (Status::Fail, Cause::Test));
}

/// A boot that has fetched `last`, and lacks `missing`.
fn fetched(last: &str, missing: &[&str]) -> Event {
    let missing = missing.iter().map(|part| (*part).to_owned()).collect();
    Event::Fetched(Fetches { last: Some(last.to_owned()), missing })
}

#[test]
fn a_line_on_the_console_does_not_end_boot_progress_before_all_is_fetched() {
    let mut scene = scene("{boot_progress: {seconds: 5}}", PATTERNS);
    scene
        .boot()
        .event(fetched("HTTP /_/job/kernel, not to its end", &["kernel", "initramfs"]))
        .event(Event::BootProgress);
    scene.pass(4).console("iPXE 1.21\n").pass(4).console("no line").pass(1);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Timeout));
    let summary = "timeouts.boot_progress of 5 s expired; fetched last: HTTP /_/job/kernel, not to its end; \
                   never fetched whole: kernel, initramfs";
    let verdict = scene.seen.iter().find_map(|action| match action {
        Action::End(verdict) => Some(verdict.clone()),
        _ => None,
    });
    let verdict = verdict.expect("it has ended");
    assert_eq!(verdict.summary, summary);
    assert!(verdict.evidence.contains(&format!("boot 1: {summary}")), "{:?}", verdict.evidence);
}

#[test]
fn boot_progress_ends_with_the_first_line_after_all_is_fetched_and_a_mute_console_does_not_end_it() {
    let mut talking = scene("{boot_progress: {seconds: 5}}", PATTERNS);
    talking.boot().console("iPXE 1.21\n").event(fetched("HTTP /_/job/kernel, whole", &[])).event(Event::BootProgress);
    talking.console("Linux version 6.1\n").pass(100);
    assert!(talking.is_running());
    let mut mute = scene("{boot_progress: {seconds: 5}}", PATTERNS);
    mute.boot().event(fetched("HTTP /_/job/kernel, whole", &[])).event(Event::BootProgress).pass(5);
    assert_eq!(mute.ended_as(), (Status::Incomplete, Cause::Timeout));
}

#[test]
fn every_way_to_fail_names_its_cause_and_nothing_follows_the_end() {
    let table = [
        (Event::Cancelled { by: "ann".into() }, Cause::Cancelled),
        (Event::SubmitterGone, Cause::Submitter),
        (Event::PowerFailed { reason: "stuck".into() }, Cause::Power),
        (Event::FarmFailed { reason: "disk full".into() }, Cause::Farm),
    ];
    for (event, cause) in table {
        let mut scene = scene("{overall: {seconds: 60}}", PATTERNS);
        scene.boot().event(event);
        assert_eq!(scene.ended_as(), (Status::Incomplete, cause));
        let count = scene.seen.len();
        scene.console("good\nend\n").pass(1000).event(Event::SubmitterGone);
        assert_eq!(scene.seen.len(), count);
    }
}

#[test]
fn power_that_fails_before_the_first_boot_is_a_setup_failure() {
    let mut scene = scene("{}", PATTERNS);
    scene.event(Event::SetupDone).event(Event::PowerFailed { reason: "no answer".into() });
    assert_eq!(scene.ended_as(), (Status::SetupFail, Cause::Power));
}

const AWAY: &str = "the console closed";

impl Scene {
    fn console_goes_away(&mut self) -> &mut Self {
        self.event(Event::ConsoleAway { reason: AWAY.into() })
    }

    fn console_comes_back(&mut self) -> &mut Self {
        self.event(Event::ConsoleBack)
    }
}

#[test]
fn the_clocks_that_the_console_drives_stand_still_while_it_is_away() {
    let patterns = "{session_end: {regex: 'end'}, watchdogs: {dog: {start: {regex: 'start'}, reset: {regex: 'beat'}, stop: {regex: 'stop'}}}}";
    for clock in ["boot_cycle: {seconds: 5}", "console_activity: {seconds: 5}", "watchdogs: {dog: {seconds: 5}}"] {
        let mut scene = scene(&format!("{{{clock}}}"), patterns);
        scene.boot().event(Event::FirmwareSeen).console("start\n").pass(3).console_goes_away().pass(200);
        scene.console_comes_back().pass(1);
        assert!(scene.is_running(), "{clock}: 4 of 5 s have passed");
        scene.pass(1);
        assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Console), "{clock}");
        let told = "; the console was away for 200.0 s of this boot, and what it said is lost";
        assert!(scene.verdict().summary.ends_with(told), "{}", scene.verdict().summary);
    }
    let mut first = scene("{first_console_activity: {seconds: 5}}", PATTERNS);
    first.boot().event(Event::FirmwareSeen).pass(4).console_goes_away().pass(200).console_comes_back().console("hi\n");
    first.pass(1000);
    assert!(first.is_running());
}

#[test]
fn a_clock_that_is_started_while_the_console_is_away_stands_still_from_its_start() {
    let mut scene = scene("{boot_cycle: {seconds: 5}}", PATTERNS);
    scene.event(Event::SetupDone).event(Event::PowerIsOff).console_goes_away().event(Event::PowerIsOn).pass(100);
    scene.console_comes_back().pass(4);
    assert!(scene.is_running());
    scene.pass(1);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Console));
}

#[test]
fn the_clocks_of_the_whole_job_and_of_the_network_go_on_while_the_console_is_away() {
    let mut overall = scene("{overall: {seconds: 60}}", PATTERNS);
    overall.boot().event(Event::FirmwareSeen).pass(50).console_goes_away().pass(10);
    assert_eq!(overall.ended_as(), (Status::Incomplete, Cause::Console));
    assert_eq!(
        overall.verdict().summary,
        "timeouts.overall of 60 s expired; the console was away for 10.0 s of this boot, and what it said is lost"
    );
    let mut firmware = scene("{firmware_boot: {seconds: 5}}", PATTERNS);
    firmware.boot().console_goes_away().pass(5);
    assert_eq!((Status::Incomplete, Cause::Network), firmware.ended_as());
}

#[test]
fn a_console_that_does_not_come_back_ends_the_job_after_five_minutes_with_itself_as_cause() {
    let mut scene = scene("{overall: {hours: 5}}", PATTERNS);
    scene.boot().pass(10).console_goes_away().pass(299);
    assert!(scene.is_running());
    scene.pass(1);
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Console));
    assert_eq!(scene.verdict().summary, "the console closed; it was away for 300 s");
}

#[test]
fn a_console_that_comes_back_only_to_go_again_is_one_absence_and_two_that_are_apart_are_two() {
    let mut flapping = scene("{overall: {hours: 5}}", PATTERNS);
    flapping.boot().console_goes_away();
    for _ in 0..59 {
        flapping.pass(4).console_comes_back().pass(1).console_goes_away();
    }
    flapping.pass(5);
    assert_eq!(flapping.verdict().summary, "the console closed; it was away for 300 s");
    let mut rare = scene("{overall: {hours: 5}}", PATTERNS);
    rare.boot();
    for _ in 0..10 {
        rare.console_goes_away().pass(200).console_comes_back().pass(60);
    }
    assert!(rare.is_running());
}

#[test]
fn what_was_half_said_before_the_gap_is_no_part_of_a_line_after_it() {
    let mut scene = scene("{}", PATTERNS);
    scene.boot().console("en").console_goes_away().console_comes_back().console("d\n");
    assert!(scene.is_running());
    scene.console("good\nend\n");
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
    let marks =
        |action: &&Action| matches!(action, Action::Say(JobEvent::ConsoleAway { .. } | JobEvent::ConsoleBack { .. }));
    assert_eq!(scene.seen.iter().filter(marks).count(), 2, "the log has the gap");
}

#[test]
fn a_boot_waits_for_the_console_to_come_back() {
    let mut scene = scene("{firmware_boot: {seconds: 5, retries: 1}}", PATTERNS);
    scene.boot().console_goes_away().pass(5).event(Event::PowerIsOff);
    assert_eq!(scene.boots().len(), 1, "off, and stays so");
    scene.console_comes_back();
    assert_eq!(scene.boots(), [Which::Start, Which::Continue]);
    scene.event(Event::PowerIsOn).event(Event::FirmwareSeen).console("good\nend\n");
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
}

#[test]
fn a_console_that_is_gone_before_the_first_boot_is_a_setup_failure() {
    let mut scene = scene("{}", PATTERNS);
    scene.event(Event::SetupDone).console_goes_away().event(Event::PowerIsOff).pass(300);
    assert_eq!(scene.ended_as(), (Status::SetupFail, Cause::Console));
}

#[test]
fn a_pattern_that_matches_every_line_of_a_flood_does_not_fill_the_log() {
    let mut scene = scene("{}", PATTERNS);
    scene.boot();
    for _ in 0..100 {
        scene.console(&"good\n".repeat(100));
    }
    let told = |action: &&Action| matches!(action, Action::Say(JobEvent::PatternMatched { .. }));
    assert_eq!(scene.seen.iter().filter(told).count(), MATCHES_TOLD_MAX);
    scene.console("end\n");
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
}

/// Seconds that the farm was away.
const FARM_AWAY_S: u64 = 9;

fn picked_up() -> Event {
    Event::PickedUp { away: Duration::from_secs(FARM_AWAY_S) }
}

#[test]
fn what_was_being_done_when_the_farm_went_is_begun_again() {
    let mut off = scene("{boot_cycle: {retries: 1}}", PATTERNS);
    off.event(Event::SetupDone).event(picked_up());
    assert_eq!(off.session.standing(), Standing::Switching);
    assert_eq!(off.seen.iter().filter(|action| **action == Action::CutPower).count(), 2);
    off.event(Event::PowerIsOff).event(picked_up());
    assert_eq!(off.boots(), [Which::Start, Which::Start], "the same boot, once more");
    off.event(Event::PowerIsOn).event(picked_up());
    assert_eq!(off.session.standing(), Standing::Booted(Which::Start));
    assert_eq!(off.boots().len(), 2, "what is done is not done again");
    off.console("again\n").cycle();
    assert_eq!(off.session.standing(), Standing::Booted(Which::Continue));
}

#[test]
fn a_job_that_was_picked_up_has_the_gap_in_its_log_and_its_evidence_and_no_line_over_it() {
    let mut scene = scene("{}", PATTERNS);
    scene.boot().console("good\nen").event(picked_up()).console("d\n");
    assert!(scene.is_running());
    let gap = [
        Action::Say(JobEvent::ConsoleAway { reason: "the farm was restarted".into() }),
        Action::Say(JobEvent::ConsoleBack { seconds: 9.0 }),
    ];
    assert!(scene.seen.windows(2).any(|actions| actions == gap), "{:#?}", scene.seen);
    scene.console("end\n");
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
    let expected = "boot 1: the farm was restarted and away for 9.0 s; what the DUT said meanwhile is lost";
    assert!(scene.verdict().evidence.iter().any(|entry| entry == expected));
}

#[test]
fn a_boot_that_was_waiting_for_its_console_goes_on_when_the_farm_is_back() {
    let mut scene = scene("{boot_cycle: {retries: 1}}", PATTERNS);
    scene.boot().console("again\n").console_goes_away().event(Event::PowerIsOff).pass(20);
    assert_eq!(scene.session.standing(), Standing::Off);
    scene.event(picked_up());
    assert_eq!(scene.boots(), [Which::Start, Which::Continue]);
    let back = Action::Say(JobEvent::ConsoleBack { seconds: 29.0 });
    assert!(scene.seen.contains(&back), "20 s before the farm went, and 9 without it: {:#?}", scene.seen);
    scene.pass(600);
    assert!(scene.is_running(), "the console is not away any more");
}

#[test]
fn a_timeout_after_the_farm_was_away_is_the_farms_until_the_next_boot() {
    let mut first = scene("{console_activity: {seconds: 20}}", PATTERNS);
    first.boot().event(Event::FirmwareSeen).console("hello\n").event(picked_up()).pass(20);
    assert_eq!(first.ended_as(), (Status::Incomplete, Cause::Farm));
    assert_eq!(
        first.verdict().summary,
        "timeouts.console_activity of 20 s expired; the farm was away for 9.0 s of this boot, and what the DUT did then is not known"
    );
    let mut second = scene("{console_activity: {seconds: 20, retries: 1}}", PATTERNS);
    second.boot().event(Event::FirmwareSeen).console("hello\n").event(picked_up()).pass(20);
    second.cycle().event(Event::FirmwareSeen).console("hello\n").pass(20);
    assert_eq!(second.ended_as(), (Status::Incomplete, Cause::Timeout));
}

/// A boot image for the DUT's loader, in boot `boot`.
fn hand_over(boot: u32, news: HandOver) -> Event {
    Event::HandOver { boot, news }
}

fn awaited(boot: u32) -> Event {
    hand_over(boot, HandOver::Awaited { loader: "the loader".into() })
}

fn failed(boot: u32) -> Event {
    hand_over(boot, HandOver::Failed { cause: Cause::Dut, reason: "the loader: it refused `boot`".into() })
}

#[test]
fn a_loader_is_given_its_image_after_power_on_and_is_a_sign_of_life() {
    let mut scene = scene("{firmware_boot: {seconds: 5}, boot_progress: {seconds: 10}}", PATTERNS);
    scene.boot();
    assert_eq!(scene.seen.last(), Some(&Action::HandOver { deployment: Which::Start, boot: 1 }));
    scene.event(awaited(1)).pass(4).event(hand_over(1, HandOver::Found)).pass(9);
    scene.event(hand_over(1, HandOver::Done { text: "it boots".into() })).pass(9).console("good\nend\n");
    assert_eq!(scene.ended_as(), (Status::Pass, Cause::Test));
    let evidence = scene.verdict().evidence.join("\n");
    assert!(evidence.contains("boot 1: the loader was there after 4.0 s\nboot 1: it boots"), "{evidence}");
}

#[test]
fn a_loader_that_never_comes_or_never_boots_is_the_dut_s_fault() {
    let mut absent = scene("{firmware_boot: {seconds: 5}}", PATTERNS);
    absent.boot().event(awaited(1)).pass(6);
    assert_eq!(absent.ended_as(), (Status::Incomplete, Cause::Dut));
    let summary = "timeouts.firmware_boot of 5 s expired; the loader did not show up in this boot";
    assert_eq!(absent.verdict().summary, summary);
    let mut stalls = scene("{boot_progress: {seconds: 5}}", PATTERNS);
    stalls.boot().console("loader\n").event(awaited(1)).event(hand_over(1, HandOver::Found)).console(".\n").pass(6);
    assert_eq!(stalls.ended_as(), (Status::Incomplete, Cause::Dut));
    assert!(stalls.verdict().summary.ends_with("; its loader has not booted the image that it was being given"));
}

#[test]
fn an_image_that_came_to_nothing_is_a_boot_more_where_firmware_boot_may_be_retried() {
    let mut scene = scene("{firmware_boot: {minutes: 5, retries: 1}}", PATTERNS);
    scene.boot().event(awaited(1)).event(failed(1));
    assert_eq!(scene.seen.last(), Some(&Action::CutPower));
    // News of the boot before are no news.
    scene.cycle().event(failed(1));
    assert!(scene.is_running());
    assert_eq!(scene.boots(), [Which::Start, Which::Continue]);
    scene.event(awaited(2)).event(failed(2));
    assert_eq!(scene.ended_as(), (Status::Incomplete, Cause::Dut));
    assert_eq!(scene.verdict().summary, "the loader: it refused `boot` (2. time)");
}

#[test]
fn a_farm_that_was_away_gives_the_image_again_unless_it_had_been_taken() {
    let picked_up = || Event::PickedUp { away: Duration::from_secs(3) };
    let mut half = scene("{}", PATTERNS);
    half.boot().event(awaited(1)).event(hand_over(1, HandOver::Found)).event(picked_up());
    assert_eq!(half.seen.last(), Some(&Action::HandOver { deployment: Which::Start, boot: 1 }));
    let mut done = scene("{}", PATTERNS);
    done.boot().event(awaited(1)).event(hand_over(1, HandOver::Done { text: "it boots".into() }));
    let before = done.seen.iter().filter(|action| matches!(action, Action::HandOver { .. })).count();
    done.event(picked_up());
    let after = done.seen.iter().filter(|action| matches!(action, Action::HandOver { .. })).count();
    assert_eq!((before, after), (1, 1));
}
