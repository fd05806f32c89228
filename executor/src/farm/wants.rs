//! What a job asks the farm for: a DUT per role, the gear that goes with it, and the lease requests that say so.
//!
//! ```text
//!  submission ─► Asked { duts: [Wants, …] } ─► could they all be had at once, ever? ─► a LeaseRequest each, in one gang
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use job_schema::StartBarrier;

use super::{Asks, Submission, SubmitError, lease_of};
use crate::blueprint::dut::ACTIVATE_MS;
use crate::config::{DutConfig, FarmConfig};
use crate::lease::RequestError;
use crate::lease::rows::{Gang, Kind, LeaseRequest, Mode, Owner, Purpose, Timeouts, Want};

/// DUTs that a refusal lists: more than a screen of them helps nobody.
const LISTED_MAX: usize = 30;

/// Everything that a job asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Whether its DUTs begin together.
    pub start: StartBarrier,
    /// One entry per DUT; never empty.
    pub duts: Vec<Wants>,
}

/// What a job asks for as one DUT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// What the DUT is called in the job; `None` when it is the only one.
    pub role: Option<String>,
    /// Whether it is a DUT or a host.
    pub asks: Asks,
    /// A DUT's id or full name; `None`: any.
    pub id: Option<String>,
    /// Tags that the DUT must all have.
    pub tags: Vec<String>,
    /// Gear that is held beside it, by name.
    pub gear: Vec<String>,
    /// When the job must be over.
    pub deadline: Option<jiff::Timestamp>,
}

impl Asked {
    /// Those that are DUTs, and no hosts.
    pub(super) fn of_duts(&self) -> impl Iterator<Item = &Wants> {
        self.duts.iter().filter(|wants| wants.asks == Asks::Dut)
    }

    /// The requests of a job, in the order of its DUTs.
    pub(super) fn requests(&self, submission: &Submission, job: &str) -> Vec<LeaseRequest> {
        let members = self.duts.len() as u32;
        let gang = (members > 1).then(|| Gang { name: format!("job {job}"), members });
        self.duts.iter().map(|wants| wants.request(submission, job, gang.clone())).collect()
    }
}

impl Wants {
    pub(super) fn request(&self, submission: &Submission, job: &str, gang: Option<Gang>) -> LeaseRequest {
        let left = self.deadline.map(|deadline| deadline.duration_since(jiff::Timestamp::now()).as_millis().max(0));
        let gear = |name: &String| Want {
            kind: Kind::Gear,
            name: Some(name.clone()),
            tags: Vec::new(),
            mode: Mode::Hold,
            purpose: Purpose::Work,
        };
        LeaseRequest {
            id: lease_of(job, self.role.as_deref()),
            want: Want {
                kind: self.asks.kind(),
                name: self.id.clone(),
                tags: self.tags.clone(),
                mode: Mode::Hold,
                purpose: submission.purpose,
            },
            also: self.gear.iter().map(gear).collect(),
            gang,
            prefers: Vec::new(),
            avoid: Vec::new(),
            sticky: None,
            priority: submission.priority,
            owner: Owner::Job(job.to_owned()),
            authorizer: submission.subject.clone(),
            timeouts: Timeouts {
                queue_ms: left.and_then(|left| u64::try_from(left).ok()),
                activate_ms: Some(ACTIVATE_MS),
                ..Timeouts::default()
            },
        }
    }
}

/// A DUT as the farm file has it: one that is there, or one that could be made. Every submission looks at all of them: nothing is copied.
pub(super) struct Candidate<'a> {
    dut: Cow<'a, DutConfig>,
    farm: &'a str,
}

impl Candidate<'_> {
    /// Every DUT that there is, or that could be made.
    pub(super) fn all_of(config: &FarmConfig) -> Vec<Candidate<'_>> {
        let on_demand = config.on_demand.iter().flat_map(|kind| kind.members()).map(Cow::Owned);
        let duts = config.duts.iter().map(Cow::Borrowed).chain(on_demand);
        duts.map(|dut| Candidate { dut, farm: &config.name }).collect()
    }

    pub(super) fn id(&self) -> &str {
        &self.dut.id
    }

    pub(super) fn full_name(&self) -> &str {
        &self.dut.full_name
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        self.dut.id == name || self.dut.full_name == name
    }

    /// Whether this DUT could ever serve `wants`.
    pub(super) fn fits(&self, wants: &Wants) -> bool {
        wants.id.as_ref().is_none_or(|id| self.is_called(id)) && wants.tags.iter().all(|tag| self.has(tag))
    }

    /// Why it could not, in a sentence.
    fn misfit(&self, wants: &Wants) -> Option<String> {
        if let Some(id) = wants.id.as_ref().filter(|id| !self.is_called(id)) {
            return Some(format!("{} is not `{id}`", self.dut.full_name));
        }
        let missing: Vec<_> = wants.tags.iter().filter(|tag| !self.has(tag)).map(|tag| format!("`{tag}`")).collect();
        (!missing.is_empty()).then(|| format!("{} lacks the tags {}", self.dut.full_name, missing.join(", ")))
    }

    fn has(&self, tag: &str) -> bool {
        self.dut.tags.iter().any(|has| has == tag) || tag.strip_prefix("farm:") == Some(self.farm)
    }
}

