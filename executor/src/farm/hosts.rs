//! The hosts of the farm, and what leases do to them: a fresh working copy for each, and nothing left of it.
//!
//! | of a lease | done on the host | when it fails |
//! |---|---|---|
//! | activate | log in, make the working copy | the next host, three times at most; failures count against the host |
//! | revoke | end commands and transfers | – |
//! | tear down | end what runs, wipe the working copy | again, until a person is called |
//!
//! | of a host that is made | done | when it fails |
//! |---|---|---|
//! | make | asked for, waited for until it answers by SSH with the key that it was given | again, or its kind is left alone for a while |
//! | unmake | ended | again, until a person is called |
//! | at the start | what the provider has of ours and no row knows is ended; what a row knows and is not there is lost | – |
//!
//! All of it is told by names alone, so that it is the same after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Current, Farm};
use crate::blueprint::host::keys::{FarmKeys, cloud_init};
use crate::blueprint::host::provider::{self, Found, Provider, ProviderError, Wanted};
use crate::blueprint::host::working_copy::WorkingCopy;
use crate::config::hosts::{HostConfig, HostFrom, MadeConfig};
use crate::lease::actor::Outside;
use crate::lease::rows::{Admin, Health, Kind, Lease, LeaseId, Resource, ResourceState};
use crate::lease::{EffectError, Snapshot};
use crate::ssh::{HostKey, Login, Origin, SshError};

/// A machine of a cloud boots within a minute or two; its kind may take as long as the lease rows let it.
const BOOT_TIME: Duration = Duration::from_secs(570);
/// Between two looks at a machine that boots: seconds, as a cloud counts its requests.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Times that a provider is asked at the start what it has of ours.
const LISTINGS: u32 = 5;
/// Making a folder, with a full disk's patience.
const MAKE_TIME: Duration = Duration::from_secs(60);
/// Removing a build of some million files.
const WIPE_TIME: Duration = Duration::from_secs(1800);

/// The hosts of the farm. Cheap to clone.
#[derive(Clone)]
pub(super) struct Hosts(Arc<Inner>);

struct Inner {
    config: Current,
    /// Entries that were used, by the names of their hosts: what the farm file no longer has is still to be wiped.
    used: Mutex<BTreeMap<String, HostConfig>>,
    /// Leases whose host could not be logged in to: nothing is there of them.
    untouched: Mutex<BTreeSet<LeaseId>>,
    /// What ends what is done under a lease.
    stops: Mutex<BTreeMap<LeaseId, CancellationToken>>,
    /// Where hosts that were made are; asked for again after a restart.
    addresses: Mutex<BTreeMap<String, Address>>,
    /// Why hosts that boot do not answer yet, by name.
    silent: Mutex<BTreeMap<String, String>>,
    keys: OnceLock<FarmKeys>,
    commands: AtomicU64,
}

/// Where an SSH server is: its address, and its port where that is not the entry's.
type Address = (String, Option<u16>);

/// Where the things of a lease are: on which host, in which folder.
#[derive(Clone)]
pub(super) struct Place {
    pub login: Login,
    pub copy: WorkingCopy,
    pub stop: CancellationToken,
    /// Tells this command from the lease's others.
    pub number: u64,
}

impl Hosts {
    pub(super) fn new(config: Current) -> Hosts {
        let (used, untouched, stops) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (addresses, silent) = (Mutex::default(), Mutex::default());
        let (keys, commands) = (OnceLock::new(), AtomicU64::default());
        Hosts(Arc::new(Inner { config, used, untouched, stops, addresses, silent, keys, commands }))
    }

    /// The entry of the farm file that a host of this name is of, as it is now or as it was last.
    fn entry(&self, host: &str) -> Option<HostConfig> {
        let config = self.0.config.get();
        let found = config.hosts.iter().find(|entry| entry.members().any(|member| member == host));
        let mut used = self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = found {
            used.insert(host.to_owned(), found.clone());
        }
        used.get(host).cloned()
    }

    /// Where a lease on a host has its things.
    pub(super) async fn place(&self, host: &str, lease: &LeaseId) -> Result<Place, SshError> {
        let gone = |what: &str| SshError::Refused { host: host.to_owned(), what: what.to_owned() };
        let entry = self.entry(host).ok_or_else(|| gone("the farm file no longer has it"))?;
        let login = match &entry.from {
            HostFrom::Inventory { address } => self.login(&entry, host, &(address.clone(), None))?,
            HostFrom::Provider(made) => {
                let address = self.address_of(&entry, made, host).await;
                let address = address.map_err(|error| gone(&error.to_string()))?;
                self.login(&entry, host, &address.ok_or_else(|| gone("it is not there any more"))?)?
            }
        };
        let farm = self.0.config.get().name.clone();
        let copy = WorkingCopy { folder: entry.folder, farm, lease: lease.as_str().to_owned() };
        Ok(self.place_at(login, copy, self.stop_of(lease)))
    }

