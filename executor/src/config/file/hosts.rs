//! Hosts as the farm file has them: machines that are there, and machines that a provider makes.

use std::sync::Arc;

use russh::keys::{PrivateKey, ssh_key};

use super::on_demand::{AccessKey, PolicyKey, access, policy, shared_pool};
use super::*;
use crate::config::hosts::{
    Ec2Config, HostConfig, HostFrom, MadeConfig, Outside, ProviderConfig, QemuHostConfig, Reach, SshConfig,
};
use crate::config::on_demand::IDLE;
use crate::ssh::HostKey;

/// Where working copies are when the file does not say, beneath the user's home.
const FOLDER: &str = ".wharf";

/// A host, or a kind of hosts that are made when somebody asks.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "ssh"], "x-exactly-one" = ["address", "provider"], "x-lenient" = true))]
pub(super) struct HostKeys {
    /// Its name, or the first part of the names of those that are made.
    #[schemars(extend("x-example" = "name: builder", "x-form" = "export-name"))]
    name: String,
    /// Where it is: a name or an address.
    address: Option<String>,
    /// Who makes it.
    provider: Option<ProviderKeys>,
    /// How it is logged in to.
    #[schemars(extend("x-example" = "ssh: {user: root, key: keys/builder, host_key: ssh-ed25519 AAAA…}"))]
    ssh: SshKeys,
    /// Its system, such as `debian`; found as the tag `os:debian`.
    os: Option<String>,
    /// Its architecture, such as `x86_64`; found as the tag `arch:x86_64`.
    arch: Option<String>,
    /// What else is asked for.
    tags: Vec<String>,
    /// A note for people.
    comment: Option<String>,
    /// How many leases may hold it at a time; 1 when absent.
    #[schemars(range(min = 1, max = 1000))]
    seats: Option<u32>,
    /// Where working copies are: absolute, or beneath the user's home; `.wharf` when absent.
    folder: Option<String>,
    /// Who may lease it; `everyone` when absent.
    access: Option<AccessKey>,
    /// Which of several free ones is taken; `spread` when absent.
    policy: Option<PolicyKey>,
    /// With a provider: the most that exist at a time; 1 when absent.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<u32>,
    /// With a provider: how many are kept, wanted or not; none when absent.
    #[schemars(range(min = 0, max = 1000))]
    preallocated: Option<u32>,
    /// With a provider: the pool of `pools` whose limit it shares with others.
    share: Option<String>,
    /// With a provider: how long one is kept idle; 5 minutes when absent.
    #[schemars(with = "Option<LengthForm>")]
    idle: Option<f64>,
    /// With a provider: how long one must have been idle before it makes room for another of its pool; no time at all when absent.
    #[schemars(with = "Option<LengthForm>")]
    idle_min: Option<f64>,
}

/// How a machine is logged in to by SSH.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["user"], "x-lenient" = true))]
pub(super) struct SshKeys {
    /// Who we are there.
    #[schemars(extend("x-example" = "user: root"))]
    user: String,
    /// The port of its SSH server; 22 when absent.
    #[schemars(range(min = 1, max = 65535))]
    port: Option<u16>,
    /// The file with our private key, relative to this file: OpenSSH's format, ed25519 or ECDSA, no passphrase.
    key: Option<String>,
    /// The key that it shows: as `ssh-keyscan` prints it, or its fingerprint `SHA256:…`.
    host_key: Option<String>,
}

/// Exactly one of the makers of hosts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["ec2", "qemu"]))]
struct ProviderKeys {
    /// A cloud with the EC2 API.
    ec2: Option<Ec2Keys>,
    /// QEMU on this machine.
    qemu: Option<QemuHostKeys>,
}

/// QEMU on this machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct QemuHostKeys {
    /// The image of its disk, qcow2 or as it is, relative to this file. It runs cloud-init, and stays as it is.
    disk: Option<String>,
    /// A kernel to boot, relative to this file; what is on the disk when absent.
    kernel: Option<String>,
    /// The kernel's initramfs, relative to this file.
    initramfs: Option<String>,
    /// The kernel's command line.
    cmdline: Option<String>,
    /// Guest memory in MiB; 1024 when absent.
    #[schemars(range(min = 16, max = 1048576))]
    memory_mib: Option<u32>,
    /// Guest processors; 1 when absent.
    #[schemars(range(min = 1, max = 255))]
    cpus: Option<u32>,
    /// The size of its disk in MiB; the image's when absent.
    #[schemars(range(min = 1, max = 16777216))]
    disk_mib: Option<u32>,
    /// What it reaches besides us; `open` when absent.
    outside: Option<OutsideKey>,
}

