//! What of the farm file is leased besides the machines that are there: machines on demand, the pools they share, and gear.
//!
//! ```text
//!  gear ◄──needs── duts, on_demand          a part ranks strictly below what needs it, so that no two leases wait for each other
//!  pools ◄──share── on_demand               every name, MAC and address is used once, those of machines that do not exist yet too
//! ```

use job_schema::problem::{alternatives, nearest};

use super::*;
use crate::config::on_demand::{IDLE, mac_number, mac_of};
use crate::lease::rows::{Kind, Pool};

/// Machines on demand that one file may stand for: each is a name, an address and a MAC that are compared with all others, and ten
/// times the largest farm that is measured has as many.
const MEMBERS_AT_MOST: u32 = 10_000;

/// Machines that are made when jobs ask for them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "limit", "first_address", "machine"], "x-lenient" = true))]
pub(super) struct OnDemandKeys {
    /// The first part of its machines' names: `<name>-<k>`, or `<name>` where the limit is 1.
    #[schemars(extend("x-example" = "name: vm", "x-form" = "export-name"))]
    name: String,
    /// What jobs ask for.
    tags: Vec<String>,
    /// A note for people.
    comment: Option<String>,
    /// The most that exist at a time.
    #[schemars(range(min = 1, max = 1000), extend("x-example" = "limit: 4"))]
    limit: Option<u32>,
    /// How many are kept whether jobs want them or not; none when absent.
    #[schemars(range(min = 0, max = 1000))]
    preallocated: Option<u32>,
    /// The pool of `pools` whose limit it shares with others.
    share: Option<String>,
    /// How long one is kept idle; 5 minutes when absent.
    #[schemars(with = "Option<LengthForm>")]
    idle: Option<f64>,
    /// How long one must have been idle before it makes room for another of its pool; no time at all when absent.
    #[schemars(with = "Option<LengthForm>")]
    idle_min: Option<f64>,
    /// The address of the first; the others have the next ones.
    #[schemars(extend("x-example" = "first_address: 10.77.0.50", "x-form" = "address"))]
    first_address: String,
    /// The MAC of the first; the others have the next ones. `52:54` and the first one's address when absent.
    #[schemars(with = "Option<MacForm>")]
    first_mac: Option<String>,
    /// Who may lease one; `everyone` when absent.
    access: Option<AccessKey>,
    /// Which of several free ones a job gets; `spread` when absent.
    policy: Option<PolicyKey>,
    /// Gear that goes with each.
    pub(super) needs: Vec<String>,
    /// What is made.
    machine: MachineKeys,
}

/// A limit that several entries of `on_demand` share.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["limit"], "x-lenient" = true))]
pub(super) struct PoolKeys {
    /// The most that exist of all of them.
    #[schemars(range(min = 1, max = 1000), extend("x-example" = "limit: 8"))]
    limit: Option<u32>,
}

/// A named thing that machines or jobs need.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"], "x-lenient" = true))]
pub(super) struct GearKeys {
    /// What machines and jobs need it by.
    #[schemars(extend("x-example" = "name: meter", "x-form" = "export-name"))]
    name: String,
    /// What jobs ask for.
    tags: Vec<String>,
    /// A note for people.
    comment: Option<String>,
    /// How many leases may hold it at a time; 1 when absent.
    #[schemars(range(min = 1, max = 1000))]
    seats: Option<u32>,
    /// Who may lease it; `everyone` when absent.
    access: Option<AccessKey>,
    /// Nothing that this file names ranks below gear, so nothing fits here.
    pub(super) needs: Vec<String>,
}

/// Who may lease a thing.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AccessKey {
    /// Everybody.
    Everyone,
    /// Whoever was authorized.
    Authorized,
}

/// Which of several free machines a job gets.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PolicyKey {
    /// The one that has been idle longest.
    Spread,
    /// The one that was used last.
    Pack,
}

/// The schema of a MAC that may be left out.
struct MacForm;

impl JsonSchema for MacForm {
    fn schema_name() -> Cow<'static, str> {
        "Mac".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-form": "mac" })
    }
}

pub(super) fn access(key: Option<AccessKey>) -> Access {
    match key {
        None | Some(AccessKey::Everyone) => Access::Everyone,
        Some(AccessKey::Authorized) => Access::Authorized,
    }
}

pub(super) fn policy(key: Option<PolicyKey>) -> PlacementPolicy {
    match key {
        None | Some(PolicyKey::Spread) => PlacementPolicy::Spread,
        Some(PolicyKey::Pack) => PlacementPolicy::Pack,
    }
}

/// What has to be each machine's own.
type Value = fn(&DutConfig) -> String;

