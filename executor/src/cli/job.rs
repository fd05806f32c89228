//! `wharf job`: one job, looked at or cancelled.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use clap::Subcommand;
use http_body_util::BodyExt;

use super::client::{Server, in_query};
use super::jobs::{plain_table, state};
use super::run::show;
use super::view::{View, print};
use crate::api::wire::JobWire;
use crate::job_log::AccessRecord;

/// Arguments of `wharf job`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// State, DUT, verdict and evidence
    Show {
        /// The job's id
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Everything it said; follows a job that still runs, without owning it
    Log {
        /// The job's id
        id: String,
        /// Only the console's bytes
        #[arg(long)]
        raw: bool,
        /// With --raw: the offset of the first byte
        #[arg(long, default_value_t = 0, requires = "raw")]
        since: u64,
    },
    /// A file that a step on a host has got, to standard output
    File {
        /// The job's id with its role, such as `7-builder`
        id: String,
        /// The file's name
        name: String,
    },
    /// End it: its DUT is switched off and given back
    Cancel {
        /// The job's id
        id: String,
    },
}

/// Does what the verb says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    match arguments.verb {
        Verb::Show { id, json } => {
            let job: JobWire = server.get(&path(&id)).await?;
            let text = if json { serde_json::to_string_pretty(&job)? } else { described(&job) };
            print(&text)?;
        }
        Verb::File { id, name } => raw(&server, &format!("{}/files/{}", path(&id), in_query(&name))).await?,
        Verb::Log { id, raw: true, since } => {
            raw(&server, &format!("{}/log?since={since}&follow=1", path(&id))).await?;
        }
        Verb::Log { id, raw: false, .. } => {
            let mut events = server.events(&format!("{}/events", path(&id))).await?;
            show(&mut events, &mut View::new()).await?;
        }
        Verb::Cancel { id } => {
            let job: JobWire = server.post(&format!("{}/cancel", path(&id)), None, Bytes::new()).await?;
            print(&format!("job {} is being cancelled; `wharf job log {}` follows it", job.id, job.id))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn path(id: &str) -> String {
    format!("/api/v1/jobs/{}", in_query(id))
}

/// Writes what comes to standard output, as it comes.
pub(super) async fn raw(server: &Server, path: &str) -> anyhow::Result<()> {
    let mut body = server.stream(path).await?;
    let mut output = std::io::stdout().lock();
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.context("the connection to the server broke")?.into_data() {
            match output.write_all(&bytes).and_then(|()| output.flush()) {
                // A reader that has seen enough is no error.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
    }
    Ok(())
}

fn described(job: &JobWire) -> String {
    let mut lines = vec![
        format!("job        {}", job.id),
        format!("name       {}", job.name),
        format!("submitter  {}", job.submitter),
        format!("submitted  {}", job.submitted),
        format!("state      {}", state(job)),
    ];
    lines.extend(job.dut.as_ref().map(|dut| format!("DUT        {dut}")));
    if let Some(verdict) = &job.verdict {
        lines.push(format!("verdict    {verdict}"));
        lines.extend(verdict.evidence.iter().map(|line| format!("           - {line}")));
    }
    if !job.accesses.is_empty() {
        lines.push("accesses".to_owned());
        lines.push(accesses(&job.accesses));
    }
    for role in &job.roles {
        lines.push(format!("\n{}", described(role)));
    }
    lines.join("\n")
}

/// What the DUT read and was refused.
fn accesses(list: &[AccessRecord]) -> String {
    let mut table = plain_table();
    table.set_header(["", "PROTOCOL", "NAME", "BYTES", "TIME", "RATE", "END", "FROM"]);
    for access in list {
        let AccessRecord { protocol, name, peer, bytes, seconds, end, reason } = access;
        let time = seconds.map_or(String::new(), |seconds| format!("{seconds:.2} s"));
        // Below a millisecond a rate says more of the clock than of the link.
        let rate = seconds.filter(|seconds| *seconds >= 0.001).map(|seconds| *bytes as f64 / seconds / 1e6);
        let rate = rate.map_or(String::new(), |rate| format!("{rate:.1} MB/s"));
        let end = reason.as_ref().map_or(end.name().to_owned(), |reason| format!("{}: {reason}", end.name()));
        table.add_row(["", protocol, name, &bytes.to_string(), &time, &rate, &end, peer]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::farm::JobState;
    use crate::job_log::AccessEnd;
    use crate::verdict::{Cause, Status, Verdict};

    #[test]
    fn a_job_is_described_with_its_verdict_and_evidence() {
        let job = JobWire {
            roles: Vec::new(),
            accesses: Vec::new(),
            id: "7".into(),
            name: "hello.yml".into(),
            submitter: "me".into(),
            submitted: "2026-11-20T23:35:13Z".parse().unwrap(),
            state: JobState::Ended,
            dut: Some("farm-sim-1".into()),
            verdict: Some(Verdict {
                status: Status::Pass,
                cause: Cause::Test,
                summary: "job_success matched".into(),
                evidence: vec!["power on".into()],
            }),
        };
        let expected = "\
job        7
name       hello.yml
submitter  me
submitted  2026-11-20T23:35:13Z
state      ended
DUT        farm-sim-1
verdict    PASS (cause: test): job_success matched
           - power on";
        assert_eq!(described(&job), expected);
    }
    #[test]
    fn accesses_are_a_table_with_their_rate_and_why_they_ended() {
        let access = |name: &str, seconds, end, reason: Option<&str>| AccessRecord {
            protocol: "HTTP".into(),
            name: name.into(),
            peer: "10.0.0.2".into(),
            bytes: 3_000_000,
            seconds,
            end,
            reason: reason.map(str::to_owned),
        };
        let list = [
            access("/kernel", Some(1.5), AccessEnd::Complete, None),
            access(
                "/secret",
                None,
                AccessEnd::Refused,
                Some("already read 1 times in this boot (lifetime.access_count)"),
            ),
        ];
        let table = accesses(&list);
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["HTTP", "/kernel", "3000000", "1.50", "s", "2.0", "MB/s", "complete", "10.0.0.2"]);
        assert!(table.contains("refused: already read 1 times in this boot (lifetime.access_count)"), "{table}");
    }
}
