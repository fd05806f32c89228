//! Which machine boots how: the boots database, a file of the farm's in which a new board is some lines and no code.
//!
//! ```text
//!  boots.yml ── rendered with the DUT's values ─► entries, in order
//!     match.tags ⊆ the DUT's tags?  no ─► skipped
//!     no `boot`: its defaults are laid under the job, for every entry after it
//!     `boot`:    a plan of its own, whose DHCP rules ask for the rest of `match` (architecture, firmware, vendor class, …)
//!  the DUT's own `boot` stands in the place of all entries with a method; behind the last entry comes iPXE for whom none speaks
//! ```
//! The firmware is only known once it asks, so every entry that may speak for it is planned, and DHCP chooses. Where two plans make a
//! file of the same name, the earlier one's is served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gateway::dhcp::{BootOffer, Extra};
use job_schema::Findings;
use job_schema::job::{Defaults, Deployment, DhcpMatch};
use job_schema::problem::Problems;
use job_schema::template::{Limits, Variables, render};
use schemars::JsonSchema;
use serde::Deserialize;

use super::settings::Settings;
use super::{BootMethod, BootPlan, Dut, Name, Planned, ipxe};

/// A boots database as it lies there, checked with no DUT's values.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    source_name: String,
    text: String,
    directory: PathBuf,
}

/// One way that a DUT may boot.
pub struct Choice {
    /// For which of its clients.
    said: DhcpMatch,
    /// The way.
    method: Box<dyn BootMethod>,
    /// What is laid under the job.
    pub defaults: Defaults,
}

/// How machines boot.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(title = "Boots database", extend("required" = ["boots"]))]
struct DatabaseFile {
    /// Entries, the more special ones first.
    #[schemars(extend("x-example" = "boots: []"))]
    boots: Vec<Entry>,
}

/// How some machines boot.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Entry {
    /// Which machines; all when absent.
    #[serde(rename = "match")]
    match_: MatchKeys,
    /// How they boot; an entry without it only has defaults.
    boot: Option<Settings>,
    /// What is laid under the job's `deployment.start`; the job replaces it category by category.
    defaults: Defaults,
}

/// What a machine must be, and what its firmware must say.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct MatchKeys {
    /// Tags that the machine must have, all of them.
    tags: Vec<String>,
    #[serde(flatten)]
    said: DhcpMatch,
}

impl Database {
    /// Reads the file that a farm file names, or tells what is wrong with it at that farm file's `boots`.
    pub fn read(path: &Path, findings: &mut Findings) -> Option<Database> {
        let at = ["boots".to_owned()];
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let what = format!("cannot read `{}`: {error}", path.display());
                findings.tell(&at, what, "name the boots database relative to the farm file");
                return None;
            }
        };
        let directory = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let database = Database { source_name: path.display().to_string(), text, directory };
        if let Err(problems) = database.entries(&Variables::new()) {
            for problem in problems.list() {
                let line =
                    problem.location.map(|place| format!(":{}:{}", place.line, place.column)).unwrap_or_default();
                let what = format!("{}{line}: {}: {}", database.source_name, problem.field, problem.what);
                findings.tell(&at, what, problem.hint.as_deref().unwrap_or("mend the boots database"));
            }
        }
        Some(database)
    }

    /// The mistakes of a text that is to be one.
    pub fn check(source_name: &str, text: &str) -> Result<(), Problems> {
        let database = Database { source_name: source_name.into(), text: text.into(), directory: PathBuf::new() };
        database.entries(&Variables::new()).map(drop)
    }

    fn entries(&self, variables: &Variables) -> Result<Vec<Entry>, Problems> {
        let rendered = render(&self.source_name, &self.text, variables, &Limits::default())?;
        job_schema::load_checked::<DatabaseFile, _>(&self.source_name, &rendered.text, |file, findings| {
            let checked = |(index, entry): (usize, Entry)| {
                let at = ["boots".to_owned(), index.to_string()];
                if entry.boot.is_none() && entry.match_.said != DhcpMatch::default() {
                    let hint = "add `boot: {method: …}`, or match by `tags` alone";
                    findings.tell(&at, "an entry about a firmware needs a method".to_owned(), hint);
                }
                let boot = [&at[..], &["boot".to_owned()]].concat();
                let settings = entry.boot.map(|settings| settings.checked(&self.directory, &boot, findings));
                Entry { boot: settings, ..entry }
            };
            file.boots.into_iter().enumerate().map(checked).collect()
        })
    }
}

