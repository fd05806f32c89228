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
    let written = said("DOCKER_AUTH_CONFIG").and_then(|text| serde_json::from_str::<DockerConfig>(&text).ok());
    for (place, auth) in written.map(|config| config.auths).unwrap_or_default() {
        logins.extend(auth.login().map(|login| (host_of(&place), login)));
    }
    logins
}

/// What of `~/.docker/config.json` is about names and passwords.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl DockerAuth {
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
    use gateway::registry::{Scheme, Upstream};

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
    fn each_registry_has_its_place_here() {
        let upstream = |host: &str| Upstream { host: host.into(), scheme: Scheme::Https, login: None };
        let settings = Settings { upstreams: vec![upstream("quay.io"), upstream("lab:5000")], ..Settings::default() };
        let expected = [("lab:5000", "10.77.0.1:5000/lab_5000"), ("quay.io", "10.77.0.1:5000/quay.io")];
        let places = places(Some(&settings), Ipv4Addr::new(10, 77, 0, 1), 5000);
        assert_eq!(places.iter().map(|(host, place)| (host.as_str(), place.as_str())).collect::<Vec<_>>(), expected);
    }
}