/// What a virtual machine reaches besides us.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OutsideKey {
    /// Whatever this machine reaches, its own loopback included.
    Open,
    /// Nothing.
    Closed,
}

/// A cloud with the EC2 API.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["region", "image", "instance_type"], "x-lenient" = true))]
struct Ec2Keys {
    /// The URL of its API; Amazon's of the region when absent.
    endpoint: Option<String>,
    /// Its region.
    #[schemars(extend("x-example" = "region: eu-central-1"))]
    region: String,
    /// A file with lines `access_key_id = …` and `secret_access_key = …`, relative to this file; the environment's `AWS_ACCESS_KEY_ID`
    /// and `AWS_SECRET_ACCESS_KEY` when absent.
    credentials: Option<String>,
    /// The image; it runs cloud-init.
    #[schemars(extend("x-example" = "image: ami-0123456789abcdef0"))]
    image: String,
    /// The size.
    #[schemars(extend("x-example" = "instance_type: t3.micro"))]
    instance_type: String,
    /// The subnet's id; the account's default when absent.
    subnet: Option<String>,
    /// Security groups by id; the network's default when empty.
    security_groups: Vec<String>,
    /// Which of its addresses is used; `private` when absent.
    reach: Option<ReachKey>,
}

/// Which of an instance's addresses is used.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ReachKey {
    /// The one inside the cloud's network.
    Private,
    /// The one that the world sees.
    Public,
}

