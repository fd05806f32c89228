//! What GitLab is told while a job is made ready: a checkout or an image may take minutes, and a job of which it hears nothing for two is
//! given up (two-phase commit).

use std::time::{Duration, Instant};

use super::client::Client;
use super::courier::{Call, Courier, Order};
use super::wire::Job;

/// Most jobs are ready before: then the farm's own words begin.
const FIRST_WORD: Duration = Duration::from_secs(3);

/// What came first.
pub(super) enum Ready<T> {
    Done(T),
    /// GitLab has let go of the job, or wants it to end.
    Cancelled,
}

/// Waits for `work`, telling that the job is pending.
pub(super) async fn telling<T>(client: &Client, job: &Job, work: impl Future<Output = T>) -> Ready<T> {
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(FIRST_WORD, &mut work).await {
        return Ready::Done(done);
    }
    // Pieces of the log are not sent: there is none yet.
    let mut courier = Courier::new(1);
    loop {
        match courier.next(Instant::now()) {
            Order::Call(call) => {
                let Call::Tell(state, log) = &call else { return Ready::Done(work.await) };
                let telling = client.tell(job, state, *log);
                tokio::pin!(telling);
                let mut done = None;
                // A call that was begun is heard to its end.
                let answer = loop {
                    tokio::select! {
                        answer = &mut telling => break answer,
                        result = &mut work, if done.is_none() => done = Some(result),
                    }
                };
                if let Some(done) = done {
                    return Ready::Done(done);
                }
                courier.answered(&call, &answer, Instant::now());
            }
            Order::Wait(until) => {
                if let Ok(done) = tokio::time::timeout_at(until.into(), &mut work).await {
                    return Ready::Done(done);
                }
            }
            Order::Cancel | Order::Stop | Order::Over => return Ready::Cancelled,
        }
    }
}
