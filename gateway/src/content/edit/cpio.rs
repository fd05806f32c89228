//! cpio in the newc format: what the kernel unpacks as initial RAM disk (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! ```text
//!  "070701" ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check   8 hexadecimal digits each
//!  name 00 ─ to a multiple of 4 ─ bytes ─ to a multiple of 4 ─ … ─ member "TRAILER!!!"
//! ```

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use super::evil;
use super::member::{DIRECTORY, Flow, Member, PATH_BYTES_MAX, REGULAR, SYMLINK, Visit};

const TRAILER: &str = "TRAILER!!!";
const HEADER_BYTES: usize = 110;

/// Goes through one archive, up to and with its trailer.
pub(super) fn each(stream: &mut dyn Read, visit: Visit<'_>) -> io::Result<Flow> {
    loop {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).map_err(cut)?;
        let (mut member, name_bytes) = parse(&header)?;
        member.path = text(stream, name_bytes as u64, "a path")?.trim_end_matches('\0').to_owned();
        skip(stream, padding(HEADER_BYTES as u64 + u64::from(name_bytes)))?;
        if member.path == TRAILER {
            return Ok(Flow::On);
        }
        let size = member.size;
        if member.kind() == SYMLINK {
            member.link = Some(text(stream, size, "the target of a link")?);
            member.size = 0;
        }
        let mut content = stream.take(member.size);
        if visit(member, &mut content)? == Flow::Stop {
            return Ok(Flow::Stop);
        }
        let left = content.limit();
        skip(stream, left + padding(size))?;
    }
}

fn parse(header: &[u8; HEADER_BYTES]) -> io::Result<(Member, u32)> {
    if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
        return Err(evil("its cpio headers are broken".to_owned()));
    }
    let mut numbers = [0; 13];
    for (number, digits) in numbers.iter_mut().zip(header[6..].chunks_exact(8)) {
        let digits =
            std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let parsed = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        *number = parsed.ok_or_else(|| evil("its cpio headers are broken".to_owned()))?;
    }
    let [ino, mode, uid, gid, nlink, modified, size, _, _, major, minor, name_bytes, _] = numbers;
    let device = (major, minor);
    let shared = (nlink > 1 && mode & super::member::TYPE_MASK == REGULAR).then_some((ino, nlink));
    let size = u64::from(size);
    Ok((Member { mode, size, uid, gid, modified, device, shared, ..Member::default() }, name_bytes))
}

fn text(stream: &mut dyn Read, length: u64, what: &str) -> io::Result<String> {
    if length > PATH_BYTES_MAX as u64 {
        return Err(evil(format!("{what} in it has more than {PATH_BYTES_MAX} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).map_err(cut)?;
    String::from_utf8(bytes).map_err(|_| evil(format!("{what} in it is not UTF-8")))
}

fn skip(stream: &mut dyn Read, count: u64) -> io::Result<()> {
    match io::copy(&mut stream.take(count), &mut io::sink())? {
        skipped if skipped < count => Err(cut(io::ErrorKind::UnexpectedEof.into())),
        _ => Ok(()),
    }
}

fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => evil("it ends in the middle of a file".to_owned()),
        _ => error,
    }
}

fn padding(length: u64) -> u64 {
    length.next_multiple_of(4) - length
}

/// An archive that is being written.
pub(super) struct Writer<W> {
    target: W,
    number: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(target: W) -> Self {
        Writer { target, number: 0, directories: BTreeSet::new() }
    }

    /// A member; directories on its way that the archive does not have are made, because the kernel makes none.
    pub(super) fn add(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        self.make_way(&member.path)?;
        if member.kind() == DIRECTORY {
            self.directories.insert(member.path.clone());
        }
        // A hard link of another kind of archive: the kernel follows a symbolic one as well, and its file need not come first.
        let link = match member.is_hard_link() {
            true => {
                member.link.as_ref().map(|target| format!("{}{target}", "../".repeat(member.path.matches('/').count())))
            }
            false => member.link.clone(),
        };
        let mode = if member.is_hard_link() { SYMLINK | 0o777 } else { member.mode };
        let size = link.as_ref().map_or(member.size, |target| target.len() as u64);
        let member = Member { mode, size, ..member.clone() };
        self.header(&member)?;
        match link {
            Some(target) => self.target.write_all(target.as_bytes())?,
            None => copy_exactly(content, &mut self.target, size)?,
        }
        self.pad(size)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.header(&Member { path: TRAILER.to_owned(), ..Member::default() })?;
        Ok(self.target)
    }

    fn make_way(&mut self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/') {
            if self.directories.insert(path[..at].to_owned()) {
                let parent = Member { path: path[..at].to_owned(), mode: DIRECTORY | 0o755, ..Member::default() };
                self.header(&parent)?;
            }
        }
        Ok(())
    }

    fn header(&mut self, member: &Member) -> io::Result<()> {
        let size = u32::try_from(member.size)
            .map_err(|_| evil(format!("`{}` is too large for cpio, whose files have at most 4 GiB", member.path)))?;
        self.number += 1;
        // Numbers of ours have the top bit: those that files share with one another are kept.
        let (ino, nlink) = member.shared.unwrap_or((self.number | 1 << 31, 1));
        let (major, minor) = member.device;
        let name_bytes = member.path.len() as u32 + 1;
        write!(self.target, "070701")?;
        let Member { mode, uid, gid, modified, .. } = *member;
        for number in [ino, mode, uid, gid, nlink, modified, size, 0, 0, major, minor, name_bytes, 0] {
            write!(self.target, "{number:08x}")?;
        }
        self.target.write_all(member.path.as_bytes())?;
        self.target.write_all(&[0])?;
        self.pad(HEADER_BYTES as u64 + u64::from(name_bytes))
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        self.target.write_all(&[0; 4][..padding(written) as usize])
    }
}

/// `size` bytes, as the header before them said.
pub(super) fn copy_exactly(content: &mut dyn Read, target: &mut dyn Write, size: u64) -> io::Result<()> {
    match io::copy(&mut content.take(size), target)? {
        copied if copied < size => Err(cut(io::ErrorKind::UnexpectedEof.into())),
        _ => Ok(()),
    }
}
