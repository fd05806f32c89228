//! What of what a machine boots from it has fetched: evidence where it stalls, and the sign that the servers' part of a boot is over.
//!
//! ```text
//!  boot plan ─► parts: kernel, initramfs, dtb, each with the names that it is served by
//!  Opened, Resumed ─► last: "HTTP /_/job/kernel, not to its end"
//!  Ended           ─► last: "HTTP /_/job/kernel, whole" · "…, broken off after 512 bytes"; the part is there
//!                      └─► Fetches { last, missing } ─► the session
//! ```
//! A machine that is given its boot image, by fastboot, boots from that one part.

use std::sync::{Mutex, MutexGuard, PoisonError};

use gateway::namespace::{AccessEvent, Name, Origin, Outcome, Protocol};
use job_schema::job::Artifact;

use crate::boot::{BootPlan, Source};
use crate::session::Fetches;

/// What one machine has fetched in this boot.
#[derive(Default)]
pub(super) struct Fetching(Mutex<State>);

#[derive(Default)]
struct State {
    parts: Vec<Part>,
    last: Option<(u64, String)>,
}

/// Something that is booted from.
struct Part {
    label: String,
    names: Vec<(Protocol, String)>,
    is_there: bool,
}

impl Fetching {
    /// A boot with this plan begins.
    pub(super) fn begin(&self, plan: &BootPlan) -> Fetches {
        let mut state = self.lock();
        *state = State { parts: parts_of(plan), last: None };
        state.fetches()
    }

    /// A boot with this plan goes on; of what it boots from so much is missing.
    pub(super) fn go_on(&self, plan: &BootPlan, missing: &[String]) {
        let mut parts = parts_of(plan);
        parts.iter_mut().for_each(|part| part.is_there = !missing.contains(&part.label));
        *self.lock() = State { parts, last: None };
    }

