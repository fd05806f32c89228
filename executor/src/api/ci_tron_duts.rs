//! One DUT as CI-tron's clients know it: its JSON, and what an operator changes about it.
//!
//! | CI-tron's | here |
//! |---|---|
//! | PATCH `is_retired` | retired: no job gets it; back by a quick check |
//! | PATCH `ready_for_service` | true: in service, whoever held it back. false: it trains where machines train, else it is cordoned |
//! | PATCH `pdu_off_delay` | the off-time of its outlet, on a unit that the farm file names |
//! | PATCH `comment`, `manual_tags` | of machines that registered; those of the farm file are changed there |
//! | POST `quick_check` | one health job; nobody else gets the machine before it has passed |
//! | GET `training/loop/<n>` | the console of that boot of its training |

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::ci_tron::find;
use super::error::ApiError;
use super::guard::by;
use super::upload::JOB_BYTES_MAX;
use super::wire::pdus::OFF_TIME_MAX;
use crate::config::TrainingConfig;
use crate::farm::{DutRecord, DutState, DutView, Farm, Found};
use crate::lease::rows::{Health, Trial};

/// A DUT with what it has done so far.
pub(super) fn dut_of(farm: &Farm, dut: &DutView) -> Value {
    let found = farm.found(&dut.id);
    let mut json = dut_json(dut, &farm.record_of(&dut.id), &found, &farm.training());
    let outlet = found.outlet.and_then(|outlet| farm.outlet(&outlet.pdu, &outlet.outlet).ok());
    json["pdu_off_delay"] = outlet.map(|outlet| outlet.off_time.as_secs_f64()).into();
    json
}

/// CI-tron's keys, all of them, in its order; then ours.
fn dut_json(dut: &DutView, record: &DutRecord, found: &Found, config: &TrainingConfig) -> Value {
    let registered = found.registered.as_ref();
    let mut json = json!({
        "id": dut.id,
        "state": dut.state,
        "ready_for_service": dut.ready_for_service,
        "has_pdu_assigned": dut.state != DutState::WaitForConfig || found.outlet.is_some(),
        "local_tty_device": registered.and_then(|entry| entry.local_tty_device.as_ref()),
        "tags": dut.tags,
        "manual_tags": registered.map(|entry| entry.manual_tags.as_slice()).unwrap_or_default(),
        "base_name": dut.base_name,
        "full_name": dut.full_name,
        "mac_address": dut.mac_address,
        "ip_address": dut.ip_address,
        "is_retired": dut.is_retired,
        "training": training_json(dut, record, config),
        "pdu": {
            "name": found.outlet.as_ref().map(|outlet| &outlet.pdu),
            "port_id": found.outlet.as_ref().map(|outlet| &outlet.outlet),
        },
        "pdu_off_delay": null,
        "firmware_boot_time": registered.and_then(|entry| entry.firmware_boot_time_s),
        "boot_sequence_power": null,
        "comment": dut.comment,
        "logs_endpoint": null,
        "job_sources": {},
        "job": dut.job,
        "holder": dut.holder,
        "power": dut.power,
        "console": registered.and_then(|entry| entry.console.as_ref()),
        "facts": registered.map(|entry| &entry.facts),
        "first_seen": registered.map(|entry| entry.first_seen.to_string()),
    });
    json["health"] = match dut.health {
        Health::Good => "good",
        Health::Unknown => "unknown",
        Health::Suspect => "suspect",
        Health::Quarantined => "quarantined",
    }
    .into();
    json["record"] = json!({
        "boots": record.boots,
        "jobs": record.jobs,
        "failures": record.failures,
        "failures_in_a_row": record.failures_in_a_row,
        "last_failure": record.last_failure,
        "health_job": record.health_job,
    });
    json
}

/// As CI-tron's `training`, and the jobs of its boots.
fn training_json(dut: &DutView, record: &DutRecord, config: &TrainingConfig) -> Value {
    let training = record.training.clone().unwrap_or_default();
    let is_active = dut.trial == Some(Trial::Training);
    let state = match (dut.trial, training.is_registered || config.register.is_none()) {
        (None | Some(Trial::QuickCheck), _) => "IDLE",
        (Some(Trial::Training), false) => "ENROLLING",
        (Some(Trial::Training), true) => "TRAINING",
    };
    json!({
        "state": state,
        "is_active": is_active,
        "is_registered": training.is_registered,
        "boot_loop_counts": config.boots,
        "qualifying_rate": config.qualifying,
        "current_loop_count": training.loops.len(),
        "statuses": training.statuses(),
        "loops": training.loops,
    })
}

