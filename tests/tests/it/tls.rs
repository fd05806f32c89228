//! TLS and ports of a job's own, with other people's clients: curl, nbdinfo, nbdcopy, qemu-img, and the certificate of the farm's own
//! authority as they know it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use gateway::content::disk::{Base, Mode};
use gateway::door::Transport;
use gateway::namespace::{AccessEvent, Exposure, Protocol, Refusal};
use gateway::tls::authority::Authority;
use tests::bench::{Bench, Job, need_programs, until};

use crate::farms::{WHARF, linux_job};
use crate::loopback::{Loopback, pattern};

/// Two simulated machines over the loopback: curl can speak from the address of either.
const FARM: &str = "name: sealed\nnetwork: {loopback: {}}\nduts:\n  \
    - {base_name: one, mac: '52:54:00:83:00:01', address: 127.83.0.1, tags: [one], machine: {simulated: {}}}\n  \
    - {base_name: two, mac: '52:54:00:83:00:02', address: 127.83.0.2, tags: [two], machine: {simulated: {}}}\n";
const ONE: &str = "127.83.0.1";
const TWO: &str = "127.83.0.2";
const STRANGER: &str = "127.83.0.3";

/// curl's exit status when it does not trust the server's certificate, and when a server over TFTP has no such file.
const NOT_TRUSTED: Option<i32> = Some(60);
const NO_SUCH_FILE: Option<i32> = Some(68);

/// A job that says where it finds HTTP and its disk, and runs until it is cancelled.
fn job(tag: &str, storage: &str) -> String {
    let words = "http={{ job.http.url }}/ disk={{ job.nbd.root.url | default('none') }} wharf.end=hang";
    linux_job(tag, words, "overall: {minutes: 5}", &format!("    storage:\n{storage}"))
}

/// What the job's command line says after this word, once its console has shown it.
fn told(bench: &Bench, running: &mut Job, word: &str) -> String {
    running.wait_for_console("wharf.end=hang");
    let console = bench.get(&format!("/api/v1/jobs/{}/log", running.id)).text();
    let rest = console.split(word).nth(1).unwrap_or_else(|| panic!("no `{word}`: {console}"));
    rest.split_whitespace().next().unwrap().to_owned()
}

/// Status code and body, or curl's exit status.
fn curl(from: &str, arguments: &[&str]) -> Result<(String, String), Option<i32>> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--interface", from, "--write-out", "|%{http_code}"]);
    let output = command.args(arguments).output().unwrap();
    if !output.status.success() {
        return Err(output.status.code());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, code) = text.rsplit_once('|').unwrap();
    Ok((code.to_owned(), body.to_owned()))
}

