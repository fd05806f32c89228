//! Fastboot over USB, by the kernel's usbfs: no driver, no library in C. The interface of a loader has the class 0xff, the subclass 0x42 and the
//! protocol 0x03, with one bulk endpoint each way (AOSP, system/core/fastboot).
//!
//! ```text
//!  /sys/bus/usb ── interface ff/42/03 ── serial number, place ─► one device ── claim ─► bulk out: commands, the image
//!                                                                                 └─► bulk in:  answers, a packet each
//! ```
//! The image goes out in pieces of many packets; only its last may be a short one, as AOSP's host sends it: no packet of length zero.

use std::fmt;
use std::io;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nusb::descriptors::TransferType;
use nusb::transfer::{Buffer, Bulk, Direction, In, Out};
use nusb::{DeviceInfo, Endpoint, Interface};

use super::dialogue::ANSWER_BYTES_MAX;
use super::{Link, Missed};

/// Class, subclass and protocol of a loader's interface.
const FASTBOOT: (u8, u8, u8) = (0xff, 0x42, 0x03);
/// Devices that a sentence names.
const NAMED_MAX: usize = 8;

/// Which of the devices on USB is meant; what is `None` may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its serial number.
    pub serial: Option<String>,
    /// The place that it hangs at, as the kernel calls it: bus and ports, `1-4.2`.
    pub path: Option<String>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.serial, &self.path) {
            (Some(serial), Some(path)) => write!(f, "the serial number `{serial}` at {path}"),
            (Some(serial), None) => write!(f, "the serial number `{serial}`"),
            (None, Some(path)) => write!(f, "any serial number at {path}"),
            (None, None) => f.write_str("any serial number"),
        }
    }
}

impl Device {
    pub(super) async fn open(&self) -> Result<Box<dyn Link>, Missed> {
        let all = nusb::list_devices().await;
        let all = all.map_err(|error| Missed::Host(format!("this host's USB devices cannot be listed: {error}")))?;
        let loaders: Vec<DeviceInfo> = all.filter(|device| interface_of(device).is_some()).collect();
        let names: Vec<Names> = loaders.iter().map(Names::of).collect();
        let chosen = self.choose(&names)?;
        let link = UsbLink::open(&loaders[chosen]).await;
        // It may have been there for so short a time that nobody may open it yet: udev gives the rights.
        let link = link.map_err(|error| Missed::NotYet(format!("{} cannot be opened: {error}", names[chosen])))?;
        Ok(Box::new(link))
    }

    /// The one that is meant.
    fn choose(&self, there: &[Names]) -> Result<usize, Missed> {
        let is_meant = |names: &&Names| {
            let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
            is(&self.serial, &names.serial) && is(&self.path, &names.path)
        };
        let meant: Vec<usize> = (0..there.len()).filter(|index| is_meant(&&there[*index])).collect();
        match meant.as_slice() {
            [one] => Ok(*one),
            [] if there.is_empty() => Err(Missed::NotYet("there is no fastboot device on USB".to_owned())),
            [] => Err(Missed::NotYet(format!("on USB there is {}", list(there.iter())))),
            several => {
                let which = list(several.iter().map(|index| &there[*index]));
                Err(Missed::Host(format!("several devices are meant: {which}; name one by `usb.serial` or `usb.path`")))
            }
        }
    }
}

/// What a device is told apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    serial: String,
    path: String,
}

