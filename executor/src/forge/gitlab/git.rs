//! How git is called for a job's repository: as the farm's user, with the job's token in its environment, not in its arguments, for the
//! instance alone; with none of the host's configuration; and by no transport but HTTP, whatever a URL of the repository says.
//!
//! Where the instance itself redirects to is followed as git does by itself; of all others no redirect is, since nobody has judged it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use super::client::FETCH_PAUSES;

/// One call of git: a large repository over a slow line.
const GIT_TIME: Duration = Duration::from_secs(1800);
/// What git says of a failure; the last of it tells most.
const SAID_BYTES_MAX: usize = 4096;

/// How git is called in one folder.
#[derive(Clone)]
pub(super) struct Git {
    pub folder: PathBuf,
    /// The repository's, without a token.
    pub url: String,
    /// Its scheme, host and port.
    pub origin: String,
    authorization: String,
    settings: Vec<(String, String)>,
}

impl Git {
    /// For the repository at this URL; `token` is the job's, where the URL has none itself.
    pub(super) fn of(
        folder: &Path,
        repo_url: &str,
        token: &str,
        certificate_authority: Option<&Path>,
    ) -> Result<Git, String> {
        let (url, login) = without_login(repo_url)?;
        let login = login.unwrap_or_else(|| format!("gitlab-ci-token:{token}"));
        // For this repository's instance alone: git compares host and path by parts (git-config, http.<url>).
        let origin = url.match_indices('/').nth(2).map_or(url.as_str(), |(at, _)| &url[..at]).to_owned();
        let authorization = format!("Basic {}", BASE64_STANDARD.encode(login));
        let mut git = Git { folder: folder.to_owned(), url, origin, authorization, settings: Vec::new() };
        for (key, value) in [
            ("protocol.allow", "never"),
            ("protocol.http.allow", "always"),
            ("protocol.https.allow", "always"),
            ("http.followRedirects", "false"),
            ("init.defaultBranch", "main"),
            ("advice.detachedHead", "false"),
            ("core.hooksPath", "/dev/null"),
            // It would go on by itself when git has ended.
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
        ] {
            git.set(key, value);
        }
        git.set(&format!("http.{}/.extraHeader", git.origin), &format!("Authorization: {}", git.authorization));
        git.set(&format!("http.{}/.followRedirects", git.origin), "initial");
        if let Some(path) = certificate_authority {
            git.set(&format!("http.{}/.sslCAInfo", git.origin), &path.display().to_string());
        }
        Ok(git)
    }

    /// The same in another folder.
    pub(super) fn at(&self, folder: PathBuf) -> Git {
        Git { folder, ..self.clone() }
    }

    /// What the instance is shown, as a header's value.
    pub(super) fn authorization(&self) -> &str {
        &self.authorization
    }

    /// From here on this is set, besides what was.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    fn environment(&self) -> Vec<(String, String)> {
        let count = self.settings.len().to_string();
        let fixed = [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("HOME", "/dev/null"),
            ("LC_ALL", "C"),
            ("GIT_CONFIG_COUNT", count.as_str()),
        ];
        let mut environment: Vec<_> = fixed.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for (index, (key, value)) in self.settings.iter().enumerate() {
            environment.push((format!("GIT_CONFIG_KEY_{index}"), key.clone()));
            environment.push((format!("GIT_CONFIG_VALUE_{index}"), value.clone()));
        }
        for name in
            ["PATH", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY"]
        {
            environment.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
        }
        environment
    }

    /// Fetches from the repository; where the server is away for a moment, again.
    pub(super) async fn fetch(&self, options: &[&str], refspecs: &[&str]) -> Result<(), String> {
        let all: Vec<&str> =
            [&["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"], options, &["--", "origin"], refspecs]
                .concat();
        for pause in FETCH_PAUSES {
            match self.run(&all).await {
                Err(why) if is_passing(&why) => tokio::time::sleep(pause).await,
                other => return other.map(drop),
            }
        }
        self.run(&all).await.map(drop)
    }

