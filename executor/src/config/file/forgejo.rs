//! The farm file's `forgejo`.

use super::*;
use crate::config::forgejo::{ForgejoConfig, ForgejoRunner};
use crate::config::gitlab::Per;

/// A Forgejo or Gitea instance whose jobs are taken.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["url"]))]
pub(super) struct ForgejoKeys {
    /// Where it is, such as `https://codeberg.org`.
    url: String,
    /// A file with the token that registers runners, relative to this file.
    token_file: Option<String>,
    /// A file with certificates of its authority as PEM, relative to this file.
    certificate_authority: Option<String>,
    /// What is offered; a runner for each DUT when absent.
    runners: Vec<ForgejoRunnerKeys>,
    /// The farm's project in whose name its jobs run; `HOST/repository/NUMBER` when absent.
    project: Option<String>,
    /// The longest that a job of it may take; 3 hours when absent.
    #[schemars(with = "Option<LengthForm>", extend("x-example" = "maximum_timeout: 2 hours"))]
    maximum_timeout: Option<f64>,
    /// Of a job's log, so much is sent; `16M` when absent.
    #[schemars(with = "Option<console_log::SizeForm>", extend("x-example" = "log_size: 4M"))]
    log_size: Option<u64>,
    /// The job description that runs `run:` steps, relative to this file; the farm's own when absent.
    script_job: Option<String>,
}

/// Runners for some DUTs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"], "x-at-most-one" = ["tags", "dut"]))]
struct ForgejoRunnerKeys {
    /// What they are called in this file.
    #[schemars(extend("x-form" = "export-name", "x-example" = "name: arm"))]
    name: String,
    /// The DUTs that have all of these tags; all DUTs when absent.
    tags: Vec<String>,
    /// One DUT, by its id or full name.
    dut: Option<String>,
    /// Whether each DUT has a runner, or all of them share one; `dut` when absent.
    per: Option<PerKey>,
    /// Labels besides the DUTs' tags.
    labels: Vec<String>,
    /// Of its jobs in the farm's own queue; 0 when absent.
    priority: i32,
    /// The uuid of a runner that a person made.
    uuid: Option<String>,
    /// A file with that runner's token, relative to this file.
    token_file: Option<String>,
}

/// Forgejo's own runner and both servers stop tasks then (`runner.timeout`, `ENDLESS_TASK_TIMEOUT`).
const TIMEOUT_USUAL: Duration = Duration::from_secs(3 * 3600);
/// Browsers show so much; a serial line at 115,200 baud says it in 24 minutes.
const LOG_USUAL: u64 = 16 << 20;
/// The verdict and what led to it.
const LOG_MIN: u64 = 64 << 10;

pub(super) fn forgejo(all: &[ForgejoKeys], directory: &Path, findings: &mut Findings) -> Vec<ForgejoConfig> {
    let read = |(index, keys): (usize, &ForgejoKeys)| instance(index, keys, directory, findings);
    all.iter().enumerate().map(read).collect()
}

fn instance(index: usize, keys: &ForgejoKeys, directory: &Path, findings: &mut Findings) -> ForgejoConfig {
    let at = |key: &str| at("forgejo", index, key);
    let url = keys.url.trim_end_matches('/').to_owned();
    let is_url = reqwest::Url::parse(&url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !url.is_empty() && !is_url {
        findings.tell(&at("url"), format!("{} is not a URL", quoted(&url)), "write `https://codeberg.org`");
    }
    let log_bytes_max = keys.log_size.unwrap_or(LOG_USUAL);
    if log_bytes_max < LOG_MIN {
        findings.tell(&at("log_size"), format!("{log_bytes_max} bytes of a log are too few"), "write `64k` or more");
    }
    let runners = runners(index, keys, directory, findings);
    if runners.iter().any(|runner| runner.account.is_none()) && keys.token_file.is_none() {
        let hint =
            "name a file with the token that registers runners, or give each of `runners` its `uuid` and `token_file`";
        findings.tell(&at("token_file"), "nobody may register its runners".to_owned(), hint);
    }
    let beside = |name: &Option<String>| name.as_ref().map(|name| directory.join(name));
    ForgejoConfig {
        certificate_authority: beside(&keys.certificate_authority),
        token_file: beside(&keys.token_file),
        runners,
        project: keys.project.clone(),
        maximum_timeout: keys.maximum_timeout.map_or(TIMEOUT_USUAL, Duration::from_secs_f64),
        log_bytes_max,
        script_job: gitlab::script_job("forgejo", index, keys.script_job.as_ref(), directory, findings),
        url,
    }
}

fn runners(index: usize, keys: &ForgejoKeys, directory: &Path, findings: &mut Findings) -> Vec<ForgejoRunner> {
    let every_dut = [ForgejoRunnerKeys { name: "dut".into(), ..ForgejoRunnerKeys::default() }];
    let written = if keys.runners.is_empty() { &every_dut } else { keys.runners.as_slice() };
    let mut names: Vec<&str> = Vec::new();
    for (number, runner) in written.iter().enumerate() {
        let at = |key: &str| ["forgejo", &index.to_string(), "runners", &number.to_string(), key].map(str::to_owned);
        if names.contains(&runner.name.as_str()) {
            findings.tell(&at("name"), format!("`{}` is there twice", runner.name), "give each entry its own name");
        }
        names.push(&runner.name);
        if runner.uuid.is_some() != runner.token_file.is_some() {
            let what = "a runner that a person made has a uuid and a token".to_owned();
            findings.tell(&at("uuid"), what, "write both `uuid` and `token_file`, or none of them");
        }
        let is_one = runner.per == Some(PerKey::Class) || runner.dut.is_some();
        if runner.uuid.is_some() && !is_one {
            findings.tell(&at("uuid"), "one uuid is one runner's".to_owned(), "say `per: class` or `dut: NAME`");
        }
    }
    let read = |runner: &ForgejoRunnerKeys| ForgejoRunner {
        name: runner.name.clone(),
        tags: runner.tags.clone(),
        dut: runner.dut.clone(),
        per: if runner.per == Some(PerKey::Class) { Per::Class } else { Per::Dut },
        labels: runner.labels.clone(),
        priority: runner.priority,
        account: runner.uuid.clone().zip(runner.token_file.as_ref().map(|name| directory.join(name))),
    };
    written.iter().map(read).collect()
}
