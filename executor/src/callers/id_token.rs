//! A forge's word on who runs a job: an id_token (a JWT, RFC 7519) as GitLab and GitHub sign them, checked. ◆
//!
//! ```text
//!  header.claims.signature ─► alg RS256, nothing else? ─► issuer one of ours, letter by letter? ─► its key signed it?
//!     ─► our audience? ─► now within nbf and exp? ─► has an id of its own (jti)? ─► a rule of that issuer fits? ─► Caller
//! ```
//! Nothing that the token says chooses how it is checked: the algorithm is fixed (RFC 8725 section 3.1), the key is that of the issuer in
//! the farm file, and links in its header (`jku`, `x5u`, `jwk`) are not looked at. The signature is checked by ring; the crates for JWTs
//! bring other algorithms, a second provider of cryptography, or both.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use serde::Deserialize;
use serde_json::Value;

use super::Caller;
use crate::config::{IssuerConfig, Refs, RuleConfig};

/// Clocks of servers that ask a time server differ by less; more would only prolong what was stolen.
const SKEW_S: i64 = 30;

/// Whether it looks like one: three parts, and `{"` at the beginning of the first. None of our own tokens has a dot.
pub(super) fn is_one(credential: &str) -> bool {
    credential.starts_with("eyJ") && credential.split('.').count() == 3
}

/// One that is cut into its parts, and not yet believed.
pub(super) struct Unverified<'a> {
    /// The name of the key that is said to have signed it.
    pub key: String,
    /// Who is said to have signed it.
    pub issuer: String,
    signed: &'a str,
    signature: Vec<u8>,
    claims: BTreeMap<String, Value>,
}

/// What an issuer truly says.
pub(super) struct Claims {
    /// Who says it.
    pub issuer: String,
    /// The token's own id.
    pub id: String,
    /// Until when.
    pub expires: Timestamp,
    all: BTreeMap<String, Value>,
}

/// A public key of an issuer (RFC 7517 and RFC 7518 section 6.3.1).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Key {
    kty: String,
    #[serde(default)]
    pub kid: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default, rename = "use")]
    used_for: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    crit: Option<Value>,
}

impl<'a> Unverified<'a> {
    /// Cuts a token into its parts.
    pub(super) fn of(token: &'a str) -> Result<Unverified<'a>, String> {
        let (signed, signature) = token.rsplit_once('.').ok_or("an id_token has three parts")?;
        let (header, claims) = signed.split_once('.').ok_or("an id_token has three parts")?;
        let header: Header = serde_json::from_slice(&decoded(header, "header")?)
            .map_err(|error| format!("the id_token's header cannot be read: {error}"))?;
        if header.alg != "RS256" {
            return Err(format!("the id_token is signed by `{}`; only RS256 is taken", short(&header.alg)));
        }
        // RFC 7515 section 4.1.11: what is critical and not understood is refused.
        if header.crit.is_some() {
            return Err("the id_token's header has critical extensions; none is known here".to_owned());
        }
        let claims: BTreeMap<String, Value> = serde_json::from_slice(&decoded(claims, "claims")?)
            .map_err(|error| format!("the id_token's claims cannot be read: {error}"))?;
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Unverified { key: header.kid, issuer, signed, signature: decoded(signature, "signature")?, claims })
    }

