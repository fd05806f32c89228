//! A job over one DUT or several: who plays what, and the whole [`Job`] of each.
//!
//! ```text
//!  target: {tags: []}                    ─► one Job, without a name
//!  target: [- role: server, count: 2  ]  ─► server-1  server-2  client        a Job each, in this order
//!          [- role: client            ]        │
//!                                              └─ timeouts, console_patterns, deployment: the role's own, else the job's
//!                                                 deadline, proxy: the job's
//! ```
//! Also the checks that no single field shows, for the job and for each role, so that all mistakes are told together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::Value as Json;

use crate::description::{
    DeploymentDescription, DeploymentsKeys, JobDescription, PatternsKeys, RoleKeys, TargetForm, TargetKeys,
    TimeoutsKeys,
};
use crate::ids::RoleName;
use crate::job::{Defaults, Job, Target, images_of, json_schema, parse_deadline};
use crate::problem::{Problem, Problems, alternatives, quoted};
use crate::shape::{self, Loaded, field_of};
use crate::steps::{Step, StepKeys};
use crate::template::Rendered;

/// The most DUTs of one job: none of them begins before the last one is free, so that a larger job would mostly keep a farm waiting.
pub const DUTS_AT_MOST: u32 = 32;
/// The most DUTs of one role: half of a job's, so that there is somebody left to talk to.
pub const COUNT_AT_MOST: u32 = 16;

/// All DUTs of a job, in the order of its description.
#[derive(Debug, Clone, PartialEq)]
pub struct Roles {
    /// Whether they begin together.
    pub start: StartBarrier,
    /// One entry per DUT; never empty.
    pub list: Vec<Role>,
}

/// When the DUTs of a job are powered on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StartBarrier {
    /// None before the leases of all are active and what all boot from is prepared.
    #[default]
    Together,
    /// Each as soon as it is ready itself.
    Apart,
}

/// One DUT of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// What this DUT is called in the job, such as `server-1`; none when the job has a single target.
    pub name: Option<String>,
    /// The role it plays, such as `server`: the name without its number.
    pub role: Option<RoleName>,
    /// Its job, complete; of a host only its target and its deadline mean something.
    pub job: Job,
    /// What is done on a host; what is done on a DUT is in its job.
    pub steps: Vec<Step>,
}

impl Roles {
    /// The names of a job's DUTs, and nothing when it has a single target or cannot be read. Mistakes elsewhere do not matter: this
    /// is for whoever has to know the names before the values of the templates can be given, which tell the DUTs of each other.
    pub fn names_in(rendered: &Rendered) -> Vec<String> {
        let description = shape::load_leniently::<JobDescription>(&rendered.text, &SCHEMA).value;
        let Some(TargetForm::Roles(roles)) = description.map(|description| description.target) else {
            return Vec::new();
        };
        let duts = roles.iter().filter(|role| role.steps.is_empty() || role.ssh.is_some());
        duts.flat_map(names_of).take(DUTS_AT_MOST as usize).collect()
    }

    /// The names of its DUTs.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|role| role.name.as_deref())
    }
}

impl Job {
    /// Reads rendered text as a job over one DUT or several, or tells everything that is wrong with it.
    pub fn parse_all(rendered: &Rendered) -> Result<Roles, Problems> {
        Job::parse_all_over(rendered, &Defaults::default())
    }

    /// The same over what a farm lays under each first boot.
    fn parse_all_over(rendered: &Rendered, defaults: &Defaults) -> Result<Roles, Problems> {
        let mut loaded = shape::load_leniently::<JobDescription>(&rendered.text, &SCHEMA);
        let mut problems = std::mem::take(&mut loaded.problems);
        if let Some(description) = &loaded.value {
            Checks { loaded: &loaded, problems: &mut problems }.of_job(description);
        }
        match loaded.value {
            Some(description) if problems.is_empty() => Ok(roles_of(description.over(defaults))),
            _ => Err(Problems::new(rendered.source_name(), rendered.text.as_str(), problems)),
        }
    }

    /// The job of the DUT called `name`, or of the only one; text that was rendered for another DUT may lack it.
    pub fn parse_as(rendered: &Rendered, name: Option<&str>) -> Result<Job, Problems> {
        Job::parse_over(rendered, name, &Defaults::default())
    }

