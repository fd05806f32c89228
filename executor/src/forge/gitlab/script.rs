//! A job's `script:` as what a DUT runs: files for it, and the shell script that its small Linux is handed. ◆
//!
//! ```text
//!  /gitlab/script.sh   outer: busybox's shell; [unpacks the image] ─► unpacks the files ─► runs the job ─► sends its results ─► says the end
//!  /gitlab/files.tar   /.wharf/environment   the job's variables               sourced by the next two
//!                      /.wharf/script, after   its steps, each command shown before it runs; by bash where there is one
//!                      /.wharf/keep   which files it wants kept, as regular expressions
//!                      /builds/GROUP/PROJECT   the checkout, and earlier jobs' artifacts over it (checkout.rs)
//!  /gitlab/image.tar   the root file system of `image:` (image.rs)
//! ```
//!
//! | its last line | means |
//! |---|---|
//! | `wharf: script NONCE exit N` | the job's exit status |
//! | `wharf: script NONCE broken WHY` | it was not run, or what it left is lost: not the test's fault |
//!
//! The nonce keeps what a test prints by chance, or of another job's log, from being taken for its end. It is no secret: the script is root
//! on a machine that is its own.

use super::super::script::{is_shell_name, quoted};
use super::ci_tron::Environment;
use super::globs;
use super::variables::path_of_file;
use super::wire::{Job, Step};

/// Where jobs' files are, as in the containers of GitLab's own runner.
pub(super) const BUILDS: &str = "/builds";
/// Where programs are, unless the image says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// In the order in which GitLab's own runner looks for them.
const SHELLS: &str = "/usr/local/bin/bash /usr/bin/bash /bin/bash /usr/local/bin/sh /usr/bin/sh /bin/sh /busybox/sh";

/// What of a container's configuration counts here (OCI image-spec, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Container {
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Goes before the shell.
    pub entrypoint: Vec<String>,
    /// Who runs the script: `USER` or `USER:GROUP`, each a name or a number; `None`: root.
    pub user: Option<String>,
}

/// How a script ended, as the console says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Exit(i32),
    Broken(String),
}

/// The files that the script needs besides the checkout: absolute paths.
pub(super) fn files(job: &Job, environ: &Environment, project_dir: &str) -> Vec<(String, Vec<u8>)> {
    let is_file = |name: &str| job.variables.iter().rev().find(|one| one.key == name).is_some_and(|one| one.file);
    let (mut files, mut environment) = (Vec::new(), String::new());
    for (name, value) in environ.iter().filter(|(name, _)| is_shell_name(name)) {
        if is_file(name) {
            let path = path_of_file(project_dir, name);
            environment.push_str(&format!("export {name}={}\n", quoted(&path)));
            files.push((path, value.clone().into_bytes()));
        } else {
            environment.push_str(&format!("export {name}={}\n", quoted(value)));
        }
    }
    let is_after = |step: &&Step| step.name == "after_script";
    let (after, before): (Vec<&Step>, Vec<&Step>) = job.steps.iter().partition(is_after);
    let cached = job.cache.iter().filter(|entry| entry.pushes()).map(|entry| (&entry.paths, entry.untracked));
    let kept = job.artifacts.iter().map(|entry| (&entry.paths, entry.untracked)).chain(cached);
    let keep = kept.flat_map(|(paths, untracked)| match untracked {
        true => vec!["^.*$".to_owned()],
        false => paths.iter().filter_map(|path| globs::expression(path, project_dir)).collect(),
    });
    let keep: String = keep.map(|line| line + "\n").collect();
    let shows = if job.is_debugged() { Shows::AllThatIsDone } else { Shows::Commands };
    files.push(("/.wharf/environment".to_owned(), environment.into_bytes()));
    files.push(("/.wharf/script".to_owned(), commands(&before, shows).into_bytes()));
    if !after.is_empty() {
        files.push(("/.wharf/after".to_owned(), commands(&after, shows).into_bytes()));
    }
    if !keep.is_empty() {
        files.push(("/.wharf/keep".to_owned(), keep.into_bytes()));
    }
    files
}

/// What a script says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// Each command as it is written.
    Commands,
    /// What becomes of it, too (`set -x`).
    AllThatIsDone,
}

/// A shell's script of these steps, stopping at the first command that fails.
fn commands(steps: &[&Step], shows: Shows) -> String {
    let lines = steps.iter().flat_map(|step| &step.script);
    let shown = lines.map(|line| format!("echo {}\n{line}\n", quoted(&format!("\x1b[32;1m$ {line}\x1b[0m"))));
    let begin =
        ". /.wharf/environment\ncd \"$CI_PROJECT_DIR\"\n(set -o pipefail) 2>/dev/null && set -o pipefail\nset -e\n";
    let traced = if shows == Shows::AllThatIsDone { "set -x\n" } else { "" };
    [begin, traced].map(str::to_owned).into_iter().chain(shown).collect()
}

