//! Many simulated DUTs and many more jobs: the farm, the jobs, and what their events say about order, completeness and delay.
//!
//! ```text
//!  L1 requested ──waits──► L2 granted ─► L4 active ─► powered_on … verdict ─► L13 freed ──┐
//!                             ▲                                                           │ the same DUT
//!                             └────── the first of its class by priority, then by age ◄───┘
//! ```
//! A class is a tag: DUTs of a class are alike, and each job asks for one class. Times are the server's own: the moments of its lease
//! events, and of the events in each job's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::bench::Bench;
use crate::measure::Samples;
use crate::workspace::root;

/// Clients that hand jobs in at the same time: more than there are cores, so that the server and not they set the pace.
const SUBMITTERS: usize = 8;
/// Priorities that take turns among the jobs.
const PRIORITIES: usize = 3;
/// A follower hears at least a heartbeat every 10 s.
const SILENCE: Duration = Duration::from_secs(60);
/// Whoever waits for events looks at the clock this often.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The end of a job follows the end of its lease; a busy disk may take its time.
const SETTLE: Duration = Duration::from_secs(60);

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// DUTs.
    pub duts: usize,
    /// Tags among them: DUT `n` has the tag `class-<n mod classes>`.
    pub classes: usize,
    /// Jobs, which take turns with the classes.
    pub jobs: usize,
    /// For how long a job holds its DUT without a word.
    pub hold_s: u32,
    /// The same for the first job of each DUT, from that of the first DUT to that of the last: what lets a queue grow, and what keeps
    /// DUTs from becoming free all at once.
    pub first_hold_s: [u32; 2],
}

impl Crowd {
    /// The farm file: on the loopback, where 1,000 DUTs need no network namespaces and a test no root.
    pub fn farm(&self) -> String {
        let console = root().join("fixtures/consoles/holds.yml");
        let mut farm = "name: crowd\nnetwork: {loopback: {}}\nduts:\n".to_owned();
        for number in 0..self.duts {
            let (high, low) = (number / 250, number % 250);
            farm.push_str(&format!(
                "  - {{base_name: dut{number}, mac: '52:54:00:78:{high:02x}:{low:02x}', address: 127.7.{high}.{}, tags: [class-{}], \
                 machine: {{simulated: {{console: {}}}}}}}\n",
                low + 1,
                number % self.classes,
                console.display()
            ));
        }
        farm
    }

    /// A boot as small as they come: all that the DUT loads is a few bytes.
    fn job(&self, number: usize) -> String {
        format!(
            "version: 1
target: {{tags: [class]}}
timeouts: {{overall: {{minutes: 60}}}}
console_patterns:
  session_end: {{regex: '^wharf: job done'}}
  job_success: {{regex: '^wharf: job done'}}
deployment:
  start:
    kernel: {{data: a kernel, cmdline: [wharf.hold={}]}}
    initramfs: {{data: an initramfs}}
",
            self.hold_s_of(number)
        )
    }

    fn hold_s_of(&self, number: usize) -> u32 {
        let [first, last] = self.first_hold_s;
        let spread = last.saturating_sub(first) as usize * number / self.duts.max(1);
        if number < self.duts { first + spread as u32 } else { self.hold_s }
    }

    fn query(&self, number: usize) -> String {
        format!("?tag=class-{}&priority={}", number % self.classes, number / self.classes % PRIORITIES)
    }

    /// Hands all jobs in, as fast as the server takes them; returns how long that took.
    pub fn submit(&self, bench: &Bench) -> Duration {
        let (next, started) = (AtomicUsize::new(0), Instant::now());
        let submit = || {
            while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < self.jobs) {
                let path = format!("/api/v1/jobs{}", self.query(number));
                let answer = bench.post(&path, "application/yaml", self.job(number).as_bytes());
                assert_eq!(answer.status, 201, "a job was refused: {}", String::from_utf8_lossy(&answer.body));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..SUBMITTERS {
                scope.spawn(submit);
            }
        });
        started.elapsed()
    }
}

