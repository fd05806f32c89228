//! Ports of USB hubs that switch what hangs on them.
//!
//! ```text
//!  which hubs   `serial`, or `controller` and each `devpath` ── /sys/bus/usb/devices ─► a hub, or its two halves: one of USB 2, one of USB 3
//!  which way    …/<hub>:1.0/<hub>-port3/disable ─► 0 on, 1 off            the kernel's own, from 6.0 on
//!               without it: hub class requests, SET_FEATURE and CLEAR_FEATURE of PORT_POWER, GET_STATUS        (USB 2.0, 11.24.2)
//!  outlet `3` = port 3 of every one of these hubs, switched together: a half that is left on feeds the port
//! ```
//! The file is described in the kernel's Documentation/ABI/testing/sysfs-bus-usb (`<hub_interface>/port<X>/disable`). The kernel's bus numbers change from
//! boot to boot, so that a hub is named by its serial number, or by the controller and the ports that lead to it; a root hub's serial number is the
//! address of its controller. Many hubs tell that they switch ports, and cut the data only.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nusb::transfer::{ControlIn, ControlOut, ControlType, Recipient};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// A hub answers a request within 500 ms (USB 2.0, 9.2.6.4), and a sleeping one is woken first.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// The class of hubs (USB 2.0, 11.23.1).
const HUB_CLASS: &str = "09";
/// Requests and the feature (USB 2.0, tables 11-16 and 11-17).
const GET_STATUS: u8 = 0;
const CLEAR_FEATURE: u8 = 1;
const SET_FEATURE: u8 = 3;
const PORT_POWER: u16 = 8;
/// From this speed on, in Mbit/s, a hub's status is that of USB 3.
const SUPER_SPEED: f64 = 5000.0;

/// A hub of this host, with its halves.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Keys {
    /// The serial number that its halves have in common; a root hub's is the address of its controller.
    serial: Option<String>,
    /// The address of the controller that it hangs on: `0000:00:14.0`.
    controller: Option<String>,
    /// Its halves.
    devices: Vec<Half>,
    /// How its ports are switched: `sysfs`, or `port-power`; the first where the kernel has it, when it is not said.
    switch: Option<Way>,
}

/// A hub by the ports that lead to it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["devpath"]))]
struct Half {
    /// The ports from the controller on: `1.4`.
    devpath: String,
    /// Its vendor, as four hexadecimal digits, to be sure that it is the one.
    vendor: Option<String>,
    /// Its product.
    product: Option<String>,
}

/// How a port is switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// The kernel's file.
    Sysfs,
    /// A request to the hub, past the kernel.
    PortPower,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let by_place = self.controller.is_some() || !self.devices.is_empty();
        let hint = "`serial: …`, or `controller: \"0000:00:14.0\"` with `devices: [{devpath: \"1.4\"}]`; `wharf pdus --discover` shows both";
        let wrong = match (&self.serial, by_place) {
            (Some(_), true) => Some("a hub is named by its `serial` or by its place, not both"),
            (None, true) if self.controller.is_none() => Some("the `controller` is missing"),
            (None, true) if self.devices.is_empty() => Some("no `devices` are named"),
            (None, false) => Some("no hub is named"),
            _ => None,
        };
        if let Some(what) = wrong {
            return Err(vec![Mistake::new("", what, hint)]);
        }
        Ok(Arc::new(UsbHub { own: context.outlet.cloned(), keys: self, sysfs: PathBuf::from("/sys") }))
    }
}

struct UsbHub {
    own: Option<Outlet>,
    keys: Keys,
    sysfs: PathBuf,
}

/// A hub as the kernel shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Hub {
    /// The kernel's name: `1-1.4`, `usb2`.
    pub name: String,
    /// The ports that lead to it.
    pub devpath: String,
    /// Vendor and product, as hexadecimal digits.
    pub identity: (String, String),
    /// Its serial number.
    pub serial: Option<String>,
    /// The address of its controller.
    pub controller: String,
    /// Its ports, from 1.
    pub ports: u8,
    /// In Mbit/s.
    speed: f64,
    bus: u8,
    device: u8,
    directory: PathBuf,
}

impl Hub {
    /// The hubs of a host, in the order of their names.
    pub fn all(sysfs: &Path) -> std::io::Result<Vec<Hub>> {
        let entries = std::fs::read_dir(sysfs.join("bus/usb/devices"))?;
        let mut hubs: Vec<Hub> = entries.filter_map(|entry| Hub::read(&entry.ok()?.path())).collect();
        hubs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(hubs)
    }

