//! The right to a job's life: whoever shows a job to its submitter holds it; dropped before the end, for whatever reason, it cancels the job.
//! So a client that vanishes in mid-request, a console that breaks and a task that is aborted all free the DUT the same way.

use std::sync::Arc;

use crate::farm::{CancelledBy, Farm, JobRecord, JobState};

/// One connection's hold on one job.
pub(super) struct Owner {
    farm: Arc<Farm>,
    record: Arc<JobRecord>,
}

impl Owner {
    /// Takes hold of a job.
    pub(super) fn of(farm: &Arc<Farm>, record: &Arc<JobRecord>) -> Owner {
        record.claim();
        Owner { farm: Arc::clone(farm), record: Arc::clone(record) }
    }

    /// The farm that runs it.
    pub(super) fn farm(&self) -> &Arc<Farm> {
        &self.farm
    }

    /// The job.
    pub(super) fn record(&self) -> &JobRecord {
        &self.record
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.record.state() != JobState::Ended
            && self.farm.cancel(&self.record.id, CancelledBy::SubmitterGone).is_ok()
        {
            tracing::info!(job = self.record.id, "its submitter is gone: cancelled");
        }
    }
}
