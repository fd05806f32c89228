//! What the server fetches in somebody's name: who may submit, and no more, reaches nothing of the farm's host by it, whichever way he names
//! it; who may do everything here, does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::bench::{Answer, Bench, until};

use crate::farms::{WHARF, farm_of, linux_job};

/// A server on the host's loopback, as administrators have them for themselves: it answers everything with one head.
struct Site {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Site {
    /// Ends with the process: it holds nothing but its port.
    fn new(head: &str) -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (head, counted) = (head.to_owned(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\nsecret\n").as_bytes());
            }
        });
        Site { address, asked }
    }

    fn times_asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn post(bench: &Bench, token: &str, path: &str, kind: &str, body: &str) -> Answer {
    bench.ask("POST", path, &format!("Authorization: Bearer {token}\r\nContent-Type: {kind}\r\n"), body.as_bytes())
}

/// The number of a job that the server takes from the owner of a token.
fn submitted(bench: &Bench, token: &str, job: &str) -> String {
    let answer = post(bench, token, "/api/v1/jobs", "application/yaml", job);
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn job(words: &str, more: &str) -> String {
    linux_job("only", &format!("wharf.beats=1 {words}"), "overall: {minutes: 2}", more)
}

/// The line of this request that was refused, once it is there.
fn audit_line(bench: &Bench, who: &str, what: &str) -> Value {
    let look = || {
        let text = std::fs::read_to_string(bench.state().join("audit.log")).unwrap_or_default();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["who"] == who && line["what"] == what && line["status"] == 403)
    };
    until(Duration::from_secs(30), look).unwrap_or_else(|| panic!("no line that {who} was refused `{what}`"))
}

#[test]
fn what_a_submitter_names_by_url_is_fetched_from_nowhere_of_the_farm_and_the_audit_log_says_what_he_tried() {
    let secret = Site::new("200 OK\r\nContent-Length: 7");
    let lab = Site::new("200 OK\r\nContent-Length: 7");
    let (at, lab_at) = (secret.address, lab.address);
    let redirect = Site::new(&format!("302 Found\r\nContent-Length: 0\r\nLocation: http://localhost:{}/x", at.port()));
    let farm = format!(
        "{}listen: {{job_urls: http}}\ndownloads: {{trusted_endpoints: ['{lab_at}', '{}']}}\n",
        farm_of(&[("only", "")]),
        redirect.address
    );
    let bench = Bench::start(WHARF, &farm);
    let wish = json!({"name": "ci", "project": "mesa"}).to_string();
    let token = bench.post("/api/v1/tokens", "application/json", wish.as_bytes()).json()["secret"].clone();
    let token = token.as_str().unwrap();

    // Artifacts, disks and buckets, by address, by name, by a redirect of somebody who is trusted.
    let http = |url: &str| format!("    storage: {{http: [{{path: /x, url: '{url}'}}]}}\n");
    for (more, what, why) in [
        (
            http(&format!("http://{at}/a?key=k")),
            format!("http://{at}/a"),
            "it leads to 127.0.0.1, which belongs to the farm",
        ),
        (http(&format!("http://0x7f.1:{}/", at.port())), format!("http://{at}/"), "which belongs to the farm"),
        (http("http://169.254.169.254/latest"), "http://169.254.169.254/latest".into(), "a link-local address"),
        (http("http://10.79.0.11/"), "http://10.79.0.11/".into(), "which belongs to the farm"),
        (
            http(&format!("http://localhost:{}/", at.port())),
            format!("http://localhost:{}/", at.port()),
            "which belongs to the farm",
        ),
        (
            http(&format!("http://{}/r", redirect.address)),
            format!("http://{}/r", redirect.address),
            "which belongs to the farm",
        ),
        (
            format!("    storage: {{nbd: [{{name: disk, url: 'http://{at}/disk'}}]}}\n"),
            format!("http://{at}/disk"),
            "which belongs to the farm",
        ),
        (
            format!("    storage: {{s3: [{{bucket: results, fill: {{url: 'http://{at}/fill'}}}}]}}\n"),
            format!("http://{at}/fill"),
            "which belongs to the farm",
        ),
    ] {
        let id = submitted(&bench, token, &job("", &more));
        let ended = bench.follow(&id, "").wait();
        ended.expect("SETUP_FAIL", "artifact").expect_summary(why);
        ended.expect_summary("; an administrator may name it in `downloads.trusted_endpoints`");
        let line = audit_line(&bench, &format!("job {id}"), &format!("fetch {what}"));
        assert_eq!((&line["project"], &line["from"]), (&json!("mesa"), &json!("the farm")), "{line}");
        assert!(line["why"].as_str().unwrap().contains(why), "{line}");
    }

    // What is only known when the DUT asks for it.
    let by_name = format!("    storage: {{http: [{{path: '/x/(.*)', url: 'http://{at}/\\1'}}]}}\n");
    let id = submitted(&bench, token, &job("wharf.url={{ job.http.url }}/x/late", &by_name));
    audit_line(&bench, &format!("job {id}"), &format!("fetch http://{at}/late"));
    bench.follow(&id, "").wait();

    // A description by URL, in CI-tron's words.
    let metadata = json!({"version": 1, "job_desc_url": format!("http://{at}/job.yml")});
    let body = format!(
        "--cut\r\ncontent-disposition: form-data; name=\"metadata\"; filename=\"metadata\"\r\n\r\n{metadata}\r\n--cut--\r\n"
    );
    let answer = post(&bench, token, "/api/v1/jobs", "multipart/form-data; boundary=cut", &body);
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.text().contains("it leads to 127.0.0.1, which belongs to the farm"), "{answer:?}");
    audit_line(&bench, "ci", "POST /api/v1/jobs");

    // What a person boots.
    let lease = post(&bench, token, "/api/v1/leases", "application/json", r#"{"id": "mine", "for": "2 m"}"#);
    assert_eq!(lease.status, 201, "{lease:?}");
    let headers = format!("Authorization: Bearer {token}\r\nContent-Type: application/yaml\r\n");
    let is_active = || bench.get("/api/v1/leases/mine").json()["state"] == "active";
    until(Duration::from_secs(60), || is_active().then_some(())).expect("the lease is active");
    let description = job("", &http(&format!("http://{at}/mine")));
    let booted = bench.ask("PUT", "/api/v1/leases/mine/boot", &headers, description.as_bytes());
    assert!(booted.status >= 400 && booted.text().contains("which belongs to the farm"), "{booted:?}");
    audit_line(&bench, "lease mine", &format!("fetch http://{at}/mine"));
    assert_eq!(bench.ask("DELETE", "/api/v1/leases/mine", &headers, b"").status, 200);
    assert_eq!(secret.times_asked(), 0, "something was fetched that is the host's");

    // What the administrator named is fetched, and everything is for who needs no token.
    let asks = "wharf.url={{ job.http.url }}/x";
    let id = submitted(&bench, token, &job(asks, &http(&format!("http://{lab_at}/file"))));
    bench.follow(&id, "").wait().expect("PASS", "test");
    assert!(lab.times_asked() > 0);
    bench.run(&job(asks, &http(&format!("http://{at}/file")))).expect("PASS", "test");
    assert!(secret.times_asked() > 0);
}