/// A port that is free for TCP and UDP, or was a moment ago.
fn free_port() -> u16 {
    let mut both = (0..100).map(|_| {
        let tcp = std::net::TcpListener::bind("127.77.0.254:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        std::net::UdpSocket::bind(("127.77.0.254", port)).ok().map(|_| port)
    });
    both.find_map(|port| port).expect("a port that is free twice")
}

fn answer(code: &str, body: &str) -> Result<(String, String), Option<i32>> {
    Ok((code.to_owned(), body.to_owned()))
}

#[test]
fn https_and_tftp_at_a_port_of_a_job_s_own_are_for_its_dut_alone_and_clear_text_is_refused_where_tls_was_asked() {
    need_programs(&[("curl", "curl")]);
    let bench = Bench::start(WHARF, FARM);
    let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
    let of_one = format!(
        "      http:\n        - {{path: /secret, data: of one, expose: {{port: {port}, tls: true}}}}\n        \
         - {{path: /thrice, data: t, expose: {{port: {port}}}, lifetime: {{access_count: 3}}}}\n      \
         tftp: [{{path: /boot, data: boot of one, expose: {{port: {port}}}}}, {{path: /other, data: x}}]\n      \
         nbd: [{{name: root, size: 1M, expose: {{tls: true}}}}]\n"
    );
    let of_two = format!("      http: [{{path: /secret, data: of two, expose: {{port: {port}}}}}]\n");
    let mut one = bench.submit(&job("one", &of_one), "");
    let mut two = bench.submit(&job("two", &of_two), "");
    let http = told(&bench, &mut one, "http=");
    told(&bench, &mut two, "http=");

    // The farm's own authority, for everybody who is to trust it, and its key for nobody.
    let ca = folder.path().join("ca.pem").display().to_string();
    curl(STRANGER, &["--output", &ca, &format!("{http}_/ca.pem")]).unwrap();
    let kept = bench.state().join("authority");
    assert_eq!(std::fs::read_to_string(&ca).unwrap(), std::fs::read_to_string(kept.join("ca.pem")).unwrap());
    assert_eq!(std::fs::metadata(kept.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);

    let (sealed, clear) = (format!("https://127.77.0.254:{port}"), format!("http://127.77.0.254:{port}"));
    let trusting = |from, arguments: &[&str]| curl(from, &[&["--cacert", &ca], arguments].concat());
    let secret = format!("{sealed}/secret");
    assert_eq!(trusting(ONE, &[&secret]), answer("200", "of one"));
    assert_eq!(trusting(ONE, &["--tls-max", "1.2", &secret]), answer("200", "of one"));
    assert_eq!(trusting(ONE, &["--range", "3-", &secret]), answer("206", "one"));
    assert_eq!(trusting(TWO, &[&secret]), answer("200", "of two"), "the same port, another job");
    assert_eq!(curl(TWO, &[&format!("{clear}/secret")]), answer("200", "of two"), "that job asked for no TLS");
    assert_eq!(trusting(STRANGER, &[&secret]), answer("404", "no leased DUT has this address\n"));
    assert_eq!(trusting(TWO, &[&format!("{sealed}/thrice")]).unwrap().0, "404");
    let refused = format!("only to be read over TLS, at port {port} (expose.tls)\n");
    assert_eq!(curl(ONE, &[&format!("{clear}/secret")]), answer("403", &refused));
    assert_eq!(curl(ONE, &[&format!("{http}secret")]), answer("403", &refused), "nor at the farm's own port");

    // One count, whatever the bytes travel over.
    assert_eq!(trusting(ONE, &[&format!("{sealed}/thrice")]), answer("200", "t"));
    assert_eq!(curl(ONE, &[&format!("{clear}/thrice")]), answer("200", "t"));
    assert_eq!(curl(ONE, &[&format!("{http}thrice")]), answer("200", "t"));
    assert_eq!(trusting(ONE, &[&format!("{sealed}/thrice")]).unwrap().0, "410");

    // Who does not know the authority leaves, and the job hears of it.
    let foreign = folder.path().join("foreign.pem");
    std::fs::write(&foreign, Authority::new(SystemTime::now()).unwrap().pem()).unwrap();
    assert_eq!(curl(ONE, &["--cacert", foreign.to_str().unwrap(), &secret]), Err(NOT_TRUSTED));
    let failed = format!("HTTP at port {port}: refused to {ONE}: the TLS handshake failed: ");
    one.wait_for("the failed handshake", |event| event["text"].as_str().is_some_and(|text| text.starts_with(&failed)));

    let tftp = |from, name: &str| curl(from, &[&format!("tftp://127.77.0.254:{port}/{name}")]).map(|(_, body)| body);
    assert_eq!(tftp(ONE, "boot"), Ok("boot of one".to_owned()));
    assert_eq!(tftp(ONE, "other"), Err(NO_SUCH_FILE), "it is at the farm's own port only");
    assert_eq!(tftp(TWO, "boot"), Err(NO_SUCH_FILE));

    // Its proof before the boot went over TLS.
    assert!(told(&bench, &mut one, "disk=").starts_with("nbds://127.77.0.254:"));
    for job in [one, two] {
        job.cancel();
        job.wait().expect("INCOMPLETE", "cancelled");
    }
    let is_closed = || std::net::TcpStream::connect(("127.77.0.254", port)).is_err().then_some(());
    until(Duration::from_secs(20), is_closed).expect("a port that no job has any more is closed");
}

#[test]
fn where_there_is_no_tls_or_something_else_listens_a_job_is_refused_with_the_next_step() {
    let bench = Bench::start(WHARF, FARM);
    let answer = bench.refused(&job("one", "      tftp: [{path: /a, data: a, expose: {tls: true}}]\n"), "");
    assert!(answer.text().contains("`/a` asks for TLS, and TFTP has none; put it into `storage.http`"), "{answer:?}");
    // Somebody else's port.
    let taken = std::net::TcpListener::bind("127.77.0.254:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ended = bench.run(&job("one", &format!("      http: [{{path: /a, data: a, expose: {{port: {port}}}}}]\n")));
    ended.expect("SETUP_FAIL", "artifact").expect_summary(&format!("another server has port {port}"));
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[track_caller]
fn succeeds(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A folder as libnbd and QEMU want it: `ca-cert.pem`, and nothing of the client's.
fn trust_in(server: &Loopback, name: &str, pem: &str) -> PathBuf {
    let path = server.fresh(&format!("{name}/ca-cert.pem"));
    std::fs::write(&path, pem).unwrap();
    path.parent().expect("it has a folder").to_owned()
}

fn nbds(server: &Loopback, name: &str, trust: &Path) -> String {
    format!("{}?tls-certificates={}", server.nbd_url(name).replace("nbd://", "nbds://"), trust.display())
}

#[test]
fn nbdinfo_nbdcopy_and_qemu_img_reach_a_disk_over_tls_that_clear_text_does_not() {
    need_programs(&[("nbdinfo", "libnbd-bin"), ("nbdcopy", "libnbd-bin"), ("qemu-img", "qemu-utils")]);
    const BYTES: usize = 9 << 20;
    let server = Loopback::start();
    let sealed = Exposure { transport: Transport::Tls, ..Exposure::default() };
    server.put_disk("sealed", Base::Zeros { size_bytes: BYTES as u64 }, Mode::CopyOnWrite, sealed);
    server.put_disk("open", Base::Zeros { size_bytes: 4096 }, Mode::CopyOnWrite, Exposure::default());
    let trust = trust_in(&server, "trusted", server.ca_pem());
    let (open, over_tls) = (server.nbd_url("open"), nbds(&server, "sealed", &trust));

    let info = succeeds("nbdinfo", &[&over_tls]);
    assert!(info.contains("with TLS") && info.contains(&format!("export-size: {BYTES} (")), "{info}");
    let listed = |url: &str| succeeds("nbdinfo", &["--list", "--no-content", url]);
    let in_clear = listed(&open);
    assert!(in_clear.contains("export=\"open\"") && !in_clear.contains("sealed"), "{in_clear}");
    let in_tls = listed(&over_tls);
    assert!(in_tls.contains("export=\"open\"") && in_tls.contains("export=\"sealed\""), "{in_tls}");

    // In clear: said by the protocol's own code, and in the job's log.
    assert!(!run("nbdinfo", &[&server.nbd_url("sealed")]).status.success());
    let refused = run("qemu-img", &["info", "-f", "raw", &server.nbd_url("sealed")]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("TLS"), "{words}");
    let is_told = |event: &AccessEvent| {
        matches!(event, AccessEvent::Refused { refusal: Refusal::TlsRequired { port: None }, .. })
    };
    assert!(server.events().iter().any(is_told), "{:?}", server.events());
    // A client that prefers TLS has it for a disk that does not ask for it, too.
    succeeds("nbdinfo", &[&nbds(&server, "open", &trust)]);

    let image = server.fresh("image");
    std::fs::write(&image, pattern(BYTES)).unwrap();
    let image = image.to_str().unwrap();
    succeeds("nbdcopy", &[image, &over_tls]);
    let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", trust.display());
    let address = server.nbd_url("sealed").replace("nbd://", "").replace("/sealed", "");
    let (host, port) = address.split_once(':').unwrap();
    let disk = format!("driver=nbd,host={host},port={port},export=sealed,tls-creds=tls");
    let of_image = format!("driver=file,filename={image}");
    succeeds("qemu-img", &["compare", "--object", &credentials, "--image-opts", &of_image, &disk]);

    let foreign = trust_in(&server, "foreign", Authority::new(SystemTime::now()).unwrap().pem());
    assert!(!run("nbdinfo", &[&nbds(&server, "sealed", &foreign)]).status.success());
    let failed = |event: &AccessEvent| {
        matches!(event, AccessEvent::Refused { protocol: Protocol::Nbd, refusal: Refusal::TlsFailed { .. }, .. })
    };
    let is_failed = || server.events().iter().any(failed).then_some(());
    until(Duration::from_secs(20), is_failed).unwrap_or_else(|| panic!("{:?}", server.events()));
}
