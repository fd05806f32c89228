//! Who may do what with which buckets: credentials, each for one job, from one place.
//!
//! ```text
//!  Desk::grant(access key, Grant { secret, from, buckets }) ─► Granted      dropped: the key is nobody's, what runs by it ends
//!
//!  a request: its key ─► a grant? ─► its signature ─► asked from where the grant is for? ─► the bucket, among the grant's own
//!                         no: 403      no: 403           no: 403, told to the job            no: 404
//! ```
//! A bucket is looked up among those of the key that asks, so there is no name that leads to another job's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::bucket::Bucket;

/// From where credentials are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoodFrom {
    /// This address on the DUTs' network.
    Dut(IpAddr),
    /// The operator's side, wherever that may be.
    Operator,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody at this address of the DUTs' network.
    Dut(IpAddr),
    /// Somebody on the operator's side; `None`: over the local socket.
    Operator(Option<IpAddr>),
}

impl GoodFrom {
    fn is_for(self, caller: Caller) -> bool {
        match (self, caller) {
            (GoodFrom::Dut(address), Caller::Dut(peer)) => address == peer,
            (GoodFrom::Operator, Caller::Operator(_)) => true,
            (GoodFrom::Dut(_), Caller::Operator(_)) | (GoodFrom::Operator, Caller::Dut(_)) => false,
        }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Caller::Dut(address) | Caller::Operator(Some(address)) => address.fmt(f),
            Caller::Operator(None) => f.write_str("the local socket"),
        }
    }
}

/// What was done with a bucket, or tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What: `GET`, `PUT` or `DELETE`.
    pub verb: &'static str,
    /// Bucket and object.
    pub name: String,
    /// Who.
    pub peer: String,
    /// Bytes that went over the wire.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// How it ended.
    pub end: End,
}

/// How something with a bucket ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Complete,
    /// It broke off, or could not be kept.
    Failed(String),
    /// It was not allowed.
    Refused(String),
}

/// Hears of a grant's events.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// The buckets of one job, by their names. Cheap to clone: clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Buckets(Arc<Mutex<BTreeMap<String, Bucket>>>);

impl Buckets {
    /// Adds one.
    pub fn add(&self, bucket: Bucket) {
        self.lock().insert(bucket.name().to_owned(), bucket);
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<Bucket> {
        self.lock().get(name).cloned()
    }

    /// Takes one away.
    pub fn remove(&self, name: &str) -> Option<Bucket> {
        self.lock().remove(name)
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Bucket> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bucket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a key is good for.
pub struct Grant {
    /// The secret that goes with it.
    pub secret: String,
    /// From where.
    pub from: GoodFrom,
    /// The buckets, which may become more or fewer.
    pub buckets: Buckets,
    /// Further ones, which others use as well; one that has the name of one of `buckets` is not seen.
    pub shared: Vec<Bucket>,
    /// Who hears of it.
    pub observer: Observer,
}

/// A grant that stands, or stood when a request began.
pub(super) struct Standing {
    pub(super) secret: String,
    pub(super) from: GoodFrom,
    buckets: Buckets,
    shared: Vec<Bucket>,
    pub(super) observer: Observer,
    /// The grant is over: so is what runs by it.
    pub(super) over: CancellationToken,
}

impl Standing {
    /// Whether the caller may use it.
    pub(super) fn is_for(&self, caller: Caller) -> bool {
        self.from.is_for(caller) && !self.over.is_cancelled()
    }

    /// The bucket of this name, if it is among them.
    pub(super) fn bucket(&self, name: &str) -> Option<Bucket> {
        let shared = || self.shared.iter().find(|bucket| bucket.name() == name).cloned();
        self.buckets.get(name).or_else(shared)
    }

    /// The names of all of them.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.buckets.all().iter().chain(&self.shared).map(|bucket| bucket.name().to_owned()).collect()
    }
}

/// All grants of a farm. Cheap to clone.
#[derive(Clone, Default)]
pub struct Desk(Arc<Mutex<HashMap<String, Arc<Standing>>>>);

/// A grant, for as long as this is held.
pub struct Granted {
    desk: Desk,
    key: String,
    standing: Arc<Standing>,
}

impl Desk {
    /// Lets `key` do what the grant says. A later grant of the same key replaces an earlier one.
    pub fn grant(&self, key: &str, grant: Grant) -> Granted {
        let Grant { secret, from, buckets, shared, observer } = grant;
        let over = CancellationToken::new();
        let standing = Arc::new(Standing { secret, from, buckets, shared, observer, over });
        self.lock().insert(key.to_owned(), Arc::clone(&standing));
        Granted { desk: self.clone(), key: key.to_owned(), standing }
    }

    pub(super) fn standing(&self, key: &str) -> Option<Arc<Standing>> {
        self.lock().get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Standing>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.standing.over.cancel();
        let mut all = self.desk.lock();
        if all.get(&self.key).is_some_and(|standing| Arc::ptr_eq(standing, &self.standing)) {
            all.remove(&self.key);
        }
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the grants of a farm's buckets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(from: GoodFrom) -> Grant {
        Grant {
            secret: "secret".into(),
            from,
            buckets: Buckets::default(),
            shared: Vec::new(),
            observer: Arc::new(|_| ()),
        }
    }

    #[test]
    fn a_key_is_good_from_its_own_place_until_it_is_dropped() {
        let (dut, other) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3]));
        let desk = Desk::default();
        let of_dut = desk.grant("dut", grant(GoodFrom::Dut(dut)));
        let of_submitter = desk.grant("submitter", grant(GoodFrom::Operator));
        let is_for = |key: &str, caller| desk.standing(key).unwrap().is_for(caller);
        assert!(is_for("dut", Caller::Dut(dut)));
        assert!(!is_for("dut", Caller::Dut(other)));
        assert!(!is_for("dut", Caller::Operator(Some(dut))));
        assert!(is_for("submitter", Caller::Operator(Some(other))) && is_for("submitter", Caller::Operator(None)));
        assert!(!is_for("submitter", Caller::Dut(dut)));
        let running = desk.standing("dut").unwrap();
        drop(of_dut);
        assert!(desk.standing("dut").is_none() && !running.is_for(Caller::Dut(dut)));
        let again = desk.grant("submitter", grant(GoodFrom::Operator));
        drop(of_submitter);
        assert!(is_for("submitter", Caller::Operator(None)));
        drop(again);
        assert!(desk.standing("submitter").is_none());
    }
}
