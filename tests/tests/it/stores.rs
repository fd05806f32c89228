//! Stores elsewhere: jobs read their objects, ended jobs are copied there; and what a store refuses is told with what to mend, and not lost.
//!
//! ```text
//!  one network namespace: the server ── PyPI's moto_server: another program's S3, which looks at no signature
//!                            └──────── its own S3, at the API: every signature is checked
//! ```

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tests::bench::{Bench, Surroundings, need_programs, until};
use tests::lab::Running;
use tests::packages::python;

use crate::buckets::{DUT, World, good, job};
use crate::farms::WHARF;
use crate::picked_up::{GATEWAY, PATIENCE};

const STORE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);
/// The API's address: the farm is its own store, and is told so before it runs.
const API: &str = "127.0.0.1:8420";

/// A server of `world` with this text in its farm file's `s3.stores` and `s3.archive`.
fn farm(world: &World, store: &str) -> String {
    fs::write(world.path("secret"), "anything").unwrap();
    format!(
        "{}s3: {{stores: [{{{store}, secret_key_file: {}}}], archive: s3://results/lab-1/}}\n",
        world.place.farm(""),
        world.path_text("secret")
    )
}

fn start(world: &World, farm: &str) -> Bench {
    let (lab, api) = (Some(Arc::clone(&world.place.lab)), Some(API.to_owned()));
    Bench::start_with(WHARF, farm, Surroundings { lab, api, ..Surroundings::default() })
}

/// Waits until the server's own log has these words.
#[track_caller]
fn is_told(bench: &Bench, words: &str) {
    until(PATIENCE, || bench.errors().contains(words).then_some(()))
        .unwrap_or_else(|| panic!("no `{words}`:\n{}", bench.errors()));
}

/// A request to moto; its body.
fn ask(world: &World, words: &[&str], path: &str) -> String {
    let mut curl = world.at_submitter(Path::new("curl"));
    // Any signature will do; without one it keeps what is private to itself.
    curl.args(["-s", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "any:body"]);
    good(curl.args(words).arg(format!("http://{STORE}{path}")).output().unwrap())
}

fn keys_of(listing: &str) -> Vec<&str> {
    listing.split("<Key>").skip(1).map(|part| part.split('<').next().unwrap()).collect()
}

/// What the DUT reads by HTTP.
fn read(world: &World, path: &str) -> String {
    let mut curl = world.at_dut(Path::new("curl"));
    let url = format!("http://{GATEWAY}{path}");
    good(curl.args(["-sf", "--interface", &DUT.to_string(), &url]).output().unwrap())
}

#[test]
fn another_programs_store_is_read_and_gets_the_ended_jobs_once_it_is_there_and_has_the_bucket() {
    let Some(world) = World::new() else { return };
    need_programs(&[("/usr/bin/curl", "curl")]);
    let programs = python(&["moto[server]==5.2.5"]);
    let store = format!("endpoint: 'http://{STORE}', buckets: [artifacts, results], access_key: anybody");
    let bench = start(&world, &farm(&world, &store));

    // Nobody is there: the job's end is told, and its copy is tried again.
    let mut submitted = bench.submit(&job(""), "");
    let mut console = world.place.opened();
    submitted.wait_for_kind("powered_on");
    console.write_all(b"all is good\nthe end\n").unwrap();
    submitted.wait().expect("PASS", "test");
    is_told(&bench, "http://127.0.0.1:5000/ cannot be reached");
    let mut command = world.place.lab.command(programs.join("moto_server").to_str().unwrap()).unwrap();
    command.args(["-H", "127.0.0.1", "-p", "5000"]).env("HOME", world.path(""));
    let mut server = Running::spawn("moto_server", command, &world.path("moto.log")).unwrap();
    world.place.lab.wait_for_tcp(STORE, &mut server).unwrap();
    is_told(
        &bench,
        "http://127.0.0.1:5000/ has no bucket `results`; make it there, or name another (404 NoSuchBucket)",
    );
    is_told(&bench, "the ended job is not copied; it is tried again in an hour, and after a restart");

    ask(&world, &["-X", "PUT"], "/results");
    ask(&world, &["-X", "PUT"], "/artifacts");
    ask(
        &world,
        &["-X", "PUT", "-H", "Content-Type: text/plain", "-d", "from elsewhere"],
        "/artifacts/deep/a_b%C3%BC+%25.txt",
    );
    let bench = bench.stopped_and_started_again(WHARF);
    is_told(&bench, "the ended job is copied");
    let copied = ask(&world, &[], "/results?list-type=2");
    assert_eq!(keys_of(&copied), ["lab-1/1/console.log", "lab-1/1/events.jsonl"], "{copied}");

    let text = job(
        "      s3: [{bucket: results, fill: {archive: {extension: tar, add: [{path: begin, artifact: {url: 's3://artifacts/deep/a_bü+%.txt'}}]}}}]\n",
    );
    let text =
        text.replace("      http:\n", "      http:\n        - {path: /got, url: 's3://artifacts/deep/a_bü+%.txt'}\n");
    let mut submitted = bench.submit(&text, "");
    let mut console = world.place.opened();
    submitted.wait_for_kind("powered_on");
    assert_eq!(read(&world, "/got"), "from elsewhere");
    let keys = world.keys();
    assert_eq!(world.curl(DUT, &keys, "/results/a%20b/result", &["-X", "PUT", "-d", "mine"]).0, "200");
    console.write_all(b"all is good\nthe end\n").unwrap();
    let ended = submitted.wait();
    ended.expect("PASS", "test");
    is_told(&bench, "job=\"2\" files=4");
    assert_eq!(ask(&world, &[], "/results/lab-1/2/buckets/results/a%20b/result"), "mine");
    assert_eq!(ask(&world, &[], "/results/lab-1/2/buckets/results/begin"), "from elsewhere");
    assert_eq!(ask(&world, &[], "/results/lab-1/2/console.log"), "all is good\nthe end\n");
    assert!(ask(&world, &[], "/results/lab-1/2/events.jsonl").contains("\"status\":\"PASS\""));

    let absent =
        job("").replace("      http:\n", "      http:\n        - {path: /got, url: 's3://artifacts/absent'}\n");
    let ended = bench.submit(&absent, "").wait();
    ended.expect("SETUP_FAIL", "artifact");
    ended.expect_summary("http://127.0.0.1:5000/ has no object `absent` in the bucket `artifacts` (404 NoSuchKey)");
}