/// What the small Linux is handed: the job's text puts `WHARF_HTTP` and `WHARF_RESULTS` before it.
pub(super) fn outer(project_dir: &str, nonce: &str, container: Option<&Container>) -> String {
    let none = Container::default();
    let Container { environment, entrypoint, user } = container.unwrap_or(&none);
    let words = |all: &[String]| all.iter().map(|word| format!(" {}", quoted(word))).collect::<String>();
    let has_path = environment.iter().any(|pair| pair.starts_with("PATH="));
    let path = if has_path { String::new() } else { format!(" PATH={PATH}") };
    let root = match container {
        None => "root=\n".to_owned(),
        Some(_) => ROOT_OF_IMAGE.to_owned(),
    };
    let project = quoted(project_dir);
    let become_user = user.as_ref().map(|user| BECOME_USER.replace("USER", &quoted(user)).replace("PROJECT", &project));
    let command = match (user, entrypoint.split_first()) {
        (None, _) => format!("{} \"$shell\" \"$2\"", words(entrypoint)),
        (Some(_), None) => format!(" {AS_USER} -a \"$shell\" -- \"$2\""),
        (Some(_), Some((first, rest))) => {
            format!(" {AS_USER} -a {} --{} \"$shell\" \"$2\"", quoted(first), words(rest))
        }
    };
    format!(
        "rm -f \"$0\"\nset -o pipefail\n\
         end() {{ printf '\\nwharf: script {nonce} exit %s\\n' \"$1\"; exit \"$1\"; }}\n\
         broken() {{ printf '\\nwharf: script {nonce} broken %s\\n' \"$1\"; exit 1; }}\n\
         {root}\
         mkdir -p \"$root\"{project} \"$root\"{project}.tmp\n\
         wget -q -O - \"$WHARF_HTTP/gitlab/files.tar\" | tar -x -C \"$root/\" || broken 'the files of the job cannot be fetched'\n\
         for shell in {SHELLS} none; do chroot \"$root/\" \"$shell\" -c : 2>/dev/null && break; done\n\
         [ \"$shell\" != none ] || {{ echo 'The image has neither bash nor sh for this machine'; end 127; }}\n\
         home=/root\n{become_user}\
         run() {{ env -i{path} HOME=\"$home\" TERM=dumb CI_JOB_STATUS=\"$1\"{environment} /bin/chroot \"$root/\"{command} </dev/null; }}\n\
         run running /.wharf/script\ncode=$?\n\
         status=success\n[ $code = 0 ] || status=failed\n\
         [ ! -e \"$root/.wharf/after\" ] || run $status /.wharf/after\n\
         cd \"$root\"{project} || end $code\n{RESULTS}end $code\n",
        environment = words(environment),
        become_user = become_user.unwrap_or_default(),
    )
}

/// busybox's own way to be somebody else in another root: with the groups that the image gives him, and for as long as nothing has the
/// process id of a file that is not there.
const AS_USER: &str = "/.wharf/busybox start-stop-daemon -S -q -p /.wharf/none -c \"$user\"";

/// A number without a name gets one, as container engines do. The job's files are his; what is shown on the console he may write there, too.
const BECOME_USER: &str = r#"user=USER
id=${user%%:*}
passwd=$root/etc/passwd
case $id in
*[!0-9]*) ;;
*) grep -q "^[^:]*:[^:]*:$id:" "$passwd" 2>/dev/null || printf '
wharf:x:%s:0::/:
' "$id" >>"$passwd" ;;
esac
home=$(awk -F: -v id="$id" '$1 == id || $3 == id { print $6; exit }' "$passwd")
[ -n "$home" ] || broken "the image has no user $id"
cp /bin/busybox "$root/.wharf/busybox" && chroot "$root/" /.wharf/busybox chown -R -h "$user" /.wharf PROJECT PROJECT.tmp ||
    broken "the job's files cannot be given to the user $user"
chmod a+rw "$(readlink -f /proc/$$/fd/1)"
"#;

