//! Machines with a baseboard management controller that speaks IPMI over the network: `ipmitool` asks it.
//!
//! ```text
//!  set ───► chassis power status ─► as wished: done        else: chassis power on, off ─► status until it says so, SETTLE_TIME at most
//!  state ─► chassis power status ─► `Chassis Power is on`
//!  meter ─► dcmi power reading ───► watts                  a controller without DCMI has no meter
//! ```
//! The password goes to the child in its environment, which only its own user and root can read; words of a command line are for everybody. What is off is not told
//! to go off: controllers may refuse that (IPMI 2.0, table 5-2, D5h). A controller has one outlet.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::child::{self, Ended, quoted};
use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, Reading, address, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// IPMI 2.0 section 13.1.2.
const PORT: &str = "623";
/// One run: with what is below `ipmitool` gives up by itself where nobody answers, after 10 s by version 2 and 6 s by 1.5.
const RUN_TIME: Duration = Duration::from_secs(15);
/// Controllers answer within a second; a busy one needs some.
const RETRY_S: &str = "2";
const RETRIES: &str = "2";
/// From a command to a status that says so: power supplies need some seconds.
const SETTLE_TIME: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The one outlet's name.
const OUTLET: &str = "chassis";
/// HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128: what every controller of version 2 has (IPMI 2.0, table 22-20). Asked for by `ipmitool` itself, some answer only after 10 s.
const CIPHER_SUITE: u8 = 3;

/// A machine's own controller, by IPMI. Needs the program `ipmitool`.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host", "user", "password"]))]
pub struct Keys {
    /// Its address or name, with a port where it is not 623.
    host: String,
    /// A user of the controller who may switch power.
    user: String,
    /// The user's password.
    password: String,
    /// Version 2 (`lanplus`, encrypted) or 1.5 (`lan`); `lanplus` when it is not said.
    interface: Interface,
    /// The number of the cipher suite; 3 when it is not said, and 17 is the better one where the controller has it. Only for `lanplus`.
    cipher_suite: Option<u8>,
    /// As what the user comes; `operator` when it is not said, who may switch.
    privilege: Privilege,
}

/// How the controller is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Interface {
    /// Version 2.
    #[default]
    Lanplus,
    /// Version 1.5.
    Lan,
}

/// As what a user comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Privilege {
    /// May switch.
    #[default]
    Operator,
    /// May do everything.
    Administrator,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let address = address(&self.host, 623).map_err(|mistake| mistakes.push(mistake)).unwrap_or_default();
        if self.user.is_empty() {
            mistakes.push(Mistake::new("user", "it is empty", "write the name of a user who may switch power"));
        }
        // IPMI 2.0 section 13.28: 20 bytes at most, which end at the first zero.
        if self.password.is_empty() || self.password.len() > 20 || self.password.contains('\0') {
            mistakes.push(Mistake::new("password", "it has no 1 to 20 bytes", "set one that the controller can have"));
        }
        if self.interface == Interface::Lan && self.cipher_suite.is_some() {
            mistakes.push(Mistake::new("cipher_suite", "`lan` has no cipher suites", "leave it out"));
        }
        if mistakes.is_empty() {
            Ok(Arc::new(Ipmi { own: context.outlet.cloned(), address, keys: self }))
        } else {
            Err(mistakes)
        }
    }
}

struct Ipmi {
    own: Option<Outlet>,
    address: String,
    keys: Keys,
}

impl Ipmi {
    fn arguments(&self, command: &[&str]) -> Vec<String> {
        let (host, port) = self.address.rsplit_once(':').unwrap_or((&self.address, PORT));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let interface = match self.keys.interface {
            Interface::Lanplus => "lanplus",
            Interface::Lan => "lan",
        };
        let privilege = match self.keys.privilege {
            Privilege::Operator => "OPERATOR",
            Privilege::Administrator => "ADMINISTRATOR",
        };
        let mut words =
            vec!["ipmitool", "-I", interface, "-H", host, "-p", port, "-U", &self.keys.user, "-L", privilege];
        let suite = self.keys.cipher_suite.unwrap_or(CIPHER_SUITE).to_string();
        if self.keys.interface == Interface::Lanplus {
            words.extend(["-C", &suite]);
        }
        words.extend(["-N", RETRY_S, "-R", RETRIES, "-E"]);
        words.iter().chain(command).map(|word| (*word).to_owned()).collect()
    }