    pub(super) fn place_at(&self, login: Login, copy: WorkingCopy, stop: CancellationToken) -> Place {
        let number = self.0.commands.fetch_add(1, Ordering::Relaxed);
        Place { login, copy, stop, number }
    }

    fn login(&self, entry: &HostConfig, host: &str, (address, port): &Address) -> Result<Login, SshError> {
        let mut host_keys = entry.ssh.host_keys.clone();
        if host_keys.is_empty() {
            host_keys.push(HostKey::Whole(self.keys(host)?.host(host).public_key().clone()));
        }
        let key = match &entry.ssh.key {
            Some(key) => Arc::clone(key),
            None => Arc::new(self.keys(host)?.login()),
        };
        let (port, user) = (port.unwrap_or(entry.ssh.port), entry.ssh.user.clone());
        Ok(Login { name: host.to_owned(), address: address.clone(), port, user, key, host_keys, from: Origin::Here })
    }

    pub(super) fn keys(&self, host: &str) -> Result<FarmKeys, SshError> {
        if let Some(keys) = self.0.keys.get() {
            return Ok(keys.clone());
        }
        let keys = FarmKeys::of(&self.0.config.get().state).map_err(|error| SshError::Refused {
            host: host.to_owned(),
            what: format!("the farm cannot keep its keys: {error}"),
        })?;
        Ok(self.0.keys.get_or_init(|| keys).clone())
    }

    fn provider(&self, entry: &HostConfig, made: &MadeConfig) -> Result<Arc<dyn Provider>, SshError> {
        let config = self.0.config.get();
        let owner = format!("{}-{}", config.name, self.keys(&entry.name)?.owner());
        Ok(provider::build(&made.provider, &owner, &entry.name, &config.state))
    }

    async fn address_of(&self, entry: &HostConfig, made: &MadeConfig, host: &str) -> Result<Option<Address>, SshError> {
        let known = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let found = self.provider(entry, made)?.find(host).await;
        let found = found.map_err(|error| SshError::Refused { host: host.to_owned(), what: error.to_string() })?;
        Ok(found.and_then(|found| Some((found.address?, found.port))))
    }

    /// What is found out about a host, once it is there.
    pub(super) async fn make(self, host: String, row: String) -> Result<Facts, EffectError> {
        let entry = self.entry(&host);
        let Some(entry) = entry else {
            return Err(EffectError::Permanent(format!("the farm file has no host `{host}`")));
        };
        let made = match &entry.from {
            HostFrom::Inventory { address } => return Ok(vec![("address".to_owned(), address.clone())]),
            HostFrom::Provider(made) => made,
        };
        let retry = |error: SshError| EffectError::Retry(error.to_string());
        let provider = self.provider(&entry, made).map_err(retry)?;
        let keys = self.keys(&host).map_err(retry)?;
        let login_key = entry.ssh.key.clone().unwrap_or_else(|| Arc::new(keys.login()));
        let user_data = cloud_init(&keys.host(&host), &login_key);
        let user_data = user_data.map_err(|error| EffectError::Permanent(error.to_string()))?;
        let wanted = Wanted { name: host.clone(), token: keys.token(&row), user_data };
        let asked = async {
            let found = provider.find(&host).await?;
            if found.is_none() { provider.make(&wanted).await } else { Ok(()) }
        };
        asked.await.inspect_err(|error| self.tell_why(&host, &error.to_string())).map_err(refused)?;
        let boots = self.until_it_answers(&entry, &host, &*provider);
        let booted = tokio::time::timeout(BOOT_TIME, boots).await;
        let last = self.silent().remove(&host).unwrap_or_else(|| "it has no address".to_owned());
        booted
            .map_err(|_| EffectError::Retry(format!("{host} does not answer after {} s: {last}", BOOT_TIME.as_secs())))
    }

