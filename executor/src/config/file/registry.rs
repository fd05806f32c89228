//! The registries whose images DUTs have through the farm.

use std::time::Duration;

use gateway::egress::Network;
use gateway::registry::{Authority, Login, Scheme, Settings, Upstream};

use super::console_log::SizeForm;
use super::*;

/// Container images of other registries, kept so that each is loaded once.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct RegistryKeys {
    /// The registries; no images are served when absent.
    #[schemars(extend("x-example" = "upstreams: [{host: registry.freedesktop.org}, {host: docker.io}]"))]
    upstreams: Vec<UpstreamKeys>,
    /// Of all images, at most; `50G` when absent.
    #[schemars(with = "Option<SizeForm>", extend("x-example" = "size: 200G"))]
    size: Option<u64>,
    /// How long a tag is what it was before its registry is asked again; `1 minute` when absent.
    #[schemars(with = "Option<LengthForm>", extend("x-example" = "tags_last: 10 minutes"))]
    tags_last: Option<f64>,
}

/// A registry.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
struct UpstreamKeys {
    /// Its host, with its port where images' names have one.
    #[schemars(extend("x-example" = "host: registry.freedesktop.org"))]
    host: String,
    /// How it is reached; `https` when absent.
    scheme: Option<SchemeKey>,
    /// The name for jobs that have none of their own.
    username: Option<String>,
    /// A file with the password of that, relative to this file; spaces and line ends around it do not count.
    #[schemars(extend("x-example" = "password_file: registry.password"))]
    password_file: Option<String>,
    /// A file with the certificate of the authority that signed its own, relative to this file; trusted beside those that the host trusts.
    #[schemars(extend("x-example" = "certificate_authority: lab-ca.pem"))]
    certificate_authority: Option<String>,
}

/// How a registry is reached.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum SchemeKey {
    /// Over TLS.
    Https,
    /// In clear: whoever is between sees passwords.
    Http,
}

impl RegistryKeys {
    /// As the gateway has it; what its registries lead to may be in the `private_networks` of the proxy.
    pub(super) fn checked(
        &self,
        private_networks: &[Network],
        directory: &Path,
        findings: &mut Findings,
    ) -> Option<Settings> {
        let mut upstreams: Vec<Upstream> = Vec::new();
        for (index, keys) in self.upstreams.iter().enumerate() {
            let at = |key: &str| ["registry".to_owned(), "upstreams".to_owned(), index.to_string(), key.to_owned()];
            let host = keys.host.to_ascii_lowercase();
            if let Err(why) = check_host(&host) {
                findings.tell(&at("host"), format!("`{}` {why}", keys.host), "write `HOST` or `HOST:PORT`");
            }
            if upstreams.iter().any(|other| other.host == host) {
                findings.tell(&at("host"), format!("`{host}` is there twice"), "write each registry once");
            }
            let scheme = match keys.scheme {
                None | Some(SchemeKey::Https) => Scheme::Https,
                Some(SchemeKey::Http) => Scheme::Http,
            };
            let authority = keys.authority(&at, directory, findings);
            upstreams.push(Upstream { host, scheme, login: keys.login(&at, directory, findings), authority });
        }
        if upstreams.is_empty() {
            return None;
        }
        let usual = Settings::default();
        Some(Settings {
            upstreams,
            bytes_max: self.size.unwrap_or(usual.bytes_max),
            tags_last: self.tags_last.map_or(usual.tags_last, Duration::from_secs_f64),
            private_networks: private_networks.to_vec(),
        })
    }
}

