//! One boot of a simulated DUT, from the power-on self test to its end: does what the cores beside it decide.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::boot_image::Header;
use super::dhcp::{self, Client, DhcpError, Identity, Lease};
use super::fastboot::{self, Loaded, Loader};
use super::fetch::{Fetched, Station};
use super::ipxe::{Action, Answer, Boot, Interpreter, Purpose, Value};
use super::script::{Act, Awaited, Facts, Player, kernel_time};
use super::{Dut, uri};
use crate::config::{Fault, Misbehaviour, SimulatedFirmware};

/// 50 ms of self test: a DUT whose script reboots at once must not occupy a core.
const SELF_TEST: Duration = Duration::from_millis(50);
/// A flood says 100 kB in each 10 ms: 10 MB a second, some thousand times what a serial line carries.
const FLOOD_PAUSE: Duration = Duration::from_millis(10);
const FLOOD_LINES_AT_ONCE: usize = 1000;
const FLOOD_LINE_BYTES: usize = 100;
/// A DUT that does not stop talking says a hundred lines a second.
const TALK_PAUSE: Duration = Duration::from_millis(10);

/// Boots again and again, for as long as there is power.
pub(super) async fn run(dut: Arc<Dut>) {
    loop {
        let number = dut.boots.fetch_add(1, Ordering::SeqCst) + 1;
        let end = Power { dut: &dut, number }.boot().await;
        match end {
            End::Reboot => {}
            // Whatever happened: the outlet is on, the DUT does nothing, and somebody's timeout will see it.
            End::Off | End::Stuck => pending().await,
        }
    }
}

/// How a boot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Reboot,
    Off,
    Stuck,
}

/// A DUT with power, in one of its boots.
struct Power<'a> {
    dut: &'a Dut,
    number: u32,
}