    /// The hubs that are plugged in, each with its other half: what the kernel calls the peer of the port that it hangs on.
    pub fn pairs(sysfs: &Path) -> std::io::Result<Vec<Vec<Hub>>> {
        let hubs: Vec<Hub> = Hub::all(sysfs)?.into_iter().filter(|hub| !hub.name.starts_with("usb")).collect();
        let peer = |hub: &Hub| {
            let other = hub.directory.join("port/peer/device").canonicalize().ok()?;
            hubs.iter().find(|hub| hub.directory == other).cloned()
        };
        let pair = |hub: &Hub| match peer(hub) {
            Some(other) if other.speed < hub.speed => None,
            other => Some(std::iter::once(hub.clone()).chain(other).collect()),
        };
        Ok(hubs.iter().filter_map(pair).collect())
    }

    /// `None` for what is no hub: interfaces, other devices, one that is just being unplugged.
    fn read(link: &Path) -> Option<Hub> {
        let directory = link.canonicalize().ok()?;
        let text = |file: &str| std::fs::read_to_string(directory.join(file)).map(|text| text.trim().to_owned()).ok();
        if text("bDeviceClass")? != HUB_CLASS {
            return None;
        }
        // …/pci0000:00/0000:00:14.0/usb1/1-1/1-1.4: what is above the root hub.
        let above = directory.ancestors().find(|above| {
            let root_hub = above.file_name().is_some_and(|name| name.to_string_lossy().starts_with("usb"));
            root_hub && above.join("bDeviceClass").exists()
        })?;
        Some(Hub {
            name: link.file_name()?.to_str()?.to_owned(),
            devpath: text("devpath")?,
            identity: (text("idVendor")?, text("idProduct")?),
            serial: text("serial"),
            controller: above.parent()?.file_name()?.to_str()?.to_owned(),
            ports: text("maxchild")?.parse().ok()?,
            speed: text("speed")?.parse().ok()?,
            bus: text("busnum")?.parse().ok()?,
            device: text("devnum")?.parse().ok()?,
            directory,
        })
    }

    /// The kernel's file of a port, where it has one.
    fn file(&self, port: u8) -> Option<PathBuf> {
        let interfaces = std::fs::read_dir(&self.directory).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let file = |interface: PathBuf| interface.join(format!("{}-port{port}/disable", self.name));
        let is_interface = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(':'));
        interfaces.filter(is_interface).map(file).find(|file| file.exists())
    }

    fn matches(&self, half: &Half) -> bool {
        let (vendor, product) = &self.identity;
        let is =
            |wanted: &Option<String>, id: &str| wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(id));
        self.devpath == half.devpath && is(&half.vendor, vendor) && is(&half.product, product)
    }

    async fn open(&self) -> Result<nusb::Device, String> {
        let failed = |error: nusb::Error| format!("hub {} cannot be opened: {error}", self.name);
        let mut devices = nusb::list_devices().await.map_err(failed)?;
        let device = devices.find(|device| device.busnum() == self.bus && device.device_address() == self.device);
        device.ok_or_else(|| format!("hub {} is gone", self.name))?.open().await.map_err(failed)
    }

    async fn set(&self, port: u8, state: PowerState, way: Option<Way>) -> Result<(), String> {
        if let Some(file) = self.by_file(port, way)? {
            let disable = match state {
                PowerState::On => "0",
                PowerState::Off => "1",
            };
            return tokio::fs::write(&file, disable).await.map_err(|error| format!("{}: {error}", file.display()));
        }
        let request = match state {
            PowerState::On => SET_FEATURE,
            PowerState::Off => CLEAR_FEATURE,
        };
        let (control_type, recipient) = (ControlType::Class, Recipient::Other);
        let (value, index) = (PORT_POWER, u16::from(port));
        let setup = ControlOut { control_type, recipient, request, value, index, data: &[] };
        let done = self.open().await?.control_out(setup, REQUEST_TIME).await;
        done.map_err(|error| format!("hub {} does not switch port {port}: {error}", self.name))
    }

    async fn state(&self, port: u8, way: Option<Way>) -> Result<PowerState, String> {
        if let Some(file) = self.by_file(port, way)? {
            let disabled = tokio::fs::read_to_string(&file).await;
            return match disabled.map_err(|error| format!("{}: {error}", file.display()))?.trim() {
                "0" => Ok(PowerState::On),
                "1" => Ok(PowerState::Off),
                other => Err(format!("{} is `{other}`, neither 0 nor 1", file.display())),
            };
        }
        let (control_type, recipient) = (ControlType::Class, Recipient::Other);
        let setup =
            ControlIn { control_type, recipient, request: GET_STATUS, value: 0, index: u16::from(port), length: 4 };
        let status = self.open().await?.control_in(setup, REQUEST_TIME).await;
        let status = status.map_err(|error| format!("hub {} does not tell of port {port}: {error}", self.name))?;
        let [low, high, ..] = status.as_slice() else {
            return Err(format!("hub {} told of port {port} in {} bytes", self.name, status.len()));
        };
        Ok(self.powered(u16::from_le_bytes([*low, *high])))
    }

    /// `wPortStatus`: PORT_POWER is bit 8 (USB 2.0, table 11-21), and bit 9 of USB 3 (USB 3.2, table 10-13).
    fn powered(&self, status: u16) -> PowerState {
        let bit = if self.speed >= SUPER_SPEED { 9 } else { 8 };
        if status >> bit & 1 == 1 { PowerState::On } else { PowerState::Off }
    }

    fn by_file(&self, port: u8, way: Option<Way>) -> Result<Option<PathBuf>, String> {
        match (way, self.file(port)) {
            (Some(Way::PortPower), _) | (None, None) => Ok(None),
            (_, Some(file)) => Ok(Some(file)),
            (Some(Way::Sysfs), None) => Err(format!(
                "the kernel has no `disable` for port {port} of hub {}: Linux 6.0 and later do; leave out `switch`",
                self.name
            )),
        }
    }
}

