//! tar: POSIX ustar with the long names of pax and of GNU.
//!
//! ```text
//!  entry ── 'x' pax | 'L', 'K' GNU ──► names for the next entry   (at most NOTE_BYTES_MAX each)
//!        ── 'g' ─────────────────────► nothing of it concerns one file
//!        └─ else ────────────────────► Member
//! ```
//! The crate's own handling of long names reads them whole, however long they say they are: entries are taken raw instead.

use std::io::{self, Read, Write};

use ::tar::{Archive, Builder, EntryType, Header, PaxExtensions};

use super::evil;
use super::member::{BLOCK, CHARACTER, DIRECTORY, FIFO, Flow, Member, REGULAR, SYMLINK, Visit};

/// What a note about the next file may take: a few names of [`PATH_BYTES_MAX`](super::member::PATH_BYTES_MAX), and attributes.
const NOTE_BYTES_MAX: u64 = 1024 * 1024;

/// What notes said of the next file.
#[derive(Default)]
struct Notes {
    path: Option<String>,
    link: Option<String>,
}

/// Goes through an archive.
pub(super) fn each(stream: impl Read, visit: Visit<'_>) -> io::Result<Flow> {
    let mut archive = Archive::new(stream);
    let mut notes = Notes::default();
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::GNULongName => notes.path = Some(name(note(&mut entry)?)?),
            EntryType::GNULongLink => notes.link = Some(name(note(&mut entry)?)?),
            EntryType::XHeader => notes.read_pax(&note(&mut entry)?)?,
            EntryType::XGlobalHeader => {}
            _ => {
                let member = member(entry.header(), std::mem::take(&mut notes))?;
                if visit(member, &mut entry)? == Flow::Stop {
                    return Ok(Flow::Stop);
                }
            }
        }
    }
    Ok(Flow::On)
}

fn note(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(NOTE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > NOTE_BYTES_MAX {
        true => Err(evil(format!("a name in it has more than {NOTE_BYTES_MAX} bytes"))),
        false => Ok(bytes),
    }
}

fn name(mut bytes: Vec<u8>) -> io::Result<String> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    String::from_utf8(bytes).map_err(|_| evil("a path in it is not UTF-8".to_owned()))
}

impl Notes {
    fn read_pax(&mut self, bytes: &[u8]) -> io::Result<()> {
        for pair in PaxExtensions::new(bytes) {
            let pair = pair?;
            match pair.key_bytes() {
                b"path" => self.path = Some(name(pair.value_bytes().to_vec())?),
                b"linkpath" => self.link = Some(name(pair.value_bytes().to_vec())?),
                b"size" => {
                    return Err(evil(
                        "a file in it has its size in a pax header; make the archive with GNU tar".to_owned(),
                    ));
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(evil("it has sparse files; make it without `--sparse`".to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn member(header: &Header, notes: Notes) -> io::Result<Member> {
    let path = match notes.path {
        Some(path) => path,
        None => name(header.path_bytes().into_owned())?,
    };
    let linked = match (notes.link, header.link_name_bytes()) {
        (Some(link), _) => Some(link),
        (None, Some(bytes)) => Some(name(bytes.into_owned())?),
        (None, None) => None,
    };
    let (kind, link) = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => (REGULAR, None),
        EntryType::Link => (REGULAR, linked),
        EntryType::Symlink => (SYMLINK, linked),
        EntryType::Char => (CHARACTER, None),
        EntryType::Block => (BLOCK, None),
        EntryType::Directory => (DIRECTORY, None),
        EntryType::Fifo => (FIFO, None),
        other => return Err(evil(format!("`{path}` in it is of the type {other:?}, which is not read here"))),
    };
    // Of other types the field may hold anything: spaces, zeros, text.
    let device = match kind {
        CHARACTER | BLOCK => (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)),
        _ => (0, 0),
    };
    Ok(Member {
        path,
        mode: kind | header.mode()? & 0o7777,
        size: if link.is_some() || kind != REGULAR { 0 } else { header.entry_size()? },
        uid: header.uid()? as u32,
        gid: header.gid()? as u32,
        modified: header.mtime()? as u32,
        link,
        device,
        shared: None,
    })
}

/// An archive that is being written.
pub(super) struct Writer<W: Write>(Builder<W>);

impl<W: Write> Writer<W> {
    pub(super) fn new(target: W) -> Self {
        Writer(Builder::new(target))
    }

    pub(super) fn add(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        if member.shared.is_some() {
            let path = &member.path;
            return Err(evil(format!(
                "`{path}` has several names in the cpio, which only cpio can keep; use `extension: cpio`"
            )));
        }
        let mut header = Header::new_gnu();
        header.set_mode(member.mode & 0o7777);
        header.set_uid(member.uid.into());
        header.set_gid(member.gid.into());
        header.set_mtime(member.modified.into());
        header.set_size(member.size);
        header.set_entry_type(match member.kind() {
            REGULAR if member.link.is_some() => EntryType::Link,
            DIRECTORY => EntryType::Directory,
            SYMLINK => EntryType::Symlink,
            CHARACTER => EntryType::Char,
            BLOCK => EntryType::Block,
            FIFO => EntryType::Fifo,
            _ => EntryType::Regular,
        });
        if member.device != (0, 0) {
            header.set_device_major(member.device.0)?;
            header.set_device_minor(member.device.1)?;
        }
        match &member.link {
            Some(target) => self.0.append_link(&mut header, &member.path, target),
            None => self.0.append_data(&mut header, &member.path, Exactly { content, left: member.size }),
        }
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.0.into_inner()
    }
}

/// As many bytes as the header says, or an error: a short file would shift all that follow.
struct Exactly<'a> {
    content: &'a mut dyn Read,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let count = self.left.min(target.len() as u64) as usize;
        let read = self.content.read(&mut target[..count])?;
        if read == 0 && count > 0 {
            return Err(evil("it ends in the middle of a file".to_owned()));
        }
        self.left -= read as u64;
        Ok(read)
    }
}