    /// Its claims, if one of these keys signed it and they hold here and now.
    pub(super) fn verified(self, keys: &[Key], issuer: &IssuerConfig, now: Timestamp) -> Result<Claims, String> {
        let named = keys.iter().filter(|key| key.kid == self.key && key.is_for_signatures());
        if !named.into_iter().any(|key| key.signed(self.signed.as_bytes(), &self.signature)) {
            return Err(format!("the id_token was not signed by a key of {}", issuer.issuer));
        }
        if self.issuer != issuer.issuer {
            return Err(format!("the id_token is of `{}`, not of {}", short(&self.issuer), issuer.issuer));
        }
        self.is_for(&issuer.audience)?;
        let expires = self.time("exp")?.ok_or("the id_token has no `exp`: it would never end")?;
        if now.as_second() >= expires.saturating_add(SKEW_S) {
            return Err("the id_token has expired".to_owned());
        }
        if self.time("nbf")?.is_some_and(|from| now.as_second() < from.saturating_sub(SKEW_S)) {
            return Err("the id_token is not valid yet; is the clock of this host right?".to_owned());
        }
        let id = self.claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty());
        let id = id.ok_or("the id_token has no `jti`: nobody could tell whether it was used before")?.to_owned();
        let ends = Timestamp::from_second(expires).map_err(|_| "the id_token's `exp` is no time".to_owned())?;
        Ok(Claims { issuer: self.issuer, id, expires: ends, all: self.claims })
    }

    /// `aud` is one text or a list of them (RFC 7519 section 4.1.3).
    fn is_for(&self, audience: &str) -> Result<(), String> {
        let said = match self.claims.get("aud") {
            Some(Value::String(said)) => vec![said.as_str()],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if said.contains(&audience) {
            return Ok(());
        }
        let said = if said.is_empty() { "nobody".to_owned() } else { format!("`{}`", short(&said.join("`, `"))) };
        Err(format!("the id_token is for {said}, not for `{audience}`"))
    }

    fn time(&self, claim: &str) -> Result<Option<i64>, String> {
        match self.claims.get(claim) {
            None => Ok(None),
            // RFC 7519 section 2: a fraction of a second is possible.
            Some(Value::Number(number)) => {
                let seconds = number.as_i64().or_else(|| number.as_f64().map(|seconds| seconds as i64));
                Ok(seconds)
            }
            Some(_) => Err(format!("the id_token's `{claim}` is no time")),
        }
    }
}

impl Key {
    fn is_for_signatures(&self) -> bool {
        self.kty == "RSA" && self.used_for.as_deref().is_none_or(|used_for| used_for == "sig")
    }

    /// ring takes keys of 2048 to 8192 bits.
    fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let (Ok(n), Ok(e)) = (decoded(&self.n, "key"), decoded(&self.e, "key")) else { return false };
        RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
    }
}

/// The first rule of the issuer that fits says who it is.
pub(super) fn caller_of(claims: &Claims, issuer: &IssuerConfig) -> Result<Caller, String> {
    let mut misfits = Vec::new();
    for (number, rule) in (1..).zip(&issuer.rules) {
        match claims.misfit(rule) {
            None => {
                let (project, role) = (Some(rule.project.clone()), rule.role);
                return Ok(Caller { name: claims.name(), project, role });
            }
            Some(misfit) => misfits.push(format!("rule {number}: {misfit}")),
        }
    }
    Err(format!("{} may do nothing here: {}", claims.name(), misfits.join("; ")))
}

impl Claims {
    /// `job 77 of project 42 at gitlab.example.com`: ids, as names can be given to others.
    fn name(&self) -> String {
        let host = self.issuer.split_once("://").map_or(self.issuer.as_str(), |(_, host)| host);
        let said = |claim: &str| self.all.get(claim).map(text_of).filter(|said| !said.is_empty());
        let job = said("job_id").map(|id| format!("job {id}")).or_else(|| said("run_id").map(|id| format!("run {id}")));
        let project = said("project_id")
            .map(|id| format!("project {id}"))
            .or_else(|| said("repository_id").map(|id| format!("repository {id}")));
        let words: Vec<_> = job.into_iter().chain(project).collect();
        if words.is_empty() { format!("somebody at {host}") } else { format!("{} at {host}", words.join(" of ")) }
    }

    fn misfit(&self, rule: &RuleConfig) -> Option<String> {
        let wrong = rule
            .claims
            .iter()
            .find(|(claim, wanted)| self.all.get(claim.as_str()).is_none_or(|said| text_of(said) != **wanted));
        if let Some((claim, wanted)) = wrong {
            let said = self
                .all
                .get(claim)
                .map_or_else(|| "not there".to_owned(), |said| format!("`{}`", short(&text_of(said))));
            return Some(format!("`{claim}` is {said}, not `{wanted}`"));
        }
        let is_protected = self.all.get("ref_protected").is_some_and(|said| text_of(said) == "true");
        (rule.refs == Refs::Protected && !is_protected)
            .then(|| "its ref is not protected (`refs: any` takes others, too)".to_owned())
    }
}

/// GitLab and GitHub write most numbers and truths as text, and some not.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn decoded(text: &str, what: &str) -> Result<Vec<u8>, String> {
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("the id_token's {what} is not base64url"))
}

