//! `wharf check`: the problems of job and farm files, and what a DUT would boot, without a server.

use std::io::IsTerminal;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use job_schema::problem::Problems;

use super::view::{print, say};
use crate::boot::Place;
use crate::config::{DownloadsConfig, FarmConfig, NetworkConfig, ProxyConfig};
use crate::farm::{Planner, Preview, Source, Submission, SubmitError};
use crate::virtual_dut::images;

/// Arguments of `wharf check`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Job or farm files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The farm to check jobs against: shows command line, boot script and artifacts for a DUT
    #[arg(long)]
    farm: Option<PathBuf>,
    /// The DUT to show, by id or full name; the first that fits when absent
    #[arg(long, requires = "farm")]
    dut: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks every file; status 0 when all are right, 1 otherwise.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let farm = arguments.farm.as_deref().map(read_farm).transpose()?;
    let mut all_right = true;
    for path in &arguments.files {
        let text = super::read_text(path)?;
        let right = if is_farm_file(&text) {
            check_farm(path, &text)?
        } else {
            check_job(path, &text, farm.as_ref(), &arguments).await?
        };
        all_right &= right;
    }
    Ok(if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A farm file has `duts:` or `network:` at its left edge; a job never has.
fn is_farm_file(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("duts:") || line.starts_with("network:"))
}

fn check_farm(path: &Path, text: &str) -> anyhow::Result<bool> {
    let directory = path.parent().unwrap_or(Path::new(""));
    match crate::config::parse(&path.display().to_string(), text, directory) {
        Ok(farm) => {
            let on_demand: u32 = farm.on_demand.iter().map(|kind| kind.limit).sum();
            let more = if on_demand == 0 { String::new() } else { format!(" and up to {on_demand} on demand") };
            print(&format!("{}: a farm of {} DUTs{more}, no problems", path.display(), farm.duts.len()))?;
            Ok(true)
        }
        Err(problems) => {
            draw(&problems);
            Ok(false)
        }
    }
}

/// With colours for a terminal.
pub(super) fn draw(problems: &Problems) {
    match std::io::stderr().is_terminal() {
        true => say(format_args!("{}", problems.render_coloured())),
        false => say(problems),
    }
}

async fn check_job(path: &Path, text: &str, farm: Option<&FarmConfig>, arguments: &Arguments) -> anyhow::Result<bool> {
    let submission =
        Submission { source_name: path.display().to_string(), text: text.to_owned(), ..Submission::default() };
    let mut config = farm.cloned().unwrap_or_else(no_farm);
    images::add_variables(&mut config.job_variables, config.api);
    let planner = Planner {
        config: config.into(),
        place: place_of(farm),
        nbd_port: gateway::nbd::PORT,
        s3_port: gateway::s3::PORT,
        registry_port: gateway::registry::PORT,
    };
    note_unknown_names(&planner, &submission);
    let outcome = match farm {
        Some(_) => planner.preview(&submission, arguments.dut.as_deref()).await,
        None => planner.asked(&submission).await.map(|_| Vec::new()),
    };
    let is_right = outcome.is_ok();
    match outcome {
        Ok(previews) => print(&shown(path, &previews, arguments.json))?,
        Err(SubmitError::Invalid(problems)) if arguments.json => {
            print(&serde_json::json!({ "file": path, "problems": problems.list() }).to_string())?;
        }
        Err(SubmitError::Invalid(problems)) => draw(&problems),
        Err(error) => say(error),
    }
    Ok(is_right)
}

/// A name that nobody gives renders as nothing (CI-tron's rule), which is seldom what its author meant.
fn note_unknown_names(planner: &Planner, submission: &Submission) {
    let used = job_schema::variables_used(&submission.source_name, &submission.text).unwrap_or_default();
    for name in planner.unknown_names(used) {
        say(format_args!("note: `{name}` is not known here and renders as nothing; farms give it with `variables:`"));
    }
}