/// One lease of a job's DUT, as its events tell.
#[derive(Clone, Debug, Default)]
struct Story {
    class: usize,
    priority: i64,
    dut: String,
    /// Number and time of the event, in seconds.
    requested: Option<(u64, f64)>,
    granted: Option<(u64, f64)>,
    active: Option<(u64, f64)>,
    freed: Option<(u64, f64)>,
}

/// What one follower of the farm's events has heard.
pub struct Heard {
    stories: Mutex<BTreeMap<u64, Story>>,
    gap: Mutex<Option<String>>,
    news: Condvar,
}

impl Heard {
    /// Follows the farm's events from the first on, in a thread that ends with the farm.
    pub fn follow(bench: &Bench) -> anyhow::Result<Arc<Heard>> {
        let heard = Arc::new(Heard { stories: Mutex::default(), gap: Mutex::default(), news: Condvar::new() });
        let mut stream = TcpStream::connect(bench.address())?;
        stream.set_read_timeout(Some(SILENCE))?;
        write!(stream, "GET /api/v1/events?follow=1&from=1 HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
        let listener = Arc::clone(&heard);
        std::thread::spawn(move || listener.listen(stream));
        Ok(heard)
    }

    fn listen(&self, stream: TcpStream) {
        let mut next = 1;
        for line in BufReader::new(stream).lines().map_while(Result::ok).filter(|line| line.starts_with('{')) {
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            let number = event["seq"].as_u64().unwrap_or_default();
            if number != next {
                let gap = format!("event {number} came where {next} was due");
                self.gap.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(gap);
            }
            next = number + 1;
            self.take(&event, number);
        }
    }

    fn take(&self, event: &Value, number: u64) {
        let job = event["id"].as_str().and_then(|id| id.strip_prefix("job-")?.parse::<u64>().ok());
        let (Some(job), Some(at)) = (job, seconds(&event["at"])) else { return };
        let mut stories = self.stories.lock().unwrap_or_else(PoisonError::into_inner);
        let story = stories.entry(job).or_default();
        let place = match event["step"].as_str().unwrap_or_default() {
            "L1" => &mut story.requested,
            "L2" => {
                story.dut = event["resource"].as_str().unwrap_or_default().to_owned();
                &mut story.granted
            }
            "L4" => &mut story.active,
            "L13" => &mut story.freed,
            _ => return,
        };
        *place = Some((number, at));
        self.news.notify_all();
    }

    /// Waits for the next event, but not for ever: whoever counts looks at the clock, too.
    pub fn wait_for_more(&self) {
        let stories = self.stories.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.news.wait_timeout(stories, PAUSE_MAX));
    }

    /// How many leases are over.
    pub fn freed(&self) -> usize {
        let stories = self.stories.lock().unwrap_or_else(PoisonError::into_inner);
        stories.values().filter(|story| story.freed.is_some()).count()
    }

    /// Everything, once all is over.
    pub fn history(&self, bench: &Bench, crowd: &Crowd) -> anyhow::Result<History> {
        if let Some(gap) = self.gap.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            bail!("the events have a gap: {gap}");
        }
        let mut stories = self.stories.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(stories.len() == crowd.jobs, "{} jobs have leases, of {}", stories.len(), crowd.jobs);
        let mut powered_on = BTreeMap::new();
        for (job, story) in &mut stories {
            let folder = bench.state().join("jobs").join(job.to_string());
            powered_on.extend(passed(&folder).with_context(|| format!("job {job}"))?.map(|at| (*job, at)));
            let sheet: Value = serde_json::from_slice(&fs::read(folder.join("submission.json"))?)?;
            let submission = &sheet["submission"];
            story.priority = submission["priority"].as_i64().context("no priority")?;
            let tag = submission["target"]["tags"][0].as_str().and_then(|tag| tag.strip_prefix("class-"));
            story.class = tag.context("no class")?.parse()?;
        }
        Ok(History { stories, powered_on })
    }
}

