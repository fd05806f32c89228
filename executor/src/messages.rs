//! Messages between the DUTs of one job: LAVA's multinode calls, asked over HTTP with curl, wget or a few lines of a static program.
//!
//! ```text
//!                              job's folder ◄── a line per fact ──┐
//!  DUT of role A ── HTTP ──► Seat A ──┐                           │
//!  DUT of role B ── HTTP ──► Seat B ──┼──► Board ── Posts ◆ ──────┤
//!                                     │    (mutex)                ├──► a sentence for the job's log
//!      the future of a question:      └── Place ◄─── the answer ──┘
//!      dropped while it waits, its Place leaves
//! ```
//! Each role's namespace gets its own seat, so two jobs never meet on one board. What was sent, and the syncs that were passed, are
//! kept in the job's folder before anybody is answered: a farm that was killed finds them again.

mod posts;
mod wire;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use gateway::live::{self, Answer, Question};
use tokio::sync::oneshot;

use self::posts::{Fact, Output, Posts, Ticket};
use self::wire::{Reply, Request};

/// Hears each message, each arrival at a sync and each refusal, as a sentence. Called while the board is locked: it must not block, nor
/// ask the board.
type Teller = Box<dyn Fn(&str) + Send + Sync>;

/// Where the DUTs of one job leave messages for each other.
pub struct Board {
    inner: Mutex<Inner>,
    tell: Teller,
}

struct Inner {
    posts: Posts,
    waiting: HashMap<Ticket, oneshot::Sender<Reply>>,
    kept: Option<File>,
}

/// The board as one role sees it.
struct Seat {
    board: Arc<Board>,
    role: usize,
}

/// A request that waits; dropped, it leaves the board.
struct Place {
    board: Arc<Board>,
    ticket: Ticket,
}

impl Board {
    /// The board of a job's roles (their instances' names), which ends with the process.
    pub fn new(roles: Vec<String>, tell: impl Fn(&str) + Send + Sync + 'static) -> Arc<Self> {
        Self::over(Posts::new(roles), None, tell)
    }

    /// The board of a job's roles, with all that is in the file at `path`, and kept there from now on. What is restored is not told again.
    pub fn kept_at(
        path: &Path,
        roles: Vec<String>,
        tell: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        let mut posts = Posts::new(roles);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        // A line that a crash cut off was never answered: it did not happen.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        for (index, line) in text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let fact = serde_json::from_slice(line).map_err(|error| {
                let message = format!("{}:{}: {error}; remove this line", path.display(), index + 1);
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?;
            posts.restore(fact);
        }
        Ok(Self::over(posts, Some(file), tell))
    }

    fn over(posts: Posts, kept: Option<File>, tell: impl Fn(&str) + Send + Sync + 'static) -> Arc<Self> {
        let inner = Mutex::new(Inner { posts, waiting: HashMap::new(), kept });
        Arc::new(Board { inner, tell: Box::new(tell) })
    }

    /// What answers the DUT of `role`, one of the board's roles, below its messages' URL.
    pub fn seat(self: &Arc<Self>, role: &str) -> Arc<dyn Answer> {
        let role = self.lock().posts.role(role).expect("the farm makes seats for the roles that it made the board for");
        Arc::new(Seat { board: Arc::clone(self), role })
    }

    /// `role` has its verdict: nothing comes from it any more. Whoever needs it is told so; what it sent stays. Repeatable.
    pub fn role_ended(&self, role: &str) {
        self.change(|inner| {
            if let Some(role) = inner.posts.role(role) {
                inner.posts.role_ended(role);
            }
        });
    }

    /// The job is over, for this reason (a sentence): whoever waits or asks is told so. Repeatable; the first reason stands.
    pub fn close(&self, reason: &str) {
        self.change(|inner| inner.posts.close(reason));
    }

    fn ask(self: &Arc<Self>, role: usize, request: Request) -> (Place, oneshot::Receiver<Reply>) {
        let (sender, answered) = oneshot::channel();
        let ticket = self.change(|inner| {
            let ticket = inner.posts.ask(role, request);
            inner.waiting.insert(ticket, sender);
            ticket
        });
        (Place { board: Arc::clone(self), ticket }, answered)
    }

    /// Changes the board, and does what follows from it before anybody else can: facts are kept, and told, in their order.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let result = change(&mut inner);
        while let Some(output) = inner.posts.poll_output() {
            match output {
                Output::Keep(fact) => {
                    if let Err(error) = inner.keep(&fact) {
                        (self.tell)(&format!("the next message is lost if the farm restarts: {error}"));
                    }
                }
                Output::Tell(sentence) => (self.tell)(&sentence),
                Output::Answer(ticket, reply) => {
                    if let Some(waiting) = inner.waiting.remove(&ticket) {
                        let _ = waiting.send(reply);
                    }
                }
            }
        }
        result
    }

    /// A panic of the teller leaves plain data behind.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, fact: &Fact) -> io::Result<()> {
        let Some(file) = &mut self.kept else { return Ok(()) };
        let mut line = serde_json::to_vec(fact)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

impl Answer for Seat {
    fn answer(&self, question: Question) -> BoxFuture<'_, live::Reply> {
        Box::pin(async move {
            let reply = match wire::read(&question.path, question.pairs) {
                Ok(request) => {
                    let (_place, answered) = self.board.ask(self.role, request);
                    answered.await.expect("a board answers each ticket, or its place has left")
                }
                Err(reply) => {
                    self.board.change(|inner| inner.posts.refuse(self.role, &question.path, &reply));
                    reply
                }
            };
            live::Reply { status: reply.status.code(), text: reply.text }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.board.lock();
        inner.posts.leave(self.ticket);
        inner.waiting.remove(&self.ticket);
    }
}

#[cfg(test)]
mod tests;