impl UpstreamKeys {
    fn login(&self, at: &dyn Fn(&str) -> [String; 4], directory: &Path, findings: &mut Findings) -> Option<Login> {
        let (username, file) = match (&self.username, &self.password_file) {
            (Some(username), Some(file)) => (username.clone(), file),
            (None, None) => return None,
            (Some(_), None) => {
                findings.tell(&at("username"), "a name without a password".to_owned(), "write `password_file`, too");
                return None;
            }
            (None, Some(_)) => {
                findings.tell(&at("password_file"), "a password without a name".to_owned(), "write `username`, too");
                return None;
            }
        };
        let path = directory.join(file);
        let read = std::fs::read_to_string(&path).map_err(|error| {
            let what = format!("cannot read {}: {error}", path.display());
            findings.tell(
                &at("password_file"),
                what,
                "write the password into this file, readable for the server alone",
            );
        });
        read.ok().map(|password| Login { username, password: password.trim().to_owned() })
    }

    fn authority(
        &self,
        at: &dyn Fn(&str) -> [String; 4],
        directory: &Path,
        findings: &mut Findings,
    ) -> Option<Authority> {
        let (at, path) = (at("certificate_authority"), directory.join(self.certificate_authority.as_ref()?));
        if matches!(self.scheme, Some(SchemeKey::Http)) {
            findings.tell(
                &at,
                "a registry in clear shows no certificate".to_owned(),
                "leave this out, or `scheme: http`",
            );
        }
        let read = std::fs::read(&path).map_err(|error| error.to_string()).and_then(|pem| Authority::of(&pem));
        let cannot = |why| {
            let what = format!("cannot read certificates from {}: {why}", path.display());
            findings.tell(&at, what, "write them there as PEM: `-----BEGIN CERTIFICATE-----` and so on");
        };
        read.map_err(cannot).ok()
    }
}

/// A host and perhaps a port, as an image's name begins with them.
fn check_host(text: &str) -> Result<(), &'static str> {
    if text.contains('/') {
        return Err("is not a registry's host: no scheme, no path");
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if host.is_empty() || !host.bytes().all(is_letter) {
        return Err("is no host");
    }
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("has no number for its port");
    }
    // Else its images' names would be Docker's.
    if port.is_none() && !host.contains('.') && host != "localhost" {
        return Err("is no host in an image's name, which needs a `.` or a port");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(directory: &Path, registry: &str) -> Result<Option<Settings>, String> {
        let text = format!("name: lab\nnetwork: {{loopback: {{}}}}\nduts: []\nregistry: {registry}\n");
        let config = parse("farm.yml", &text, directory);
        config.map(|config| config.registry).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_farm_has_the_images_of_the_registries_that_it_names_and_none_without() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("password"), "word\n").unwrap();
        assert_eq!(read(directory.path(), "{}"), Ok(None));
        let told = "{size: 10G, tags_last: 5 minutes, upstreams: [{host: Quay.io}, \
                    {host: 'lab:5000', scheme: http, username: me, password_file: password}]}";
        let login = Login { username: "me".into(), password: "word".into() };
        let upstreams = vec![
            Upstream { host: "quay.io".into(), ..Upstream::default() },
            Upstream { host: "lab:5000".into(), scheme: Scheme::Http, login: Some(login), authority: None },
        ];
        let tags_last = Duration::from_secs(300);
        let expected = Settings { upstreams, bytes_max: 10 << 30, tags_last, private_networks: Vec::new() };
        assert_eq!(read(directory.path(), told), Ok(Some(expected)));
    }

    #[test]
    fn what_is_no_registry_is_told_at_its_place() {
        let told = "{upstreams: [{host: 'https://quay.io'}, {host: registry}, {host: a.org, username: me}, \
                    {host: a.org, username: me, password_file: gone}, \
                    {host: b.org, scheme: http, certificate_authority: gone}, {host: c.org, certificate_authority: Cargo.toml}]}";
        let told = read(Path::new("."), told).unwrap_err();
        for part in [
            "`https://quay.io` is not a registry's host",
            "`registry` is no host in an image's name",
            "a name without a password",
            "`a.org` is there twice",
            "cannot read ./gone",
            "a registry in clear shows no certificate",
            "cannot read certificates from ./gone: No such file",
            "cannot read certificates from ./Cargo.toml: it has no certificate",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
