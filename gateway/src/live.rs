//! Names that code answers, while the asker waits, instead of bytes that lie ready: what DUTs of one job tell each other.
//!
//! ```text
//!  Publication::answer(prefix, Arc<dyn Answer>) ──► the namespace ──► HTTP alone
//!      Takes::Forms  GET, POST prefix/path?key=value        ──┐  through the namespace's two keys
//!      Takes::Json   GET, POST, PUT, PATCH prefix/path, JSON ─┤  through its address alone: it is about who asks
//!                                                             └──► Question ──► Answer::answer ──► … ──► Reply { status, text }
//! ```
//! The future of an answer is dropped when its asker goes away, when the publication is dropped, and when the server stops: whoever
//! keeps a place for it frees that place in the future's own `Drop`.

use futures_util::future::BoxFuture;

/// What answers below a prefix of a namespace.
pub trait Answer: Send + Sync {
    /// The answer; it may take as long as the job does.
    fn answer(&self, question: Question) -> BoxFuture<'_, Reply>;

    /// How it is asked.
    fn takes(&self) -> Takes {
        Takes::Forms
    }
}

/// How something is asked, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// With pairs, by whoever reads the namespace.
    Forms,
    /// With JSON, by the DUT at the namespace's address: the key leads nowhere.
    Json,
}

/// What a request does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verb {
    /// GET.
    #[default]
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
}

/// What was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// How.
    pub verb: Verb,
    /// The path below the prefix, percent-decoded, with its leading slash; empty for the prefix itself.
    pub path: String,
    /// The pairs of the query, then those of a POST's form, percent-decoded; `key` alone is a pair with an empty value.
    pub pairs: Vec<(String, String)>,
    /// The body, where JSON is taken; not checked yet.
    pub json: String,
}

/// The answer, as text; where JSON is taken it is JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status code.
    pub status: u16,
    /// The body.
    pub text: String,
}
