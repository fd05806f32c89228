//! Hosts by a real openssh-server in a namespace: commands, files, keys, and whatever goes wrong; nothing is left on the host.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bench::{Bench, Surroundings, may_mount, need_programs, until};
use tests::lab::{Lab, Running};

use crate::farms::{WHARF, linux_job};
use crate::ssh_guests::{STEPS, expect_steps};

/// What a loaded machine needs for some logins.
const SOON: Duration = Duration::from_secs(30);
const SSHD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2222);

/// A host, and a farm beside it in the same namespace.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    lab: Arc<Lab>,
    host: Option<Running>,
    farm: Option<Bench>,
}

impl Site {
    /// `more`: further entries of `hosts`, where `SSH` stands for how to log in.
    pub(crate) fn new(more: &str) -> Site {
        need_programs(&[("/usr/sbin/sshd", "openssh-server"), ("ssh-keygen", "openssh-client"), ("git", "git")]);
        need_programs(&[("/usr/lib/openssh/sftp-server", "openssh-sftp-server")]);
        let folder = tempfile::tempdir().unwrap();
        for name in ["host", "id", "other"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.path().join(name));
            assert!(keygen.status().unwrap().success());
        }
        let mut site = Site { lab: Arc::new(Lab::new().unwrap()), folder, host: None, farm: None };
        site.start_host();
        let says = format!("- cmdline\n- say: {}\n- say: 'ssh: ready'\n- hang\n", site.public_key("host"));
        fs::write(site.path("open.yml"), says).unwrap();
        let farm = site.farm_file(more);
        let surroundings = Surroundings { lab: Some(Arc::clone(&site.lab)), ..Surroundings::default() };
        site.farm = Some(Bench::start_with(WHARF, &farm, surroundings));
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn public_key(&self, name: &str) -> String {
        let line = fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        line.split(' ').take(2).collect::<Vec<_>>().join(" ")
    }

    /// openssh-server in the foreground; its sessions end with it. `small` is a disk of 1 MB that only it sees, where that may be.
    fn start_host(&mut self) {
        fs::create_dir_all("/run/sshd").expect("sshd wants its folder, and we are root");
        fs::create_dir_all(self.path("small")).unwrap();
        fs::copy(self.path("id.pub"), self.path("authorized")).unwrap();
        let config = format!(
            "Port 2222\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\n\
             UsePAM no\nStrictModes no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
            self.folder.path().display()
        );
        fs::write(self.path("sshd_config"), config).unwrap();
        let script = "mount -t tmpfs -o size=1m small-disk \"$1\"; exec /usr/sbin/sshd -D -e -f \"$2\"";
        let command = if may_mount().is_ok() {
            let mut command = self.lab.command("unshare").unwrap();
            command.args(["--mount", "sh", "-c", script, "sh"]).arg(self.path("small")).arg(self.path("sshd_config"));
            command
        } else {
            let mut command = self.lab.command("/usr/sbin/sshd").unwrap();
            command.args(["-D", "-e", "-f"]).arg(self.path("sshd_config"));
            command
        };
        let mut host = Running::spawn("sshd", command, &self.path("sshd.log")).unwrap();
        self.lab.wait_for_tcp(SSHD, &mut host).unwrap();
        self.host = Some(host);
    }