/// Unpacks the image into memory; half of it is what a tmpfs has by default, and the rest would lie idle.
const ROOT_OF_IMAGE: &str = r#"root=/image
mkdir -p $root
mount -t tmpfs -o mode=755,size=90% image $root || broken 'there is no memory for the image'
echo 'Unpacking the image'
wget -q -O - "$WHARF_HTTP/gitlab/image.tar" | tar -x -C $root || broken 'the image cannot be unpacked: does it fit the memory?'
mkdir -p $root/proc $root/sys $root/dev $root/tmp $root/etc $root/root
chmod 1777 $root/tmp
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -o bind /dev $root/dev
ln -sfn /proc/self/fd $root/dev/fd
for name in 0stdin 1stdout 2stderr; do ln -sf /proc/self/fd/${name%%std*} $root/dev/${name#?}; done
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts devpts $root/dev/pts 2>/dev/null
mount -t tmpfs shm $root/dev/shm
[ -e $root/etc/hosts ] || echo '127.0.0.1 localhost' >$root/etc/hosts
[ ! -e /etc/resolv.conf ] || cp /etc/resolv.conf $root/etc/resolv.conf
"#;

/// Sends what the job wants kept to its bucket. busybox's wget has no PUT; nc ends when the farm has answered and closes, and until then
/// its input stays open: a client that is silent for good is taken for one that has gone.
const RESULTS: &str = r#"if [ -s "$root/.wharf/keep" ] && find . -type f -o -type l | sed 's,^\./,,' | grep -E -f "$root/.wharf/keep" | sed 's,^,./,' >/tmp/wharf-list; then
    # A command has 2 MiB for its arguments (execve(2)); the farm chooses once more.
    [ "$(wc -c </tmp/wharf-list)" -lt 1000000 ] || echo . >/tmp/wharf-list
    (
        IFS='
'
        set -f
        tar -c -z -f /tmp/wharf-results $(cat /tmp/wharf-list)
    ) || gunzip -t </tmp/wharf-results 2>/dev/null || {
        [ $code != 0 ] || broken "the job's files cannot be packed: is there memory for them?"
    }
    rest=${WHARF_RESULTS#http://}
    host=${rest%%/*}
    mkfifo /tmp/wharf-open
    {
        printf 'PUT /%s HTTP/1.1\r\nHost: %s\r\nContent-Length: %s\r\nConnection: close\r\n\r\n' "${rest#*/}" "$host" "$(wc -c </tmp/wharf-results)"
        cat /tmp/wharf-results /tmp/wharf-open
    } | { nc "${host%:*}" "${host##*:}" >/tmp/wharf-answer; : >/tmp/wharf-open & }
    read -r _ answer _ </tmp/wharf-answer
    [ "$answer" = 200 ] || {
        echo "The files of the job could not be sent:"
        cat /tmp/wharf-answer
        [ $code != 0 ] || broken "the job's files were not taken${answer:+: HTTP status $answer}"
    }
fi
"#;

/// How the script of this nonce ended, by the last line that says so.
pub(super) fn end(console: &str, nonce: &str) -> Option<Said> {
    let begin = format!("wharf: script {nonce} ");
    console.lines().rev().find_map(|line| match line.trim().strip_prefix(&begin)?.split_once(' ')? {
        ("exit", code) => code.parse().ok().map(Said::Exit),
        ("broken", why) => Some(Said::Broken(why.to_owned())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forge::gitlab::wire::{Artifacts, Variable};

    fn job(steps: &[(&str, &[&str])]) -> Job {
        let step = |(name, script): &(&str, &[&str])| Step {
            name: (*name).to_owned(),
            script: script.iter().map(|line| (*line).to_owned()).collect(),
            when: String::new(),
        };
        Job { steps: steps.iter().map(step).collect(), ..Job::default() }
    }

    /// What a shell says of a job's files, with another folder in the place of `/.wharf`.
    fn run(folder: &std::path::Path, files: &[(String, Vec<u8>)], which: &str) -> (Option<i32>, String) {
        for (path, bytes) in files {
            let text = String::from_utf8(bytes.clone()).unwrap();
            let text = text.replace("/.wharf/", &format!("{}/", folder.display()));
            std::fs::write(folder.join(path.rsplit('/').next().unwrap()), text).unwrap();
        }
        let output = std::process::Command::new("sh").arg(folder.join(which)).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn a_script_runs_in_a_shell_with_its_variables_and_its_exit_status() {
        let folder = tempfile::tempdir().unwrap();
        let mut job =
            job(&[("script", &["echo \"$GREETING\"", "exit 7", "echo never"]), ("after_script", &["cat \"$CERT\""])]);
        job.variables = vec![Variable { key: "CERT".into(), file: true, ..Variable::default() }];
        let project = folder.path().to_str().unwrap();
        let environ: Environment = [
            ("GREETING", "it's {{ me }}"),
            ("not-a-name", "x"),
            ("CI_PROJECT_DIR", project),
            ("CERT", "line 1\nline 2\n"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let files = files(&job, &environ, project);
        assert_eq!(files[0], (format!("{project}.tmp/CERT"), b"line 1\nline 2\n".to_vec()));
        let expected = "\x1b[32;1m$ echo \"$GREETING\"\x1b[0m\nit's {{ me }}\n\x1b[32;1m$ exit 7\x1b[0m\n";
        assert_eq!(run(folder.path(), &files, "script"), (Some(7), expected.to_owned()));
        let environment = std::fs::read_to_string(folder.path().join("environment")).unwrap();
        assert!(environment.contains(&format!("export CERT='{project}.tmp/CERT'\n")), "{environment}");
    }

    #[test]
    fn a_debugged_script_shows_what_becomes_of_its_commands() {
        let mut job = job(&[("script", &["true $A"])]);
        let shows = |job: &Job| String::from_utf8(files(job, &Environment::new(), "/b").pop().unwrap().1).unwrap();
        assert!(!shows(&job).contains("set -x"));
        job.variables = vec![Variable { key: "CI_DEBUG_TRACE".into(), value: "true".into(), ..Variable::default() }];
        assert!(shows(&job).contains("\nset -e\nset -x\necho "), "{}", shows(&job));
    }

    /// What the machine says when its files are answered so, after a script with this exit status.
    fn sends_results(code: u32, answer: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let beside = |text: &str| text.replace("/tmp/wharf-", &format!("{}/", folder.path().display()));
        std::fs::create_dir_all(folder.path().join("root/.wharf")).unwrap();
        std::fs::write(folder.path().join("root/.wharf/keep"), "^out(/.*)?$\n").unwrap();
        std::fs::write(folder.path().join("root/out"), "some").unwrap();
        let script = format!(
            "cd {}/root\nroot=$PWD code={code} WHARF_RESULTS=http://127.0.0.1:9/b/results\n\
             broken() {{ echo \"broken $1\"; exit 1; }}\n\
             nc() {{ exec 3<&0; cat <&3 >/dev/null & printf '{answer}'; }}\n{}echo exit $code\n",
            folder.path().display(),
            beside(RESULTS)
        );
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_script_that_passed_does_not_pass_when_its_files_are_lost() {
        assert_eq!(sends_results(0, "HTTP/1.1 200 OK\\r\\n"), "exit 0\n");
        let full = "HTTP/1.1 507 Full\\r\\n";
        let said = "The files of the job could not be sent:\nHTTP/1.1 507 Full\r\n";
        assert_eq!(sends_results(0, full), format!("{said}broken the job's files were not taken: HTTP status 507\n"));
        assert_eq!(sends_results(3, full), format!("{said}exit 3\n"));
        assert!(sends_results(0, "").ends_with("broken the job's files were not taken\n"));
    }

    #[test]
    fn what_is_kept_is_told_as_expressions() {
        let mut job = job(&[]);
        let entry = |paths: &[&str], untracked| Artifacts {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            untracked,
            ..Artifacts::default()
        };
        let keep = |job: &Job| files(job, &Environment::new(), "/builds/g/p").pop().unwrap();
        assert_eq!(keep(&job).0, "/.wharf/script");
        job.artifacts = vec![entry(&["out/*.log", "/builds/g/p/junit.xml"], false)];
        let expected = "^out/[^/]*\\.log(/.*)?$\n^junit\\.xml(/.*)?$\n";
        assert_eq!(keep(&job), ("/.wharf/keep".to_owned(), expected.as_bytes().to_vec()));
        job.artifacts = vec![entry(&[], true)];
        assert_eq!(keep(&job).1, b"^.*$\n");
    }

    #[test]
    fn the_outer_script_is_one_that_a_shell_can_read() {
        let container = Container {
            environment: vec!["PATH=/usr/bin".into(), "IT=it's".into()],
            entrypoint: vec!["/entry point".into()],
            user: None,
        };
        let of_user = Container { user: Some("me:users".into()), ..container.clone() };
        for container in [None, Some(&container), Some(&of_user)] {
            let text = outer("/builds/it's/p", "n0", container);
            let output = std::process::Command::new("sh").args(["-n", "-c", &text]).output().unwrap();
            assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
        }
        let text = outer("/builds/g/p", "n0", Some(&container));
        assert!(text.contains(
            "env -i HOME=\"$home\" TERM=dumb CI_JOB_STATUS=\"$1\" 'PATH=/usr/bin' 'IT=it'\\''s' /bin/chroot \"$root/\" '/entry point' \"$shell\" \"$2\""
        ), "{text}");
        let text = outer("/builds/g/p", "n0", Some(&of_user));
        assert!(
            text.contains("-c \"$user\" -a '/entry point' -- \"$shell\" \"$2\" </dev/null")
                && text.contains("user='me:users'\n"),
            "{text}"
        );
    }

    #[test]
    fn its_end_is_the_last_line_with_its_nonce() {
        assert_eq!(end("x\r\nwharf: script a exit 3\r\nwharf: script b exit 0\r\n", "a"), Some(Said::Exit(3)));
        assert_eq!(end("wharf: script a broken no files\r\n", "a"), Some(Said::Broken("no files".into())));
        assert_eq!(end("wharf: command exit 0\n", "a"), None);
    }
}