impl Power<'_> {
    async fn boot(&self) -> End {
        // What the last boot left; an error shows again, with words, when the new address is set.
        let _ = self.dut.wire.cut().await;
        sleep(SELF_TEST).await;
        self.say(&format!("\nWharfinger simulated DUT {}, boot {}\n", self.mac(), self.number)).await;
        if self.has(Misbehaviour::NoDhcp) {
            return End::Stuck;
        }
        if self.dut.config.firmware == SimulatedFirmware::Fastboot {
            return match self.run_loader().await {
                Ok((loaded, station)) => self.run_kernel(loaded.header.cmdline, station).await,
                Err(why) => self.gives_up(&why).await,
            };
        }
        if let Some(client) = self.plain_client()
            && let Err(why) = self.chainload(client).await
        {
            return self.gives_up(&why).await;
        }
        match self.run_ipxe().await {
            Ok(Started::Kernel(boot, station)) => self.run_kernel(boot.command_line, station).await,
            Ok(Started::Ended(end)) => end,
            Err(why) => self.gives_up(&why).await,
        }
    }

    async fn gives_up(&self, why: &str) -> End {
        self.say(&format!("{why}\nNo bootable device.\n")).await;
        End::Stuck
    }

    /// The firmware's own PXE client: fetches the network boot program whole, as its next stage.
    async fn chainload(&self, client: Client) -> Result<(), String> {
        let mut station = self.connect(client).await?;
        let Some(name) = station.lease.bootfile.clone() else {
            return Err("PXE-E53: No boot filename received".into());
        };
        self.say(&format!("NBP filename is {name}\n")).await;
        let fetched = self.fetch_bootfile(&mut station, &name).await?;
        self.say(&format!("NBP filesize is {} bytes\n", fetched.bytes)).await;
        Ok(())
    }

    /// iPXE: address, boot script, and what it says.
    async fn run_ipxe(&self) -> Result<Started, String> {
        self.say("iPXE (simulated) -- Open Source Network Boot Firmware -- https://ipxe.org\n").await;
        let mut station = self.connect(self.ipxe_client()).await?;
        let Some(name) = station.lease.bootfile.clone() else {
            return Err("Nothing to boot: No such file or directory".into());
        };
        self.say(&format!("Filename: {name}\n")).await;
        let fetched = self.fetch_bootfile(&mut station, &name).await?;
        let address = self.address_of(&station, &name);
        let Some(text) = fetched.script else {
            return Err(format!("Could not boot: {address}: Exec format error"));
        };
        let mut interpreter = Interpreter::new(self.settings(&station.lease), &address, &text);
        let mut answer = Answer::Done;
        loop {
            answer = match interpreter.step(answer) {
                Action::Print(text) => {
                    self.say(&text).await;
                    Answer::Done
                }
                Action::Sleep(time) => {
                    sleep(time).await;
                    Answer::Done
                }
                Action::Fetch { uri, purpose } => match self.fetch_for(&mut station, &uri, purpose).await {
                    Some(answer) => answer,
                    None => return Ok(Started::Ended(End::Stuck)),
                },
                Action::Dhcp => match self.connect(self.ipxe_client()).await {
                    Ok(renewed) => {
                        station.lease = renewed.lease;
                        interpreter.configure(self.settings(&station.lease));
                        Answer::Done
                    }
                    Err(why) => Answer::Failed(why),
                },
                Action::Boot(boot) => return Ok(Started::Kernel(Box::new(boot), station)),
                Action::Reboot => return Ok(Started::Ended(End::Reboot)),
                Action::PowerOff => return Ok(Started::Ended(End::Off)),
                Action::Finished(Ok(())) => return Err("The boot script ended without booting anything.".into()),
                Action::Finished(Err(why)) => return Err(format!("Could not boot: {why}")),
            };
        }
    }

    /// A loader that waits for somebody to give it a boot image.
    async fn run_loader(&self) -> Result<(Loaded, Station), String> {
        let station = self.connect(Client::Loader).await?;
        let address = station.lease.address;
        let listener = self.dut.wire.listen(address, fastboot::PORT);
        let listener = listener.map_err(|error| format!("fastboot: cannot listen at {address}: {error}"))?;
        let serial = self.mac().replace(':', "");
        self.say(&format!("fastboot (simulated): {serial} waits at {address}:{}\n", fastboot::PORT)).await;
        let loader = Loader { serial, faults: self.faults().collect() };
        let loaded = loader.serve(&listener).await.map_err(|error| format!("fastboot: {error}"))?;
        let Header { version, kernel, ramdisk, dtb, .. } = &loaded.header;
        let (bytes, sha256) = (loaded.bytes, &loaded.sha256);
        self.say(&format!(
            "fastboot: {bytes} bytes, sha256 {sha256}\n\
             fastboot: version {version}, kernel {kernel}, RAM disk {ramdisk}, device tree {dtb} bytes\n"
        ))
        .await;
        Ok((loaded, station))
    }

    /// Fetches for the boot script; `None` where a fault says never.
    async fn fetch_for(&self, station: &mut Station, uri: &str, purpose: Purpose) -> Option<Answer> {
        self.say(&format!("{uri}...")).await;
        if purpose == Purpose::Initrd && self.has(Misbehaviour::NoInitramfs) {
            return None;
        }
        Some(match station.fetch(uri).await {
            Ok(Fetched { bytes, script, .. }) => {
                self.say(" ok\n").await;
                Answer::Fetched { bytes, script }
            }
            Err(error) => {
                self.say(&format!(" {error}\n")).await;
                Answer::Failed(error.to_string())
            }
        })
    }

    async fn fetch_bootfile(&self, station: &mut Station, name: &str) -> Result<Fetched, String> {
        let address = self.address_of(station, name);
        self.say(&format!("{address}...")).await;
        let fetched =
            if uri::has_scheme(name) { station.fetch(name).await } else { station.fetch_bootfile(name).await };
        match fetched {
            Ok(fetched) => {
                self.say(" ok\n").await;
                Ok(fetched)
            }
            Err(error) => {
                self.say(&format!(" {error}\n")).await;
                Err(format!("Could not boot: {error}"))
            }
        }
    }

    fn address_of(&self, station: &Station, name: &str) -> String {
        if uri::has_scheme(name) {
            return name.to_owned();
        }
        let server = self.dut.wire.tftp_server(station.lease.next_server, None);
        let port = if server.port() == 69 { String::new() } else { format!(":{}", server.port()) };
        format!("tftp://{}{port}/{}", server.ip(), name.trim_start_matches('/'))
    }

    /// Asks for an address until there is one: firmware goes round its boot order for as long as it has power.
    async fn connect(&self, client: Client) -> Result<Station, String> {
        let identity = Identity { mac: self.dut.mac, uuid: self.uuid(), client };
        loop {
            self.say(&format!("Configuring (net0 {})......", self.mac())).await;
            match dhcp::acquire(&self.dut.wire, &identity).await {
                Ok(lease) => {
                    let configured = self.dut.wire.configure(lease.address, lease.netmask).await;
                    configured.map_err(|error| format!("cannot use the address {}: {error}", lease.address))?;
                    self.say(&format!(" ok\nnet0: {}/{}", lease.address, lease.netmask)).await;
                    let router = lease.router.map(|router| format!(" gw {router}")).unwrap_or_default();
                    self.say(&format!("{router}\nNext server: {}\n", lease.next_server)).await;
                    return Ok(self.station(lease, client));
                }
                Err(error @ (DhcpError::Silence | DhcpError::Refused)) => self.say(&format!(" {error}\n")).await,
                Err(error @ DhcpError::Socket(_)) => return Err(error.to_string()),
            }
            sleep(SELF_TEST).await;
        }
    }

    fn station(&self, lease: Lease, client: Client) -> Station {
        // A fault of a transfer belongs to the program that makes the first one.
        let first = self.plain_client().unwrap_or(self.ipxe_client());
        let faults = if client == first { self.faults().collect() } else { Vec::new() };
        Station { wire: self.dut.wire.clone(), lease, client, faults }
    }

    /// The kernel and what runs on it: the console script.
    async fn run_kernel(&self, command_line: String, mut station: Station) -> End {
        if self.has(Misbehaviour::FallSilent) {
            return End::Stuck;
        }
        if let Some(length) = self.fault(Misbehaviour::ConsoleAway).and_then(|fault| fault.lasts) {
            self.dut.line.go_away(length).await;
        }
        let started = Instant::now();
        let facts = Facts {
            command_line,
            mac: self.mac(),
            address: station.lease.address.to_string(),
            network: format!("{}/{}", station.lease.address, station.lease.netmask.to_bits().leading_ones()),
            boot: self.number,
        };
        let end = match self.fault(Misbehaviour::ConsoleFloods) {
            None => self.run_init(facts, &mut station, started).await,
            Some(flood) => tokio::select! {
                Some(end) = async {
                    let end = self.run_init(facts, &mut station, started).await;
                    // A system that hangs has not ended, and floods on.
                    (end != End::Stuck).then_some(end)
                } => end,
                end = self.flood(flood.lasts) => end,
            },
        };
        if self.has(Misbehaviour::TalksOn) {
            return self.talk_on().await;
        }
        end
    }

    /// The console script, once or for ever.
    async fn run_init(&self, facts: Facts, station: &mut Station, started: Instant) -> End {
        loop {
            let end = self.play(Player::new(&self.dut.script, facts.clone()), station, started).await;
            if !self.has(Misbehaviour::Loop) {
                return end;
            }
            // As long as a self test: a script that says one line must not fill the log's disk at memory speed.
            sleep(SELF_TEST).await;
        }
    }

    /// As many lines as FLOOD_… say, or as the reader takes; then nothing more, and never an end.
    async fn flood(&self, lasts: Option<Duration>) -> End {
        let line = format!("{:<width$}\n", "a line of a flood", width = FLOOD_LINE_BYTES - 2);
        let lines = line.repeat(FLOOD_LINES_AT_ONCE);
        let started = Instant::now();
        let mut tick = interval(FLOOD_PAUSE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while lasts.is_none_or(|lasts| started.elapsed() < lasts) {
            tick.tick().await;
            self.say(&lines).await;
        }
        pending().await
    }

    async fn talk_on(&self) -> End {
        let mut number = 0_u64;
        loop {
            number += 1;
            self.say(&format!("wharf: still talking {number}\n")).await;
            sleep(TALK_PAUSE).await;
        }
    }

    async fn play(&self, mut player: Player, station: &mut Station, started: Instant) -> End {
        loop {
            match player.next() {
                Act::Say(text) => self.say(&format!("{text}\n")).await,
                Act::Raw(text) => self.write(&text).await,
                Act::Kernel(text) => self.say(&format!("{} {text}\n", kernel_time(started.elapsed()))).await,
                Act::Wait(time) => sleep(time).await,
                Act::Expect(awaited, within) => self.await_line(&awaited, within).await,
                Act::Fetch(address) => {
                    if !self.report(&address, station).await {
                        player.failed();
                    }
                }
                Act::Post { to, json } => {
                    if !self.post(&to, json, station).await {
                        player.failed();
                    }
                }
                Act::Reboot => return End::Reboot,
                Act::Poweroff => return End::Off,
                Act::Hang | Act::End => return End::Stuck,
            }
        }
    }

    async fn await_line(&self, awaited: &Awaited, within: Option<Duration>) {
        let met = async { while !awaited.is_met_by(&self.dut.line.read_line().await) {} };
        match within {
            None => met.await,
            Some(within) => {
                if timeout(within, met).await.is_err() {
                    self.say(&format!("wharf: nothing expected was typed within {within:?}\n")).await;
                }
            }
        }
    }

    /// The lines that a real DUT's init prints as well (`fixtures/consoles/README.md`). Whether the file arrived.
    async fn report(&self, address: &str, station: &mut Station) -> bool {
        let fetched = station.fetch(address).await;
        let text = match &fetched {
            Ok(Fetched { bytes, sha256, .. }) => {
                format!("wharf: sha256 {sha256} {address}\nwharf: fetched {address} {bytes} bytes\n")
            }
            Err(error) => format!("{address}: {error}\nwharf: failed {address}\n"),
        };
        self.say(&text).await;
        fetched.is_ok()
    }

    /// Says what was answered. Whether that was a success.
    async fn post(&self, address: &str, json: String, station: &Station) -> bool {
        let answered = station.post(address, json).await;
        let text = match &answered {
            Ok((status, text)) => format!("wharf: posted to {address}: {status} {}\n", text.trim_end()),
            Err(error) => format!("wharf: failed {address}: {error}\n"),
        };
        self.say(&text).await;
        answered.is_ok_and(|(status, _)| (200..300).contains(&status))
    }

    /// Writes on the console. Without power nobody says a word any more.
    async fn say(&self, text: &str) {
        self.write(&text.replace('\n', "\r\n")).await;
    }

    /// The same without the carriage returns that a terminal adds.
    async fn write(&self, text: &str) {
        if !self.dut.powered.load(Ordering::SeqCst) {
            return pending().await;
        }
        self.dut.line.write(text.as_bytes()).await;
    }

    fn has(&self, wanted: Misbehaviour) -> bool {
        self.fault(wanted).is_some()
    }

    fn fault(&self, wanted: Misbehaviour) -> Option<Fault> {
        self.dut.fault(wanted, self.number)
    }

    fn faults(&self) -> impl Iterator<Item = Misbehaviour> {
        let now = |boot: Option<u32>| boot.is_none_or(|boot| boot == self.number);
        self.dut.config.misbehave.iter().filter(move |fault| now(fault.boot)).map(|fault| fault.what)
    }

    fn plain_client(&self) -> Option<Client> {
        match self.dut.config.firmware {
            SimulatedFirmware::Ipxe | SimulatedFirmware::Fastboot => None,
            SimulatedFirmware::PlainBios => Some(Client::PlainBios),
            SimulatedFirmware::PlainUefi => Some(Client::PlainUefi),
        }
    }

    fn ipxe_client(&self) -> Client {
        match self.dut.config.firmware {
            SimulatedFirmware::Ipxe | SimulatedFirmware::PlainBios => Client::IpxeBios,
            SimulatedFirmware::PlainUefi => Client::IpxeUefi,
            SimulatedFirmware::Fastboot => Client::Loader,
        }
    }

    fn mac(&self) -> String {
        self.dut.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// A version-4-shaped UUID that is always the same for one MAC.
    fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 0];
        uuid[10..].copy_from_slice(&self.dut.mac);
        uuid
    }

    /// What boot scripts read as `${…}`.
    fn settings(&self, lease: &Lease) -> BTreeMap<String, Value> {
        let (platform, architecture) = match self.ipxe_client() {
            Client::PlainUefi | Client::IpxeUefi => ("efi", "x86_64"),
            Client::PlainBios | Client::IpxeBios | Client::Loader => ("pcbios", "i386"),
        };
        let text = |text: &str| Value::Text(text.to_owned());
        let address = |address: Ipv4Addr| Value::Address(address.octets());
        let mut settings = BTreeMap::from([
            ("mac", Value::Hex(self.dut.mac.to_vec())),
            ("uuid", Value::Uuid(self.uuid())),
            ("platform", text(platform)),
            ("buildarch", text(architecture)),
            ("version", text("1.0.0+simulated")),
            ("manufacturer", text("Wharfinger")),
            ("product", text("Simulated DUT")),
            ("user-class", text("iPXE")),
            ("ip", address(lease.address)),
            ("netmask", address(lease.netmask)),
            ("next-server", address(lease.next_server)),
            ("dhcp-server", address(lease.server)),
        ]);
        settings.extend(lease.router.map(|router| ("gateway", address(router))));
        settings.extend(lease.dns.map(|dns| ("dns", address(dns))));
        settings.extend(lease.hostname.as_deref().map(|name| ("hostname", text(name))));
        settings.extend(lease.bootfile.as_deref().map(|name| ("filename", text(name))));
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What iPXE left behind.
enum Started {
    Kernel(Box<Boot>, Station),
    Ended(End),
}