#[test]
fn a_store_that_checks_signatures_takes_ours_and_a_false_key_is_told_with_what_to_mend() {
    let Some(world) = World::new() else { return };
    need_programs(&[("/usr/bin/curl", "curl")]);
    let bench = start(&world, &world.place.farm(""));
    let mut submitted = bench.submit(&job("      s3: [{bucket: results}]\n"), "");
    let mut console = world.place.opened();
    submitted.wait_for_kind("powered_on");
    let keys = world.keys();
    assert_eq!(world.curl(DUT, &keys, "/results/begin", &["-X", "PUT", "-d", "from the store"]).0, "200");
    console.write_all(b"all is good\nthe end\n").unwrap();
    submitted.wait().expect("PASS", "test");
    let told = bench.get("/api/v1/jobs/1/buckets").json();
    let [access_key, secret_key] = ["access_key", "secret_key"].map(|name| told[name].as_str().unwrap().to_owned());

    // From now on the farm's store is its own bucket.
    bench.write_farm(&farm(&world, &format!("endpoint: 'http://{API}', buckets: [results], access_key: {access_key}")));
    fs::write(world.path("secret"), "false\n").unwrap();
    let bench = bench.stopped_and_started_again(WHARF);
    let _second = world.place.opened();
    let text = job("").replace("      http:\n", "      http:\n        - {path: /got, url: s3://results/begin}\n");
    let ended = bench.submit(&text, "").wait();
    ended.expect("SETUP_FAIL", "artifact");
    let why =
        format!("takes the signature of the key `{access_key}` for a false one; mend what is in its `secret_key_file`");
    ended.expect_summary(&why);
    is_told(&bench, &format!("events.jsonl: http://{API}/ {why}"));

    fs::write(world.path("secret"), &secret_key).unwrap();
    let bench = bench.stopped_and_started_again(WHARF);
    let mut console = world.place.opened();
    is_told(&bench, "the ended job is copied");
    let mut submitted = bench.submit(&text, "");
    submitted.wait_for_kind("powered_on");
    assert_eq!(read(&world, "/got"), "from the store");
    console.write_all(b"all is good\nthe end\n").unwrap();
    submitted.wait().expect("PASS", "test");
    is_told(&bench, "the ended job is copied job=\"3\"");
    let archive = world.write("results.tar", &bench.get("/api/v1/jobs/1/buckets/results").body);
    let listed = good(std::process::Command::new("tar").arg("-tf").arg(&archive).output().unwrap());
    let expected = "begin\nlab-1/2/console.log\nlab-1/2/events.jsonl\nlab-1/3/console.log\nlab-1/3/events.jsonl\n";
    assert_eq!(listed, expected);
}
