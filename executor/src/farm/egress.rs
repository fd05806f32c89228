//! Where a job's DUT may connect to: what is refused when the job is submitted, and what is written down when it is tried.
//!
//! ```text
//!  job: proxy.allowed_endpoints ─┬─ mistakes ──► refused, where no rule of the farm could ever allow one of them
//!                                └─ of ────────► gateway::egress::Egress, of the job's and the farm's rules
//!  the gateway refuses a connection ──► the job's log, and AuditTrail ──► audit.log
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use gateway::egress::{Egress, Rule};
use gateway::namespace::{AccessEvent, Protocol};
use job_schema::job::Job;
use job_schema::problem::Problem;

use crate::callers::audit::{Audit, Line};
use crate::config::ProxyConfig;

/// What of the job's places this farm never lets anybody to.
pub(super) fn mistakes(job: &Job, farm: &ProxyConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    for endpoint in &job.proxy {
        let (what, hint) = match Rule::of(endpoint) {
            Err(why) => (format!("`{endpoint}` is no place to connect to: {why}"), "write `host:port`".to_owned()),
            Ok(rule) if farm.allowed.iter().any(|allowed| allowed.meets(&rule)) => continue,
            Ok(_) => (format!("this farm does not let its DUTs connect to {endpoint}"), allowed(farm)),
        };
        problems.push(Problem::new(what).about("allowed_endpoints").hint(&hint));
    }
    problems
}

fn allowed(farm: &ProxyConfig) -> String {
    /// As many as fit a line or two.
    const SHOWN: usize = 8;
    let shown: Vec<_> = farm.allowed.iter().take(SHOWN).map(Rule::to_string).collect();
    match farm.allowed.len() {
        0 => {
            "its administrator has to name it in the farm file's `proxy.allowed_endpoints`, which are empty".to_owned()
        }
        count if count > SHOWN => format!("it lets them to {} and {} more", shown.join(", "), count - SHOWN),
        _ => format!("it lets them to {}", shown.join(", ")),
    }
}

/// Where the job's DUT may connect to. What is wrong with its places was told by [`mistakes`].
pub(super) fn of(job: &Job, farm: &ProxyConfig) -> Egress {
    Egress {
        job: job.proxy.iter().filter_map(|endpoint| Rule::of(endpoint).ok()).collect(),
        farm: farm.allowed.clone(),
        private_networks: farm.private_networks.clone(),
    }
}

impl super::Farm {
    /// Has what its DUTs are refused written down there, from the first time on that it is said.
    pub fn audits_to(&self, log: &Arc<Audit>) {
        let _ = self.audit.set(Arc::clone(log));
    }
}

/// Where refusals are written down, once there is a log.
pub(super) type AuditLog = Arc<OnceLock<Arc<Audit>>>;

/// The audit log, for what one job's DUT is refused.
pub(super) struct AuditTrail {
    pub log: AuditLog,
    pub who: String,
    pub project: String,
    pub written: AtomicUsize,
}

impl AuditTrail {
    /// For the DUT of `who`, in the name of `project`.
    pub(super) fn new(log: &AuditLog, who: String, project: &str) -> AuditTrail {
        AuditTrail { log: Arc::clone(log), who, project: project.to_owned(), written: AtomicUsize::new(0) }
    }

    /// Writes a line if this is a connection that was refused.
    pub(super) fn note(&self, event: &AccessEvent) {
        let AccessEvent::Refused { protocol, name, peer, refusal } = event else { return };
        let what = match protocol {
            Protocol::Proxy => format!("connect to {name}"),
            Protocol::Registry => format!("pull {name}"),
            Protocol::Fastboot | Protocol::Http | Protocol::Nbd | Protocol::Tftp => return,
        };
        self.write(&what, &peer.to_string(), &refusal.to_string());
    }

    /// Writes a line: what was refused to whom, and why.
    pub(super) fn write(&self, what: &str, from: &str, why: &str) {
        // 100 lines of a job: a DUT that tries in a loop must not push out what others did.
        const LINES_MAX: usize = 100;
        if self.written.fetch_add(1, Ordering::Relaxed) < LINES_MAX
            && let Some(log) = self.log.get()
        {
            log.write(&self.line(what, from, why));
        }
    }

    fn line(&self, what: &str, from: &str, why: &str) -> Line {
        Line {
            at: jiff::Timestamp::now(),
            who: self.who.clone(),
            project: (!self.project.is_empty()).then(|| self.project.clone()),
            role: None,
            from: from.to_owned(),
            what: what.to_owned(),
            status: 403,
            why: Some(why.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::namespace::Refusal;

    #[test]
    fn of_a_dut_that_tries_in_a_loop_a_hundred_refusals_are_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let log = AuditLog::default();
        let trail = AuditTrail::new(&log, "job 7".into(), "mesa");
        let name = "169.254.169.254:80".to_owned();
        let refusal = Refusal::NotLedOut { reason: "no".into() };
        let event = AccessEvent::Refused { protocol: Protocol::Proxy, name, peer: [10, 0, 0, 2].into(), refusal };
        assert!(log.set(Arc::new(Audit::of(folder.path()))).is_ok());
        trail.note(&AccessEvent::Progress);
        (0..150).for_each(|_| trail.note(&event));
        let text = std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
        assert_eq!(text.lines().count(), 100);
        let expected = r#""who":"job 7","project":"mesa","from":"10.0.0.2","what":"connect to 169.254.169.254:80","status":403,"why":"no"}"#;
        assert!(text.lines().all(|line| line.ends_with(expected)), "{text}");
    }
}
