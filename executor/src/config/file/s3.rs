//! How much jobs may keep in their buckets, and for how long; which buckets outlive them; and stores elsewhere.

use std::time::Duration;

use gateway::content::stores::{self, Object, Store};

use super::console_log::SizeForm;
use super::*;
use crate::config::{BucketGroup, BucketLimits, BucketMember};

/// The buckets of jobs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct S3Keys {
    /// Of one bucket, at most; `8G` when absent.
    #[schemars(with = "Option<SizeForm>", extend("x-example" = "quota: 20G"))]
    quota: Option<u64>,
    /// How long a bucket stays after its job, where the job does not say it; `1 day` when absent.
    #[schemars(with = "Option<LengthForm>", extend("x-example" = "expiration: 7 days"))]
    expiration: Option<f64>,
    /// The longest `expiration` that a job may say; `30 days` when absent, or `expiration` where that is longer.
    #[schemars(with = "Option<LengthForm>", extend("x-example" = "expiration_max: 90 days"))]
    expiration_max: Option<f64>,
    /// Buckets that outlive jobs, for those who have a key.
    groups: Vec<GroupKeys>,
    /// Stores elsewhere, for `s3://` URLs.
    stores: Vec<StoreKeys>,
    /// Where the logs and buckets of ended jobs are copied to: `s3://bucket/prefix`, in one of the stores.
    #[schemars(extend("x-example" = "archive: s3://results/lab-1"))]
    archive: Option<String>,
}

/// Buckets that outlive jobs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "buckets", "members"]))]
struct GroupKeys {
    /// What `executorctl run --minio-group` says.
    #[schemars(extend("x-example" = "name: mesa"))]
    name: String,
    /// Its buckets, made when they are not there; one may belong to several groups.
    #[schemars(extend("x-example" = "buckets: [mesa-traces]"))]
    buckets: Vec<String>,
    /// The keys of those whose jobs may use them.
    members: Vec<MemberKeys>,
}

/// A key of a group.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["access_key", "secret_key_file"]))]
struct MemberKeys {
    /// The name of the key.
    #[schemars(extend("x-example" = "access_key: mesa-ci"))]
    access_key: String,
    /// A file with the secret key, relative to this file; spaces and line ends around it do not count.
    #[schemars(extend("x-example" = "secret_key_file: mesa.secret"))]
    secret_key_file: String,
}

/// A store elsewhere.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["endpoint", "buckets", "access_key", "secret_key_file"]))]
struct StoreKeys {
    /// Where it is: scheme, host and port.
    #[schemars(extend("x-example" = "endpoint: https://s3.example.org"))]
    endpoint: String,
    /// What it calls its region; `us-east-1` when absent, which stores that have none take.
    region: Option<String>,
    /// The buckets that jobs may read there, and the one of `archive`.
    #[schemars(extend("x-example" = "buckets: [artifacts]"))]
    buckets: Vec<String>,
    /// The name of the key.
    #[schemars(extend("x-example" = "access_key: AKIAIOSFODNN7EXAMPLE"))]
    access_key: String,
    /// A file with the secret key, relative to this file; spaces and line ends around it do not count.
    #[schemars(extend("x-example" = "secret_key_file: s3.secret"))]
    secret_key_file: String,
}

impl S3Keys {
    /// As the buckets have it.
    pub(super) fn limits(&self, findings: &mut Findings) -> BucketLimits {
        let usual = BucketLimits::default();
        let expiration = self.expiration.map_or(usual.expiration, Duration::from_secs_f64);
        let expiration_max = match self.expiration_max.map(Duration::from_secs_f64) {
            Some(most) if self.expiration.is_some() && most < expiration => {
                let what = "buckets would be kept longer than `expiration_max`".to_owned();
                findings.tell(&["s3", "expiration"].map(str::to_owned), what, "write a longer `expiration_max`");
                expiration
            }
            Some(most) => most,
            None => usual.expiration_max.max(expiration),
        };
        let (bytes_max, expiration) = (self.quota.unwrap_or(usual.bytes_max), expiration.min(expiration_max));
        BucketLimits { bytes_max, expiration, expiration_max }
    }

    /// The groups, with the keys of their members that can be read.
    pub(super) fn groups(&self, directory: &Path, findings: &mut Findings) -> Vec<BucketGroup> {
        let mut groups: Vec<BucketGroup> = Vec::new();
        for (index, keys) in self.groups.iter().enumerate() {
            let at = |key: &str| ["s3".to_owned(), "groups".to_owned(), index.to_string(), key.to_owned()];
            if keys.name.is_empty() || groups.iter().any(|group| group.name == keys.name) {
                let what = format!("`{}` is no name of its own for a group", keys.name);
                findings.tell(&at("name"), what, "give each group another name");
            }
            for bucket in keys.buckets.iter().filter(|bucket| !job_schema::job::is_bucket_name(bucket)) {
                let what = format!("`{bucket}` is no name of a bucket");
                let hint = "write 3 to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends";
                findings.tell(&at("buckets"), what, hint);
            }
            let members = keys.members.iter().filter_map(|member| member.read(directory, &at("members"), findings));
            let (name, buckets, members) = (keys.name.clone(), keys.buckets.clone(), members.collect());
            groups.push(BucketGroup { name, buckets, members });
        }
        groups
    }