/// One preview as an object, as it has always been; those of a job over several DUTs as a list.
fn shown(path: &Path, previews: &[Preview], json: bool) -> String {
    if json {
        let sheet = match previews {
            [] => serde_json::json!({ "file": path, "problems": [], "preview": null }),
            [only] => serde_json::json!({ "file": path, "problems": [], "preview": only }),
            several => serde_json::json!({ "file": path, "problems": [], "previews": several }),
        };
        return sheet.to_string();
    }
    let previews = previews.iter().map(|preview| format!("\n{}", shown_one(preview)));
    std::iter::once(format!("{}: no problems", path.display())).chain(previews).collect()
}

fn shown_one(preview: &Preview) -> String {
    let role = preview.role.as_ref().map(|role| format!("\nrole       {role}\n")).unwrap_or_default();
    let (dut, fitting, script) = (&preview.dut, preview.fitting_duts.join(", "), &preview.boot_script);
    let (start, then) = (&preview.start_cmdline, &preview.continue_cmdline);
    let script = match (script, &preview.hand_over) {
        (Some(script), _) => format!("boot script\n{}", script.trim_end()),
        (None, Some(given)) => format!("no boot script: the farm gives {given}"),
        (None, None) => "no boot script: nothing is booted from the network".to_owned(),
    };
    let mut artifacts = super::jobs::plain_table();
    artifacts.set_header(["protocol", "name", "source", "limits"]);
    artifacts.add_rows(preview.artifacts.clone());
    let mut values = super::jobs::plain_table();
    values.set_header(["template value", "here"]);
    values.add_rows(preview.values.clone());
    format!(
        "{role}\nDUT        {dut}\nfitting    {fitting}\nstart      {start}\ncontinue   {then}\n\n{script}\n\n\
         artifacts\n{artifacts}\n\ntemplate values\n{values}"
    )
}

/// Where the farm's gateway will be. A farm on the loopback gets its port when it starts; its HTTP port is shown as 80.
fn place_of(farm: Option<&FarmConfig>) -> Place {
    let address = match farm.map(|farm| &farm.network) {
        Some(NetworkConfig::Private { address, .. } | NetworkConfig::Interface { address, .. }) => *address,
        Some(NetworkConfig::Loopback) | None => Ipv4Addr::LOCALHOST,
    };
    Place { address, http_port: 80 }
}

/// Enough of a farm to check a job's own text.
fn read_farm(path: &Path) -> anyhow::Result<FarmConfig> {
    Ok(Source { path: path.to_owned(), api: None, state: None }.read()?)
}

fn no_farm() -> FarmConfig {
    FarmConfig {
        name: "farm".into(),
        network: NetworkConfig::Loopback,
        dhcp: gateway::dhcp::Role::default(),
        tftp_engine: gateway::tftp::Engine::Own,
        tls: Default::default(),
        issuers: Vec::new(),
        projects: Default::default(),
        downloads: DownloadsConfig::default(),
        proxy: ProxyConfig { allowed: "*:*".parse().into_iter().collect(), ..ProxyConfig::default() },
        registry: None,
        power_listener: None,
        api: ([127, 0, 0, 1], 0).into(),
        submission: crate::config::SubmissionConfig::default(),
        state: PathBuf::new(),
        console_log: crate::console::Limits::default(),
        buckets: Default::default(),
        bucket_groups: Vec::new(),
        stores: Vec::new(),
        archive: None,
        job_variables: Default::default(),
        duts: Vec::new(),
        on_demand: Vec::new(),
        pdus: Vec::new(),
        consoles: Vec::new(),
        discovery: Default::default(),
        spares: Vec::new(),
        gear: Vec::new(),
        hosts: Vec::new(),
        gitlab: Vec::new(),
        forgejo: Vec::new(),
        boots: None,
        training: Default::default(),
        patience: Default::default(),
    }
}
