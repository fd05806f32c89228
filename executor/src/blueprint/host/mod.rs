//! Hosts as what can be leased: a lease on one is a seat, and a working copy of its own on that very host. ◆
//!
//! | | of `builder`, which is there | of `cloud-2`, which is made |
//! |---|---|---|
//! | host | kept, and never ended | made when somebody asks, ended when idle |
//! | working copy | made for each lease, slot `working-copy:builder:<lease>` | the same |

use std::time::Duration;

use super::dut::lone;
use crate::config::FarmConfig;
use crate::config::hosts::{HostConfig, HostFrom};
use crate::lease::rows::{Blueprint, Claim, ClaimOn, Kind};

pub mod ec2;
pub mod keys;
pub mod provider;
mod qemu;
pub mod working_copy;

/// How long making a host may take: a cloud needs a minute or two until its machine answers.
const MAKE_MS: u64 = 600_000;

/// The hosts of the farm file.
pub fn rows(config: &FarmConfig) -> impl Iterator<Item = Blueprint> + use<'_> {
    let farm = format!("farm:{}", config.name);
    config.hosts.iter().map(move |host| row(host, &farm))
}

fn row(host: &HostConfig, farm: &str) -> Blueprint {
    let identity = "working-copy:{}:{lease}".to_owned();
    let there = Blueprint {
        tags: host.tags.iter().cloned().chain([farm.to_owned()]).collect(),
        seats: host.seats,
        gang: vec![Claim { kind: Kind::WorkingCopy, on: ClaimOn::Made { identity } }],
        access: host.access,
        policy: host.policy,
        ..lone(Kind::Host, host.name.clone(), host.full_name.clone())
    };
    match &host.from {
        HostFrom::Inventory { .. } => there,
        HostFrom::Provider(made) => Blueprint {
            limit: made.limit,
            preallocated: made.preallocated,
            pool: made.pool.clone(),
            idle_ms_min: milliseconds(made.idle_min),
            idle_ms_max: Some(milliseconds(made.idle)),
            activate_ms: MAKE_MS,
            ..there
        },
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lease::rows::{LeaseRequest, LeaseState, Mode, Object, Purpose, Want};
    use crate::lease::samples::{SmallFarm, request};

    const FINGERPRINT: &str = "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ";

    fn farm_of(hosts: &str) -> SmallFarm {
        let folder = tempfile::tempdir().unwrap();
        let key = russh::keys::PrivateKey::random(&mut russh::keys::key::safe_rng(), russh::keys::Algorithm::Ed25519);
        let key = key.unwrap().to_openssh(Default::default()).unwrap();
        std::fs::write(folder.path().join("id"), key.as_bytes()).unwrap();
        let ssh = format!("ssh: {{user: root, key: id, host_key: '{FINGERPRINT}'}}");
        let text = format!("name: lab\nnetwork: {{loopback: {{}}}}\nduts: []\nhosts:\n{}", hosts.replace("SSH", &ssh));
        let config = crate::config::parse("farm.yml", &text, Path::new(folder.path()));
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        SmallFarm::of(rows(&config).collect::<Vec<_>>())
    }

    fn host(id: &str, tags: &[&str]) -> LeaseRequest {
        let tags = tags.iter().map(|tag| tag.to_string()).collect();
        LeaseRequest {
            want: Want { kind: Kind::Host, name: None, tags, mode: Mode::Hold, purpose: Purpose::Work },
            ..request(id, &[])
        }
    }

    #[test]
    fn a_host_is_found_by_its_system_its_architecture_and_its_tags() {
        let mut farm = farm_of(
            "- {name: left, address: 10.0.0.5, SSH, os: debian, arch: x86_64, tags: [big]}\n\
             - {name: right, address: 10.0.0.6, SSH, os: alpine, arch: aarch64}\n",
        );
        farm.request(host("job", &["os:alpine", "arch:aarch64"]));
        farm.settle();
        assert_eq!(farm.holds("job").as_deref(), Some("right"));
    }

    #[test]
    fn each_lease_on_a_shared_host_has_a_working_copy_of_its_own() {
        let mut farm = farm_of("- {name: left, address: 10.0.0.5, SSH, seats: 2}\n");
        for id in ["first", "second", "third"] {
            farm.request(host(id, &[]));
        }
        farm.settle();
        let states = ["first", "second", "third"].map(|id| farm.state(id));
        assert_eq!(states, [LeaseState::Active, LeaseState::Active, LeaseState::Pending]);
        for id in ["first", "second"] {
            let parts: Vec<_> =
                farm.tables.children(&Object::Lease(id.into())).map(|part| part.request.want.kind).collect();
            assert_eq!(parts, [Kind::WorkingCopy], "{id}");
        }
        farm.release("first");
        assert_eq!(farm.state("third"), LeaseState::Active);
    }

    #[test]
    fn a_guest_of_nothing_and_one_of_files_that_are_not_there_are_told_so() {
        let text = "name: lab\nnetwork: {loopback: {}}\nduts: []\nhosts:\n\
                    - {name: a, ssh: {user: root}, provider: {qemu: {cmdline: quiet, disk_mib: 8}}}\n\
                    - {name: b, ssh: {user: root}, provider: {qemu: {disk: nowhere.qcow2}}}\n";
        let Err(problems) = crate::config::parse("farm.yml", text, Path::new("/")) else { panic!("it is taken") };
        let told = problems.to_string();
        let expected = [
            "there is nothing to boot",
            "only a `kernel` has one",
            "there is no disk",
            "there is no file `/nowhere.qcow2`",
        ];
        for expected in expected {
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn a_host_is_never_given_to_somebody_who_wants_a_dut() {
        let mut farm = farm_of("- {name: left, address: 10.0.0.5, SSH, tags: [big]}\n");
        farm.request(request("job", &["big"]));
        farm.settle();
        assert_eq!(farm.holds("job"), None);
    }
}
