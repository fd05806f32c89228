//! One sentence per job event, the same on CI-tron's console, in `wharf run` and in the log.

use crate::job_log::{JobEvent, Severity};

/// What a person reads; several lines where there are several reasons. `None` for the DUT's own bytes.
pub(crate) fn sentence(event: &JobEvent) -> Option<String> {
    Some(match event {
        JobEvent::Queued { place, reasons, estimate } => queued(*place, reasons, *estimate),
        JobEvent::Owned => "The job lives as long as its submitter's connection".into(),
        JobEvent::Leased { dut } => format!("Got the DUT {dut}"),
        JobEvent::SetupStarted => "Setting up: fetching and publishing the artifacts".into(),
        JobEvent::Download { url, bytes, total } => download(url, *bytes, *total),
        JobEvent::SetupComplete => "Setup complete: everything the DUT may ask for is published".into(),
        JobEvent::SetupFailed { reason } => format!("The setup failed: {reason}"),
        JobEvent::PowerCycling { boot } => format!("Boot {boot}: switching the DUT off, then on"),
        JobEvent::PoweredOn { boot } => format!("Boot {boot}: the DUT has power"),
        JobEvent::PoweredOff => "The DUT is off".into(),
        JobEvent::FirmwareBooted { seconds } => {
            format!("The firmware gave its first sign of life after {seconds:.1} s")
        }
        JobEvent::Access { text, .. } => format!("Access: {text}"),
        JobEvent::PatternMatched { patterns, line } => {
            format!("Matched {} in the line: {}", patterns.join(", "), line.trim_end())
        }
        JobEvent::TimeoutHit { name, seconds, retries, retried, is_retrying } => {
            let next = if *is_retrying { "booting again" } else { "no retry left" };
            format!("The timeout {name} ({seconds} s) expired: {next} ({retried} of {retries} retries used)")
        }
        JobEvent::Console { .. } => return None,
        JobEvent::ConsoleAway { reason } => {
            format!("The console is away ({reason}): the clocks that it drives stand still until it is back")
        }
        JobEvent::ConsoleBack { seconds } => {
            format!("The console is back after {seconds:.1} s; what the DUT said meanwhile is lost")
        }
        JobEvent::EnergyMeasured { joules, seconds } => energy(*joules, *seconds),
        JobEvent::TestResults { file, tests, failures, errors, skipped, .. } => {
            format!("Test results of {file}: {tests} tests, {failures} failed, {errors} broken, {skipped} skipped")
        }
        JobEvent::Note { text, .. } => text.clone(),
        JobEvent::TeardownStarted => "Tearing down: switching the DUT off, withdrawing its artifacts".into(),
        JobEvent::TeardownComplete => "Tear-down complete: the DUT is free".into(),
        JobEvent::Ended { verdict } => format!("Verdict: {verdict}"),
    })
}

/// How loud the sentence is.
pub(crate) fn severity(event: &JobEvent) -> Severity {
    match event {
        JobEvent::SetupFailed { .. } => Severity::Error,
        JobEvent::TimeoutHit { .. } | JobEvent::ConsoleAway { .. } | JobEvent::ConsoleBack { .. } => Severity::Warning,
        JobEvent::Note { severity, .. } => *severity,
        _ => Severity::Info,
    }
}

/// What was drawn, and how much that is of power.
pub(crate) fn energy(joules: f64, seconds: f64) -> String {
    format!("Its outlet measured {joules:.0} J in {seconds:.0} s: {:.1} W", joules / seconds.max(1.0))
}

fn queued(place: usize, reasons: &[String], estimate: Option<jiff::Timestamp>) -> String {
    let mut text = format!("Waiting for a DUT: place {place} in the queue");
    if let Some(at) = estimate {
        text.push_str(&format!("; its turn should come at about {}", at.strftime("%H:%M:%S UTC")));
    }
    for reason in reasons {
        text.push_str("\n  ");
        text.push_str(reason);
    }
    text
}

fn download(url: &str, bytes: u64, total: Option<u64>) -> String {
    match total {
        Some(total) if total == bytes => format!("Downloaded {url} ({})", size(bytes)),
        Some(total) => format!("Downloading {url}: {} of {}", size(bytes), size(total)),
        None => format!("Downloading {url}: {} so far", size(bytes)),
    }
}

/// A size for a person: `12.3 MiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_job_reads_its_place_and_the_reason_per_candidate() {
        let event = |estimate| JobEvent::Queued { place: 2, reasons: vec!["dut-1: runs job 7".into()], estimate };
        assert_eq!(sentence(&event(None)).unwrap(), "Waiting for a DUT: place 2 in the queue\n  dut-1: runs job 7");
        let at = "2026-11-20T23:35:13Z".parse().unwrap();
        assert_eq!(
            sentence(&event(Some(at))).unwrap(),
            "Waiting for a DUT: place 2 in the queue; its turn should come at about 23:35:13 UTC\n  dut-1: runs job 7"
        );
    }

    #[test]
    fn a_download_reads_in_units_for_a_person() {
        let event = |bytes, total| JobEvent::Download { url: "http://a/k".into(), bytes, total };
        assert_eq!(sentence(&event(100, None)).unwrap(), "Downloading http://a/k: 100 bytes so far");
        assert_eq!(sentence(&event(1536, Some(3072))).unwrap(), "Downloading http://a/k: 1.5 KiB of 3.0 KiB");
        assert_eq!(sentence(&event(3 << 20, Some(3 << 20))).unwrap(), "Downloaded http://a/k (3.0 MiB)");
    }

    #[test]
    fn a_timeout_reads_whether_there_is_another_boot() {
        let event =
            JobEvent::TimeoutHit { name: "overall".into(), seconds: 5.0, retries: 0, retried: 1, is_retrying: false };
        assert_eq!(sentence(&event).unwrap(), "The timeout overall (5 s) expired: no retry left (1 of 0 retries used)");
    }
}
