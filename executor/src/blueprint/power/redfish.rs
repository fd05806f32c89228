//! Machines with a controller that speaks Redfish (DMTF DSP0266, DSP0268): JSON over HTTPS.
//!
//! ```text
//!  GET /redfish/v1/Systems ─► the systems, which are the outlets ─► GET …/Systems/ID ─► PowerState
//!  POST its #ComputerSystem.Reset {"ResetType": "On", "ForceOff"} ─► PowerState until it says so, SETTLE_TIME at most
//!  Links.Chassis ─► Power ─► PowerControl[0].PowerConsumedWatts
//! ```
//! What is off is not told to go off: controllers may answer that with an error (409 Conflict). Every request carries the login (basic); Redfish's sessions are not used.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, Reading, position};
use crate::blueprint::driver::{self, Context, Mistake};

mod client;

use client::{Client, Trust};

/// Where the specification has the systems.
const SYSTEMS: &str = "/redfish/v1/Systems";
/// From a command to a state that says so: a server's power supplies need some seconds. With what else is asked it is half of what one call may take.
const SETTLE_TIME: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A machine's own controller, by Redfish.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["url", "user", "password"]))]
pub struct Keys {
    /// The controller: `https://10.0.0.40`.
    url: String,
    /// A user of the controller who may switch power.
    user: String,
    /// The user's password.
    password: String,
    /// The SHA-256 of the controller's own certificate, in hexadecimal digits, with or without colons: this certificate and no other is taken.
    certificate_sha256: Option<String>,
    /// A file with the certificates of the authority that signed the controller's, as PEM, relative to the farm file.
    certificate_authority: Option<PathBuf>,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let base = self.base().map_err(|mistake| mistakes.push(mistake)).ok();
        if self.user.is_empty() || self.user.contains(':') {
            // RFC 7617 section 2.
            mistakes.push(Mistake::new(
                "user",
                "it is empty or has a colon",
                "write the name of a user who may switch power",
            ));
        }
        let trust = self.trust(context).map_err(|mistake| mistakes.push(mistake)).ok();
        match (base, trust) {
            (Some(base), Some(trust)) if mistakes.is_empty() => {
                let client = Client::new(base, self.user, self.password, trust).map_err(|mistake| vec![mistake])?;
                Ok(Arc::new(Redfish { own: context.outlet.cloned(), client }))
            }
            _ => Err(mistakes),
        }
    }
}

impl Keys {
    fn base(&self) -> Result<Url, Mistake> {
        let wrong = |what: String| Mistake::new("url", what, "write it with its scheme: `https://10.0.0.40`");
        let url = Url::parse(&self.url).map_err(|error| wrong(format!("`{}` is no URL: {error}", self.url)))?;
        let is_base = ["https", "http"].contains(&url.scheme()) && url.has_host() && url.path() == "/";
        if !is_base || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it must be a scheme and a host and no more".to_owned()));
        }
        Ok(url)
    }

    fn trust(&self, context: &Context<'_>) -> Result<Trust, Mistake> {
        match (&self.certificate_sha256, &self.certificate_authority) {
            (Some(_), Some(_)) => {
                let what = "one of `certificate_sha256` and `certificate_authority` is enough";
                Err(Mistake::new("certificate_authority", what, "leave it out"))
            }
            (Some(digits), None) => Trust::fingerprint(digits),
            (None, Some(file)) => Trust::authority(&context.directory.join(file)),
            (None, None) => Ok(Trust::System),
        }
    }
}

struct Redfish {
    own: Option<Outlet>,
    client: Client,
}

/// A system as far as it is needed here.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct System {
    name: Option<String>,
    power_state: Option<String>,
    actions: Value,
    links: Value,
}

impl System {
    /// `None` while it is on its way.
    fn state(&self) -> Result<Option<PowerState>, String> {
        match self.power_state.as_deref() {
            Some("On") => Ok(Some(PowerState::On)),
            Some("Off") => Ok(Some(PowerState::Off)),
            Some("PoweringOn" | "PoweringOff") => Ok(None),
            Some(other) => Err(format!("its `PowerState` is `{other}`, which is neither on nor off")),
            None => Err("it has no `PowerState`".to_owned()),
        }
    }

