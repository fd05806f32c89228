//! Hosts of a cloud: PyPI's EC2 emulator says that they are there, an openssh-server at the address that it gives is what they are. They are
//! made when somebody asks, once, with keys of ours, and none outlives its use, though the server is killed in between.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tests::bench::{Bench, Surroundings, need_programs, until};
use tests::lab::{Lab, Running};
use tests::packages::python;

use crate::farms::WHARF;

/// What a loaded machine needs to start the emulator, and to make a host.
const SOON: Duration = Duration::from_secs(60);
const CLOUD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5000);

const FARM: &str = "name: lab
network: {loopback: {}}
duts: []
hosts:
  - name: cloud
    ssh: {user: root, port: 2222}
    os: debian
    folder: FOLDER/copies
    limit: 2
    idle: 1 s
    provider:
      ec2: {endpoint: 'http://127.0.0.1:5000', region: eu-central-1, image: ami-12c6146b, instance_type: t3.micro}
";

/// The emulator, in a namespace.
struct Cloud {
    lab: Arc<Lab>,
    folder: tempfile::TempDir,
    _server: Running,
}

/// An instance as the emulator has it.
#[derive(Debug)]
struct Instance {
    id: String,
    state: String,
    address: String,
}

impl Cloud {
    fn new() -> Cloud {
        need_programs(&[("/usr/sbin/sshd", "openssh-server")]);
        let programs = python(&["moto[server]==5.2.5"]);
        let (lab, folder) = (Arc::new(Lab::new().unwrap()), tempfile::tempdir().unwrap());
        let mut command = lab.command(programs.join("moto_server").to_str().unwrap()).unwrap();
        command.args(["-H", "127.0.0.1", "-p", "5000"]).env("HOME", folder.path());
        let mut server = Running::spawn("moto_server", command, &folder.path().join("moto.log")).unwrap();
        lab.wait_for_tcp(CLOUD, &mut server).unwrap();
        Cloud { lab, folder, _server: server }
    }