    /// The stores whose keys can be read, and where ended jobs are copied to.
    pub(super) fn stores(&self, directory: &Path, findings: &mut Findings) -> (Vec<Store>, Option<Object>) {
        let mut stores = Vec::new();
        for (index, keys) in self.stores.iter().enumerate() {
            let at = |key: &str| ["s3".to_owned(), "stores".to_owned(), index.to_string(), key.to_owned()];
            let endpoint = keys.endpoint.parse::<reqwest::Url>().ok();
            let endpoint = endpoint.filter(|url| ["http", "https"].contains(&url.scheme()) && url.query().is_none());
            let Some(endpoint) = endpoint else {
                let what = format!("`{}` is not where a store is", keys.endpoint);
                findings.tell(&at("endpoint"), what, "write `https://HOST` or `http://HOST:PORT`");
                continue;
            };
            if let Some(secret_key) = secret_in(directory, &keys.secret_key_file, &at("secret_key_file"), findings) {
                stores.push(Store {
                    endpoint,
                    region: keys.region.clone().unwrap_or_else(|| "us-east-1".to_owned()),
                    buckets: keys.buckets.clone(),
                    access_key: keys.access_key.clone(),
                    secret_key,
                });
            }
        }
        let archive = self.archive.as_ref().and_then(|url| {
            let object = stores::object_of(&stores, url);
            let at = ["s3".to_owned(), "archive".to_owned()];
            object.map_err(|why| findings.tell(&at, format!("`{url}`: {why}"), "write `s3://BUCKET/PREFIX`")).ok()
        });
        (stores, archive)
    }
}

impl MemberKeys {
    fn read(&self, directory: &Path, at: &[String], findings: &mut Findings) -> Option<BucketMember> {
        // `KEY:SECRET` is how clients say the two.
        if self.access_key.is_empty() || self.access_key.contains([':', '/', ',']) {
            let what = format!("`{}` is no name of a key", self.access_key);
            findings.tell(at, what, "write letters, digits and hyphens");
        }
        let secret_key = secret_in(directory, &self.secret_key_file, at, findings)?;
        Some(BucketMember { access_key: self.access_key.clone(), secret_key })
    }
}

/// The secret key in a file of this name.
fn secret_in(directory: &Path, name: &str, at: &[String], findings: &mut Findings) -> Option<String> {
    let path = directory.join(name);
    let hint = "write the secret key into this file, readable for the server alone";
    match std::fs::read_to_string(&path).map(|secret| secret.trim().to_owned()) {
        Ok(secret) if secret.is_empty() => findings.tell(at, format!("{} is empty", path.display()), hint),
        Ok(secret) => return Some(secret),
        Err(error) => findings.tell(at, format!("cannot read {}: {error}", path.display()), hint),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_and_an_expiration_are_written_as_people_write_them() {
        let limits = |text: &str| {
            let text = format!("name: lab\nnetwork: {{private: {{address: 10.77.0.1/24}}}}\nduts: []\n{text}");
            parse("farm.yml", &text, Path::new("")).map(|farm| farm.buckets).map_err(|problems| problems.to_string())
        };
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let of = |gibibytes: u64, usual: u64, most: u64| {
            Ok(BucketLimits { bytes_max: gibibytes << 30, expiration: days(usual), expiration_max: days(most) })
        };
        assert_eq!(limits(""), of(8, 1, 30));
        assert_eq!(limits("s3: {quota: 20G, expiration: 7 days}"), of(20, 7, 30));
        assert_eq!(limits("s3: {expiration: 60 days}"), of(8, 60, 60));
        assert_eq!(limits("s3: {expiration: 2 days, expiration_max: 3 days}"), of(8, 2, 3));
        assert_eq!(limits("s3: {expiration_max: 0 days}"), of(8, 0, 0));
        let told = limits("s3: {expiration: 3 days, expiration_max: 2 days}").unwrap_err();
        assert!(told.contains("buckets would be kept longer than `expiration_max`"), "{told}");
    }

    #[test]
    fn a_group_names_its_buckets_and_keys_and_what_is_wrong_with_them_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("good"), " secret\n").unwrap();
        std::fs::write(folder.path().join("empty"), "\n").unwrap();
        let groups = |text: &str| {
            let text = format!(
                "name: lab\nnetwork: {{private: {{address: 10.77.0.1/24}}}}\nduts: []\ns3: {{groups: [{text}]}}"
            );
            let farm = parse("farm.yml", &text, folder.path());
            farm.map(|farm| farm.bucket_groups).map_err(|problems| problems.to_string())
        };
        let member = BucketMember { access_key: "ci".into(), secret_key: "secret".into() };
        let group = BucketGroup { name: "mesa".into(), buckets: vec!["traces".into()], members: vec![member] };
        let told = groups("{name: mesa, buckets: [traces], members: [{access_key: ci, secret_key_file: good}]}");
        assert_eq!(told, Ok(vec![group]));
        let told = groups("{name: '', buckets: [No_Name], members: [{access_key: 'a:b', secret_key_file: empty}]}")
            .unwrap_err();
        for words in [
            "`` is no name of its own",
            "`No_Name` is no name of a bucket",
            "`a:b` is no name of a key",
            "empty is empty",
        ] {
            assert!(told.contains(words), "no `{words}`: {told}");
        }
    }
}
