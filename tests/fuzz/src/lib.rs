//! What a stranger may send, made by the million: one function per core, run over bytes that nobody chose.
//!
//! ```text
//!  corpus/<target>.hex ─┬─► mutation.rs, a number for a seed ──► Target::run     in `cargo test` (it/fuzz.rs): the same bytes each time
//!  fixtures/packets/    └─► libFuzzer (main.rs, run.sh) ───────► Target::run     for hours: new code reached makes new bytes
//! ```
//! A target drives a core as its ring does, keeps a model of what the other side must see, and panics where the two differ. What was
//! found stays in the corpus as a line with its reason. docs/fuzzing.md has the figures.

pub mod mutation;
mod script;
mod targets;

/// One core under fire.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Reads the bytes as what a stranger sends; panics where a promise is broken.
    pub run: fn(&[u8]),
    /// What to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Runs within `cargo test`: about a second of a debug build each.
    pub runs: u32,
}

/// Every target, in alphabetical order.
pub const TARGETS: &[Target] = targets::TARGETS;

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.name == name)
    }
}

/// The inputs of a corpus file: one a line in hexadecimal, `#` begins a comment.
fn corpus(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(unhex).collect()
}

fn unhex(line: &str) -> Vec<u8> {
    let digits = line.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).expect("ASCII"));
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("`{pair}` is not hexadecimal"))).collect()
}