    fn farm(&self) -> Bench {
        let keys = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "secret")];
        let environment = keys.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let surroundings = Surroundings { lab: Some(Arc::clone(&self.lab)), environment, ..Surroundings::default() };
        Bench::start_with(WHARF, &FARM.replace("FOLDER", self.folder.path().to_str().unwrap()), surroundings)
    }

    /// Asks as anybody would: the emulator checks no signatures, and takes the service from the scope.
    fn ask(&self, form: &str) -> String {
        let scope =
            "AWS4-HMAC-SHA256 Credential=a/20260101/eu-central-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
        let body = format!("{form}&Version=2016-11-15");
        let mut stream = self.lab.inside(|| TcpStream::connect(CLOUD)).unwrap();
        let head = format!(
            "POST / HTTP/1.0\r\nHost: ec2.eu-central-1.amazonaws.com\r\nAuthorization: {scope}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn instances(&self) -> Vec<Instance> {
        let answer = self.ask("Action=DescribeInstances");
        let parts = answer.split("<instanceId>").skip(1);
        let instance = |part: &str| Instance {
            id: part.split('<').next().unwrap().to_owned(),
            state: between(part, "<name>", "<").to_owned(),
            address: between(part, "<privateIpAddress>", "<").to_owned(),
        };
        parts.map(instance).collect()
    }

    fn alive(&self) -> Vec<Instance> {
        self.instances().into_iter().filter(|instance| instance.state == "running").collect()
    }

    /// The machine boots: its address is up, and cloud-init has done what its user data says.
    fn boot(&self, instance: &Instance) -> Running {
        let answer =
            self.ask(&format!("Action=DescribeInstanceAttribute&Attribute=userData&InstanceId={}", instance.id));
        let data = BASE64_STANDARD.decode(between(&answer, "<value>", "<")).unwrap();
        let data: serde_json::Value = serde_yaml::from_slice(&data).unwrap();
        let path = |name: &str| self.folder.path().join(name);
        fs::write(path("host"), data["ssh_keys"]["ed25519_private"].as_str().unwrap()).unwrap();
        fs::set_permissions(path("host"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(path("authorized"), data["ssh_authorized_keys"][0].as_str().unwrap()).unwrap();
        let config = format!(
            "Port 2222\nListenAddress {address}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\n\
             UsePAM no\nStrictModes no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
            self.folder.path().display(),
            address = instance.address
        );
        fs::write(path("sshd_config"), config).unwrap();
        fs::create_dir_all("/run/sshd").expect("sshd wants its folder, and we are root");
        let address = format!("{}/32", instance.address);
        let added = self.lab.command("ip").unwrap().args(["address", "add", &address, "dev", "lo"]).status();
        assert!(added.unwrap().success());
        let mut command = self.lab.command("/usr/sbin/sshd").unwrap();
        command.args(["-D", "-e", "-f"]).arg(path("sshd_config"));
        let mut machine = Running::spawn("sshd", command, &path("sshd.log")).unwrap();
        self.lab.wait_for_tcp(SocketAddr::new(instance.address.parse().unwrap(), 2222), &mut machine).unwrap();
        machine
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}")).1;
    rest.split(after).next().unwrap_or_default()
}

/// What an instance is tagged with.
fn tagged(owner: &str, name: &str) -> String {
    let tags = [("wharf:owner", owner), ("wharf:host", name)];
    let tags = (1..).zip(tags).map(|(number, (key, value))| {
        format!("&TagSpecification.1.Tag.{number}.Key={key}&TagSpecification.1.Tag.{number}.Value={value}")
    });
    format!("&TagSpecification.1.ResourceType=instance{}", tags.collect::<String>())
}

fn wharf(farm: &Bench, words: &[&str]) -> Command {
    let mut command = Command::new(WHARF);
    command.args(words).env("WHARF_SERVER", farm.local_socket()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn one(cloud: &Cloud) -> Instance {
    until(SOON, || cloud.alive().pop()).unwrap_or_else(|| panic!("{:?}", cloud.instances()))
}

#[test]
fn a_host_is_made_once_with_keys_of_ours_though_the_server_is_killed_meanwhile_and_ended_when_nobody_wants_it() {
    let cloud = Cloud::new();
    let farm = cloud.farm();
    let mut asked = wharf(&farm, &["lease", "take", "--host", "-t", "os:debian", "--detach"]);
    let lease = String::from_utf8(asked.output().unwrap().stdout).unwrap().trim().to_owned();
    let instance = one(&cloud);
    let farm = farm.killed_and_started_again(WHARF);
    let _machine = cloud.boot(&instance);
    let view = || farm.get(&format!("/api/v1/leases/{lease}")).json();
    until(SOON, || Some(()).filter(|()| view()["state"] == "active")).unwrap_or_else(|| panic!("{:#}", view()));
    let said = wharf(&farm, &["host", "run", "--lease", &lease, "--", "echo", "hello"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "hello\n", "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(cloud.instances().len(), 1, "{:?}", cloud.instances());
    assert!(wharf(&farm, &["lease", "release", &lease]).output().unwrap().status.success());
    assert_eq!(fs::read_dir(cloud.folder.path().join("copies/lab")).unwrap().count(), 0, "its working copy is wiped");
    until(SOON, || Some(()).filter(|()| cloud.alive().is_empty())).expect("the idle host is ended");
}

/// What nobody knows is ended once it was seen twice, a minute apart: so long a test is for who asks for it.
#[test]
fn an_instance_of_ours_that_no_row_knows_is_ended_and_what_is_another_farms_is_left_alone() {
    if std::env::var_os("WHARF_ORPHANS").is_none() {
        return eprintln!("SKIPPED: it takes a minute; set WHARF_ORPHANS");
    }
    let cloud = Cloud::new();
    let farm = cloud.farm();
    let mut asked = wharf(&farm, &["lease", "take", "--host", "-t", "os:debian", "--detach"]);
    assert!(asked.output().unwrap().status.success());
    let known = one(&cloud).id;
    let described = cloud.ask("Action=DescribeInstances");
    let owner = between(&described, "<key>wharf:owner</key>", "</item>").replace(['\n', ' '], "");
    let owner = between(&owner, "<value>", "<").to_owned();
    assert!(owner.starts_with("lab-") && owner.ends_with("/cloud"), "{described}");
    let run = "Action=RunInstances&ImageId=ami-12c6146b&InstanceType=t3.micro&MinCount=1&MaxCount=1";
    // What a server leaves that died between the cloud's answer and its own row, if rows were written afterwards.
    let lost = cloud.ask(&format!("{run}{}", tagged(&owner, "cloud-2")));
    let lost = between(&lost, "<instanceId>", "<").to_owned();
    let others = cloud.ask(&format!("{run}{}", tagged("elsewhere/cloud", "cloud-2")));
    let others = between(&others, "<instanceId>", "<").to_owned();
    let _farm = farm.killed_and_started_again(WHARF);
    let is_alive = |id: &str| cloud.alive().iter().any(|instance| instance.id == id);
    until(3 * SOON, || Some(()).filter(|()| !is_alive(&lost))).unwrap_or_else(|| panic!("{:?}", cloud.instances()));
    assert!(is_alive(&known) && is_alive(&others), "{:?}", cloud.instances());
}
