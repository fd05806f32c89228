//! A job's log as forges show it: what its DUT said, and a line for each thing that the farm did, in sections that fold. ◆
//!
//! ```text
//!  events ─► [queue] ─► [setup] ─► [boot 1] … [boot n] ─► [tear-down] ─► the verdict
//!                                     └ the console as it came
//! ```
//! It is made of the events and of nothing else: made again after a restart it is the same, byte for byte, and goes on where the server
//! has it. No section is folded at first: a failure must be seen without a click.

use crate::job_log::{JobEvent, Record, Severity};
use crate::sentence;

/// Red, yellow, cyan: ECMA-48 §8.3.117.
const ERROR: &str = "\x1b[0;31m";
const WARNING: &str = "\x1b[0;33m";
const PLAIN: &str = "\x1b[0;36m";
const END: &str = "\x1b[0m";

/// Whether the server folds sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sections {
    /// It does, by GitLab's marks.
    Folded,
    /// It does, by those of Actions: `##[group]` and `##[endgroup]`.
    Groups,
    /// It would show their marks.
    Unknown,
}

/// Writes a job's log.
pub(super) struct Teller {
    sections: Sections,
    open: Option<String>,
    /// A section that what runs on the DUT closes by itself, as boot2container does.
    for_the_dut: Option<&'static str>,
    ends_with: u8,
}

impl Teller {
    /// `job` is the job's text: boot2container closes a section that nobody but the submitter can open.
    pub(super) fn new(sections: Sections, job: &str) -> Teller {
        Teller {
            sections,
            open: None,
            for_the_dut: job.contains("b2c.").then_some("b2c_kernel_boot"),
            ends_with: b'\n',
        }
    }

    /// A line of the farm's own.
    pub(super) fn say(&mut self, severity: Severity, text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        self.line(severity, text, &mut out);
        out
    }

    /// What an event adds to the log; `console` are the bytes of a [`JobEvent::Console`].
    pub(super) fn tell(&mut self, record: &Record, console: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let at = record.at.as_second();
        match &record.event {
            JobEvent::Console { .. } => {
                out.extend_from_slice(console);
                self.ends_with = console.last().copied().unwrap_or(self.ends_with);
                return out;
            }
            JobEvent::Queued { .. } => self.section("wharf_queue", "Waiting for a DUT", at, &mut out),
            JobEvent::SetupStarted => self.section("wharf_setup", "Setting up", at, &mut out),
            JobEvent::PowerCycling { boot } => {
                self.section(&format!("wharf_boot_{boot}"), &format!("Boot {boot}"), at, &mut out);
            }
            JobEvent::TeardownStarted => self.section("wharf_teardown", "Tearing down", at, &mut out),
            JobEvent::Leased { .. } | JobEvent::Ended { .. } => self.close(at, &mut out),
            _ => {}
        }
        if is_told(&record.event)
            && let Some(text) = sentence::sentence(&record.event)
        {
            self.line(sentence::severity(&record.event), &text, &mut out);
        }
        if matches!(record.event, JobEvent::PoweredOn { .. })
            && self.sections == Sections::Folded
            && let Some(name) = self.for_the_dut
        {
            self.mark(&format!("\x1b[0Ksection_start:{at}:{name}\r\x1b[0KThe kernel boots"), &mut out);
        }
        out
    }

    fn section(&mut self, name: &str, header: &str, at: i64, out: &mut Vec<u8>) {
        if self.open.as_deref() == Some(name) {
            return;
        }
        self.close(at, out);
        let mark = match self.sections {
            Sections::Folded => format!("\x1b[0Ksection_start:{at}:{name}\r\x1b[0K{PLAIN}{header}{END}"),
            Sections::Groups => format!("##[group]{header}"),
            Sections::Unknown => return,
        };
        self.mark(&mark, out);
        self.open = Some(name.to_owned());
    }

    fn close(&mut self, at: i64, out: &mut Vec<u8>) {
        match self.open.take() {
            Some(_) if self.sections == Sections::Groups => self.mark("##[endgroup]", out),
            Some(name) => self.mark(&format!("\x1b[0Ksection_end:{at}:{name}\r\x1b[0K"), out),
            None => {}
        }
    }

