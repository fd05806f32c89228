//! libFuzzer over one target: `FUZZ_TARGET` names it, `FUZZ_SEEDS` a folder that its seeds are written to first. See run.sh.
#![no_main]

use std::sync::LazyLock;

use fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let names = TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    Target::named(&name).unwrap_or_else(|| panic!("no target `{name}`; FUZZ_TARGET is one of {names}"))
});

libfuzzer_sys::fuzz_target!(
    init: {
        if let Ok(folder) = std::env::var("FUZZ_SEEDS") {
            for (number, seed) in (TARGET.seeds)().into_iter().enumerate() {
                let path = format!("{folder}/seed-{number}");
                std::fs::write(&path, seed).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
            }
        }
    },
    |bytes: &[u8]| (TARGET.run)(bytes)
);
