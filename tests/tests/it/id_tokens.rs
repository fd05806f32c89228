//! id_tokens of a forge: a forge of ours signs with openssl, rotates its keys, goes away; what does not hold is refused and written down.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tests::bench::{Answer, Bench, need_programs};

use crate::farms::{WHARF, farm_of, linux_job};

/// A forge: its discovery document, its keys, and what it signs.
pub(crate) struct Forge {
    pub(crate) address: SocketAddr,
    keys: Arc<Mutex<Value>>,
    asked: Arc<Mutex<u32>>,
    /// What its jobs get where they ask for an id_token, each once; and what they asked with.
    pub(crate) tokens: Arc<Mutex<Vec<String>>>,
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    folder: tempfile::TempDir,
}

impl Forge {
    pub(crate) fn new() -> Forge {
        need_programs(&[("openssl", "openssl")]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (keys, asked) = (Arc::new(Mutex::new(json!([]))), Arc::new(Mutex::new(0)));
        let (served, counted) = (Arc::clone(&keys), Arc::clone(&asked));
        let (tokens, requests) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (given, noted) = (Arc::clone(&tokens), Arc::clone(&requests));
        // Ends with the process: it holds nothing but its port.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|length| length > 0) {}
                let body = match head.split(' ').nth(1) {
                    Some("/.well-known/openid-configuration") => {
                        json!({"issuer": format!("http://{address}"), "jwks_uri": format!("http://{address}/keys")})
                    }
                    Some("/keys") => {
                        *counted.lock().unwrap() += 1;
                        json!({"keys": *served.lock().unwrap()})
                    }
                    Some(path) if path.starts_with("/id-token?") => {
                        noted.lock().unwrap().push(head.clone());
                        json!({"count": 1, "value": given.lock().unwrap().pop()})
                    }
                    _ => json!({}),
                };
                let body = body.to_string();
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = reader.get_mut().write_all(format!("{head}{body}").as_bytes());
            }
        });
        Forge { address, keys, asked, tokens, requests, folder: tempfile::tempdir().unwrap() }
    }

    fn key(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        if !path.exists() {
            openssl(&["genrsa", "-out", path.to_str().unwrap(), "2048"], b"");
        }
        path
    }

    /// From now on it signs with these alone.
    pub(crate) fn publish(&self, names: &[&str]) {
        let keys = names.iter().map(|name| {
            let said = openssl(&["rsa", "-in", self.key(name).to_str().unwrap(), "-noout", "-modulus"], b"");
            let said = String::from_utf8(said).unwrap();
            let digits = said.trim().strip_prefix("Modulus=").unwrap();
            let modulus: Vec<u8> =
                (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
            json!({"kty": "RSA", "kid": name, "use": "sig", "alg": "RS256", "n": base64url(&modulus), "e": "AQAB"})
        });
        // A key of a kind that nobody here knows does not hide the others.
        let all: Vec<Value> =
            [json!({"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "other"})].into_iter().chain(keys).collect();
        *self.keys.lock().unwrap() = Value::Array(all);
    }

    pub(crate) fn signed(&self, key: &str, header: Value, claims: &Value) -> String {
        let text = format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
        let key = self.key(key);
        let signature = openssl(&["dgst", "-sha256", "-sign", key.to_str().unwrap()], text.as_bytes());
        format!("{text}.{}", base64url(&signature))
    }

    /// An id_token as GitLab has them, with some claims otherwise.
    fn token(&self, key: &str, other: Value) -> String {
        self.signed(key, json!({"alg": "RS256", "kid": key, "typ": "JWT"}), &self.claims(other))
    }

    fn claims(&self, other: Value) -> Value {
        static NUMBER: Mutex<u32> = Mutex::new(0);
        let mut number = NUMBER.lock().unwrap();
        *number += 1;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({
            "iss": format!("http://{}", self.address), "aud": "https://farm.example.com", "sub": "project_path:mesa/mesa:ref_type:branch:ref:main",
            "jti": format!("id-{number}"), "iat": now, "nbf": now - 5, "exp": now + 600,
            "project_id": "42", "project_path": "mesa/mesa", "namespace_id": "7", "job_id": "77", "pipeline_source": "push",
            "ref": "main", "ref_type": "branch", "ref_protected": "true", "runner_id": 5,
        });
        for (claim, value) in other.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
                value => claims[claim] = value.clone(),
            }
        }
        claims
    }
}

fn openssl(words: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(child.wait().unwrap().success(), "openssl {words:?}");
    output
}

/// RFC 4648 section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let all = chunk.iter().chain([&0; 2]).take(3).fold(0u32, |all, byte| all << 8 | u32::from(*byte));
        (0..=chunk.len()).for_each(|index| text.push(char::from(LETTERS[(all >> (18 - 6 * index) & 63) as usize])));
    }
    text
}

