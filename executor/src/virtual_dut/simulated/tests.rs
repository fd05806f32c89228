//! Whole boots of simulated DUTs from the real gateway, over the loopback and over a private network.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Locked};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway::content::Content;
use gateway::dhcp::{self, Architecture, BootMatch, BootOffer, BootRule, Class, ReplyTo, Reservation};
use gateway::namespace::{AccessEvent, Exposure, Name, Namespaces, Origin, Outcome, Protocol, Publication};
use gateway::net::Net;
use gateway::{http, tftp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::network::PrivateNetwork;
use super::{Machine, Wire};
use crate::blueprint::console::{Console, ConsoleStream, simulated::SimulatedConsole};
use crate::blueprint::power::PowerState;
use crate::config::{Fault, Misbehaviour, SimulatedConfig, SimulatedFirmware};

const MAC: &str = "52:54:00:77:00:05";
/// Longer than any boot here takes on a busy machine, shorter than the patience of whoever waits for the tests.
const PATIENCE: Duration = Duration::from_secs(30);

const BOOT_SCRIPT: &str = "#!ipxe
echo booting ${net0/mac} at ${ip} on ${platform}
kernel /_/job/kernel initrd=initramfs console=ttyS0 mac=${mac:hexhyp} ${words}
initrd --name initramfs /_/job/initramfs
boot
";

/// Where a test's DUT and gateway meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Loopback,
    PrivateNetwork,
}

/// A gateway with one DUT, its console open and its power off.
struct Bench {
    machine: Arc<Machine>,
    console: Box<dyn ConsoleStream>,
    heard: String,
    seen: Arc<Locked<Vec<AccessEvent>>>,
    publication: Publication<Content>,
    web: String,
    files: String,
    _servers: (dhcp::Server, tftp::Server, http::Server),
    _network: Option<PrivateNetwork>,
}