/// What a stranger wrote, for a log.
fn short(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::callers::Role;

    const NOW: i64 = 1_800_000_000;

    fn issuer() -> IssuerConfig {
        IssuerConfig {
            issuer: "https://gitlab.example.com".into(),
            audience: "https://farm.example.com".into(),
            session: None,
            rules: vec![RuleConfig {
                project: "mesa".into(),
                role: Role::Submit,
                claims: BTreeMap::from([("project_id".into(), "42".into())]),
                refs: Refs::Protected,
            }],
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://gitlab.example.com", "aud": "https://farm.example.com", "jti": "1", "exp": NOW + 300, "nbf": NOW - 5,
            "project_id": "42", "job_id": "77", "ref_protected": "true", "project_path": "mesa/mesa",
        })
    }

    /// As if one of its keys had signed it: the signature is of `it/callers.rs`, with openssl as the other side.
    fn believed(claims: Value) -> Result<Claims, String> {
        let header = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "RS256", "kid": "a"}).to_string());
        let token = format!("{header}.{}.AAAA", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let unverified = Unverified::of(&token)?;
        let (issuer, now) = (issuer(), Timestamp::from_second(NOW).unwrap());
        unverified.is_for(&issuer.audience)?;
        let refused = unverified.verified(&[], &issuer, now).err();
        assert_eq!(refused.as_deref(), Some("the id_token was not signed by a key of https://gitlab.example.com"));
        let all = serde_json::from_value(claims).unwrap();
        Ok(Claims { issuer: issuer.issuer, id: "1".into(), expires: now, all })
    }

    fn with(claim: &str, value: Value) -> Value {
        let mut all = claims();
        all[claim] = value;
        all
    }

    #[test]
    fn a_rule_gives_a_project_and_a_role_by_ids_and_not_by_paths() {
        let caller = caller_of(&believed(claims()).unwrap(), &issuer()).unwrap();
        let expected = Caller {
            name: "job 77 of project 42 at gitlab.example.com".into(),
            project: Some("mesa".into()),
            role: Role::Submit,
        };
        assert_eq!(caller, expected);
        // A number is as good as its text.
        assert!(caller_of(&believed(with("project_id", json!(42))).unwrap(), &issuer()).is_ok());
        let refused = |claim, value| caller_of(&believed(with(claim, value)).unwrap(), &issuer()).unwrap_err();
        let told =
            "job 77 of project 43 at gitlab.example.com may do nothing here: rule 1: `project_id` is `43`, not `42`";
        assert_eq!(refused("project_id", json!("43")), told);
        assert!(
            refused("ref_protected", json!("false"))
                .ends_with("its ref is not protected (`refs: any` takes others, too)")
        );
    }

    #[test]
    fn an_audience_is_one_of_those_named_and_no_other() {
        assert!(believed(with("aud", json!(["https://other", "https://farm.example.com"]))).is_ok());
        let refused = |aud| believed(with("aud", aud)).err().unwrap();
        assert_eq!(
            refused(json!("https://farm.example.com/")),
            "the id_token is for `https://farm.example.com/`, not for `https://farm.example.com`"
        );
        assert_eq!(refused(json!(null)), "the id_token is for nobody, not for `https://farm.example.com`");
    }

    #[test]
    fn an_algorithm_of_the_tokens_own_choice_is_refused() {
        let of = |header: Value| {
            let token = format!("{}.e30.", BASE64_URL_SAFE_NO_PAD.encode(header.to_string()));
            Unverified::of(&token).err().unwrap_or_default()
        };
        assert_eq!(of(json!({"alg": "none"})), "the id_token is signed by `none`; only RS256 is taken");
        assert_eq!(of(json!({"alg": "HS256"})), "the id_token is signed by `HS256`; only RS256 is taken");
        assert!(of(json!({"alg": "RS256", "crit": ["b64"]})).contains("critical extensions"));
        assert_eq!(of(json!({"alg": "RS256"})), "");
    }

    #[test]
    fn anything_is_read_without_a_panic() {
        for text in [
            "eyJ..",
            "eyJ.e30.%%",
            "eyJhbGciOiJSUzI1NiJ9..",
            "eyJhbGciOiJSUzI1NiJ9.bnVsbA.",
            "eyJhbGciOiJSUzI1NiJ9.W10.x",
        ] {
            assert!(is_one(text) && Unverified::of(text).is_err(), "{text}");
        }
        assert!(!is_one("wharf-1a2b3c4d-00") && !is_one("eyJ.a"));
    }
}
