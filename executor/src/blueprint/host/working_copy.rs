//! What is said to a host's shell: a fresh folder, a command in it, the end of everything that was started, no folder. ◆
//!
//! ```text
//!  <folder>/<farm>/<lease>/           the working copy; commands begin in it, paths of files are relative to it
//!  WHARF_COPY=<farm>/<lease>/         in the environment of everything that was started there, so that it is found again
//!  WHARF_COMMAND=<farm>/<lease>/<n>/  the same, of one command
//! ```
//! A process is known by its environment and not by its number, which may be another's by now; so what put itself into the background is
//! found, too. That takes Linux's `/proc`; where there is none, and for what cleans its own environment, only the connection's end ends it.

use crate::ssh::command::quoted;

/// How long what is asked to end (SIGTERM) may take to clean up before it has to (SIGKILL).
pub const TERM_GRACE_S: u32 = 5;

/// Where the things of one lease are on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingCopy {
    /// The folder of all farms, absolute or beneath the user's home.
    pub folder: String,
    /// The farm.
    pub farm: String,
    /// The lease.
    pub lease: String,
}

impl WorkingCopy {
    /// Its path, absolute or beneath the user's home.
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.folder.trim_end_matches('/'), self.farm, self.lease)
    }

    /// What prints its absolute path: SFTP need not begin in the user's home.
    pub fn find(&self) -> String {
        format!("cd && cd -- {} && pwd -P", quoted(&self.path()))
    }

    /// A fresh one; what is left of an earlier attempt goes first.
    pub fn make(&self) -> String {
        let path = quoted(&self.path());
        format!("umask 077; cd && {} && mkdir -p -- {path} && cd -- {path} && uname -sm", self.remove())
    }

    /// What makes it where it is not there yet, on a machine that nobody prepared.
    pub fn need(&self) -> String {
        format!("umask 077; cd && mkdir -p -- {}", quoted(&self.path()))
    }

    /// What runs a command in it. `number` tells it from the lease's other commands.
    pub fn run(&self, number: u64, argv: &[String]) -> String {
        let words: Vec<_> = argv.iter().map(|word| quoted(word)).collect();
        let script = format!(
            "cd && cd -- {} || exit 125; WHARF_COPY={} WHARF_COMMAND={}; export WHARF_COPY WHARF_COMMAND; exec {}",
            quoted(&self.path()),
            self.mark(),
            self.mark_of(number),
            words.join(" ")
        );
        // Whatever the user's own shell is.
        format!("exec /bin/sh -c {}", quoted(&script))
    }

    /// What ends a command and all that it started.
    pub fn end(&self, number: u64) -> String {
        end(&format!("WHARF_COMMAND={}", self.mark_of(number)))
    }

    /// What ends everything and leaves nothing. It fails while something is left.
    pub fn wipe(&self) -> String {
        format!("{}; cd && {}", end(&format!("WHARF_COPY={}", self.mark())), self.remove())
    }

    fn remove(&self) -> String {
        let path = quoted(&self.path());
        // A folder that nobody may write to cannot be emptied, though it is ours.
        format!("{{ [ ! -e {path} ] || {{ chmod -R u+rwX -- {path} 2>/dev/null; rm -rf -- {path}; }}; }}")
    }

    fn mark(&self) -> String {
        format!("{}/{}/", self.farm, self.lease)
    }

    fn mark_of(&self, number: u64) -> String {
        format!("{}{number}/", self.mark())
    }
}

/// The command that checks a git repository out into the working copy. A server that gives no single commit gives all of them.
pub fn checkout(url: &str, reference: &str) -> Vec<String> {
    let script = "git init -q . && if git fetch -q --depth 1 -- \"$1\" \"$2\" 2>/dev/null; then git checkout -q --detach FETCH_HEAD; \
                  else git fetch -q -- \"$1\" '+refs/*:refs/wharf/*' && git checkout -q --detach \"$2\"; fi";
    ["sh", "-c", script, "sh", url, reference].map(str::to_owned).to_vec()
}

fn end(mark: &str) -> String {
    let mark = quoted(mark);
    // The mark is never in our own environment, so we do not end ourselves.
    format!(
        "mark={mark}; found() {{ grep -lsF -- \"$mark\" /proc/[0-9]*/environ; }}; \
         all() {{ found | while IFS=/ read -r _ _ number _; do kill -s \"$1\" \"$number\" 2>/dev/null; done; }}; \
         all TERM; waited=0; while [ $waited -lt {TERM_GRACE_S} ] && [ -n \"$(found)\" ]; do sleep 1; waited=$((waited + 1)); done; \
         tries=0; while [ $tries -lt 20 ] && [ -n \"$(found)\" ]; do all KILL; tries=$((tries + 1)); done; :"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy() -> WorkingCopy {
        WorkingCopy { folder: ".wharf".into(), farm: "lab".into(), lease: "lease-1".into() }
    }

    #[test]
    fn a_command_keeps_its_words_and_carries_its_mark() {
        let argv = ["sh", "-c", "echo $HOME; exit 3"].map(str::to_owned);
        assert_eq!(
            copy().run(7, &argv),
            r"exec /bin/sh -c 'cd && cd -- .wharf/lab/lease-1 || exit 125; WHARF_COPY=lab/lease-1/ WHARF_COMMAND=lab/lease-1/7/; export WHARF_COPY WHARF_COMMAND; exec sh -c '\''echo $HOME; exit 3'\'''"
        );
    }

    /// Our own shell is a host, too.
    #[test]
    fn a_shell_makes_runs_ends_and_wipes_as_it_is_told() {
        let home = tempfile::tempdir().unwrap();
        let shell = |script: &str| {
            let mut shell = std::process::Command::new("sh");
            shell.arg("-c").arg(script).env("HOME", home.path()).output().unwrap()
        };
        let farm = format!("lab-{}", std::process::id());
        let copy = WorkingCopy { farm, ..copy() };
        assert!(shell(&copy.make()).status.success());
        let argv = ["sh", "-c", "echo left > file; chmod 500 .; (sleep 600 &) ; pwd"].map(str::to_owned);
        let ran = shell(&copy.run(1, &argv).replace("600 &", "600 >/dev/null 2>&1 &"));
        assert!(String::from_utf8_lossy(&ran.stdout).trim_end().ends_with(&copy.path()), "{ran:?}");
        let mark = format!("WHARF_COPY={}", copy.mark());
        let found = || !shell(&format!("grep -lsF -- {mark} /proc/[0-9]*/environ")).stdout.is_empty();
        assert!(found(), "what went into the background is not found");
        assert!(shell(&copy.wipe()).status.success());
        assert!(!found() && !home.path().join(copy.path()).exists());
    }
}
