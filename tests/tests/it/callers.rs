//! Who may do what: nobody is let in unknown but on the host itself; tokens, roles and projects; TLS; what is written down, and what never is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::bench::{Answer, Bench, Surroundings, need_programs, until};
use tests::lab::Lab;

use crate::farms::{HELLO, WHARF, farm_of, linux_job};

/// A farm of nothing, which starts at once.
const EMPTY: &str = "name: empty\nnetwork: {loopback: {}}\nduts: []\n";

/// A forge that is never asked: it lets the server start where others reach it.
const FORGE: &str = "callers: {issuers: [{issuer: 'https://gitlab.invalid', audience: farm, \
                     rules: [{project: mesa, role: submit, claims: {project_id: 1}}]}]}\n";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A server where others reach it, in a network namespace of its own.
fn open_door(farm: &str) -> Option<(Arc<Lab>, Bench)> {
    let lab = match Lab::new() {
        Ok(lab) => Arc::new(lab),
        Err(error) => {
            eprintln!("skipped: {error:#}");
            return None;
        }
    };
    lab.bridge("office", [10, 66, 0, 1].into()).unwrap();
    let api = Some("10.66.0.1:0".to_owned());
    let bench =
        Bench::start_with(WHARF, farm, Surroundings { lab: Some(Arc::clone(&lab)), api, ..Surroundings::default() });
    Some((lab, bench))
}

