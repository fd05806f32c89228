//! The farm file's `gitlab`.

use super::*;
use crate::config::gitlab::{
    CacheLimits, CheckoutLimits, GitlabConfig, Per, Refs, RegisteredFor, RunnerConfig, TerminalConfig,
};

/// A GitLab instance whose jobs are taken.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["url"]))]
pub(super) struct GitlabKeys {
    /// Where it is, such as `https://gitlab.example.org`.
    url: String,
    /// A file with the token that creates runners (scopes `create_runner` and `manage_runner`), relative to this file.
    token_file: Option<String>,
    /// A file with certificates of its authority as PEM, relative to this file.
    certificate_authority: Option<String>,
    /// Whose the runners are that are registered; everybody's when absent.
    register_for: RegisterForKeys,
    /// What is offered; a runner for each DUT when absent.
    runners: Vec<RunnerKeys>,
    /// The farm's project in whose name a GitLab project's jobs run, by that one's number; `HOST/project/NUMBER` when absent.
    projects: BTreeMap<String, String>,
    /// Whether only jobs of protected branches and tags are taken; `all` when absent.
    refs: Option<RefsKey>,
    /// The longest that a job of it may take; 6 hours when absent.
    #[schemars(with = "Option<LengthForm>", extend("x-example" = "maximum_timeout: 2 hours"))]
    maximum_timeout: Option<f64>,
    /// Of a job's log, so much is sent; `16M` when absent. The whole console is an artifact where it was more.
    #[schemars(with = "Option<console_log::SizeForm>", extend("x-example" = "log_size: 4M"))]
    log_size: Option<u64>,
    /// The job description that runs plain `script:` jobs, relative to this file; the farm's own when absent.
    script_job: Option<String>,
    /// What is kept of the `cache:` of plain scripts between jobs.
    cache: CacheKeys,
    /// What a job's files may take of the farm's disk.
    checkout: CheckoutKeys,
    /// Lets GitLab's web terminal at the consoles of its jobs; none when absent.
    terminal: Option<TerminalKeys>,
}

/// What is kept of `cache:`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct CacheKeys {
    /// Of all projects of the instance together; `10G` when absent. A project has a quarter of it.
    #[schemars(with = "Option<console_log::SizeForm>", extend("x-example" = "quota: 40G"))]
    quota: Option<u64>,
    /// How long an archive is kept after its last use; 14 days when absent.
    #[schemars(with = "Option<LengthForm>", extend("x-example" = "expiration: 30 days"))]
    expiration: Option<f64>,
}

impl CacheKeys {
    fn limits(&self) -> CacheLimits {
        let usual = CacheLimits::default();
        CacheLimits {
            bytes_max: self.quota.unwrap_or(usual.bytes_max),
            expiration: self.expiration.map_or(usual.expiration, Duration::from_secs_f64),
        }
    }
}

/// What the repository, the image and the rest of a job's files may take of the farm's disk.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct CheckoutKeys {
    /// Of one job, all together, while they are fetched and packed; `32G` when absent.
    #[schemars(with = "Option<console_log::SizeForm>", extend("x-example" = "quota: 8G"))]
    quota: Option<u64>,
    /// So much stays on the disk that the state folder is on; `1G` when absent. No job is asked for where there is less.
    #[schemars(with = "Option<console_log::SizeForm>", extend("x-example" = "reserve: 20G"))]
    reserve: Option<u64>,
}

impl CheckoutKeys {
    fn limits(&self) -> CheckoutLimits {
        let usual = CheckoutLimits::default();
        CheckoutLimits {
            bytes_max: self.quota.unwrap_or(usual.bytes_max),
            bytes_left: self.reserve.unwrap_or(usual.bytes_left),
        }
    }
}

/// Where GitLab finds consoles.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["listen"]))]
struct TerminalKeys {
    /// The address and port where it is listened, such as `0.0.0.0:8093`.
    listen: String,
    /// The host and port that GitLab is told, such as `farm.example.org:8093`; `listen` when absent. Without a port it is 443.
    advertise: Option<String>,
}

/// A group or a project, by its number.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-at-most-one" = ["group", "project"]))]
struct RegisterForKeys {
    /// A group's number.
    group: Option<u64>,
    /// A project's number.
    project: Option<u64>,
}

