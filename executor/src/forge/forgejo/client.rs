//! Calls to one Forgejo or Gitea instance: Connect's unary calls with JSON, each tried once.
//!
//! ```text
//!  POST <url>/api/actions/runner.v1.RunnerService/<Method>     200 ─► the message
//!     x-runner-uuid, x-runner-token                             else ─► {code, message} (connectrpc.com, "Protocol", "Error codes")
//! ```
//! Tokens go in headers and bodies, never in a URL: proxies write URLs down.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::Value;

use super::super::courier::Answer;
use super::super::http;
use super::wire::Account;
use crate::farm::Descriptions;

/// A call with its answer: a busy server takes some seconds.
const CALL_TIME: Duration = Duration::from_secs(30);
/// Of an answer; a task with its workflow and its event has some hundreds of KiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One instance, for everything that is said to it.
#[derive(Clone)]
pub(super) struct Client {
    base: String,
    http: reqwest::Client,
}

/// What a call brought instead of its message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// `None`: no answer.
    pub status: Option<u16>,
    /// Connect's word for it.
    pub code: String,
    /// A sentence.
    pub why: String,
    pub retry_after: Option<Duration>,
}

impl Client {
    /// For the instance at this URL.
    pub(super) fn new(url: &str, authority: Option<&Path>) -> Result<Client, String> {
        Ok(Client { base: url.trim_end_matches('/').to_owned(), http: http::client(authority)? })
    }

    /// Makes a call; `key` tells a question that is repeated from a new one.
    pub(super) async fn call(
        &self,
        method: &str,
        account: Option<&Account>,
        key: Option<&str>,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let url = format!("{}/api/actions/runner.v1.RunnerService/{method}", self.base);
        let mut request = self.http.post(url).timeout(CALL_TIME).header(CONTENT_TYPE, "application/json");
        request = request.header("Connect-Protocol-Version", "1");
        if let Some(account) = account {
            request = request.header("x-runner-uuid", &account.uuid).header("x-runner-token", &account.token);
        }
        if let Some(key) = key {
            request = request.header("x-runner-request-key", key);
        }
        let silent = |why: String| Refusal { why, ..Refusal::default() };
        let response = request.body(body.to_string()).send().await.map_err(|error| silent(self.said(error)))?;
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
        let bytes = http::whole_of(response, ANSWER_BYTES_MAX).await.map_err(silent)?;
        let read: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status.is_success() && read.is_object() {
            return Ok(read);
        }
        let message = read["message"].as_str().unwrap_or("nothing that can be read");
        Err(Refusal {
            // A page of a proxy, where a message was expected, is no message.
            status: Some(if status.is_success() { 502 } else { status.as_u16() }),
            code: read["code"].as_str().unwrap_or_default().to_owned(),
            why: format!("{} answered {status} to {method}: {message}", self.base),
            retry_after: after.map(Duration::from_secs),
        })
    }

    /// A file of a repository, at a commit.
    pub(super) async fn file(
        &self,
        repository: &str,
        path: &str,
        sha: &str,
        token: &str,
        bytes_max: usize,
    ) -> Result<Bytes, String> {
        let mut url = Url::parse(&format!("{}/api/v1/repos/{repository}/raw/", self.base))
            .map_err(|error| format!("{}: {error}", self.base))?;
        // Each part is encoded as it needs.
        url.path_segments_mut()
            .map_err(|()| format!("{} has no paths", self.base))?
            .pop_if_empty()
            .extend(path.split('/'));
        url.query_pairs_mut().append_pair("ref", sha);
        let request = self.http.get(url).timeout(CALL_TIME).header("Authorization", format!("token {token}"));
        let response = request.send().await.map_err(|error| self.said(error))?;
        if !response.status().is_success() {
            return Err(format!("{} answered {}", self.base, response.status()));
        }
        http::whole_of(response, bytes_max).await
    }

    /// Fetches from any URL that the farm lets jobs be fetched from.
    pub(super) async fn fetch_url(&self, url: &str, from: &Descriptions, bytes_max: usize) -> Result<Bytes, String> {
        http::fetch(&self.http, &self.base, url, from, bytes_max).await
    }

    fn said(&self, error: reqwest::Error) -> String {
        http::said(&self.base, error)
    }
}

impl Refusal {
    /// The server does not know the runner, or has it with another token.
    pub(super) fn is_of_the_account(&self) -> bool {
        // Gitea says it as an unknown error, with gRPC's words in its message (routers/api/actions/runner/interceptor.go).
        self.code == "unauthenticated" || self.status == Some(401) || self.why.contains("unregistered runner")
    }

    /// In the words of the courier.
    pub(super) fn answer(&self) -> Answer {
        // The task, or its repository, is gone; or it is another runner's now.
        let is_gone = ["does not exist", "not exist", "invalid runner"].iter().any(|words| self.why.contains(words));
        let status = match self.status {
            Some(_) if self.is_of_the_account() => Some(401),
            Some(_) if is_gone => Some(404),
            // What the server could not do now may go later, whatever it calls it: there is no harm in asking again.
            Some(status) if status >= 400 => Some(status.max(500)),
            other => other,
        };
        Answer { status, retry_after: self.retry_after, ..Answer::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: &str, why: &str) -> Refusal {
        Refusal { status: Some(status), code: code.into(), why: why.into(), retry_after: None }
    }

    #[test]
    fn refusals_tell_the_runner_and_the_task_that_are_gone_from_what_may_go_later() {
        for (told, status) in [
            (refusal(401, "unauthenticated", "unregistered runner"), 401),
            (refusal(500, "unknown", "rpc error: code = Unauthenticated desc = unregistered runner"), 401),
            (refusal(500, "internal", "update task: resource does not exist"), 404),
            (refusal(500, "internal", "invalid runner for task"), 404),
            (refusal(500, "internal", "database is locked"), 500),
            (refusal(409, "aborted", "again"), 500),
            (refusal(429, "", ""), 500),
        ] {
            assert_eq!(told.answer().status, Some(status), "{told:?}");
        }
        assert_eq!(Refusal::default().answer().status, None);
    }
}
