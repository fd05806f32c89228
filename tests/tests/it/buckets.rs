//! A job's buckets: filled before the boot, written by its DUT with the clients that people have, read back by its submitter; and nobody
//! else's key, address or name leads there.
//!
//! ```text
//!  one network namespace: the server ── bridge ── cable ── another: "the DUT", 10.88.0.11, and its neighbour, 10.88.0.12
//!                            └ API, loopback: the submitter
//! ```

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use serde_json::Value;
use tests::bench::{Bench, Ended, Surroundings, may_mount, need_programs, until};
use tests::lab::Lab;
use tests::packages::python;

use crate::callers::is_nowhere;
use crate::farms::{WHARF, farm_of, linux_job};
use crate::picked_up::{GATEWAY, LINK, PATIENCE, Place};

/// From PyPI; what a Debian has is older.
pub const CLIENTS: [&str; 2] = ["awscli==1.46.3", "s3cmd==2.4.0"];
pub const DUT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 11);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 12);

/// The farm, and the network of its DUT.
pub struct World {
    pub place: Place,
    pub dut: Lab,
    folder: tempfile::TempDir,
}

/// What a job tells its DUT of its buckets.
#[derive(Clone, Debug)]
pub struct Keys {
    pub endpoint: String,
    pub own: String,
    pub access_key: String,
    pub secret_key: String,
}

impl World {
    pub fn new() -> Option<World> {
        let (place, dut) = (Place::new()?, Lab::new().ok()?);
        place.lab.plug(LINK, &dut, DUT).unwrap();
        let output =
            dut.command("ip").unwrap().args(["address", "add", &format!("{NEIGHBOUR}/24"), "dev", "cable0"]).output();
        assert!(output.unwrap().status.success());
        Some(World { place, dut, folder: tempfile::tempdir().unwrap() })
    }

