//! Events as they happen: a page from the store, then the next one as soon as something was committed.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::Keeper;
use crate::lease::rows::Event;
use crate::lease::store::StoreError;

/// Events from a number on, for as long as the keeper lives.
#[derive(Debug)]
pub struct Follow {
    keeper: Keeper,
    newest: watch::Receiver<u64>,
    from: u64,
    page: VecDeque<Event>,
}

impl Follow {
    pub(super) fn of(keeper: Keeper, newest: watch::Receiver<u64>, from: u64) -> Follow {
        Follow { keeper, newest, from, page: VecDeque::new() }
    }

    /// The next event; `None` once the keeper has stopped and everything was told.
    pub async fn next(&mut self) -> Option<Result<Event, StoreError>> {
        loop {
            if let Some(event) = self.page.pop_front() {
                self.from = event.seq + 1;
                return Some(Ok(event));
            }
            let from = self.from;
            let stopped = self.newest.wait_for(|newest| *newest >= from).await.is_err();
            match self.keeper.events(from).await {
                Err(error) => return Some(Err(error)),
                Ok(page) if page.is_empty() && stopped => return None,
                Ok(page) => self.page = page.into(),
            }
        }
    }
}
