//! What a simulated DUT says and does once its kernel runs: a list of steps, read from YAML, played without sockets or clocks. ◆
//!
//! ```text
//!  Script::parse(yaml) ─► Player::new(script, facts) ─► next(answer) ─► Act ──the ring does it──► next(answer) ─► … ─► Act::End
//! ```
//! The format is described for people in `fixtures/consoles/README.md`; an unknown step is refused with the known ones.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

/// What a DUT does when the farm file names no script.
pub const BUILT_IN: &str = include_str!("../../../../fixtures/consoles/linux.yml");

/// 64 levels of steps in steps: nobody writes more by hand, and the YAML reader's own limit is 128.
const DEPTH_MAX: usize = 64;

/// A checked script.
#[derive(Clone, Debug)]
pub struct Script(Arc<[Step]>);

/// Why a script cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("console script: {0}; the steps are described in fixtures/consoles/README.md")]
pub struct ScriptError(String);

/// One step, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Step {
    Say(String),
    Raw(String),
    Kernel(String),
    Cmdline,
    Wait(Length),
    Expect(Expect),
    Fetch(String),
    Post(Post),
    Repeat(Repeat),
    ForEach(ForEach),
    When(When),
    Reboot,
    Poweroff,
    Hang,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Expect {
    Text(String),
    Pattern(Pattern),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pattern {
    regex: Regex,
    within: Option<Length>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Post {
    to: String,
    json: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeat {
    /// A number, a template that gives one, or absent: for ever.
    times: Option<Times>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Times {
    Number(u64),
    Template(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForEach {
    word: String,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    boot: Option<u32>,
    word: Option<String>,
    is: Option<String>,
    steps: Vec<Step>,
}

/// A duration: `100ms`, `2s`, `1m`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
struct Length(Duration);

impl TryFrom<String> for Length {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        let wrong = || format!("`{text}` is not a duration; write `100ms`, `2s` or `1m`");
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds = match unit.trim() {
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            _ => None,
        };
        milliseconds.map(|milliseconds| Length(Duration::from_millis(milliseconds))).ok_or_else(wrong)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Regex(Arc<pcre2::bytes::Regex>);

impl TryFrom<String> for Regex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let compiled = pcre2::bytes::Regex::new(&text);
        compiled.map(|regex| Regex(Arc::new(regex))).map_err(|error| format!("regex `{text}`: {error}"))
    }
}

impl Script {
    /// Reads a script: a YAML list of steps.
    pub fn parse(text: &str) -> Result<Script, ScriptError> {
        let reader = serde_yaml::Deserializer::from_str(text);
        let steps: Vec<Step> = serde_yaml::with::singleton_map_recursive::deserialize(reader)
            .map_err(|error| ScriptError(error.to_string()))?;
        check(&steps, 1)?;
        Ok(Script(steps.into()))
    }

    /// The built-in script.
    pub fn built_in() -> Script {
        Script::parse(BUILT_IN).expect("a test reads it")
    }
}

fn check(steps: &[Step], depth: usize) -> Result<(), ScriptError> {
    if depth > DEPTH_MAX {
        return Err(ScriptError(format!("steps are nested deeper than {DEPTH_MAX}")));
    }
    for step in steps {
        match step {
            Step::Repeat(Repeat { steps, .. }) | Step::ForEach(ForEach { steps, .. }) => check(steps, depth + 1)?,
            Step::When(When { boot, word, is, steps }) => {
                if boot.is_none() && word.is_none() {
                    return Err(ScriptError("`when` needs `boot` or `word`".into()));
                }
                if is.is_some() && word.is_none() {
                    return Err(ScriptError("`when` with `is` needs `word`".into()));
                }
                check(steps, depth + 1)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the ring does next.
#[derive(Clone, Debug)]
pub enum Act {
    /// Writes this line.
    Say(String),
    /// Writes these bytes as they are.
    Raw(String),
    /// Writes this line behind a kernel time stamp.
    Kernel(String),
    /// Waits.
    Wait(Duration),
    /// Waits for a line from the console that [`Awaited::is_met_by`]; the answer says whether it came.
    Expect(Awaited, Option<Duration>),
    /// Fetches this address and prints what came of it.
    Fetch(String),
    /// Posts JSON to this address and prints the answer.
    Post {
        /// The address.
        to: String,
        /// The body.
        json: String,
    },
    /// Resets the machine.
    Reboot,
    /// Switches itself off.
    Poweroff,
    /// Does nothing any more.
    Hang,
    /// The script is over.
    End,
}

/// What a line from the console has to be.
#[derive(Clone, Debug)]
pub enum Awaited {
    /// Contains this text.
    Text(String),
    /// Is matched by this pattern.
    Pattern(Arc<pcre2::bytes::Regex>),
}

impl Awaited {
    /// Whether this line is it.
    pub fn is_met_by(&self, line: &[u8]) -> bool {
        match self {
            Awaited::Text(text) => line.windows(text.len().max(1)).any(|window| window == text.as_bytes()),
            // A pattern that exceeds PCRE's own limits on some line is not met by it.
            Awaited::Pattern(regex) => regex.is_match(line).unwrap_or(false),
        }
    }
}

/// What a script may ask about its DUT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The kernel's command line.
    pub command_line: String,
    /// The DUT's MAC.
    pub mac: String,
    /// Its address.
    pub address: String,
    /// The same with the network's prefix, `10.0.0.9/24`.
    pub network: String,
    /// The number of this boot, from 1.
    pub boot: u32,
}

impl Facts {
    /// The values of `name=value` words on the command line, in order.
    fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.command_line.split_ascii_whitespace().filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// A script being played.
#[derive(Debug)]
pub struct Player {
    facts: Facts,
    outcome: Outcome,
    frames: Vec<Frame>,
}

/// Whether everything went well so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
}

#[derive(Debug)]
struct Frame {
    steps: Arc<[Step]>,
    at: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Once,
    Repeat { turn: u64, times: Option<u64> },
    ForEach { values: Vec<String>, turn: usize },
}

impl Player {
    /// From the script's first step.
    pub fn new(script: &Script, facts: Facts) -> Self {
        let frame = Frame { steps: Arc::clone(&script.0), at: 0, kind: Kind::Once };
        Player { facts, outcome: Outcome::Done, frames: vec![frame] }
    }

    /// The next thing to do, once the last one is done; say [`failed`](Self::failed) before if it was not.
    pub fn next(&mut self) -> Act {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Act::End };
            let Some(step) = frame.steps.get(frame.at).cloned() else {
                if !frame.turns_over() {
                    self.frames.pop();
                }
                continue;
            };
            frame.at += 1;
            if let Some(act) = self.start(step) {
                return act;
            }
        }
    }

    /// What the last act was to do did not work: `{{ outcome }}` is `failed` from now on.
    pub fn failed(&mut self) {
        self.outcome = Outcome::Failed;
    }

    fn start(&mut self, step: Step) -> Option<Act> {
        match step {
            Step::Say(text) => Some(Act::Say(self.filled(&text))),
            Step::Raw(text) => Some(Act::Raw(self.filled(&text))),
            Step::Kernel(text) => Some(Act::Kernel(self.filled(&text))),
            Step::Cmdline => Some(Act::Say(self.facts.command_line.clone())),
            Step::Wait(Length(time)) => Some(Act::Wait(time)),
            Step::Expect(Expect::Text(text)) => Some(Act::Expect(Awaited::Text(self.filled(&text)), None)),
            Step::Expect(Expect::Pattern(Pattern { regex, within })) => {
                Some(Act::Expect(Awaited::Pattern(regex.0), within.map(|Length(time)| time)))
            }
            Step::Fetch(address) => Some(Act::Fetch(self.filled(&address))),
            Step::Post(Post { to, json }) => Some(Act::Post { to: self.filled(&to), json: self.filled(&json) }),
            Step::Repeat(Repeat { times, steps }) => {
                let times = times.map(|times| match times {
                    Times::Number(number) => number,
                    // What is not a number is none: the command line may say anything.
                    Times::Template(template) => self.filled(&template).trim().parse().unwrap_or(0),
                });
                self.enter(steps, Kind::Repeat { turn: 1, times });
                None
            }
            Step::ForEach(ForEach { word, steps }) => {
                let values: Vec<String> = self.facts.words(&word).map(str::to_owned).collect();
                self.enter(steps, Kind::ForEach { values, turn: 0 });
                None
            }
            Step::When(when) => {
                if self.holds(&when) {
                    self.enter(when.steps, Kind::Once);
                }
                None
            }
            Step::Reboot => Some(Act::Reboot),
            Step::Poweroff => Some(Act::Poweroff),
            Step::Hang => Some(Act::Hang),
        }
    }

    fn enter(&mut self, steps: Vec<Step>, kind: Kind) {
        let is_nothing = match &kind {
            Kind::Once => false,
            Kind::Repeat { times, .. } => *times == Some(0),
            Kind::ForEach { values, .. } => values.is_empty(),
        };
        // Steps that only decide would turn without ever coming back to the ring.
        if !is_nothing && steps.iter().any(Step::takes_time) {
            self.frames.push(Frame { steps: steps.into(), at: 0, kind });
        }
    }

    fn holds(&self, when: &When) -> bool {
        let boot = when.boot.is_none_or(|boot| boot == self.facts.boot);
        let word = match (&when.word, &when.is) {
            (None, _) => true,
            (Some(word), None) => {
                self.facts.words(word).next().is_some()
                    || self.facts.command_line.split_ascii_whitespace().any(|w| w == word)
            }
            (Some(word), Some(value)) => self.facts.words(word).last() == Some(value),
        };
        boot && word
    }

    /// Replaces each `{{ name }}` and `{{ name or default }}`.
    fn filled(&self, template: &str) -> String {
        let mut filled = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else { break };
            filled.push_str(before);
            let (name, default) = name.split_once(" or ").unwrap_or((name, ""));
            filled.push_str(&self.value(name.trim()).unwrap_or_else(|| default.trim().to_owned()));
            rest = after;
        }
        filled + rest
    }

    fn value(&self, name: &str) -> Option<String> {
        match name {
            "cmdline" => Some(self.facts.command_line.clone()),
            "mac" => Some(self.facts.mac.clone()),
            "ip" => Some(self.facts.address.clone()),
            "network" => Some(self.facts.network.clone()),
            "outcome" => Some(match self.outcome {
                Outcome::Done => "done".into(),
                Outcome::Failed => "failed".into(),
            }),
            "registration" => Some(match self.outcome {
                Outcome::Done => "complete".into(),
                Outcome::Failed => "failed".into(),
            }),
            "boot" => Some(self.facts.boot.to_string()),
            "n" => self.frames.iter().rev().find_map(Frame::number),
            "value" => self.frames.iter().rev().find_map(Frame::value),
            // The last one counts, as in the kernel.
            name => self.facts.words(name.strip_prefix("arg.")?).last().map(str::to_owned),
        }
    }
}

impl Frame {
    /// Starts the next turn, if there is one.
    fn turns_over(&mut self) -> bool {
        let goes_on = match &mut self.kind {
            Kind::Once => false,
            Kind::Repeat { turn, times } => {
                *turn += 1;
                times.is_none_or(|times| *turn <= times)
            }
            Kind::ForEach { values, turn } => {
                *turn += 1;
                *turn < values.len()
            }
        };
        self.at = 0;
        goes_on
    }

    fn number(&self) -> Option<String> {
        match &self.kind {
            Kind::Once => None,
            Kind::Repeat { turn, .. } => Some(turn.to_string()),
            Kind::ForEach { turn, .. } => Some((turn + 1).to_string()),
        }
    }

    fn value(&self) -> Option<String> {
        match &self.kind {
            Kind::ForEach { values, turn } => values.get(*turn).cloned(),
            _ => None,
        }
    }
}

impl Step {
    /// Whether the step gives the ring something to do whatever the command line says.
    fn takes_time(&self) -> bool {
        match self {
            Step::Repeat(Repeat { steps, .. })
            | Step::ForEach(ForEach { steps, .. })
            | Step::When(When { steps, .. }) => steps.iter().any(Step::takes_time),
            _ => true,
        }
    }
}

/// `[    3.141593] `: five digits, a point, six digits, as the kernel's printk writes the time since its start.
pub fn kernel_time(since_start: Duration) -> String {
    format!("[{:>5}.{:06}]", since_start.as_secs(), since_start.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(command_line: &str, boot: u32) -> Facts {
        Facts {
            command_line: command_line.into(),
            mac: "52:54:00:12:34:56".into(),
            address: "10.0.0.9".into(),
            network: "10.0.0.9/24".into(),
            boot,
        }
    }

    /// The acts in words, at most 50 of them.
    fn played(script: &str, facts: Facts) -> Vec<String> {
        let mut player = Player::new(&Script::parse(script).unwrap(), facts);
        let mut acts = Vec::new();
        while acts.len() < 50 {
            acts.push(match player.next() {
                Act::Say(text) | Act::Raw(text) => text,
                Act::Kernel(text) => format!("[t] {text}"),
                Act::Wait(time) => format!("wait {time:?}"),
                Act::Expect(Awaited::Text(text), within) => format!("expect {text} {within:?}"),
                Act::Expect(Awaited::Pattern(regex), within) => format!("expect /{}/ {within:?}", regex.as_str()),
                Act::Fetch(address) => format!("fetch {address}"),
                Act::Post { to, json } => format!("post {to} {json}"),
                Act::End => return acts,
                last => {
                    acts.push(format!("{last:?}"));
                    return acts;
                }
            });
        }
        acts
    }

    #[test]
    fn every_step_is_played_as_it_is_written() {
        let script = "
- say: boot {{ boot }} of {{ mac }} at {{ip}}
- kernel: 'hello'
- cmdline
- wait: 100ms
- expect: 'login:'
- expect: {regex: '^go+$', within: 2s}
- fetch: '{{ arg.url or http://none/ }}'
- repeat: {times: 2, steps: [{say: 'beat {{ n }}'}]}
- for_each: {word: w, steps: [{say: '{{ n }} {{ value }}'}]}
- poweroff
";
        assert_eq!(
            played(script, facts("quiet w=a url=http://x/ w=b", 2)),
            [
                "boot 2 of 52:54:00:12:34:56 at 10.0.0.9",
                "[t] hello",
                "quiet w=a url=http://x/ w=b",
                "wait 100ms",
                "expect login: None",
                "expect /^go+$/ Some(2s)",
                "fetch http://x/",
                "beat 1",
                "beat 2",
                "1 a",
                "2 b",
                "Poweroff",
            ]
        );
    }

    #[test]
    fn steps_may_depend_on_the_boot_and_on_words_of_the_command_line() {
        let script = "
- when: {boot: 1, steps: [{say: first}, reboot]}
- when: {word: quiet, steps: [{say: quiet}]}
- when: {word: end, is: hang, steps: [hang]}
- say: 'end is {{ arg.end or nothing }}'
";
        assert_eq!(played(script, facts("", 1)), ["first", "Reboot"]);
        assert_eq!(played(script, facts("quiet end=hang", 2)), ["quiet", "Hang"]);
        assert_eq!(played(script, facts("end=hang end=off", 2)), ["end is off"]);
        assert_eq!(played(script, facts("quieter", 3)), ["end is nothing"]);
    }

    #[test]
    fn a_repeat_without_a_number_never_ends_and_one_without_work_does() {
        assert_eq!(played("- repeat: {steps: [{say: x}]}", facts("", 1)).len(), 50);
        assert_eq!(played("- repeat: {steps: [{repeat: {steps: []}}]}\n- say: over", facts("", 1)), ["over"]);
        assert_eq!(played("- repeat: {times: '{{ arg.n or 3 }}', steps: [{say: x}]}", facts("n=1", 1)), ["x"]);
        assert_eq!(played("- repeat: {times: '{{ arg.n }}', steps: [{say: x}]}", facts("n=-", 1)).len(), 0);
    }

    #[test]
    fn a_script_that_cannot_be_played_says_what_is_wrong() {
        for (script, error) in [
            ("- wait: soon", "`soon` is not a duration; write `100ms`, `2s` or `1m`"),
            ("- dance", "unknown variant `dance`"),
            ("- when: {steps: []}", "`when` needs `boot` or `word`"),
            ("- when: {boot: 1, is: x, steps: []}", "`when` with `is` needs `word`"),
            ("- repeat: {forever: true, steps: []}", "unknown field `forever`"),
            ("say: x", "invalid type: map, expected a sequence"),
        ] {
            let told = Script::parse(script).unwrap_err().to_string();
            assert!(told.contains(error), "{script}: {told}");
        }
    }

    #[test]
    fn a_line_is_awaited_by_text_or_by_pattern() {
        assert!(Awaited::Text("go".into()).is_met_by(b"let's go"));
        assert!(!Awaited::Text("go".into()).is_met_by(b"g"));
        let Act::Expect(awaited, _) =
            Player::new(&Script::parse("- expect: {regex: '^a\\d$'}").unwrap(), facts("", 1)).next()
        else {
            panic!("expect comes first")
        };
        assert!(awaited.is_met_by(b"a1") && !awaited.is_met_by(b"ba1"));
    }

    #[test]
    fn the_kernels_time_has_twelve_characters_as_ci_trons_patterns_count_them() {
        assert_eq!(kernel_time(Duration::from_micros(3_141_593)), "[    3.141593]");
        assert_eq!(kernel_time(Duration::from_micros(12_345_000_007)), "[12345.000007]");
    }

    #[test]
    fn a_failure_shows_in_the_outcome() {
        let script =
            Script::parse("- fetch: http://a/\n- say: 'job {{ outcome }}'\n- say: 'job {{ outcome }}'").unwrap();
        let mut player = Player::new(&script, facts("", 1));
        player.next();
        assert!(matches!(player.next(), Act::Say(text) if text == "job done"));
        player.failed();
        assert!(matches!(player.next(), Act::Say(text) if text == "job failed"));
    }

    #[test]
    fn the_built_in_script_registers_where_the_command_line_says_so() {
        let acts = played(BUILT_IN, facts("wharf.register=http://10.0.0.1/api/v1/machine/ wharf.beats=0", 1));
        let start = acts.iter().position(|act| act == "SALAD.ping").unwrap();
        let json = "{\"base_name\": \"simulated\", \"mac_address\": \"52:54:00:12:34:56\", \"ip_address\": \"10.0.0.9\", \
                    \"local_tty_device\": \"ttyS0\", \"tags\": [\"arch:x86_64\", \"simulated\"], \"facts\": {\"cpu\": \"none at all\"}}";
        let expected = [
            "SALAD.ping",
            "expect /^SALAD\\.pong/ Some(2s)",
            "SALAD.machine_id=52:54:00:12:34:56",
            &format!("post http://10.0.0.1/api/v1/machine/ {json}"),
            "MaRS: Registration complete",
        ];
        assert_eq!(acts[start..start + 5], expected);
    }

    #[test]
    fn the_built_in_script_does_what_the_command_line_asks() {
        let acts = played(
            BUILT_IN,
            facts("quiet wharf.url=http://a/1 wharf.tftp=tftp://a/2 wharf.url=http://a/3 wharf.beats=1", 1),
        );
        let fetched: Vec<&String> = acts.iter().filter(|act| act.starts_with("fetch ")).collect();
        assert_eq!(fetched, ["fetch http://a/1", "fetch http://a/3", "fetch tftp://a/2"]);
        assert!(acts.contains(&"[t] Kernel command line: quiet wharf.url=http://a/1 wharf.tftp=tftp://a/2 wharf.url=http://a/3 wharf.beats=1".into()));
        assert!(acts.contains(&"wharf: init started".into()) && acts.contains(&"wharf: network 10.0.0.9/24".into()));
        assert!(acts.contains(&"wharf: beat 1".into()) && !acts.contains(&"wharf: beat 2".into()));
        assert_eq!(acts[acts.len() - 3..], ["wharf: job done", "[t] reboot: Power Down", "Poweroff"]);
        let end = |word: &str| played(BUILT_IN, facts(word, 1)).pop().unwrap();
        assert_eq!(end("wharf.end=reboot"), "Reboot");
        assert_eq!(end("wharf.end=hang"), "Hang");
        assert_eq!(end("wharf.end=poweroff"), "Poweroff");
    }
}