    /// What the DUT called `open` has booted, which is in our folder instead of root's, and lets this key in. What is in `own` it does not
    /// share with us, where that may be.
    pub(crate) fn start_dut(&self, key: &str, own: Option<&Path>) -> Running {
        fs::write(self.path("authorized-there"), key).unwrap();
        let config = format!(
            "Port 22\nListenAddress 127.0.0.12\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized-there\nPidFile none\n\
             UsePAM no\nStrictModes no\nPermitRootLogin yes\nSubsystem sftp /usr/lib/openssh/sftp-server\n\
             ForceCommand export HOME={0}; cd; exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
            self.folder.path().display()
        );
        fs::write(self.path("sshd_config_there"), config).unwrap();
        let script = "[ -z \"$2\" ] || mount -t tmpfs own \"$2\"; exec /usr/sbin/sshd -D -e -f \"$1\"";
        let mut command = self.lab.command(if own.is_some() { "unshare" } else { "env" }).unwrap();
        command
            .args(own.map(|_| "--mount"))
            .args(["sh", "-c", script, "sh"])
            .arg(self.path("sshd_config_there"))
            .args(own);
        let mut dut = Running::spawn("sshd", command, &self.path("sshd-there.log")).unwrap();
        self.lab.wait_for_tcp(SocketAddr::from(([127, 0, 0, 12], 22)), &mut dut).unwrap();
        dut
    }

    /// The host is gone with all connections to it.
    fn stop_host(&mut self) {
        let host = self.host.take().expect("it runs");
        for process in descendants(host.id()).into_iter().filter(|(_, name)| name.starts_with("sshd")) {
            let number = Pid::from_raw(i32::try_from(process.0).expect("process ids are small"));
            let _ = kill(number, Signal::SIGKILL);
        }
    }

    fn farm_file(&self, more: &str) -> String {
        let folder = self.folder.path().display();
        let ssh = |host_key: &str| {
            format!(
                "ssh: {{user: root, port: 2222, key: {folder}/id, host_key: '{host_key}'}}, folder: {folder}/copies"
            )
        };
        format!(
            "name: lab\nnetwork: {{loopback: {{}}}}\nduts:\n\
             - {{id: sim, mac: '52:54:00:00:00:01', address: 127.0.0.11, tags: [sim], machine: {{simulated: {{}}}}}}\n\
             - {{id: open, mac: '52:54:00:00:00:02', address: 127.0.0.12, tags: [open], machine: {{simulated: {{console: \
             {folder}/open.yml}}}}}}\nhosts:\n\
             - {{name: builder, address: 127.0.0.1, {}, os: debian, arch: x86_64, seats: 4}}\n{}",
            ssh(&self.public_key("host")),
            more.replace("OTHER", &ssh(&self.public_key("other")))
        )
    }

    pub(crate) fn farm(&self) -> &Bench {
        self.farm.as_ref().expect("it runs")
    }

    fn wharf(&self, words: &[&str]) -> Command {
        let mut command = Command::new(WHARF);
        command.args(words).env("WHARF_SERVER", self.farm().local_socket()).stdin(Stdio::null());
        command
    }

    fn says(&self, words: &[&str]) -> Said {
        let Output { status, stdout, stderr } = self.wharf(words).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Said { status: status.code(), out: text(&stdout), errors: text(&stderr) }
    }

    /// A lease that nobody has to keep, once it can be used.
    fn lease(&self) -> String {
        let id = self.says(&["lease", "take", "--host", "--detach"]).out.trim().to_owned();
        let is_active = || {
            let lease = self.farm().get(&format!("/api/v1/leases/{id}")).json();
            Some(()).filter(|()| lease["state"] == "active")
        };
        until(SOON, is_active)
            .unwrap_or_else(|| panic!("{:#}", self.farm().get(&format!("/api/v1/leases/{id}")).json()));
        id
    }

    /// Working copies that there are.
    fn copies(&self) -> Vec<String> {
        let found = fs::read_dir(self.path("copies/lab")).into_iter().flatten();
        found.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Processes that carry this in their environment.
    fn processes_with(&self, mark: &str) -> usize {
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let environments = processes.filter_map(|entry| fs::read(entry.path().join("environ")).ok());
        environments.filter(|environment| contains(environment, mark.as_bytes())).count()
    }
}

/// What a process has started, and that in turn: numbers and names. sshd puts every connection into a session of its own.
fn descendants(of: u32) -> Vec<(u32, String)> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let number: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{number}/status")).ok()?;
        let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        Some((number, field("PPid:")?.parse::<u32>().ok()?, field("Name:")?))
    });
    let processes: Vec<_> = processes.collect();
    let mut found = vec![(of, "sshd".to_owned())];
    let mut next = 0;
    while let Some((parent, _)) = found.get(next) {
        let children = processes.iter().filter(|(_, other, _)| other == parent);
        let children: Vec<_> = children.map(|(number, _, name)| (*number, name.clone())).collect();
        found.extend(children);
        next += 1;
    }
    found
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

