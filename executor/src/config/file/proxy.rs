//! Where the farm lets its DUTs connect to.

use std::str::FromStr;

use gateway::egress::{Network, Rule};

use super::*;
use crate::config::ProxyConfig;

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
        let hint = "write `host:port`, `*.host:port`, `*:port` or `host:*`; an IPv6 address in brackets";
        let allowed = all::<Rule>("allowed_endpoints", &self.allowed_endpoints, hint, findings);
        let hint = "write an address and a prefix, such as `10.1.0.0/16`";
        let private_networks = all::<Network>("private_networks", &self.private_networks, hint, findings);
        ProxyConfig { allowed, private_networks }
    }
}

fn all<T: FromStr<Err = String>>(key: &str, texts: &[String], hint: &str, findings: &mut Findings) -> Vec<T> {
    let read = |(index, text): (usize, &String)| {
        let at = ["proxy".to_owned(), key.to_owned(), index.to_string()];
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
    fn what_is_no_place_is_told_at_its_place() {
        let problems = read("{allowed_endpoints: [a.org, '*a:1'], private_networks: [10.0.0.1]}").unwrap_err();
        let told = problems.to_string();
        for part in ["`a.org`: it has no port", "`*a:1`: a `*` stands for", "`10.0.0.1`: it has no prefix"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
