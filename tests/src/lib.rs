//! What the tests of the whole house share. It sees the three crates from outside only: the binary, its wire and its files.
//!
//! ```text
//!  bench       a farm in a process of its own, seen through its API
//!  board       a QEMU machine that a farm knows as hardware
//!  rack        a farm whose power unit is a script
//!  packages    programs of Debian that a test needs
//!  workspace   the tree of sources and pages, for the rules that it shall keep
//!  coordinator a GitLab instance as runners see it
//!  actions     a Forgejo instance as runners see it
//!  instance    what both of those are: a server whose calls go wrong on request
//!  crowd       a thousand DUTs and their queue, read back from events
//!  lab         network namespaces
//!  bad_link    a wire between two of them that loses and delays
//!  peers       other people's servers in them
//!  measure     medians and tables
//! ```
//! The tests themselves are in `tests/it/`, one file per promise.

pub mod actions;
pub mod bad_link;
pub mod bench;
pub mod board;
pub mod coordinator;
pub mod crowd;
pub mod instance;
pub mod lab;
pub mod measure;
pub mod packages;
pub mod peers;
pub mod rack;
pub mod workspace;