/// What a command of ours said.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    out: String,
    errors: String,
}

impl Said {
    #[track_caller]
    fn expect(&self, status: i32, out: &str) {
        assert_eq!((self.status, self.out.as_str()), (Some(status), out), "{}", self.errors);
    }
}

fn random_file(path: &Path, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut content).unwrap();
    fs::write(path, &content).unwrap();
    content
}

#[test]
fn a_command_runs_on_a_host_found_by_its_tags_and_nothing_is_left_there() {
    let site = Site::new("");
    let script = "pwd; echo told >&2; cat; mkdir -p x/y; echo kept > x/y/z; chmod 500 x/y; exit 7";
    let said = site.says(&["host", "run", "--tag", "os:debian", "--tag", "arch:x86_64", "--", "sh", "-c", script]);
    let Some(lease) = said.out.trim().rsplit('/').next().map(str::to_owned) else { panic!("{said:?}") };
    said.expect(7, &format!("{}\n", site.path("copies/lab").join(&lease).display()));
    assert!(said.errors.contains("you have lab-builder") && said.errors.contains("told"), "{said:?}");
    assert_eq!(site.copies(), [""; 0]);
    let killed = site.says(&["host", "run", "--", "sh", "-c", "kill -KILL $$"]);
    killed.expect(137, "");
    let none = site.says(&["host", "run", "--tag", "os:plan9", "--", "true"]);
    none.expect(70, "");
    assert!(none.errors.contains("lab-builder lacks"), "{none:?}");
    let unknown = site.says(&["host", "run", "--on", "bilder", "--", "true"]);
    assert!(unknown.errors.contains("no host `bilder`; hosts: builder"), "{unknown:?}");
}

#[test]
fn files_and_a_checkout_are_the_same_at_both_ends() {
    let site = Site::new("");
    let content = random_file(&site.path("big"), 20_000_000);
    let repository = site.path("repository");
    let script = "git init -q -b main \"$0\" && cd \"$0\" && echo one > file && git add file && \
                  git -c user.name=a -c user.email=a@b commit -qm one && git tag first && echo two > file && \
                  git -c user.name=a -c user.email=a@b commit -qam two";
    assert!(Command::new("sh").args(["-c", script]).arg(&repository).status().unwrap().success());
    let (put, get) = (format!("{}:in", site.path("big").display()), format!("in:{}", site.path("back").display()));
    let checkout = format!("file://{}#first", repository.display());
    let words = ["host", "run", "--checkout", &checkout, "--put", &put, "--get", &get, "--", "cat", "file"];
    site.says(&words).expect(0, "one\n");
    assert!(fs::read(site.path("back")).unwrap() == content);

    let lease = site.lease();
    let big = site.path("big");
    let no_folder = site.says(&["host", "put", "--lease", &lease, big.to_str().unwrap(), "nowhere/x"]);
    no_folder.expect(70, "");
    assert!(no_folder.errors.contains("its folder is not there; `mkdir -p` it first"), "{no_folder:?}");
    let missing = site.says(&["host", "get", "--lease", &lease, "missing", "/dev/null"]);
    assert!(missing.errors.contains("missing`: no such file"), "{missing:?}");
    if may_mount().is_ok() {
        let full = site.path("small/x");
        let full = site.says(&["host", "put", "--lease", &lease, big.to_str().unwrap(), full.to_str().unwrap()]);
        full.expect(70, "");
        assert!(full.errors.contains("its disk is full"), "{full:?}");
    }
    let path = format!("/api/v1/leases/{lease}/file?path=x");
    let announced = format!("X-SHA256: {}\r\n", "0".repeat(64));
    let lied = site.farm().ask("PUT", &path, &announced, b"something else");
    assert!(lied.text().contains("and was announced as 0000"), "{lied:?}");
    assert_eq!(site.farm().ask("PUT", &path, "", b"x").json()["bytes"], 1);
    site.says(&["host", "run", "--lease", &lease, "--", "ls"]).expect(0, "x\n");
    site.says(&["lease", "release", &lease]).expect(0, "");
    assert_eq!(site.copies(), [""; 0]);
    let over = site.says(&["host", "run", "--lease", &lease, "--", "true"]);
    assert!(over.errors.contains("is over"), "{over:?}");
}