pub(crate) fn ask(bench: &Bench, token: &str, method: &str, path: &str) -> Answer {
    bench.ask(method, path, &format!("Authorization: Bearer {token}\r\n"), b"")
}

pub(crate) fn error(answer: &Answer) -> String {
    answer.json()["error"].as_str().unwrap_or_default().to_owned()
}

fn wharf(bench: &Bench, token: &str, words: &[&str]) -> std::process::Output {
    let mut command = Command::new(WHARF);
    command
        .args(["--server", &bench.url()])
        .args(words)
        .env("WHARF_TOKEN", token)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_forges_id_token_is_good_for_one_request_and_for_what_its_project_may_and_any_other_is_refused() {
    let forge = Forge::new();
    forge.publish(&["first"]);
    let farm = format!(
        "{}callers:\n  issuers:\n    - issuer: http://{}\n      audience: https://farm.example.com\n      session: 1 h\n      rules:\n        \
         - {{project: mesa, role: submit, claims: {{project_id: 42}}}}\n        \
         - {{project: mesa, role: operate, refs: any, claims: {{project_id: 43, environment: lab}}}}\n",
        farm_of(&[("only", "")]),
        forge.address
    );
    let bench = Bench::start(WHARF, &farm);
    let refused = |token: &str| {
        let answer = ask(&bench, token, "GET", "/api/v1/caller");
        (answer.status, error(&answer))
    };
    let told = |token: &str, status: u16, sentence: &str| {
        let (found, said) = refused(token);
        assert!(found == status && said.contains(sentence), "{found}: {said}");
    };

    // Once, and never again, also after a restart.
    let good = forge.token("first", json!({}));
    let answer = ask(&bench, &good, "GET", "/api/v1/caller");
    let name = format!("job 77 of project 42 at {}", forge.address);
    assert_eq!((answer.status, answer.json()), (200, json!({"name": name, "project": "mesa", "role": "submit"})));
    told(&good, 401, "was used before");
    let bench = bench.stopped_and_started_again(WHARF);
    let told = |token: &str, status: u16, sentence: &str| {
        let answer = ask(&bench, token, "GET", "/api/v1/caller");
        assert!(answer.status == status && error(&answer).contains(sentence), "{answer:?}");
    };
    told(&good, 401, "was used before");

    // What the claims say.
    let with = |claims: Value| forge.token("first", claims);
    told(
        &with(json!({"aud": "https://other.example.com"})),
        401,
        "the id_token is for `https://other.example.com`, not for",
    );
    told(&with(json!({"aud": null})), 401, "the id_token is for nobody");
    told(&with(json!({"exp": 1_700_000_000})), 401, "the id_token has expired");
    told(&with(json!({"exp": null})), 401, "has no `exp`");
    told(&with(json!({"nbf": 4_000_000_000u64})), 401, "is not valid yet");
    told(&with(json!({"jti": null})), 401, "has no `jti`");
    told(&with(json!({"iss": "https://gitlab.com"})), 401, "issuer is not known here");
    told(&with(json!({"iss": format!("http://{}/", forge.address)})), 401, "issuer is not known here");
    told(&with(json!({"project_id": "41"})), 403, "rule 1: `project_id` is `41`, not `42`");
    // The path of the right project, taken by another.
    told(&with(json!({"project_id": "99", "project_path": "mesa/mesa"})), 403, "may do nothing here");
    told(&with(json!({"ref_protected": "false"})), 403, "its ref is not protected");
    told(&with(json!({"project_id": "43"})), 403, "rule 2: `environment` is not there, not `lab`");
    let lab = ask(
        &bench,
        &with(json!({"project_id": 43, "environment": "lab", "ref_protected": "false"})),
        "GET",
        "/api/v1/caller",
    );
    assert_eq!((lab.status, &lab.json()["role"]), (200, &json!("operate")));

    // Who signed it.
    let claims = || forge.claims(json!({}));
    told(&forge.token("second", json!({})), 401, "was not signed by a key of");
    told(
        &forge.signed("second", json!({"alg": "RS256", "kid": "first"}), &claims()),
        401,
        "was not signed by a key of",
    );
    told(&forge.signed("first", json!({"alg": "none"}), &claims()), 401, "is signed by `none`; only RS256");
    told(
        &forge.signed("first", json!({"alg": "HS256", "kid": "first"}), &claims()),
        401,
        "is signed by `HS256`; only RS256",
    );
    let mut other = forge.token("first", json!({}));
    let changed = forge.claims(json!({"role": "administer"}));
    other = [
        other.split('.').next().unwrap(),
        &base64url(changed.to_string().as_bytes()),
        other.rsplit('.').next().unwrap(),
    ]
    .join(".");
    told(&other, 401, "was not signed by a key of");

    // A new key is fetched when it is first seen; the old one no longer counts then.
    let old = forge.token("first", json!({}));
    forge.publish(&["second"]);
    assert_eq!(ask(&bench, &forge.token("second", json!({})), "GET", "/api/v1/caller").status, 200);
    told(&old, 401, "was not signed by a key of");
    // Made-up names of keys do not make the forge be asked for ever.
    for number in 0..20 {
        let made_up = forge.signed("second", json!({"alg": "RS256", "kid": format!("k{number}")}), &claims());
        told(&made_up, 401, "was not signed by a key of");
    }
    assert!(*forge.asked.lock().unwrap() <= 12, "two servers, six times each within a minute");

    // The command line exchanges it, and runs a whole job.
    let folder = tempfile::tempdir().unwrap();
    let job = write(folder.path(), "job.yml", &linux_job("only", "wharf.beats=1", "overall: {minutes: 2}", ""));
    let mine = forge.token("second", json!({}));
    let ran = wharf(&bench, &mine, &["run", &job]);
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    let again = wharf(&bench, &mine, &["jobs"]);
    assert!(
        text(&again.stderr).contains("exchange it for a token with `wharf token exchange`"),
        "{}",
        text(&again.stderr)
    );
    let exchanged = wharf(&bench, &forge.token("second", json!({})), &["token", "exchange"]);
    let session = text(&exchanged.stdout).trim().to_owned();
    assert!(exchanged.status.success() && session.starts_with("wharf-"), "{}", text(&exchanged.stderr));
    for _ in 0..2 {
        let jobs = wharf(&bench, &session, &["jobs", "--json"]);
        let jobs: Value = serde_json::from_slice(&jobs.stdout).unwrap();
        assert!(jobs["jobs"][0]["submitter"].as_str().unwrap().starts_with(&name), "{jobs}");
    }
    assert_eq!(ask(&bench, &session, "POST", "/api/v1/session").status, 401, "a token is no id_token");

    // Each refusal is a line, and no line has a token in it.
    let audit = std::fs::read_to_string(bench.state().join("audit.log")).unwrap();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for sentence in [
        "was used before",
        "is for `https://other.example.com`",
        "was not signed by",
        "its ref is not protected",
        "only RS256",
    ] {
        assert!(
            lines.iter().any(|line| line["why"].as_str().is_some_and(|why| why.contains(sentence))),
            "{sentence}:\n{audit}"
        );
    }
    for secret in [&good, &mine, &session] {
        // The signature of an `id_token` (that may have a "-" within), or what is secret of a token of ours.
        let ours = secret.strip_prefix("wharf-").and_then(|token| token.split_once('-'));
        let part = ours.map_or_else(|| secret.rsplit('.').next().unwrap(), |(_, part)| part);
        assert!(part.len() > 20, "{part}");
        assert!(!audit.contains(part), "the audit log has the secret {part}:\n{audit}");
        assert!(!bench.errors().contains(part), "the log has the secret {part}:\n{}", bench.errors());
    }
}
