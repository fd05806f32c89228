//! A directory that comes with a job: into its bucket, to its DUT, and back, by every version of CI-tron's client and by ours.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tests::bench::{Bench, need_programs, until};
use tests::packages::python;

use crate::buckets::{CLIENTS, DUT, World, good, job};
use crate::farms::WHARF;
use crate::picked_up::PATIENCE;

/// All of CI-tron's client that PyPI has.
const VERSIONS: [&str; 4] = ["0.2.1", "0.2.0", "0.1.0", "0.0.9"];
/// `wharf run`, which has no groups.
const OURS: &str = "wharf";
/// What the executor's client calls the archive of its directory.
const DIRECTORY: &str = "job_bucket_initial_state_tarball_file";

/// Stands in for MinIO's client: what `executorctl` asks of it, done by s3cmd.
const MCLI: &str = r#"#!/bin/sh
# mcli --no-color mirror --overwrite --remove client/BUCKET FOLDER, with MC_HOST_client=http://KEY:SECRET@HOST
rest=${MC_HOST_client#http://}; keys=${rest%@*}; host=${rest##*@}
exec S3CMD --no-ssl --host "$host" --host-bucket "$host" --access_key "${keys%%:*}" --secret_key "${keys#*:}" \
    --no-progress --delete-removed sync "s3://${5#client/}/" "$6/"
"#;

#[test]
fn a_shared_directory_goes_there_and_comes_back_by_every_version_of_executorctl_and_by_ours() {
    let Some(world) = World::new() else { return };
    need_programs(&[("/usr/bin/curl", "curl")]);
    let s3cmd = python(&CLIENTS).join("s3cmd");
    let mcli = world.write("bin/mcli", MCLI.replace("S3CMD", s3cmd.to_str().unwrap()).as_bytes());
    fs::set_permissions(&mcli, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = world.write("job.yml", job("").as_bytes());
    fs::write(world.path("member"), "a secret of its own\n").unwrap();
    let member = format!("members: [{{access_key: member, secret_key_file: {}}}]", world.path_text("member"));
    let bench = world.start(&format!("1M, groups: [{{name: team, buckets: [team-cache], {member}}}]"));
    let mut console = None;
    for version in VERSIONS.into_iter().chain([OURS]) {
        let shared = format!("shared-{version}");
        world.write(&format!("{shared}/in/put.txt"), b"from the submitter");
        world.write(&format!("{shared}/stale"), b"to be removed");
        let mut command = client(&world, &bench, version);
        command.args(["-s", &world.path_text(&shared)]).arg(&file);
        let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let console = console.get_or_insert_with(|| world.place.opened());
        let id = until(PATIENCE, || {
            let jobs = bench.get("/api/v1/jobs").json();
            let first = jobs["jobs"][0].clone();
            (first["state"] == "running").then(|| first["id"].as_str().unwrap().to_owned())
        });
        bench.follow(&id.unwrap(), "").wait_for_kind("powered_on");
        let keys = world.keys();
        let of_own = |name: &str| format!("s3://{}/{name}", keys.own);
        let file = world.write("of-dut", b"from the DUT");
        world.s3cmd(&keys, &["get", "--force", &of_own("in/put.txt"), &world.path_text("got")]);
        assert_eq!(fs::read(world.path("got")).unwrap(), b"from the submitter");
        world.s3cmd(&keys, &["put", file.to_str().unwrap(), &of_own("out.txt")]);
        world.s3cmd(&keys, &["del", &of_own("stale")]);
        if version != OURS {
            world.s3cmd(&keys, &["put", file.to_str().unwrap(), &format!("s3://team-cache/{version}")]);
        }
        console.write_all(b"all is good\nthe end\n").unwrap();
        let output = running.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{version}: {output:?}");
        let read = |name: &str| fs::read_to_string(world.path(&shared).join(name)).ok();
        assert_eq!(read("out.txt").as_deref(), Some("from the DUT"), "{version}: {output:?}");
        assert_eq!(read("in/put.txt").as_deref(), Some("from the submitter"), "{version}");
        assert_eq!(read("stale"), None, "{version}: what the DUT removed is removed");
    }
    // What its members' jobs left in the group's bucket is there for them, and for nobody else.
    let url = format!("{}/team-cache?list-type=2", bench.url());
    let mut curl = world.at_submitter(Path::new("curl"));
    curl.args(["-sf", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "member:a secret of its own", &url]);
    let listed = good(curl.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]).output().unwrap());
    let named: Vec<_> = listed.split("<Key>").skip(1).map(|part| part.split('<').next().unwrap()).collect();
    assert_eq!(named, ["0.0.9", "0.1.0", "0.2.0", "0.2.1"], "{listed}");
    let mut submitted = bench.submit(&job(""), "");
    submitted.wait_for_kind("powered_on");
    let (status, body) = world.curl(DUT, &world.keys(), "/team-cache/0.2.1", &[]);
    assert!(status == "404" && body.contains("no bucket `team-cache`"), "{status} {body}");
    submitted.cancel();
    submitted.wait().expect("INCOMPLETE", "cancelled");
    let broken = submit_raw(&bench, &job(""), b"no archive");
    assert_eq!((broken.0, broken.1.as_str()), (420, "Invalid tarball file"));
}

/// A client that waits for a job's end: one of CI-tron's, or ours.
fn client(world: &World, bench: &Bench, version: &str) -> Command {
    if version == OURS {
        let mut command = world.at_submitter(Path::new(WHARF));
        command.env("XDG_RUNTIME_DIR", world.path("")).args(["run", "--server", &bench.url()]);
        return command;
    }
    let client = python(&[&format!("valve-gfx-ci.executor.client=={version}")]).join("executorctl");
    let mut command = world.at_submitter(&client);
    let path = format!("{}:{}", world.path_text("bin"), std::env::var("PATH").unwrap_or_default());
    command.env("PATH", path).args([
        "-e",
        &bench.url(),
        "run",
        "--wait",
        "-a",
        "member:a secret of its own",
        "-g",
        "team",
    ]);
    command
}

fn submit_raw(bench: &Bench, job: &str, directory: &[u8]) -> (u16, String) {
    let mut body = format!(
        "--cut\r\ncontent-disposition: form-data; name=\"metadata\"; filename=\"m\"\r\n\r\n{{\"version\": 1}}\r\n\
         --cut\r\ncontent-disposition: form-data; name=\"job\"; filename=\"j\"\r\n\r\n{job}\r\n\
         --cut\r\ncontent-disposition: form-data; name=\"{DIRECTORY}\"; filename=\"d\"\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(directory);
    body.extend_from_slice(b"\r\n--cut--\r\n");
    let answer = bench.post("/api/v1/jobs", "multipart/form-data; boundary=cut", &body);
    (answer.status, answer.text().trim().to_owned())
}
