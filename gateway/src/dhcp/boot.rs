//! What a machine boots: the rules that turn "who is asking" into a boot file.
//!
//! ```text
//!  BootOffer (per MAC, while a job holds the machine)
//!    rule 1  user class iPXE            → http://10.77.0.1/_/boot/boot.ipxe
//!    rule 2  architecture 7 or 9        → snponly.efi                        first match wins;
//!    rule 3  architecture 0             → undionly.kpxe                      no match: an address, no boot file
//! ```
//! The executor's boot method writes the rules; this file only matches them. The question itself is read in
//! [`request`](super::request).

use core::fmt;
use core::net::Ipv4Addr;

use job_schema::job::DhcpMatch;

use super::options::{self, Extra};
use super::request::{ClientKind, Request};

/// Everything one machine may be told to boot, in order of preference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootOffer {
    /// The first rule that matches the request is used.
    pub rules: Vec<BootRule>,
    /// The job's own options, over what the rule says; the first that matches is used. Operating systems are told them, too.
    pub extras: Vec<Extra>,
}

impl BootOffer {
    /// The rule for this request, if any.
    pub fn rule_for(&self, request: &Request) -> Option<&BootRule> {
        self.rules.iter().find(|rule| rule.matches.accepts(request))
    }

    /// The job's own options for this request, if any.
    pub fn extra_for(&self, request: &Request) -> Option<&Extra> {
        self.extras.iter().find(|extra| extra.matches.iter().all(|wanted| options::accepts(wanted, request)))
    }
}

/// One answer, and to whom it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootRule {
    /// To whom.
    pub matches: BootMatch,
    /// File name for TFTP, or a URL for clients that speak HTTP.
    pub bootfile: String,
    /// The server of the file; `None` is this server.
    pub next_server: Option<Ipv4Addr>,
    /// Further options by number and raw value; they replace what the server would say under the same number. Numbers that
    /// [`is_settable`] refuses are left out.
    pub options: Vec<(u8, Vec<u8>)>,
    /// Value of option 60 in the reply. `None` says `HTTPClient` to UEFI HTTP boot, which ignores an offer without it, and nothing
    /// to the rest: see `vendor_options` in `reply.rs` for what `PXEClient` would start.
    pub vendor_class_reply: Option<String>,
}

/// A condition on a request; every part that is given has to hold. The default accepts every netboot client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootMatch {
    /// Option 93 is one of these.
    pub architecture: Option<Vec<Architecture>>,
    /// Option 77 names this class.
    pub user_class: Option<Class>,
    /// Option 60 starts with this text.
    pub vendor_class_prefix: Option<String>,
    /// The request comes from this kind of program.
    pub client: Option<ClientKind>,
    /// It says of itself what a job's or a boots database's matchers want.
    pub said: DhcpMatch,
}

/// Whether a rule may set option `code`: not the marks of padding (0) and end (255), not what the exchange itself is made of
/// (53 message type, 54 server) and not what belongs to client and relay (61, 82).
pub fn is_settable(code: u8) -> bool {
    !matches!(code, 0 | 53 | 54 | 61 | 82 | 255)
}

/// A user class to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// iPXE: the user class says so, or its encapsulated options (175) are there.
    Ipxe,
    /// This text and no other.
    Exact(String),
}

impl BootMatch {
    /// Whether all given parts hold for `request`.
    pub fn accepts(&self, request: &Request) -> bool {
        let architecture = match &self.architecture {
            Some(wanted) => request.architecture.is_some_and(|is| wanted.contains(&is)),
            None => true,
        };
        let user_class = match &self.user_class {
            Some(Class::Ipxe) => request.client == ClientKind::Ipxe,
            Some(Class::Exact(wanted)) => request.user_classes.contains(wanted),
            None => true,
        };
        let vendor_class = match &self.vendor_class_prefix {
            Some(prefix) => request.vendor_class.as_ref().is_some_and(|is| is.starts_with(prefix.as_str())),
            None => true,
        };
        let client = self.client.is_none_or(|wanted| request.client == wanted);
        architecture && user_class && vendor_class && client && options::accepts(&self.said, request)
    }
}