#[test]
fn a_command_that_never_ends_is_ended_with_all_that_it_started() {
    let site = Site::new("");
    let lease = site.lease();
    let script = "trap '' TERM; (trap '' TERM; sleep 1000) & echo started; while :; do sleep 1; done";
    let late = site.says(&["host", "run", "--lease", &lease, "--timeout", "2 s", "--", "sh", "-c", script]);
    late.expect(124, "started\n");
    assert_eq!(site.processes_with(&format!("WHARF_COPY=lab/{lease}/")), 0);
    // What put itself into the background belongs to the lease, and goes with it.
    let script = "sleep 1000 >/dev/null 2>&1 & echo started";
    site.says(&["host", "run", "--lease", &lease, "--", "sh", "-c", script]).expect(0, "started\n");
    assert_eq!(site.processes_with(&format!("WHARF_COPY=lab/{lease}/")), 1);
    // Somebody who hangs up ends what he started, and only that.
    let mut gone = site.wharf(&["host", "run", "--lease", &lease, "--", "sleep", "2000"]);
    let mut gone = gone.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let so_many = |count| move |found: usize| Some(()).filter(|()| found == count);
    until(SOON, || so_many(2)(site.processes_with(&format!("WHARF_COPY=lab/{lease}/")))).expect("it runs");
    gone.kill().unwrap();
    gone.wait().unwrap();
    until(SOON, || so_many(1)(site.processes_with(&format!("WHARF_COPY=lab/{lease}/")))).expect("it was ended");
    site.says(&["lease", "release", &lease]).expect(0, "");
    assert_eq!(site.processes_with(&format!("WHARF_COPY=lab/{lease}/")), 0);
}

#[test]
fn a_command_that_floods_is_heard_to_its_last_byte_and_no_memory_is_spent_on_it() {
    let site = Site::new("");
    let said = site.wharf(&["host", "run", "--", "sh", "-c", "yes wharf | head -c 60000000"]).output().unwrap();
    assert_eq!((said.status.code(), said.stdout.len()), (Some(0), 60_000_000));
    assert!(said.stdout.chunks(6).all(|line| line == b"wharf\n"));
    assert!(site.farm().memory_bytes_max() < 150_000_000, "{}", site.farm().memory_bytes_max());
}

