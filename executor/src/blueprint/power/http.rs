//! An outlet behind any web interface: the farm file says which requests switch it, and what in an answer means on or off.
//!
//! ```text
//!  set on, set off ─► its request ─► `status` as expected: done                        anything else: an error with what was answered
//!  state ───────────► its request ─► the text has `on` or `off` (patterns): that is it       both or neither: an error
//!  meter ───────────► its request ─► JSON; `watts`, `watt_hours` point at a number
//! ```
//! `{outlet}` in a URL, a header or a body is the outlet's name. A login is given when the unit asks for one: digest or basic.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use job_schema::Pattern;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::web::{Certificate, Request, shown};
use super::{Outlet, Pdu, PowerError, PowerState, Reading};
use crate::blueprint::driver::{self, Context, Mistake};

/// Requests that switch an outlet and read it.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["on", "off", "state"]))]
pub struct Keys {
    /// Switches it on; repeating it is harmless.
    on: Ask,
    /// Switches it off; repeating it is harmless.
    off: Ask,
    /// Asks what it does.
    state: StateKeys,
    /// Asks what it draws.
    meter: Option<MeterKeys>,
    /// Who logs in, when the unit asks for it: digest or basic.
    user: Option<String>,
    /// The user's password.
    password: Option<String>,
    /// Whether an `https` unit must show a certificate that this host trusts.
    certificate: Certificate,
}

/// A request.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["url"]))]
struct Ask {
    /// Where it goes; `{outlet}` is the outlet's name.
    url: String,
    /// `GET` when it is not said.
    method: Option<String>,
    /// Header fields by their names.
    headers: BTreeMap<String, String>,
    /// What is sent.
    body: String,
    /// The status that means that it worked; any from 200 to 299 when it is not said.
    status: Option<u16>,
}

/// A request, and what its answer means.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["url", "on", "off"]))]
struct StateKeys {
    #[serde(flatten)]
    ask: Ask,
    /// Found in the answer when the outlet is on.
    on: Option<Pattern>,
    /// Found in the answer when the outlet is off.
    off: Option<Pattern>,
}

/// A request, and where in its answer the meter's numbers are.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["url"]))]
struct MeterKeys {
    #[serde(flatten)]
    ask: Ask,
    /// Where the watts are, as a JSON pointer (RFC 6901): `/meters/0/power`.
    watts: Option<String>,
    /// Where the watt-hours are.
    watt_hours: Option<String>,
}

/// Stands for the outlet's name.
const OUTLET: &str = "{outlet}";

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let pdu = HttpPdu { own: context.outlet.cloned(), keys: self };
        let keys = &pdu.keys;
        let meter = keys.meter.as_ref().map(|meter| ("meter", &meter.ask));
        let asks = [("on", &keys.on), ("off", &keys.off), ("state", &keys.state.ask)].into_iter().chain(meter);
        let mut mistakes = Vec::new();
        for (key, ask) in asks {
            let example = Outlet("1".into());
            mistakes
                .extend(pdu.request(ask, context.outlet.unwrap_or(&example)).err().map(|mistake| below(key, mistake)));
            let says_which = std::iter::once(&ask.url).chain([&ask.body]).chain(ask.headers.values());
            if context.outlet.is_none() && !says_which.into_iter().any(|text| text.contains(OUTLET)) {
                let hint = "a unit of `pdus` has several outlets: `http://10.0.0.9/relay/{outlet}?turn=on`";
                mistakes.push(Mistake::new(key, "nothing of the request says which outlet", hint));
            }
        }
        if keys.user.is_some() != keys.password.is_some() {
            mistakes.push(Mistake::new("user", "a login is a `user` and a `password`", "give both, or neither"));
        }
        if mistakes.is_empty() { Ok(Arc::new(pdu)) } else { Err(mistakes) }
    }
}

fn below(key: &str, mistake: Mistake) -> Mistake {
    Mistake { key: std::iter::once(key.to_owned()).chain(mistake.key).collect(), ..mistake }
}

/// A power unit with one outlet, or with any whose name its requests carry.
struct HttpPdu {
    own: Option<Outlet>,
    keys: Keys,
}