/// When the DUT of a job was seen to have power; the error is that it has no verdict, or another than PASS. On a farm without time to spare
/// a boot of some milliseconds may be over before its outlet has been read back: then nobody knows.
fn passed(folder: &Path) -> anyhow::Result<Option<f64>> {
    let ended = crate::bench::until(SETTLE, || {
        let text = fs::read_to_string(folder.join("events.jsonl")).ok()?;
        let events: Vec<Value> = text.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
        Some(events).filter(|events| events.last().is_some_and(|event| event["event"] == "ended"))
    });
    let events = ended.context("it has no verdict")?;
    let verdict = &events.last().context("no events")?["verdict"];
    ensure!(verdict["status"] == "PASS", "it did not pass: {verdict}");
    Ok(events.iter().find(|event| event["event"] == "powered_on").and_then(|event| seconds(&event["at"])))
}

fn seconds(at: &Value) -> Option<f64> {
    let at: jiff::Timestamp = at.as_str()?.parse().ok()?;
    Some(at.as_microsecond() as f64 / 1e6)
}

/// Every job's way through the queue. That it exists says that each has passed, and that its events have no gap.
pub struct History {
    stories: BTreeMap<u64, Story>,
    powered_on: BTreeMap<u64, f64>,
}

/// Delays in milliseconds, between a DUT that becomes free and the next job on it.
#[derive(Default)]
pub struct Delays {
    /// To the next grant of the same DUT.
    pub granted: Samples,
    /// From the grant until the lease is active.
    pub active: Samples,
    /// From there until the outlet is on and reads back so: rendering, publishing, the cold start's pause.
    pub powered_on: Samples,
    /// All three.
    pub whole: Samples,
}