impl Inventory<'_> {
    pub(super) fn hosts(&mut self, file: &FarmFile, findings: &mut Findings) -> Vec<HostConfig> {
        let entries = file.hosts.iter().enumerate().filter(|(_, keys)| !keys.name.is_empty());
        entries.filter_map(|(index, keys)| self.host(index, keys, file, findings)).collect()
    }

    fn host(&mut self, index: usize, keys: &HostKeys, file: &FarmFile, findings: &mut Findings) -> Option<HostConfig> {
        let from = match (&keys.address, &keys.provider) {
            (Some(address), None) => {
                only_with_a_provider(index, keys, findings);
                HostFrom::Inventory { address: address.clone() }
            }
            (None, Some(provider)) => HostFrom::Provider(Box::new(self.made(index, keys, provider, file, findings)?)),
            // Told already, by the schema.
            (Some(_), Some(_)) | (None, None) => return None,
        };
        let of_the_host = |(key, value): (&str, &Option<String>)| value.as_ref().map(|value| format!("{key}:{value}"));
        let known = [("os", &keys.os), ("arch", &keys.arch)].into_iter().filter_map(of_the_host);
        let is_made = matches!(from, HostFrom::Provider(_));
        let host = HostConfig {
            name: keys.name.clone(),
            full_name: format!("{}-{}", self.farm, keys.name),
            tags: keys.tags.iter().cloned().chain(known).collect(),
            comment: keys.comment.clone(),
            ssh: self.ssh(
                &at("hosts", index, "ssh"),
                &keys.ssh,
                if is_made { Keys::MayBeOurs } else { Keys::Needed },
                findings,
            ),
            folder: folder(index, keys, findings),
            seats: keys.seats.unwrap_or(1),
            access: access(keys.access),
            policy: policy(keys.policy),
            from,
        };
        self.unique(at("hosts", index, "name"), "name", &host.name, findings);
        for member in host.members().filter(|member| *member != host.name) {
            self.unique(at("hosts", index, "name"), "name", &member, findings);
        }
        Some(host)
    }

    /// How a machine is logged in to.
    pub(super) fn ssh(&self, path: &[String], keys: &SshKeys, needs: Keys, findings: &mut Findings) -> SshConfig {
        let at = |key: &str| path.iter().cloned().chain([key.to_owned()]).collect::<Vec<_>>();
        let key = keys.key.as_ref().and_then(|name| {
            let file = self.directory.join(name);
            read_key(&file).map_err(|(what, hint)| findings.tell(&at("key"), what, hint)).ok()
        });
        let host_key = keys.host_key.as_ref().and_then(|text| {
            let wrong = |why: String| {
                findings.tell(&at("host_key"), format!("{} is no host key: {why}", quoted(text)), HOST_KEY_HINT)
            };
            HostKey::parse(text).map_err(wrong).ok()
        });
        if needs == Keys::Needed {
            if keys.key.is_none() {
                let hint =
                    "make one with `ssh-keygen -t ed25519 -N '' -f keys/NAME`, let it in there, and name it here";
                findings.tell(path, "no `key` to log in with".to_owned(), hint);
            }
            if keys.host_key.is_none() {
                findings.tell(
                    path,
                    "no `host_key`: nobody could tell the machine from another".to_owned(),
                    HOST_KEY_HINT,
                );
            }
        }
        SshConfig {
            user: keys.user.clone(),
            port: keys.port.unwrap_or(22),
            key,
            host_keys: host_key.into_iter().collect(),
        }
    }

    fn made(
        &self,
        index: usize,
        keys: &HostKeys,
        provider: &ProviderKeys,
        file: &FarmFile,
        findings: &mut Findings,
    ) -> Option<MadeConfig> {
        let made_by = match (&provider.ec2, &provider.qemu) {
            (Some(ec2), None) => ProviderConfig::Ec2(self.ec2(index, ec2, findings)),
            (None, Some(qemu)) => ProviderConfig::Qemu(self.qemu(index, qemu, &keys.ssh, findings)),
            // Told already, by the schema.
            (Some(_), Some(_)) | (None, None) => return None,
        };
        let limit = keys.limit.unwrap_or(1);
        let preallocated = keys.preallocated.unwrap_or(0);
        if preallocated > limit {
            let what = format!("{preallocated} are to be kept, and no more than {limit} may exist");
            findings.tell(&at("hosts", index, "preallocated"), what, "raise `limit`, or keep fewer");
        }
        let pool = keys.share.as_ref().and_then(|name| shared_pool(("hosts", index), name, &file.pools, findings));
        Some(MadeConfig {
            provider: made_by,
            limit,
            preallocated,
            pool,
            idle: keys.idle.map_or(IDLE, Duration::from_secs_f64),
            idle_min: keys.idle_min.map_or(Duration::ZERO, Duration::from_secs_f64),
        })
    }

    fn qemu(&self, index: usize, keys: &QemuHostKeys, ssh: &SshKeys, findings: &mut Findings) -> QemuHostConfig {
        let at = |key: &str| {
            let mut path = at("hosts", index, "provider");
            path.extend(["qemu".to_owned(), key.to_owned()]);
            path
        };
        let mut file = |key: &str, name: &Option<String>| {
            let path = self.directory.join(name.as_ref()?);
            if !path.is_file() {
                let what = format!("there is no file {}", quoted(&path.display().to_string()));
                findings.tell(&at(key), what, "name it relative to the farm file");
            }
            // QEMU's image names the one below it, wherever we are.
            Some(std::path::absolute(&path).unwrap_or(path))
        };
        let (disk, kernel) = (file("disk", &keys.disk), file("kernel", &keys.kernel));
        let initramfs = file("initramfs", &keys.initramfs);
        if disk.is_none() && kernel.is_none() {
            let hint = "name the image of a `disk`, or a `kernel`";
            findings.tell(&at("disk"), "there is nothing to boot".to_owned(), hint);
        }
        let of_a_kernel = [("initramfs", keys.initramfs.is_some()), ("cmdline", keys.cmdline.is_some())];
        for (key, _) in of_a_kernel.into_iter().filter(|(_, is_given)| *is_given && kernel.is_none()) {
            findings.tell(&at(key), "only a `kernel` has one".to_owned(), "name the `kernel`, or leave it out");
        }
        if keys.disk_mib.is_some() && disk.is_none() {
            findings.tell(&at("disk_mib"), "there is no disk".to_owned(), "name the `disk`, or leave it out");
        }
        QemuHostConfig {
            disk,
            kernel,
            initramfs,
            cmdline: keys.cmdline.clone().unwrap_or_default(),
            memory_mib: keys.memory_mib.unwrap_or(1024),
            cpus: keys.cpus.unwrap_or(1),
            disk_mib: keys.disk_mib,
            outside: match keys.outside {
                None | Some(OutsideKey::Open) => Outside::Open,
                Some(OutsideKey::Closed) => Outside::Closed,
            },
            ssh_port: ssh.port.unwrap_or(22),
        }
    }

    fn ec2(&self, index: usize, keys: &Ec2Keys, findings: &mut Findings) -> Ec2Config {
        let endpoint = keys.endpoint.clone().unwrap_or_else(|| format!("https://ec2.{}.amazonaws.com", keys.region));
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let mut path = at("hosts", index, "provider");
            path.extend(["ec2".to_owned(), "endpoint".to_owned()]);
            let hint = "write it as https://ec2.eu-central-1.amazonaws.com";
            findings.tell(&path, format!("{} is no URL", quoted(&endpoint)), hint);
        }
        Ec2Config {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            region: keys.region.clone(),
            credentials: keys.credentials.as_ref().map(|name| self.directory.join(name)),
            image: keys.image.clone(),
            instance_type: keys.instance_type.clone(),
            subnet: keys.subnet.clone(),
            security_groups: keys.security_groups.clone(),
            reach: match keys.reach {
                None | Some(ReachKey::Private) => Reach::Private,
                Some(ReachKey::Public) => Reach::Public,
            },
        }
    }
}

