//! What a job means: text in, [`Job`] out, or every mistake of the text at once, drawn like a compiler's.
mod guard;
pub mod ids;
mod pattern;
pub mod problem;
pub mod quantity;
mod scalar;