    fn line(&mut self, severity: Severity, text: &str, out: &mut Vec<u8>) {
        let colour = match severity {
            Severity::Error => ERROR,
            Severity::Warning => WARNING,
            Severity::Debug | Severity::Info => PLAIN,
        };
        let lines: Vec<_> = text.lines().map(|line| format!("{colour}wharf: {line}{END}")).collect();
        self.mark(&lines.join("\n"), out);
    }

    /// On a line of its own, also where the console stopped in the middle of one.
    fn mark(&mut self, text: &str, out: &mut Vec<u8>) {
        let last = out.last().copied().unwrap_or(self.ends_with);
        if last != b'\n' {
            out.push(b'\n');
        }
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
        self.ends_with = b'\n';
    }
}

/// Whether a line of the log is spent on it. Accesses are hundreds in a boot; they are in `wharf/events.jsonl`.
fn is_told(event: &JobEvent) -> bool {
    match event {
        JobEvent::Access { access: Some(access), .. } => access.end != crate::job_log::AccessEnd::Complete,
        JobEvent::Download { bytes, total, .. } => Some(*bytes) == *total,
        JobEvent::Note { severity, .. } => *severity != Severity::Debug,
        JobEvent::Access { access: None, .. } | JobEvent::Owned => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Cause, Status, Verdict};

    fn told(sections: Sections, events: &[(JobEvent, &str)]) -> String {
        let mut teller = Teller::new(sections, "");
        let mut out = teller.say(Severity::Info, "hello");
        for (number, (event, console)) in events.iter().enumerate() {
            let at = jiff::Timestamp::from_second(1000 + number as i64).unwrap();
            let record = Record { number, at, event: event.clone() };
            out.extend(teller.tell(&record, console.as_bytes()));
        }
        String::from_utf8(out).unwrap()
    }

    fn events() -> Vec<(JobEvent, &'static str)> {
        let verdict = Verdict { status: Status::Pass, cause: Cause::Test, summary: "done".into(), evidence: vec![] };
        vec![
            (JobEvent::PowerCycling { boot: 1 }, ""),
            (JobEvent::Console { offset: 0, length: 9 }, "Linux\r\n$ "),
            (JobEvent::TeardownStarted, ""),
            (JobEvent::Ended { verdict }, ""),
        ]
    }

    #[test]
    fn each_part_of_a_job_is_a_section_and_the_verdict_stands_below_all() {
        let expected = "\x1b[0;36mwharf: hello\x1b[0m\n\
            \x1b[0Ksection_start:1000:wharf_boot_1\r\x1b[0K\x1b[0;36mBoot 1\x1b[0m\n\
            \x1b[0;36mwharf: Boot 1: switching the DUT off, then on\x1b[0m\n\
            Linux\r\n$ \n\
            \x1b[0Ksection_end:1002:wharf_boot_1\r\x1b[0K\n\
            \x1b[0Ksection_start:1002:wharf_teardown\r\x1b[0K\x1b[0;36mTearing down\x1b[0m\n\
            \x1b[0;36mwharf: Tearing down: switching the DUT off, withdrawing its artifacts\x1b[0m\n\
            \x1b[0Ksection_end:1003:wharf_teardown\r\x1b[0K\n\
            \x1b[0;36mwharf: Verdict: PASS (cause: test): done\x1b[0m\n";
        assert_eq!(told(Sections::Folded, &events()), expected);
    }

    #[test]
    fn a_server_that_does_not_fold_gets_no_marks() {
        assert!(!told(Sections::Unknown, &events()).contains("section_"));
    }

    #[test]
    fn actions_have_groups() {
        let log = told(Sections::Groups, &events());
        assert!(log.contains("##[group]Boot 1\n") && log.contains("\n##[endgroup]\n##[group]Tearing down\n"), "{log}");
        assert!(!log.contains("section_"), "{log}");
    }

    #[test]
    fn boot2container_finds_the_section_open_that_it_closes() {
        let mut teller = Teller::new(Sections::Folded, "cmdline: b2c.run=x");
        let at = jiff::Timestamp::from_second(5).unwrap();
        let out = teller.tell(&Record { number: 0, at, event: JobEvent::PoweredOn { boot: 1 } }, b"");
        assert!(String::from_utf8(out).unwrap().contains("section_start:5:b2c_kernel_boot\r"));
    }
}
