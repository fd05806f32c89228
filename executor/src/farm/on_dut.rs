//! What a job or a person does by SSH on a DUT that has booted: the same commands and files as on a host.
//!
//! ```text
//!  the console says `when` ─► a host key is pinned, or was said on the console ─► it answers, and lets the farm's key in
//!     └ until then the session goes on, with its own timeouts                        │
//!  steps, one after the other ─► all done: PASS ─┬─► StepsEnded: the session ends, the power with it
//!                     one of them says no: FAIL ─┘
//! ```
//! The farm's own key logs in, which the job's templates have as `ssh.public_key`: what it boots lets it in. Nothing of it is a secret.

use std::sync::Arc;
use std::time::Duration;

use job_schema::BySsh;
use job_schema::problem::Problem;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::host_use::{Errand, enter};
use super::hosts::Place;
use super::machines::Dut;
use super::steps::{Doing, Ended, On};
use super::{Farm, LeaseError};
use crate::blueprint::host::working_copy::WorkingCopy;
use crate::job_log::{JobEvent, JobLog, Severity};
use crate::session::Event;
use crate::ssh::{HostKey, Login, Origin, SshError};
use crate::verdict::{Cause, Status};

/// Beneath the user's home.
const FOLDER: &str = ".wharf";
/// Between two attempts to log in to a machine that boots.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A line with a key has some 100 bytes; a longer one is looked at in pieces.
const LINE_BYTES_MAX: usize = 4096;
/// Where keys are looked for: the last so many pieces of what the console said, some minutes of a boot.
const PIECES_MAX: usize = 20_000;
/// How long making a folder may take.
const NEED_TIME: Duration = Duration::from_secs(60);

/// How a DUT is logged in to.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    user: String,
    port: u16,
    host_key: Option<HostKey>,
}

/// A DUT, and what is known of how to log in there.
#[derive(Clone)]
pub(super) struct LoginToDut {
    pub dut: Arc<Dut>,
    /// What its console said.
    pub log: Arc<JobLog>,
    pub by: Reached,
    /// What the working copy is called.
    pub copy: String,
    pub stop: CancellationToken,
}

impl Reached {
    pub(super) fn of(by_ssh: &BySsh) -> Reached {
        let host_key = by_ssh.host_key.as_deref().and_then(|text| HostKey::parse(text).ok());
        Reached { user: by_ssh.user.clone(), port: by_ssh.port, host_key }
    }
}

/// A host key that nobody can read.
pub(super) fn mistake(by_ssh: &BySsh) -> Option<Problem> {
    let text = by_ssh.host_key.as_deref()?;
    let why = HostKey::parse(text).err()?;
    let hint = "leave it out where the machine says its keys on its console";
    Some(Problem::new(format!("`{text}` is no host key: {why}")).about("target").hint(hint))
}

/// All of it, to the event that ends the session. Whoever ends the session before drops this.
pub(super) async fn run(doing: Doing, by_ssh: BySsh, events: mpsc::Sender<Event>) {
    let mut evidence = Vec::new();
    let ended = match until_it_is_up(&doing, &by_ssh).await {
        Ok(()) => {
            let never = std::pin::pin!(std::future::pending());
            doing.all(&by_ssh.steps, &mut evidence, never).await
        }
        Err(why) => Err((Status::Incomplete, Cause::Dut, why)),
    };
    let (status, cause, summary) = ended.unwrap_or_else(|end: Ended| end);
    for text in evidence {
        let _ = events.send(Event::Evidence(text)).await;
    }
    let _ = events.send(Event::StepsEnded { status, cause, summary }).await;
}