/// Makes a token in the server's files, as somebody on its host does.
fn token_in_files(bench: &Bench, words: &[&str]) -> String {
    let (farm, state) = (bench.farm_file(), bench.farm_file().with_file_name("state"));
    let mut command = Command::new(WHARF);
    command.args(["token", "add"]).args(words).arg("--farm").arg(farm).arg("--state").arg(state);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Makes a token by the API, as who needs none.
fn token(bench: &Bench, wish: Value) -> String {
    let answer = bench.post("/api/v1/tokens", "application/json", wish.to_string().as_bytes());
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["secret"].as_str().unwrap().to_owned()
}

fn as_whom(bench: &Bench, token: &str, method: &str, path: &str, body: &str) -> Answer {
    let kind = if body.starts_with('{') { "application/json" } else { "application/yaml" };
    let headers = format!("Authorization: Bearer {token}\r\nContent-Type: {kind}\r\n");
    bench.ask(method, path, &headers, body.as_bytes())
}

fn audit_lines(bench: &Bench) -> Vec<Value> {
    let text = std::fs::read_to_string(bench.state().join("audit.log")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_address_that_others_reach_is_not_opened_while_nobody_can_show_who_he_is() {
    let folder = tempfile::tempdir().unwrap();
    let farm = folder.path().join("farm.yml");
    std::fs::write(&farm, EMPTY).unwrap();
    let mut command = Command::new(WHARF);
    command.arg("serve").arg("--farm").arg(&farm).args(["--api", "0.0.0.0:0", "--state"]).arg(folder.path().join("s"));
    let output = command.env("XDG_RUNTIME_DIR", folder.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    let expected = "wharf: 0.0.0.0:0 can be reached from elsewhere, and nobody could show who he is: make a token with \
                    `wharf token add NAME --role administer --farm FILE`, or name a forge in `callers.issuers`, or listen on 127.0.0.1\n";
    assert_eq!(said(&output), expected);
}

#[test]
fn where_others_reach_it_every_route_wants_to_know_who_calls() {
    let Some((_lab, bench)) = open_door(&format!("{EMPTY}listen: {{tls: none}}\n{FORGE}")) else { return };
    let roles = include_str!("../../../fixtures/api/roles.txt");
    let submit = token_in_files(&bench, &["ci", "--project", "mesa"]);
    for line in roles.lines() {
        let (route, needs) = line.split_once(": ").unwrap();
        let (path, method) = route.split_once(' ').unwrap();
        let path = path.replace(['{', '}'], "");
        let status = bench.ask(method, &path, "", b"").status;
        match needs {
            "nothing" => assert!(matches!(status, 200 | 404), "{line}: {status}"),
            "its key" => assert!(matches!(status, 400 | 404), "{line}: {status}"),
            _ => assert_eq!(status, 401, "{line}"),
        }
        let status = as_whom(&bench, &submit, method, &path, "").status;
        match needs.split(' ').next() {
            Some("operate" | "administer") => assert_eq!(status, 403, "{line}"),
            Some("submit") => assert!(!matches!(status, 401 | 403 | 500), "{line}: {status}"),
            _ => {}
        }
    }
    let nobody = bench.get("/api/v1/jobs");
    assert!(nobody.head.to_ascii_lowercase().contains("www-authenticate: bearer realm=\"wharf\""), "{}", nobody.head);
    assert!(nobody.text().contains("this address needs a token: set WHARF_TOKEN"), "{}", nobody.text());
    // What is not there is nobody's business either.
    assert_eq!(bench.get("/api/v2/jobs").status, 401);
    assert_eq!(as_whom(&bench, &submit, "GET", "/api/v2/jobs", "").status, 404);
    // The loopback's freedom is not to be had by claiming to be there.
    for header in ["Host: 127.0.0.1", "X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1"] {
        assert_eq!(bench.ask("GET", "/api/v1/jobs", &format!("{header}\r\n"), b"").status, 401, "{header}");
    }
}

#[test]
fn a_stranger_comes_by_tls_with_a_token_and_runs_a_job() {
    let Some((lab, bench)) = open_door(&format!("{}{FORGE}", farm_of(&[("only", "")]))) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (ca, kept, job) = (folder.path().join("ca.pem"), folder.path().join("token"), folder.path().join("hello.yml"));
    std::fs::copy(bench.state().join("authority/ca.pem"), &ca).unwrap();
    std::fs::write(&job, linux_job("only", "wharf.beats=1", "overall: {minutes: 2}", "")).unwrap();
    std::fs::write(&kept, token_in_files(&bench, &["anna", "--role", "submit", "--project", "mesa"])).unwrap();
    let server = format!("https://{}", bench.address());
    let wharf = |words: &[&str], ca: Option<&Path>, kept: Option<&Path>| {
        let mut command = lab.command(WHARF).unwrap();
        command.args(["--server", &server]).args(words).stdin(Stdio::null());
        command.envs(ca.map(|path| ("WHARF_CA", path))).envs(kept.map(|path| ("WHARF_TOKEN_FILE", path)));
        command.output().unwrap()
    };
    let strange = said(&wharf(&["token", "show"], None, Some(&kept)));
    assert!(strange.contains("its certificate is not trusted: --ca FILE"), "{strange}");
    let unknown = said(&wharf(&["token", "show"], Some(&ca), None));
    assert!(unknown.contains("this address needs a token: set WHARF_TOKEN or WHARF_TOKEN_FILE"), "{unknown}");
    let shown = wharf(&["token", "show"], Some(&ca), Some(&kept));
    assert_eq!(said(&shown), "anna: project mesa, may submit\n");
    let ran = wharf(&["run", job.to_str().unwrap()], Some(&ca), Some(&kept));
    assert!(ran.status.success(), "{}", said(&ran));
    let refused = said(&wharf(&["reload"], Some(&ca), Some(&kept)));
    assert_eq!(refused, "wharf: this needs the role `administer`, and anna may only submit\n");
    // In clear there is nothing.
    let clear = lab.command(WHARF).unwrap().args(["--server", &bench.url(), "jobs"]).output().unwrap();
    assert!(!clear.status.success() && said(&clear).contains(&format!("try {server}")), "{}", said(&clear));
    // A program of somebody else's, with the token as a password.
    need_programs(&[("curl", "curl")]);
    let netrc = folder.path().join("netrc");
    std::fs::write(
        &netrc,
        format!("machine 10.66.0.1 login any password {}\n", std::fs::read_to_string(&kept).unwrap()),
    )
    .unwrap();
    let mut curl = lab.command("curl").unwrap();
    curl.args(["--silent", "--show-error", "--netrc-file"]).arg(&netrc).arg("--cacert").arg(&ca);
    let output = curl.arg(format!("{server}/api/v1/jobs")).output().unwrap();
    let jobs: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    assert!(jobs["jobs"][0]["submitter"].as_str().unwrap().starts_with("anna (wharf run of "), "{jobs}");
}

/// What each of them may not, and what is written down of it.
#[test]
fn tokens_roles_and_projects_hold_against_those_who_want_more_and_no_secret_is_written_anywhere() {
    let farm = format!(
        "{}projects:\n  linux: {{blueprints: [odd-right-1]}}\n  zink: {{queued: 1}}\npdus: [{{name: spare, manual: {{outlets: ['1']}}}}]\n",
        farm_of(&[("left", ""), ("right", "")])
    );
    let environment = vec![("WHARF_LOG".to_owned(), "trace".to_owned())];
    let bench = Bench::start_with(WHARF, &farm, Surroundings { environment, ..Surroundings::default() });
    let submit = token(&bench, json!({"name": "ci", "project": "mesa"}));
    let other = token(&bench, json!({"name": "other-ci", "project": "zink"}));
    let operator = token(&bench, json!({"name": "night-watch", "project": "linux", "role": "operate"}));
    let administrator = token(&bench, json!({"name": "root", "project": "farm", "role": "administer", "for": "1 h"}));
    let ask = |token: &str, method: &str, path: &str, body: &str| as_whom(&bench, token, method, path, body);

    // A job of mesa's, and one who wants it.
    let job = ask(&submit, "POST", "/api/v1/jobs", &linux_job("left", "wharf.end=hang", "overall: {minutes: 5}", ""));
    assert_eq!(job.status, 201, "{job:?}");
    let id = job.json()["id"].as_str().unwrap().to_owned();
    let of_job = |rest: &str| format!("/api/v1/jobs/{id}{rest}");
    for (method, rest) in [
        ("GET", ""),
        ("GET", "/log"),
        ("GET", "/events"),
        ("GET", "/buckets"),
        ("GET", "/buckets/results"),
        ("GET", "/files/console.log"),
        ("POST", "/cancel"),
        ("POST", "/console"),
    ] {
        let answer = ask(&other, method, &of_job(rest), "");
        let expected = format!("job {id} is not of the project `zink`, and other-ci may only submit");
        assert_eq!((answer.status, answer.json()["error"].as_str()), (403, Some(expected.as_str())), "{method} {rest}");
    }
    // The lease of that job is guarded like the job.
    assert_eq!(ask(&other, "DELETE", &format!("/api/v1/leases/job-{id}"), "").status, 403);
    assert_eq!(ask(&other, "GET", "/api/v1/jobs", "").json()["jobs"], json!([]));
    assert_eq!(ask(&submit, "GET", "/api/v1/jobs", "").json()["jobs"][0]["id"], json!(id));
    // Another's name.
    let foreign = ask(&other, "POST", "/api/v1/jobs?subject=mesa", HELLO);
    let expected = "other-ci acts for the project `zink`, not for `mesa`; leave `subject` out";
    assert_eq!((foreign.status, foreign.json()["error"].as_str()), (403, Some(expected)));
    let foreign = ask(&other, "POST", "/api/v1/leases", r#"{"subject": "mesa", "dut": "odd-right-1"}"#);
    assert_eq!(foreign.status, 403);
    // As much of the queue as a project may have.
    let waits = r#"{"dut": "odd-left-1", "owner": "term", "for": "1 m", "id": "waits"}"#;
    assert_eq!(ask(&other, "POST", "/api/v1/leases", waits).status, 201);
    let full = ask(&other, "POST", "/api/v1/leases", &waits.replace("waits", "more"));
    let expected = "the project `zink` has 1 requests in the queue, and may have no more; wait, or cancel some (projects.zink.queued)";
    assert_eq!((full.status, full.json()["error"].as_str()), (429, Some(expected)));
    assert_eq!(
        ask(&other, "POST", "/api/v1/jobs", &linux_job("left", "wharf.beats=1", "overall: {minutes: 5}", "")).status,
        429
    );
    assert_eq!(ask(&submit, "DELETE", "/api/v1/leases/waits", "").status, 403);
    // Its id leads nobody else to it, who would then be its connection, and lose it.
    let foreign = ask(&submit, "POST", "/api/v1/leases", r#"{"id": "waits"}"#);
    let expected = "`id`: waits is a lease of another project; leave it out, or send another one";
    assert_eq!((foreign.status, foreign.json()["error"].as_str()), (403, Some(expected)));
    assert_eq!(ask(&other, "POST", "/api/v1/leases", waits).status, 201, "the same lease once more");
    // And not to what a lease has left behind that is too old to be known by now.
    std::fs::create_dir_all(bench.state().join("leases/forgotten")).unwrap();
    let stale = ask(&submit, "POST", "/api/v1/leases", r#"{"id": "forgotten"}"#);
    let expected = "`id`: forgotten was a lease before; leave it out, or send another one";
    assert_eq!((stale.status, stale.json()["error"].as_str()), (400, Some(expected)));
    assert_eq!(ask(&other, "DELETE", "/api/v1/leases/waits", "").status, 200);
    // More than a role gives, by any spelling of the path.
    for path in ["/api/v1/reload", "//api//v1///reload", "/api/v1/tokens", "/api/v1/resources/odd-left-1/cordon"] {
        assert_eq!(ask(&submit, "POST", path, r#"{"reason": "mine"}"#).status, 403, "{path}");
    }
    for path in [
        "/api/v1/jobs/../reload",
        "/api/v1/%72eload/..",
        "/api/v1/jobs/..%2freload",
        "/images/..%2f..%2faudit.log",
        "/API/V1/reload",
    ] {
        let status = ask(&submit, "POST", path, "").status;
        assert!(matches!(status, 404 | 405 | 409), "{path}: {status}");
        let written = audit_lines(&bench).iter().any(|line| line["what"] == format!("POST {path}"));
        assert_eq!(written, path != "/API/V1/reload", "{path}: what is only not there is not written down");
    }
    assert_eq!(ask(&submit, "GET", "/images/..%2f..%2fcallers.sqlite", "").status, 404);
    // An operator has the machines that his project may use, and the jobs on them.
    assert_eq!(ask(&operator, "POST", &of_job("/cancel"), "").status, 403, "it is on odd-left-1, or waits for it");
    assert_eq!(ask(&operator, "GET", "/api/v1/consoles/odd-left-1.console/log", "").status, 403);
    assert_eq!(ask(&operator, "GET", "/api/v1/consoles/odd-right-1/log", "").status, 200);
    assert_eq!(ask(&operator, "POST", "/api/v1/resources/odd-left-1/cordon", r#"{"reason": "mine"}"#).status, 403);
    assert_eq!(
        ask(&operator, "POST", "/api/v1/resources/odd-right-1/cordon", r#"{"reason": "a new fan"}"#).status,
        200
    );
    assert_eq!(ask(&operator, "POST", "/api/v1/resources/odd-right-1/uncordon", "").status, 200);
    for (outlet, why) in [
        ("odd-left-1/port/odd-left-1", "the project `linux` may not use `odd-left-1` (projects.linux.blueprints)"),
        (
            "spare/port/1",
            "no machine is on that outlet: it may feed one that the project `linux` may not use (projects.linux.blueprints)",
        ),
    ] {
        let refused = ask(&operator, "POST", &format!("/api/v1/pdu/{outlet}/done"), r#"{"state": "off"}"#);
        assert_eq!((refused.status, refused.json()["error"].as_str()), (403, Some(why)), "{outlet}");
    }
    assert_eq!(
        ask(&operator, "POST", "/api/v1/pdu/odd-right-1/port/odd-right-1/done", r#"{"state": "off"}"#).status,
        409
    );
    assert_eq!(ask(&administrator, "POST", "/api/v1/pdu/spare/port/1/done", r#"{"state": "off"}"#).status, 200);
    let never = ask(&operator, "POST", "/api/v1/leases", r#"{"dut": "odd-left-1"}"#);
    assert_eq!(never.status, 406, "{never:?}");
    assert_eq!(ask(&operator, "POST", "/api/v1/tokens", r#"{"name": "me", "role": "administer"}"#).status, 403);
    // Credentials that are none.
    let made_up = format!("{}0", &submit[..submit.len() - 1]);
    let almost = if made_up == submit { format!("{}1", &submit[..submit.len() - 1]) } else { made_up };
    for wrong in ["", "wharf-", "wharf-00000000-00", almost.as_str(), "Bearer", "../../callers.sqlite", "eyJ.eyJ.x"] {
        assert_eq!(ask(wrong, "GET", "/api/v1/jobs", "").status, 401, "{wrong}");
    }
    let long = "x".repeat(20_000);
    assert_eq!(ask(&long, "GET", "/api/v1/jobs", "").status, 401);
    // Whom a proxy on the loopback passes on is not on the loopback, and neither is a page whose name leads here.
    for header in ["X-Forwarded-For: 10.0.0.9", "Forwarded: for=10.0.0.9", "Via: 1.1 proxy"] {
        assert_eq!(bench.ask("GET", "/api/v1/jobs", &format!("{header}\r\n"), b"").status, 401, "{header}");
    }
    let mut stream = bench.connected();
    let rebound =
        raw(&mut stream, "POST /api/v1/reload HTTP/1.0\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n");
    assert!(rebound.starts_with("HTTP/1.0 401") || rebound.starts_with("HTTP/1.1 401"), "{rebound}");
    // A key that is none.
    assert_eq!(bench.get("/power/00000000000000000000000000000000/1").status, 404);

    // The environment that a client forwards does not carry the token to where templates see it.
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("environ.yml");
    let words = "wharf.beats=1 leaked={{ environ.WHARF_TOKEN }}{{ environ.MY_TOKEN }}";
    std::fs::write(&job, linux_job("right", words, "overall: {minutes: 2}", "")).unwrap();
    let mut command = Command::new(WHARF);
    command.args(["--server", &bench.url(), "run", "-E", ".*TOKEN|HOME"]).arg(&job).stdin(Stdio::null());
    let ran = command.env("WHARF_TOKEN", &submit).env("MY_TOKEN", &submit).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
    assert!(!said(&ran).contains(&submit), "the token came back:\n{}", said(&ran));

    // Whom nobody trusts any more.
    assert_eq!(ask(&administrator, "DELETE", "/api/v1/tokens/other-ci", "").status, 204);
    let over = ask(&other, "GET", "/api/v1/jobs", "");
    assert_eq!(
        (over.status, over.json()["error"].as_str()),
        (401, Some("the token `other-ci` was revoked; ask for another one"))
    );
    assert_eq!(ask(&administrator, "DELETE", "/api/v1/tokens/other-ci", "").status, 404);
    assert_eq!(ask(&submit, "POST", &of_job("/cancel"), "").status, 200);

    let lines = audit_lines(&bench);
    let has = |who: &str, what: &str, status: u16| {
        lines.iter().any(|line| line["who"] == who && line["what"] == what && line["status"] == status)
    };
    assert!(has("the host", "POST /api/v1/tokens", 201));
    assert!(has("ci", "POST /api/v1/jobs", 201));
    assert!(has("other-ci", &format!("POST {}", of_job("/cancel")), 403));
    assert!(has("other-ci", &format!("GET {}", of_job("/buckets/results")), 403));
    assert!(has("other-ci", &format!("POST {}", of_job("/console")), 403));
    assert!(has("other-ci", "POST /api/v1/leases", 403));
    assert!(has("ci", "POST /api/v1/leases", 403));
    assert!(has("ci", "POST /api/v1/reload", 403));
    assert!(has("night-watch", "POST /api/v1/resources/odd-right-1/cordon", 200));
    assert!(has("night-watch", "POST /api/v1/tokens", 403));
    assert!(has("other-ci", "POST /api/v1/jobs", 429));
    assert!(has("nobody", "GET /api/v1/jobs", 401));
    assert!(has("nobody", "POST /api/v1/reload", 401));
    assert!(has("somebody", "GET /power/{key}/{value}", 404), "{lines:?}");
    assert!(has("root", "DELETE /api/v1/tokens/other-ci", 204));
    let theft = lines.iter().find(|line| line["who"] == "other-ci" && line["status"] == 403).unwrap();
    assert_eq!((&theft["project"], &theft["role"]), (&json!("zink"), &json!("submit")));
    assert!(theft["from"].as_str().unwrap().starts_with("127.0.0.1:") && theft["at"].as_str().unwrap().ends_with('Z'));
    assert!(theft["why"].as_str().unwrap().starts_with(&format!("job {id} is not of the project `zink`")), "{theft}");

    // Nothing that was written has a secret in it: state folder, log at its most talkative, arguments of all processes.
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&bench.state().join("audit.log")), mode(&bench.state())), (0o600, 0o700));
    for secret in [&submit, &other, &operator, &administrator] {
        is_nowhere(secret.rsplit('-').next().unwrap(), &bench);
    }
    let is_over = || bench.get(&of_job("")).json()["state"] == "ended";
    until(Duration::from_secs(60), || Some(()).filter(|()| is_over())).expect("a cancelled job ends");
}

#[test]
fn what_is_read_or_written_as_it_comes_is_cut_off_when_its_token_is_revoked_and_nobody_elses_is() {
    let bench = Bench::start(WHARF, &farm_of(&[("left", "")]));
    let [stays, goes] = ["stays", "goes"].map(|name| token(&bench, json!({"name": name, "project": "mesa"})));
    let job = linux_job("left", "wharf.end=hang", "overall: {minutes: 5}", "");
    let id = as_whom(&bench, &stays, "POST", "/api/v1/jobs", &job).json()["id"].as_str().unwrap().to_owned();
    let open = |token: &str, request: &str, more: &str| {
        let mut stream = bench.connected();
        let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let reads = format!("GET /api/v1/jobs/{id}/events");
    let types = format!("POST /api/v1/jobs/{id}/console");
    let mut kept = open(&stays, &reads, "Connection: close\r\n");
    let mut cut = [
        open(&goes, &reads, ""),
        open(&goes, "GET /api/v1/events?follow=1", ""),
        open(&goes, &types, "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"),
    ];
    // They were let in: who types is told to go on once his bytes are read.
    for (stream, status) in cut.iter_mut().zip([" 200 ", " 200 ", " 100 "]) {
        let line = read_line(stream);
        assert!(line.contains(status), "{line}");
    }
    cut[2].write_all(b"1\r\na\r\n").unwrap();
    assert_eq!(bench.ask("DELETE", "/api/v1/tokens/goes", "", b"").status, 204);
    for stream in &mut cut[..2] {
        let rest = read_to_end(stream);
        assert!(!rest.ends_with("\r\n0\r\n\r\n"), "a part is not taken for the whole: {rest}");
    }
    let typed = read_to_end(&mut cut[2]);
    assert!(typed.contains(" 400 ") && typed.contains("the token was revoked"), "{typed}");
    assert_eq!(as_whom(&bench, &stays, "POST", &format!("/api/v1/jobs/{id}/cancel"), "").status, 200);
    let whole = read_to_end(&mut kept);
    assert!(whole.contains("\"ended\"") && whole.ends_with("\r\n0\r\n\r\n"), "{whole}");
}

/// What would never end has heartbeats, which no timeout of a read notices.
fn read_to_end(stream: &mut TcpStream) -> String {
    let (limit, mut text, mut buffer) = (Instant::now() + Duration::from_secs(60), Vec::new(), [0; 4096]);
    while let length @ 1.. = stream.read(&mut buffer).unwrap() {
        text.extend_from_slice(&buffer[..length]);
        assert!(Instant::now() < limit, "it goes on: {}", String::from_utf8_lossy(&text));
    }
    String::from_utf8(text).unwrap()
}

fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn raw(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Looks for a secret in the state folder, in what the server said, and among the arguments of its processes.
#[track_caller]
pub(crate) fn is_nowhere(secret: &str, bench: &Bench) {
    let found = places_of(secret.as_bytes(), &bench.state());
    assert!(found.is_empty(), "{found:?}");
    assert!(!bench.errors().contains(secret), "the log has a secret");
    for process in bench.processes() {
        let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        assert!(!contains(&arguments, secret.as_bytes()), "process {process} has a secret among its arguments");
    }
}

/// The files below a folder that have these bytes.
fn places_of(bytes: &[u8], folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(places_of(bytes, &path)),
            kind if kind.is_file() && contains(&std::fs::read(&path).unwrap_or_default(), bytes) => {
                found.push(path.display().to_string());
            }
            _ => {}
        }
    }
    found
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
