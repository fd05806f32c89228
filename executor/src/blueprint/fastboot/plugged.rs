//! Which fastboot loaders hang on this host's USB, as sysfs tells it: nothing is opened, so that nobody who talks to one is disturbed.
//!
//! ```text
//!  /sys/bus/usb/devices/1-4.2:1.0   bInterfaceClass ff, bInterfaceSubClass 42, bInterfaceProtocol 03 ─► a loader
//!  /sys/bus/usb/devices/1-4.2       serial, product                                                  ─► which one
//! ```
//! The files are described in the kernel's Documentation/ABI/testing/sysfs-bus-usb and stable/sysfs-bus-usb.

use std::path::Path;

/// Class, subclass and protocol of a loader's interface, as sysfs writes them (AOSP, system/core/fastboot).
const FASTBOOT: [(&str, &str); 3] =
    [("bInterfaceClass", "ff"), ("bInterfaceSubClass", "42"), ("bInterfaceProtocol", "03")];

/// A loader that is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// Its serial number; empty when it has none.
    pub serial: String,
    /// The place that it hangs at: bus and ports, `1-4.2`.
    pub path: String,
    /// What it calls itself.
    pub product: Option<String>,
}

/// All of them, by place. A host without USB has none.
pub fn plugged(sysfs: &Path) -> Vec<Plugged> {
    let devices = sysfs.join("bus/usb/devices");
    let entries = std::fs::read_dir(&devices).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<Plugged> = entries.filter_map(|entry| read(&devices, entry.file_name().to_str()?)).collect();
    found.sort_by(|one, other| one.path.cmp(&other.path));
    // A device whose interface has alternate settings is one loader.
    found.dedup_by(|one, other| one.path == other.path);
    found
}

/// `None` for what is no loader's interface, and for one that is just being unplugged.
fn read(devices: &Path, interface: &str) -> Option<Plugged> {
    let (path, _) = interface.split_once(':')?;
    let text = |of: &str, file: &str| {
        let text = std::fs::read_to_string(devices.join(of).join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    let is_loader = FASTBOOT.iter().all(|(file, value)| text(interface, file).is_some_and(|text| text == *value));
    is_loader.then(|| Plugged {
        serial: text(path, "serial").unwrap_or_default(),
        path: path.to_owned(),
        product: text(path, "product"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(sysfs: &Path, path: &str, class: [&str; 3], files: &[(&str, &str)]) {
        let devices = sysfs.join("bus/usb/devices");
        let interface = devices.join(format!("{path}:1.0"));
        std::fs::create_dir_all(&interface).unwrap();
        std::fs::create_dir_all(devices.join(path)).unwrap();
        for ((file, _), value) in FASTBOOT.iter().zip(class) {
            std::fs::write(interface.join(file), format!("{value}\n")).unwrap();
        }
        for (file, value) in files {
            std::fs::write(devices.join(path).join(file), format!("{value}\n")).unwrap();
        }
    }

    #[test]
    fn loaders_are_known_by_their_interface_and_told_with_serial_number_and_place() {
        let sysfs = tempfile::tempdir().unwrap();
        device(sysfs.path(), "1-4.2", ["ff", "42", "03"], &[("serial", "0a3828e1"), ("product", "Pixel 5")]);
        device(sysfs.path(), "1-1", ["ff", "42", "03"], &[]);
        device(sysfs.path(), "1-2", ["ff", "42", "01"], &[("serial", "an adb")]);
        device(sysfs.path(), "1-3", ["08", "06", "50"], &[("serial", "a disk")]);
        let loader = |serial: &str, path: &str, product: Option<&str>| Plugged {
            serial: serial.into(),
            path: path.into(),
            product: product.map(str::to_owned),
        };
        assert_eq!(plugged(sysfs.path()), [loader("", "1-1", None), loader("0a3828e1", "1-4.2", Some("Pixel 5"))]);
    }

    #[test]
    fn a_host_without_usb_has_none() {
        assert_eq!(plugged(Path::new("/nowhere")), []);
    }
}