/// The ways that a DUT with these tags may boot, in order; never none. `own` is what the farm file says of it.
pub fn choices(
    own: Option<&Settings>,
    database: Option<&Database>,
    tags: &[String],
    variables: &Variables,
) -> Result<Vec<Choice>, Problems> {
    let entries = database.map(|database| database.entries(variables)).transpose()?.unwrap_or_default();
    let tags: BTreeSet<&String> = tags.iter().collect();
    let mut defaults = Defaults::default();
    let mut choices = Vec::new();
    for entry in entries.into_iter().filter(|entry| entry.match_.tags.iter().all(|tag| tags.contains(tag))) {
        match entry.boot {
            None => defaults = defaults.updated(entry.defaults),
            Some(_) if own.is_some() => {}
            Some(settings) => choices.push(Choice {
                said: entry.match_.said,
                method: build(&settings),
                defaults: defaults.clone().updated(entry.defaults),
            }),
        }
    }
    if choices.iter().all(|choice| choice.said != DhcpMatch::default()) {
        let method = own.map_or_else(|| ipxe::build(&Settings::default()), build);
        choices.push(Choice { said: DhcpMatch::default(), method, defaults });
    }
    Ok(choices)
}

/// The name was checked with the farm file; the database's are checked whenever it is read.
fn build(settings: &Settings) -> Box<dyn BootMethod> {
    let build = super::method(&settings.method).map_or(ipxe::build as fn(&Settings) -> _, |method| method.build);
    build(settings)
}

impl Choice {
    /// What `deployment` means this way: only for the clients that this way is for.
    pub fn plan(&self, deployment: &Deployment, dut: &Dut) -> Result<BootPlan, Vec<String>> {
        let mut plan = self.method.plan(deployment, dut);
        for rule in &mut plan.dhcp.rules {
            rule.matches.said = self.said.clone();
        }
        let (mut extras, mut wrong) = (Vec::new(), Vec::new());
        for entry in &deployment.dhcp {
            match Extra::read(entry) {
                Ok(extra) => extras.push(Extra { matches: [extra.matches, vec![self.said.clone()]].concat(), ..extra }),
                Err(mut whys) => wrong.append(&mut whys),
            }
        }
        plan.dhcp.extras = extras;
        if wrong.is_empty() { Ok(plan) } else { Err(wrong) }
    }
}

/// One plan of several: of files with the same name the first one's, and all rules in order.
pub fn joined(plans: Vec<BootPlan>) -> BootPlan {
    let mut names = BTreeSet::new();
    let mut all = BootPlan { artifacts: Vec::new(), dhcp: BootOffer::default(), hand_over: None };
    for plan in plans {
        let name = |planned: &Planned| {
            let (Name::Exact(name) | Name::Matching(name, _)) = &planned.name;
            (planned.protocol, name.clone())
        };
        let fresh: Vec<Planned> =
            plan.artifacts.into_iter().filter(|planned| !names.contains(&name(planned))).collect();
        names.extend(fresh.iter().map(name));
        all.artifacts.extend(fresh);
        all.dhcp.rules.extend(plan.dhcp.rules);
        all.dhcp.extras.extend(plan.dhcp.extras);
        all.hand_over = all.hand_over.or(plan.hand_over);
    }
    all
}

#[cfg(test)]
mod tests;
