//! Submodules of a job's repository: their URLs are the author's, and git would connect to wherever they lead, with the server's own view of
//! the network.
//!
//! ```text
//!  git submodule init ─► the URLs of this level ─┬─ of the instance itself ────────────────────────────────────────────────┐
//!                                                └─ of elsewhere ─► judged, its redirects too ─► where it ends, and at which│
//!                                                   addresses: git is told both (http.curloptResolve, from git 2.37 on) ──┤
//!  the next level: each of them ◄── git submodule update ◄───────────────────────────────────────────────────────────────┘
//! ```
//! A redirect that comes only now is not followed (git.rs).

use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;

use super::git::Git;
use crate::farm::Descriptions;

/// Submodules of submodules: more are somebody's circle.
pub(super) const LEVELS_MAX: usize = 8;
/// All of one job: each is a clone.
const COUNT_MAX: usize = 200;
/// What git asks a server first (gitprotocol-http, "Smart Clients").
const FIRST: &str = "/info/refs";

/// Where submodules may come from.
pub(super) struct Sources<'a> {
    /// Who may say where those of elsewhere come from.
    pub elsewhere: &'a Descriptions,
    /// What projects' paths follow on the instance.
    pub root: &'a str,
    pub by_ssh: BySsh<'a>,
}

/// What becomes of URLs of SSH: nobody has a key for them here.
#[derive(Clone, Copy)]
pub(super) enum BySsh<'a> {
    /// They are those of the same place by HTTPS (`GIT_SUBMODULE_FORCE_HTTPS`). `own`: the instance's name for SSH.
    ByHttps {
        own: &'a str,
    },
    Refused,
}

impl Sources<'_> {
    /// Fetches so many levels of them.
    pub(super) async fn fetch(&self, git: &Git, depth: Option<&str>, levels: usize) -> Result<(), String> {
        let (mut folders, mut count) = (vec![git.folder.clone()], 0);
        for _ in 0..levels {
            let mut next = Vec::new();
            for folder in folders {
                next.extend(self.level(git.at(folder), depth).await?);
            }
            count += next.len();
            if count > COUNT_MAX {
                return Err(format!("the repository has more than {COUNT_MAX} submodules"));
            }
            folders = next;
        }
        Ok(())
    }

    /// Those of one folder; gives where they are.
    async fn level(&self, mut git: Git, depth: Option<&str>) -> Result<Vec<PathBuf>, String> {
        if !git.folder.join(".gitmodules").is_file() {
            return Ok(Vec::new());
        }
        git.run(&["submodule", "init", "--quiet"]).await?;
        let listed = git.run(&["config", "--local", "--null", "--list"]).await?;
        for (key, url) in urls(&listed) {
            let by_https = self.by_https(url);
            let checked = check(&git.origin, self.elsewhere, by_https.as_deref().unwrap_or(url)).await;
            let checked = checked.map_err(|why| format!("the submodule {url}: {why}"))?;
            if let Some(other) = checked.other_url.or(by_https) {
                git.run(&["config", "--local", key, &other]).await?;
            }
            for rule in checked.rules {
                git.set("http.curloptResolve", &rule);
            }
        }
        let options = ["submodule", "update", "--quiet"];
        git.run(&options.into_iter().chain(depth).collect::<Vec<_>>()).await?;
        // Where they lie is in the index, as entries of this mode (gitformat-index).
        let staged = git.run(&["ls-files", "--stage", "-z"]).await?;
        let links =
            staged.split('\0').filter(|line| line.starts_with("160000 ")).filter_map(|line| line.split_once('\t'));
        Ok(links.map(|(_, path)| git.folder.join(path)).filter(|path| path.join(".git").exists()).collect())
    }

    /// What stands in the place of a URL of SSH, if it is to be another.
    fn by_https(&self, url: &str) -> Option<String> {
        let BySsh::ByHttps { own } = self.by_ssh else { return None };
        let (host, path) = of_ssh(url)?;
        let root = Url::parse(self.root).ok()?;
        let is_own = host == own || root.host_str() == Some(host);
        Some(if is_own { format!("{}{path}", self.root) } else { format!("https://{host}/{path}") })
    }
}

/// Host and path of `ssh://git@host:22/path` or `git@host:path` (git-fetch, "GIT URLS").
fn of_ssh(url: &str) -> Option<(&str, &str)> {
    if let Some(rest) = url.strip_prefix("ssh://") {
        let (authority, path) = rest.split_once('/')?;
        let host = authority.rsplit('@').next()?;
        return Some((host.split_once(':').map_or(host, |(host, _)| host), path));
    }
    let (authority, path) = url.split_once(':').filter(|(_, path)| !path.starts_with("//"))?;
    let host = authority.split_once('@').filter(|_| !authority.contains('/')).map(|(_, host)| host)?;
    Some((host, path.trim_start_matches('/')))
}

