//! Container images for a job's DUT: what its templates call them, and in whose name they are had.
//!
//! ```text
//!  farm file: registry.upstreams ─► values: `registry.to_local_proxy(…)` and CI-tron's `fdo_proxy_registry`
//!  the job's environ ─┬─ DOCKER_AUTH_CONFIG, as Docker's config.json has it ─┐
//!                     └─ CI_REGISTRY, CI_REGISTRY_USER, CI_REGISTRY_PASSWORD ─┴─► Logins ─► its namespace at the gateway
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway::registry::{DOCKER, Login, Logins, Settings, component_of};
use serde::Deserialize;

/// Where the farm has each registry's images: what an image's name begins with here, by what it begins with elsewhere.
pub(super) fn places(settings: Option<&Settings>, address: Ipv4Addr, port: u16) -> BTreeMap<String, String> {
    let upstreams = settings.map(|settings| settings.upstreams.as_slice()).unwrap_or_default();
    let place = |host: &String| format!("{address}:{port}/{}", component_of(host));
    upstreams.iter().map(|upstream| (upstream.host.clone(), place(&upstream.host))).collect()
}

/// CI-tron's older name for one of them, whose value it has from its environment.
pub(super) const FDO_PROXY_REGISTRY: (&str, &str) = ("fdo_proxy_registry", "registry.freedesktop.org");

/// The names and passwords that come with a job.
pub fn logins(environ: &BTreeMap<String, String>) -> Logins {
    let mut logins = Logins::new();
    let said = |name: &str| environ.get(name).filter(|value| !value.is_empty()).cloned();
    let gitlabs = (said("CI_REGISTRY"), said("CI_REGISTRY_USER"), said("CI_REGISTRY_PASSWORD"));
    if let (Some(host), Some(username), Some(password)) = gitlabs {
        logins.insert(host_of(&host), Login { username, password });
    }
    // What somebody wrote himself goes before what GitLab gives to every job.
    for (place, auth) in said(DOCKER_AUTH_CONFIG).map(|text| DockerConfig::of(&text)).unwrap_or_default().auths {
        logins.extend(auth.login().map(|login| (host_of(&place), login)));
    }
    logins
}

/// What nobody may read in a log of a `~/.docker/config.json`: its passwords, and names with passwords as they are written and sent.
/// Nothing of a text that is none.
pub fn secrets_in(docker_config: &str) -> Vec<String> {
    let auths = DockerConfig::of(docker_config).auths.into_values();
    auths.flat_map(DockerAuth::secrets).filter(|secret| !secret.is_empty()).collect()
}

/// Where GitLab's users keep one.
pub const DOCKER_AUTH_CONFIG: &str = "DOCKER_AUTH_CONFIG";

/// What of `~/.docker/config.json` is about names and passwords.
#[derive(Default, Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

impl DockerConfig {
    fn of(text: &str) -> DockerConfig {
        serde_json::from_str(text).unwrap_or_default()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

impl DockerAuth {
    fn secrets(self) -> Vec<String> {
        let mut secrets: Vec<String> =
            [&self.auth, &self.identity_token, &self.registry_token].into_iter().flatten().cloned().collect();
        if let Some(Login { username, password }) = self.login() {
            secrets.push(STANDARD.encode(format!("{username}:{password}")));
            // Who made it with `echo name:word | base64` has a line's end in it.
            secrets.push(password.trim().to_owned());
        }
        secrets
    }

    fn login(self) -> Option<Login> {
        if let (Some(username), Some(password)) = (self.username, self.password) {
            return Some(Login { username, password });
        }
        let both = String::from_utf8(STANDARD.decode(self.auth?.trim()).ok()?).ok()?;
        let (username, password) = both.split_once(':')?;
        Some(Login { username: username.to_owned(), password: password.to_owned() })
    }
}

/// `https://index.docker.io/v1/` is how Docker's own place is written there.
pub fn host_of(place: &str) -> String {
    let bare = place.split_once("://").map_or(place, |(_, bare)| bare);
    let host = bare.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER.to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::registry::Upstream;

    #[test]
    fn a_job_brings_the_names_and_passwords_that_gitlab_gives_it_and_those_of_docker() {
        let config = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6YTpi"},
            "quay.io": {"username": "you", "password": "word"}, "broken.org": {"auth": "?"}}}"#;
        let environ = [
            ("CI_REGISTRY", "registry.gitlab.example:5050"),
            ("CI_REGISTRY_USER", "gitlab-ci-token"),
            ("CI_REGISTRY_PASSWORD", "glcbt-1"),
            ("DOCKER_AUTH_CONFIG", config),
        ];
        let environ = environ.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let login = |username: &str, password: &str| Login { username: username.into(), password: password.into() };
        let expected = Logins::from([
            ("docker.io".to_owned(), login("me", "a:b")),
            ("quay.io".to_owned(), login("you", "word")),
            ("registry.gitlab.example:5050".to_owned(), login("gitlab-ci-token", "glcbt-1")),
        ]);
        assert_eq!(logins(&environ), expected);
        assert_eq!(logins(&BTreeMap::from([("DOCKER_AUTH_CONFIG".to_owned(), "{".to_owned())])), Logins::new());
    }

    #[test]
    fn the_secrets_of_a_docker_config_are_its_passwords_and_what_they_are_written_as() {
        let config = r#"{"auths": {"a.org": {"auth": "bWU6d29yZAo="}, "b.org": {"username": "you", "password": "pass"},
            "c.org": {"identitytoken": "long-lived"}, "d.org": {"auth": ""}}}"#;
        let expected = ["bWU6d29yZAo=", "bWU6d29yZAo=", "word", "eW91OnBhc3M=", "pass", "long-lived"];
        assert_eq!(secrets_in(config), expected);
        assert_eq!(secrets_in("no config"), Vec::<String>::new());
    }

    #[test]
    fn each_registry_has_its_place_here() {
        let upstream = |host: &str| Upstream { host: host.into(), ..Upstream::default() };
        let settings = Settings { upstreams: vec![upstream("quay.io"), upstream("lab:5000")], ..Settings::default() };
        let expected = [("lab:5000", "10.77.0.1:5000/lab_5000"), ("quay.io", "10.77.0.1:5000/quay.io")];
        let places = places(Some(&settings), Ipv4Addr::new(10, 77, 0, 1), 5000);
        assert_eq!(places.iter().map(|(host, place)| (host.as_str(), place.as_str())).collect::<Vec<_>>(), expected);
    }
}
