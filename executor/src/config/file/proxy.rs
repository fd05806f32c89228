//! Where the farm lets its DUTs connect to, and from where it fetches for those who submit.

use std::str::FromStr;

use gateway::egress::{Network, Rule};

use super::*;
use crate::config::{DownloadsConfig, ProxyConfig};

/// What jobs may be let to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct ProxyKeys {
    /// `host:port` of each place that a job may name: `*` is any host or port, `*.example.org` all names below one; nowhere when absent.
    #[schemars(extend("x-example" = "allowed_endpoints: ['registry.example.org:443', '*.example.com:443']"))]
    allowed_endpoints: Vec<String>,
    /// Private networks that those may lead to; none when absent.
    #[schemars(extend("x-example" = "private_networks: [10.1.0.0/16]"))]
    private_networks: Vec<String>,
}

impl ProxyKeys {
    /// As the farm has it.
    pub(super) fn checked(&self, findings: &mut Findings) -> ProxyConfig {
        let allowed = all::<Rule>(["proxy", "allowed_endpoints"], &self.allowed_endpoints, PLACE, findings);
        let private_networks = all::<Network>(["proxy", "private_networks"], &self.private_networks, NETWORK, findings);
        ProxyConfig { allowed, private_networks }
    }
}

/// From where the server fetches what those name by URL who may submit, and no more.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct DownloadsKeys {
    /// `host:port` of places that may be anywhere, this host included; none when absent.
    #[schemars(extend("x-example" = "trusted_endpoints: ['127.0.0.1:8000', 'artifacts.lab:*']"))]
    trusted_endpoints: Vec<String>,
    /// Private networks that all others may lead to; all of them when absent, none when empty.
    #[schemars(extend("x-example" = "private_networks: [10.1.0.0/16]"))]
    private_networks: Option<Vec<String>>,
}

impl DownloadsKeys {
    /// As the farm has it.
    pub(super) fn checked(&self, findings: &mut Findings) -> DownloadsConfig {
        let trusted = all::<Rule>(["downloads", "trusted_endpoints"], &self.trusted_endpoints, PLACE, findings);
        let private_networks = self.private_networks.as_ref();
        let private_networks =
            private_networks.map(|texts| all::<Network>(["downloads", "private_networks"], texts, NETWORK, findings));
        DownloadsConfig { trusted, private_networks }
    }
}

const PLACE: &str = "write `host:port`, `*.host:port`, `*:port` or `host:*`; an IPv6 address in brackets";
const NETWORK: &str = "write an address and a prefix, such as `10.1.0.0/16`";

fn all<T: FromStr<Err = String>>(key: [&str; 2], texts: &[String], hint: &str, findings: &mut Findings) -> Vec<T> {
    let read = |(index, text): (usize, &String)| {
        let at = [key[0].to_owned(), key[1].to_owned(), index.to_string()];
        text.parse::<T>().map_err(|why| findings.tell(&at, format!("`{text}`: {why}"), hint)).ok()
    };
    texts.iter().enumerate().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(proxy: &str) -> Result<FarmConfig, Problems> {
        let text = format!("name: lab\nnetwork: {{loopback: {{}}}}\nduts: []\nproxy: {proxy}\n");
        parse("farm.yml", &text, Path::new("."))
    }

    #[test]
    fn a_farm_lets_its_duts_to_what_it_names_and_nowhere_without() {
        let config = read("{allowed_endpoints: ['*.example.org:443', 'cache:*'], private_networks: [10.1.0.0/16]}");
        let proxy = config.unwrap().proxy;
        assert_eq!(proxy.allowed.iter().map(Rule::to_string).collect::<Vec<_>>(), ["*.example.org:443", "cache:*"]);
        assert_eq!(proxy.private_networks, ["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(read("{}").unwrap().proxy, ProxyConfig::default());
    }

    #[test]
    fn a_farm_fetches_from_all_private_networks_unless_it_names_some_and_from_its_own_host_where_it_says_so() {
        let read = |downloads: &str| {
            let text = format!("name: lab\nnetwork: {{loopback: {{}}}}\nduts: []\ndownloads: {downloads}\n");
            parse("farm.yml", &text, Path::new(".")).map(|config| config.downloads)
        };
        assert_eq!(read("{}").unwrap(), DownloadsConfig { trusted: Vec::new(), private_networks: None });
        assert_eq!(read("{private_networks: []}").unwrap().private_networks, Some(Vec::new()));
        let named = read("{trusted_endpoints: ['127.0.0.1:8000'], private_networks: [10.1.0.0/16]}").unwrap();
        assert_eq!(named.trusted.iter().map(Rule::to_string).collect::<Vec<_>>(), ["127.0.0.1:8000"]);
        assert_eq!(named.private_networks, Some(vec!["10.1.0.0/16".parse().unwrap()]));
        let told = read("{trusted_endpoints: [a.org], private_networks: [10.0.0.1]}").unwrap_err().to_string();
        for part in ["downloads.trusted_endpoints", "`a.org`: it has no port", "`10.0.0.1`: it has no prefix"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn what_is_no_place_is_told_at_its_place() {
        let problems = read("{allowed_endpoints: [a.org, '*a:1'], private_networks: [10.0.0.1]}").unwrap_err();
        let told = problems.to_string();
        for part in ["`a.org`: it has no port", "`*a:1`: a `*` stands for", "`10.0.0.1`: it has no prefix"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
