//! What of the farm file is about machines that have to show that they are well: training before they take jobs, and how many failures in a
//! row are too many.

use super::*;
use crate::config::{BeforeService, Template, TrainingConfig};
use crate::lease::rows::Patience;

/// How machines show that they are well.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct TrainingKeys {
    /// Which machines train; `discovered` when absent.
    machines: Option<TrainedKey>,
    /// Boots of one training; 5 when absent, and none with 0.
    #[schemars(range(min = 0, max = 10_000))]
    boots: Option<u32>,
    /// How many of them must pass; all when absent.
    #[schemars(range(min = 0, max = 10_000))]
    qualifying: Option<u32>,
    /// The job that is run until it passes before the boots, relative to this file; none when absent.
    register: Option<String>,
    /// The job that each boot runs, and a quick check too, relative to this file; one that boots Linux and switches off when absent.
    boot_loop: Option<String>,
    /// How long it rests after a training that failed; 2 minutes when absent.
    #[schemars(with = "Option<LengthForm>")]
    pause: Option<f64>,
}

/// Which machines train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum TrainedKey {
    /// Those that registered themselves; a machine of this file is in service at once.
    Discovered,
    /// Those of this file, too, when they are new in it.
    All,
}

/// How many failures in a row that were the farm's are too many.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct HealthKeys {
    /// So many make a machine suspect; 2 when absent.
    #[schemars(range(min = 1, max = 1000))]
    suspect_after: Option<u32>,
    /// So many take it out of service; 4 when absent.
    #[schemars(range(min = 1, max = 1000))]
    quarantined_after: Option<u32>,
}

impl TrainingKeys {
    /// Whether a machine of the farm file trains before it takes jobs.
    pub(super) fn of_the_file(&self) -> BeforeService {
        match self.machines {
            Some(TrainedKey::All) => BeforeService::Training,
            None | Some(TrainedKey::Discovered) => BeforeService::Nothing,
        }
    }
}

pub(super) fn training(keys: &TrainingKeys, directory: &Path, findings: &mut Findings) -> TrainingConfig {
    let at = |key: &str| ["training".to_owned(), key.to_owned()];
    let usual = TrainingConfig::default();
    let boots = keys.boots.unwrap_or(usual.boots);
    let qualifying = keys.qualifying.unwrap_or(boots);
    if qualifying > boots {
        let what = format!("{qualifying} of {boots} boots cannot pass");
        findings.tell(&at("qualifying"), what, "`qualifying` is at most `boots`");
    }
    let mut template = |key: &str, name: &Option<String>| {
        let name = name.as_ref()?;
        let path = directory.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(Template { name: name.clone(), text }),
            Err(error) => {
                let what = format!("cannot read `{}`: {error}", path.display());
                findings.tell(&at(key), what, "name a job file relative to the farm file");
                None
            }
        }
    };
    let register = template("register", &keys.register);
    let boot_loop = template("boot_loop", &keys.boot_loop).unwrap_or(usual.boot_loop);
    let pause = keys.pause.map_or(usual.pause, Duration::from_secs_f64);
    TrainingConfig { boots, qualifying, register, boot_loop, pause }
}

pub(super) fn patience(keys: &HealthKeys, findings: &mut Findings) -> Patience {
    let usual = Patience::default();
    let suspect_after = keys.suspect_after.unwrap_or(usual.suspect_after);
    let quarantined_after = keys.quarantined_after.unwrap_or(usual.quarantined_after.max(suspect_after));
    if quarantined_after < suspect_after {
        let at = ["health".to_owned(), "quarantined_after".to_owned()];
        let what = format!("quarantined after {quarantined_after} failures, suspect only after {suspect_after}");
        findings.tell(&at, what, "`quarantined_after` is at least `suspect_after`");
    }
    Patience { suspect_after, quarantined_after }
}
