//! A farm from its configuration: the network, the gateway on it, the machines, the leases of before, everything else off.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use gateway::content::ContentError;
use gateway::{Gateway, GatewayError};
use tokio::sync::watch;

use super::buckets::{self, Buckets};
use super::discovery::{Discovery, Strangers};
use super::duts::row_of;
use super::machines::{Dut, Machines};
use super::network::Network;
use super::record::Records;
use super::shelf::Shelf;
use super::{Announcements, Current, Farm, Jobs, Listeners, Planner, ledger, training};
use crate::blueprint::dut;
use crate::blueprint::host::keys::FarmKeys;
use crate::boot::Place;
use crate::config::FarmConfig;
use crate::console::Consoles;
use crate::inventory::InventoryError;
use crate::lease::rows::{Admin, Kind, LeaseState, ResourceState, Verb};
use crate::lease::store::StoreError;
use crate::lease::{Effects, Keeper, Snapshot};
use crate::virtual_dut::network::NetworkError;
use crate::virtual_dut::{images, install, qemu};

/// The rows of the leases, in the state folder.
const LEASES: &str = "leases.sqlite";
/// What the consoles said, beside them.
const CONSOLES: &str = "consoles";
/// Disks that outlive their jobs, beside them.
const DISKS: &str = "disks";
/// How long the farm waits at its start for machines that are kept ready. Making one takes milliseconds; one that takes longer is made
/// ready while the farm already serves.
const READY_TIME: Duration = Duration::from_secs(5);

/// How long the start waits for outlets to go off: one call that gets no answer. Behind a unit that is dead all of its machines wait for
/// each other, and the farm for none of them.
const SWITCH_OFF_TIME: Duration = Duration::from_secs(50);