async fn until_it_is_up(doing: &Doing, by_ssh: &BySsh) -> Result<(), String> {
    let On::Dut(login) = &doing.on else { return Ok(()) };
    let note = |text: String| doing.record.log.append(JobEvent::Note { text, severity: Severity::Info });
    until_power_and_line(&doing.record.log, by_ssh).await?;
    let mut told = String::new();
    loop {
        let place = login.place(&doing.farm).await;
        let answers = match place {
            Ok(place) => place.login.script(&place.copy.need(), NEED_TIME).await.map(|_| place),
            Err(error) => Err(error),
        };
        match answers {
            Ok(place) => {
                note(format!("It lets us in by SSH: {}", place.login));
                return Ok(());
            }
            Err(error @ SshError::WrongKey { .. }) => return Err(error.to_string()),
            Err(error) => {
                if told != error.to_string() {
                    told = error.to_string();
                    note(format!("Not by SSH yet: {told}"));
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Until the DUT has power, and its console has said the line.
async fn until_power_and_line(log: &Arc<JobLog>, by_ssh: &BySsh) -> Result<(), String> {
    let mut follower = log.follow(0);
    let mut line = Vec::new();
    while let Some(record) = follower.next().await {
        match (&record.event, &by_ssh.when) {
            (JobEvent::PoweredOn { .. }, None) => return Ok(()),
            (JobEvent::Console { offset, length }, Some(when)) => {
                let Ok(bytes) = log.console_bytes(*offset, *length) else { continue };
                for byte in bytes {
                    line.push(byte);
                    if byte == b'\n' || line.len() >= LINE_BYTES_MAX {
                        if when.is_match(&line).map_err(|error| error.to_string())? {
                            return Ok(());
                        }
                        line.clear();
                    }
                }
            }
            _ => {}
        }
    }
    Err("the job's log ended before it was up".to_owned())
}

impl LoginToDut {
    /// Where commands and files go.
    pub(super) async fn place(&self, farm: &Farm) -> Result<Place, SshError> {
        let name = self.dut.config.full_name.clone();
        let refused = |what: String| SshError::Refused { host: name.clone(), what };
        let host_keys = match &self.by.host_key {
            Some(key) => vec![key.clone()],
            None => keys_said(&self.log),
        };
        if host_keys.is_empty() {
            let what = "nobody knows its host key: write it into the job's `ssh.host_key`, or let the machine say it on its console, a \
                        line such as `ssh-ed25519 AAAA…`";
            return Err(refused(what.to_owned()));
        }
        let hosts = farm.machines.hosts();
        let (net, config) = (farm.machines.net(), farm.config());
        let socket = move || net.run(TcpSocket::new_v4);
        let login = Login {
            name: name.clone(),
            address: self.dut.address().to_string(),
            port: self.by.port,
            user: self.by.user.clone(),
            key: Arc::new(hosts.keys(&name)?.login()),
            host_keys,
            from: Origin::Socket(Arc::new(socket)),
        };
        let copy = WorkingCopy { folder: FOLDER.to_owned(), farm: config.name.clone(), lease: self.copy.clone() };
        Ok(hosts.place_at(login, copy, self.stop.clone()))
    }
}

impl Farm {
    /// The same under a person's lease on a DUT: `root`, at the usual port, with a host key that it said on its console.
    pub(super) async fn errand_on_dut(&self, id: &str) -> Result<Errand, LeaseError> {
        let (hold, dut, pass) = self.usable(id).await?;
        let log = Arc::clone(&hold.log);
        let (by, stop) =
            (Reached { user: "root".to_owned(), port: 22, host_key: None }, self.machines.hosts().stop_of(&id.into()));
        let login = LoginToDut { dut, log: Arc::clone(&log), by, copy: id.to_owned(), stop };
        let failed = |error: SshError| LeaseError::Failed(error.to_string());
        let place = login.place(self).await.map_err(failed)?;
        let _in_flight = enter(&pass, id).await?;
        place.login.script(&place.copy.need(), NEED_TIME).await.map_err(failed)?;
        Ok(Errand { place, log, _in_flight })
    }
}

/// The host keys that a console has said, the last ones at last.
fn keys_said(log: &JobLog) -> Vec<HostKey> {
    let records = log.records();
    let pieces = &records[records.len().saturating_sub(PIECES_MAX)..];
    let mut said = Vec::new();
    for record in pieces {
        if let JobEvent::Console { offset, length } = record.event {
            said.extend(log.console_bytes(offset, length).unwrap_or_default());
        }
    }
    keys_in(&String::from_utf8_lossy(&said))
}

fn keys_in(text: &str) -> Vec<HostKey> {
    let lines = text.lines().filter(|line| line.contains("ssh-ed25519 AAAA") || line.contains("ecdsa-sha2-nistp"));
    let mut keys: Vec<HostKey> = Vec::new();
    for key in lines.filter_map(|line| HostKey::parse(line).ok()) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys_are_found_in_what_a_console_says() {
        let text = "[   12.3] cloud-init[612]: -----BEGIN SSH HOST KEY KEYS-----\r\n\
                    ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti root@dut\r\n\
                    ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti\r\n\
                    ssh-ed25519 AAAArubbish\r\nssh-rsa AAAAB3NzaC1yc2E\r\n";
        let keys: Vec<_> = keys_in(text).iter().map(ToString::to_string).collect();
        assert_eq!(keys, ["ssh-ed25519 SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ"]);
    }
}