/// Which refs.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum RefsKey {
    /// Every branch and tag.
    All,
    /// Protected ones.
    Protected,
}

/// Runners for some DUTs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"], "x-at-most-one" = ["tags", "dut"]))]
struct RunnerKeys {
    /// What they are called in this file.
    #[schemars(extend("x-form" = "export-name", "x-example" = "name: arm"))]
    name: String,
    /// The DUTs that have all of these tags; all DUTs when absent.
    tags: Vec<String>,
    /// One DUT, by its id or full name.
    dut: Option<String>,
    /// Whether each DUT has a runner, or all of them share one; `dut` when absent.
    per: Option<PerKey>,
    /// Queues by name, with the priority in the farm's own queue; one runner for each. `{default: 0}` when absent.
    priorities: BTreeMap<String, i32>,
    /// A file with the token of a runner that a person made (`glrt-…`), relative to this file.
    token_file: Option<String>,
}

/// Who has a runner of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PerKey {
    /// Each DUT.
    Dut,
    /// All together.
    Class,
}

/// GitLab's default for runners' jobs is 6 hours where CI-tron registers them.
const TIMEOUT_USUAL: Duration = Duration::from_secs(6 * 3600);
/// GitLab refuses less (`maximum_timeout` of its API).
const TIMEOUT_MIN: Duration = Duration::from_secs(600);
/// Browsers show so much; a serial line at 115,200 baud says it in 24 minutes.
const LOG_USUAL: u64 = 16 << 20;
/// The verdict and what led to it.
const LOG_MIN: u64 = 64 << 10;

pub(super) fn gitlab(all: &[GitlabKeys], directory: &Path, findings: &mut Findings) -> Vec<GitlabConfig> {
    let read = |(index, keys): (usize, &GitlabKeys)| instance(index, keys, directory, findings);
    all.iter().enumerate().map(read).collect()
}

