//! What submitters do: hand in a job, type on its console, cancel it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::error::ApiError;
use super::guard::{caller_of, in_words};
use super::serve::Peer;
use super::wire::{ErrorWire, JobWire};
use super::{Api, ci_tron, upload};
use crate::callers::Caller;
use crate::farm::{CancelledBy, JobRecord, Submission, TargetOverride, WhenBusy};

/// What the address of a submission says, besides its body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    name: Option<String>,
    tags: Vec<String>,
    dut: Option<String>,
    priority: Option<i32>,
    submitter: Option<String>,
    subject: Option<String>,
    when_busy: Option<WhenBusy>,
}

impl Ask {
    fn of(query: Vec<(String, String)>) -> Result<Ask, ApiError> {
        let mut ask = Ask::default();
        for (key, value) in query {
            match key.as_str() {
                "name" => ask.name = Some(value),
                "tag" => ask.tags.push(value),
                "dut" => ask.dut = Some(value),
                "submitter" => ask.submitter = Some(value),
                "subject" => ask.subject = Some(value),
                "priority" => {
                    let wrong = |_| ApiError::Malformed(format!("priority `{value}` is no whole number"));
                    ask.priority = Some(value.parse().map_err(wrong)?);
                }
                "queue" => ask.when_busy = Some(if value == "0" { WhenBusy::Refuse } else { WhenBusy::Queue }),
                unknown => {
                    let known = "name, tag, dut, priority, queue, submitter, subject";
                    return Err(ApiError::Malformed(format!("unknown parameter `{unknown}`; there are {known}")));
                }
            }
        }
        Ok(ask)
    }

    /// Overrides what the body said. The project is one that the caller acts for.
    pub(super) fn refine(&self, submission: &mut Submission, caller: &Caller) -> Result<(), ApiError> {
        if let Some(name) = &self.name {
            submission.source_name.clone_from(name);
        }
        if let Some(priority) = self.priority {
            submission.priority = priority;
        }
        submission.subject = caller.acts_for(self.subject.as_deref()).map_err(ApiError::Forbidden)?;
        submission.reach = caller.reach();
        if self.dut.is_some() || !self.tags.is_empty() {
            let tags = (!self.tags.is_empty()).then(|| self.tags.clone());
            submission.target = Some(TargetOverride { id: self.dut.clone(), tags });
        }
        Ok(())
    }

    /// Who asks, for the log.
    pub(super) fn submitter(&self, request: &Request) -> String {
        in_words(request, self.submitter.as_deref(), "a client")
    }

    /// Who can wait for an answer can wait for a DUT.
    pub(super) fn when_busy(&self) -> WhenBusy {
        self.when_busy.unwrap_or(WhenBusy::Queue)
    }
}

/// POST `/api/v1/jobs`: hands in a job; the content type says in whose words.
#[utoipa::path(
    post, tag = "submit", path = "/api/v1/jobs",
    params(
        ("name" = Option<String>, Query, description = "The job file's name, for problems"),
        ("tag" = Option<Vec<String>>, Query, description = "A tag the DUT must have; with `dut`, replaces the job's target"),
        ("dut" = Option<String>, Query, description = "A DUT's id or full name"),
        ("priority" = Option<i32>, Query, description = "Higher goes first"),
        ("queue" = Option<u8>, Query, description = "0: answer 409 instead of waiting for a DUT"),
        ("submitter" = Option<String>, Query, description = "Who asks, for the log"),
        ("subject" = Option<String>, Query, description = "The project, user or token in whose name DUTs are authorized; `anybody` when absent"),
    ),
    request_body(content = String, content_type = "application/yaml", description = "The job description; or CI-tron's multipart form"),
    responses(
        (status = 101, description = "multipart with `Upgrade: ci-tron-console`: the console follows"),
        (status = 200, description = "multipart with `callback`: the console was connected"),
        (status = 201, description = "The job is accepted", body = JobWire),
        (status = 400, description = "The job has problems", body = ErrorWire),
        (status = 404, description = "No such DUT", body = ErrorWire),
        (status = 406, description = "No DUT has the tags", body = ErrorWire),
        (status = 409, description = "Every fitting DUT is busy", body = ErrorWire),
        (status = 413, description = "Too large", body = ErrorWire),
    )
)]
pub(super) async fn submit(
    State(api): State<Api>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, ApiError> {
    let ask = Ask::of(query)?;
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "multipart/form-data" => Ok(ci_tron::submit(api, ask, request).await),
        "application/yaml" | "application/x-yaml" | "text/yaml" => submit_yaml(api, ask, request).await,
        other => {
            let text = format!(
                "cannot read a job as `{other}`; send application/yaml, or multipart/form-data as CI-tron's clients do"
            );
            Err(ApiError::Malformed(text))
        }
    }
}

