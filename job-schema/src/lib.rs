//! What a job means: text in, [`Job`] out, or every mistake of the text at once, drawn like a compiler's.
//!
//! ```text
//!  text + Variables ─ template::render ─► Rendered ─ Job::parse_all ─► Roles: a Job for each DUT
//!                          │                               │
//!                          └────────── Problems ◄──────────┘
//! ```
//! This crate knows no socket, task, file or clock. Rendering is bounded by fuel and sizes only; text that a stranger
//! wrote is rendered in a child process under rlimits, by the crate that may start one.

#[cfg(test)]
mod corpus_tests;
mod description;
mod forms;
mod guard;
pub mod ids;
pub mod job;
mod merge;
pub mod pattern;
pub mod problem;
pub mod quantity;
pub mod roles;
mod scalar;
#[cfg(test)]
mod seeded;
mod shape;
pub mod steps;
pub mod template;

pub use guard::{DEPTH_AT_MOST, DOCUMENT_BYTES_AT_MOST, NODES_AT_MOST, decode};
pub use ids::{ArtifactPath, DutId, ExportName, JobId, RoleName};
pub use job::*;
pub use pattern::{MatchError, Pattern};
pub use problem::{Location, Problem, Problems};
pub use roles::{Role, Roles, StartBarrier};
pub use shape::{Findings, field_of, load, load_checked, schema_of};
pub use steps::{BySsh, Failures, Results, Step, StepContent, StepKind};
pub use template::{Limits, Rendered, Variables, render, render_inline, variables_used};
