//! Who sent what, who waits for what, and what can no longer come: the board of one job. ◆
//!
//! ```text
//!  request    answered 200 once                              answered 409 once
//!  send       at once; the role's message of this id          this role has ended, or the job
//!             is replaced
//!  wait       any role has sent it                            … or all others have ended, and none has sent it
//!  wait-all   all (the named role's) have sent it             … or one of them has ended and has not
//!  sync       all roles waited here at one time;              … or any role has ended before that
//!             from then on at once
//! ```
//! Sent messages and passed syncs stay for as long as the job: a DUT that reboots and asks again finds them, and whoever waits later
//! waits no time. A role is at a sync while a request of it waits there: who goes away was not there.
//!
//! How to drive it: call [`Posts::ask`], [`Posts::leave`], [`Posts::role_ended`], [`Posts::close`], each time followed by
//! [`Posts::poll_output`] until there is none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::wire::{Pairs, Reply, Request, Status, lines, told};

/// One waiting request, for as long as it waits.
pub(super) type Ticket = u64;

/// What is true from now on, and has to outlive a restart of the farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub(super) enum Fact {
    /// A role sent a message.
    Sent { role: String, id: String, pairs: Pairs },
    /// All roles came to a sync.
    Passed { id: String },
    /// A role has ended.
    Ended { role: String },
}

/// What the ring has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Keep it where a restart finds it.
    Keep(Fact),
    /// A line for the job's log.
    Tell(String),
    /// The answer to a request.
    Answer(Ticket, Reply),
}

/// 1024 messages of a role, changed ones counted again: a test that reports each of a thousand rounds. With 4 KiB each, 4 MiB per role.
const SENDS_PER_ROLE_MAX: usize = 1024;
/// 1024 syncs of a job, for as many rounds.
const SYNCS_MAX: usize = 1024;
/// 16 requests of a role wait at one time, a quarter of the connections that a DUT may have. The oldest gives way: it is most likely
/// of a boot that is over.
const WAITING_PER_ROLE_MAX: usize = 16;
/// 5000 lines of a job's log, as for its accesses: a DUT that asks in a loop must not fill the memory.
const SENTENCES_MAX: usize = 5000;

/// The board of one job.
pub(super) struct Posts {
    roles: Vec<Role>,
    sent: BTreeMap<(String, usize), Pairs>,
    passed: BTreeSet<String>,
    waiting: BTreeMap<Ticket, Waiting>,
    closed: Option<String>,
    tickets: Ticket,
    sentences: usize,
    outputs: VecDeque<Output>,
}

struct Role {
    name: String,
    has_ended: bool,
    sends: usize,
}

struct Waiting {
    role: usize,
    request: Request,
}