impl History {
    /// Whoever is granted a DUT was the first of its class at that moment: none of a higher priority waited, and none of the same priority
    /// that had come before. The error names the first one who was passed over.
    pub fn check_order(&self) -> anyhow::Result<()> {
        let classes: BTreeSet<_> = self.stories.values().map(|story| story.class).collect();
        for class in classes {
            let mut moves = BTreeMap::new();
            for (job, story) in self.stories.iter().filter(|(_, story)| story.class == class) {
                moves.insert(story.requested.context("never requested")?.0, (*job, Move::Comes));
                moves.insert(story.granted.context("never granted")?.0, (*job, Move::IsGranted));
            }
            let mut waiting = BTreeSet::new();
            for (number, (job, what)) in moves {
                let story = &self.stories[&job];
                let requested = story.requested.map_or(0, |(number, _)| number);
                let key = (-story.priority, requested, job);
                match what {
                    Move::Comes => drop(waiting.insert(key)),
                    Move::IsGranted => {
                        let first = waiting.pop_first();
                        ensure!(
                            first == Some(key),
                            "event {number}: job {job} was granted before {first:?} of class {class}"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// No DUT is held twice at the same time.
    pub fn check_holders(&self) -> anyhow::Result<()> {
        for (dut, holds) in self.holds()? {
            for pair in holds.windows(2) {
                let (first, second) = (&self.stories[&pair[0]], &self.stories[&pair[1]]);
                ensure!(first.freed < second.granted, "jobs {} and {} held {dut} at the same time", pair[0], pair[1]);
            }
        }
        Ok(())
    }

    /// The longest wait from the request to the grant in seconds, by priority, the highest first.
    pub fn longest_waits(&self) -> Vec<(i64, f64)> {
        let mut longest: BTreeMap<i64, f64> = BTreeMap::new();
        for story in self.stories.values() {
            let (Some(requested), Some(granted)) = (story.requested, story.granted) else { continue };
            let longest = longest.entry(story.priority).or_default();
            *longest = longest.max(granted.1 - requested.1);
        }
        longest.into_iter().rev().collect()
    }

    /// Delays where the next job on a DUT was waiting already when the DUT became free.
    pub fn delays(&self) -> anyhow::Result<Delays> {
        let mut delays = Delays::default();
        for holds in self.holds()?.into_values() {
            for pair in holds.windows(2) {
                let (before, next) = (&self.stories[&pair[0]], &self.stories[&pair[1]]);
                let (freed, requested) =
                    (before.freed.context("not freed")?.1, next.requested.context("never asked")?.1);
                let (granted, active) =
                    (next.granted.context("not granted")?.1, next.active.context("never active")?.1);
                let Some(powered_on) = self.powered_on.get(&pair[1]).filter(|_| requested <= freed) else { continue };
                delays.granted.push((granted - freed) * 1e3);
                delays.active.push((active - granted) * 1e3);
                delays.powered_on.push((powered_on - active) * 1e3);
                delays.whole.push((powered_on - freed) * 1e3);
            }
        }
        Ok(delays)
    }

    /// The jobs of each DUT, in the order of their grants.
    fn holds(&self) -> anyhow::Result<BTreeMap<&str, Vec<u64>>> {
        let mut holds: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
        for (job, story) in &self.stories {
            let granted = story.granted.with_context(|| format!("job {job} was never granted a DUT"))?;
            holds.entry(&story.dut).or_default().push((granted.0, *job));
        }
        let in_order = |mut jobs: Vec<(u64, u64)>| {
            jobs.sort_unstable();
            jobs.into_iter().map(|(_, job)| job).collect()
        };
        Ok(holds.into_iter().map(|(dut, jobs)| (dut, in_order(jobs))).collect())
    }
}

/// What happens to a queue.
#[derive(Clone, Copy)]
enum Move {
    Comes,
    IsGranted,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jobs of one class: priority, number of the request, number of the grant; each on the DUT named.
    fn history(jobs: &[(i64, u64, u64, &str)]) -> History {
        let story = |&(priority, requested, granted, dut): &(i64, u64, u64, &str)| Story {
            class: 0,
            priority,
            dut: dut.to_owned(),
            requested: Some((requested, requested as f64)),
            granted: Some((granted, granted as f64)),
            active: Some((granted, granted as f64)),
            freed: Some((granted + 2, granted as f64 + 0.5)),
        };
        let stories: BTreeMap<_, _> = (1..).zip(jobs.iter().map(story)).collect();
        let powered_on = stories.keys().map(|job| (*job, 100.0)).collect();
        History { stories, powered_on }
    }

    #[test]
    fn who_comes_later_may_only_be_granted_first_with_a_higher_priority() {
        history(&[(0, 1, 2, "a"), (0, 3, 30, "a"), (1, 4, 20, "a")]).check_order().unwrap();
        let error = history(&[(0, 1, 2, "a"), (0, 3, 30, "a"), (0, 4, 20, "a")]).check_order().unwrap_err();
        assert_eq!(error.to_string(), "event 20: job 3 was granted before Some((0, 3, 2)) of class 0");
    }

    #[test]
    fn a_dut_that_is_granted_before_it_is_free_is_found_out() {
        history(&[(0, 1, 10, "a"), (0, 2, 13, "a")]).check_holders().unwrap();
        let error = history(&[(0, 1, 10, "a"), (0, 2, 11, "a")]).check_holders().unwrap_err();
        assert_eq!(error.to_string(), "jobs 1 and 2 held a at the same time");
    }

    #[test]
    fn the_first_jobs_hold_their_duts_so_long_that_these_become_free_one_after_the_other() {
        let crowd = Crowd { duts: 4, classes: 2, jobs: 6, hold_s: 9, first_hold_s: [10, 30] };
        let holds: Vec<_> = (0..6).map(|number| crowd.hold_s_of(number)).collect();
        assert_eq!(holds, [10, 15, 20, 25, 9, 9]);
        assert!(crowd.job(1).contains("cmdline: [wharf.hold=15]"));
    }

    #[test]
    fn a_dut_that_nobody_waited_for_has_no_delay() {
        let delays = history(&[(0, 1, 10, "a"), (0, 2, 20, "a"), (0, 25, 30, "a")]).delays().unwrap();
        assert_eq!(delays.granted.figures(), [9500.0]);
        assert_eq!(delays.whole.figures(), [89500.0]);
    }
}