impl Bench {
    /// `None` where this host allows no network namespace; the skipped test says so.
    async fn new(on: On, config: SimulatedConfig) -> Option<Bench> {
        let namespaces = Namespaces::new();
        let network = match on {
            On::Loopback => None,
            On::PrivateNetwork => match PrivateNetwork::create(Ipv4Addr::new(10, 77, 0, 1), 24) {
                Ok(network) => Some(network),
                Err(error) => {
                    eprintln!("SKIPPED: {error}");
                    return None;
                }
            },
        };
        let net = network.as_ref().map_or(Net::host(), PrivateNetwork::net);
        let interface = network.as_ref().map(|network| network.bridge().to_owned());
        let (gateway, address, prefix_length, ports) = match on {
            On::Loopback => (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 77, 0, 5), 8, [0, 0, 0]),
            On::PrivateNetwork => (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 5), 24, [67, 69, 80]),
        };
        let dhcp = dhcp::start(dhcp::Config {
            net: net.clone(),
            interface,
            listen: match on {
                On::Loopback => (gateway, 0).into(),
                On::PrivateNetwork => (Ipv4Addr::UNSPECIFIED, ports[0]).into(),
            },
            server: gateway,
            prefix_length,
            router: Some(gateway),
            dns: vec![],
            role: dhcp::Role::default(),
            reply_to: if on == On::Loopback { ReplyTo::Source } else { ReplyTo::Standard },
            observer: Arc::new(|_| ()),
        })
        .await
        .unwrap();
        let tftp = tftp::Config { net: net.clone(), listen: (gateway, ports[1]).into(), ..tftp::Config::default() };
        let tftp = tftp::start(tftp, namespaces.clone()).await.unwrap();
        let http = http::start(http::Config::new(net, (gateway, ports[2]).into()), namespaces.clone()).await.unwrap();
        let wire = match &network {
            None => Wire::Loopback { address, dhcp: dhcp.address(), tftp_port: tftp.address().port() },
            Some(network) => Wire::Private(Arc::new(network.port(MAC).unwrap())),
        };
        let machine = Machine::new(config, MAC, wire).unwrap();
        let seen = Arc::new(Locked::new(Vec::new()));
        let observer = Arc::clone(&seen);
        let observer = Arc::new(move |event| observer.lock().unwrap().push(event));
        let publication = namespaces.publish(address.into(), observer).unwrap();
        let bench = Bench {
            console: SimulatedConsole::new(Arc::clone(&machine)).open().await.unwrap(),
            machine,
            heard: String::new(),
            seen,
            publication,
            web: format!("http://{}", http.address()),
            files: format!("tftp://{}", tftp.address()),
            _servers: (dhcp, tftp, http),
            _network: network,
        };
        bench.reserve_and_offer(address);
        bench.publish_boot("");
        Some(bench)
    }

    fn reserve_and_offer(&self, address: Ipv4Addr) {
        let mac = MAC.parse().unwrap();
        let dhcp = &self._servers.0;
        dhcp.reserve(Reservation { mac, address, hostname: Some("dut5".into()) }).unwrap();
        let ipxe = BootRule {
            matches: BootMatch { user_class: Some(Class::Ipxe), ..BootMatch::default() },
            bootfile: format!("{}/_/boot/boot.ipxe", self.web),
            ..BootRule::default()
        };
        let plain = |architecture, bootfile: &str| BootRule {
            matches: BootMatch { architecture: Some(vec![architecture]), ..BootMatch::default() },
            bootfile: bootfile.into(),
            ..BootRule::default()
        };
        let rules =
            vec![ipxe, plain(Architecture::X86Bios, "undionly.kpxe"), plain(Architecture::X64Uefi, "snponly.efi")];
        dhcp.set_boot(mac, BootOffer { rules, ..BootOffer::default() });
    }

    /// A whole boot: script, kernel, initramfs, two firmware programs; `words` go to the end of the command line.
    fn publish_boot(&self, words: &str) {
        self.put(Protocol::Http, "/_/boot/boot.ipxe", BOOT_SCRIPT.replace("${words}", words));
        self.put(Protocol::Http, "/_/job/kernel", vec![1; 3_000_000]);
        self.put(Protocol::Http, "/_/job/initramfs", vec![2; 1_000_001]);
        self.put(Protocol::Tftp, "/undionly.kpxe", vec![3; 72_000]);
        self.put(Protocol::Tftp, "/snponly.efi", vec![4; 280_000]);
    }

    fn put(&self, protocol: Protocol, name: &str, bytes: impl Into<Bytes>) {
        let (name, content) = (Name::Exact(name.into()), Content::Inline(bytes.into()));
        self.publication.put(protocol, name, content, Exposure::default(), Origin::Generated, Instant::now());
    }

    async fn power(&self, state: PowerState) {
        self.machine.set_power(state).await.unwrap();
    }

    /// Reads the console until it said `text` after what was read before; everything in between.
    async fn hears(&mut self, text: &str) -> String {
        let reading = async {
            loop {
                if let Some(at) = self.heard.find(text) {
                    let rest = self.heard.split_off(at + text.len());
                    return std::mem::replace(&mut self.heard, rest);
                }
                let mut buffer = [0; 4096];
                let length = self.console.read(&mut buffer).await.unwrap();
                assert!(length > 0, "the console is lost");
                self.heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            }
        };
        let heard = timeout(PATIENCE, reading).await;
        heard.unwrap_or_else(|_| panic!("`{text}` was not said; said was:\n{}", self.heard))
    }

    /// Whether nothing at all is said for a while.
    async fn is_silent(&mut self) -> bool {
        let mut buffer = [0; 4096];
        // What was on its way when the power went may still be read.
        while let Ok(length) = timeout(Duration::from_millis(1), self.console.read(&mut buffer)).await {
            assert!(length.unwrap() > 0, "the console is lost");
        }
        timeout(Duration::from_millis(300), self.console.read(&mut buffer)).await.is_err()
    }

    /// Accesses that ended, as `name bytes outcome`.
    fn ended(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let ended = seen.iter().filter_map(|event| match event {
            AccessEvent::Ended { name, bytes, outcome, .. } => Some(match outcome {
                Outcome::Complete => format!("{name} {bytes} complete"),
                Outcome::Aborted(why) => format!("{name} aborted: {why}"),
                Outcome::Failed(_) => format!("{name} failed"),
            }),
            _ => None,
        });
        ended.collect()
    }

    /// Waits until the DUT begins to read `wanted`.
    async fn opens(&self, wanted: &str) {
        let is_open = || {
            let seen = self.seen.lock().unwrap();
            seen.iter().any(|event| matches!(event, AccessEvent::Opened { name, .. } if name == wanted))
        };
        let waiting = async {
            while !is_open() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{wanted} was not read"));
    }

    /// Waits until the gateway saw something; it hears of a transfer's end after the DUT does.
    async fn until(&self, holds: impl Fn(&[String]) -> bool) {
        let waiting = async {
            while !holds(&self.ended()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("the gateway saw only {:?}", self.ended()));
    }
}

fn with(firmware: SimulatedFirmware, faults: &[Misbehaviour]) -> SimulatedConfig {
    let misbehave = faults.iter().map(|&what| Fault { what, boot: None, lasts: None }).collect();
    SimulatedConfig { firmware, console: None, misbehave }
}

async fn boots_a_job_to_its_end(on: On, firmware: SimulatedFirmware, loader: Option<&str>) {
    let Some(mut bench) = Bench::new(on, with(firmware, &[])).await else { return };
    bench.put(Protocol::Http, "/notes", "0123456789");
    bench.put(Protocol::Tftp, "/notes", "0123456789");
    let (web, files) = (bench.web.clone(), bench.files.clone());
    bench.publish_boot(&format!("wharf.url={web}/notes wharf.url={web}/none wharf.tftp={files}/notes"));
    bench.power(PowerState::On).await;
    let platform = if firmware == SimulatedFirmware::PlainUefi { "efi" } else { "pcbios" };
    let address = if on == On::Loopback { "127.77.0.5" } else { "10.77.0.5" };
    bench.hears(&format!("booting {MAC} at {address} on {platform}\r\n")).await;
    bench.hears(&format!("{web}/_/job/kernel... ok\r\n{web}/_/job/initramfs... ok\r\n")).await;
    bench.hears("Command line: initrd=initramfs console=ttyS0 mac=52-54-00-77-00-05 wharf.url=").await;
    bench.hears("wharf: init started\r\n").await;
    // sha256 of 0123456789, by sha256sum.
    let digest = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";
    let fetched = format!("wharf: sha256 {digest} {web}/notes\r\nwharf: fetched {web}/notes 10 bytes\r\n");
    bench.hears(&fetched).await;
    bench.hears(&format!("{web}/none: 404 Not Found\r\nwharf: failed {web}/none\r\n")).await;
    bench.hears(&format!("wharf: fetched {files}/notes 10 bytes\r\n")).await;
    bench.hears("wharf: beat 3\r\n").await;
    let end = bench.hears("reboot: Power Down\r\n").await;
    assert!(end.starts_with("wharf: job failed\r\n[    "), "{end}");
    assert_eq!(bench.machine.power().await, PowerState::On, "a DUT that switched itself off leaves its outlet on");
    assert!(bench.is_silent().await);
    let mut expected: Vec<String> = loader.map(|loader| format!("{loader} complete")).into_iter().collect();
    expected.extend(["/_/boot/boot.ipxe", "/_/job/kernel", "/_/job/initramfs"].map(str::to_owned));
    bench.until(|ended| ended.len() == expected.len() + 2).await;
    // Their ends are heard by tasks that do not wait for each other.
    let ended = bench.ended();
    for name in expected {
        assert!(ended.iter().any(|it| it.starts_with(&name) && it.ends_with("complete")), "{name}: {ended:?}");
    }
    for whole in ["/_/job/kernel 3000000 complete", "/_/job/initramfs 1000001 complete"] {
        assert!(ended.iter().any(|it| it == whole), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ipxe_boots_over_the_loopback() {
    boots_a_job_to_its_end(On::Loopback, SimulatedFirmware::Ipxe, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_bios_and_uefi_firmware_chainload_over_the_loopback() {
    boots_a_job_to_its_end(On::Loopback, SimulatedFirmware::PlainBios, Some("/undionly.kpxe 72000")).await;
    boots_a_job_to_its_end(On::Loopback, SimulatedFirmware::PlainUefi, Some("/snponly.efi 280000")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ipxe_boots_over_a_private_network() {
    boots_a_job_to_its_end(On::PrivateNetwork, SimulatedFirmware::Ipxe, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_uefi_firmware_chainloads_over_a_private_network() {
    boots_a_job_to_its_end(On::PrivateNetwork, SimulatedFirmware::PlainUefi, Some("/snponly.efi 280000")).await;
}

async fn power_off_stops_it_at_once(on: On) {
    let Some(mut bench) = Bench::new(on, SimulatedConfig::default()).await else { return };
    // 1 GiB of shared zeroes: in the middle of it for as long as the test needs.
    let part = Content::Inline(Bytes::from(vec![0; 2 << 20]));
    let kernel = Content::Joined(vec![part; 512].into());
    let name = || Name::Exact("/_/job/kernel".into());
    let put = |content| {
        bench.publication.put(Protocol::Http, name(), content, Exposure::default(), Origin::Generated, Instant::now());
    };
    put(kernel);
    bench.power(PowerState::On).await;
    bench.opens("/_/job/kernel").await;
    bench.power(PowerState::Off).await;
    assert_eq!(bench.machine.power().await, PowerState::Off);
    assert!(bench.is_silent().await);
    if on == On::Loopback {
        bench
            .until(|ended| {
                ended.last().is_some_and(|last| last.starts_with("/_/job/kernel") && !last.ends_with("complete"))
            })
            .await;
    }
    bench.put(Protocol::Http, "/_/job/kernel", "small");
    bench.power(PowerState::On).await;
    bench.hears("boot 2\r\n").await;
    bench.hears("wharf: job done\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_off_stops_it_at_once_over_the_loopback() {
    power_off_stops_it_at_once(On::Loopback).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_off_stops_it_at_once_over_a_private_network() {
    power_off_stops_it_at_once(On::PrivateNetwork).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reboots_through_dhcp_and_boots_are_counted_from_when_somebody_begins_to_use_it() {
    let mut bench = Bench::new(On::Loopback, SimulatedConfig::default()).await.unwrap();
    bench.publish_boot("wharf.end=reboot wharf.beats=0");
    bench.power(PowerState::On).await;
    bench.hears("boot 1\r\n").await;
    bench.hears("reboot: Restarting system\r\n").await;
    bench.publish_boot("wharf.end=hang wharf.beats=0");
    bench.hears("boot 2\r\n").await;
    bench.hears("Configuring (net0 52:54:00:77:00:05)...... ok\r\n").await;
    bench.hears("wharf: job done\r\n").await;
    assert!(bench.is_silent().await);
    bench.power(PowerState::Off).await;
    let closed = SimulatedConsole::new(Arc::clone(&bench.machine)).open().await.err().unwrap();
    assert_eq!(closed.to_string(), "the console is open already; close it first");
    SimulatedConsole::new(Arc::clone(&bench.machine)).begins();
    bench.power(PowerState::On).await;
    bench.hears("boot 1\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_happen_in_the_boots_they_are_given_for() {
    let faults = vec![
        Fault { what: Misbehaviour::NoDhcp, boot: Some(1), lasts: None },
        Fault { what: Misbehaviour::FallSilent, boot: Some(2), lasts: None },
    ];
    let config = SimulatedConfig { misbehave: faults, ..SimulatedConfig::default() };
    let mut bench = Bench::new(On::Loopback, config).await.unwrap();
    bench.power(PowerState::On).await;
    bench.hears("boot 1\r\n").await;
    assert!(bench.is_silent().await);
    assert!(bench._servers.0.leases().iter().all(|lease| lease.until.is_none()), "no DHCP");
    bench.power(PowerState::Off).await;
    bench.power(PowerState::On).await;
    bench.hears("/_/job/initramfs... ok\r\n").await;
    assert!(bench.is_silent().await);
    bench.power(PowerState::Off).await;
    bench.power(PowerState::On).await;
    bench.hears("boot 3\r\n").await;
    bench.hears("wharf: job done\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_looping_dut_never_ends_and_one_without_initramfs_never_asks_for_it() {
    let mut bench = Bench::new(On::Loopback, with(SimulatedFirmware::Ipxe, &[Misbehaviour::Loop])).await.unwrap();
    bench.publish_boot("wharf.beats=0");
    bench.power(PowerState::On).await;
    for _ in 0..3 {
        bench.hears("wharf: init started\r\n").await;
    }
    let mut bench =
        Bench::new(On::Loopback, with(SimulatedFirmware::Ipxe, &[Misbehaviour::NoInitramfs])).await.unwrap();
    bench.power(PowerState::On).await;
    bench.hears("/_/job/initramfs...").await;
    assert!(bench.is_silent().await);
    bench.until(|ended| ended.len() == 2).await;
    assert!(bench.ended().iter().any(|it| it == "/_/job/kernel 3000000 complete"), "{:?}", bench.ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_transfer_is_seen_as_such_and_made_good() {
    for (firmware, name) in
        [(SimulatedFirmware::PlainBios, "/undionly.kpxe"), (SimulatedFirmware::PlainUefi, "/snponly.efi")]
    {
        let mut bench = Bench::new(On::Loopback, with(firmware, &[Misbehaviour::AbortTransfer])).await.unwrap();
        bench.power(PowerState::On).await;
        bench.hears("wharf: job done\r\n").await;
        // When each is over is heard by tasks that do not wait for each other.
        bench
            .until(|ended| {
                let of_it = |end: &str| ended.iter().any(|it| it.starts_with(&format!("{name} ")) && it.contains(end));
                of_it("aborted: ") && of_it("complete")
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dut_that_comes_back_on_the_same_port_boots_without_a_pause() {
    let mut took = Vec::new();
    // A server that waits for the old transfer to time out needs at least the DUT's own second, each time. A loaded machine may.
    for _ in 0..5 {
        let mut bench =
            Bench::new(On::Loopback, with(SimulatedFirmware::PlainBios, &[Misbehaviour::SamePort])).await.unwrap();
        bench.power(PowerState::On).await;
        bench.hears("NBP filename").await;
        let started = Instant::now();
        bench.hears("NBP filesize is 72000 bytes\r\n").await;
        took.push(started.elapsed());
        if started.elapsed() < Duration::from_secs(1) {
            return;
        }
    }
    panic!("it paused each time: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_script_from_a_file_hears_what_is_typed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console.yml");
    std::fs::write(
        &path,
        "- say: 'login:'\n- expect: root\n- say: welcome to boot {{ boot }}\n- expect: {regex: never, within: 1ms}\n",
    )
    .unwrap();
    let config = SimulatedConfig { console: Some(path), ..SimulatedConfig::default() };
    let mut bench = Bench::new(On::Loopback, config).await.unwrap();
    bench.power(PowerState::On).await;
    bench.hears("login:\r\n").await;
    bench.console.write_all(b"guest\nroot\n").await.unwrap();
    bench.hears("welcome to boot 1\r\n").await;
    bench.hears("wharf: nothing expected was typed within 1ms\r\n").await;
}

#[test]
fn a_machine_that_cannot_be_says_why() {
    let wire = || Wire::Loopback { address: Ipv4Addr::LOCALHOST, dhcp: ([127, 0, 0, 1], 9).into(), tftp_port: 9 };
    let error = |config, mac| Machine::new(config, mac, wire()).err().unwrap().to_string();
    assert_eq!(
        error(SimulatedConfig::default(), "52:54"),
        "`52:54` is not a MAC address; write six bytes such as `52:54:00:77:00:01`"
    );
    let missing = SimulatedConfig { console: Some(PathBuf::from("/nowhere/c.yml")), ..SimulatedConfig::default() };
    assert_eq!(
        error(missing, MAC),
        "cannot read the console script /nowhere/c.yml: No such file or directory (os error 2)"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.yml");
    std::fs::write(&path, "- dance").unwrap();
    let bad = SimulatedConfig { console: Some(path.clone()), ..SimulatedConfig::default() };
    let told = error(bad, MAC);
    assert!(told.starts_with(&format!("{}: console script: ", path.display())), "{told}");
}
