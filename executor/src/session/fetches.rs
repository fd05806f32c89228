//! What a machine has fetched in a boot: kept by its session, so that a verdict can say where the boot came to a stop.

use serde::{Deserialize, Serialize};

/// What a machine has fetched in this boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetches {
    /// What it fetched last, and how far it came.
    pub last: Option<String>,
    /// What it boots from, and has not fetched whole.
    pub missing: Vec<String>,
}

impl Fetches {
    /// Behind what happened, as a part of its sentence.
    pub(super) fn in_words(&self) -> String {
        let missing = self.missing.join(", ");
        match (&self.last, missing.as_str()) {
            (None, "") => String::new(),
            (None, missing) => format!("; nothing was fetched in this boot; never fetched: {missing}"),
            (Some(last), "") => {
                format!(
                    "; fetched last: {last}; all that it boots from was fetched, and no line followed on the console"
                )
            }
            (Some(last), missing) => format!("; fetched last: {last}; never fetched whole: {missing}"),
        }
    }
}