    /// The same over what a farm lays under each first boot.
    pub fn parse_over(rendered: &Rendered, name: Option<&str>, defaults: &Defaults) -> Result<Job, Problems> {
        let roles = Job::parse_all_over(rendered, defaults)?;
        let names: Vec<String> = roles.names().map(str::to_owned).collect();
        if let Some(role) = roles.list.into_iter().find(|role| role.name.as_deref() == name) {
            return Ok(role.job);
        }
        let known = alternatives(names.iter().map(String::as_str)).replace(" or ", " and ");
        let (what, hint) = match name {
            Some(name) if names.is_empty() => (
                format!("the job has a single target, and no role {}", quoted(name)),
                "do not let `target` depend on what the templates are rendered for",
            ),
            Some(name) => (
                format!("rendered for {}, the job has only the roles {known}", quoted(name)),
                "do not let `target` depend on what the templates are rendered for",
            ),
            None => (
                format!("the job has the roles {known}, where a job for one machine is wanted"),
                "write one target as a mapping, such as `target: {tags: []}`",
            ),
        };
        let place = shape::load_leniently::<JobDescription>(&rendered.text, &SCHEMA).place(&["target"]);
        let problem = Problem { location: place, field: "target".to_owned(), what, hint: Some(hint.to_owned()) };
        Err(Problems::one(rendered.source_name(), rendered.text.as_str(), problem))
    }

    /// Reads rendered text as a job over one DUT, or tells everything that is wrong with it.
    pub fn parse(rendered: &Rendered) -> Result<Job, Problems> {
        Job::parse_as(rendered, None)
    }
}

static SCHEMA: LazyLock<Json> = LazyLock::new(json_schema);

/// What the DUTs of a role are called.
fn names_of(keys: &RoleKeys) -> Vec<String> {
    match (&keys.role, keys.count.unwrap_or(1)) {
        (None, _) => Vec::new(),
        (Some(role), 1) => vec![role.to_string()],
        (Some(role), count) => (1..=count).map(|number| format!("{role}-{number}")).collect(),
    }
}

fn roles_of(mut description: JobDescription) -> Roles {
    let start = match description.start_together {
        Some(false) => StartBarrier::Apart,
        Some(true) | None => StartBarrier::Together,
    };
    let list = match std::mem::take(&mut description.target) {
        TargetForm::One(target) => {
            vec![Role { name: None, role: None, job: description.job(target, Own::default()), steps: Vec::new() }]
        }
        TargetForm::Roles(roles) => roles.into_iter().flat_map(|keys| role_of(&description, keys)).collect(),
    };
    Roles { start, list }
}

/// A role, once per DUT that plays it.
fn role_of(description: &JobDescription, keys: RoleKeys) -> Vec<Role> {
    let names = names_of(&keys);
    let RoleKeys { role, target, timeouts, console_patterns, deployment, steps, ssh, .. } = keys;
    let mut job = description.job(target, Own { timeouts, console_patterns, deployment });
    let mut steps: Vec<_> = steps.into_iter().filter_map(StepKeys::step).collect();
    job.by_ssh = ssh.map(|ssh| ssh.with(std::mem::take(&mut steps)));
    let of = |name| Role { name: Some(name), role: role.clone(), job: job.clone(), steps: steps.clone() };
    names.into_iter().map(of).collect()
}

/// What a role says itself, each in the place of what the job says.
#[derive(Default)]
struct Own {
    timeouts: Option<TimeoutsKeys>,
    console_patterns: Option<PatternsKeys>,
    deployment: Option<DeploymentsKeys>,
}

impl JobDescription {
    /// The description with `defaults` under every first boot.
    fn over(mut self, defaults: &Defaults) -> JobDescription {
        let lay_under = |deployments: &mut DeploymentsKeys| {
            let start = std::mem::take(&mut deployments.start);
            deployments.start = defaults.0.clone().updated(start);
        };
        lay_under(&mut self.deployment);
        if let TargetForm::Roles(roles) = &mut self.target {
            roles.iter_mut().filter_map(|role| role.deployment.as_mut()).for_each(lay_under);
        }
        self
    }