impl Inventory<'_> {
    pub(super) fn gear(&mut self, gear: &[GearKeys], findings: &mut Findings) -> Vec<GearConfig> {
        let mut checked = Vec::new();
        for (index, keys) in gear.iter().enumerate().filter(|(_, keys)| !keys.name.is_empty()) {
            self.unique(at("gear", index, "name"), "name", &keys.name, findings);
            checked.push(GearConfig {
                name: keys.name.clone(),
                full_name: format!("{}-{}", self.farm, keys.name),
                tags: keys.tags.clone(),
                comment: keys.comment.clone(),
                seats: keys.seats.unwrap_or(1),
                access: access(keys.access),
            });
        }
        checked
    }

    pub(super) fn on_demand(&mut self, file: &FarmFile, findings: &mut Findings) -> Vec<OnDemandConfig> {
        let mut checked = Vec::new();
        let mut members = 0;
        for (index, keys) in file.on_demand.iter().enumerate() {
            let Some(kind) = self.kind_on_demand(index, keys, &file.pools, findings) else { continue };
            members += kind.limit;
            if members > MEMBERS_AT_MOST {
                let what = format!("up to here that is {members} machines on demand");
                let hint = format!("keep the sum of all limits within {MEMBERS_AT_MOST}");
                findings.tell(&at("on_demand", index, "limit"), what, &hint);
                break;
            }
            self.unique_members(index, &kind, findings);
            checked.push(kind);
        }
        pools(file, findings);
        checked
    }

    fn kind_on_demand(
        &mut self,
        index: usize,
        keys: &OnDemandKeys,
        pools: &BTreeMap<String, PoolKeys>,
        findings: &mut Findings,
    ) -> Option<OnDemandConfig> {
        let machine = self.machine("on_demand", index, &keys.name, &keys.machine, findings);
        let pool = keys.share.as_ref().and_then(|name| shared_pool(("on_demand", index), name, pools, findings));
        let limit = keys.limit.unwrap_or(1);
        let (idle, idle_min) = idle_times(index, keys, findings);
        let preallocated = keys.preallocated.unwrap_or(0);
        if let Some(limit) = keys.limit.filter(|limit| preallocated > *limit) {
            let what = format!("{preallocated} are to be kept, and no more than {limit} may exist");
            findings.tell(&at("on_demand", index, "preallocated"), what, "raise `limit`, or keep fewer");
        }
        let first_address = keys.first_address.parse().ok()?;
        Some(OnDemandConfig {
            name: keys.name.clone(),
            full_name: format!("{}-{}", self.farm, keys.name),
            tags: keys.tags.clone(),
            comment: keys.comment.clone(),
            machine: machine?,
            limit,
            preallocated,
            pool,
            idle,
            idle_min,
            first_address,
            first_mac: keys.first_mac.as_deref().and_then(mac_number).unwrap_or_else(|| mac_of(first_address)),
            access: access(keys.access),
            policy: policy(keys.policy),
            needs: keys.needs.clone(),
        })
    }

    /// Each kind of mistake is told once for an entry, not once for each of its machines.
    fn unique_members(&mut self, index: usize, kind: &OnDemandConfig, findings: &mut Findings) {
        self.room_for(index, kind, findings);
        let is_named = !kind.name.is_empty();
        if is_named {
            self.unique(at("on_demand", index, "name"), "name", &kind.name, findings);
        }
        let parts: [(&str, &str, Value); 4] = [
            ("name", "name", |member| member.id.clone()),
            ("name", "full name", |member| member.full_name.clone()),
            ("first_address", "address", |member| member.address.to_string()),
            ("first_mac", "MAC", |member| member.mac.clone()),
        ];
        for (key, noun, value) in parts {
            // The only one of its kind is called as the kind is, which has its name by now.
            let is_new = |member: &DutConfig| key != "name" || (is_named && value(member) != kind.name);
            let at = at("on_demand", index, key);
            let members = kind.members().filter(is_new);
            let taken: Vec<_> = members.filter_map(|member| self.take(&at, noun, &value(&member))).collect();
            if let Some(what) = taken.into_iter().next() {
                findings.tell(&at, what, OWN_HINT);
            }
        }
    }

    /// The addresses and MACs must not run out before the limit does.
    fn room_for(&self, index: usize, kind: &OnDemandConfig, findings: &mut Findings) {
        let more = kind.limit - 1;
        let (first, last) = (u32::from(kind.first_address), u32::from(kind.first_address).saturating_add(more));
        let is_inside = last - first == more && (first..=last).all(|address| contains(self.network, address.into()));
        if !is_inside {
            let what = format!(
                "`{}` to `{}` are not all addresses for DUTs of this network",
                kind.first_address,
                Ipv4Addr::from(last)
            );
            let hint = format!(
                "{} in a row have to be of the farm's network, without the gateway's own: begin elsewhere, or lower `limit`",
                kind.limit
            );
            findings.tell(&at("on_demand", index, "first_address"), what, &hint);
        }
        if kind.first_mac + u64::from(more) >= 1 << 48 {
            let hint = "begin with a lower one, such as `52:54:00:77:02:00`";
            let what = format!("there are no {} MACs from this one on", kind.limit);
            findings.tell(&at("on_demand", index, "first_mac"), what, hint);
        }
    }
}