#[test]
fn a_host_that_shows_another_key_is_refused_with_both_fingerprints() {
    let site = Site::new("- {name: stranger, address: 127.0.0.1, OTHER}\n");
    let refused = site.says(&["host", "run", "--on", "stranger", "--", "true"]);
    refused.expect(70, "");
    let fingerprint = |name: &str| {
        let told = Command::new("ssh-keygen").arg("-lf").arg(site.path(&format!("{name}.pub"))).output().unwrap();
        String::from_utf8(told.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
    };
    let expected = format!(
        "stranger (root@127.0.0.1:2222) shows the host key ssh-ed25519 {}, which is not pinned; pinned: ssh-ed25519 {}.",
        fingerprint("host"),
        fingerprint("other")
    );
    assert!(refused.errors.contains(&expected), "{refused:?}\nnot: {expected}");
    assert_eq!(site.copies(), [""; 0]);
    fs::write(site.path("authorized"), "").unwrap();
    let unknown = site.says(&["host", "run", "--on", "builder", "--", "true"]);
    assert!(unknown.errors.contains("does not let `root` in with the key ssh-ed25519 SHA256:"), "{unknown:?}");
}

#[test]
fn an_ssh_server_that_dies_in_the_middle_is_told_and_its_working_copy_goes_once_it_is_back() {
    let mut site = Site::new("");
    let lease = site.lease();
    let mut running = site.wharf(&["host", "run", "--lease", &lease, "--", "sh", "-c", "echo begun; sleep 1000"]);
    let mut running = running.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut begun = [0; 6];
    std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut begun).unwrap();
    site.stop_host();
    let said = running.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(255), "{errors}");
    assert!(errors.contains("builder cannot be reached by SSH: the connection broke"), "{errors}");
    let mut release = site.wharf(&["lease", "release", &lease]);
    let mut release = release.stderr(Stdio::null()).spawn().unwrap();
    let is_releasing = || {
        let lease = site.farm().get(&format!("/api/v1/leases/{lease}")).json();
        Some(()).filter(|()| lease["state"] == "releasing")
    };
    until(SOON, is_releasing).expect("it is being released");
    assert_eq!(site.copies(), [lease.as_str()]);
    site.start_host();
    assert!(release.wait().unwrap().success());
    assert_eq!(site.copies(), [""; 0]);
    assert_eq!(site.processes_with(&format!("WHARF_COPY=lab/{lease}/")), 0, "what outlived its connection is ended");
}

#[test]
fn what_ran_when_the_server_was_killed_is_ended_and_wiped_by_the_next_one() {
    let mut site = Site::new("");
    let lease = site.lease();
    let mut running = site.wharf(&["host", "run", "--lease", &lease, "--", "sleep", "1000"]);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mark = format!("WHARF_COPY=lab/{lease}/");
    until(SOON, || Some(()).filter(|()| site.processes_with(&mark) == 1)).expect("it runs");
    site.farm = site.farm.take().map(|farm| farm.killed_and_started_again(WHARF));
    assert_eq!(running.wait().unwrap().code(), Some(70));
    assert_eq!((site.copies(), site.processes_with(&mark)), (vec![lease.clone()], 1), "its lease lives on");
    site.says(&["host", "run", "--lease", &lease, "--", "echo", "again"]).expect(0, "again\n");
    site.says(&["lease", "release", &lease]).expect(0, "");
    assert_eq!((site.copies().len(), site.processes_with(&mark)), (0, 0));
}

#[test]
fn the_steps_of_a_job_and_the_commands_of_a_lease_go_by_ssh_to_what_a_dut_booted_with_the_key_that_its_console_said() {
    let site = Site::new("");
    let console = || site.farm().get("/api/v1/consoles/open.console/log").text();
    let booted = |times| until(SOON, || Some(console()).filter(|text| text.matches("ssh: ready").count() == times));
    let farm_key = "farm {{ ssh.public_key }}";
    let boot = linux_job("open", farm_key, "overall: {minutes: 2}", "");
    let by_ssh = format!(
        "target:\n  - role: dut\n    tags: [open]\n    ssh: {{when: {{regex: '^ssh: ready'}}}}\n    steps:\n{STEPS}"
    );
    let job = site.farm().submit(&boot.replace("target: {tags: [open]}\n", &by_ssh), "");
    let said = booted(1).unwrap_or_else(|| panic!("{}", console()));
    let (_, key) = said.split_once("farm ssh-ed25519 ").unwrap_or_else(|| panic!("{said}"));
    let key = format!("ssh-ed25519 {}\n", key.split_whitespace().next().unwrap());
    let _dut = site.start_dut(&key, None);
    expect_steps(&job.wait(), |path| site.farm().get(path).text());

    let file = site.path("job.yml");
    fs::write(&file, boot).unwrap();
    let taken = site.says(&["lease", "take", "-t", "open", "--boot", file.to_str().unwrap(), "--detach"]);
    let lease = taken.out.trim().to_owned();
    booted(2).unwrap_or_else(|| panic!("{taken:?}\n{}", console()));
    let folder = site.path(".wharf/lab").join(&lease);
    let run = ["host", "run", "--lease", &lease, "--", "sh", "-c", "pwd; exit 3"];
    site.says(&run).expect(3, &format!("{}\n", folder.display()));
    site.says(&["lease", "release", &lease]).expect(0, "");
    let over = site.says(&run);
    assert!(over.errors.contains("is over"), "{over:?}");
}

