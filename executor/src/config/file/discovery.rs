//! The farm file's `discovery` and `spares`.

use super::*;
use crate::config::{DiscoveryConfig, SPARES, SpareConfig, Unknown};

/// What becomes of machines that this file does not name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct DiscoveryKeys {
    /// When they may register; `when-discovered` when absent.
    unknown: Option<UnknownKey>,
    /// A job description whose first boot registers them, relative to this file; the farm's own when absent.
    job: Option<String>,
    /// A kernel for the farm's own registration boot, relative to this file; a kernel for virtual machines when absent.
    kernel: Option<String>,
    /// The folder with that kernel's modules, such as `/lib/modules/6.1.0-42-amd64`.
    modules: Option<String>,
    /// How long a machine may take from its first request to its registration; 5 minutes when absent.
    #[schemars(with = "Option<LengthForm>")]
    register_time: Option<f64>,
}

/// When a machine may register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum UnknownKey {
    /// While `wharf dut discover` waits for one.
    WhenDiscovered,
    /// Whenever one asks the network for something to boot.
    Always,
}

/// A virtual machine that is no DUT until it registers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "mac", "machine"]))]
pub(super) struct SpareKeys {
    /// Its outlet on the PDU `spares`, and its console's name.
    #[schemars(extend("x-form" = "export-name", "x-example" = "name: spare-1"))]
    name: String,
    /// The MAC it boots with.
    #[schemars(extend("x-form" = "mac"))]
    mac: String,
    /// What it is made of: `qemu` or `simulated`.
    machine: MachineKeys,
}

pub(super) fn discovery(
    keys: &DiscoveryKeys,
    role: Role,
    directory: &Path,
    findings: &mut Findings,
) -> DiscoveryConfig {
    let at = |key: &str| ["discovery".to_owned(), key.to_owned()];
    let unknown = match keys.unknown {
        None | Some(UnknownKey::WhenDiscovered) => Unknown::WhenDiscovered,
        Some(UnknownKey::Always) => Unknown::Always,
    };
    if unknown == Unknown::Always && !matches!(role, Role::Server { range: Some(_) }) {
        let hint = "add `dhcp: {range: [FIRST, LAST]}`: machines without an entry need an address to register";
        findings.tell(&at("unknown"), "no machine can register without an address".to_owned(), hint);
    }
    let job = keys.job.as_ref().and_then(|name| match std::fs::read_to_string(directory.join(name)) {
        Ok(text) => Some((name.clone(), text)),
        Err(error) => {
            let what = format!("cannot read `{name}`: {error}");
            findings.tell(&at("job"), what, "name a job description relative to the farm file");
            None
        }
    });
    let kernel = match (&keys.kernel, &keys.modules) {
        (Some(kernel), Some(modules)) => {
            let (kernel, modules) = (directory.join(kernel), directory.join(modules));
            if !kernel.is_file() {
                findings.tell(&at("kernel"), format!("no file `{}`", kernel.display()), "name a kernel to boot");
            }
            if !modules.is_dir() {
                let hint = "name the folder of this kernel's modules";
                findings.tell(&at("modules"), format!("no folder `{}`", modules.display()), hint);
            } else if let Some(module) = compressed(&modules, FOLDERS_DEEP_MAX) {
                let hint = "copy the folder, and decompress what is in it: `xz -d`, `zstd -d --rm` or `gunzip`";
                findings.tell(&at("modules"), format!("`{}` is compressed", module.display()), hint);
            }
            Some((kernel, modules))
        }
        (None, None) => None,
        (Some(_), None) => {
            findings.tell(&at("kernel"), "a kernel without its modules".to_owned(), "add `modules`, its folder");
            None
        }
        (None, Some(_)) => {
            findings.tell(&at("modules"), "modules without their kernel".to_owned(), "add `kernel`, its image");
            None
        }
    };
    let usual = DiscoveryConfig::default();
    let register_time = keys.register_time.map_or(usual.register_time, Duration::from_secs_f64);
    DiscoveryConfig { unknown, job, kernel, register_time }
}

/// Folders within folders: `kernel/drivers/net/ethernet/intel/e1000e` is six.
const FOLDERS_DEEP_MAX: u32 = 10;

