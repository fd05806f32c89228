//! How much is kept of what each console says, and for how long.

use std::time::Duration;

use super::*;
use crate::console::Limits;

/// The log of each console.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct ConsoleLogKeys {
    /// Of one console, at most; `64M` when absent.
    #[schemars(with = "Option<SizeForm>", extend("x-example" = "size: 256M"))]
    size: Option<u64>,
    /// What is older goes; `30 days` when absent.
    #[schemars(with = "Option<LengthForm>", extend("x-example" = "age: 90 days"))]
    age: Option<f64>,
}

/// The least: a job may be a mebibyte behind its console, and what it has not heard must still be there.
const BYTES_MIN: u64 = 4 << 20;
/// The least: what was said in a night is still there in the morning.
const AGE_MIN: Duration = Duration::from_secs(86_400);

/// The schema of a size, in words.
pub(super) struct SizeForm;

impl JsonSchema for SizeForm {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "x-form": "size" })
    }
}

impl ConsoleLogKeys {
    /// As the consoles have it.
    pub(super) fn limits(&self, findings: &mut Findings) -> Limits {
        let usual = Limits::default();
        let bytes_max = self.size.unwrap_or(usual.bytes_max);
        let age_max = self.age.map_or(usual.age_max, Duration::from_secs_f64);
        let at = |key: &str| ["console_log".to_owned(), key.to_owned()];
        if bytes_max < BYTES_MIN {
            findings.tell(&at("size"), format!("{bytes_max} bytes of a console are too few"), "write `4M` or more");
        }
        if age_max < AGE_MIN {
            findings.tell(&at("age"), "a console's log is kept for too short".to_owned(), "write `1 day` or more");
        }
        Limits { bytes_max, age_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FARM: &str = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\nduts: []\n";

    fn limits(text: &str) -> Result<Limits, String> {
        let parsed = parse("farm.yml", &format!("{FARM}{text}"), Path::new(""));
        parsed.map(|farm| farm.console_log).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_size_and_an_age_are_written_as_people_write_them() {
        assert_eq!(limits(""), Ok(Limits::default()));
        let expected = Limits { bytes_max: 256 << 20, age_max: Duration::from_secs(90 * 86_400) };
        assert_eq!(limits("console_log: {size: 256M, age: 90 days}"), Ok(expected));
    }

    #[test]
    fn a_log_too_small_to_be_of_use_is_told() {
        let told = limits("console_log: {size: 1M, age: 1h}").unwrap_err();
        assert!(told.contains("console_log.size") && told.contains("console_log.age"), "{told}");
    }
}
