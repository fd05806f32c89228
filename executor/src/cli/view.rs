//! Draws a job for the person who waits for it: the DUT's bytes as they are, everything else as lines beside them.
//!
//! ```text
//!  standard output   the console, byte for byte, nothing else: it can be piped
//!  standard error    one line per event; on a terminal dim, with a bar per download and a clock while the DUT boots
//! ```

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::job_log::{JobEvent, JobLog, Record, Severity};
use crate::sentence::{sentence, severity};
use crate::verdict::Verdict;

/// Bars at once; a job with more artifacts shows its further downloads as lines.
const BARS_MAX: usize = 16;

/// The clock's tick while the DUT boots.
const TICK: Duration = Duration::from_millis(100);

/// Shows the events of one job.
pub struct View {
    errors: Errors,
    bars: MultiProgress,
    downloads: BTreeMap<String, ProgressBar>,
    boot: Option<ProgressBar>,
    console: Place,
}

/// What standard error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errors {
    Terminal,
    Plain,
}

/// Where the console's cursor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    LineStart,
    MidLine,
}

impl View {
    /// A view on this process's standard output and error.
    pub fn new() -> View {
        let errors = if io::stderr().is_terminal() { Errors::Terminal } else { Errors::Plain };
        View { errors, bars: MultiProgress::new(), downloads: BTreeMap::new(), boot: None, console: Place::LineStart }
    }

    /// Shows a record whose console bytes are in `log`.
    pub fn show_from(&mut self, record: &Record, log: &JobLog) -> io::Result<()> {
        match record.event {
            JobEvent::Console { offset, length } => self.show(record, &log.console_bytes(offset, length)?),
            _ => self.show(record, b""),
        }
    }

    /// Shows a record; `console` holds the bytes of a [`JobEvent::Console`].
    pub fn show(&mut self, record: &Record, console: &[u8]) -> io::Result<()> {
        match &record.event {
            JobEvent::Console { .. } => return self.console(console),
            JobEvent::Download { url, bytes, total } => return self.download(record, url, *bytes, *total),
            JobEvent::PoweredOn { boot } => self.boot_begins(*boot),
            JobEvent::Ended { verdict } => {
                self.finish();
                return self.verdict(verdict);
            }
            JobEvent::PoweredOff | JobEvent::TeardownStarted | JobEvent::TimeoutHit { .. } => self.boot_ends(),
            JobEvent::Queued { .. }
            | JobEvent::Owned
            | JobEvent::Leased { .. }
            | JobEvent::SetupStarted
            | JobEvent::SetupComplete
            | JobEvent::SetupFailed { .. }
            | JobEvent::PowerCycling { .. }
            | JobEvent::FirmwareBooted { .. }
            | JobEvent::Access { .. }
            | JobEvent::PatternMatched { .. }
            | JobEvent::ConsoleAway { .. }
            | JobEvent::ConsoleBack { .. }
            | JobEvent::EnergyMeasured { .. }
            | JobEvent::TestResults { .. }
            | JobEvent::Note { .. }
            | JobEvent::TeardownComplete => {}
        }
        self.event(record)
    }

    /// Removes what moves; call it before anything else is printed.
    pub fn finish(&mut self) {
        self.boot_ends();
        for (_, bar) in std::mem::take(&mut self.downloads) {
            bar.finish_and_clear();
        }
    }

    fn console(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.boot_ends();
        let mut output = io::stdout().lock();
        output.write_all(bytes)?;
        output.flush()?;
        if let Some(last) = bytes.last() {
            self.console = if *last == b'\n' { Place::LineStart } else { Place::MidLine };
        }
        Ok(())
    }

    fn event(&mut self, record: &Record) -> io::Result<()> {
        let Some(text) = sentence(&record.event) else { return Ok(()) };
        if severity(&record.event) == Severity::Debug {
            return Ok(());
        }
        self.line(&styled(self.errors, severity(&record.event), &text))
    }

    fn download(&mut self, record: &Record, url: &str, bytes: u64, total: Option<u64>) -> io::Result<()> {
        let is_complete = total == Some(bytes);
        if is_complete || self.errors == Errors::Plain || !self.has_room_for(url) {
            if let Some(bar) = self.downloads.remove(url) {
                bar.finish_and_clear();
            }
            // Where nothing moves, only the end of a download is worth a line.
            return if is_complete { self.event(record) } else { Ok(()) };
        }
        let bars = &self.bars;
        let bar = self.downloads.entry(url.to_owned()).or_insert_with(|| bars.add(download_bar(url)));
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(bytes);
        Ok(())
    }

    fn has_room_for(&self, url: &str) -> bool {
        self.downloads.contains_key(url) || self.downloads.len() < BARS_MAX
    }

    fn boot_begins(&mut self, boot: u32) {
        self.boot_ends();
        if self.errors == Errors::Terminal {
            let bar = self
                .bars
                .add(ProgressBar::new_spinner().with_message(format!("boot {boot}: no word on the console yet")));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            self.boot = Some(bar);
        }
    }

    fn boot_ends(&mut self) {
        if let Some(bar) = self.boot.take() {
            bar.finish_and_clear();
        }
    }

    fn verdict(&mut self, verdict: &Verdict) -> io::Result<()> {
        for line in verdict_lines(verdict) {
            self.line(&line)?;
        }
        Ok(())
    }

    /// One line of standard error, never in the middle of a line of the DUT's when both go to the same terminal.
    fn line(&mut self, text: &str) -> io::Result<()> {
        if self.console == Place::MidLine && self.errors == Errors::Terminal && io::stdout().is_terminal() {
            self.console = Place::LineStart;
            io::stdout().lock().write_all(b"\r\n")?;
        }
        self.bars.suspend(|| writeln!(io::stderr().lock(), "{text}"))
    }
}

/// Prints an answer on standard output. A reader that has seen enough (`wharf jobs | head`) is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Tells the person something, beside the answer. Who closed standard error wants to hear nothing.
pub(super) fn say(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn download_bar(url: &str) -> ProgressBar {
    let name = url.rsplit('/').find(|piece| !piece.is_empty()).unwrap_or(url);
    let bar = ProgressBar::new(0).with_message(name.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg:24!} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar
}

/// Dim, so that the console stands out; warnings yellow, errors red; plain where no terminal reads it.
fn styled(errors: Errors, severity: Severity, text: &str) -> String {
    let code = match (errors, severity) {
        (Errors::Plain, _) => return text.to_owned(),
        (Errors::Terminal, Severity::Debug | Severity::Info) => "2",
        (Errors::Terminal, Severity::Warning) => "33",
        (Errors::Terminal, Severity::Error) => "31",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

fn verdict_lines(verdict: &Verdict) -> Vec<String> {
    let mut lines = vec![format!("{verdict}")];
    lines.extend(verdict.evidence.iter().map(|line| format!("  - {line}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Cause, Status};

    #[test]
    fn a_verdict_is_told_with_its_evidence() {
        let verdict = Verdict {
            status: Status::Fail,
            cause: Cause::Test,
            summary: "job_success never matched".into(),
            evidence: vec!["power on read back".into(), "http /kernel: complete".into()],
        };
        let expected =
            ["FAIL (cause: test): job_success never matched", "  - power on read back", "  - http /kernel: complete"];
        assert_eq!(verdict_lines(&verdict), expected);
    }

    #[test]
    fn colours_are_for_terminals_only() {
        assert_eq!(styled(Errors::Plain, Severity::Error, "x"), "x");
        assert_eq!(styled(Errors::Terminal, Severity::Info, "x"), "\u{1b}[2mx\u{1b}[0m");
    }
}