const HOST_KEY_HINT: &str = "`ssh-keyscan -t ed25519 ADDRESS` prints it; compare it with `ssh-keygen -lf \
                             /etc/ssh/ssh_host_ed25519_key.pub` on the machine itself";

/// Whether a machine's keys have to be in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// It was there before us.
    Needed,
    /// Whoever makes it gives it the farm's own keys.
    MayBeOurs,
}

fn only_with_a_provider(index: usize, keys: &HostKeys, findings: &mut Findings) {
    let given = [
        ("limit", keys.limit.is_some()),
        ("preallocated", keys.preallocated.is_some()),
        ("share", keys.share.is_some()),
        ("idle", keys.idle.is_some()),
        ("idle_min", keys.idle_min.is_some()),
    ];
    for (key, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
        let hint = "leave it out, or let a `provider` make the host instead of giving its `address`";
        findings.tell(&at("hosts", index, key), "a host that is there is neither made nor ended".to_owned(), hint);
    }
}

fn folder(index: usize, keys: &HostKeys, findings: &mut Findings) -> String {
    let folder = keys.folder.clone().unwrap_or_else(|| FOLDER.to_owned());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    let goes_up = folder.split('/').any(|part| part == "..");
    let is_usable = !folder.trim_matches(['/', '.']).is_empty() && folder.bytes().all(is_plain) && !goes_up;
    if !is_usable {
        let hint = "write `.wharf` or `/srv/wharf`: letters, digits, `-`, `_`, `.` and `/`";
        findings.tell(
            &at("hosts", index, "folder"),
            format!("{} is no folder for working copies", quoted(&folder)),
            hint,
        );
    }
    folder
}

/// `Err`: what is wrong, and the next step.
fn read_key(path: &Path) -> Result<Arc<PrivateKey>, (String, &'static str)> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        (format!("cannot read `{shown}`: {error}"), "name the private key's file relative to the farm file")
    })?;
    let key = PrivateKey::from_openssh(&text).map_err(|error| {
        (format!("`{shown}` is no private key: {error}"), "make one with `ssh-keygen -t ed25519 -N ''`")
    })?;
    let is_ours = matches!(key.algorithm(), ssh_key::Algorithm::Ed25519 | ssh_key::Algorithm::Ecdsa { .. });
    if !is_ours {
        let what = format!("`{shown}` is a key of the kind {}", key.algorithm());
        return Err((what, "ed25519 and ECDSA are understood: `ssh-keygen -t ed25519 -N ''` makes one"));
    }
    if key.is_encrypted() {
        let hint = "nobody is there to type it: `ssh-keygen -p -N '' -f FILE` removes it";
        return Err((format!("`{shown}` has a passphrase"), hint));
    }
    Ok(Arc::new(key))
}