/// A DUT and a host: what the host does, and how long the job may take.
fn job_with(steps: &str) -> String {
    let roles =
        format!("\n  - {{role: dut, tags: [sim]}}\n  - role: builder\n    tags: ['os:debian']\n    steps:\n{steps}");
    linux_job("sim", "", "overall: {minutes: 2}", "").replace(" {tags: [sim]}", &roles)
}

#[test]
fn a_host_plays_a_role_of_a_job_beside_a_dut_and_its_steps_are_in_the_verdict() {
    let site = Site::new("");
    let repository = site.path("repository");
    let script = "git init -q -b main \"$0\" && cd \"$0\" && echo one > file && git add file && \
                  git -c user.name=a -c user.email=a@b commit -qm one";
    assert!(Command::new("sh").args(["-c", script]).arg(&repository).status().unwrap().success());
    let steps = format!(
        "      - {{checkout: 'file://{}'}}\n      - {{put: in.txt, data: 'dut at {{{{ roles.dut.ip_address }}}}'}}\n      \
         - {{run: 'cat file in.txt > out.txt; echo heard $(cat in.txt)', timeout: 1 minute}}\n      - {{get: out.txt}}\n",
        repository.display()
    );
    let ended = site.farm().run(&job_with(&steps));
    ended.expect("PASS", "test");
    assert!(ended.console.contains("[builder] heard dut at 127.0.0.11\n"), "{ended}");
    let expected = [
        "builder: step 1, checkout",
        "builder: step 2, put `in.txt`: 17 bytes",
        "builder: step 3, run",
        "builder: step 4, get `out.txt`: 21 bytes",
    ];
    ended.expect_in_order(&expected);
    let role = format!("{}-builder", ended.id);
    site.says(&["job", "file", &role, "out.txt"]).expect(0, "one\ndut at 127.0.0.11");
    let none = site.says(&["job", "file", &role, "passwd"]);
    assert!(none.errors.contains("keeps no file `passwd`"), "{none:?}");
    assert_eq!(site.copies(), [""; 0]);
}

#[test]
fn a_step_that_says_no_is_a_failure_and_one_that_takes_too_long_ends_the_job() {
    let site = Site::new("");
    let failed = site.farm().run(&job_with("      - {run: 'exit 3'}\n      - {run: 'echo never'}\n"));
    failed.expect("FAIL", "test").expect_summary("builder: FAIL (cause: test): step 1, run `exit 3`: exit status 3");
    assert!(!failed.console.contains("never"), "{failed}");
    let late = site.farm().run(&job_with("      - {run: 'sleep 1000', timeout: 1 s}\n"));
    late.expect("INCOMPLETE", "timeout");
    let missing = site.farm().run(&job_with("      - {get: nothing}\n"));
    missing.expect("INCOMPLETE", "artifact");
    assert_eq!(site.copies(), [""; 0]);
    let wrong = site.farm().refused(&job_with("      - {run: a, put: b}\n      - {put: c}\n"), "");
    let text = wrong.text();
    assert!(text.contains("a file of nothing") && text.contains("target[1].steps[0]"), "{text}");
}
