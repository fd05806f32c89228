//! Container images through the farm's cache: pulled by other people's client from other people's registry, each part once, whoever
//! pulls; also when the registry is gone or the server was killed; and never what is not what its name says.
//!
//! ```text
//!  one network namespace: docker-registry, 127.0.0.1:5001 ◄── the server, 10.88.0.1:5000 ── bridge ── cable ── another: skopeo, "the DUT"
//! ```
//! With `WHARF_PODMAN=1` also podman, from a registry with TLS and tokens in a third namespace; it takes a minute, and installs podman.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use gateway::registry::Digest;
use serde_json::Value;
use tests::bench::{Bench, Ended, Job, need_programs, until};
use tests::lab::{Lab, Running};

use crate::farms::WHARF;
use crate::picked_up::{GATEWAY, LINK, PATIENCE, Place};

const DUT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 11);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 12);
const UPSTREAM: &str = "127.0.0.1:5001";
/// What jobs call the upstream's images.
const BEHIND: &str = "10.88.0.1:5000/127.0.0.1_5001";

/// Debian's registry, and the two ends of the cable.
struct World {
    place: Place,
    dut: Lab,
    folder: tempfile::TempDir,
}

/// An image of one layer.
struct Image {
    layer: Vec<u8>,
    manifest: Digest,
}