impl Posts {
    /// The empty board of these roles.
    pub(super) fn new(roles: Vec<String>) -> Self {
        let role = |name| Role { name, has_ended: false, sends: 0 };
        Posts {
            roles: roles.into_iter().map(role).collect(),
            sent: BTreeMap::new(),
            passed: BTreeSet::new(),
            waiting: BTreeMap::new(),
            closed: None,
            tickets: 0,
            sentences: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The number of a role.
    pub(super) fn role(&self, name: &str) -> Option<usize> {
        self.roles.iter().position(|role| role.name == name)
    }

    /// Makes true again what was before a restart; of a role that the job does not have, nothing.
    pub(super) fn restore(&mut self, fact: Fact) {
        let role = match &fact {
            Fact::Sent { role, .. } | Fact::Ended { role } => self.role(role),
            Fact::Passed { .. } => None,
        };
        match (fact, role) {
            (Fact::Passed { id }, _) => {
                self.passed.insert(id);
            }
            (Fact::Sent { id, pairs, .. }, Some(role)) => {
                self.roles[role].sends += 1;
                self.sent.insert((id, role), pairs);
            }
            (Fact::Ended { .. }, Some(role)) => self.roles[role].has_ended = true,
            (Fact::Sent { .. } | Fact::Ended { .. }, None) => {}
        }
    }

    /// `role` asks; the answer comes as an output with this ticket, now or later.
    pub(super) fn ask(&mut self, role: usize, request: Request) -> Ticket {
        self.tickets += 1;
        let ticket = self.tickets;
        match request {
            Request::Send { id, pairs } => {
                let reply = self.send(role, &id, pairs);
                self.answer(ticket, role, &format!("send/{id}"), reply);
            }
            request => {
                let sync = match &request {
                    Request::Sync { id } => Some(id.clone()),
                    Request::Send { .. } | Request::Wait { .. } | Request::WaitAll { .. } => None,
                };
                let was_there = sync.as_ref().is_some_and(|id| self.there(id).contains(&role));
                self.waiting.insert(ticket, Waiting { role, request });
                if let Some(id) = sync.filter(|_| !was_there) {
                    self.come(role, &id);
                }
            }
        }
        self.settle();
        self.make_room(role);
        ticket
    }

    /// `role` asked for what is no request.
    pub(super) fn refuse(&mut self, role: usize, path: &str, reply: &Reply) {
        self.tell_refusal(role, path, reply);
    }

    /// Whoever waited with this ticket has gone.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// No message of this role comes any more.
    pub(super) fn role_ended(&mut self, role: usize) {
        if !std::mem::replace(&mut self.roles[role].has_ended, true) {
            self.outputs.push_back(Output::Keep(Fact::Ended { role: self.name(role) }));
            self.settle();
        }
    }

    /// Nothing comes any more, for this reason (a sentence).
    pub(super) fn close(&mut self, reason: &str) {
        self.closed.get_or_insert_with(|| reason.to_owned());
        self.settle();
    }

    /// What to do next.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn name(&self, role: usize) -> String {
        self.roles[role].name.clone()
    }

    fn send(&mut self, role: usize, id: &str, pairs: Pairs) -> Reply {
        if let Some(ended) = self.ended(role) {
            return ended;
        }
        let key = (id.to_owned(), role);
        if self.sent.get(&key) == Some(&pairs) {
            return Reply::done(String::new());
        }
        if self.roles[role].sends >= SENDS_PER_ROLE_MAX {
            let sentence = format!("this role has sent {SENDS_PER_ROLE_MAX} messages; the board keeps no more of it");
            return Reply::refusal(Status::Full, sentence);
        }
        let data = told(&pairs);
        let separator = if data.is_empty() { "" } else { ": " };
        let again = if self.sent.contains_key(&key) { " again" } else { "" };
        self.roles[role].sends += 1;
        let name = self.name(role);
        self.outputs.push_back(Output::Keep(Fact::Sent {
            role: name.clone(),
            id: id.to_owned(),
            pairs: pairs.clone(),
        }));
        self.tell(format!("{name} sent `{id}`{again}{separator}{data}"));
        self.sent.insert(key, pairs);
        Reply::done(String::new())
    }

    /// `role` came to a sync where it was not.
    fn come(&mut self, role: usize, id: &str) {
        if self.outcome(role, &Request::Sync { id: id.to_owned() }).is_some() {
            return;
        }
        let (there, all) = (self.there(id).len(), self.roles.len());
        self.tell(format!("{} came to sync `{id}`: {there} of {all} roles are there", self.name(role)));
        if there == all {
            self.outputs.push_back(Output::Keep(Fact::Passed { id: id.to_owned() }));
            self.passed.insert(id.to_owned());
        }
    }

    /// The roles that wait at a sync.
    fn there(&self, id: &str) -> BTreeSet<usize> {
        let is_there = |waiting: &&Waiting| matches!(&waiting.request, Request::Sync { id: other } if other == id);
        self.waiting.values().filter(is_there).map(|waiting| waiting.role).collect()
    }

    /// Answers everybody whose wait is over.
    fn settle(&mut self) {
        let over: Vec<_> = self
            .waiting
            .iter()
            .filter_map(|(ticket, waiting)| Some((*ticket, self.outcome(waiting.role, &waiting.request)?)))
            .collect();
        for (ticket, reply) in over {
            if let Some(Waiting { role, request }) = self.waiting.remove(&ticket) {
                self.answer(ticket, role, &request.to_string(), reply);
            }
        }
    }

    fn make_room(&mut self, role: usize) {
        let of_role: Vec<_> = self.waiting.iter().filter(|(_, waiting)| waiting.role == role).collect();
        if of_role.len() <= WAITING_PER_ROLE_MAX {
            return;
        }
        let oldest = *of_role[0].0;
        if let Some(Waiting { request, .. }) = self.waiting.remove(&oldest) {
            let sentence = format!("{WAITING_PER_ROLE_MAX} newer requests of this role wait; this one gave way");
            self.answer(oldest, role, &request.to_string(), Reply::refusal(Status::GaveWay, sentence));
        }
    }

    fn answer(&mut self, ticket: Ticket, role: usize, request: &str, reply: Reply) {
        if reply.status != Status::Done {
            self.tell_refusal(role, request, &reply);
        }
        self.outputs.push_back(Output::Answer(ticket, reply));
    }

    fn tell_refusal(&mut self, role: usize, request: &str, reply: &Reply) {
        let request = request.trim_start_matches('/');
        self.tell(format!("{} asked {request}: {}", self.name(role), reply.text.trim_end()));
    }

    fn tell(&mut self, sentence: String) {
        self.sentences += 1;
        match self.sentences {
            count if count < SENTENCES_MAX => self.outputs.push_back(Output::Tell(sentence)),
            SENTENCES_MAX => self.outputs.push_back(Output::Tell("further messages are not listed".to_owned())),
            _ => {}
        }
    }

    /// How a request that waits ends now, if it does. The table at the top.
    fn outcome(&self, role: usize, request: &Request) -> Option<Reply> {
        let all: Vec<usize> = (0..self.roles.len()).collect();
        match (self.ended(role), request) {
            (Some(ended), _) => Some(ended),
            (None, Request::Send { .. }) => None,
            (None, Request::Wait { id }) => self.any_sent(role, id),
            (None, Request::WaitAll { id, role: None }) => self.all_sent(&all, id),
            (None, Request::WaitAll { id, role: Some(name) }) => match self.instances(name) {
                Ok(instances) => self.all_sent(&instances, id),
                Err(unknown) => Some(unknown),
            },
            (None, Request::Sync { id }) => self.all_came(id),
        }
    }

    /// Why this role gets no answers any more, if so.
    fn ended(&self, role: usize) -> Option<Reply> {
        match &self.closed {
            Some(reason) => Some(Reply::refusal(Status::Ended, reason)),
            None if self.roles[role].has_ended => {
                Some(Reply::refusal(Status::Ended, format!("role `{}` has ended", self.roles[role].name)))
            }
            None => None,
        }
    }

    fn any_sent(&self, asking: usize, id: &str) -> Option<Reply> {
        let all = 0..self.roles.len();
        let text: String = all.clone().filter_map(|role| self.lines_of(role, id)).collect();
        if !text.is_empty() {
            return Some(Reply::done(text));
        }
        let is_hopeless = all.filter(|role| *role != asking).all(|role| self.roles[role].has_ended);
        is_hopeless
            .then(|| Reply::refusal(Status::Ended, format!("all other roles have ended, and none has sent `{id}`")))
    }

    fn all_sent(&self, awaited: &[usize], id: &str) -> Option<Reply> {
        let sent: Option<String> = awaited.iter().map(|role| self.lines_of(*role, id)).collect();
        if let Some(text) = sent {
            return Some(Reply::done(text));
        }
        let lost = awaited.iter().find(|role| self.roles[**role].has_ended && self.lines_of(**role, id).is_none())?;
        let sentence = format!("role `{}` has ended without sending `{id}`", self.roles[*lost].name);
        Some(Reply::refusal(Status::Ended, sentence))
    }

    fn all_came(&self, id: &str) -> Option<Reply> {
        if self.passed.contains(id) {
            return Some(Reply::done(self.roles.iter().map(|role| format!("{}\n", role.name)).collect()));
        }
        if let Some(lost) = self.roles.iter().find(|role| role.has_ended) {
            let sentence = format!("role `{}` has ended before all roles came to sync `{id}`", lost.name);
            return Some(Reply::refusal(Status::Ended, sentence));
        }
        let sentence = || format!("the job has passed {SYNCS_MAX} syncs; the board keeps no more");
        (self.passed.len() >= SYNCS_MAX).then(|| Reply::refusal(Status::Full, sentence()))
    }

    fn lines_of(&self, role: usize, id: &str) -> Option<String> {
        self.sent.get(&(id.to_owned(), role)).map(|pairs| lines(&self.roles[role].name, pairs))
    }

    /// The role of this name, or else those that are its instances: `server` has `server-1` and `server-2`.
    fn instances(&self, name: &str) -> Result<Vec<usize>, Reply> {
        let is_instance = |role: &Role| {
            let number = role.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        };
        let instances: Vec<_> = match self.role(name) {
            Some(role) => vec![role],
            None => (0..self.roles.len()).filter(|role| is_instance(&self.roles[*role])).collect(),
        };
        if instances.is_empty() {
            let roles: Vec<_> = self.roles.iter().map(|role| role.name.as_str()).collect();
            return Err(Reply::refusal(Status::Bad, format!("no role {name:?}; roles: {}", roles.join(", "))));
        }
        Ok(instances)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::read;
    use super::*;

    const CLIENT: usize = 0;
    const SERVER_1: usize = 1;
    const SERVER_2: usize = 2;

    /// A board of three roles, and what came out of it so far.
    struct Scene {
        posts: Posts,
        answers: BTreeMap<Ticket, (u16, String)>,
        told: Vec<String>,
        kept: Vec<Fact>,
    }

    fn scene() -> Scene {
        let posts = Posts::new(["client", "server-1", "server-2"].map(str::to_owned).into());
        Scene { posts, answers: BTreeMap::new(), told: Vec::new(), kept: Vec::new() }
    }

    impl Scene {
        /// Asks as a DUT does: `send/a?k=v`.
        fn ask(&mut self, role: usize, asked: &str) -> Ticket {
            let (path, query) = asked.split_once('?').unwrap_or((asked, ""));
            let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            let request = read(&format!("/{path}"), query.split('&').filter_map(pair).collect()).unwrap();
            let ticket = self.posts.ask(role, request);
            self.drain();
            ticket
        }

        fn drain(&mut self) {
            while let Some(output) = self.posts.poll_output() {
                match output {
                    Output::Keep(fact) => self.kept.push(fact),
                    Output::Tell(sentence) => self.told.push(sentence),
                    Output::Answer(ticket, reply) => {
                        let before = self.answers.insert(ticket, (reply.status.code(), reply.text));
                        assert_eq!(before, None, "one answer per ticket");
                    }
                }
            }
        }

        fn leave(&mut self, ticket: Ticket) {
            self.posts.leave(ticket);
            self.drain();
        }

        fn role_ended(&mut self, role: usize) {
            self.posts.role_ended(role);
            self.drain();
        }

        fn close(&mut self, reason: &str) {
            self.posts.close(reason);
            self.drain();
        }

        /// The answer to a ticket; `None` while it waits.
        fn answer(&self, ticket: Ticket) -> Option<(u16, &str)> {
            self.answers.get(&ticket).map(|(status, text)| (*status, text.as_str()))
        }

        fn ask_now(&mut self, role: usize, asked: &str) -> (u16, &str) {
            let ticket = self.ask(role, asked);
            self.answer(ticket).unwrap_or_else(|| panic!("{asked} waits"))
        }
    }

    #[test]
    fn wait_ends_when_any_role_has_sent_and_later_waits_find_it() {
        let mut scene = scene();
        let waiting = scene.ask(CLIENT, "wait/ready");
        assert_eq!(scene.ask_now(SERVER_1, "send/other"), (200, ""));
        assert_eq!(scene.answer(waiting), None);
        assert_eq!(scene.ask_now(SERVER_1, "send/ready?ip=10.0.0.1&port=80"), (200, ""));
        assert_eq!(scene.answer(waiting), Some((200, "server-1 ip=10.0.0.1\nserver-1 port=80\n")));
        scene.ask(SERVER_2, "send/ready");
        let both = (200, "server-1 ip=10.0.0.1\nserver-1 port=80\nserver-2\n");
        assert_eq!(scene.ask_now(CLIENT, "wait/ready"), both);
        assert_eq!(scene.ask_now(CLIENT, "wait/ready"), both, "as often as one asks, as after a reboot");
        assert_eq!(scene.ask_now(SERVER_1, "wait/other"), (200, "server-1\n"), "the sender is a role like any other");
    }

    #[test]
    fn wait_all_ends_when_all_roles_have_sent() {
        let mut scene = scene();
        let waiting = scene.ask(CLIENT, "wait-all/up");
        scene.ask(SERVER_1, "send/up?n=1");
        scene.ask(SERVER_2, "send/up?n=2");
        assert_eq!(scene.answer(waiting), None, "the one that waits has not sent it either");
        scene.ask(CLIENT, "send/up");
        assert_eq!(scene.answer(waiting), Some((200, "client\nserver-1 n=1\nserver-2 n=2\n")));
    }

    #[test]
    fn wait_all_of_a_role_waits_for_its_instances_only() {
        let mut scene = scene();
        let both = scene.ask(CLIENT, "wait-all/up?role=server");
        let second = scene.ask(CLIENT, "wait-all/up?role=server-2");
        scene.ask(SERVER_2, "send/up?n=2");
        assert_eq!(scene.answer(second), Some((200, "server-2 n=2\n")));
        assert_eq!(scene.answer(both), None);
        scene.ask(SERVER_1, "send/up?n=1");
        assert_eq!(scene.answer(both), Some((200, "server-1 n=1\nserver-2 n=2\n")));
        let unknown = "no role \"serv\"; roles: client, server-1, server-2\n";
        assert_eq!(scene.ask_now(CLIENT, "wait-all/up?role=serv"), (400, unknown));
    }

    #[test]
    fn a_role_of_that_name_goes_before_instances() {
        let mut posts = Posts::new(["db", "db-1", "db-x"].map(str::to_owned).into());
        assert_eq!(posts.instances("db"), Ok(vec![0]));
        posts.roles[0].name = "other".into();
        assert_eq!(posts.instances("db"), Ok(vec![1]));
    }

    #[test]
    fn a_message_sent_again_replaces_the_one_before() {
        let mut scene = scene();
        scene.ask(SERVER_1, "send/ip?v=1");
        scene.ask(SERVER_1, "send/ip?v=2");
        scene.ask(SERVER_1, "send/ip?v=2");
        assert_eq!(scene.ask_now(CLIENT, "wait/ip"), (200, "server-1 v=2\n"));
        assert_eq!(scene.told, ["server-1 sent `ip`: v=1", "server-1 sent `ip` again: v=2"]);
        assert_eq!(scene.kept.len(), 2, "the same message, as a DUT sends it after a reboot, is no news");
    }

    #[test]
    fn sync_ends_when_all_roles_are_there_at_one_time() {
        let mut scene = scene();
        let client = scene.ask(CLIENT, "sync/start");
        let gone = scene.ask(SERVER_1, "sync/start");
        scene.leave(gone);
        let twice = scene.ask(CLIENT, "sync/start");
        let server_2 = scene.ask(SERVER_2, "sync/start");
        assert_eq!(scene.answers, BTreeMap::new(), "server-1 went away, and the client counts once");
        let server_1 = scene.ask(SERVER_1, "sync/start");
        for ticket in [client, twice, server_2, server_1] {
            assert_eq!(scene.answer(ticket), Some((200, "client\nserver-1\nserver-2\n")));
        }
        assert_eq!(scene.answer(gone), None);
        assert_eq!(scene.ask_now(CLIENT, "sync/start"), (200, "client\nserver-1\nserver-2\n"), "passed is passed");
        assert_eq!(
            scene.told,
            [
                "client came to sync `start`: 1 of 3 roles are there",
                "server-1 came to sync `start`: 2 of 3 roles are there",
                "server-2 came to sync `start`: 2 of 3 roles are there",
                "server-1 came to sync `start`: 3 of 3 roles are there",
            ]
        );
    }

    #[test]
    fn a_sync_is_no_message_and_a_message_no_sync() {
        let mut scene = scene();
        for role in [CLIENT, SERVER_1, SERVER_2] {
            scene.ask(role, "sync/a");
            scene.ask(role, "send/b");
        }
        let tickets = [scene.ask(CLIENT, "wait/a"), scene.ask(CLIENT, "sync/b")];
        assert_eq!(tickets.map(|ticket| scene.answer(ticket)), [None, None]);
    }

    #[test]
    fn who_needs_a_role_that_ended_is_told_so_and_others_wait_on() {
        let mut scene = scene();
        scene.ask(SERVER_1, "send/up?n=1");
        let all = scene.ask(CLIENT, "wait-all/up");
        let sync = scene.ask(CLIENT, "sync/start");
        let second = scene.ask(CLIENT, "wait-all/up?role=server-2");
        let any = scene.ask(CLIENT, "wait/more");
        let own = scene.ask(SERVER_2, "wait/more");
        scene.role_ended(SERVER_2);
        let lost = Some((409, "role `server-2` has ended without sending `up`\n"));
        assert_eq!((scene.answer(all), scene.answer(second)), (lost, lost));
        let lost = Some((409, "role `server-2` has ended before all roles came to sync `start`\n"));
        assert_eq!(scene.answer(sync), lost);
        assert_eq!(scene.answer(own), Some((409, "role `server-2` has ended\n")));
        assert_eq!(scene.answer(any), None, "server-1 may send it yet");
        assert_eq!(scene.ask_now(CLIENT, "wait-all/up?role=server-1"), (200, "server-1 n=1\n"));
        scene.role_ended(SERVER_1);
        assert_eq!(scene.answer(any), Some((409, "all other roles have ended, and none has sent `more`\n")));
        assert_eq!(scene.ask_now(CLIENT, "wait/up"), (200, "server-1 n=1\n"), "what an ended role sent stays");
        assert_eq!(scene.ask_now(SERVER_2, "send/late"), (409, "role `server-2` has ended\n"));
        assert_eq!(
            scene.told.last().map(String::as_str),
            Some("server-2 asked send/late: role `server-2` has ended"),
            "the job's log says why"
        );
        scene.role_ended(SERVER_1);
        assert_eq!(scene.kept.iter().filter(|fact| matches!(fact, Fact::Ended { .. })).count(), 2, "told once each");
    }

    #[test]
    fn when_the_job_ends_everybody_is_told_why() {
        let mut scene = scene();
        scene.ask(SERVER_1, "send/up");
        let waiting =
            [scene.ask(CLIENT, "wait/more"), scene.ask(SERVER_1, "sync/a"), scene.ask(SERVER_2, "wait-all/up")];
        scene.close("the job was cancelled");
        scene.close("another reason");
        for ticket in waiting {
            assert_eq!(scene.answer(ticket), Some((409, "the job was cancelled\n")));
        }
        assert_eq!(scene.ask_now(CLIENT, "wait/up"), (409, "the job was cancelled\n"));
        assert_eq!(scene.ask_now(CLIENT, "send/up"), (409, "the job was cancelled\n"));
    }

    #[test]
    fn the_oldest_of_too_many_waiting_requests_of_a_role_gives_way() {
        let mut scene = scene();
        let other = scene.ask(SERVER_1, "wait/x");
        let tickets: Vec<_> = (0..18).map(|_| scene.ask(CLIENT, "wait/x")).collect();
        let sentence = "16 newer requests of this role wait; this one gave way\n";
        let answered: Vec<_> = tickets.iter().map(|ticket| scene.answer(*ticket)).collect();
        assert_eq!(answered[..2], [Some((429, sentence)); 2]);
        assert_eq!(answered[2..], [None; 16]);
        assert_eq!(scene.answer(other), None);
    }

    #[test]
    fn a_role_sends_a_bounded_number_of_messages_and_the_others_still_send() {
        let mut scene = scene();
        for number in 0..1024 {
            assert_eq!(scene.ask_now(CLIENT, &format!("send/n?v={number}")), (200, ""));
        }
        let full = "this role has sent 1024 messages; the board keeps no more of it\n";
        assert_eq!(scene.ask_now(CLIENT, "send/n?v=1024"), (507, full));
        assert_eq!(scene.ask_now(CLIENT, "send/n?v=1023"), (200, ""), "no change, no message");
        assert_eq!(scene.ask_now(SERVER_1, "send/n?v=1"), (200, ""));
    }

    #[test]
    fn a_job_passes_a_bounded_number_of_syncs_and_the_log_has_a_bounded_number_of_lines() {
        let mut scene = scene();
        for number in 0..1024 {
            let tickets = [CLIENT, SERVER_1, SERVER_2].map(|role| scene.ask(role, &format!("sync/{number}")));
            assert!(tickets.iter().all(|ticket| scene.answer(*ticket).is_some()));
        }
        let full = "the job has passed 1024 syncs; the board keeps no more\n";
        assert_eq!(scene.ask_now(CLIENT, "sync/more"), (507, full));
        for _ in 0..2000 {
            scene.ask(CLIENT, "sync/more");
        }
        assert_eq!(scene.told.len(), 5000);
        assert_eq!(scene.told[4999], "further messages are not listed");
    }

    #[test]
    fn facts_restore_the_board() {
        let mut before = scene();
        before.ask(SERVER_1, "send/up?n=1");
        before.ask(SERVER_1, "send/up?n=2");
        for role in [CLIENT, SERVER_1, SERVER_2] {
            before.ask(role, "sync/start");
        }
        before.role_ended(SERVER_2);
        let mut after = scene();
        for fact in before.kept {
            after.posts.restore(fact);
        }
        after.posts.restore(Fact::Ended { role: "stranger".into() });
        after.drain();
        assert_eq!(after.ask_now(CLIENT, "wait/up"), (200, "server-1 n=2\n"));
        assert_eq!(after.ask_now(CLIENT, "sync/start").0, 200);
        assert_eq!(after.ask_now(SERVER_2, "wait/up"), (409, "role `server-2` has ended\n"));
        assert_eq!((after.kept, after.posts.roles[SERVER_1].sends), (vec![], 2));
    }
}
