//! An outlet that a command of the admin's switches: whatever has a command line has a driver.
//!
//! ```text
//!  set on, set off ─► its command, no shell ─► exit status 0: done        anything else, or 30 s: an error with what it said
//!  state ───────────► its command ─► prints `on` or `off`
//! ```
//! A unit of `pdus` has as many outlets as its machines name: `{outlet}` in a word is the outlet's name. A command belongs to the server that started it: it ends with it. What the command itself leaves behind in the background (a
//! virtual machine, say) is its own affair; it may keep our pipes open.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::child::{self, quoted};
use super::{Outlet, Pdu, PowerError, PowerState};
use crate::blueprint::driver::{self, Context, Mistake};

/// One command may take this long: the slowest units that must work take 30 s, and setting and reading back are bounded above at 45 s each.
const COMMAND_TIME: Duration = Duration::from_secs(30);

/// A command each, as a list of words; no shell reads them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["on", "off", "state"]))]
pub struct Keys {
    /// Switches it on; repeating it is harmless.
    on: Vec<String>,
    /// Switches it off; repeating it is harmless.
    off: Vec<String>,
    /// Prints `on` or `off`.
    state: Vec<String>,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        for (key, words) in [("on", &self.on), ("off", &self.off), ("state", &self.state)] {
            if words.first().is_none_or(String::is_empty) {
                let hint = "write a program and its words: `[pdu-client, outlet-7, \"on\"]`";
                mistakes.push(Mistake::new(key, "no program is named", hint));
            } else if context.outlet.is_none() && !words.iter().any(|word| word.contains(OUTLET)) {
                let hint = "a unit of `pdus` has several outlets: `[pdu-client, \"{outlet}\", \"on\"]`";
                mistakes.push(Mistake::new(key, "no word says which outlet", hint));
            }
        }
        if mistakes.is_empty() { Ok(Arc::new(ExecPdu::new(context.outlet.cloned(), self))) } else { Err(mistakes) }
    }
}

/// Stands for the outlet's name in a word of a command.
const OUTLET: &str = "{outlet}";

/// A power unit with one outlet, or with any whose name its commands understand.
pub struct ExecPdu {
    outlet: Option<Outlet>,
    keys: Keys,
    limit: Duration,
}

impl ExecPdu {
    /// The power unit that these commands are. With an `outlet` it has this one.
    fn new(outlet: Option<Outlet>, keys: Keys) -> Self {
        ExecPdu { outlet, keys, limit: COMMAND_TIME }
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let arguments = match state {
            PowerState::On => &self.keys.on,
            PowerState::Off => &self.keys.off,
        };
        self.run(outlet, arguments).await.map(drop)
    }

    async fn read(&self, outlet: &Outlet) -> Result<PowerState, PowerError> {
        let said = self.run(outlet, &self.keys.state).await?;
        match said.trim().to_ascii_lowercase().as_str() {
            "on" => Ok(PowerState::On),
            "off" => Ok(PowerState::Off),
            _ => {
                let command = shown(&self.keys.state);
                Err(error(outlet, format!("`{command}` must print `on` or `off`; it printed {}", quoted(&said))))
            }
        }
    }

    /// What the command printed on its standard output.
    async fn run(&self, outlet: &Outlet, arguments: &[String]) -> Result<String, PowerError> {
        if let Some(only) = self.outlet.as_ref().filter(|only| *only != outlet) {
            return Err(error(outlet, format!("there is no such outlet; outlets: {}", only.0)));
        }
        let arguments: Vec<String> = arguments.iter().map(|word| word.replace(OUTLET, &outlet.0)).collect();
        let command = shown(&arguments);
        let failed = |what: String| error(outlet, format!("`{command}` {what}"));
        let ended = child::run(&arguments, &[], self.limit).await.map_err(failed)?;
        if ended.status.success() {
            return Ok(ended.output);
        }
        Err(failed(format!("ended with {}; it said {}", ended.status, ended.said())))
    }
}

impl Pdu for ExecPdu {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        self.read(outlet).boxed()
    }
}

fn shown(arguments: &[String]) -> String {
    arguments.join(" ")
}