    /// What it printed; else a sentence with the last that it said.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(&self.folder).env_clear().envs(self.environment());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = arguments.first().copied().unwrap_or_default();
        let output = match tokio::time::timeout(GIT_TIME, output_of(command)).await {
            Err(_) => return Err(format!("git {what} took longer than {} min", GIT_TIME.as_secs() / 60)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err("the repository is fetched by git, and the farm's server has none: install the package git there, or set \
                            GIT_STRATEGY to none"
                    .to_owned());
            }
            Ok(Err(error)) => return Err(format!("git {what} cannot be run: {error}")),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = &output.stderr[output.stderr.len().saturating_sub(SAID_BYTES_MAX)..];
        Err(format!("git {what} failed: {}", String::from_utf8_lossy(said).trim()))
    }
}

/// Whether what git says of a failure is of a server that is not there, or not well.
fn is_passing(said: &str) -> bool {
    let signs = [
        "returned error: 5",
        "returned error: 429",
        "Could not resolve host",
        "Failed to connect",
        "RPC failed",
        "early EOF",
    ];
    signs.iter().any(|sign| said.contains(sign))
}

/// What it printed when it has ended. Who drops this ends it, with all that it has started: what fetches and what unpacks are children of git's.
async fn output_of(mut command: Command) -> io::Result<Output> {
    struct Group(Option<Pid>);
    impl Drop for Group {
        fn drop(&mut self) {
            if let Some(id) = self.0 {
                // An error means that nothing of the group is left.
                let _ = killpg(id, Signal::SIGKILL);
            }
        }
    }
    let child = command.process_group(0).spawn()?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let output = child.wait_with_output().await;
    // Its number may be somebody else's by now.
    group.0 = None;
    output
}

/// A URL, and what stood before its host.
fn without_login(url: &str) -> Result<(String, Option<String>), String> {
    let (scheme, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        .ok_or_else(|| format!("the repository's URL `{url}` is neither http nor https"))?;
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rsplit_once('@') {
        Some((login, host)) => Ok((format!("{scheme}://{host}{}", &rest[host_end..]), Some(login.to_owned()))),
        None => Ok((url.to_owned(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_no_longer_for_git_ends_all_that_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let begun = folder.path().join("begun");
        let mut git = Command::new("sh");
        git.args(["-c", "sleep 1000 & echo $! >new && mv new begun; wait"]).current_dir(folder.path());
        tokio::select! {
            ended = output_of(git) => panic!("{ended:?}"),
            () = until(|| begun.exists()) => {}
        }
        let id = std::fs::read_to_string(&begun).unwrap();
        let stat = PathBuf::from(format!("/proc/{}/stat", id.trim()));
        // Where nobody waits for what has lost its parent, it stays as a zombie.
        until(|| !std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "))).await;
    }

    async fn until(is_so: impl Fn() -> bool) {
        let waiting = async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
    }

    #[test]
    fn a_server_that_is_away_is_told_from_one_that_refuses() {
        for said in [
            "error: RPC failed; HTTP 502 curl 22 The requested URL returned error: 502",
            "fatal: unable to access 'http://h/x/': Failed to connect to h port 80 after 0 ms: Couldn't connect to server",
        ] {
            assert!(is_passing(said), "{said}");
        }
        assert!(!is_passing("fatal: unable to access 'http://h/x/': The requested URL returned error: 403"));
        assert!(!is_passing("fatal: couldn't find remote ref refs/heads/gone"));
    }

    #[test]
    fn a_token_is_taken_out_of_the_url() {
        let read = |url: &str| without_login(url);
        let expected = ("https://gitlab.example.org/a/b.git".to_owned(), Some("gitlab-ci-token:x".to_owned()));
        assert_eq!(read("https://gitlab-ci-token:x@gitlab.example.org/a/b.git"), Ok(expected));
        assert_eq!(read("http://host/a@b.git"), Ok(("http://host/a@b.git".to_owned(), None)));
        assert!(read("file:///etc").unwrap_err().contains("neither http nor https"));
        assert!(read("--upload-pack=x").is_err());
    }
}