impl UsbHub {
    /// All halves, as they are plugged in now.
    fn halves(&self) -> Result<Vec<Hub>, String> {
        let all =
            Hub::all(&self.sysfs).map_err(|error| format!("this host's USB devices cannot be listed: {error}"))?;
        if let Some(serial) = &self.keys.serial {
            let halves: Vec<Hub> = all.iter().filter(|hub| hub.serial.as_ref() == Some(serial)).cloned().collect();
            return if halves.is_empty() {
                Err(missing(&format!("with the serial number `{serial}`"), &all))
            } else {
                Ok(halves)
            };
        }
        let controller = self.keys.controller.as_deref().unwrap_or_default();
        let half = |half: &Half| {
            let found = all.iter().find(|hub| hub.controller == controller && hub.matches(half));
            found.cloned().ok_or_else(|| missing(&format!("at {} of controller {controller}", half.devpath), &all))
        };
        self.keys.devices.iter().map(half).collect()
    }

    /// The hubs that have the port, and its number.
    fn ports(&self, outlet: &Outlet) -> Result<(Vec<Hub>, u8), PowerError> {
        let halves = self.halves().map_err(|reason| PowerError::of(outlet, reason))?;
        let names = names(&halves);
        let port = u8::try_from(position(outlet, self.own.as_ref(), &names)? + 1).expect("a hub has 255 ports at most");
        Ok((halves.into_iter().filter(|hub| hub.ports >= port).collect(), port))
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let (halves, port) = self.ports(outlet)?;
        for hub in halves {
            hub.set(port, state, self.keys.switch).await.map_err(|reason| PowerError::of(outlet, reason))?;
        }
        Ok(())
    }

    async fn read(&self, outlet: &Outlet) -> Result<PowerState, PowerError> {
        let (halves, port) = self.ports(outlet)?;
        let mut states = Vec::new();
        for hub in &halves {
            let state = hub.state(port, self.keys.switch).await.map_err(|reason| PowerError::of(outlet, reason))?;
            states.push((&hub.name, state));
        }
        match states.as_slice() {
            [(_, first), rest @ ..] if rest.iter().all(|(_, state)| state == first) => Ok(*first),
            _ => {
                let each: Vec<String> = states.iter().map(|(name, state)| format!("{name} {state}")).collect();
                Err(PowerError::of(outlet, format!("its hubs do not agree: {}; switch it once more", each.join(", "))))
            }
        }
    }
}

/// The ports of the largest half.
fn names(halves: &[Hub]) -> Vec<String> {
    let ports = halves.iter().map(|hub| hub.ports).max().unwrap_or_default();
    (1..=ports).map(|port| port.to_string()).collect()
}

fn missing(which: &str, all: &[Hub]) -> String {
    let name = |hub: &Hub| format!("{} of {} ({}:{})", hub.devpath, hub.controller, hub.identity.0, hub.identity.1);
    match all {
        [] => format!("no hub {which}; this host has none"),
        all => format!("no hub {which}; there are: {}", all.iter().map(name).collect::<Vec<_>>().join(", ")),
    }
}

