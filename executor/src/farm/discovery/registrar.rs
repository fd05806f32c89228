//! The only part of the API that machines reach: who they are, at CI-tron's two names for it.
//!
//! ```text
//!  POST, PUT /api/v1/machine/, /api/v1/dut/     {mac_address, base_name, tags, …} ─► said.rs ─► registered, or why not
//!  PATCH     …/<its own MAC>                    the same
//!  GET       …/<its own MAC>                    its record
//! ```
//! A namespace is a machine's own, and so is this answer within it: which machine asks is decided by its address before it is asked.

use std::net::Ipv4Addr;
use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gateway::content::Content;
use gateway::dhcp::Mac;
use gateway::live::{Answer, Question, Reply, Takes, Verb};
use gateway::namespace::Publication;
use serde_json::json;

use super::said::{self, Refused};
use crate::farm::Farm;

/// CI-tron's two names, the older one first.
const PREFIXES: [&str; 2] = ["/api/v1/machine", "/api/v1/dut"];

/// What one machine asks.
pub(in crate::farm) struct Registrar {
    farm: Weak<Farm>,
    mac: Mac,
    address: Ipv4Addr,
}

impl Registrar {
    /// For the machine with this MAC, which has this address.
    pub(in crate::farm) fn of(farm: Weak<Farm>, mac: Mac, address: Ipv4Addr) -> Registrar {
        Registrar { farm, mac, address }
    }

    /// Answers in the machine's namespace.
    pub(in crate::farm) fn answer_in(self, publication: &Publication<Content>) {
        let answer: Arc<dyn Answer> = Arc::new(self);
        for prefix in PREFIXES {
            publication.answer(prefix, Arc::clone(&answer));
        }
    }

    async fn reply(&self, question: Question) -> Result<serde_json::Value, (u16, String)> {
        let Some(farm) = self.farm.upgrade() else { return Err((503, "the farm is stopping".into())) };
        let named = question.path.trim_matches('/');
        let is_own = named.to_ascii_lowercase().replace('-', ":") == self.mac.to_string()
            || farm.record(self.mac).is_some_and(|record| record["full_name"] == named || record["id"] == named);
        match (question.verb, named.is_empty(), is_own) {
            (Verb::Post | Verb::Put, true, _) | (Verb::Patch, false, true) => {
                let said = said::read(&question.json, self.mac, self.address).map_err(|refused| match refused {
                    Refused::Malformed(why) => (400, why),
                    Refused::Forbidden(why) => (403, why),
                })?;
                farm.register(self.mac, self.address, said).await
            }
            (Verb::Get, false, true) => {
                farm.record(self.mac).ok_or_else(|| (404, format!("{} is not registered", self.mac)))
            }
            (Verb::Get | Verb::Patch, false, false) => {
                Err((403, format!("a machine sees and changes only its own record; this is {}", self.mac)))
            }
            _ => Err((404, "post to /api/v1/machine/, or get /api/v1/machine/<your MAC>".into())),
        }
    }
}

impl Answer for Registrar {
    fn answer(&self, question: Question) -> BoxFuture<'_, Reply> {
        async move {
            let (status, body) = match self.reply(question).await {
                Ok(record) => (200, record),
                Err((status, why)) => {
                    tracing::warn!(mac = %self.mac, address = %self.address, status, why, "a machine is refused");
                    if let Some(farm) = self.farm.upgrade() {
                        farm.tell_discovery(&format!("{} is refused: {why}", self.mac));
                    }
                    (status, json!({ "error": why }))
                }
            };
            Reply { status, text: format!("{body}\n") }
        }
        .boxed()
    }

    fn takes(&self) -> Takes {
        Takes::Json
    }
}