/// PATCH `/api/v1/dut/<id or full name>`
#[utoipa::path(patch, tag = "ci-tron", path = "/api/v1/dut/{name}", params(("name" = String, Path, description = "id or full name")), request_body = Object, responses((status = 200, body = String), (status = 400, description = "no such DUT, or a key that cannot be changed here", body = super::wire::ErrorWire)))]
pub(super) async fn update(
    State(api): State<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Result<String, ApiError> {
    let by = by(&request);
    let body = axum::body::to_bytes(request.into_body(), JOB_BYTES_MAX).await;
    let body = body.map_err(|error| ApiError::TooLarge(format!("at most {JOB_BYTES_MAX} bytes: {error}")))?;
    let changes: BTreeMap<String, Value> = serde_json::from_slice(&body)
        .map_err(|error| ApiError::Malformed(format!("the body is no JSON object: {error}")))?;
    let dut = find(&api.farm, &name).await?;
    let by = word(&changes, "by")?.unwrap_or(by);
    let reason = word(&changes, "reason")?.unwrap_or_else(|| "by an operator".into());
    if let Some(key) = changes.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(ApiError::Malformed(format!(
            "`{key}` of {} cannot be changed here; what can be: {}",
            dut.full_name,
            KEYS.join(", ")
        )));
    }
    let (comment, tags) = (word(&changes, "comment")?, words(&changes, "manual_tags")?);
    if let Some(off_time) = off_delay(&changes)? {
        let outlet = api.farm.found(&dut.id).outlet.ok_or_else(|| {
            let text = format!(
                "`pdu_off_delay`: {} has no outlet of a unit under `pdus`; say `off_time` in the farm file",
                dut.full_name
            );
            ApiError::Malformed(text)
        })?;
        api.farm.set_off_time(&outlet.pdu, &outlet.outlet, off_time).await?;
    }
    if comment.is_some() || tags.is_some() {
        api.farm.edit_dut(&dut.id, comment, tags).await?;
    }
    match truth(&changes, "is_retired")? {
        Some(true) => api.farm.retire(&dut.id, &reason, &by).await?,
        Some(false) => drop(api.farm.activate(&dut.id, &by).await?),
        None => {}
    }
    match truth(&changes, "ready_for_service")? {
        Some(true) => api.farm.hold_back(&dut.id, None).await,
        Some(false) => api.farm.take_out_of_service(&dut.id, &reason).await,
        None => {}
    }
    Ok(format!("Updated {}\n", dut.full_name))
}

/// What may be changed here; `reason` and `by` are ours.
const KEYS: [&str; 7] = ["comment", "manual_tags", "is_retired", "ready_for_service", "pdu_off_delay", "reason", "by"];

/// Seconds, as a number or in a text: CI-tron takes both.
fn off_delay(changes: &BTreeMap<String, Value>) -> Result<Option<Duration>, ApiError> {
    let Some(value) = changes.get("pdu_off_delay") else { return Ok(None) };
    let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    match seconds.map(Duration::try_from_secs_f64) {
        Some(Ok(time)) if time <= OFF_TIME_MAX => Ok(Some(time)),
        _ => {
            let most = OFF_TIME_MAX.as_secs();
            Err(ApiError::Malformed(format!("`pdu_off_delay`: `{value}` is no number of seconds from 0 to {most}")))
        }
    }
}

fn truth(changes: &BTreeMap<String, Value>, key: &str) -> Result<Option<bool>, ApiError> {
    let wrong = || ApiError::Malformed(format!("`{key}` is neither true nor false"));
    changes.get(key).map(|value| value.as_bool().ok_or_else(wrong)).transpose()
}

fn word(changes: &BTreeMap<String, Value>, key: &str) -> Result<Option<String>, ApiError> {
    let wrong = || ApiError::Malformed(format!("`{key}` is no text"));
    changes.get(key).map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).transpose()
}

fn words(changes: &BTreeMap<String, Value>, key: &str) -> Result<Option<Vec<String>>, ApiError> {
    let wrong = |_| ApiError::Malformed(format!("`{key}` is no list of texts"));
    changes.get(key).map(|value| serde_json::from_value(value.clone()).map_err(wrong)).transpose()
}

