//! A rack to try power on: a farm in a network namespace whose power unit is a script, which does what its folder says and writes down
//! when it was told what.
//!
//! | file in its folder | meaning |
//! |---|---|
//! | `state-N` | outlet N is `on` or `off` |
//! | `stuck-N` | outlet N says that it is done, and stays as it is |
//! | `fail-N`, `fail-once-N` | commands for outlet N fail; the next one does |
//! | `calls` | the host's uptime, outlet and verb of each command |
//! | `overlaps` | calls that came while another was served |

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::bench::{Answer, Bench, Surroundings, until};
use crate::lab::Lab;

/// Longer than anything here takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A lock file's lock goes with the process that holds it, however that ends.
const UNIT: &str = "#!/bin/sh
cd \"${0%/*}\" || exit 1
exec 9> lock
flock -n 9 || echo \"$1 $2\" >> overlaps
read -r uptime rest < /proc/uptime
case $2 in
state) cat \"state-$1\" 2> /dev/null || echo off ;;
*)
    echo \"$uptime $1 $2\" >> calls
    if [ -e \"fail-$1\" ] || rm \"fail-once-$1\" 2> /dev/null; then echo 'the relay board is not there' >&2; exit 1; fi
    if [ ! -e \"stuck-$1\" ]; then echo \"$2\" > \"new-$1\"; mv \"new-$1\" \"state-$1\"; fi
    ;;
esac
";

/// A power unit and the network of its machines.
pub struct Rack {
    /// The network namespace of the farm.
    pub lab: Arc<Lab>,
    folder: tempfile::TempDir,
}

impl Rack {
    /// `None`: nobody may make a network namespace here.
    pub fn new() -> Option<Rack> {
        let lab = match Lab::new() {
            Ok(lab) => lab,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        lab.bridge("wharf0", Ipv4Addr::new(10, 89, 0, 1)).expect("the namespace is ours");
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::write(folder.path().join("unit"), UNIT).expect("the folder is ours");
        Some(Rack { lab: Arc::new(lab), folder })
    }

    /// A farm with the unit `rack` and a machine on each of these outlets, `lab-dut-1` and so on; further keys of the unit and of the file.
    pub fn start(&self, wharf: &str, outlets: &[&str], unit_keys: &str, farm_keys: &str) -> Bench {
        let unit = self.path("unit").display().to_string();
        let command = |verb: &str| format!("[sh, '{unit}', '{{outlet}}', '{verb}']");
        let (on, off, state) = (command("on"), command("off"), command("state"));
        let mut farm = format!(
            "name: lab
network: {{interface: {{name: wharf0, address: 10.89.0.1/24}}}}
{farm_keys}pdus:
  - {{name: rack, exec: {{on: {on}, off: {off}, state: {state}}}, {unit_keys}}}
duts:
"
        );
        // Nobody is at their consoles.
        for (number, outlet) in (1..).zip(outlets) {
            farm.push_str(&format!(
                "  - {{mac: '52:54:00:89:00:0{number}', address: 10.89.0.1{number}, machine: {{hardware: \
                 {{power: {{pdu: rack, outlet: '{outlet}'}}, console: {{tcp: {{host: 127.0.0.1, port: 9}}}}}}}}}}\n"
            ));
        }
        let surroundings = Surroundings { lab: Some(Arc::clone(&self.lab)), ..Surroundings::default() };
        Bench::start_with(wharf, &farm, surroundings)
    }

    /// A file of the unit.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a file of the unit.
    pub fn make(&self, name: &str) {
        fs::write(self.path(name), "").expect("the folder is ours");
    }

    /// Switches an outlet behind the server's back.
    pub fn switch_by_hand(&self, outlet: &str, state: &str) {
        let beside = self.path("by-hand");
        fs::write(&beside, format!("{state}\n")).expect("the folder is ours");
        fs::rename(beside, self.path(&format!("state-{outlet}"))).expect("the folder is ours");
    }

    /// What an outlet does.
    pub fn state(&self, outlet: &str) -> String {
        read(&self.path(&format!("state-{outlet}"))).trim().to_owned()
    }

    /// What an outlet was told, and the host's uptime then, in seconds.
    pub fn calls(&self, outlet: &str) -> Vec<(f64, String)> {
        let calls = read(&self.path("calls"));
        let mine = calls.lines().filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [uptime, name, verb] if name == outlet => Some((uptime.parse().ok()?, verb.to_owned())),
            _ => None,
        });
        mine.collect()
    }

    /// The verbs alone.
    pub fn verbs(&self, outlet: &str) -> Vec<String> {
        self.calls(outlet).into_iter().map(|(_, verb)| verb).collect()
    }

    /// Waits until the unit's folder is so.
    #[track_caller]
    pub fn wait(&self, what: &str, is_so: impl Fn(&Rack) -> bool) {
        until(PATIENCE, || Some(()).filter(|()| is_so(self))).unwrap_or_else(|| {
            panic!("{what}: it did not come to that; the unit was told:\n{}", read(&self.path("calls")))
        });
    }
}

/// Takes a machine for ten minutes; the lease is called after it.
#[track_caller]
pub fn take(bench: &Bench, dut: &str) -> String {
    let id = format!("of-{dut}");
    let wish = format!(r#"{{"id": "{id}", "dut": "{dut}", "owner": "term", "for": "10 m", "name": "anna"}}"#);
    let answer = bench.post("/api/v1/leases", "application/json", wish.as_bytes());
    assert_eq!(answer.status, 201, "{answer:?}");
    let is_active = || bench.get(&format!("/api/v1/leases/{id}")).json()["state"] == "active";
    until(PATIENCE, || Some(()).filter(|()| is_active())).expect("the lease becomes active");
    id
}

/// Switches what a lease holds.
pub fn power(bench: &Bench, lease: &str, state: &str) -> Answer {
    let wish = format!(r#"{{"state": "{state}"}}"#);
    bench.post(&format!("/api/v1/leases/{lease}/power"), "application/json", wish.as_bytes())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