async fn submit_yaml(api: Api, ask: Ask, request: Request) -> Result<Response, ApiError> {
    let (submitter, caller) = (ask.submitter(&request), caller_of(&request));
    let text = upload::read_job(request.into_body()).await?;
    let mut submission = Submission { source_name: "job.yml".into(), text, ..Submission::default() };
    ask.refine(&mut submission, &caller)?;
    submission.when_busy = ask.when_busy();
    submission.submitter = submitter;
    let record = api.farm.submit(submission).await?;
    Ok(created(&record))
}

/// The answer for a client that follows the job by itself.
pub(super) fn created(record: &JobRecord) -> Response {
    let location = format!("/api/v1/jobs/{}", record.id);
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(JobWire::of(record))).into_response()
}

/// POST `/api/v1/jobs/{id}/cancel`
#[utoipa::path(
    post, tag = "submit", path = "/api/v1/jobs/{id}/cancel",
    params(("id" = String, Path, description = "The job's id")),
    responses(
        (status = 200, description = "It will end; follow its events", body = JobWire),
        (status = 404, description = "No such job", body = ErrorWire),
        (status = 409, description = "It has ended already", body = ErrorWire),
    )
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<JobWire>, ApiError> {
    let by = CancelledBy::Operator(in_words(&request, None, "an operator"));
    let record = api.job(&id)?;
    api.farm.cancel(&record.id, by)?;
    Ok(Json(JobWire::of(&record)))
}

/// POST `/api/v1/jobs/{id}/console`: the body's bytes are typed on the DUT's console as they come.
#[utoipa::path(
    post, tag = "submit", path = "/api/v1/jobs/{id}/console",
    params(("id" = String, Path, description = "The job's id")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204, description = "Typed; dropped where no console is open"), (status = 404, description = "No such job", body = ErrorWire))
)]
pub(super) async fn type_on_console(
    State(api): State<Api>,
    Path(id): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let record = api.job(&id)?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::Malformed(format!("the body broke off: {error}")))?;
        record.type_on_console(chunk);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Who sent the request; a router that is not behind our own listener knows only that it was local.
pub(super) fn peer_of(request: &Request) -> Peer {
    request.extensions().get::<Peer>().copied().unwrap_or(Peer::Unix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(query: &[(&str, &str)]) -> Result<Ask, ApiError> {
        Ask::of(query.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn tags_in_the_address_replace_the_target_wholly() {
        let mut submission =
            Submission { target: Some(TargetOverride { id: Some("old".into()), tags: None }), ..Submission::default() };
        let asked = ask(&[("tag", "a"), ("tag", "b"), ("priority", "-3"), ("name", "x.yml")]).unwrap();
        asked.refine(&mut submission, &Caller::local()).unwrap();
        let target = submission.target.unwrap();
        assert_eq!((target.id, target.tags), (None, Some(vec!["a".to_owned(), "b".to_owned()])));
        assert_eq!((submission.priority, submission.source_name.as_str()), (-3, "x.yml"));
    }

    #[test]
    fn an_address_without_a_target_keeps_the_bodys() {
        let target = TargetOverride { id: Some("kept".into()), tags: None };
        let mut submission = Submission { target: Some(target), ..Submission::default() };
        let asked = ask(&[("queue", "0")]).unwrap();
        asked.refine(&mut submission, &Caller::local()).unwrap();
        assert_eq!(submission.target.unwrap().id.as_deref(), Some("kept"));
        assert_eq!(asked.when_busy(), WhenBusy::Refuse);
    }

    #[test]
    fn an_unknown_parameter_lists_the_known_ones() {
        let error = ask(&[("tags", "a")]).unwrap_err();
        assert!(matches!(error, ApiError::Malformed(text)
            if text == "unknown parameter `tags`; there are name, tag, dut, priority, queue, submitter, subject"));
    }
}
