//! A file of an archive, whatever the archive; and how archives are told apart.
//!
//! ```text
//!  "070701", "070702"          cpio, newc               cpio.rs
//!  "ustar" at 257              tar                      tar.rs
//!  "PK" 03 04, "PK" 05 06      zip                      zip.rs    (its directory is at its end: needs a file)
//!  "CD001" at 32769            ISO 9660                 iso.rs    (needs a file)
//! ```

use std::fs::File;
use std::io::{self, Read, Seek};

use super::packing::{Peek, Wrapped, unpack};
use super::{Limit, cpio, evil, iso, tar, zip};

/// Names longer than what Linux opens (PATH_MAX) are of no use to anyone.
pub(super) const PATH_BYTES_MAX: usize = 4096;
/// A whole Debian with its documentation has 150,000 files; what stands in memory of each is some hundred bytes.
const MEMBERS_MAX: u64 = 500_000;

/// The type bits of a mode (`inode(7)`).
pub(super) const TYPE_MASK: u32 = 0o170_000;
pub(super) const REGULAR: u32 = 0o100_000;
pub(super) const DIRECTORY: u32 = 0o040_000;
pub(super) const SYMLINK: u32 = 0o120_000;
pub(super) const CHARACTER: u32 = 0o020_000;
pub(super) const BLOCK: u32 = 0o060_000;
pub(super) const FIFO: u32 = 0o010_000;

/// A file, directory, link or device of an archive. A symbolic link has its target in `link`, and no bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Member {
    /// Without slashes at its ends.
    pub(super) path: String,
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) modified: u32,
    /// Where a symbolic link leads, or another name of the same file.
    pub(super) link: Option<String>,
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    /// Number and names of a file with several names, as cpio has them.
    pub(super) shared: Option<(u32, u32)>,
}

impl Member {
    /// What it is.
    pub(super) fn kind(&self) -> u32 {
        self.mode & TYPE_MASK
    }

    /// Another name for a file that came before.
    pub(super) fn is_hard_link(&self) -> bool {
        self.kind() == REGULAR && self.link.is_some()
    }
}

/// Whether to go on with the next member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    Stop,
}

/// Hears of each member in turn, with its bytes.
pub(super) type Visit<'a> = &'a mut dyn FnMut(Member, &mut dyn Read) -> io::Result<Flow>;

/// Bytes that can be read from any place.
pub(super) trait Seekable: Read + Seek {}

impl<T: Read + Seek> Seekable for T {}

/// Goes through the archive in `bytes`, after taking off its compression. `spool` makes a file for an archive that has to be
/// read from its end.
pub(super) fn each(
    bytes: Box<dyn Seekable>,
    limit: &Limit,
    spool: &dyn Fn(&mut dyn Read) -> io::Result<File>,
    visit: Visit<'_>,
) -> io::Result<()> {
    let mut count = 0;
    let mut checked = |member: Member, content: &mut dyn Read| {
        count += 1;
        if count > MEMBERS_MAX {
            return Err(evil(format!("it has more than {MEMBERS_MAX} files")));
        }
        visit(checked_member(member)?, content)
    };
    let mut seekable = Some(bytes);
    let first: Box<dyn Read> = match seekable.as_mut().map(is_indexed).transpose()? {
        Some(Some(kind)) => return kind.each(seekable.take().ok_or(io::ErrorKind::Other)?, &mut checked),
        _ => Box::new(seekable.take().ok_or(io::ErrorKind::Other)?),
    };
    let mut rest = Peek::new(first);
    loop {
        let (mut stream, wrapped) = unpack(rest, limit)?;
        match kind_of(stream.look(iso::MAGIC_END)?) {
            Some(Kind::Cpio) => {
                if cpio::each(&mut stream, &mut checked)? == Flow::Stop {
                    return Ok(());
                }
            }
            Some(Kind::Tar) => return tar::each(stream, &mut checked).map(drop),
            Some(Kind::Indexed(kind)) => return kind.each(Box::new(spool(&mut stream)?), &mut checked),
            None => return Err(unknown(wrapped)),
        }
        // Initial RAM disks are archives one after the other: microcode first, as it is, then the system, compressed.
        stream.skip_zeros()?;
        if stream.look(1)?.is_empty() {
            return Ok(());
        }
        rest = stream;
    }
}

enum Kind {
    Cpio,
    Tar,
    Indexed(Indexed),
}

enum Indexed {
    Zip,
    Iso,
}

impl Indexed {
    fn each(&self, mut bytes: Box<dyn Seekable>, visit: Visit<'_>) -> io::Result<()> {
        bytes.rewind()?;
        match self {
            Indexed::Zip => zip::each(bytes, visit),
            Indexed::Iso => iso::each(bytes, visit),
        }
    }
}

/// Whether an archive as it stands is one that is read from its directory; leaves it at its start.
fn is_indexed(bytes: &mut Box<dyn Seekable>) -> io::Result<Option<Indexed>> {
    let mut head = Vec::with_capacity(iso::MAGIC_END);
    bytes.take(iso::MAGIC_END as u64).read_to_end(&mut head)?;
    bytes.rewind()?;
    Ok(match kind_of(&head) {
        Some(Kind::Indexed(kind)) => Some(kind),
        _ => None,
    })
}

fn kind_of(head: &[u8]) -> Option<Kind> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    match () {
        () if at(0, b"070701") || at(0, b"070702") => Some(Kind::Cpio),
        () if at(257, b"ustar") => Some(Kind::Tar),
        () if at(0, b"PK\x03\x04") || at(0, b"PK\x05\x06") => Some(Kind::Indexed(Indexed::Zip)),
        () if at(iso::MAGIC_END - 5, b"CD001") => Some(Kind::Indexed(Indexed::Iso)),
        () => None,
    }
}

fn unknown(wrapped: Wrapped) -> io::Error {
    let inside = match wrapped {
        Wrapped::No => "it",
        Wrapped::Yes => "what is inside its compression",
    };
    evil(format!(
        "{inside} is no archive that is read here: cpio (newc), ISO 9660, tar and zip, plain or in bz2, gz, xz or zstd"
    ))
}

/// A member whose path leads nowhere but into the archive.
fn checked_member(mut member: Member) -> io::Result<Member> {
    if member.path.len() > PATH_BYTES_MAX {
        return Err(evil(format!("a path in it has more than {PATH_BYTES_MAX} bytes")));
    }
    member.path = clean_path(&member.path)?;
    Ok(member)
}

/// `path` without what says nothing: `./`, slashes at its ends or doubled. A path with `..` is refused: whoever unpacked it would
/// write outside.
pub(super) fn clean_path(path: &str) -> io::Result<String> {
    if path.contains('\0') {
        return Err(evil(format!("the path {path:?} in it has a zero byte")));
    }
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty() && *step != ".").collect();
    match steps.contains(&"..") {
        true => Err(evil(format!("the path `{path}` in it leads out of the archive (`..`)"))),
        false => Ok(steps.join("/")),
    }
}