/// A client's processor and firmware: option 93 (RFC 4578 2.1), numbers of the IANA registry "Processor Architecture Types".
///
/// RFC 4578 calls 7 "EFI BC" and 9 "EFI x86-64"; its erratum and every firmware have them the other way round, as here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the text of each stands in KNOWN, once")]
pub enum Architecture {
    X86Bios,
    Pc98,
    Itanium,
    DecAlpha,
    ArcX86,
    IntelLeanClient,
    X86Uefi,
    X64Uefi,
    EfiXscale,
    Ebc,
    Arm32Uefi,
    Arm64Uefi,
    PowerPcOpenFirmware,
    PowerPcEpapr,
    PowerOpalV3,
    X86UefiHttp,
    X64UefiHttp,
    EbcHttp,
    Arm32UefiHttp,
    Arm64UefiHttp,
    X86BiosHttp,
    Arm32UBoot,
    Arm64UBoot,
    Arm32UBootHttp,
    Arm64UBootHttp,
    Riscv32Uefi,
    Riscv32UefiHttp,
    Riscv64Uefi,
    Riscv64UefiHttp,
    Riscv128Uefi,
    Riscv128UefiHttp,
    S390Basic,
    S390Extended,
    Mips32Uefi,
    Mips64Uefi,
    Sunway32Uefi,
    Sunway64Uefi,
    LoongArch32Uefi,
    LoongArch32UefiHttp,
    LoongArch64Uefi,
    LoongArch64UefiHttp,
    RaspberryPi,
    Unknown(u16),
}

/// The registry, in the order of its numbers from 0.
const KNOWN: [(Architecture, &str); 42] = [
    (Architecture::X86Bios, "x86 BIOS"),
    (Architecture::Pc98, "NEC/PC98"),
    (Architecture::Itanium, "Itanium"),
    (Architecture::DecAlpha, "DEC Alpha"),
    (Architecture::ArcX86, "Arc x86"),
    (Architecture::IntelLeanClient, "Intel Lean Client"),
    (Architecture::X86Uefi, "x86 UEFI"),
    (Architecture::X64Uefi, "x86-64 UEFI"),
    (Architecture::EfiXscale, "Xscale EFI"),
    (Architecture::Ebc, "EFI byte code"),
    (Architecture::Arm32Uefi, "ARM 32-bit UEFI"),
    (Architecture::Arm64Uefi, "ARM 64-bit UEFI"),
    (Architecture::PowerPcOpenFirmware, "PowerPC Open Firmware"),
    (Architecture::PowerPcEpapr, "PowerPC ePAPR"),
    (Architecture::PowerOpalV3, "POWER OPAL v3"),
    (Architecture::X86UefiHttp, "x86 UEFI HTTP boot"),
    (Architecture::X64UefiHttp, "x86-64 UEFI HTTP boot"),
    (Architecture::EbcHttp, "EFI byte code HTTP boot"),
    (Architecture::Arm32UefiHttp, "ARM 32-bit UEFI HTTP boot"),
    (Architecture::Arm64UefiHttp, "ARM 64-bit UEFI HTTP boot"),
    (Architecture::X86BiosHttp, "x86 BIOS HTTP boot"),
    (Architecture::Arm32UBoot, "ARM 32-bit U-Boot"),
    (Architecture::Arm64UBoot, "ARM 64-bit U-Boot"),
    (Architecture::Arm32UBootHttp, "ARM 32-bit U-Boot HTTP boot"),
    (Architecture::Arm64UBootHttp, "ARM 64-bit U-Boot HTTP boot"),
    (Architecture::Riscv32Uefi, "RISC-V 32-bit UEFI"),
    (Architecture::Riscv32UefiHttp, "RISC-V 32-bit UEFI HTTP boot"),
    (Architecture::Riscv64Uefi, "RISC-V 64-bit UEFI"),
    (Architecture::Riscv64UefiHttp, "RISC-V 64-bit UEFI HTTP boot"),
    (Architecture::Riscv128Uefi, "RISC-V 128-bit UEFI"),
    (Architecture::Riscv128UefiHttp, "RISC-V 128-bit UEFI HTTP boot"),
    (Architecture::S390Basic, "s390 basic"),
    (Architecture::S390Extended, "s390 extended"),
    (Architecture::Mips32Uefi, "MIPS 32-bit UEFI"),
    (Architecture::Mips64Uefi, "MIPS 64-bit UEFI"),
    (Architecture::Sunway32Uefi, "Sunway 32-bit UEFI"),
    (Architecture::Sunway64Uefi, "Sunway 64-bit UEFI"),
    (Architecture::LoongArch32Uefi, "LoongArch 32-bit UEFI"),
    (Architecture::LoongArch32UefiHttp, "LoongArch 32-bit UEFI HTTP boot"),
    (Architecture::LoongArch64Uefi, "LoongArch 64-bit UEFI"),
    (Architecture::LoongArch64UefiHttp, "LoongArch 64-bit UEFI HTTP boot"),
    (Architecture::RaspberryPi, "Raspberry Pi boot ROM"),
];