impl World {
    fn new() -> Option<World> {
        let (place, dut) = (Place::new()?, Lab::new().ok()?);
        place.lab.plug(LINK, &dut, DUT).unwrap();
        let second = format!("{NEIGHBOUR}/24");
        good(dut.command("ip").unwrap().args(["address", "add", &second, "dev", "cable0"]).output().unwrap());
        Some(World { place, dut, folder: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn registry(&self) -> Running {
        self.registry_with(&self.place.lab, UPSTREAM, "", "")
    }

    /// Debian's, with more keys of `http` and below.
    fn registry_with(&self, lab: &Lab, address: &str, http: &str, more: &str) -> Running {
        let data = self.path("data").display().to_string();
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: '{data}'}}}}\nhttp: {{addr: '{address}'{http}}}\n{more}"
        );
        fs::write(self.path("registry.yml"), config).unwrap();
        let mut command = lab.command("/usr/bin/docker-registry").unwrap();
        command.arg("serve").arg(self.path("registry.yml"));
        let mut running = Running::spawn("docker-registry", command, &self.path("log")).unwrap();
        lab.wait_for_tcp(address.parse().unwrap(), &mut running).unwrap();
        running
    }

    /// A registry that wants tokens, and what gives them, both with certificates of an authority that nobody knows, in `ca.pem`.
    fn guarded(&self, lab: &Lab) -> [Running; 2] {
        let run = |line: &str| {
            let mut openssl = std::process::Command::new("openssl");
            good(openssl.current_dir(self.folder.path()).args(line.split(' ')).output().unwrap());
        };
        run("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=lab -days 2");
        run(
            "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=registry -addext subjectAltName=IP:10.99.0.2",
        );
        run(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days 2 -out server.pem",
        );
        fs::create_dir(self.path("certificates")).unwrap();
        fs::copy(self.path("ca.pem"), self.path("certificates/ca.crt")).unwrap();
        fs::write(self.path("realm.py"), REALM).unwrap();
        let mut realm = lab.command("python3").unwrap();
        realm.arg(self.path("realm.py")).arg(self.folder.path()).args(["10.99.0.2", "5443"]);
        let mut realm = Running::spawn("realm", realm, &self.path("realm.log")).unwrap();
        lab.wait_for_tcp("10.99.0.2:5443".parse().unwrap(), &mut realm).unwrap();
        let path = |name: &str| self.path(name).display().to_string();
        let tls = format!(", tls: {{certificate: '{}', key: '{}'}}", path("server.pem"), path("server.key"));
        let token = format!(
            "auth: {{token: {{realm: 'https://10.99.0.2:5443/token', service: played, issuer: realm, rootcertbundle: '{}'}}}}\n",
            path("ca.pem")
        );
        [realm, self.registry_with(lab, GUARDED, &tls, &token)]
    }

    /// Waits until the registry was asked for the bytes of so many blobs: it writes its line when it has sent them. Then how many these are.
    fn loads_of(&self, count: usize) -> usize {
        let enough = || Some(self.loads()).filter(|loads| *loads >= count);
        until(PATIENCE, enough).unwrap_or_else(|| self.loads())
    }

    /// How often the registry was asked for the bytes of blobs.
    fn loads(&self) -> usize {
        let log = fs::read_to_string(self.path("log")).unwrap();
        log.lines().filter(|line| line.contains("\"GET /v2/") && line.contains("/blobs/sha256:")).count()
    }

    fn skopeo(&self, lab: &Lab, words: &[&str]) -> Output {
        let mut command = lab.command("/usr/bin/skopeo").unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", self.folder.path()).stdin(Stdio::null());
        command.arg("--insecure-policy").args(words).output().unwrap()
    }

    /// Puts an image there, whose only layer is `layer`.
    fn push(&self, name: &str, layer: &[u8]) -> Image {
        self.push_with(&self.place.lab, &["--dest-tls-verify=false"], &format!("{UPSTREAM}/{name}"), layer)
    }

    fn push_with(&self, lab: &Lab, flags: &[&str], name: &str, layer: &[u8]) -> Image {
        let folder = self.path(&format!("oci-{}", Digest::of(layer).hexadecimal()));
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(blobs.join(digest.hexadecimal()), bytes).unwrap();
            digest
        };
        let told = |kind: &str, digest: Digest, size: usize| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": size});
        let digest = put(layer);
        let rootfs = serde_json::json!({"type": "layers", "diff_ids": [digest.to_string()]});
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).to_string();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": told("config.v1+json", put(config.as_bytes()), config.len()),
            "layers": [told("layer.v1.tar", digest, layer.len())],
        });
        let manifest = manifest.to_string();
        let named = put(manifest.as_bytes());
        let index =
            serde_json::json!({"schemaVersion": 2, "manifests": [told("manifest.v1+json", named, manifest.len())]});
        fs::write(folder.join("index.json"), index.to_string()).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let (from, to) = (format!("oci:{}", folder.display()), format!("docker://{name}"));
        good(self.skopeo(lab, &[&["copy", "--preserve-digests"], flags, &[&from, &to]].concat()));
        Image { layer: layer.to_vec(), manifest: named }
    }

    /// Pulls an image at the DUT's place: its layer.
    fn pull(&self, image: &str, layer: Digest) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let to = format!("dir:{}", folder.path().display());
        let output = self.skopeo(&self.dut, &["copy", "--src-tls-verify=false", image, &to]);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(fs::read(folder.path().join(layer.hexadecimal())).unwrap())
    }

    /// Status and body of a request from one of the addresses.
    fn curl(&self, from: Ipv4Addr, path: &str, more: &[&str]) -> (String, String) {
        let mut curl = self.dut.command("curl").unwrap();
        curl.args(["-s", "--interface", &from.to_string(), "-w", "\n%{http_code}"]).args(more);
        let output = curl.arg(format!("http://{GATEWAY}{path}")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }

    fn start(&self) -> Bench {
        let registry =
            format!("registry: {{tags_last: 0 s, size: 3M, upstreams: [{{host: '{UPSTREAM}', scheme: http}}]}}\n");
        self.place.start_farm(&format!("{}{registry}", self.place.farm("")))
    }

    /// A job does `work` while its DUT is there.
    fn during(&self, bench: &Bench, work: impl FnOnce(&mut Job)) -> Ended {
        let mut job = bench.submit(JOB, "");
        let mut console = self.place.opened();
        job.wait_for_kind("powered_on");
        work(&mut job);
        console.write_all(b"all is good\nthe end\n").unwrap();
        let ended = job.wait();
        ended.expect("PASS", "test");
        ended
    }
}

