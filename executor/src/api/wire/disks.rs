//! The disks that are kept, as our own clients read them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::farm::DiskView;

/// A disk that outlives its jobs, or that several DUTs attach.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskWire {
    /// What it is called here.
    pub id: String,
    /// What jobs call it.
    pub name: String,
    /// What it began with: a size in bytes, or a URL without its credentials.
    pub source: String,
    /// In whose name the jobs run that mean it.
    pub subject: String,
    /// The full name of the DUT whose it is, its id when it has left the farm; null when it is shared.
    pub dut: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// What of it takes space on the farm's own disk.
    pub stored_bytes: u64,
    /// When it was made, RFC 3339.
    #[schema(value_type = String, format = DateTime)]
    pub made: jiff::Timestamp,
    /// The jobs and leases that use it.
    pub users: Vec<String>,
    /// When it will be gone unless a job asks for it, RFC 3339; null while it is used, and when it is kept until somebody removes it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<jiff::Timestamp>,
}

/// All of them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DisksWire {
    /// By name.
    pub disks: Vec<DiskWire>,
}

impl From<DiskView> for DiskWire {
    fn from(view: DiskView) -> DiskWire {
        let DiskView { id, name, source, subject, dut, size_bytes, stored_bytes, made, users, expires } = view;
        DiskWire { id, name, source, subject, dut, size_bytes, stored_bytes, made, users, expires }
    }
}