    /// Where to tell it, and the word for it.
    fn reset(&self, state: PowerState) -> Result<(&str, &'static str), String> {
        let reset = &self.actions["#ComputerSystem.Reset"];
        let target =
            reset["target"].as_str().ok_or("it cannot be switched: it has no action `ComputerSystem.Reset`")?;
        let words: &[&str] = match state {
            PowerState::On => &["On", "ForceOn"],
            PowerState::Off => &["ForceOff"],
        };
        let Some(allowed) = reset["ResetType@Redfish.AllowableValues"].as_array() else {
            return Ok((target, words[0]));
        };
        let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        match words.iter().find(|word| allowed.contains(word)) {
            Some(word) => Ok((target, word)),
            None => Err(format!("it knows no `{}`; it knows: {}", words[0], allowed.join(", "))),
        }
    }
}

impl Redfish {
    /// Names and paths of the systems.
    async fn systems(&self) -> Result<Vec<(String, String)>, String> {
        let collection = self.client.get(SYSTEMS).await?;
        let members = collection["Members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let path = |member: &Value| member["@odata.id"].as_str().map(str::to_owned);
        let named = |path: String| (path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned(), path);
        Ok(members.iter().filter_map(path).map(named).collect())
    }

    async fn path(&self, outlet: &Outlet) -> Result<String, PowerError> {
        let systems = self.systems().await.map_err(|what| PowerError::of(outlet, what))?;
        let (names, paths): (Vec<String>, Vec<String>) = systems.into_iter().unzip();
        Ok(paths[position(outlet, self.own.as_ref(), &names)?].clone())
    }

    async fn system(&self, path: &str) -> Result<System, String> {
        let system = self.client.get(path).await?;
        serde_json::from_value(system).map_err(|error| format!("{}{path} is no system: {error}", self.client.host()))
    }

    /// Asks until it is in a state, or in this one.
    async fn settled(&self, path: &str, wished: Option<PowerState>) -> Result<Option<PowerState>, String> {
        let end = Instant::now() + SETTLE_TIME;
        loop {
            let state = self.system(path).await?.state()?;
            let is_settled = state.is_some() && (wished.is_none() || state == wished);
            if is_settled || Instant::now() >= end {
                return Ok(state);
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn switch(&self, path: &str, state: PowerState) -> Result<(), String> {
        let system = self.system(path).await?;
        if system.state()? == Some(state) {
            return Ok(());
        }
        let (target, word) = system.reset(state)?;
        self.client.post(target, &json!({"ResetType": word})).await?;
        // What it says at the end is read back above, and judged there.
        self.settled(path, Some(state)).await.map(drop)
    }

    async fn watts(&self, path: &str) -> Result<Option<f64>, String> {
        let system = self.system(path).await?;
        let Some(chassis) = system.links["Chassis"][0]["@odata.id"].as_str() else { return Ok(None) };
        let chassis = self.client.get(chassis).await?;
        let Some(power) = chassis["Power"]["@odata.id"].as_str() else { return Ok(None) };
        let power = self.client.get(power).await?;
        Ok(power["PowerControl"][0]["PowerConsumedWatts"].as_f64())
    }
}

impl Pdu for Redfish {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        async move {
            let path = self.path(outlet).await?;
            self.switch(&path, state).await.map_err(|what| PowerError::of(outlet, what))
        }
        .boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        async move {
            let path = self.path(outlet).await?;
            let state = self.settled(&path, None).await.map_err(|what| PowerError::of(outlet, what))?;
            let on_its_way =
                || format!("it is on its way for more than {} s now; look at the machine", SETTLE_TIME.as_secs());
            state.ok_or_else(|| PowerError::of(outlet, on_its_way()))
        }
        .boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async move {
            let failed = |what| PowerError::of(&Outlet("all".into()), what);
            let mut outlets = Vec::new();
            for (name, path) in self.systems().await.map_err(failed)? {
                let label = self.system(&path).await.map_err(failed)?.name;
                outlets.push(OutletInfo { outlet: Outlet(name), label });
            }
            Ok(Some(outlets))
        }
        .boxed()
    }

    fn meter<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
        async move {
            let path = self.path(outlet).await?;
            let watts = self.watts(&path).await.map_err(|what| PowerError::of(outlet, what))?;
            Ok(watts.map(|watts| Reading { watts: Some(watts), joules: None }))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