impl Names {
    fn of(device: &DeviceInfo) -> Names {
        let ports: Vec<_> = device.port_chain().iter().map(u8::to_string).collect();
        let serial = device.serial_number().unwrap_or_default().to_owned();
        Names { serial, path: format!("{}-{}", device.busnum(), ports.join(".")) }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` at {}", self.serial, self.path)
    }
}

fn list<'a>(names: impl Iterator<Item = &'a Names>) -> String {
    names.take(NAMED_MAX).map(Names::to_string).collect::<Vec<_>>().join(", ")
}

fn interface_of(device: &DeviceInfo) -> Option<u8> {
    let is_loader = |class: u8, subclass: u8, protocol: u8| (class, subclass, protocol) == FASTBOOT;
    let found = device.interfaces().find(|it| is_loader(it.class(), it.subclass(), it.protocol()));
    found.map(|interface| interface.interface_number())
}

struct UsbLink {
    out: Endpoint<Bulk, Out>,
    answers: Endpoint<Bulk, In>,
    /// The interface is ours for as long as this lives.
    _interface: Interface,
}

impl UsbLink {
    async fn open(info: &DeviceInfo) -> io::Result<UsbLink> {
        let number = interface_of(info).ok_or_else(|| io::Error::other("it is no fastboot device any more"))?;
        let device = info.open().await?;
        let interface = device.claim_interface(number).await?;
        let settings = interface.descriptor().ok_or_else(|| io::Error::other("it describes no interface"))?;
        let endpoint = |direction| {
            let mut all = settings.endpoints();
            all.find(|it| it.transfer_type() == TransferType::Bulk && it.direction() == direction)
                .map(|it| it.address())
        };
        let (Some(out), Some(answers)) = (endpoint(Direction::Out), endpoint(Direction::In)) else {
            return Err(io::Error::other("it lacks a bulk endpoint each way"));
        };
        let out = interface.endpoint::<Bulk, Out>(out)?;
        let answers = interface.endpoint::<Bulk, In>(answers)?;
        Ok(UsbLink { out, answers, _interface: interface })
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.submit(Buffer::from(bytes));
        self.out.next_complete().await.status.map_err(io::Error::from)
    }
}

impl Link for UsbLink {
    fn send<'a>(&'a mut self, command: &'a str) -> BoxFuture<'a, io::Result<()>> {
        self.write(command.as_bytes()).boxed()
    }

    fn begin_image(&mut self, _: u64) -> BoxFuture<'_, io::Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn send_piece(&mut self, piece: Bytes) -> BoxFuture<'_, io::Result<()>> {
        async move { self.write(&piece).await }.boxed()
    }

    fn receive(&mut self) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        async move {
            // A read asks for whole packets; an answer ends with its first one.
            let length = ANSWER_BYTES_MAX.next_multiple_of(self.answers.max_packet_size());
            self.answers.submit(Buffer::new(length));
            let completion = self.answers.next_complete().await;
            completion.status.map_err(io::Error::from)?;
            Ok(completion.buffer[..completion.actual_len].to_vec())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(serial: &str, path: &str) -> Names {
        Names { serial: serial.into(), path: path.into() }
    }

    fn device(serial: Option<&str>, path: Option<&str>) -> Device {
        Device { serial: serial.map(str::to_owned), path: path.map(str::to_owned) }
    }

    fn told(chosen: Result<usize, Missed>) -> String {
        match chosen {
            Ok(index) => index.to_string(),
            Err(Missed::NotYet(why)) => format!("not yet: {why}"),
            Err(Missed::Never(why) | Missed::Host(why)) => format!("never: {why}"),
        }
    }

    #[test]
    fn the_device_that_is_meant_is_known_by_its_serial_number_by_its_place_or_by_both() {
        let there = [names("A1", "1-4.2"), names("B2", "1-4.3"), names("A1", "2-1")];
        assert_eq!(told(device(Some("B2"), None).choose(&there)), "1");
        assert_eq!(told(device(None, Some("2-1")).choose(&there)), "2");
        assert_eq!(told(device(Some("A1"), Some("1-4.2")).choose(&there)), "0");
        assert_eq!(
            told(device(Some("A1"), None).choose(&there)),
            "never: several devices are meant: `A1` at 1-4.2, `A1` at 2-1; name one by `usb.serial` or `usb.path`"
        );
    }

    #[test]
    fn a_device_that_is_not_there_may_come_and_what_is_there_instead_is_told() {
        let meant = device(Some("C3"), None);
        assert_eq!(told(meant.choose(&[])), "not yet: there is no fastboot device on USB");
        let there = [names("A1", "1-4.2"), names("", "1-1")];
        assert_eq!(told(meant.choose(&there)), "not yet: on USB there is `A1` at 1-4.2, `` at 1-1");
        assert_eq!(meant.to_string(), "the serial number `C3`");
        assert_eq!(device(None, Some("1-1")).to_string(), "any serial number at 1-1");
    }
}
