//! What the tests of the whole house share. It sees the three crates from outside only: the binary, its wire and its files.
//!
//! ```text
//!  bench       a farm in a process of its own, seen through its API
//!  workspace   the tree of sources and pages, for the rules that it shall keep
//! ```
//! The tests themselves are in `tests/it/`, one file per promise.

pub mod bench;
pub mod workspace;