impl HttpPdu {
    fn request(&self, ask: &Ask, outlet: &Outlet) -> Result<Request, Mistake> {
        let url = ask.url.replace(OUTLET, &encoded(&outlet.0));
        let hint = "write it in full: `http://10.0.0.9/relay/0?turn=on`";
        let parsed =
            Url::parse(&url).map_err(|error| Mistake::new("url", format!("`{url}` is not a URL: {error}"), hint))?;
        if !["http", "https"].contains(&parsed.scheme()) || !parsed.has_host() {
            return Err(Mistake::new("url", format!("`{url}` is not a URL of a web server"), hint));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &ask.headers {
            let wrong = |what: String| Mistake::new("headers", what, "write `Name: value`");
            let value = value.replace(OUTLET, &outlet.0);
            let field = HeaderName::try_from(name).map_err(|_| wrong(format!("`{name}` is no name of a header")))?;
            headers.append(
                field,
                HeaderValue::try_from(value)
                    .map_err(|_| wrong(format!("`{name}` has a value that no header can have")))?,
            );
        }
        let method = ask.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
        let method = Method::try_from(method.as_str())
            .map_err(|_| Mistake::new("method", format!("`{method}` is no method"), "write GET, POST or PUT"))?;
        let login = self.keys.user.clone().zip(self.keys.password.clone());
        let body = ask.body.replace(OUTLET, &outlet.0);
        Ok(Request { method, url: parsed, headers, body, login, certificate: self.keys.certificate })
    }

    /// The text that was answered, with the status that was expected.
    async fn ask(&self, ask: &Ask, outlet: &Outlet) -> Result<String, PowerError> {
        let failed = |reason| PowerError::of(outlet, reason);
        if let Some(own) = self.own.as_ref().filter(|own| *own != outlet) {
            return Err(failed(format!("no such outlet; outlets: {}", own.0)));
        }
        let request = self.request(ask, outlet).map_err(|mistake| failed(mistake.what))?;
        let answer = request.send().await.map_err(failed)?;
        match ask.status {
            Some(status) if answer.status.as_u16() == status => Ok(answer.text),
            Some(status) => {
                let (host, told, text) = (request.host(), answer.status, shown(&answer.text));
                Err(failed(format!("{host} answered {told}, not {status}: {text}")))
            }
            None => answer.accepted(&request.host()).map_err(failed),
        }
    }

    async fn read(&self, outlet: &Outlet) -> Result<PowerState, PowerError> {
        let text = self.ask(&self.keys.state.ask, outlet).await?;
        let failed = |reason: String| PowerError::of(outlet, reason);
        let found = |pattern: &Option<Pattern>| match pattern {
            Some(pattern) => pattern.is_match(text.as_bytes()).map_err(|error| failed(error.to_string())),
            None => Ok(false),
        };
        match (found(&self.keys.state.on)?, found(&self.keys.state.off)?) {
            (true, false) => Ok(PowerState::On),
            (false, true) => Ok(PowerState::Off),
            (true, true) => Err(failed(format!("`state.on` and `state.off` are both found in {}", shown(&text)))),
            (false, false) => Err(failed(format!("neither `state.on` nor `state.off` is found in {}", shown(&text)))),
        }
    }

    async fn measure(&self, outlet: &Outlet) -> Result<Option<Reading>, PowerError> {
        let Some(meter) = &self.keys.meter else { return Ok(None) };
        let text = self.ask(&meter.ask, outlet).await?;
        let failed = |reason: String| PowerError::of(outlet, reason);
        let json: Value = serde_json::from_str(&text)
            .map_err(|_| failed(format!("the meter's answer is no JSON: {}", shown(&text))))?;
        let number = |pointer: &Option<String>| match pointer {
            None => Ok(None),
            Some(pointer) => match json.pointer(pointer).and_then(Value::as_f64) {
                Some(number) => Ok(Some(number)),
                None => Err(failed(format!("there is no number at `{pointer}` in {}", shown(&text)))),
            },
        };
        let joules = number(&meter.watt_hours)?.map(|hours| hours * 3600.0);
        Ok(Some(Reading { watts: number(&meter.watts)?, joules }))
    }
}

impl Pdu for HttpPdu {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        let ask = match state {
            PowerState::On => &self.keys.on,
            PowerState::Off => &self.keys.off,
        };
        async move { self.ask(ask, outlet).await.map(drop) }.boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        self.read(outlet).boxed()
    }

    fn meter<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
        self.measure(outlet).boxed()
    }
}