    /// A farm whose buckets hold so much.
    pub fn start(&self, quota: &str) -> Bench {
        self.place.start_farm(&format!("{}s3: {{quota: {quota}}}\n", self.place.farm("")))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn path_text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A program at the DUT's place.
    pub fn at_dut(&self, program: &Path) -> Command {
        self.clean(self.dut.command(program.to_str().unwrap()).unwrap())
    }

    /// A program at the submitter's.
    pub fn at_submitter(&self, program: &Path) -> Command {
        self.clean(self.place.lab.command(program.to_str().unwrap()).unwrap())
    }

    /// Without what the user of this machine has set.
    fn clean(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", self.folder.path()).stdin(Stdio::null());
        command
    }

    /// What the DUT's firmware would read.
    pub fn keys(&self) -> Keys {
        let url = format!("http://{GATEWAY}/keys");
        let mut curl = self.at_dut(Path::new("curl"));
        let output = curl.args(["-sf", "--interface", &DUT.to_string(), &url]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let [endpoint, own, access_key, secret_key] = text.trim().split(' ').collect::<Vec<_>>()[..] else {
            panic!("{text}")
        };
        let [endpoint, own, access_key, secret_key] = [endpoint, own, access_key, secret_key].map(str::to_owned);
        Keys { endpoint, own, access_key, secret_key }
    }

    /// What s3cmd says at the DUT's place.
    pub fn s3cmd(&self, keys: &Keys, words: &[&str]) -> String {
        let mut command = self.at_dut(&python(&CLIENTS).join("s3cmd"));
        let host = keys.endpoint.trim_start_matches("http://").to_owned();
        command.args(["--no-ssl", "--host", &host, "--host-bucket", &host, "--no-progress"]);
        command.args(["--access_key", &keys.access_key, "--secret_key", &keys.secret_key]);
        good(command.args(words).output().unwrap())
    }

    /// A request of curl's, signed, from one of the addresses; its status and its body.
    pub fn curl(&self, from: Ipv4Addr, keys: &Keys, path: &str, more: &[&str]) -> (String, String) {
        let user = format!("{}:{}", keys.access_key, keys.secret_key);
        let url = format!("{}{path}", keys.endpoint);
        let mut curl = self.at_dut(Path::new("curl"));
        curl.args([
            "-s",
            "--path-as-is",
            "--aws-sigv4",
            "aws:amz:us-east-1:s3",
            "-H",
            "x-amz-content-sha256: UNSIGNED-PAYLOAD",
        ]);
        curl.args(["--user", &user, "--interface", &from.to_string(), "-w", "\n%{http_code}"]).args(more).arg(&url);
        let output = curl.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }
}

/// A job whose machine need not boot anything: it talks, and reads its keys.
pub fn job(s3: &str) -> String {
    format!(
        "version: 1
target: {{tags: []}}
timeouts: {{overall: {{minutes: 4}}}}
console_patterns:
  session_end: {{regex: '^the end$'}}
  job_success: {{regex: '^all is good$'}}
deployment:
  start:
    storage:
      http:
        - {{path: /keys, data: '{{{{ minio_url }}}} {{{{ job_bucket }}}} {{{{ job_bucket_access_key }}}} {{{{ job_bucket_secret_key }}}}'}}
{s3}"
    )
}

/// Whether an event of the job has these words.
fn tells(ended: &Ended, words: &str) -> bool {
    ended.events.iter().any(|event| event.to_string().contains(words))
}

pub fn good(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What no client of its own makes easy, by the library that most are made of. It prints what it got, line by line.
const SCRIPT: &str = r#"
import sys, time, awscli.botocore.session, awscli.botocore.config, urllib.request
from awscli import botocore
endpoint, key, secret, own = sys.argv[1:5]
config = botocore.config.Config(s3={'addressing_style': 'path'}, retries={'max_attempts': 0})
s3 = botocore.session.get_session().create_client('s3', 'us-east-1', endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, config=config)
def fails(call, **words):
    try:
        return 'no failure: %r' % call(**words)
    except s3.exceptions.ClientError as error:
        fails.connection = error.response['ResponseMetadata']['HTTPHeaders'].get('connection')
        return '%s %s' % (error.response['ResponseMetadata']['HTTPStatusCode'], error.response['Error']['Code'])
def keys(page):
    return [row['Key'] for row in page.get('Contents', [])], [row['Prefix'] for row in page.get('CommonPrefixes', [])]
buckets = s3.list_buckets()['Buckets']
print('buckets', [row['Name'] for row in buckets], 'of today', [time.time() - row['CreationDate'].timestamp() < 86400 for row in buckets])
begin = s3.get_object(Bucket='results', Key='begin/one.txt')
print('filled', begin['Body'].read(), begin['ETag'])
s3.put_object(Bucket='results', Key='a b/ü+%2e', Body=b'0123456789', ContentType='text/x', Metadata={'who': 'me'})
head = s3.head_object(Bucket='results', Key='a b/ü+%2e')
print('head', head['ContentLength'], head['ContentType'], head['Metadata'])
part = s3.get_object(Bucket='results', Key='a b/ü+%2e', Range='bytes=2-4')
print('range', part['Body'].read(), part['ContentRange'], part['ResponseMetadata']['HTTPStatusCode'])
print('tail', s3.get_object(Bucket='results', Key='a b/ü+%2e', Range='bytes=-3')['Body'].read())
print('beyond', fails(s3.get_object, Bucket='results', Key='a b/ü+%2e', Range='bytes=10-'))
print('unchanged', fails(s3.get_object, Bucket='results', Key='a b/ü+%2e', IfNoneMatch=head['ETag']))
print('taken', fails(s3.put_object, Bucket='results', Key='a b/ü+%2e', Body=b'x', IfNoneMatch='*'))
print('unread, so the connection is', fails.connection)
print('wrong sum', fails(s3.put_object, Bucket='results', Key='bad', Body=b'x', ChecksumCRC32='AAAAAA=='))
for name in ['l/1', 'l/2', 'l/3/x', 'm']:
    s3.put_object(Bucket='results', Key=name, Body=name.encode())
one = s3.list_objects_v2(Bucket='results', Prefix='l/', Delimiter='/', MaxKeys=2)
two = s3.list_objects_v2(Bucket='results', Prefix='l/', Delimiter='/', MaxKeys=2, ContinuationToken=one['NextContinuationToken'])
print('v2', keys(one), one['IsTruncated'], keys(two), two['IsTruncated'])
one = s3.list_objects(Bucket='results', Delimiter='/', MaxKeys=3)
two = s3.list_objects(Bucket='results', Delimiter='/', MaxKeys=3, Marker=one['NextMarker'])
print('v1', keys(one), keys(two))
upload = s3.create_multipart_upload(Bucket='results', Key='big', Metadata={'n': '2'})['UploadId']
tags = [s3.upload_part(Bucket='results', Key='big', UploadId=upload, PartNumber=n, Body=b'%d' % n * 5)['ETag'] for n in (1, 2)]
print('parts', [row['Size'] for row in s3.list_parts(Bucket='results', Key='big', UploadId=upload)['Parts']])
s3.complete_multipart_upload(Bucket='results', Key='big', UploadId=upload, MultipartUpload={'Parts': [{'PartNumber': n + 1, 'ETag': tag} for n, tag in enumerate(tags)]})
print('joined', s3.get_object(Bucket='results', Key='big', Range='bytes=3-6')['Body'].read(), s3.head_object(Bucket='results', Key='big')['ETag'][-3:])
print('no upload', fails(s3.abort_multipart_upload, Bucket='results', Key='big', UploadId=upload))
s3.copy_object(Bucket=own, Key='copy', CopySource={'Bucket': 'results', 'Key': 'big'})
print('copied', s3.get_object(Bucket=own, Key='copy')['Body'].read())
url = s3.generate_presigned_url('get_object', {'Bucket': 'results', 'Key': 'm'}, ExpiresIn=60)
print('presigned', urllib.request.urlopen(url).read())
print('deleted', sorted(row['Key'] for row in s3.delete_objects(Bucket='results', Delete={'Objects': [{'Key': 'l/1'}, {'Key': 'none'}]})['Deleted']))
print('gone', fails(s3.get_object, Bucket='results', Key='l/1'))
print('other', fails(s3.list_objects_v2, Bucket='others'), fails(s3.create_bucket, Bucket='mine'), fails(s3.delete_bucket, Bucket='results'))
print('full', fails(s3.put_object, Bucket='results', Key='huge', Body=b'x' * 1_100_000))
print('after', fails(s3.head_object, Bucket='results', Key='huge'))
"#;

const SAID: &str = r#"buckets ['OWN', 'results'] of today [True, True]
filled b'one' "f97c5d29941bfb1b2fdab0874906ab82"
head 10 text/x {'who': 'me'}
range b'234' bytes 2-4/10 206
tail b'789'
beyond 416 InvalidRange
unchanged 304 304
taken 412 PreconditionFailed
unread, so the connection is close
wrong sum 400 BadDigest
v2 (['l/1', 'l/2'], []) True ([], ['l/3/']) False
v1 ([], ['a b/', 'begin/', 'l/']) (['m'], [])
parts [5, 5]
joined b'1122' -2"
no upload 404 NoSuchUpload
copied b'1111122222'
presigned b'm'
deleted ['l/1', 'none']
gone 404 NoSuchKey
other 404 NoSuchBucket 403 AccessDenied 501 NotImplemented
full 403 QuotaExceeded
after 404 404
"#;

#[test]
fn a_bucket_is_filled_written_with_every_client_and_read_back_by_the_submitter() {
    let Some(world) = World::new() else { return };
    need_programs(&[("/usr/bin/curl", "curl"), ("/usr/bin/rclone", "rclone")]);
    let programs = python(&CLIENTS);
    let bench = world.start("1M");
    let begin = "          fill: {archive: {extension: tar, compression: gz, add: [{path: begin/one.txt, artifact: {data: one}}]}}\n";
    let refused = bench.refused(&job("      s3: [{bucket: results, expiration: 400 days}]\n"), "");
    for words in ["the bucket `results` would be kept for 400 days", "this farm keeps buckets for 30 days at most"] {
        assert!(refused.text().contains(words), "no `{words}`: {}", refused.text());
    }
    let mut submitted = bench.submit(&job(&format!("      s3:\n        - bucket: results\n{begin}")), "");
    let mut console = world.place.opened();
    submitted.wait_for_kind("powered_on");
    let keys = world.keys();
    assert_eq!(keys.endpoint, format!("http://{GATEWAY}:9000"));

    let script = world.write("script.py", SCRIPT.as_bytes());
    let mut command = world.at_dut(&programs.join("python"));
    let said = good(
        command.arg(script).args([&keys.endpoint, &keys.access_key, &keys.secret_key, &keys.own]).output().unwrap(),
    );
    let expected = SAID.replace("OWN", &keys.own);
    assert_eq!(said, expected);

    let aws = |words: &[&str]| {
        let mut command = world.at_dut(&programs.join("aws"));
        let variables = [("AWS_ACCESS_KEY_ID", &keys.access_key), ("AWS_SECRET_ACCESS_KEY", &keys.secret_key)];
        command.envs(variables).env("AWS_DEFAULT_REGION", "us-east-1");
        good(command.args(["--endpoint-url", &keys.endpoint, "s3"]).args(words).output().unwrap())
    };
    world.write("up/deep/er.txt", b"from awscli");
    aws(&["sync", "--quiet", &world.path_text("up"), "s3://results/aws"]);

    world.s3cmd(&keys, &["put", &world.path_text("up/deep/er.txt"), "s3://results/s3cmd/put.txt"]);
    assert!(world.s3cmd(&keys, &["ls", "s3://results/s3cmd/"]).contains("11"), "its size");

    let rclone = |words: &[&str]| {
        let mut command = world.at_dut(Path::new("rclone"));
        let settings = [("TYPE", "s3"), ("PROVIDER", "Minio"), ("ENDPOINT", keys.endpoint.as_str())];
        let secrets = [("ACCESS_KEY_ID", keys.access_key.as_str()), ("SECRET_ACCESS_KEY", keys.secret_key.as_str())];
        command.envs(
            settings.into_iter().chain(secrets).map(|(name, value)| (format!("RCLONE_CONFIG_WHARF_{name}"), value)),
        );
        good(command.args(words).output().unwrap())
    };
    rclone(&["sync", "wharf:results/aws", "wharf:results/rclone"]);
    rclone(&["copy", "wharf:results/rclone", &world.path_text("down")]);
    assert_eq!(fs::read(world.path("down/deep/er.txt")).unwrap(), b"from awscli");

    console.write_all(b"all is good\nthe end\n").unwrap();
    let ended = submitted.wait();
    ended.expect("PASS", "test");
    assert!(tells(&ended, "The bucket results begins with 1 files of 3 bytes"), "{ended}");
    ended.expect_in_order(&["S3 PUT /results/aws/deep/er.txt: 11 bytes, complete"]);

    // The submitter, as S3 and as an archive; the DUT's key is nobody's any more.
    let told = bench.get(&format!("/api/v1/jobs/{}/buckets", ended.id)).json();
    assert_eq!(told["buckets"][1]["name"], "results", "{told}");
    let wharf = |more: &[&str]| {
        let mut command = world.at_submitter(Path::new(WHARF));
        let output = command.args(["buckets", "--server", &bench.url(), &ended.id]).args(more).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let listed = String::from_utf8(wharf(&[])).unwrap();
    for words in ["results", told["access_key"].as_str().unwrap(), told["secret_key"].as_str().unwrap()] {
        assert!(listed.contains(words), "no {words}: {listed}");
    }
    let archive = world.write("results.tar", &wharf(&["--get", "results"]));
    let listed = good(Command::new("tar").arg("-tf").arg(&archive).output().unwrap());
    for name in ["aws/deep/er.txt", "begin/one.txt", "big", "rclone/deep/er.txt", "s3cmd/put.txt"] {
        assert!(listed.lines().any(|line| line == name), "no {name}: {listed}");
    }
    let mut command = world.at_submitter(&programs.join("aws"));
    let key = |name: &str| told[name].as_str().unwrap().to_owned();
    command.env("AWS_ACCESS_KEY_ID", key("access_key")).env("AWS_SECRET_ACCESS_KEY", key("secret_key"));
    command.env("AWS_DEFAULT_REGION", "us-east-1").args([
        "--endpoint-url",
        &bench.url(),
        "s3",
        "cp",
        "s3://results/big",
        "-",
    ]);
    assert_eq!(good(command.output().unwrap()), "1111122222");
    assert_eq!(world.curl(DUT, &keys, "/results/big", &[]).0, "403", "the job is over");
}

#[test]
fn no_key_address_name_or_signature_leads_to_what_is_anothers() {
    let Some(world) = World::new() else { return };
    need_programs(&[("/usr/bin/curl", "curl")]);
    let farm = format!("{}s3: {{quota: 64k}}\n", world.place.farm(""));
    let (lab, environment) = (Some(Arc::clone(&world.place.lab)), vec![("WHARF_LOG".to_owned(), "trace".to_owned())]);
    let bench =
        Bench::start_with(crate::farms::WHARF, &farm, Surroundings { lab, environment, ..Surroundings::default() });
    let mut submitted = bench.submit(&job("      s3: [{bucket: results}]\n"), "");
    let mut console = world.place.opened();
    submitted.wait_for_kind("powered_on");
    let keys = world.keys();
    let put = |path: &str| world.curl(DUT, &keys, path, &["-X", "PUT", "-d", "secret"]);
    assert_eq!(put("/results/mine").0, "200");
    assert_eq!(world.curl(DUT, &keys, "/results/mine", &[]), ("200".into(), "secret".into()));

    // Over TLS at the same port, for who trusts the farm's authority.
    let authority = world.path_text("authority.pem");
    let fetched =
        world.at_dut(Path::new("curl")).args(["-sf", "-o", &authority, &format!("http://{GATEWAY}/_/ca.pem")]).output();
    good(fetched.unwrap());
    let sealed = Keys { endpoint: keys.endpoint.replace("http:", "https:"), ..keys.clone() };
    assert_eq!(world.curl(DUT, &sealed, "/results/mine", &["--cacert", &authority]), ("200".into(), "secret".into()));
    assert_eq!(world.curl(DUT, &sealed, "/results/mine", &[]).0, "000", "an authority that nobody told of");

    // Another address, the other side, no signature, a wrong one, an unknown key.
    assert_eq!(world.curl(NEIGHBOUR, &keys, "/results/mine", &[]).0, "403");
    let at_api = Keys { endpoint: bench.url(), ..keys.clone() };
    let told = bench.get("/api/v1/jobs/1/buckets").json();
    let submitter = Keys {
        access_key: told["access_key"].as_str().unwrap().into(),
        secret_key: told["secret_key"].as_str().unwrap().into(),
        ..keys.clone()
    };
    assert_eq!(
        world.curl(DUT, &submitter, "/results/mine", &[]).0,
        "403",
        "the submitter's key is for the API's address"
    );
    let user = format!("{}:{}", at_api.access_key, at_api.secret_key);
    let mut curl = world.at_submitter(Path::new("curl"));
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user]);
    let output = curl
        .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", &format!("{}/results/mine", at_api.endpoint)])
        .output()
        .unwrap();
    assert_eq!(good(output), "403", "the DUT's key is for its own address");
    let unsigned =
        world.at_dut(Path::new("curl")).args(["-s", &format!("{}/results/mine", keys.endpoint)]).output().unwrap();
    assert!(good(unsigned).contains("<Code>AccessDenied</Code>"));
    let forged = Keys { secret_key: "x".repeat(40), ..keys.clone() };
    assert!(world.curl(DUT, &forged, "/results/mine", &[]).1.contains("<Code>SignatureDoesNotMatch</Code>"));
    let unknown = Keys { access_key: "A".repeat(20), ..keys.clone() };
    assert!(world.curl(DUT, &unknown, "/results/mine", &[]).1.contains("<Code>InvalidAccessKeyId</Code>"));

    let lines = audit_lines(&bench, "an S3 client");
    let (dut, neighbour, operator) = (DUT.to_string(), NEIGHBOUR.to_string(), "127.0.0.1".to_owned());
    for (from, why) in [
        (&neighbour, format!("AccessDenied: the key is not good from {neighbour}")),
        (&dut, format!("AccessDenied: the key is not good from {dut}")),
        (&operator, format!("AccessDenied: the key is not good from {operator}")),
        (&dut, "AccessDenied: nothing is to be had unsigned; sign with the job's key".to_owned()),
        (&dut, "SignatureDoesNotMatch".to_owned()),
        (&dut, "InvalidAccessKeyId: no job has this key now; keys end with their job".to_owned()),
    ] {
        let is_it = |line: &serde_json::Value| {
            line["from"] == from.as_str()
                && line["what"] == "GET /results/mine"
                && line["status"] == 403
                && line["why"] == why.as_str()
        };
        assert!(lines.iter().any(is_it), "no line of {why:?} from {from}: {lines:?}");
    }

    // Names are names, whatever they look like.
    for path in
        ["/results/../../../../etc/passwd", "/results/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd", "/others/x"]
    {
        let (status, body) = world.curl(DUT, &keys, path, &[]);
        assert!(["400", "403", "404"].contains(&status.as_str()) && !body.contains("root:"), "{path}: {status} {body}");
    }
    let big = world.write("big", &[b'x'; 70_000]);
    let upload = format!("@{}", big.display());
    let (status, body) = world.curl(DUT, &keys, "/results/big", &["-X", "PUT", "--data-binary", &upload]);
    assert_eq!(status, "403");
    assert!(body.contains("<Code>QuotaExceeded</Code>") && body.contains("may have 65536 bytes"), "{body}");
    let why = &audit_lines(&bench, "an S3 client").pop().unwrap()["why"];
    assert!(why.as_str().is_some_and(|why| why.starts_with("QuotaExceeded: the bucket `results` may")), "{why}");
    assert_eq!(bench.get("/api/v1/jobs/1/buckets").json()["buckets"][1]["bytes"], 6, "what did not fit is given back");

    console.write_all(b"all is good\nthe end\n").unwrap();
    let ended = submitted.wait();
    ended.expect("PASS", "test");
    ended.expect_in_order(&["refused to 10.88.0.12: the key is not good from 10.88.0.12"]);
    assert_eq!(bench.get("/api/v1/jobs/1/buckets/none").status, 404);
    for secret in [&keys.secret_key, &submitter.secret_key] {
        is_nowhere(secret, &bench);
    }
}

#[test]
fn a_bucket_outlives_the_server_with_its_keys_and_a_bad_archive_ends_the_job_before_it_boots() {
    let Some(world) = World::new() else { return };
    let bench = world.start("64k");
    let submitted = bench.submit(&job("      s3: [{bucket: results, fill: {data: no archive}}]\n"), "");
    let console = world.place.opened();
    let ended = submitted.wait();
    ended.expect("SETUP_FAIL", "artifact").expect_summary("cannot fill the bucket `results`");
    ended.expect_summary("no archive that is read here");
    // Eight mebibytes of zeros are some kilobytes: the quota holds for what comes out.
    world.write("bomb", &vec![0; 8 << 20]);
    let bomb = world.path("bomb.tar.gz");
    good(Command::new("tar").arg("-C").arg(world.folder.path()).arg("-czf").arg(&bomb).arg("bomb").output().unwrap());
    let bytes = fs::read(&bomb).unwrap();
    assert!(bytes.len() < 60_000, "{}", bytes.len());
    let id = submit_with(&bench, &job("      s3: [{bucket: results, fill: {attached: bomb}}]\n"), &[("bomb", &bytes)]);
    let ended = bench.follow(&id, "").wait();
    ended.expect("SETUP_FAIL", "artifact").expect_summary("the bucket `results` may have 65536 bytes");
    let filled = audit_lines(&bench, &format!("job {id}"));
    assert!(filled[0]["why"].as_str().unwrap().contains("may have 65536 bytes"), "{filled:?}");
    assert_eq!((filled[0]["what"].as_str(), filled[0]["status"].as_u64()), (Some("fill the job's buckets"), Some(403)));
    // So is a zip; and a path that leads out of an archive leads nowhere.
    let make = "import zipfile as z; f = z.ZipFile('bomb.zip', 'w', 8); f.writestr('bomb', bytes(8 << 20)); f.close(); \
                f = z.ZipFile('out.zip', 'w'); f.writestr('../../../../evil', 'evil'); f.close()";
    good(Command::new("python3").args(["-c", make]).current_dir(world.folder.path()).output().unwrap());
    for (name, why) in
        [("bomb.zip", "the bucket `results` may have 65536 bytes"), ("out.zip", "leads out of the archive")]
    {
        let (bytes, text) =
            (fs::read(world.path(name)).unwrap(), "      s3: [{bucket: results, fill: {attached: it}}]\n");
        let id = submit_with(&bench, &job(text), &[("it", &bytes)]);
        bench.follow(&id, "").wait().expect("SETUP_FAIL", "artifact").expect_summary(why);
    }

    let mut submitted = bench.submit(&job("      s3: [{bucket: results}]\n"), "");
    let id = submitted.id.clone();
    submitted.wait_for_kind("powered_on");
    drop(submitted);
    let keys = world.keys();
    assert_eq!(world.curl(DUT, &keys, "/results/kept", &["-X", "PUT", "-d", "kept"]).0, "200");
    let bench = bench.killed_and_started_again(WHARF);
    drop(console);
    let mut console = world.place.opened();
    let mut submitted = bench.follow(&id, "");
    submitted.wait_for_kind("console_back");
    assert_eq!(world.keys().secret_key, keys.secret_key);
    assert_eq!(world.curl(DUT, &keys, "/results/kept", &[]), ("200".into(), "kept".into()));
    console.write_all(b"all is good\nthe end\n").unwrap();
    submitted.wait().expect("PASS", "test");
    let bench = bench.stopped_and_started_again(WHARF);
    assert_eq!(bench.get(&format!("/api/v1/jobs/{id}/buckets")).json()["buckets"][1]["objects"], 1);
}

/// What was written down of somebody.
fn audit_lines(bench: &Bench, who: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(bench.state().join("audit.log")).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["who"] == who).collect()
}

#[test]
fn a_full_disk_is_told_to_who_writes_and_there_is_nothing_lost_when_there_is_room() {
    if let Err(why) = may_mount() {
        println!("SKIPPED: a small disk cannot be mounted here: {why}");
        return;
    }
    need_programs(&[("/usr/bin/curl", "curl")]);
    // Room for the farm, and for one object but not for two.
    let surroundings = Surroundings { state_bytes: Some(8 << 20), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm_of(&[("full", "")]), surroundings);
    let timeouts = "overall: {minutes: 4}";
    let more = "    storage: {s3: [{bucket: results}]}\n";
    let mut submitted = bench.submit(&linux_job("full", "wharf.end=hang", timeouts, more), "");
    submitted.wait_for_kind("powered_on");
    let told = bench.get("/api/v1/jobs/1/buckets").json();
    let user = format!("{}:{}", told["access_key"].as_str().unwrap(), told["secret_key"].as_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("big");
    fs::write(&file, vec![b'x'; 4 << 20]).unwrap();
    let curl = |path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-w", "%{http_code}", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user]);
        curl.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]).args(more);
        good(curl.arg(format!("{}{path}", bench.url())).output().unwrap())
    };
    let upload = ["-X", "PUT", "-T", file.to_str().unwrap()];
    assert_eq!(curl("/results/one", &upload), "200");
    let refused = curl("/results/two", &upload);
    assert!(refused.contains("<Code>StorageFull</Code>") && refused.ends_with("507"), "{refused}");
    assert!(refused.contains("disk is full; its administrator has to make room"), "{refused}");
    let bucket = &bench.get("/api/v1/jobs/1/buckets").json()["buckets"][1];
    assert_eq!((&bucket["objects"], &bucket["bytes"]), (&Value::from(1), &Value::from(4 << 20)), "{bucket}");
    assert_eq!(curl("/results/one", &["-o", "/dev/null"]), "200");
    assert_eq!(curl("/results/one", &["-X", "DELETE"]), "204");
    assert_eq!(curl("/results/two", &upload), "200");
    submitted.cancel();
    submitted.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn a_person_s_lease_has_buckets_from_boot_to_boot_and_they_are_read_after_it() {
    let Some(world) = World::new() else { return };
    need_programs(&[("/usr/bin/curl", "curl")]);
    let bench = world.start("64k");
    let _console = world.place.opened();
    let wish = br#"{"id": "held", "dut": "bench-dut-1", "owner": "term", "for": "5m", "name": "anna"}"#;
    assert_eq!(bench.post("/api/v1/leases", "application/json", wish).status, 201);
    let state = |bench: &Bench| bench.get("/api/v1/leases/held").json()["state"].clone();
    until(PATIENCE, || (state(&bench) == "active").then_some(())).expect("it is the only one");
    let boot = |bench: &Bench| {
        let text = job("      s3: [{bucket: results}]\n");
        let answer =
            bench.ask("PUT", "/api/v1/leases/held/boot", "Content-Type: application/yaml\r\n", text.as_bytes());
        assert_eq!(answer.status, 204, "{answer:?}");
    };
    boot(&bench);
    let keys = world.keys();
    assert_eq!(world.curl(DUT, &keys, "/results/kept", &["-X", "PUT", "-d", "kept"]).0, "200");
    assert_eq!(world.curl(NEIGHBOUR, &keys, "/results/kept", &[]).0, "403");
    boot(&bench);
    let bench = bench.killed_and_started_again(WHARF);
    let told = bench.get("/api/v1/leases/held/buckets").json();
    assert_eq!((&told["buckets"][1]["name"], &told["buckets"][1]["objects"]), (&"results".into(), &1.into()), "{told}");
    assert_eq!(bench.ask("DELETE", "/api/v1/leases/held", "", b"").status, 200);
    until(PATIENCE, || (state(&bench) == "destroyed").then_some(())).expect("it is given back");
    assert_eq!(world.curl(DUT, &keys, "/results/kept", &[]).0, "403", "the lease is over");
    let archive = world.write("results.tar", &bench.get("/api/v1/leases/held/buckets/results").body);
    assert_eq!(good(Command::new("tar").arg("-xOf").arg(&archive).output().unwrap()), "kept");
    assert_eq!(bench.get("/api/v1/leases/held/buckets/none").status, 404);
    assert_eq!(bench.get("/api/v1/leases/none/buckets").status, 404);
}

/// Hands a job in with files; its number.
fn submit_with(bench: &Bench, job: &str, files: &[(&str, &[u8])]) -> String {
    let mut body = Vec::new();
    let mut part = |name: &str, bytes: &[u8]| {
        body.extend_from_slice(
            format!("--cut\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n").as_bytes(),
        );
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    };
    part("metadata", b"{\"version\": 1}");
    part("job", job.as_bytes());
    files.iter().for_each(|(name, bytes)| part(name, bytes));
    body.extend_from_slice(b"--cut--\r\n");
    let answer = bench.post("/api/v1/jobs", "multipart/form-data; boundary=cut", &body);
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}