    fn silent(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To the log once, and to whoever asks as long as it is so.
    fn tell_why(&self, host: &str, why: &str) {
        let before = self.silent().insert(host.to_owned(), why.to_owned());
        if before.as_deref() != Some(why) {
            tracing::info!(host, why, "it does not answer yet");
        }
    }

    /// A machine that boots may refuse, show the key of its image or not let us in until cloud-init is done.
    async fn until_it_answers(&self, entry: &HostConfig, host: &str, provider: &dyn Provider) -> Facts {
        let mut look = tokio::time::interval(LOOK_AGAIN);
        loop {
            look.tick().await;
            let (id, address) = match provider.find(host).await {
                Ok(Some(Found { id, address: Some(address), port })) => (id, (address, port)),
                Ok(_) => continue,
                Err(error) => {
                    self.tell_why(host, &error.to_string());
                    continue;
                }
            };
            let answers = async { self.login(entry, host, &address)?.open().await };
            match answers.await {
                Ok(_) => {
                    let mut addresses = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
                    addresses.insert(host.to_owned(), address.clone());
                    let mut facts = vec![("address".to_owned(), address.0), ("instance".to_owned(), id)];
                    facts.extend(address.1.map(|port| ("port".to_owned(), port.to_string())));
                    return facts;
                }
                Err(error) => {
                    self.tell_why(host, &error.to_string());
                }
            }
        }
    }

    /// Ends a host that was made; one that is there is left alone.
    pub(super) async fn unmake(self, host: String) -> Result<(), EffectError> {
        self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner).remove(&host);
        self.silent().remove(&host);
        let Some(entry) = self.entry(&host) else { return Ok(()) };
        let HostFrom::Provider(made) = &entry.from else { return Ok(()) };
        let provider = self.provider(&entry, made).map_err(|error| EffectError::Retry(error.to_string()))?;
        provider.end(&host).await.map_err(|error| EffectError::Retry(format!("{host} is not ended: {error}")))
    }