/// After this pause a person is asked once more to switch a machine off: what fails at once does not spin, and who has said it by himself
/// has the machine a second later.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Why a farm could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The private network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A server of the gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The artifact cache.
    #[error("cannot open the artifact cache: {0}")]
    Cache(#[from] ContentError),
    /// The folder of the cache.
    #[error(transparent)]
    Install(#[from] install::InstallError),
    /// A machine.
    #[error("cannot set up {dut}: {reason}")]
    Machine {
        /// Its full name.
        dut: String,
        /// What went wrong.
        reason: String,
    },
    /// A power unit or a console.
    #[error("cannot set up {name}: {reason}")]
    Hardware {
        /// What the farm file calls it.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// The machines that registered.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The store of the leases.
    #[error("cannot keep leases: {0}")]
    Leases(#[from] StoreError),
    /// The folder for jobs.
    #[error("cannot keep jobs in {path}: {source}")]
    State {
        /// The folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Farm {
    /// Starts the farm; its API will be at `api`, and its own boot images are downloaded from `images`.
    pub async fn start(mut config: FarmConfig, api: SocketAddr, images: SocketAddr) -> Result<Arc<Farm>, StartError> {
        let state_lock = keep_state_in(&config.state)?;
        let kept_disks = |source| StartError::State { path: config.state.join(DISKS).display().to_string(), source };
        let shelf = Shelf::open(config.state.join(DISKS)).map_err(kept_disks)?;
        let (kept, last_number) = ledger::read(&config.state);
        images::add_variables(&mut config.job_variables, images);
        let (listeners, strangers) = (Arc::new(Listeners::default()), Arc::new(Strangers::default()));
        let discovery = Discovery::open(&config, Arc::clone(&strangers))?;
        let (mut merged, aside) = discovery.inventory.merged(config.clone());
        std::mem::swap(&mut config, &mut merged);
        discovery.goes_by(merged, &config, aside);
        let network = Network::of(&config)?;
        let announcements = Arc::new(Announcements::default());
        let gateway_config = network.gateway_config(&config, &listeners, &strangers, &announcements)?;
        let gateway = Arc::new(Gateway::start(gateway_config).await?);
        let addresses = gateway.addresses();
        let place = Place { address: network.address, http_port: addresses.http.map_or(80, |address| address.port()) };
        let runtime = qemu::RuntimeFolder::new()
            .map_err(|source| StartError::State { path: "a runtime folder".into(), source })?;
        let records = Records::open(&config.state).map(Arc::new);
        let records =
            records.map_err(|source| StartError::State { path: config.state.display().to_string(), source })?;
        // The templates of jobs have its public half.
        FarmKeys::of(&config.state)
            .map_err(|source| StartError::State { path: config.state.display().to_string(), source })?;
        gateway.cache().fetcher().trust(super::downloads::fetching(&config));
        let name = config.name.clone();
        let rows = dut::rows(&config);
        let quotas = super::projects::quotas(&config);
        let state = config.state.clone();
        let config = Current::from(config);
        let buckets = Buckets::new(gateway.s3().clone(), gateway.cache().editor().clone(), &config.get());
        let buckets = buckets.map_err(|source| StartError::State { path: state.display().to_string(), source })?;
        let consoles = Consoles::new(state.join(CONSOLES), config.get().console_log);
        let machines = Machines::new(
            config.clone(),
            network,
            Arc::clone(&consoles),
            Arc::clone(&gateway),
            &listeners,
            Arc::clone(&records),
            runtime.path().to_owned(),
        )?;
        let machines = Arc::new(machines);
        let effects: Arc<dyn Effects> = Arc::clone(&machines) as Arc<dyn Effects>;
        let (keeper, corruption) = Keeper::open(&state.join(LEASES), rows, effects)?;
        keeper.set_quotas(quotas).await;
        for found in corruption {
            tracing::error!(%found, "the leases on disk are not as they should be");
        }
        let farm = Farm {
            name,
            api,
            images,
            source: std::sync::OnceLock::new(),
            audit: Arc::default(),
            reloading: tokio::sync::Mutex::default(),
            planner: Planner {
                config,
                place,
                nbd_port: addresses.nbd.map_or(gateway::nbd::PORT, |it| it.port()),
                s3_port: addresses.s3.map_or(gateway::s3::PORT, |it| it.port()),
                registry_port: addresses.registry.map_or(gateway::registry::PORT, |it| it.port()),
            },
            machines,
            announcements,
            consoles,
            keeper,
            gateway,
            jobs: Mutex::new(Jobs { last_number, ..Jobs::default() }),
            listeners,
            stopping: watch::channel(false).0,
            carriers: Mutex::default(),
            records,
            trials: Arc::default(),
            holds: super::hold::Holds::default(),
            shelf,
            buckets,
            discovery,
            _state_lock: state_lock,
            _runtime: runtime,
        };
        let farm = Arc::new(farm);
        strangers.serve(farm.gateway.namespaces().clone(), Arc::downgrade(&farm));
        let leases = farm.leases_when_ready().await;
        farm.reopen_buckets_of_leases();
        farm.set_up_again(&leases).await;
        farm.switch_off_what_nobody_holds(&leases).await;
        farm.restore(kept).await;
        farm.look_after_again(&leases).await;
        farm.keep_doors();
        farm.end_discovery_of_before();
        tokio::spawn(training::supervise(Arc::downgrade(&farm), Arc::clone(&farm.trials)));
        tokio::spawn(buckets::remove_the_expired(Arc::downgrade(&farm)));
        tokio::spawn(keep_the_cache_small(Arc::downgrade(&farm)));
        Ok(farm)
    }

    /// The rows, once every machine that is kept ready is, or will not be soon.
    async fn leases_when_ready(&self) -> Snapshot {
        let ready = async {
            // The rows tell nobody when all of them have settled; they are looked at a few times at most.
            let mut look = tokio::time::interval(Duration::from_millis(5));
            loop {
                look.tick().await;
                let snapshot = self.snapshot().await;
                let in_the_making = |state| matches!(state, ResourceState::Pending);
                if !snapshot.resources.iter().any(|resource| in_the_making(resource.state) && resource.attempts == 0) {
                    return snapshot;
                }
            }
        };
        match tokio::time::timeout(READY_TIME, ready).await {
            Ok(snapshot) => snapshot,
            Err(_) => self.snapshot().await,
        }
    }

    /// Machines that were made on demand before a restart: their rows are there, their drivers are not.
    async fn set_up_again(&self, leases: &Snapshot) {
        let made = leases
            .resources
            .iter()
            .filter(|resource| resource.kind == Kind::Dut && resource.state != ResourceState::Destroyed);
        for resource in made {
            let set_up = match self.config().member(&resource.name) {
                Some(config) => self.machines.set_up(&config).map_err(|error| error.to_string()),
                None => Err("the farm file no longer has it".to_owned()),
            };
            if let Err(why) = set_up {
                tracing::warn!(dut = resource.full_name, %why, "a machine of before the restart is gone");
                let lost = self.keeper.command(resource.object(), Verb::ResourceLost { why }, "the farm's start").await;
                lost.unwrap_or_else(|error| tracing::error!(%error, "a machine that is gone cannot be told so"));
            }
        }
    }

    /// No outlet is on without a lease, and none is switched under a live one. A DUT that will not go off is held back.
    async fn switch_off_what_nobody_holds(self: &Arc<Self>, leases: &Snapshot) {
        let held = held_duts(leases);
        let switch = |dut: Arc<Dut>| async move {
            let switched = tokio::time::timeout(SWITCH_OFF_TIME, dut.switch_off()).await;
            if let Err(error) = switched.unwrap_or_else(|_| Err(dut.no_answer(SWITCH_OFF_TIME))) {
                tracing::error!(dut = dut.config.full_name, %error, "cannot switch the DUT off at the start");
                let why = format!("it could not be switched off when the farm started: {error}");
                self.hold_back(&dut.config.id, Some(why)).await;
            }
        };
        let look = |dut: Arc<Dut>| async move {
            if let Err(error) = dut.look_at_power().await {
                tracing::warn!(dut = dut.config.full_name, %error, "cannot read a held DUT's outlet at the start");
            }
        };
        let (held, free): (Vec<_>, Vec<_>) =
            self.machines.all().into_iter().partition(|dut| held.contains(dut.config.id.as_str()));
        // Nobody could answer a farm that does not serve yet.
        let (asked_for, free): (Vec<_>, Vec<_>) = free.into_iter().partition(|dut| dut.outlet.asks_people());
        for dut in asked_for {
            tokio::spawn(Arc::clone(self).ask_for_power_off(dut));
        }
        let (free, held) = (free.into_iter().map(switch), held.into_iter().map(look));
        tokio::join!(futures_util::future::join_all(free), futures_util::future::join_all(held));
        // A command of before may still be on its way to a unit that goes on without us.
        for dut in self.machines.all().into_iter().filter(|dut| dut.outlives_us()) {
            tokio::spawn(dut.outlet.clone().settle());
        }
    }
}

impl Farm {
    /// A machine whose outlet a person switches is held back until he has said that it is off; the farm serves meanwhile.
    async fn ask_for_power_off(self: Arc<Self>, dut: Arc<Dut>) {
        let (id, outlet, unit) = (&dut.config.id, &dut.outlet.outlet().0, &dut.outlet.unit().name);
        let reason = format!("nobody has said yet that it is off: `wharf pdu done {unit} {outlet} off`");
        // What an admin or a trial holds back stays so.
        if self.standing(id).await == Some(Admin::Enabled) {
            self.hold_back(id, Some(reason.clone())).await;
        }
        let farm = Arc::downgrade(&self);
        drop(self);
        while let Err(error) = dut.switch_off().await {
            tracing::warn!(dut = dut.config.full_name, %error, "nobody has switched the DUT off yet");
            if farm.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let Some(farm) = farm.upgrade() else { return };
        // Who held it back stands after the reason.
        let is_ours = |admin: &Admin| matches!(admin, Admin::Cordoned { reason: found } if found.starts_with(&reason));
        if farm.standing(id).await.as_ref().is_some_and(is_ours) {
            farm.put_back(id).await;
        }
    }

    async fn standing(&self, dut: &str) -> Option<Admin> {
        row_of(&self.snapshot().await, dut).map(|row| row.admin.clone())
    }
}

/// The names of the DUTs that somebody holds.
fn held_duts(leases: &Snapshot) -> BTreeSet<&str> {
    let alive = leases.leases.iter().filter(|lease| lease.state != LeaseState::Destroyed);
    let held: BTreeSet<_> = alive.filter_map(|lease| lease.resource.as_ref()).collect();
    let duts = leases.resources.iter().filter(|resource| resource.kind == Kind::Dut && held.contains(&resource.id));
    duts.map(|resource| resource.name.as_str()).collect()
}

/// Once a day, for as long as the farm lives, forgets downloads that no job has used for 60 days (CI-tron's period).
async fn keep_the_cache_small(farm: Weak<Farm>) {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let mut day = tokio::time::interval(DAY);
    loop {
        day.tick().await;
        let Some(farm) = farm.upgrade() else { return };
        match farm.gateway.cache().prune(60 * DAY).await {
            Ok(pruned) => tracing::debug!(?pruned, "old downloads are gone"),
            Err(error) => tracing::warn!(%error, "cannot prune the artifact cache"),
        }
    }
}

/// Makes the state folder and takes it for this process.
fn keep_state_in(path: &Path) -> Result<std::fs::File, StartError> {
    // What jobs said, and their buckets, is not for every user of the host. A folder that is there stays as somebody made it.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    let locked = made.and_then(|()| ledger::lock(path));
    locked.map_err(|source| StartError::State { path: path.display().to_string(), source })
}