fn idle_times(index: usize, keys: &OnDemandKeys, findings: &mut Findings) -> (Duration, Duration) {
    let idle = keys.idle.map_or(IDLE, Duration::from_secs_f64);
    let idle_min = keys.idle_min.map_or(Duration::ZERO, Duration::from_secs_f64);
    if idle_min > idle {
        let what =
            format!("one is gone after {} s, before it may make room after {} s", idle.as_secs(), idle_min.as_secs());
        findings.tell(&at("on_demand", index, "idle_min"), what, "make `idle_min` shorter than `idle`");
    }
    (idle, idle_min)
}

/// The pool that an entry of one of the file's lists shares.
pub(super) fn shared_pool(
    (list, index): (&str, usize),
    name: &str,
    pools: &BTreeMap<String, PoolKeys>,
    findings: &mut Findings,
) -> Option<Pool> {
    let Some(keys) = pools.get(name) else {
        let hint = match nearest(name, pools.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if pools.is_empty() => format!("add `pools: {{{name}: {{limit: 8}}}}`"),
            None => format!("name {}, or add it to `pools`", alternatives(pools.keys().map(String::as_str))),
        };
        findings.tell(&at(list, index, "share"), format!("no pool `{name}`"), &hint);
        return None;
    };
    Some(Pool { name: name.to_owned(), limit: keys.limit.unwrap_or(1) })
}

/// What is always kept has to fit into its pool.
fn pools(file: &FarmFile, findings: &mut Findings) {
    for (name, keys) in &file.pools {
        let path = ["pools".to_owned(), name.clone()];
        if let Err(error) = name.parse::<job_schema::ExportName>() {
            findings.tell(&path, format!("`{name}` is not a name: {error}"), "call it that in `share`, too");
        }
        let sharing = file.on_demand.iter().filter(|kind| kind.share.as_deref() == Some(name));
        let kept: u32 = sharing.map(|kind| kind.preallocated.unwrap_or(0)).sum();
        if let Some(limit) = keys.limit.filter(|limit| kept > *limit) {
            let what = format!("{kept} machines are to be kept in a pool of {limit}");
            findings.tell(&path, what, "raise its `limit`, or lower `preallocated` of what shares it");
        }
    }
}

/// Checks what the machines and the gear need, once all names are known.
pub(super) fn needs(file: &FarmFile, duts: &[DutConfig], on_demand: &[OnDemandConfig], findings: &mut Findings) {
    let kinds = kinds_of(file, duts, on_demand);
    let duts = file.duts.iter().enumerate().map(|(index, keys)| ("duts", Kind::Dut, index, &keys.needs));
    let on_demand = file.on_demand.iter().enumerate().map(|(index, keys)| ("on_demand", Kind::Dut, index, &keys.needs));
    let gear = file.gear.iter().enumerate().map(|(index, keys)| ("gear", Kind::Gear, index, &keys.needs));
    for (list, whole, index, names) in duts.chain(on_demand).chain(gear) {
        for (number, name) in names.iter().enumerate() {
            let mut path = at(list, index, "needs");
            path.push(number.to_string());
            if names[..number].contains(name) {
                findings.tell(&path, format!("`{name}` is needed twice"), "name it once");
            } else if let Err((what, hint)) = may_need(whole, name, &kinds) {
                findings.tell(&path, what, &hint);
            }
        }
    }
}

/// `Err`: what is wrong, and the next step.
fn may_need(whole: Kind, name: &str, kinds: &BTreeMap<String, Kind>) -> Result<(), (String, String)> {
    let gear: Vec<_> = kinds.iter().filter(|(_, kind)| **kind == Kind::Gear).map(|(name, _)| name.as_str()).collect();
    let Some(part) = kinds.get(name) else {
        let hint = match nearest(name, gear.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if gear.is_empty() => format!("add `gear: [{{name: {name}}}]`"),
            None => format!("name {}, or add it to `gear`", alternatives(gear)),
        };
        return Err((format!("no gear `{name}`"), hint));
    };
    if part.rank() >= whole.rank() {
        let hint =
            "a part ranks below what needs it, or two could wait for each other: a DUT may need gear, gear nothing";
        return Err((format!("a {whole} cannot need `{name}`, which is a {part}"), hint.to_owned()));
    }
    if *part != Kind::Gear {
        let hint = "it goes with its own DUT; only gear can be needed";
        return Err((format!("`{name}` is the {part} of a DUT"), hint.to_owned()));
    }
    Ok(())
}

/// Everything with a name, and what it is.
fn kinds_of(file: &FarmFile, duts: &[DutConfig], on_demand: &[OnDemandConfig]) -> BTreeMap<String, Kind> {
    let mut kinds = BTreeMap::new();
    let members = on_demand.iter().flat_map(|kind| kind.members().map(|member| member.id).chain([kind.name.clone()]));
    kinds.extend(members.map(|name| (name, Kind::Dut)));
    for dut in duts {
        kinds.insert(console_name(&dut.id), Kind::Console);
        kinds.insert(power_name(&dut.id), Kind::Power);
        kinds.insert(dut.full_name.clone(), Kind::Dut);
        kinds.insert(dut.id.clone(), Kind::Dut);
    }
    kinds.extend(file.gear.iter().map(|keys| (keys.name.clone(), Kind::Gear)));
    kinds
}

#[cfg(test)]
mod tests;
