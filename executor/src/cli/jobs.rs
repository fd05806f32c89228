//! `wharf jobs`: what a server ran, runs and will run.

use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};

use super::client::Server;
use super::view::print;
use crate::api::wire::{JobWire, JobsWire};

/// Arguments of `wharf jobs`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the jobs, the newest first.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let jobs: JobsWire = Server::find(server)?.get("/api/v1/jobs").await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&jobs)?)?;
    } else {
        print(&drawn(&jobs.jobs))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn drawn(jobs: &[JobWire]) -> String {
    let mut table = plain_table();
    table.set_header(["Job", "State", "Verdict", "DUT", "Submitted", "Name", "Submitter"]);
    for job in jobs {
        table.add_row([
            job.id.clone(),
            state(job).to_owned(),
            job.verdict.as_ref().map(|verdict| verdict.status.to_string()).unwrap_or_default(),
            job.dut.clone().unwrap_or_default(),
            time(job.submitted),
            job.name.clone(),
            job.submitter.clone(),
        ]);
    }
    table.trim_fmt()
}

/// A job's state in a word.
pub(super) fn state(job: &JobWire) -> &'static str {
    use crate::farm::JobState;
    match job.state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Ended => "ended",
    }
}

/// A time of the day in a table, in UTC.
pub(super) fn time(at: jiff::Timestamp) -> String {
    at.strftime("%F %T").to_string()
}

/// A table without lines: it can be cut and grepped.
pub(super) fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // A serial line has no columns to fit into: its terminal says 0.
    if table.width() == Some(0) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::farm::JobState;

    #[test]
    fn a_running_job_is_one_line() {
        let job = JobWire {
            roles: Vec::new(),
            accesses: Vec::new(),
            id: "7".into(),
            name: "hello.yml".into(),
            submitter: "me".into(),
            submitted: "2026-11-20T23:35:13Z".parse().unwrap(),
            state: JobState::Running,
            dut: Some("farm-sim-1".into()),
            verdict: None,
        };
        let table = drawn(&[job]);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["7", "running", "farm-sim-1", "2026-11-20", "23:35:13", "hello.yml", "me"]);
    }
}