    /// What providers have of ours. One that does not answer is left out: nothing is known of its hosts.
    pub(super) async fn enumerate(self) -> Vec<Outside> {
        let mut outside = Vec::new();
        for entry in &self.0.config.get().hosts {
            let HostFrom::Provider(made) = &entry.from else { continue };
            let Ok(provider) = self.provider(entry, made) else { continue };
            for attempt in 1..=LISTINGS {
                match provider.list().await {
                    Ok(names) => {
                        outside.push(Outside { blueprint: entry.name.clone(), names });
                        break;
                    }
                    Err(error) => tracing::warn!(host = entry.name, attempt, %error, "nobody knows what is there"),
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        outside
    }

    /// Where a lease's host cannot be reached, another may be: the lease looks for one, and the failure counts against this one.
    pub(super) async fn activate(self, host: String, lease: Lease) -> Result<(), EffectError> {
        let passing = |error: SshError| EffectError::Retry(error.to_string());
        let session = match self.place(&host, lease.id()).await {
            Ok(place) => place.login.open().await.map(|session| (session, place)),
            Err(error) => Err(error),
        };
        let untouched = || self.0.untouched.lock().unwrap_or_else(PoisonError::into_inner);
        let (session, place) = session
            .inspect_err(|_| {
                untouched().insert(lease.id().clone());
            })
            .map_err(passing)?;
        untouched().remove(lease.id());
        let made = tokio::time::timeout(MAKE_TIME, session.script(&place.copy.make())).await;
        let late = |_| EffectError::Retry(format!("{host} has not made a folder within {} s", MAKE_TIME.as_secs()));
        made.map_err(late)?.map(drop).map_err(passing)
    }

    /// Whatever is done under the lease stops now.
    pub(super) fn revoke(&self, lease: &LeaseId) {
        let stop = self.0.stops.lock().unwrap_or_else(PoisonError::into_inner).remove(lease);
        stop.iter().for_each(CancellationToken::cancel);
    }

    pub(super) async fn tear_down(self, host: String, lease: Lease) -> Result<(), EffectError> {
        if self.0.untouched.lock().unwrap_or_else(PoisonError::into_inner).remove(lease.id()) {
            return Ok(());
        }
        if self.is_gone(&host).await {
            return Ok(());
        }
        let wiped = async { self.place(&host, lease.id()).await?.wipe().await };
        wiped.await.map_err(|error: SshError| {
            EffectError::Retry(format!("the working copy of lease {} is not wiped: {error}", lease.id()))
        })
    }

    /// Whether its provider says so: with the machine went everything on it.
    async fn is_gone(&self, host: &str) -> bool {
        let Some(entry) = self.entry(host) else { return false };
        let HostFrom::Provider(made) = &entry.from else { return false };
        let Ok(provider) = self.provider(&entry, made) else { return false };
        provider.find(host).await == Ok(None)
    }

    pub(super) fn stop_of(&self, lease: &LeaseId) -> CancellationToken {
        let mut stops = self.0.stops.lock().unwrap_or_else(PoisonError::into_inner);
        stops.entry(lease.clone()).or_default().clone()
    }
}

fn refused(error: ProviderError) -> EffectError {
    match error {
        ProviderError::NotNow(why) => EffectError::Retry(why),
        ProviderError::Never(why) => EffectError::Permanent(why),
    }
}

/// What was found out about a thing, by name.
type Facts = Vec<(String, String)>;

/// A host as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// `<farm>-<name>`.
    pub full_name: String,
    /// In a word or two.
    pub state: &'static str,
    /// Why it is held back.
    pub why: Option<String>,
    /// What can be asked of it.
    pub tags: Vec<String>,
    /// How many leases may hold it at a time.
    pub seats: u32,
    /// Who has it.
    pub holders: Vec<String>,
    /// Where it is.
    pub address: Option<String>,
    /// Who makes it.
    pub provider: Option<&'static str>,
    /// The admin's note.
    pub comment: Option<String>,
}

impl Farm {
    /// The hosts that there are, and the kinds of which there is none now.
    pub async fn hosts(&self) -> Vec<HostView> {
        let snapshot = self.snapshot().await;
        let rows = |entry: &HostConfig| {
            let rows = snapshot.resources.iter().filter(|row| row.kind == Kind::Host && row.blueprint == entry.name);
            let mut rows: Vec<_> = rows.filter(|row| row.state != ResourceState::Destroyed).cloned().collect();
            rows.sort_by_key(|row| row.serial);
            rows
        };
        let mut views = Vec::new();
        for entry in &self.config().hosts {
            let rows = rows(entry);
            if rows.is_empty() {
                views.push(HostView::of_none(entry));
            }
            views.extend(rows.iter().map(|row| HostView::of(entry, row, &snapshot)));
        }
        let silent = self.machines.hosts().silent();
        for view in views.iter_mut().filter(|view| view.state == "starting") {
            let why = silent.get(&view.name).map(|why| format!("not there yet: {why}"));
            view.why = why.or(view.why.take());
        }
        views
    }
}

impl HostView {
    fn of_none(entry: &HostConfig) -> HostView {
        let (address, provider) = match &entry.from {
            HostFrom::Inventory { address } => (Some(address.clone()), None),
            HostFrom::Provider(made) => (None, Some(made.provider.name())),
        };
        HostView {
            name: entry.name.clone(),
            full_name: entry.full_name.clone(),
            state: "not made",
            why: None,
            tags: entry.tags.clone(),
            seats: entry.seats,
            holders: Vec::new(),
            address,
            provider,
            comment: entry.comment.clone(),
        }
    }

    fn of(entry: &HostConfig, row: &Resource, snapshot: &Snapshot) -> HostView {
        let on_it = snapshot.leases.iter().filter(|lease| lease.resource.as_ref() == Some(&row.id) && lease.is_held());
        let holders: Vec<_> = on_it.map(|lease| lease.request.owner.to_string()).collect();
        let (state, why) = match (&row.admin, row.health, row.state) {
            (Admin::Cordoned { reason }, ..) => ("cordoned", Some(reason.clone())),
            (_, Health::Quarantined, _) => ("quarantined", Some(format!("it failed {} times in a row", row.failures))),
            (_, _, ResourceState::Pending) => ("starting", row.needs_operator.clone()),
            (_, _, ResourceState::Draining | ResourceState::Releasing | ResourceState::Destroyed) => {
                ("ending", row.needs_operator.clone())
            }
            (_, _, ResourceState::Active) if holders.is_empty() => ("free", None),
            (_, _, ResourceState::Active) => ("leased", None),
        };
        let found = row.facts.iter().find(|(name, _)| name == "address").map(|(_, address)| address.clone());
        let none = HostView::of_none(entry);
        HostView {
            name: row.name.clone(),
            full_name: row.full_name.clone(),
            state,
            why,
            tags: row.tags.clone(),
            holders,
            address: found.or(none.address),
            ..none
        }
    }
}

impl Place {
    async fn wipe(&self) -> Result<(), SshError> {
        self.login.script(&self.copy.wipe(), WIPE_TIME).await.map(drop)
    }
}