/// The name as it may stand in any part of a URL (RFC 3986, section 2.3).
fn encoded(name: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().map(|byte| if kept(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{Recorded, build, mistakes, outlet};

    fn keys(host: &str) -> Value {
        json!({
            "on": { "url": format!("http://{host}/relay/{{outlet}}"), "method": "post", "body": "{\"on\": true}",
                    "headers": { "Content-Type": "application/json" }, "status": 204 },
            "off": { "url": format!("http://{host}/relay/{{outlet}}?turn=off") },
            "state": { "url": format!("http://{host}/relay/{{outlet}}"), "on": "\"on\": *true", "off": "\"on\": *false" },
            "meter": { "url": format!("http://{host}/meter/{{outlet}}"), "watts": "/power", "watt_hours": "/total/0" },
            "user": "admin", "password": "s3cret",
        })
    }

    #[tokio::test]
    async fn its_requests_carry_the_outlets_name_and_their_answers_are_searched() {
        let unit = Recorded::http(
            "> POST /relay/3%2Fa {\"on\": true}\n< 204\n\
             > GET /relay/3%2Fa\n< 200 {\"on\": true}\n\
             > GET /relay/3%2Fa?turn=off\n< 200 ok\n\
             > GET /relay/3%2Fa\n< 200 {\"on\":false}\n\
             > GET /meter/3%2Fa\n< 200 {\"power\": 12.5, \"total\": [2]}\n",
        )
        .await;
        let (pdu, outlet) = (build::<Keys>(&keys(unit.host()), None), outlet("3/a"));
        pdu.set(&outlet, PowerState::On).await.unwrap();
        assert_eq!(pdu.state(&outlet).await.unwrap(), PowerState::On);
        pdu.set(&outlet, PowerState::Off).await.unwrap();
        assert_eq!(pdu.state(&outlet).await.unwrap(), PowerState::Off);
        let reading = Reading { watts: Some(12.5), joules: Some(7200.0) };
        assert_eq!(pdu.meter(&outlet).await.unwrap(), Some(reading));
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn a_login_is_given_when_it_is_asked_for() {
        let unit = Recorded::http(
            "> GET /relay/1?turn=off\n< 401 WWW-Authenticate: Basic realm=\"unit\"\n\
             > GET /relay/1?turn=off Authorization: Basic YWRtaW46czNjcmV0\n< 200 ok\n\
             > GET /relay/1?turn=off\n< 401 WWW-Authenticate: Basic realm=\"unit\"\n\
             > GET /relay/1?turn=off Authorization: Basic YWRtaW46czNjcmV0\n< 401 WWW-Authenticate: Basic realm=\"unit\"\n",
        )
        .await;
        let (pdu, outlet) = (build::<Keys>(&keys(unit.host()), None), outlet("1"));
        pdu.set(&outlet, PowerState::Off).await.unwrap();
        let told = pdu.set(&outlet, PowerState::Off).await.unwrap_err().to_string();
        let host = unit.host();
        assert_eq!(told, format!("outlet `1`: {host} refuses the login: give `user` and `password` in the farm file"));
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_is_told_with_what_it_was() {
        let unit = Recorded::http(
            "> POST /relay/1 {\"on\": true}\n< 200 done\n\
             > GET /relay/1?turn=off\n< 500 fuse blown\n\
             > GET /relay/1\n< 200 <html>restarting</html>\n\
             > GET /meter/1\n< 200 {\"power\": \"n/a\"}\n",
        )
        .await;
        let (pdu, outlet) = (build::<Keys>(&keys(unit.host()), None), outlet("1"));
        let host = unit.host();
        let told = pdu.set(&outlet, PowerState::On).await.unwrap_err().reason;
        assert_eq!(told, format!("{host} answered 200 OK, not 204: `done`"));
        let told = pdu.set(&outlet, PowerState::Off).await.unwrap_err().reason;
        assert_eq!(told, format!("{host} answered 500 Internal Server Error: `fuse blown`"));
        let told = pdu.state(&outlet).await.unwrap_err().reason;
        assert_eq!(told, "neither `state.on` nor `state.off` is found in `<html>restarting</html>`");
        let told = pdu.meter(&outlet).await.unwrap_err().reason;
        assert_eq!(told, "there is no number at `/total/0` in `{\"power\": \"n/a\"}`");
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn a_unit_of_one_machine_has_one_outlet_and_a_unit_that_is_gone_is_named() {
        let (pdu, left) = (build::<Keys>(&keys("127.0.0.1:1"), Some("left")), outlet("left"));
        let told = pdu.state(&outlet("right")).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `right`: no such outlet; outlets: left");
        let told = pdu.state(&left).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `left`: 127.0.0.1:1: Connection refused (os error 111)");
    }

    #[test]
    fn what_the_schema_cannot_say_is_told_by_its_key() {
        let keys = json!({
            "on": { "url": "10.0.0.9/on" }, "off": { "url": "ftp://10.0.0.9/{outlet}" },
            "state": { "url": "http://10.0.0.9/{outlet}", "method": "G T", "on": "1", "off": "0" }, "user": "admin",
        });
        let told = [
            "on.url: `10.0.0.9/on` is not a URL: relative URL without a base",
            "on: nothing of the request says which outlet",
            "off.url: `ftp://10.0.0.9/1` is not a URL of a web server",
            "state.method: `G T` is no method",
            "user: a login is a `user` and a `password`",
        ];
        assert_eq!(mistakes::<Keys>(&keys, None), told);
    }
}