    async fn run(&self, command: &[&str]) -> Result<Ended, String> {
        let environment = [("IPMI_PASSWORD", self.keys.password.as_str())];
        let run = child::run(&self.arguments(command), &environment, RUN_TIME).await;
        run.map_err(|what| format!("`ipmitool` {what}; install it, and check `host`"))
    }

    /// What a command printed that worked.
    async fn done(&self, command: &[&str]) -> Result<String, String> {
        let ended = self.run(command).await?;
        if ended.status.success() {
            return Ok(ended.output);
        }
        let what = format!("{} is told `{}`, and `ipmitool` says {}", self.address, command.join(" "), ended.said());
        let hint = match ended.errors.contains("Unable to establish") {
            true => "; check `host`, `user`, `password` and `cipher_suite`, and that IPMI over LAN is switched on",
            false => "",
        };
        Err(what + hint)
    }

    async fn status(&self) -> Result<PowerState, String> {
        let said = self.done(&["chassis", "power", "status"]).await?;
        match said.trim() {
            "Chassis Power is on" => Ok(PowerState::On),
            "Chassis Power is off" => Ok(PowerState::Off),
            other => Err(format!("{} says of its power {}, which is neither on nor off", self.address, quoted(other))),
        }
    }

    async fn switch(&self, state: PowerState) -> Result<(), String> {
        if self.status().await? == state {
            return Ok(());
        }
        let word = match state {
            PowerState::On => "on",
            PowerState::Off => "off",
        };
        self.done(&["chassis", "power", word]).await?;
        let settled = Instant::now() + SETTLE_TIME;
        // What it says at the end is read back above, and judged there.
        while self.status().await? != state && Instant::now() < settled {
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn known(&self, outlet: &Outlet) -> Result<(), PowerError> {
        position(outlet, self.own.as_ref(), &[OUTLET.to_owned()]).map(drop)
    }
}

/// The line of `dcmi power reading` with the watts of this moment.
fn watts(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Instantaneous power reading:"))?;
    line.trim().strip_suffix("Watts")?.trim().parse().ok()
}

impl Pdu for Ipmi {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        async move {
            self.known(outlet)?;
            self.switch(state).await.map_err(|what| PowerError::of(outlet, what))
        }
        .boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        async move {
            self.known(outlet)?;
            self.status().await.map_err(|what| PowerError::of(outlet, what))
        }
        .boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        let outlet = OutletInfo::named(OUTLET);
        std::future::ready(Ok(Some(vec![outlet]))).boxed()
    }

    fn meter<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
        async move {
            self.known(outlet)?;
            let ended = self.run(&["dcmi", "power", "reading"]).await.map_err(|what| PowerError::of(outlet, what))?;
            let watts = if ended.status.success() { watts(&ended.output) } else { None };
            match (watts, ended.errors.contains("DCMI request failed")) {
                (Some(watts), _) => Ok(Some(Reading { watts: Some(watts), joules: None })),
                (None, true) => Ok(None),
                (None, false) if ended.status.success() => Ok(None),
                (None, false) => {
                    let what = format!("{} is asked for its watts, and `ipmitool` says {}", self.address, ended.said());
                    Err(PowerError::of(outlet, what))
                }
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ::tests::bench::need_programs;
    use ::tests::lab::Running;
    use serde_json::{Value, json};

    use super::super::counterparts_tests::World;
    use super::super::recorded_tests::{build, mistakes};
    use super::*;

    /// OpenIPMI's simulator of a controller, with a script for its chassis.
    fn start(world: &World) -> Running {
        need_programs(&[("ipmitool", "ipmitool"), ("ipmi_sim", "openipmi")]);
        world.write("power", "0\n");
        let chassis = world.write(
            "chassis",
            "cd \"${0%/*}\" || exit 1\ncase \"$2 $3\" in\n'get power') read -r power < power; echo \"power:$power\" ;;\n\
             'set power') echo \"$4\" >> calls; echo \"$4\" > power ;;\n'check power') ;;\n*) exit 1 ;;\nesac\n",
        );
        let auths: String = ["callback", "user", "operator", "admin"]
            .map(|privilege| format!("    allowed_auths_{privilege} md5\n"))
            .concat();
        let configuration = format!(
            "name \"bmc\"\n  startlan 1\n    addr 127.0.0.1 623\n    priv_limit admin\n{auths}    guid a123456789abcdefa123456789abcdef\n  endlan\n\
             chassis_control \"/bin/sh {} 0x20\"\n  user 2 true \"wharf\" \"maplesugar\" operator 10 md5\n",
            chassis.display()
        );
        let file = world.write("lan.conf", &configuration).display().to_string();
        let commands =
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n";
        let commands = world.write("commands", commands).display().to_string();
        let state = world.path("state").display().to_string();
        std::fs::create_dir(&state).unwrap();
        let arguments = ["-c", &file, "-f", &commands, "-s", &state, "-n"];
        // It says nothing in time; proc(5) has the sockets of its namespace, 623 in hexadecimal digits.
        let listens = |process: u32, _: &str| {
            std::fs::read_to_string(format!("/proc/{process}/net/udp")).is_ok_and(|sockets| sockets.contains(":026F "))
        };
        world.start_until(Path::new("ipmi_sim"), &arguments, listens)
    }

    fn keys(more: &Value) -> Value {
        let mut keys = json!({"host": "127.0.0.1", "user": "wharf", "password": "maplesugar"});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    }

    #[test]
    fn a_controller_is_told_what_it_does_not_do_already_and_asked() {
        let Some(world) = World::new() else { return };
        let _controller = start(&world);
        world.inside(async {
            for interface in ["lanplus", "lan"] {
                let pdu = build::<Keys>(&keys(&json!({"interface": interface})), None);
                let outlet = Outlet("chassis".into());
                assert_eq!(pdu.state(&outlet).await.unwrap(), PowerState::Off, "{interface}");
                for state in [PowerState::On, PowerState::On, PowerState::Off, PowerState::Off] {
                    pdu.set(&outlet, state).await.unwrap();
                    assert_eq!(pdu.state(&outlet).await.unwrap(), state, "{interface}");
                }
                assert_eq!(pdu.meter(&outlet).await.unwrap(), None, "the simulator has no DCMI");
            }
        });
        assert_eq!(world.read("calls"), "1\n0\n1\n0\n");
    }

    #[test]
    fn a_wrong_password_is_told_and_not_shown() {
        let Some(world) = World::new() else { return };
        let _controller = start(&world);
        world.inside(async {
            let pdu = build::<Keys>(&keys(&json!({"password": "maplesyrup"})), None);
            let told = pdu.state(&Outlet("chassis".into())).await.unwrap_err().to_string();
            assert_eq!(
                told,
                "outlet `chassis`: 127.0.0.1:623 is told `chassis power status`, and `ipmitool` says `Error: Unable to establish IPMI v2 / \
                 RMCP+ session`; check `host`, `user`, `password` and `cipher_suite`, and that IPMI over LAN is switched on"
            );
            let told = pdu.state(&Outlet("7".into())).await.unwrap_err().to_string();
            assert_eq!(told, "outlet `7`: no such outlet; outlets: chassis");
        });
    }

    #[test]
    fn the_password_is_no_word_of_the_command_line() {
        let keys: Keys = serde_json::from_value(keys(&json!({"host": "[fd00::7]:624", "cipher_suite": 17}))).unwrap();
        let ipmi = Ipmi { own: None, address: address(&keys.host, 623).unwrap(), keys };
        assert_eq!(
            ipmi.arguments(&["chassis", "power", "on"]).join(" "),
            "ipmitool -I lanplus -H fd00::7 -p 624 -U wharf -L OPERATOR -C 17 -N 2 -R 2 -E chassis power on"
        );
    }

    #[test]
    fn watts_are_what_ipmitool_prints_of_this_moment() {
        let said = "\n    Instantaneous power reading:                   220 Watts\n    Minimum during sampling period:                 \
                    18 Watts\n    Maximum during sampling period:                392 Watts\n";
        assert_eq!(watts(said), Some(220.0));
        assert_eq!(watts("DCMI: nothing"), None);
    }

    #[test]
    fn keys_that_no_controller_can_have_are_told() {
        let long = "123456789012345678901";
        let keys = json!({"host": "", "user": "", "password": long, "interface": "lan", "cipher_suite": 3});
        assert_eq!(
            mistakes::<Keys>(&keys, None),
            [
                "host: `` is not a host",
                "user: it is empty",
                "password: it has no 1 to 20 bytes",
                "cipher_suite: `lan` has no cipher suites",
            ]
        );
    }
}