fn error(outlet: &Outlet, reason: String) -> PowerError {
    PowerError { outlet: outlet.0.clone(), reason }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;
    use tokio::time::timeout;

    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    fn shell(script: &str) -> Vec<String> {
        words(&["sh", "-c", script])
    }

    fn pdu(on: &str, off: &str, state: &str) -> (ExecPdu, Outlet) {
        let outlet = Outlet("rack-1".into());
        let keys = Keys { on: shell(on), off: shell(off), state: shell(state) };
        (ExecPdu::new(Some(outlet.clone()), keys), outlet)
    }

    #[tokio::test]
    async fn its_commands_switch_and_read_the_outlet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outlet");
        let set = |state: &str| format!("echo {state} > {}", path.display());
        let (pdu, outlet) = pdu(&set("ON"), &set("off"), &format!("cat {}", path.display()));
        for state in [PowerState::On, PowerState::On, PowerState::Off] {
            pdu.set(&outlet, state).await.unwrap();
            assert_eq!(pdu.state(&outlet).await.unwrap(), state);
        }
    }

    #[tokio::test]
    async fn its_words_reach_the_program_as_they_are_with_no_shell_between() {
        let outlet = Outlet("1".into());
        let state = words(&["echo", "$HOME;", "*", "two words"]);
        let pdu = ExecPdu::new(Some(outlet.clone()), Keys { on: state.clone(), off: state.clone(), state });
        let told = pdu.state(&outlet).await.unwrap_err().to_string();
        assert_eq!(
            told,
            "outlet `1`: `echo $HOME; * two words` must print `on` or `off`; it printed `$HOME; * two words`"
        );
    }

    #[tokio::test]
    async fn a_unit_with_several_outlets_says_which_in_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let set = |state: &str| shell(&format!("echo {state} > {}/{{outlet}}", folder.path().display()));
        let state = shell(&format!("cat {}/{{outlet}}", folder.path().display()));
        let pdu = ExecPdu::new(None, Keys { on: set("on"), off: set("off"), state });
        let (left, right) = (Outlet("left".into()), Outlet("right".into()));
        pdu.set(&left, PowerState::On).await.unwrap();
        pdu.set(&right, PowerState::Off).await.unwrap();
        assert_eq!(pdu.state(&left).await.unwrap(), PowerState::On);
        assert_eq!(pdu.state(&right).await.unwrap(), PowerState::Off);
    }

    #[tokio::test]
    async fn what_a_command_that_fails_said_is_in_the_error() {
        let (pdu, outlet) = pdu("echo the fuse; echo has blown >&2; exit 3", "nothing", "exit 1");
        let told = pdu.set(&outlet, PowerState::On).await.unwrap_err().to_string();
        assert_eq!(
            told,
            "outlet `rack-1`: `sh -c echo the fuse; echo has blown >&2; exit 3` ended with exit status: 3; it said `has blown`"
        );
        let told = pdu.state(&outlet).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `rack-1`: `sh -c exit 1` ended with exit status: 1; it said nothing");
        let told = pdu.state(&Outlet("7".into())).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `7`: there is no such outlet; outlets: rack-1");
        let gone = words(&["/no/such/program"]);
        let pdu = ExecPdu::new(Some(outlet.clone()), Keys { on: gone.clone(), off: gone.clone(), state: gone });
        let told = pdu.set(&outlet, PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(
            told,
            "outlet `rack-1`: `/no/such/program` cannot be started: No such file or directory (os error 2)"
        );
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_ended_with_what_it_waits_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        let (mut pdu, outlet) = pdu(&format!("sleep 600 & echo $! > {}; wait", path.display()), "true", "true");
        let mut sleeper = None;
        // A loaded machine may need longer until the command waits.
        for limit in [300, 3000, 20_000].map(Duration::from_millis) {
            pdu.limit = limit;
            let told = pdu.set(&outlet, PowerState::On).await.unwrap_err().to_string();
            assert!(told.ends_with(&format!("did not end within {} s", limit.as_secs_f64())), "{told}");
            sleeper = std::fs::read_to_string(&path).ok().and_then(|number| number.trim().parse::<i32>().ok());
            if sleeper.is_some() {
                break;
            }
        }
        let sleeper = sleeper.expect("the command began");
        let is_dead = || {
            let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let dead = async {
            while !is_dead() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), dead).await.expect("the process that it waits for is ended, too");
    }

    #[tokio::test]
    async fn a_command_that_leaves_something_in_the_background_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("id");
        let (pdu, outlet) = pdu("true", "true", &format!("sleep 600 & echo $! > {}; echo on", path.display()));
        let begun = std::time::Instant::now();
        assert_eq!(pdu.state(&outlet).await.unwrap(), PowerState::On);
        assert!(begun.elapsed() < Duration::from_secs(20));
        let left: i32 = std::fs::read_to_string(path).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(left), Signal::SIGKILL).expect("what it left is still there");
    }

    #[tokio::test]
    async fn a_command_that_says_much_is_not_held_up_by_it_and_little_of_it_is_kept() {
        let (pdu, outlet) = pdu("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1", "true", "true");
        let told = pdu.set(&outlet, PowerState::On).await.unwrap_err().to_string();
        assert!(told.len() < child::OUTPUT_BYTES_MAX + 200, "{} bytes", told.len());
    }
}
