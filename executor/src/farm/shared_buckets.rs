//! Buckets that outlive jobs: a group of the farm file has them, and its members' jobs use them.
//!
//! ```text
//!  s3.groups: name, buckets, members (keys) ─┬─► a member: his key, at the API's address
//!                                            └─► a job that was handed in with a member's key ─► the keys of its DUTs
//!  <state>/buckets/<name>/   as those of jobs: gateway, s3/bucket.rs
//! ```
//! What CI-tron leaves to MinIO: a job's DUT joins the groups that its submitter names, where his own key is a member of each.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use gateway::s3::Door;
use gateway::s3::bucket::Bucket;
use gateway::s3::desk::{self, GoodFrom, Granted};
use sha2::{Digest, Sha256};

use crate::config::{BucketGroup, BucketMember};

/// In the state folder.
const FOLDER: &str = "buckets";

/// The groups, with their buckets open.
pub(super) struct SharedBuckets {
    groups: Vec<BucketGroup>,
    buckets: BTreeMap<String, Bucket>,
    _of_members: Vec<Granted>,
}

impl SharedBuckets {
    /// Opens the buckets of all groups, and lets their members in.
    pub(super) fn open(groups: &[BucketGroup], state: &Path, bytes_max: u64, door: &Door) -> io::Result<SharedBuckets> {
        let mut buckets = BTreeMap::new();
        for name in groups.iter().flat_map(|group| &group.buckets) {
            if !buckets.contains_key(name) {
                buckets.insert(name.clone(), Bucket::open(name, &state.join(FOLDER).join(name), bytes_max)?);
            }
        }
        let mut shared = SharedBuckets { groups: groups.to_vec(), buckets, _of_members: Vec::new() };
        shared._of_members = shared.let_members_in(door);
        Ok(shared)
    }

    /// The buckets of these groups.
    pub(super) fn of(&self, names: &[String]) -> Vec<Bucket> {
        let named = self.groups.iter().filter(|group| names.contains(&group.name));
        let mut buckets: Vec<&String> = named.flat_map(|group| &group.buckets).collect();
        buckets.sort();
        buckets.dedup();
        buckets.into_iter().filter_map(|name| self.buckets.get(name).cloned()).collect()
    }

    /// Whether who has this key may have his job use these groups; `Err`: why not.
    pub(super) fn may_join(&self, names: &[String], key: Option<&BucketMember>) -> Result<(), String> {
        if names.is_empty() {
            return Ok(());
        }
        let Some(key) = key else {
            return Err(
                "a group of buckets is for its members: say whose key it is with --minio-auth KEY:SECRET".to_owned()
            );
        };
        for name in names {
            let group = self.groups.iter().find(|group| group.name == *name);
            // Which groups there are, and who is in them, is for their members.
            if !group.is_some_and(|group| group.members.iter().any(|member| are_same(member, key))) {
                return Err(format!(
                    "`{}` is no key of a group `{name}` of this farm; its administrator names both in `s3.groups`",
                    key.access_key
                ));
            }
        }
        Ok(())
    }

    fn let_members_in(&self, door: &Door) -> Vec<Granted> {
        let mut of_key: BTreeMap<&str, (&str, Vec<String>)> = BTreeMap::new();
        for group in &self.groups {
            for member in &group.members {
                let (_, names) = of_key.entry(&member.access_key).or_insert((&member.secret_key, Vec::new()));
                names.push(group.name.clone());
            }
        }
        let granted = of_key.into_iter().map(|(key, (secret, names))| {
            let grant = desk::Grant {
                secret: secret.to_owned(),
                from: GoodFrom::Operator,
                buckets: desk::Buckets::default(),
                shared: self.of(&names),
                observer: Arc::new(|event| tracing::debug!(?event, "a member's access to its group's bucket")),
            };
            door.desk().grant(key, grant)
        });
        granted.collect()
    }
}

/// By their digests: how long it takes tells nothing of where they differ.
fn are_same(one: &BucketMember, other: &BucketMember) -> bool {
    let digest = |secret: &str| Sha256::digest(secret.as_bytes());
    one.access_key == other.access_key && digest(&one.secret_key) == digest(&other.secret_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_joined_with_the_key_of_a_member_and_of_each_group_that_is_named() {
        let member = |name: &str, secret: &str| BucketMember { access_key: name.into(), secret_key: secret.into() };
        let group = |name: &str, buckets: &[&str], member: BucketMember| BucketGroup {
            name: name.into(),
            buckets: buckets.iter().map(|it| (*it).to_owned()).collect(),
            members: vec![member],
        };
        let groups = [
            group("mesa", &["traces", "builds"], member("ci", "one")),
            group("kernel", &["builds"], member("ci", "one")),
            group("others", &["theirs"], member("they", "two")),
        ];
        let (folder, door) = (tempfile::tempdir().unwrap(), Door::new(desk::Desk::default()));
        let shared = SharedBuckets::open(&groups, folder.path(), 100, &door).unwrap();
        let names = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let may = |groups: &[&str], key: Option<BucketMember>| shared.may_join(&names(groups), key.as_ref());
        assert_eq!(may(&[], None), Ok(()));
        assert_eq!(may(&["mesa", "kernel"], Some(member("ci", "one"))), Ok(()));
        assert!(may(&["mesa"], None).unwrap_err().contains("--minio-auth"));
        let refused = "`ci` is no key of a group `others` of this farm; its administrator names both in `s3.groups`";
        assert_eq!(may(&["mesa", "others"], Some(member("ci", "one"))).unwrap_err(), refused);
        assert!(
            may(&["mesa"], Some(member("ci", "two"))).is_err() && may(&["none"], Some(member("ci", "one"))).is_err()
        );
        let of = |groups: &[&str]| shared.of(&names(groups)).iter().map(|it| it.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(of(&["mesa", "kernel"]), ["builds", "traces"]);
    }
}
