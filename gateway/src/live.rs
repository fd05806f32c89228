//! Names that code answers, while the asker waits, instead of bytes that lie ready: what DUTs of one job tell each other.
//!
//! ```text
//!  Publication::answer(prefix, Arc<dyn Answer>) ──► the namespace ──► HTTP alone, through the namespace's two keys
//!      GET, POST prefix/path?key=value ──► Question { path, pairs } ──► Answer::answer ──► … ──► Reply { status, text }
//! ```
//! The future of an answer is dropped when its asker goes away, when the publication is dropped, and when the server stops: whoever
//! keeps a place for it frees that place in the future's own `Drop`.

use futures_util::future::BoxFuture;

/// What answers below a prefix of a namespace.
pub trait Answer: Send + Sync {
    /// The answer; it may take as long as the job does.
    fn answer(&self, question: Question) -> BoxFuture<'_, Reply>;
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The path below the prefix, percent-decoded, with its leading slash; empty for the prefix itself.
    pub path: String,
    /// The pairs of the query, then those of a POST's form, percent-decoded; `key` alone is a pair with an empty value.
    pub pairs: Vec<(String, String)>,
}

/// The answer, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    /// The body.
    pub text: String,
}