/// The submodules' URLs, each with the key under which git has it.
fn urls(listed: &str) -> Vec<(&str, &str)> {
    let pairs = listed.split('\0').filter_map(|line| line.split_once('\n'));
    pairs.filter(|(key, _)| key.starts_with("submodule.") && key.ends_with(".url")).collect()
}

/// What git is told of a URL that may be fetched.
#[derive(Debug, Default, PartialEq, Eq)]
struct Checked {
    /// Where redirects lead, or how what was judged is written.
    other_url: Option<String>,
    /// At which addresses its host is (curl, CURLOPT_RESOLVE).
    rules: Vec<String>,
}

async fn check(origin: &str, elsewhere: &Descriptions, text: &str) -> Result<Checked, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or_else(|| match of_ssh(text) {
        Some(_) => "it is fetched by http or https alone: set GIT_SUBMODULE_FORCE_HTTPS to true".to_owned(),
        None => "it is fetched by http or https alone".to_owned(),
    })?;
    if is_of(origin, &url) {
        return Ok(Checked { other_url: unless_written(text, &url), rules: Vec::new() });
    }
    let end = end_of(elsewhere, &url).await?;
    let other_url = unless_written(text, &end);
    if is_of(origin, &end) {
        return Ok(Checked { other_url, rules: Vec::new() });
    }
    let addresses = elsewhere.addresses(&end).await.map_err(|error| error.to_string())?;
    Ok(Checked { other_url, rules: addresses.and_then(|all| rule(&end, &all)).into_iter().collect() })
}

/// What git is told in the place of a text that is written otherwise: it and curl read one as another host than we do (`http://a\@b/`).
fn unless_written(text: &str, url: &Url) -> Option<String> {
    (url.as_str() != text).then(|| url.to_string())
}

fn is_of(origin: &str, url: &Url) -> bool {
    Url::parse(origin).is_ok_and(|origin| origin.origin() == url.origin())
}

/// Where redirects lead, asked as git asks.
async fn end_of(elsewhere: &Descriptions, url: &Url) -> Result<Url, String> {
    let mut first = url.clone();
    first.set_path(&(url.path().trim_end_matches('/').to_owned() + FIRST));
    first.set_query(Some("service=git-upload-pack"));
    let reached = elsewhere.end_of(&first).await.map_err(|error| error.to_string())?;
    if reached == first {
        return Ok(url.clone());
    }
    let path = reached.path().strip_suffix(FIRST).ok_or_else(|| format!("it is redirected to {reached}"))?.to_owned();
    let mut end = reached;
    end.set_path(&path);
    end.set_query(None);
    Ok(end)
}

fn rule(url: &Url, addresses: &[IpAddr]) -> Option<String> {
    let written = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let all: Vec<String> = addresses.iter().map(written).collect();
    Some(format!("{}:{}:{}", url.host_str()?, url.port_or_known_default()?, all.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_ssh_become_those_of_the_instance_or_of_their_own_host() {
        for (url, expected) in [
            ("git@gitlab.example.org:group/lib.git", Some(("gitlab.example.org", "group/lib.git"))),
            ("ssh://git@ssh.example.org:2222/group/lib.git", Some(("ssh.example.org", "group/lib.git"))),
            ("https://me@gitlab.example.org:8443/x", None),
            ("../lib.git", None),
            ("/srv/a@b:c", None),
            ("C:lib", None),
        ] {
            assert_eq!(of_ssh(url), expected, "{url}");
        }
    }

    #[test]
    fn urls_are_found_among_all_that_git_has_set() {
        let listed = "core.bare\nfalse\0submodule.lib/a.b.active\ntrue\0submodule.lib/a.b.url\nhttps://h/x\0core.z\n";
        assert_eq!(urls(listed), [("submodule.lib/a.b.url", "https://h/x")]);
    }

    #[test]
    fn git_is_told_the_url_that_was_judged_and_not_what_it_could_read_as_another() {
        let told = |text: &str| unless_written(text, &text.parse().unwrap());
        assert_eq!(told("https://example.org/x.git"), None);
        let judged = "http://git.example/@127.0.0.1:8420/x.git";
        assert_eq!(told("http://git.example\\@127.0.0.1:8420/x.git").as_deref(), Some(judged));
        assert_eq!(told("http:\\\\git.example\tx/").as_deref(), Some("http://git.examplex/"));
    }

    #[test]
    fn git_is_told_the_addresses_that_were_judged() {
        let url: Url = "https://example.org/x.git".parse().unwrap();
        let addresses: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(rule(&url, &addresses).as_deref(), Some("example.org:443:192.0.2.1,[2001:db8::1]"));
    }
}