    /// What an access changes.
    pub(super) fn note(&self, event: &AccessEvent) -> Option<Fetches> {
        let mut state = self.lock();
        match event {
            AccessEvent::Opened { access, protocol, name, .. }
            | AccessEvent::Resumed { access, protocol, name, .. } => {
                state.last = Some((*access, format!("{protocol} {name}, not to its end")));
            }
            AccessEvent::Ended { access, protocol, name, bytes, outcome } => {
                let end = match outcome {
                    Outcome::Complete => "whole".to_owned(),
                    Outcome::Aborted(_) | Outcome::Failed(_) => format!("broken off after {bytes} bytes"),
                };
                if *outcome == Outcome::Complete {
                    let is_it = |part: &&mut Part| part.names.iter().any(|(by, other)| by == protocol && other == name);
                    state.parts.iter_mut().filter(is_it).for_each(|part| part.is_there = true);
                }
                // Another may have begun since.
                if state.last.as_ref().is_none_or(|(last, _)| last <= access) {
                    state.last = Some((*access, format!("{protocol} {name}, {end}")));
                }
            }
            AccessEvent::Refused { .. } | AccessEvent::Progress => return None,
        }
        Some(state.fetches())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fetches(&self) -> Fetches {
        let missing = self.parts.iter().filter(|part| !part.is_there).map(|part| part.label.clone()).collect();
        Fetches { last: self.last.as_ref().map(|(_, what)| what.clone()), missing }
    }
}

/// Kernel, initial RAM disks and device trees, by their lasting names, with every name under which a plan serves them.
fn parts_of(plan: &BootPlan) -> Vec<Part> {
    if let Some(hand_over) = &plan.hand_over {
        let label = hand_over.name.trim_start_matches("/_/job/").to_owned();
        return vec![Part { label, names: vec![(Protocol::Fastboot, hand_over.name.clone())], is_there: false }];
    }
    let mut parts: Vec<Part> = Vec::new();
    for planned in plan.artifacts.iter().filter(|planned| planned.origin == Origin::Generated) {
        let (Name::Exact(name) | Name::Matching(name, _)) = &planned.name;
        let (Some(label), Source::Artifacts(list)) = (name.strip_prefix("/_/job/"), &planned.source) else { continue };
        // A single RAM disk is published as the whole and as its only part.
        let is_known = |part: &Part| part.label == label || label.strip_prefix(part.label.as_str()) == Some("/0");
        match list.as_slice() {
            [artifact] if !parts.iter().any(is_known) => {
                parts.push(Part { label: label.to_owned(), names: names_of(plan, artifact), is_there: false });
            }
            _ => {}
        }
    }
    parts
}

fn names_of(plan: &BootPlan, artifact: &Artifact) -> Vec<(Protocol, String)> {
    let serves =
        |source: &Source| matches!(source, Source::Artifacts(list) | Source::Archives(list) if list.contains(artifact));
    let name = |name: &Name| match name {
        Name::Exact(name) | Name::Matching(name, _) => name.clone(),
    };
    let served = plan.artifacts.iter().filter(|planned| serves(&planned.source));
    served.map(|planned| (planned.protocol, name(&planned.name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Planned;
    use gateway::namespace::Exposure;
    use job_schema::job::ArtifactSource;
    use std::net::IpAddr;

    fn plan() -> BootPlan {
        let artifact = |data: &str| Artifact { source: ArtifactSource::Data(data.to_owned()), format: Vec::new() };
        let entry = |protocol, name: &str, list: &[&str]| Planned {
            protocol,
            name: Name::Exact(name.to_owned()),
            source: Source::Artifacts(list.iter().map(|data| artifact(data)).collect()),
            exposure: Exposure::default(),
            origin: Origin::Generated,
        };
        let artifacts = vec![
            entry(Protocol::Tftp, "/vmlinuz", &["k"]),
            entry(Protocol::Http, "/_/job/kernel", &["k"]),
            entry(Protocol::Http, "/_/job/initramfs", &["i", "j"]),
            entry(Protocol::Http, "/_/job/initramfs/0", &["i"]),
            entry(Protocol::Http, "/_/job/initramfs/1", &["j"]),
            entry(Protocol::Http, "/_/job/dtb", &["d"]),
            entry(Protocol::Http, "/_/job/dtb/0", &["d"]),
        ];
        BootPlan { artifacts, dhcp: gateway::dhcp::BootOffer::default(), hand_over: None }
    }

    #[test]
    fn parts_are_fetched_by_any_of_their_names_and_what_ran_last_is_told() {
        let fetching = Fetching::default();
        assert_eq!(fetching.begin(&plan()).missing, ["kernel", "initramfs/0", "initramfs/1", "dtb"]);
        let opened = |access, protocol, name: &str| {
            let (name, peer) = (name.to_owned(), IpAddr::from([10, 0, 0, 2]));
            fetching.note(&AccessEvent::Opened { access, protocol, name, peer }).unwrap()
        };
        let ended = |access, protocol, name: &str, outcome| {
            fetching.note(&AccessEvent::Ended { access, protocol, name: name.to_owned(), bytes: 7, outcome }).unwrap()
        };
        let fetches = opened(1, Protocol::Tftp, "/vmlinuz");
        assert_eq!(fetches.last.as_deref(), Some("TFTP /vmlinuz, not to its end"));
        assert_eq!(fetches.missing.len(), 4);
        assert_eq!(
            ended(1, Protocol::Tftp, "/vmlinuz", Outcome::Complete).missing,
            ["initramfs/0", "initramfs/1", "dtb"]
        );
        opened(2, Protocol::Http, "/_/job/initramfs");
        opened(3, Protocol::Http, "/_/job/dtb/0");
        let fetches = ended(2, Protocol::Http, "/_/job/initramfs", Outcome::Complete);
        assert_eq!(fetches.last.as_deref(), Some("HTTP /_/job/dtb/0, not to its end"));
        assert_eq!(fetches.missing, ["dtb"], "the whole is all its parts");
        let fetches = ended(3, Protocol::Http, "/_/job/dtb/0", Outcome::Aborted("reset".into()));
        assert_eq!(fetches.last.as_deref(), Some("HTTP /_/job/dtb/0, broken off after 7 bytes"));
        fetching.go_on(&plan(), &fetches.missing);
        assert_eq!(ended(9, Protocol::Http, "/_/job/dtb", Outcome::Complete).missing, Vec::<String>::new());
    }
}
