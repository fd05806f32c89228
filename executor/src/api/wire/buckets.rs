//! Buckets as the API tells them.

use serde::{Deserialize, Serialize};

use crate::farm::BucketView;

/// The buckets of a job.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BucketsWire {
    /// By name; none once they have expired.
    pub buckets: Vec<BucketWire>,
    /// The key by which S3 clients reach them at the API's own address.
    pub access_key: Option<String>,
    /// What they sign with.
    pub secret_key: Option<String>,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BucketWire {
    /// Its name.
    pub name: String,
    /// Whether it is the job's own, which begins with the submitter's directory.
    pub own: bool,
    /// How many objects it has.
    pub objects: usize,
    /// How many bytes they are.
    pub bytes: u64,
    /// How many it may have.
    pub bytes_max: u64,
    /// When it is gone; absent while the job runs.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<jiff::Timestamp>,
}

impl From<BucketView> for BucketWire {
    fn from(view: BucketView) -> Self {
        let BucketView { name, is_own, objects, bytes, bytes_max, expires } = view;
        BucketWire { name, own: is_own, objects, bytes, bytes_max, expires }
    }
}
