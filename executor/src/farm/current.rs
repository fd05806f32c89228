//! What the farm file says now. Everybody who asks gets the whole of it as it is at that moment, and keeps that for as long as he works
//! with it; a reload puts a new one in its place.
//!
//! ```text
//!  reload ──► set ──► [ Arc<FarmConfig> ] ──► get: a job, a plan, an answer
//! ```

use std::sync::{Arc, PoisonError, RwLock};

use crate::config::FarmConfig;

/// The farm's configuration, shared by all who hold a clone.
#[derive(Clone, Debug)]
pub struct Current(Arc<RwLock<Arc<FarmConfig>>>);

impl From<FarmConfig> for Current {
    fn from(config: FarmConfig) -> Current {
        Current(Arc::new(RwLock::new(Arc::new(config))))
    }
}

impl Current {
    /// The configuration as it is now.
    pub fn get(&self) -> Arc<FarmConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on it is this one.
    pub(super) fn set(&self, config: FarmConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}