impl Architecture {
    /// Whether the number is in the registry.
    pub fn is_known(self) -> bool {
        !matches!(self, Architecture::Unknown(_))
    }

    /// Whether this is one of the numbers that U-Boot announces by itself.
    pub fn is_u_boot(self) -> bool {
        matches!(
            self,
            Architecture::Arm32UBoot
                | Architecture::Arm64UBoot
                | Architecture::Arm32UBootHttp
                | Architecture::Arm64UBootHttp
        )
    }
}

impl From<u16> for Architecture {
    fn from(number: u16) -> Self {
        KNOWN.get(usize::from(number)).map_or(Architecture::Unknown(number), |(known, _)| *known)
    }
}

impl From<Architecture> for u16 {
    fn from(architecture: Architecture) -> u16 {
        match architecture {
            Architecture::Unknown(number) => number,
            known => {
                let index = KNOWN.iter().position(|(is, _)| *is == known).expect("KNOWN lists every variant");
                u16::try_from(index).expect("KNOWN is short")
            }
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = u16::from(*self);
        match KNOWN.get(usize::from(number)) {
            Some((_, text)) => f.write_str(text),
            None => write!(f, "unknown architecture {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_keeps_its_value_and_the_registry_s_well_known_ones_have_their_names() {
        for number in 0..=u16::MAX {
            assert_eq!(u16::from(Architecture::from(number)), number);
        }
        assert_eq!(Architecture::from(0), Architecture::X86Bios);
        assert_eq!(Architecture::from(7), Architecture::X64Uefi);
        assert_eq!(Architecture::from(9), Architecture::Ebc);
        assert_eq!(Architecture::from(0x0b), Architecture::Arm64Uefi);
        assert_eq!(Architecture::from(0x10), Architecture::X64UefiHttp);
        assert_eq!(Architecture::from(0x13), Architecture::Arm64UefiHttp);
        assert_eq!(Architecture::from(0x16), Architecture::Arm64UBoot);
        assert_eq!(Architecture::from(0x1b), Architecture::Riscv64Uefi);
        assert_eq!(Architecture::from(0x27), Architecture::LoongArch64Uefi);
        assert_eq!(Architecture::from(0x29), Architecture::RaspberryPi);
        assert_eq!(Architecture::from(0x2a).to_string(), "unknown architecture 42");
        assert_eq!(Architecture::from(0x14).to_string(), "x86 BIOS HTTP boot");
    }
}
