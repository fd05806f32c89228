//! Boot by GRUB from the network: the loader for the firmware that asks, and a `grub.cfg` by MAC. ◆
//!
//! ```text
//!  UEFI PXE ── DHCP ─► grubnetx64.efi | grubnetaa64.efi (TFTP) ─► /grub/grub.cfg-01-<mac>, else /grub/grub.cfg ─► kernel, initramfs
//! ```
//! The loaders are those of the system's packages (grub-efi-amd64-signed, grub-efi-arm64-signed), or the one that the setting `loader`
//! names.

use std::path::{Path, PathBuf};

use gateway::dhcp::{Architecture, BootMatch, BootRule};
use gateway::namespace::Protocol;
use job_schema::job::Deployment;

use super::settings::Settings;
use super::{BootMethod, BootPlan, DTB, Dut, INITRAMFS, KERNEL, Planned, Source};
use super::{generated, nothing_to_boot, one_line, plan_of};

/// Loaders for network boot as Debian and Ubuntu install them, by architecture (RFC 4578 2.1).
const LOADERS: &[(&str, &str, &[Architecture])] = &[
    (
        "grubnetx64.efi",
        "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
        &[Architecture::X64Uefi, Architecture::Ebc],
    ),
    ("grubnetaa64.efi", "/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed", &[Architecture::Arm64Uefi]),
];

/// Where Debian's network loaders look (seen: `/grub/grub.cfg`, after lists of modules that are not needed).
const PREFIX: &str = "/grub";

/// A loader on this host: its name for the firmware, and for whom it is.
struct Loader {
    name: String,
    file: PathBuf,
    matches: BootMatch,
}

struct Grub {
    prefix: String,
    loaders: Vec<Loader>,
}

/// Takes `loader` and `prefix`.
pub fn build(settings: &Settings) -> Box<dyn BootMethod> {
    let loaders = match &settings.loader {
        Some(file) => vec![Loader { name: name_of(file), file: file.clone(), matches: BootMatch::default() }],
        None => LOADERS.iter().filter(|(_, file, _)| Path::new(file).exists()).map(installed).collect(),
    };
    let prefix = settings.prefix.as_deref().unwrap_or(PREFIX).trim_end_matches('/').to_owned();
    Box::new(Grub { prefix, loaders })
}

fn installed((name, file, architectures): &(&str, &str, &[Architecture])) -> Loader {
    let matches = BootMatch { architecture: Some(architectures.to_vec()), ..BootMatch::default() };
    Loader { name: (*name).to_owned(), file: PathBuf::from(file), matches }
}

/// The file's own name, which is what the firmware asks for.
fn name_of(file: &Path) -> String {
    file.file_name().map_or_else(|| "boot.efi".to_owned(), |name| name.to_string_lossy().into_owned())
}

impl BootMethod for Grub {
    fn plan(&self, deployment: &Deployment, dut: &Dut) -> BootPlan {
        if deployment.kernel.is_none() {
            return nothing_to_boot(deployment);
        }
        let loader = |loader: &Loader| {
            generated(Protocol::Tftp, &format!("/{}", loader.name), Source::Firmware(loader.file.clone()))
        };
        let mut own: Vec<Planned> = self.loaders.iter().map(loader).collect();
        let text = configuration(deployment);
        let by_mac = format!("{}/grub.cfg-01-{}", self.prefix, dut.mac_with_dashes());
        for name in [by_mac, format!("{}/grub.cfg", self.prefix)] {
            own.push(generated(Protocol::Tftp, &name, Source::Text(text.clone())));
        }
        plan_of(deployment, &[Protocol::Tftp, Protocol::Http], own, self.rules())
    }
}

impl Grub {
    fn rules(&self) -> Vec<BootRule> {
        let rule = |loader: &Loader| BootRule {
            matches: loader.matches.clone(),
            bootfile: loader.name.clone(),
            ..BootRule::default()
        };
        self.loaders.iter().map(rule).collect()
    }
}

/// Names without a device are on the one that GRUB was loaded from: our TFTP.
fn configuration(deployment: &Deployment) -> String {
    let words: String = words(&one_line(deployment)).iter().map(|word| format!(" {}", quoted(word))).collect();
    let mut text = format!("echo 'wharf: grub.cfg'\nlinux {KERNEL}{words}\n");
    if !deployment.initramfs.is_empty() {
        // GRUB joins several and keeps each on a boundary of four bytes (grub-core/loader/linux.c, grub_initrd_init).
        let names: String = (0..deployment.initramfs.len()).map(|part| format!(" {INITRAMFS}/{part}")).collect();
        text += &format!("initrd{names}\n");
    }
    if !deployment.dtb.is_empty() {
        text += &format!("devicetree {DTB}\n");
    }
    text + "boot\n"
}

/// The words of a command line as the kernel takes it apart: at spaces outside of double quotes, which are left out
/// (lib/cmdline.c, `next_arg`). GRUB puts a word with spaces back between double quotes, and a backslash before any quote that it is
/// given (grub-core/lib/cmdline.c): without this the kernel would see backslashes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted, mut has_word) = (Vec::new(), String::new(), false, false);
    for character in line.chars() {
        match character {
            '"' => (is_quoted, has_word) = (!is_quoted, true),
            ' ' if !is_quoted => {
                if std::mem::take(&mut has_word) {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => {
                word.push(character);
                has_word = true;
            }
        }
    }
    if has_word {
        words.push(word);
    }
    words
}

/// Between single quotes nothing is special to GRUB's shell but the quote.
fn quoted(word: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "=.,:/_-+%@".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_at_spaces_outside_of_quotes_as_the_kernel_has_it() {
        assert_eq!(words(" a  b=\"c d\" \"e=f g\" h\"i "), ["a", "b=c d", "e=f g", "hi "]);
        assert_eq!(words(""), [""; 0]);
    }

    #[test]
    fn what_is_special_to_the_shell_is_quoted() {
        let cases = [
            ("console=ttyS0,115200n8", "console=ttyS0,115200n8"),
            ("a;b", "'a;b'"),
            ("$x", "'$x'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
        ];
        for (word, expected) in cases {
            assert_eq!(quoted(word), expected);
        }
    }
}