/// A registry with TLS and tokens.
const GUARDED: &str = "10.99.0.2:5001";

/// Gives tokens to whoever is `me` with the password `word` (distribution's token specification), signed as the registry trusts it.
const REALM: &str = r#"
import base64, http.server, json, ssl, subprocess, sys, time, urllib.parse
folder, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])

def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b'=').decode()

class Realm(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        login = self.headers.get('Authorization', '')
        known = login == 'Basic ' + base64.b64encode(b'me:word').decode()
        if login and not known:
            self.send_response(401)
            self.end_headers()
            return
        access = []
        for scope in query.get('scope', []):
            kind, name, actions = scope.split(':')
            access.append({'type': kind, 'name': name, 'actions': actions.split(',') if known else []})
        certificate = open(f'{folder}/server.pem').read().split('-----')[2].replace('\n', '')
        now = int(time.time())
        head = b64(json.dumps({'typ': 'JWT', 'alg': 'RS256', 'x5c': [certificate]}).encode())
        claims = {'iss': 'realm', 'sub': 'me', 'aud': query['service'][0], 'exp': now + 300, 'nbf': now - 10, 'iat': now, 'jti': str(now), 'access': access}
        text = f'{head}.{b64(json.dumps(claims).encode())}'
        signed = subprocess.run(['openssl', 'dgst', '-sha256', '-sign', f'{folder}/server.key'], input=text.encode(), capture_output=True, check=True)
        body = json.dumps({'token': f'{text}.{b64(signed.stdout)}', 'expires_in': 300}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.ThreadingHTTPServer((address, port), Realm)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(f'{folder}/server.pem', f'{folder}/server.key')
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// A job whose machine need not boot anything: it talks, and reads what its image is called.
const JOB: &str = r#"version: 1
target: {tags: []}
timeouts: {overall: {minutes: 4}}
console_patterns:
  session_end: {regex: '^the end$'}
  job_success: {regex: '^all is good$'}
deployment:
  start:
    storage:
      http:
        - {path: /image, data: '{{ registry.to_local_proxy("docker://127.0.0.1:5001/tests/image:1") }}'}
"#;

fn good(output: Output) {
    assert!(output.status.success(), "{output:?}");
}

/// Where the registry keeps a blob.
fn kept(data: &Path, digest: Digest) -> PathBuf {
    let name = digest.hexadecimal();
    data.join("docker/registry/v2/blobs/sha256").join(&name[..2]).join(&name).join("data")
}

#[test]
fn an_image_is_loaded_once_for_all_jobs_and_had_without_its_registry_and_after_a_kill() {
    let Some(world) = World::new() else { return };
    let programs =
        [("/usr/bin/docker-registry", "docker-registry"), ("/usr/bin/skopeo", "skopeo"), ("/usr/bin/curl", "curl")];
    need_programs(&programs);
    let upstream = world.registry();
    let image = world.push("tests/image:1", &vec![7; 1 << 20]);
    let other = world.push("tests/other:1", &vec![8; 1 << 20]);
    let (layer, spoiled) = (Digest::of(&image.layer), Digest::of(&other.layer));
    let named = format!("docker://{BEHIND}/tests/image:1");
    let by_digest = format!("docker://{BEHIND}/tests/image@{}", image.manifest);
    let before = world.loads();
    let bench = world.start();

    let ended = world.during(&bench, |_| {
        assert_eq!(world.curl(DUT, "/image", &[]), ("200".into(), named.clone()));
        assert_eq!(world.pull(&named, layer).unwrap(), image.layer);
        let blob = format!(":5000/v2/127.0.0.1_5001/tests/image/blobs/{layer}");
        let part = world.curl(DUT, &blob, &["-r", "5-9"]);
        assert_eq!(part, ("206".into(), "\u{7}".repeat(5)));
        let pushed = world.curl(DUT, ":5000/v2/127.0.0.1_5001/tests/image/blobs/uploads/", &["-X", "POST"]);
        assert!(pushed.0 == "405" && pushed.1.contains("UNSUPPORTED"), "{pushed:?}");
        let nobody = world.curl(NEIGHBOUR, &blob, &[]);
        assert!(nobody.0 == "403" && nobody.1.contains("DENIED"), "{nobody:?}");
        let tags = world.curl(DUT, ":5000/v2/127.0.0.1_5001/tests/image/tags/list", &[]);
        assert_eq!(tags, ("200".into(), "{\"name\":\"tests/image\",\"tags\":[\"1\"]}\n".into()));
    });
    let tells = |ended: &Ended, words: &str| ended.events.iter().any(|event| event.to_string().contains(words));
    assert!(tells(&ended, &format!("registry {UPSTREAM}/tests/image@{layer}: 1048576 bytes, complete")), "{ended}");
    assert_eq!(world.loads_of(before + 2) - before, 2, "its configuration and its layer");
    let listed = bench.get("/api/v1/registry").json();
    let image_row = &listed["images"][0];
    assert_eq!((&listed["images"][1], &image_row["name"]), (&Value::Null, &format!("{UPSTREAM}/tests/image").into()));
    assert_eq!((&image_row["tags"], image_row["readers"]["anybody"].is_string()), (&serde_json::json!(["1"]), true));
    assert!(image_row["bytes"].as_u64() > Some(1 << 20) && listed["bytes"] == image_row["bytes"], "{listed}");

    // Wrong bytes of the right length, and then the right ones.
    let place = kept(&world.path("data"), spoiled);
    fs::write(&place, vec![9; 1 << 20]).unwrap();
    world.during(&bench, |_| {
        assert_eq!(world.pull(&named, layer).unwrap(), image.layer);
        let name = format!("docker://{BEHIND}/tests/other:1");
        world.pull(&name, spoiled).unwrap_err();
        fs::write(&place, &other.layer).unwrap();
        assert_eq!(world.pull(&name, spoiled).unwrap(), other.layer);
        let of_nobody = world.pull("docker://10.88.0.1:5000/quay.io/tests/image:1", layer).unwrap_err();
        assert!(of_nobody.contains("this farm has no images of quay.io"), "{of_nobody}");
    });

    let forget = |name: &str| bench.ask("DELETE", &format!("/api/v1/registry/{name}"), "", b"");
    assert_eq!(forget(&format!("{UPSTREAM}/tests/image:1")).status, 404, "it is repositories that are forgotten");
    let forgotten = forget(&format!("{UPSTREAM}/tests/other"));
    let expected = serde_json::json!([format!("{UPSTREAM}/tests/other")]);
    assert_eq!((forgotten.status, &forgotten.json()["forgotten"]), (200, &expected));
    let left = bench.get("/api/v1/registry").json();
    assert_eq!((&left["images"][0]["name"], &left["images"][1]), (&listed["images"][0]["name"], &Value::Null));

    drop(upstream);
    let bench = bench.killed_and_started_again(WHARF);
    let ended = world.during(&bench, |_| {
        assert_eq!(world.pull(&by_digest, layer).unwrap(), image.layer);
        assert_eq!(world.pull(&named, layer).unwrap(), image.layer);
        world.pull(&format!("docker://{BEHIND}/tests/image:2"), layer).unwrap_err();
    });
    assert!(tells(&ended, &format!("registry {UPSTREAM}/tests/image:1 (as of ")), "{ended}");
}

#[test]
fn podman_pulls_by_tag_and_by_digest_what_a_registry_gives_for_a_token_over_tls() {
    if std::env::var_os("WHARF_PODMAN").is_none() {
        eprintln!("SKIPPED: WHARF_PODMAN=1 runs it");
        return;
    }
    let (Some(world), Ok(elsewhere)) = (World::new(), Lab::new()) else { return };
    let programs = [
        ("/usr/bin/docker-registry", "docker-registry"),
        ("/usr/bin/skopeo", "skopeo"),
        ("/usr/bin/podman", "podman"),
        ("/usr/bin/openssl", "openssl"),
    ];
    need_programs(&programs);
    world.place.lab.cable(&[Ipv4Addr::new(10, 99, 0, 1)], &elsewhere, &[Ipv4Addr::new(10, 99, 0, 2)]).unwrap();
    let _servers = world.guarded(&elsewhere);
    fs::write(world.path("hello"), "ahoy\n").unwrap();
    let mut tar = std::process::Command::new("tar");
    good(tar.arg("-C").arg(world.folder.path()).arg("-cf").arg(world.path("layer.tar")).arg("hello").output().unwrap());
    let certificates = world.path("certificates").display().to_string();
    let flags = ["--dest-cert-dir", &certificates, "--dest-creds", "me:word"];
    let layer = fs::read(world.path("layer.tar")).unwrap();
    let image = world.push_with(&elsewhere, &flags, &format!("{GUARDED}/tests/image:1"), &layer);
    fs::write(world.path("password"), "word").unwrap();
    let path = |name: &str| world.path(name).display().to_string();
    let farm = |authority: &str| {
        let login = format!("username: me, password_file: '{}'", path("password"));
        let upstreams = format!("[{{host: '{GUARDED}', {login}{authority}}}]");
        let proxy = "proxy: {private_networks: [10.99.0.0/24]}";
        format!("{}registry: {{tags_last: 0 s, upstreams: {upstreams}}}\n{proxy}\n", world.place.farm(""))
    };
    let bench = world.place.start_farm(&farm(""));
    let name = "10.88.0.1:5000/10.99.0.2_5001/tests/image";
    let podman = |words: &[&str]| {
        let mut podman = world.dut.command("/usr/bin/podman").unwrap();
        podman.args(["--root", &path("podman"), "--runroot", &path("podman-run"), "--storage-driver", "vfs"]);
        podman.env("HOME", world.folder.path()).args(words).output().unwrap()
    };
    fs::write(world.path("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    let pull = |name: &str| podman(&["pull", "--tls-verify=false", "--signature-policy", &path("policy.json"), name]);
    let ended = world.during(&bench, |_| {
        let refused = String::from_utf8_lossy(&pull(&format!("{name}:1")).stderr).into_owned();
        assert!(refused.contains("503 Service Unavailable"), "{refused}");
    });
    let tells = |words: &str| ended.events.iter().any(|event| event.to_string().contains(words));
    assert!(tells("invalid peer certificate: UnknownIssuer"), "{ended}");
    bench.write_farm(&farm(&format!(", certificate_authority: '{}'", path("ca.pem"))));
    assert_eq!(bench.ask("POST", "/api/v1/reload", "", b"").status, 200);
    world.during(&bench, |_| {
        good(pull(&format!("{name}:1")));
        good(podman(&["rmi", "--all", "--force"]));
        good(pull(&format!("{name}@{}", image.manifest)));
        let digests = podman(&["images", "--digests", "--format", "{{.Digest}}"]);
        assert_eq!(String::from_utf8_lossy(&digests.stdout).trim(), image.manifest.to_string());
        let mounted = podman(&["image", "mount", &format!("{name}@{}", image.manifest)]);
        let root = String::from_utf8_lossy(&mounted.stdout).trim().to_owned();
        assert_eq!(fs::read_to_string(Path::new(&root).join("hello")).unwrap(), "ahoy\n", "{mounted:?}");
    });
    assert_eq!(world.loads_of(2), 2, "its configuration and its layer, for both pulls");
}