impl Pdu for UsbHub {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        self.read(outlet).boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async {
            let halves = self.halves().map_err(|reason| PowerError { outlet: "all".to_owned(), reason })?;
            Ok(Some(names(&halves).into_iter().map(OutletInfo::named).collect()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{mistakes, outlet};

    /// A tree as the kernel shows it: a controller with a root hub for each speed, and on port 1 of both a hub with four ports.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Tree {
            let tree = Tree(tempfile::tempdir().unwrap());
            std::fs::create_dir_all(tree.path("bus/usb/devices")).unwrap();
            tree.hub("usb1", "usb1", "0", "480", "1d6b:0002", Some("0000:00:14.0"), 1);
            tree.hub("usb2", "usb2", "0", "5000", "1d6b:0003", Some("0000:00:14.0"), 1);
            tree.hub("usb1/1-1", "1-1", "1", "480", "05e3:0610", None, 4);
            tree.hub("usb2/2-1", "2-1", "1", "5000", "05e3:0626", None, 4);
            tree
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        #[allow(clippy::too_many_arguments, reason = "a row of the tree above")]
        fn hub(&self, place: &str, name: &str, devpath: &str, speed: &str, id: &str, serial: Option<&str>, ports: u8) {
            let directory = self.path("devices/pci0000:00/0000:00:14.0").join(place);
            let (vendor, product) = id.split_once(':').unwrap();
            let interface = name.strip_prefix("usb").map_or_else(|| name.to_owned(), |bus| format!("{bus}-0"));
            for port in 1..=ports {
                let port = directory.join(format!("{interface}:1.0/{name}-port{port}"));
                std::fs::create_dir_all(&port).unwrap();
                std::fs::write(port.join("disable"), "0\n").unwrap();
            }
            let bus = if speed == "480" { "1" } else { "2" };
            let files = [("bDeviceClass", "09"), ("devpath", devpath), ("idVendor", vendor), ("idProduct", product)];
            let more = [
                ("maxchild", ports.to_string()),
                ("speed", speed.to_owned()),
                ("busnum", bus.to_owned()),
                ("devnum", "2".to_owned()),
            ];
            let files = files.map(|(file, text)| (file, text.to_owned())).into_iter().chain(more);
            for (file, text) in files.chain(serial.map(|serial| ("serial", serial.to_owned()))) {
                std::fs::write(directory.join(file), format!("{text}\n")).unwrap();
            }
            std::os::unix::fs::symlink(&directory, self.path("bus/usb/devices").join(name)).unwrap();
        }

        fn pdu(&self, keys: serde_json::Value) -> UsbHub {
            UsbHub { own: None, keys: serde_json::from_value(keys).unwrap(), sysfs: self.0.path().to_owned() }
        }

        fn disable(&self, hub: &str, port: u8) -> String {
            let file = format!("bus/usb/devices/{hub}/{hub}:1.0/{hub}-port{port}/disable");
            std::fs::read_to_string(self.path(&file)).unwrap().trim().to_owned()
        }
    }

    fn both_halves() -> serde_json::Value {
        json!({ "controller": "0000:00:14.0", "devices": [
            { "devpath": "1", "vendor": "05E3", "product": "0610" }, { "devpath": "1", "vendor": "05e3", "product": "0626" },
        ] })
    }

    #[tokio::test]
    async fn both_halves_of_a_hub_are_switched_together() {
        let tree = Tree::new();
        let pdu = tree.pdu(both_halves());
        assert_eq!(pdu.state(&outlet("3")).await.unwrap(), PowerState::On);
        pdu.set(&outlet("3"), PowerState::Off).await.unwrap();
        assert_eq!([tree.disable("1-1", 3), tree.disable("2-1", 3), tree.disable("1-1", 2)], ["1", "1", "0"]);
        assert_eq!(pdu.state(&outlet("3")).await.unwrap(), PowerState::Off);
        pdu.set(&outlet("3"), PowerState::On).await.unwrap();
        assert_eq!([tree.disable("1-1", 3), tree.disable("2-1", 3)], ["0", "0"]);
        let known: Vec<String> = pdu.outlets().await.unwrap().unwrap().into_iter().map(|it| it.outlet.0).collect();
        assert_eq!(known, ["1", "2", "3", "4"]);
        let told = pdu.set(&outlet("5"), PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `5`: no such outlet; outlets: 1, 2, 3, 4");
    }

    #[tokio::test]
    async fn halves_that_do_not_agree_are_told() {
        let tree = Tree::new();
        let one = json!({ "controller": "0000:00:14.0", "devices": [{ "devpath": "1", "product": "0610" }] });
        tree.pdu(one).set(&outlet("4"), PowerState::Off).await.unwrap();
        let told = tree.pdu(both_halves()).state(&outlet("4")).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `4`: its hubs do not agree: 1-1 off, 2-1 on; switch it once more");
    }

    #[tokio::test]
    async fn root_hubs_have_their_controllers_address_for_a_serial_number() {
        let tree = Tree::new();
        let root = tree.pdu(json!({ "serial": "0000:00:14.0" }));
        let halves = root.halves().unwrap();
        assert_eq!(halves.iter().map(|hub| hub.name.as_str()).collect::<Vec<_>>(), ["usb1", "usb2"]);
        root.set(&outlet("1"), PowerState::Off).await.unwrap();
        assert_eq!(root.state(&outlet("1")).await.unwrap(), PowerState::Off);
    }

    #[tokio::test]
    async fn a_hub_that_is_not_there_is_told_with_those_that_are() {
        let tree = Tree::new();
        let told = tree.pdu(json!({ "serial": "77" })).state(&outlet("1")).await.unwrap_err().reason;
        assert_eq!(
            told,
            "no hub with the serial number `77`; there are: 1 of 0000:00:14.0 (05e3:0610), 1 of 0000:00:14.0 (05e3:0626), \
             0 of 0000:00:14.0 (1d6b:0002), 0 of 0000:00:14.0 (1d6b:0003)"
        );
        std::fs::remove_file(tree.path("bus/usb/devices/1-1/1-1:1.0/1-1-port1/disable")).unwrap();
        let keys = json!({ "controller": "0000:00:14.0", "devices": [{ "devpath": "1" }], "switch": "sysfs" });
        let told = tree.pdu(keys).state(&outlet("1")).await.unwrap_err().reason;
        assert_eq!(
            told,
            "the kernel has no `disable` for port 1 of hub 1-1: Linux 6.0 and later do; leave out `switch`"
        );
    }

    #[test]
    fn the_halves_of_a_hub_are_found_by_the_ports_that_they_hang_on() {
        let tree = Tree::new();
        let pair = |hub: &Hub| (hub.name.clone(), hub.controller.clone());
        let alone = Hub::pairs(tree.0.path()).unwrap();
        assert_eq!(alone.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        let devices = tree.path("devices/pci0000:00/0000:00:14.0");
        let ports = [devices.join("usb1/1-0:1.0/usb1-port1"), devices.join("usb2/2-0:1.0/usb2-port1")];
        for (index, hub) in ["usb1/1-1", "usb2/2-1"].into_iter().enumerate() {
            std::os::unix::fs::symlink(&ports[index], devices.join(hub).join("port")).unwrap();
            std::os::unix::fs::symlink(devices.join(hub), ports[index].join("device")).unwrap();
            std::os::unix::fs::symlink(&ports[1 - index], ports[index].join("peer")).unwrap();
        }
        let pairs = Hub::pairs(tree.0.path()).unwrap();
        let controller = "0000:00:14.0".to_owned();
        let expected = [("1-1".to_owned(), controller.clone()), ("2-1".to_owned(), controller)];
        assert_eq!(
            pairs.iter().map(|halves| halves.iter().map(pair).collect::<Vec<_>>()).collect::<Vec<_>>(),
            [expected]
        );
    }

    #[test]
    fn the_bit_of_a_ports_power_is_the_speeds() {
        let hubs = Hub::all(Tree::new().0.path()).unwrap();
        let [slow, fast] = [&hubs[0], &hubs[1]];
        assert_eq!((slow.powered(0x0100), slow.powered(0x0200)), (PowerState::On, PowerState::Off));
        assert_eq!((fast.powered(0x0100), fast.powered(0x0200)), (PowerState::Off, PowerState::On));
    }

    #[test]
    fn a_hub_is_named_one_way() {
        let told = |keys| mistakes::<Keys>(&keys, None);
        assert_eq!(told(json!({})), [": no hub is named"]);
        assert_eq!(told(json!({ "controller": "0000:00:14.0" })), [": no `devices` are named"]);
        assert_eq!(told(json!({ "devices": [{ "devpath": "1" }] })), [": the `controller` is missing"]);
        let both = json!({ "serial": "1", "controller": "0000:00:14.0" });
        assert_eq!(told(both), [": a hub is named by its `serial` or by its place, not both"]);
    }
}