/// A module that the registration boot's small programs cannot load. Distributions compress all of theirs or none.
fn compressed(folder: &Path, deep: u32) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let is_compressed = |name: &str| [".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| name.ends_with(end));
    let mut folders = Vec::new();
    for entry in entries {
        // Not through links: `build` and `source` lead out of it.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => folders.push(entry.path()),
            Ok(kind) if kind.is_file() && is_compressed(&entry.file_name().to_string_lossy()) => {
                return Some(entry.path());
            }
            Ok(_) | Err(_) => {}
        }
    }
    let within = deep.checked_sub(1)?;
    folders.iter().find_map(|folder| compressed(folder, within))
}

impl Inventory<'_> {
    pub(super) fn spares(&mut self, file: &FarmFile, findings: &mut Findings) -> Vec<SpareConfig> {
        if !file.spares.is_empty()
            && let Some(index) = self.shared.pdus.iter().position(|pdu| pdu.name == SPARES)
        {
            let hint = "call this unit something else, or leave `spares` out";
            findings.tell(&at("pdus", index, "name"), format!("`{SPARES}` is the PDU of the spares"), hint);
        }
        let spare = |(index, keys): (usize, &SpareKeys)| {
            let mac = keys.mac.to_ascii_lowercase().replace('-', ":");
            if !mac.is_empty() {
                self.unique(at("spares", index, "mac"), "MAC", &mac, findings);
            }
            self.unique(at("spares", index, "name"), "name", &keys.name, findings);
            if self.shared.consoles.iter().any(|line| line.name == keys.name) {
                let hint = "a spare's console is called as it is; call the line something else";
                findings.tell(&at("spares", index, "name"), format!("there is a console `{}`", keys.name), hint);
            }
            if keys.machine.hardware.is_some() {
                let hint = "a real machine needs no entry: name its unit under `pdus` and its line under `consoles`";
                findings.tell(&at("spares", index, "machine"), "a spare is a virtual machine".to_owned(), hint);
                return None;
            }
            let machine = self.machine("spares", index, &keys.name, &keys.machine, findings)?;
            Some(SpareConfig { name: keys.name.clone(), mac, machine })
        };
        file.spares.iter().enumerate().filter_map(spare).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rest: &str) -> Result<FarmConfig, String> {
        let head = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\nduts: []\n";
        parse("farm.yml", &format!("{head}{rest}"), Path::new("")).map_err(|problems| problems.to_string())
    }

    #[test]
    fn spares_are_virtual_machines_with_a_name_and_a_mac() {
        let farm = parsed("spares: [{name: spare-1, mac: 52-54-00-77-01-0A, machine: {simulated: {}}}]\n").unwrap();
        let [spare] = farm.spares.as_slice() else { panic!("{:?}", farm.spares) };
        assert_eq!((spare.name.as_str(), spare.mac.as_str()), ("spare-1", "52:54:00:77:01:0a"));
        assert_eq!(farm.discovery, DiscoveryConfig::default());
    }

    #[test]
    fn what_cannot_be_is_told_with_the_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, modules) = (folder.path().join("vmlinuz"), folder.path().display().to_string());
        std::fs::create_dir_all(folder.path().join("kernel/net")).unwrap();
        std::fs::write(folder.path().join("kernel/net/e1000e.ko.xz"), "").unwrap();
        std::fs::write(&kernel, "").unwrap();
        let with_modules = format!("discovery: {{kernel: '{}', modules: '{modules}'}}\n", kernel.display());
        for (rest, what) in [
            (
                "spares: [{name: a, mac: 52:54:00:77:01:0a, machine: {simulated: {}}}, {name: b, mac: 52:54:00:77:01:0a, machine: {simulated: {}}}]\n",
                "the MAC `52:54:00:77:01:0a` is already used by `spares[0].mac`",
            ),
            ("discovery: {unknown: always}\n", "no machine can register without an address"),
            ("discovery: {unknown: never}\n", "`never`"),
            ("discovery: {job: none.yml}\n", "cannot read `none.yml`"),
            ("discovery: {kernel: vmlinuz}\n", "a kernel without its modules"),
            (&with_modules, "`MODULES/kernel/net/e1000e.ko.xz` is compressed"),
        ] {
            let problems = parsed(rest).map(drop).unwrap_err();
            let what = what.replace("MODULES", &modules);
            assert!(problems.contains(&what), "{rest}: {problems}");
        }
    }
}
