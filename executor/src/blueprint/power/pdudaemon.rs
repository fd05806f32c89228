//! Units behind somebody's pdudaemon: its HTTP listener is told, and cannot be asked.
//!
//! ```text
//!  GET /power/control/{on,off}?hostname=UNIT&port=OUTLET&delay=0 ─► 200 OK - accepted request         500 Invalid request
//!                             ?alias=NAME                            done, from version 1.0 on; queued, before
//! ```
//! There is no request for a state (up to 1.1.1), so the driver says what it told last, and that this is all it knows: a read-back proves that pdudaemon took the
//! command, and nothing about the outlet. `delay=0` is for versions before 1.0, which wait 5 s without it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::web::{self, Request};
use super::{Outlet, Pdu, PowerError, PowerState, ReadBack, address};
use crate::blueprint::driver::{self, Context, Mistake};

/// Where its HTTP listener is.
const PORT: u16 = 16421;

/// A unit behind a pdudaemon.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Where pdudaemon is, with a port where it is not 16421.
    host: String,
    /// The unit's name under `pdus` of pdudaemon's configuration; the outlet is its `port`.
    hostname: Option<String>,
    /// The machine's name under `aliases` of it, instead.
    alias: Option<String>,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let whose = match (self.hostname, self.alias) {
            (Some(hostname), None) => Whose::Unit(hostname),
            (None, Some(alias)) if context.outlet.is_some() => Whose::Alias(alias),
            (None, Some(_)) => {
                let hint = "a unit of `pdus` has several outlets: write `hostname`";
                return Err(vec![Mistake::new("alias", "an alias is one outlet", hint)]);
            }
            (None, None) | (Some(_), Some(_)) => {
                let hint = "`hostname: …` for a unit, `alias: …` for a machine";
                return Err(vec![Mistake::new("", "one of `hostname` and `alias` must be written", hint)]);
            }
        };
        let address = address(&self.host, PORT).map_err(|mistake| vec![mistake])?;
        let base = web::url(&address, "/").map_err(|what| vec![Mistake::new("host", what, "write its address")])?;
        Ok(Arc::new(Pdudaemon { base, whose, told: Mutex::default() }))
    }
}

enum Whose {
    Unit(String),
    Alias(String),
}

struct Pdudaemon {
    base: Url,
    whose: Whose,
    told: Mutex<HashMap<Outlet, PowerState>>,
}

impl Pdudaemon {
    fn request(&self, outlet: &Outlet, state: PowerState) -> Request {
        let mut url = self.base.clone();
        url.set_path(match state {
            PowerState::On => "/power/control/on",
            PowerState::Off => "/power/control/off",
        });
        let mut words = url.query_pairs_mut();
        match &self.whose {
            Whose::Unit(hostname) => words.append_pair("hostname", hostname).append_pair("port", &outlet.0),
            Whose::Alias(alias) => words.append_pair("alias", alias),
        };
        words.append_pair("delay", "0");
        drop(words);
        Request::get(url)
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let request = self.request(outlet, state);
        let failed = |what| PowerError::of(outlet, what);
        // What it does now is not known until it is told again.
        self.told().remove(outlet);
        let answer = request.send().await.map_err(failed)?;
        if answer.status == reqwest::StatusCode::INTERNAL_SERVER_ERROR {
            let name = match &self.whose {
                Whose::Unit(hostname) => format!("`{hostname}` under `pdus`, and what its `port` {} can be", outlet.0),
                Whose::Alias(alias) => format!("`{alias}` under `aliases`"),
            };
            let what =
                format!("{} refused or failed: look at its log, and in its configuration at {name}", request.host());
            return Err(failed(what));
        }
        answer.accepted(&request.host()).map_err(failed)?;
        self.told().insert(outlet.clone(), state);
        Ok(())
    }

    fn told(&self) -> std::sync::MutexGuard<'_, HashMap<Outlet, PowerState>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pdu for Pdudaemon {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        let told = self.told().get(outlet).copied();
        let unknown =
            || PowerError::of(outlet, "pdudaemon cannot be asked what an outlet does; switch it, and it is known");
        std::future::ready(told.ok_or_else(unknown)).boxed()
    }

    fn read_back(&self) -> ReadBack {
        ReadBack::Remembered
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use ::tests::packages::python;
    use serde_json::json;

    use super::super::counterparts_tests::World;
    use super::super::recorded_tests::{build, mistakes};
    use super::*;

    /// pdudaemon without the binding to systemd's journal, which it only needs for `--journal`, and which needs a compiler.
    fn program() -> PathBuf {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let needed =
            ["aiohttp", "hidapi", "paramiko", "pexpect", "pymodbus", "pyserial", "pysnmp", "pyusb", "requests"];
        let folder = python(&needed);
        let program = folder.join("pdudaemon");
        if !program.exists() {
            let mut pip = Command::new(folder.join("pip"));
            pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "pdudaemon==1.1.1"]);
            let output = pip.output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        program
    }

    #[test]
    fn a_real_one_switches_and_what_it_was_told_is_remembered_as_such() {
        let Some(world) = World::new() else { return };
        let folder = world.path("");
        let command = |state: &str| format!("echo %s {state} >> {}/calls", folder.display());
        let configuration = json!({
            "daemon": {"hostname": "127.0.0.1", "port": 16421, "listener": "http"},
            "pdus": {"rack": {"driver": "localcmdline", "cmd_on": command("on"), "cmd_off": command("off")}},
            "aliases": {"board": {"hostname": "rack", "port": 9}},
        });
        let file = world.write("pdudaemon.conf", &configuration.to_string()).display().to_string();
        let _daemon = world.start(&program(), &["--conf", &file], "Listening on");
        world.inside(async {
            let pdu = build::<Keys>(&json!({"host": "127.0.0.1", "hostname": "rack"}), None);
            let seven = Outlet("7".into());
            assert_eq!(pdu.read_back(), ReadBack::Remembered);
            let told = pdu.state(&seven).await.unwrap_err().to_string();
            assert_eq!(told, "outlet `7`: pdudaemon cannot be asked what an outlet does; switch it, and it is known");
            for state in [PowerState::On, PowerState::Off] {
                pdu.set(&seven, state).await.unwrap();
                assert_eq!(pdu.state(&seven).await.unwrap(), state);
            }
            let alias = json!({"host": "127.0.0.1", "alias": "board"});
            build::<Keys>(&alias, Some("7")).set(&seven, PowerState::On).await.unwrap();
            let unknown = build::<Keys>(&json!({"host": "127.0.0.1", "hostname": "attic"}), None);
            let told = unknown.set(&seven, PowerState::On).await.unwrap_err().to_string();
            assert_eq!(
                told,
                "outlet `7`: 127.0.0.1:16421 refused or failed: look at its log, and in its configuration at `attic` under `pdus`, and what \
                 its `port` 7 can be"
            );
            unknown.state(&seven).await.unwrap_err();
        });
        assert_eq!(world.read("calls"), "7 on\n7 off\n9 on\n");
    }

    #[test]
    fn a_unit_or_an_alias_is_named() {
        let told = |keys| mistakes::<Keys>(&keys, None);
        assert_eq!(told(json!({"host": "pdu.lab"})), [": one of `hostname` and `alias` must be written"]);
        assert_eq!(told(json!({"host": "pdu.lab", "alias": "board"})), ["alias: an alias is one outlet"]);
    }
}