    /// The job of a DUT with this target.
    fn job(&self, target: TargetKeys, own: Own) -> Job {
        let deployment = own.deployment.unwrap_or_else(|| self.deployment.clone());
        let continued = match deployment.continue_ {
            Some(update) => deployment.start.clone().updated(update),
            None => deployment.start.clone(),
        };
        let timeouts = own.timeouts.unwrap_or_else(|| self.timeouts.clone());
        Job {
            target: Target {
                id: target.id.filter(|id| !id.is_empty()),
                tags: target.tags.unwrap_or_default(),
                gear: target.gear,
            },
            deadline: self.deadline.as_deref().and_then(|text| parse_deadline(text).ok()),
            firmware_boot_given: timeouts.firmware_boot.is_some(),
            timeouts: timeouts.into(),
            patterns: own.console_patterns.unwrap_or_else(|| self.console_patterns.clone()).into(),
            start: deployment.start.into(),
            continue_: continued.into(),
            proxy: self.proxy.allowed_endpoints.clone().into_items(),
            by_ssh: None,
        }
    }
}

/// What no single field shows.
struct Checks<'a> {
    loaded: &'a Loaded<JobDescription>,
    problems: &'a mut Vec<Problem>,
}

impl Checks<'_> {
    fn tell(&mut self, at: &[String], inside: &[&str], what: String, hint: &str) {
        let path: Vec<String> = at.iter().cloned().chain(inside.iter().map(|&step| step.to_owned())).collect();
        let location = self.loaded.place(&path);
        self.problems.push(Problem { location, field: field_of(&path), what, hint: Some(hint.to_owned()) });
    }

    /// Whether the top level has this key.
    fn says(&self, key: &str) -> bool {
        self.loaded.root.as_ref().is_some_and(|root| root.child(key).is_some())
    }

    fn of_job(&mut self, description: &JobDescription) {
        let target = ["target".to_owned()];
        match &description.target {
            TargetForm::Roles(roles) => self.of_roles(roles),
            TargetForm::One(keys) => {
                self.of_target(&target, keys);
                if description.start_together.is_some() {
                    let what = "a job with a single target has nobody to start with".to_owned();
                    self.tell(&[], &["start_together"], what, "remove the key, or make `target` a list of roles");
                }
            }
        }
        self.of_timeouts(&[], &description.timeouts);
        self.of_deployment(&[], &description.deployment);
    }

    fn of_roles(&mut self, roles: &[RoleKeys]) {
        let list = ["target".to_owned()];
        // An item that is no mapping was told already, and is not among `roles`.
        let indices = self.loaded.mappings_of("target");
        let mut names = Taken::default();
        for (keys, index) in roles.iter().zip(&indices) {
            let at = ["target".to_owned(), index.to_string()];
            self.of_names(&at, keys, &mut names);
            self.of_target(&at, &keys.target);
            self.of_steps(&at, keys);
            keys.timeouts.iter().for_each(|timeouts| self.of_timeouts(&at, timeouts));
            keys.deployment.iter().for_each(|deployment| self.of_deployment(&at, deployment));
        }
        let listed =
            self.loaded.root.as_ref().and_then(|root| root.child("target")).map_or(0, |list| list.items().len());
        let duts: u64 = roles.iter().map(|keys| u64::from(keys.count.unwrap_or(1))).sum();
        if listed == 0 {
            self.tell(&list, &[], "no role is listed".to_owned(), "add `- role: server` with `tags` or `id`");
        } else if duts > u64::from(DUTS_AT_MOST) {
            let what = format!("`{duts}` machines are asked for; a job has at most {DUTS_AT_MOST}");
            self.tell(&list, &[], what, "list fewer roles, or lower their `count`");
        }
    }

    /// Each name means one DUT or one role, and each DUT plays one role.
    fn of_names(&mut self, at: &[String], keys: &RoleKeys, taken: &mut Taken) {
        let id = keys.target.id.as_deref().filter(|id| !id.is_empty());
        let count = keys.count.unwrap_or(1);
        if let Some(id) = id {
            if count > 1 {
                let what = format!("`{count}` machines are asked for, and all are to be {}", quoted(id));
                self.tell(at, &["count"], what, "remove `count`, or choose the machines by `tags`");
            }
            if !taken.ids.insert(id.to_owned()) {
                let what = format!("the machine {} is asked for by another role already", quoted(id));
                self.tell(at, &["id"], what, "a machine plays one role; name another, or choose by `tags`");
            }
        }
        let Some(role) = &keys.role else { return };
        // `server` stays taken beside `server-1`: messages are waited for by role.
        let names: Vec<String> =
            std::iter::once(role.to_string()).chain(names_of(keys).into_iter().filter(|_| count > 1)).collect();
        let clash = names.iter().find_map(|name| taken.names.get(name).map(|owner| (name, owner)));
        if let Some((name, owner)) = clash {
            let what = match name == owner && name == role.as_str() {
                true => format!("the role {} stands twice", quoted(name)),
                false => format!("{} names a machine of the role {} already", quoted(name), quoted(owner)),
            };
            self.tell(at, &["role"], what, "give each role its own name; `count` numbers the machines of a role");
        }
        taken.names.extend(names.into_iter().map(|name| (name, role.to_string())));
    }

    fn of_target(&mut self, at: &[String], target: &TargetKeys) {
        if target.id.as_deref() == Some("") && target.tags.is_none() {
            let what = "the id `` names no machine".to_owned();
            self.tell(at, &["id"], what, "name a machine, or write `tags: []` for any");
        }
    }

    /// A role is played by a DUT or by a host.
    fn of_steps(&mut self, at: &[String], keys: &RoleKeys) {
        if keys.steps.is_empty() {
            if keys.ssh.is_some() {
                let what = "there is nothing to do by SSH".to_owned();
                self.tell(at, &["ssh"], what, "list `steps` beside it, or leave it out");
            }
            return;
        }
        let of_duts = [
            ("deployment", keys.deployment.is_some()),
            ("console_patterns", keys.console_patterns.is_some()),
            ("timeouts", keys.timeouts.is_some()),
        ];
        let boots_here = keys.deployment.is_some() || self.says("deployment");
        if keys.ssh.is_some() && !boots_here {
            let what = "nobody says what the machine boots, which is then logged in to".to_owned();
            self.tell(at, &["ssh"], what, "write `deployment` here or at the top; without `ssh` a host plays the role");
        }
        for (key, _) in of_duts.into_iter().filter(|(_, is_given)| *is_given && keys.ssh.is_none()) {
            let what = "a role with steps is played by a host, which boots nothing and has no console".to_owned();
            self.tell(at, &[key], what, "leave it out, or write `ssh: {}` to do the steps on what the role boots");
        }
        for (index, step) in keys.steps.iter().enumerate() {
            for (key, what, hint) in step.mistakes() {
                self.tell(at, &["steps", &index.to_string(), key], what.to_owned(), hint);
            }
        }
    }

    fn of_timeouts(&mut self, at: &[String], timeouts: &TimeoutsKeys) {
        for (name, timeout) in [("overall", &timeouts.overall), ("infra_teardown", &timeouts.infra_teardown)] {
            let retries = timeout.as_ref().and_then(|timeout| timeout.retries).unwrap_or(0);
            if retries != 0 {
                let what = format!("`{retries}` retries are given to a timeout that ends the job");
                self.tell(at, &["timeouts", name, "retries"], what, "write `retries: 0`, or remove the key");
            }
        }
    }

    fn of_deployment(&mut self, at: &[String], deployment: &DeploymentsKeys) {
        let known = images(Some(&deployment.start));
        for name in images(deployment.continue_.as_ref()) {
            if known.contains(&name) {
                let path = ["deployment", "continue", "storage", "imagestore", "public", "images", name.as_str()];
                let what = format!("the image {} is already defined in `start`", quoted(&name));
                self.tell(at, &path, what, "give the new image another name");
            }
        }
    }
}

/// Names that mean something already: of DUTs and roles with the role they belong to, and ids of machines.
#[derive(Default)]
struct Taken {
    names: BTreeMap<String, String>,
    ids: BTreeSet<String>,
}

fn images(deployment: Option<&DeploymentDescription>) -> Vec<String> {
    let store =
        deployment.and_then(|deployment| deployment.storage.as_ref()).and_then(|storage| storage.imagestore.clone());
    images_of(store).into_keys().collect()
}

#[cfg(test)]
mod tests;