/// GET `/api/v1/dut/<id or full name>/quick_check`
#[utoipa::path(get, tag = "ci-tron", path = "/api/v1/dut/{name}/quick_check", params(("name" = String, Path, description = "id or full name")), responses((status = 200, description = "`true` while a quick check waits or runs", body = String), (status = 400, description = "no such DUT", body = super::wire::ErrorWire)))]
pub(super) async fn quick_check(State(api): State<Api>, Path(name): Path<String>) -> Result<&'static str, ApiError> {
    let dut = find(&api.farm, &name).await?;
    Ok(if api.farm.is_being_checked(&dut.id).await { "true\n" } else { "false\n" })
}

/// POST `/api/v1/dut/<id or full name>/quick_check`
#[utoipa::path(post, tag = "ci-tron", path = "/api/v1/dut/{name}/quick_check", params(("name" = String, Path, description = "id or full name")), responses((status = 200, body = String), (status = 400, description = "no such DUT", body = super::wire::ErrorWire), (status = 406, description = "it is retired", body = super::wire::ErrorWire)))]
pub(super) async fn queue_quick_check(
    State(api): State<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Result<String, ApiError> {
    let by = by(&request);
    let dut = find(&api.farm, &name).await?;
    let name = dut.full_name;
    Ok(match api.farm.check(&dut.id, &by).await? {
        Some(job) => format!("A quick check of {name} is queued: job {}\n", job.id),
        None if dut.trial == Some(Trial::Training) => format!("{name} goes on with its training\n"),
        None => format!("A quick check of {name} is queued already\n"),
    })
}

/// GET `/api/v1/dut/<id or full name>/training/loop/<n>`: what the machine said in that boot of its training, from 0.
#[utoipa::path(get, tag = "ci-tron", path = "/api/v1/dut/{name}/training/loop/{number}", params(("name" = String, Path, description = "id or full name"), ("number" = usize, Path, description = "from 0")), responses((status = 200, content_type = "text/plain", body = String), (status = 404, description = "no such boot, or its job is no longer kept", body = super::wire::ErrorWire)))]
pub(super) async fn training_loop(
    State(api): State<Api>,
    Path((name, number)): Path<(String, usize)>,
) -> Result<Response, ApiError> {
    let dut = find(&api.farm, &name).await?;
    let training = api.farm.record_of(&dut.id).training.unwrap_or_default();
    let count = training.loops.len();
    let Some(boot) = training.loops.get(number) else {
        let text = format!("{} has no boot {number} of a training; it has {count}, from 0", dut.full_name);
        return Err(ApiError::NotFound(text));
    };
    let job = api.job(&boot.job)?;
    let console = super::inspect::console(&job.log, 0, Some(job.log.records().len()));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(console)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::farm::{Loop, Training};

    #[test]
    fn a_dut_has_the_keys_that_executorctl_lists_and_ci_trons_training() {
        let dut = DutView {
            id: "52:54:00:00:00:01".into(),
            full_name: "farm-sim-1".into(),
            base_name: "sim".into(),
            state: DutState::Training,
            tags: vec!["farm:farm".into()],
            mac_address: "52:54:00:00:00:01".into(),
            ip_address: "10.42.0.11".into(),
            comment: None,
            trial: Some(Trial::Training),
            health: Health::Unknown,
            is_retired: false,
            ready_for_service: false,
            job: None,
            holder: None,
            power: None,
        };
        let boot = |job: &str, status: &str| Loop { job: job.into(), status: status.into() };
        let loops = vec![boot("4", "PASS"), boot("5", "FAIL")];
        let training = Some(Training { is_registered: true, loops, ..Training::default() });
        let record = DutRecord { boots: 2, training, ..DutRecord::default() };
        let json = dut_json(&dut, &record, &Found::default(), &TrainingConfig::default());
        assert_eq!((&json["full_name"], &json["state"]), (&json!("farm-sim-1"), &json!("TRAINING")));
        assert_eq!(json["ip_address"], "10.42.0.11");
        assert!(json.as_object().unwrap().contains_key("comment"));
        let expected = json!({
            "state": "TRAINING", "is_active": true, "is_registered": true, "boot_loop_counts": 5, "qualifying_rate": 5,
            "current_loop_count": 2, "statuses": {"PASS": 1, "FAIL": 1},
            "loops": [{"job": "4", "status": "PASS"}, {"job": "5", "status": "FAIL"}],
        });
        assert_eq!(json["training"], expected);
    }
}