/// A DUT's tags, the farm's own `farm:<name>` included.
pub(super) fn tags_of(config: &FarmConfig, dut: &DutConfig) -> Vec<String> {
    dut.tags.iter().cloned().chain([format!("farm:{}", config.name)]).collect()
}

/// A DUT for each entry, all different, by their places in `candidates`. `Err`: the farm could never serve the job.
pub(super) fn cast(
    config: &FarmConfig,
    candidates: &[Candidate<'_>],
    asked: &Asked,
) -> Result<Vec<usize>, SubmitError> {
    let duts: Vec<&Wants> = asked.of_duts().collect();
    let fitting: Vec<Vec<usize>> = duts.iter().map(|wants| places_that_fit(candidates, wants)).collect();
    if let Some(wants) = duts.iter().zip(&fitting).find_map(|(wants, fitting)| fitting.is_empty().then_some(wants)) {
        return Err(misfit(candidates, wants));
    }
    enough_gear(config, asked)?;
    let mut taken_by: BTreeMap<usize, usize> = BTreeMap::new();
    for dut in 0..duts.len() {
        if !find_place(dut, &fitting, &mut taken_by, &mut Vec::new()) {
            let role = duts[dut].role.clone().unwrap_or_default();
            let why = format!("its {} DUTs need different machines, and none is left for `{role}`", duts.len());
            return Err(SubmitError::Never(why));
        }
    }
    let mut places: Vec<_> = taken_by.into_iter().map(|(place, dut)| (dut, place)).collect();
    places.sort_unstable();
    Ok(places.into_iter().map(|(_, place)| place).collect())
}

fn places_that_fit(candidates: &[Candidate<'_>], wants: &Wants) -> Vec<usize> {
    candidates.iter().enumerate().filter(|(_, dut)| dut.fits(wants)).map(|(place, _)| place).collect()
}

/// An augmenting path: who has a place that this one could use moves on to another that fits.
fn find_place(
    dut: usize,
    fitting: &[Vec<usize>],
    taken_by: &mut BTreeMap<usize, usize>,
    tried: &mut Vec<usize>,
) -> bool {
    for &place in &fitting[dut] {
        if tried.contains(&place) {
            continue;
        }
        tried.push(place);
        let is_free = match taken_by.get(&place).copied() {
            None => true,
            Some(other) => find_place(other, fitting, taken_by, tried),
        };
        if is_free {
            taken_by.insert(place, dut);
            return true;
        }
    }
    false
}

fn enough_gear(config: &FarmConfig, asked: &Asked) -> Result<(), SubmitError> {
    let named = || asked.duts.iter().flat_map(|wants| &wants.gear);
    for name in named() {
        let Some(gear) = config.gear.iter().find(|gear| gear.name == *name || gear.full_name == *name) else {
            let known: Vec<_> = config.gear.iter().map(|gear| gear.name.as_str()).collect();
            let known = if known.is_empty() { "the farm has none".to_owned() } else { known.join(", ") };
            return Err(SubmitError::Never(format!("no gear `{name}`; gear: {known}")));
        };
        let wanted = named().filter(|other| *other == name).count();
        if wanted > gear.seats as usize {
            let why = format!("{wanted} of its DUTs need the gear `{name}`, which serves {} at a time", gear.seats);
            return Err(SubmitError::Never(why));
        }
    }
    Ok(())
}

/// Why no DUT of the farm could ever take an entry.
fn misfit(candidates: &[Candidate<'_>], wants: &Wants) -> SubmitError {
    match &wants.id {
        Some(id) if !candidates.iter().any(|dut| dut.is_called(id)) => {
            SubmitError::NoSuchDut { wanted: id.clone(), known: names(candidates) }
        }
        _ => {
            let reasons = candidates.iter().filter_map(|dut| dut.misfit(wants));
            let reasons = shortened(reasons.collect());
            SubmitError::NoDutMatches { tags: wants.tags.clone(), reasons }
        }
    }
}

/// What the DUTs of a farm are called, for somebody who named none of them.
pub(super) fn names(candidates: &[Candidate<'_>]) -> Vec<String> {
    shortened(candidates.iter().map(|dut| dut.full_name().to_owned()).collect())
}

fn shortened(mut list: Vec<String>) -> Vec<String> {
    if list.len() > LISTED_MAX {
        let more = list.len() - LISTED_MAX;
        list.truncate(LISTED_MAX);
        list.push(format!("and {more} more"));
    }
    list
}

/// Why the keeper did not take a request, in the submitter's terms.
pub(super) fn refusal(config: &FarmConfig, wants: &Wants, error: RequestError) -> SubmitError {
    if wants.asks == Asks::Host {
        return no_host(config, wants, error);
    }
    let candidates = Candidate::all_of(config);
    match error {
        RequestError::NeverFeasible(why) if candidates.iter().any(|dut| dut.fits(wants)) => SubmitError::Never(why),
        RequestError::NeverFeasible(_) => misfit(&candidates, wants),
        error @ RequestError::TooMany { .. } => SubmitError::TooMany(error.to_string()),
        error @ (RequestError::NoSuch(_) | RequestError::Store(_) | RequestError::Stopped) => {
            SubmitError::Farm(error.to_string())
        }
    }
}

/// The same, of a request for a host.
fn no_host(config: &FarmConfig, wants: &Wants, error: RequestError) -> SubmitError {
    let known = || config.hosts.iter().flat_map(|host| host.members()).collect::<Vec<_>>();
    match (error, &wants.id) {
        (RequestError::NeverFeasible(_), _) if config.hosts.is_empty() => {
            SubmitError::Never("the farm file has no `hosts`".into())
        }
        (RequestError::NeverFeasible(_), Some(name)) if !known().contains(name) => {
            SubmitError::Never(format!("no host `{name}`; hosts: {}", shortened(known()).join(", ")))
        }
        (RequestError::NeverFeasible(why), _) => SubmitError::Never(why),
        (error @ RequestError::TooMany { .. }, _) => SubmitError::TooMany(error.to_string()),
        (error @ (RequestError::NoSuch(_) | RequestError::Store(_) | RequestError::Stopped), _) => {
            SubmitError::Farm(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn farm(gear: &str) -> FarmConfig {
        let text = format!(
            "name: lab\nnetwork: {{loopback: {{}}}}\n{gear}duts:\n\
             - {{id: a, mac: '52:54:00:00:00:01', address: 127.0.0.11, tags: [x, y], machine: {{simulated: {{}}}}}}\n\
             - {{id: b, mac: '52:54:00:00:00:02', address: 127.0.0.12, tags: [x], machine: {{simulated: {{}}}}}}\n"
        );
        crate::config::parse("farm.yml", &text, std::path::Path::new("")).unwrap()
    }

    fn asked(duts: &[(&str, &[&str], &[&str])]) -> Asked {
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        let wants = |(role, tags, gear): &(&str, &[&str], &[&str])| Wants {
            role: Some(role.to_string()),
            tags: texts(tags),
            gear: texts(gear),
            ..Wants::default()
        };
        Asked { duts: duts.iter().map(wants).collect(), ..Asked::default() }
    }

    fn cast_in(config: &FarmConfig, asked: &Asked) -> Result<Vec<String>, String> {
        let candidates = Candidate::all_of(config);
        let places = cast(config, &candidates, asked).map_err(|error| error.to_string())?;
        Ok(places.into_iter().map(|place| candidates[place].id().to_owned()).collect())
    }

    #[test]
    fn the_role_that_could_use_either_dut_leaves_the_other_role_the_only_one_that_fits_it() {
        let duts = cast_in(&farm(""), &asked(&[("any", &["x"], &[]), ("special", &["y"], &[])]));
        assert_eq!(duts, Ok(vec!["b".into(), "a".into()]));
    }

    #[test]
    fn a_job_that_needs_more_duts_than_fit_is_refused_at_once() {
        let duts = cast_in(&farm(""), &asked(&[("one", &["y"], &[]), ("two", &["y"], &[])]));
        let why =
            "nothing in the farm could ever serve it: its 2 DUTs need different machines, and none is left for `two`";
        assert_eq!(duts, Err(why.into()));
    }

    #[test]
    fn gear_that_is_not_there_or_too_little_is_told_by_name() {
        let both: &[(&str, &[&str], &[&str])] = &[("one", &[], &["meter"]), ("two", &[], &["meter"])];
        let why = |config: &FarmConfig| cast_in(config, &asked(both)).unwrap_err();
        assert_eq!(why(&farm("")), "nothing in the farm could ever serve it: no gear `meter`; gear: the farm has none");
        let one_seat = farm("gear: [{name: meter}]\n");
        let expected =
            "nothing in the farm could ever serve it: 2 of its DUTs need the gear `meter`, which serves 1 at a time";
        assert_eq!(why(&one_seat), expected);
    }
}
