//! The bodies of requests that are JSON objects: bounded, and what is wrong names its field.

use axum::body::Body;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// A request for a lease is some hundred bytes; many tags make it some thousand.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Reads a JSON object; what is wrong with it names the field. No body is an object without fields.
pub(super) async fn read_fields<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX).await;
    let bytes = bytes.map_err(|error| ApiError::TooLarge(format!("at most {BODY_BYTES_MAX} bytes: {error}")))?;
    fields_of(if bytes.is_empty() { b"{}" } else { &bytes })
}

fn fields_of<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::Malformed(format!("the body is no JSON object: {error}")))?;
    serde_json::from_value(serde_json::Value::Object(object.clone())).map_err(|error| {
        // Every field may be absent, so the one that is wrong is wrong alone, too.
        let is_wrong = |(key, value): &(String, serde_json::Value)| {
            let alone = serde_json::Map::from_iter([(key.clone(), value.clone())]);
            serde_json::from_value::<T>(serde_json::Value::Object(alone)).is_err()
        };
        match object.into_iter().find(is_wrong) {
            Some((key, _)) => ApiError::Malformed(format!("`{key}`: {error}")),
            None => ApiError::Malformed(error.to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::wire::leases::TakeWire;
    use super::*;

    fn wrong(text: &str) -> String {
        match fields_of::<TakeWire>(text.as_bytes()) {
            Err(ApiError::Malformed(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        assert_eq!(
            wrong(r#"{"dut": "a", "priority": "high"}"#),
            "`priority`: invalid type: string \"high\", expected i32"
        );
        assert!(wrong(r#"{"tag": "a"}"#).starts_with("`tag`: unknown field `tag`, expected one of"));
        assert!(wrong("[1]").starts_with("the body is no JSON object"));
    }
}