fn instance(index: usize, keys: &GitlabKeys, directory: &Path, findings: &mut Findings) -> GitlabConfig {
    let url = keys.url.trim_end_matches('/').to_owned();
    let is_url = reqwest::Url::parse(&url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !url.is_empty() && !is_url {
        findings.tell(
            &at("gitlab", index, "url"),
            format!("{} is not a URL", quoted(&url)),
            "write `https://gitlab.example.org`",
        );
    }
    let maximum_timeout = keys.maximum_timeout.map_or(TIMEOUT_USUAL, Duration::from_secs_f64);
    if maximum_timeout < TIMEOUT_MIN {
        let what = "GitLab lets a runner have no shorter limit than 10 minutes".to_owned();
        findings.tell(&at("gitlab", index, "maximum_timeout"), what, "write `10 minutes` or more");
    }
    let log_bytes_max = keys.log_size.unwrap_or(LOG_USUAL);
    if log_bytes_max < LOG_MIN {
        let what = format!("{log_bytes_max} bytes of a log are too few");
        findings.tell(&at("gitlab", index, "log_size"), what, "write `64k` or more");
    }
    let runners = runners(index, keys, directory, findings);
    let needs_token = runners.iter().any(|runner| runner.token_file.is_none());
    if needs_token && keys.token_file.is_none() {
        let what = "nobody may create its runners".to_owned();
        let hint = "name a file with a token that has the scopes `create_runner` and `manage_runner`, or give each of `runners` its `token_file`";
        findings.tell(&at("gitlab", index, "token_file"), what, hint);
    }
    let beside = |name: &Option<String>| name.as_ref().map(|name| directory.join(name));
    GitlabConfig {
        certificate_authority: beside(&keys.certificate_authority),
        token_file: beside(&keys.token_file),
        registered_for: match (keys.register_for.group, keys.register_for.project) {
            (Some(group), _) => RegisteredFor::Group(group),
            (None, Some(project)) => RegisteredFor::Project(project),
            (None, None) => RegisteredFor::Instance,
        },
        runners,
        projects: projects(index, &keys.projects, findings),
        refs: match keys.refs {
            Some(RefsKey::Protected) => Refs::Protected,
            None | Some(RefsKey::All) => Refs::All,
        },
        maximum_timeout,
        log_bytes_max,
        script_job: script_job("gitlab", index, keys.script_job.as_ref(), directory, findings),
        cache: keys.cache.limits(),
        checkout: keys.checkout.limits(),
        terminal: keys.terminal.as_ref().and_then(|keys| terminal(index, keys, findings)),
        url,
    }
}

fn projects(index: usize, keys: &BTreeMap<String, String>, findings: &mut Findings) -> BTreeMap<u64, String> {
    let mut projects = BTreeMap::new();
    for (number, name) in keys {
        match number.parse() {
            Ok(number) => drop(projects.insert(number, name.clone())),
            Err(_) => {
                let what = format!("{} is not a project's number", quoted(number));
                let hint = "paths can be renamed and taken by somebody else; the number stands on the project's page";
                findings.tell(&at("gitlab", index, "projects"), what, hint);
            }
        }
    }
    projects
}

fn terminal(index: usize, keys: &TerminalKeys, findings: &mut Findings) -> Option<TerminalConfig> {
    let at = |key: &str| ["gitlab", &index.to_string(), "terminal", key].map(str::to_owned);
    let Ok(listen) = keys.listen.parse::<SocketAddr>() else {
        findings.tell(
            &at("listen"),
            format!("{} is not an address and port", quoted(&keys.listen)),
            "write `0.0.0.0:8093`",
        );
        return None;
    };
    if keys.advertise.is_none() && listen.ip().is_unspecified() {
        let what = format!("nobody can connect to {}", listen.ip());
        findings.tell(&at("listen"), what, "say in `advertise` by which name GitLab reaches this host");
        return None;
    }
    let Some(advertise) = &keys.advertise else {
        return Some(TerminalConfig { listen, host: listen.ip().to_string(), port: None });
    };
    // No URL keeps the port that its scheme has anyway.
    let url = reqwest::Url::parse(&format!("https://{advertise}/")).ok().filter(|url| url.path() == "/");
    let Some(host) = url.as_ref().and_then(reqwest::Url::host_str).map(|host| host.trim_matches(['[', ']'])) else {
        let what = format!("{} is not a host and port", quoted(advertise));
        findings.tell(&at("advertise"), what, "write `farm.example.org:8093`");
        return None;
    };
    Some(TerminalConfig {
        listen,
        host: host.to_owned(),
        port: url.as_ref().and_then(reqwest::Url::port_or_known_default),
    })
}

/// The job description that a forge's plain scripts run in, read.
pub(super) fn script_job(
    forge: &str,
    index: usize,
    name: Option<&String>,
    directory: &Path,
    findings: &mut Findings,
) -> Option<(String, String)> {
    let name = name?;
    match std::fs::read_to_string(directory.join(name)) {
        Ok(text) => Some((name.clone(), text)),
        Err(error) => {
            let what = format!("cannot read `{name}`: {error}");
            findings.tell(&at(forge, index, "script_job"), what, "name a job file relative to the farm file");
            None
        }
    }
}

fn runners(index: usize, keys: &GitlabKeys, directory: &Path, findings: &mut Findings) -> Vec<RunnerConfig> {
    let every_dut = [RunnerKeys { name: "dut".into(), ..RunnerKeys::default() }];
    let written = if keys.runners.is_empty() { &every_dut } else { keys.runners.as_slice() };
    let mut names: Vec<&str> = Vec::new();
    for (number, runner) in written.iter().enumerate() {
        let at = |key: &str| ["gitlab", &index.to_string(), "runners", &number.to_string(), key].map(str::to_owned);
        if names.contains(&runner.name.as_str()) {
            findings.tell(&at("name"), format!("`{}` is there twice", runner.name), "give each entry its own name");
        }
        names.push(&runner.name);
        let is_one = runner.per == Some(PerKey::Class) || runner.dut.is_some();
        if runner.token_file.is_some() && (!is_one || runner.priorities.len() > 1) {
            let what = "one token is one runner's".to_owned();
            findings.tell(&at("token_file"), what, "say `per: class` or `dut: NAME`, and one priority at most");
        }
    }
    written
        .iter()
        .map(|runner| RunnerConfig {
            name: runner.name.clone(),
            tags: runner.tags.clone(),
            dut: runner.dut.clone(),
            per: if runner.per == Some(PerKey::Class) { Per::Class } else { Per::Dut },
            priorities: match runner.priorities.is_empty() {
                true => vec![("default".to_owned(), 0)],
                false => runner.priorities.clone().into_iter().collect(),
            },
            token_file: runner.token_file.as_ref().map(|name| directory.join(name)),
        })
        .collect()
}
