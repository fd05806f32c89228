//! ISO 9660 (ECMA-119) with Rock Ridge names (RRIP 1.10 over SUSP 1.10); Joliet names are read where there is no Rock Ridge.
//!
//! ```text
//!  sector 16   primary volume descriptor ─► root directory ─► records: place, size, name;XX, system use (NM, PX, SL, PN, CE)
//!         17   … end of descriptors (255)
//!         18   path tables, little and big endian ─ directories ─ continued system use ─ files          as we write them
//! ```
//! Numbers stand in both byte orders beside each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::member::{BLOCK, CHARACTER, DIRECTORY, Flow, Member, REGULAR, SYMLINK, Seekable, Visit};
use super::{Limit, evil};

const SECTOR: u64 = 2048;
/// Where the first descriptor's "CD001" ends.
pub(super) const MAGIC_END: usize = 16 * SECTOR as usize + 6;
/// Descriptors before the last one: a disc has two to five.
const DESCRIPTORS_MAX: u64 = 32;
/// A directory of 100,000 files takes some 20 MiB.
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
/// Directories in directories; ECMA-119 allows 8, Rock Ridge any number, Debian's archive has 9.
const DEPTH_MAX: usize = 64;
/// What one name's system use may be continued by.
const CONTINUATIONS_MAX: usize = 16;

/// Whose names are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Plain,
    Joliet,
    /// Bytes to skip at the start of each system use.
    RockRidge(usize),
}

#[derive(Clone, Copy)]
struct Extent {
    sector: u32,
    bytes: u32,
}

struct Image {
    bytes: Box<dyn Seekable>,
    names: Names,
    seen: BTreeSet<u32>,
}

/// Goes through an image, directory by directory.
pub(super) fn each(bytes: Box<dyn Seekable>, visit: Visit<'_>) -> io::Result<()> {
    let mut image = Image { bytes, names: Names::Plain, seen: BTreeSet::new() };
    let root = image.root()?;
    let mut waiting = vec![(root, String::new(), 0)];
    while let Some((extent, path, depth)) = waiting.pop() {
        if depth > DEPTH_MAX || !image.seen.insert(extent.sector) {
            return Err(evil(format!("its directory `{path}` is in a loop, or deeper than {DEPTH_MAX}")));
        }
        let mut found = image.directory(extent, &path)?;
        // The stack gives back the last first.
        let directories: Vec<_> = found.iter().filter(|(member, _)| member.kind() == DIRECTORY).collect();
        let inner: Vec<_> =
            directories.iter().map(|(member, extents)| (extents.first().copied(), member.path.clone())).collect();
        waiting.extend(inner.into_iter().rev().filter_map(|(extent, path)| Some((extent?, path, depth + 1))));
        for (member, extents) in found.drain(..) {
            let extents = if member.kind() == REGULAR { &extents[..] } else { &[] };
            let mut content = Content { bytes: &mut image.bytes, extents, offset: 0 };
            if visit(member, &mut content)? == Flow::Stop {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Image {
    fn sectors(&mut self, sector: u64, bytes: u64) -> io::Result<Vec<u8>> {
        self.bytes.seek(SeekFrom::Start(sector * SECTOR))?;
        let mut data = Vec::new();
        (&mut self.bytes).take(bytes).read_to_end(&mut data)?;
        if (data.len() as u64) < bytes {
            return Err(evil("it ends before its directories do".to_owned()));
        }
        Ok(data)
    }

    /// The directory to begin with, and whose names it has.
    fn root(&mut self) -> io::Result<Extent> {
        let (mut plain, mut joliet) = (None, None);
        for sector in 16..16 + DESCRIPTORS_MAX {
            let descriptor = self.sectors(sector, SECTOR)?;
            match (descriptor[0], &descriptor[88..91]) {
                (255, _) => break,
                (1, _) => plain = plain.or(extent(&descriptor[156..190])),
                (2, b"%/@" | b"%/C" | b"%/E") => joliet = extent(&descriptor[156..190]),
                _ => {}
            }
        }
        let plain = plain.ok_or_else(|| evil("it has no primary volume descriptor".to_owned()))?;
        let first = self.sectors(plain.sector.into(), SECTOR)?;
        let system_use = record(&first).map(|record| record.system_use.to_vec()).unwrap_or_default();
        match (system_use.get(..7), joliet) {
            (Some([b'S', b'P', 7, 1, 0xbe, 0xef, skip]), _) => self.names = Names::RockRidge((*skip).into()),
            (_, Some(joliet)) => {
                self.names = Names::Joliet;
                return Ok(joliet);
            }
            _ => {}
        }
        Ok(plain)
    }

    fn directory(&mut self, extent: Extent, path: &str) -> io::Result<Vec<(Member, Vec<Extent>)>> {
        if u64::from(extent.bytes) > DIRECTORY_BYTES_MAX {
            return Err(evil(format!("its directory `{path}` has more than {DIRECTORY_BYTES_MAX} bytes")));
        }
        let data = self.sectors(extent.sector.into(), extent.bytes.into())?;
        let (mut found, mut parts) = (Vec::new(), Vec::new());
        for sector in data.chunks(SECTOR as usize) {
            let mut at = 0;
            while let Some(record) = sector.get(at..).and_then(record) {
                at += record.length;
                if matches!(record.name, [0] | [1]) {
                    continue;
                }
                parts.push(record.extent);
                // A file of several sections: this one is not the last (ECMA-119, 9.1.6, bit 7).
                if record.flags & 0x80 != 0 {
                    continue;
                }
                let extents = std::mem::take(&mut parts);
                found.extend(self.member(&record, extents, path)?);
            }
        }
        Ok(found)
    }

    fn member(
        &mut self,
        record: &Record<'_>,
        mut extents: Vec<Extent>,
        path: &str,
    ) -> io::Result<Option<(Member, Vec<Extent>)>> {
        let kind = if record.flags & 2 != 0 { DIRECTORY | 0o755 } else { REGULAR | 0o644 };
        let mut member = Member { mode: kind, path: self.plain_name(record.name)?, ..Member::default() };
        if let Names::RockRidge(skip) = self.names {
            let system_use = record.system_use.get(skip..).unwrap_or_default().to_vec();
            let more = self.rock_ridge(system_use)?;
            if more.is_relocated {
                return Ok(None);
            }
            if !more.name.is_empty() {
                member.path = text(more.name)?;
            }
            if let Some([mode, uid, gid]) = more.attributes {
                (member.mode, member.uid, member.gid) = (mode, uid, gid);
            }
            member.device = more.device;
            if member.kind() == SYMLINK {
                member.link = Some(text(more.target)?);
            }
            if let Some(sector) = more.child {
                let first = self.sectors(sector.into(), SECTOR)?;
                let itself =
                    self::record(&first).ok_or_else(|| evil("a moved directory in it is not there".to_owned()))?;
                (extents, member.mode) = (vec![itself.extent], DIRECTORY | member.mode & 0o7777);
            }
        }
        if member.path.contains('/') || member.path == ".." {
            return Err(evil(format!("the name `{}` in it leads elsewhere", member.path)));
        }
        if member.kind() == REGULAR {
            member.size = extents.iter().map(|extent| u64::from(extent.bytes)).sum();
        }
        if !path.is_empty() {
            member.path = format!("{path}/{}", member.path);
        }
        Ok(Some((member, extents)))
    }

    /// `NAME.EXT;1` in lower case, as Linux shows it; Joliet's UCS-2 as it is.
    fn plain_name(&self, name: &[u8]) -> io::Result<String> {
        if self.names == Names::Joliet {
            let units: Vec<u16> = name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            let name = String::from_utf16(&units).map_err(|_| evil("a name in it is not UTF-16".to_owned()))?;
            return Ok(name.split(';').next().unwrap_or_default().to_owned());
        }
        let name = text(name.to_vec())?.to_ascii_lowercase();
        Ok(name.split(';').next().unwrap_or_default().trim_end_matches('.').to_owned())
    }

    fn rock_ridge(&mut self, mut area: Vec<u8>) -> io::Result<RockRidge> {
        let mut found = RockRidge::default();
        for _ in 0..CONTINUATIONS_MAX {
            let mut next = None;
            let mut rest = &area[..];
            while let Some(length) = rest.get(2).map(|length| usize::from(*length)) {
                let Some(entry) = rest.get(..length).filter(|entry| entry.len() >= 4) else { break };
                match &entry[..2] {
                    b"CE" if entry.len() >= 28 => next = Some((word(entry, 4), word(entry, 12), word(entry, 20))),
                    b"ST" => break,
                    _ => found.take(entry),
                }
                rest = &rest[length..];
            }
            let Some((sector, offset, length)) = next else { return Ok(found) };
            if u64::from(offset) + u64::from(length) > SECTOR {
                return Err(evil("a continued name in it crosses its sector".to_owned()));
            }
            let sector = self.sectors(sector.into(), SECTOR)?;
            area = sector[offset as usize..(offset + length) as usize].to_vec();
        }
        Err(evil("a name in it is continued without end".to_owned()))
    }
}

/// What Rock Ridge says of a file.
#[derive(Default)]
struct RockRidge {
    name: Vec<u8>,
    /// Mode, owner and group.
    attributes: Option<[u32; 3]>,
    device: (u32, u32),
    target: Vec<u8>,
    /// The last component of the target goes on in the next entry.
    target_is_open: bool,
    /// A directory that stands elsewhere, because it would be too deep here.
    child: Option<u32>,
    /// This is that elsewhere.
    is_relocated: bool,
}

impl RockRidge {
    fn take(&mut self, entry: &[u8]) {
        match (&entry[..2], entry.len()) {
            (b"NM", 5..) if entry[4] & 6 == 0 => self.name.extend(&entry[5..]),
            (b"PX", 36..) => self.attributes = Some([word(entry, 4), word(entry, 20), word(entry, 28)]),
            (b"PN", 20..) => self.device = (word(entry, 4), word(entry, 12)),
            (b"SL", 5..) => self.take_target(&entry[5..]),
            (b"CL", 12..) => self.child = Some(word(entry, 4)),
            (b"RE", _) => self.is_relocated = true,
            _ => {}
        }
    }

    /// Components of a link's target (RRIP 4.1.3): flags, length, text.
    fn take_target(&mut self, mut rest: &[u8]) {
        while let [flags, length, tail @ ..] = rest {
            let length = usize::from(*length).min(tail.len());
            if !self.target.is_empty() && !self.target_is_open && self.target != b"/" {
                self.target.push(b'/');
            }
            match flags & 0x0e {
                2 => self.target.extend(b"."),
                4 => self.target.extend(b".."),
                8 => self.target.extend(b"/"),
                _ => self.target.extend(&tail[..length]),
            }
            self.target_is_open = flags & 1 != 0;
            rest = &tail[length..];
        }
    }
}

/// One record of a directory (ECMA-119, 9.1).
struct Record<'a> {
    length: usize,
    extent: Extent,
    flags: u8,
    name: &'a [u8],
    system_use: &'a [u8],
}

fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let length = usize::from(*bytes.first()?);
    let record = bytes.get(..length).filter(|record| record.len() > 33)?;
    let name_length = usize::from(record[32]);
    let name = record.get(33..33 + name_length)?;
    // Names of even length are followed by a zero.
    let system_use = record.get(33 + name_length + (1 - name_length % 2)..).unwrap_or_default();
    Some(Record { length, extent: extent(record)?, flags: record[25], name, system_use })
}

fn extent(record: &[u8]) -> Option<Extent> {
    (record.len() >= 33).then(|| Extent { sector: word(record, 2), bytes: word(record, 10) })
}

/// The little-endian half of a number in both orders.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| evil("a name in it is not UTF-8".to_owned()))
}

/// The sections of one file, one after the other.
struct Content<'a> {
    bytes: &'a mut Box<dyn Seekable>,
    extents: &'a [Extent],
    offset: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while let Some(extent) = self.extents.first() {
            let left = u64::from(extent.bytes) - self.offset;
            if left > 0 {
                self.bytes.seek(SeekFrom::Start(u64::from(extent.sector) * SECTOR + self.offset))?;
                let count = left.min(target.len() as u64) as usize;
                let read = self.bytes.read(&mut target[..count])?;
                self.offset += read as u64;
                return Ok(read);
            }
            (self.extents, self.offset) = (&self.extents[1..], 0);
        }
        Ok(0)
    }
}

/// An image that is being written: places are only known when everything is there, so bytes wait in a file.
pub(super) struct Writer<W> {
    target: W,
    spool: File,
    spooled: u64,
    limit: Limit,
    nodes: BTreeMap<String, Node>,
}

struct Node {
    member: Member,
    /// Where its bytes wait.
    offset: u64,
    /// Its name for those who do not read Rock Ridge.
    plain: Vec<u8>,
    system_use: SystemUse,
    sector: u32,
    bytes: u32,
}

/// What a record says beside itself: as it stands there, or in a place of its own.
#[derive(Default)]
struct SystemUse {
    bytes: Vec<u8>,
    /// Sector and offset of the place, once it has one; `None` while it stands in the record.
    continued: Option<(u32, u32)>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(target: W, spool: File, limit: Limit) -> Self {
        Writer { target, spool, spooled: 0, limit, nodes: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        let path = &member.path;
        if member.is_hard_link() || member.shared.is_some() {
            return Err(evil(format!(
                "`{path}` has several names, which an ISO made here cannot keep; use cpio or tar"
            )));
        }
        let bytes = u32::try_from(member.size)
            .map_err(|_| evil(format!("`{path}` is too large for an ISO made here, whose files have at most 4 GiB")))?;
        self.limit.check("it would be", self.spooled + member.size)?;
        for (at, _) in path.match_indices('/') {
            let parent = Member { path: path[..at].to_owned(), mode: DIRECTORY | 0o755, ..Member::default() };
            self.nodes.entry(parent.path.clone()).or_insert_with(|| Node::new(parent, 0, 0));
        }
        let offset = self.spooled;
        super::cpio::copy_exactly(content, &mut self.spool, member.size)?;
        self.spooled += member.size;
        self.nodes.insert(path.clone(), Node::new(member.clone(), offset, bytes));
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        let root = Member { mode: DIRECTORY | 0o755, ..Member::default() };
        self.nodes.insert(String::new(), Node::new(root, 0, 0));
        self.check()?;
        let mut tree = Tree::of(&mut self.nodes)?;
        let end = tree.place(&mut self.nodes)?;
        let mut at = 16 * SECTOR;
        self.target.write_all(&vec![0; at as usize])?;
        for part in tree.head(&self.nodes, end) {
            self.target.write_all(&part)?;
            at += part.len() as u64;
        }
        debug_assert_eq!(at, u64::from(tree.files_at) * SECTOR, "what was counted is what was written");
        for path in &tree.files {
            let node = &self.nodes[path];
            self.spool.seek(SeekFrom::Start(node.offset))?;
            super::cpio::copy_exactly(&mut self.spool, &mut self.target, node.bytes.into())?;
            let padding = u64::from(node.bytes).next_multiple_of(SECTOR) - u64::from(node.bytes);
            self.target.write_all(&[0; SECTOR as usize][..padding as usize])?;
        }
        Ok(self.target)
    }

    /// A file cannot be a directory as well.
    fn check(&self) -> io::Result<()> {
        for path in self.nodes.keys().filter(|path| !path.is_empty()) {
            if self.nodes.get(parent_of(path)).is_none_or(|node| node.member.kind() != DIRECTORY) {
                return Err(evil(format!("`{path}` is in something that is no directory")));
            }
        }
        Ok(())
    }
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

impl Node {
    fn new(member: Member, offset: u64, bytes: u32) -> Self {
        Node { member, offset, plain: Vec::new(), system_use: SystemUse::default(), sector: 0, bytes }
    }

    fn is_directory(&self) -> bool {
        self.member.kind() == DIRECTORY
    }

    fn record(&self) -> Vec<u8> {
        let system_use = match self.system_use.continued {
            None => self.system_use.bytes.clone(),
            Some((sector, offset)) => continuation(sector, offset, self.system_use.bytes.len() as u32),
        };
        record_of(self, &self.plain, &system_use)
    }
}

fn record_of(node: &Node, name: &[u8], system_use: &[u8]) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both(node.sector));
    record.extend(both(node.bytes));
    // 1970-01-01: years since 1900, month, day; the same bytes for the same files.
    record.extend([70, 1, 1, 0, 0, 0, 0]);
    record.extend([if node.is_directory() { 2 } else { 0 }, 0, 0]);
    record.extend([1, 0, 0, 1]);
    record.push(name.len() as u8);
    record.extend(name);
    record.resize(record.len().next_multiple_of(2), 0);
    record.extend(system_use);
    record.resize(record.len().next_multiple_of(2), 0);
    record[0] = record.len() as u8;
    record
}

/// A number in both byte orders.
fn both(number: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

fn continuation(sector: u32, offset: u32, length: u32) -> Vec<u8> {
    [b"CE\x1c\x01".to_vec(), both(sector).into(), both(offset).into(), both(length).into()].concat()
}

/// Rock Ridge entries of a member; `PX` without a serial number, as RRIP 1.09 and 1.10 have it.
fn system_use(member: &Member) -> io::Result<Vec<u8>> {
    let mut bytes = attributes(member);
    // 250 bytes an entry: its length is one byte.
    let name = name_of(&member.path).as_bytes();
    let pieces = name.chunks(250);
    let last = pieces.len().saturating_sub(1);
    for (index, piece) in pieces.enumerate() {
        bytes.extend([b'N', b'M', 5 + piece.len() as u8, 1, u8::from(index < last)]);
        bytes.extend(piece);
    }
    if let Some(target) = &member.link {
        bytes.extend(link_entries(target));
    }
    if matches!(member.kind(), BLOCK | CHARACTER) {
        bytes.extend([b"PN\x14\x01".to_vec(), both(member.device.0).into(), both(member.device.1).into()].concat());
    }
    match bytes.len() as u64 > SECTOR {
        true => Err(evil(format!("the name or the target of `{}` is too long for an ISO", member.path))),
        false => Ok(bytes),
    }
}

fn attributes(member: &Member) -> Vec<u8> {
    let links = if member.kind() == DIRECTORY { 2 } else { 1 };
    let numbers = [member.mode, links, member.uid, member.gid];
    [b"PX\x24\x01".to_vec(), numbers.into_iter().flat_map(both).collect()].concat()
}

fn link_entries(target: &str) -> Vec<u8> {
    let mut components = Vec::new();
    if target.starts_with('/') {
        components.push(vec![8, 0]);
    }
    for step in target.split('/').filter(|step| !step.is_empty()) {
        match step {
            "." => components.push(vec![2, 0]),
            ".." => components.push(vec![4, 0]),
            _ => {
                let pieces = step.as_bytes().chunks(200);
                let last = pieces.len() - 1;
                let piece =
                    |(index, piece): (usize, &[u8])| [&[u8::from(index < last), piece.len() as u8], piece].concat();
                components.extend(pieces.enumerate().map(piece));
            }
        }
    }
    let last = components.len().saturating_sub(1);
    let entry = |(index, component): (usize, Vec<u8>)| {
        [&[b'S', b'L', 5 + component.len() as u8, 1, u8::from(index < last)], &component[..]].concat()
    };
    components.into_iter().enumerate().flat_map(entry).collect()
}

/// The order of everything in an image.
struct Tree {
    /// Directories, parents first (the order of the path table, ECMA-119, 6.9.1), with their children in the order of their records.
    directories: Vec<(String, Vec<String>)>,
    files: Vec<String>,
    path_table_bytes: u32,
    files_at: u32,
    continued: Vec<Vec<u8>>,
}

impl Tree {
    fn of(nodes: &mut BTreeMap<String, Node>) -> io::Result<Tree> {
        let mut children: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in nodes.keys().filter(|path| !path.is_empty()) {
            children.entry(parent_of(path).to_owned()).or_default().push(path.clone());
        }
        for list in children.values_mut() {
            name_all(nodes, list);
            list.sort_by(|one, other| nodes[one].plain.cmp(&nodes[other].plain));
        }
        let (mut directories, mut files, mut at) = (vec![(String::new(), Vec::new())], Vec::new(), 0);
        while let Some((path, list)) = directories.get_mut(at) {
            *list = children.remove(path).unwrap_or_default();
            let inner: Vec<_> = list.iter().filter(|path| nodes[*path].is_directory()).cloned().collect();
            files.extend(list.iter().filter(|path| nodes[*path].member.kind() == REGULAR).cloned());
            directories.extend(inner.into_iter().map(|path| (path, Vec::new())));
            at += 1;
        }
        let length = |path: &String| 8 + nodes[path].plain.len().max(1).next_multiple_of(2) as u32;
        let path_table_bytes = directories.iter().map(|(path, _)| length(path)).sum();
        for node in nodes.values_mut().filter(|node| !node.member.path.is_empty()) {
            node.system_use.bytes = system_use(&node.member)?;
        }
        Ok(Tree { directories, files, path_table_bytes, files_at: 0, continued: Vec::new() }.continue_all(nodes))
    }

    /// Gives what does not fit in its record a place in sectors of their own, none across two.
    fn continue_all(mut self, nodes: &mut BTreeMap<String, Node>) -> Self {
        for (_, list) in &self.directories {
            for path in list {
                let node = nodes.get_mut(path).expect("each child is a node");
                if 33 + node.plain.len() + 2 + node.system_use.bytes.len() <= 254 {
                    continue;
                }
                let bytes = &node.system_use.bytes;
                if self.continued.last().is_none_or(|sector| sector.len() + bytes.len() > SECTOR as usize) {
                    self.continued.push(Vec::new());
                }
                let number = self.continued.len() as u32 - 1;
                let sector = self.continued.last_mut().expect("one was pushed");
                node.system_use.continued = Some((number, sector.len() as u32));
                sector.extend(bytes);
            }
        }
        self
    }

    /// Says where everything stands; returns the number of sectors.
    fn place(&mut self, nodes: &mut BTreeMap<String, Node>) -> io::Result<u32> {
        let too_large = || evil("it would be larger than an ISO can be".to_owned());
        let mut at = 18 + 2 * sectors(self.path_table_bytes);
        for (path, list) in &self.directories {
            let bytes = packed(list.iter().map(|child| nodes[child].record()), nodes, path).len() as u32;
            let node = nodes.get_mut(path).expect("each directory is a node");
            (node.sector, node.bytes) = (at, bytes);
            at += sectors(bytes);
        }
        for node in nodes.values_mut() {
            if let Some((sector, _)) = &mut node.system_use.continued {
                *sector += at;
            }
        }
        at += self.continued.len() as u32;
        self.files_at = at;
        for path in &self.files {
            let node = nodes.get_mut(path).expect("each file is a node");
            node.sector = at;
            at = at.checked_add(sectors(node.bytes)).ok_or_else(too_large)?;
        }
        Ok(at)
    }

    /// Everything from sector 16 to the first file.
    fn head(&self, nodes: &BTreeMap<String, Node>, end: u32) -> Vec<Vec<u8>> {
        let mut parts = vec![self.descriptor(nodes, end), terminator()];
        for order in [Order::Little, Order::Big] {
            parts.push(padded(self.path_table(nodes, order)));
        }
        for (path, list) in &self.directories {
            parts.push(packed(list.iter().map(|child| nodes[child].record()), nodes, path));
        }
        parts.extend(self.continued.iter().cloned().map(padded));
        parts
    }

    /// ECMA-119, 8.4.
    fn descriptor(&self, nodes: &BTreeMap<String, Node>, end: u32) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.extend(b"CD001\x01\0");
        bytes.resize(40, b' ');
        bytes.extend(b"WHARFINGER                      ");
        bytes.extend([0; 8]);
        bytes.extend(both(end));
        bytes.extend([0; 32]);
        for number in [1u16, 1, SECTOR as u16] {
            bytes.extend([number.to_le_bytes(), number.to_be_bytes()].concat());
        }
        bytes.extend(both(self.path_table_bytes));
        let table_sectors = sectors(self.path_table_bytes);
        bytes.extend(18u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((18 + table_sectors).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(record_of(&nodes[""], &[0], &[]));
        bytes.resize(813, b' ');
        for _ in 0..4 {
            bytes.extend(b"0000000000000000\0");
        }
        bytes.extend([1, 0]);
        padded(bytes)
    }

    /// ECMA-119, 9.4.
    fn path_table(&self, nodes: &BTreeMap<String, Node>, order: Order) -> Vec<u8> {
        let numbers: BTreeMap<&str, u16> =
            self.directories.iter().enumerate().map(|(index, (path, _))| (path.as_str(), (index + 1) as u16)).collect();
        let mut bytes = Vec::new();
        for (path, _) in &self.directories {
            let node = &nodes[path];
            let name: &[u8] = if path.is_empty() { &[0] } else { &node.plain };
            let parent = numbers.get(parent_of(path)).copied().unwrap_or(1);
            bytes.extend([name.len() as u8, 0]);
            match order {
                Order::Little => bytes.extend([&node.sector.to_le_bytes()[..], &parent.to_le_bytes()].concat()),
                Order::Big => bytes.extend([&node.sector.to_be_bytes()[..], &parent.to_be_bytes()].concat()),
            }
            bytes.extend(name);
            bytes.resize(bytes.len().next_multiple_of(2), 0);
        }
        bytes
    }
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

fn terminator() -> Vec<u8> {
    padded(b"\xffCD001\x01".to_vec())
}

fn sectors(bytes: u32) -> u32 {
    u64::from(bytes).div_ceil(SECTOR) as u32
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    bytes
}

/// The records of a directory: itself, its parent, its children; none across two sectors (ECMA-119, 6.8.1.1).
fn packed(children: impl Iterator<Item = Vec<u8>>, nodes: &BTreeMap<String, Node>, path: &str) -> Vec<u8> {
    let (node, parent) = (&nodes[path], &nodes[parent_of(path)]);
    let mut own = attributes(&node.member);
    if path.is_empty() {
        // That there is Rock Ridge at all (SUSP 5.3, 5.5).
        own = [b"SP\x07\x01\xbe\xef\0".to_vec(), own, b"ER\x12\x01\x0a\0\0\x01RRIP_1991A".to_vec()].concat();
    }
    let mut bytes = record_of(node, &[0], &own);
    bytes.extend(record_of(parent, &[1], &attributes(&parent.member)));
    for record in children {
        let left = SECTOR as usize - bytes.len() % SECTOR as usize;
        if record.len() > left {
            bytes.resize(bytes.len() + left, 0);
        }
        bytes.extend(record);
    }
    padded(bytes)
}

/// Names of capital letters, digits and `_`, at most 30 characters with their ending, each once in its directory.
fn name_all(nodes: &mut BTreeMap<String, Node>, list: &[String]) {
    let mut taken = BTreeSet::new();
    for path in list {
        let node = nodes.get_mut(path).expect("each child is a node");
        let name = name_of(path).to_ascii_uppercase();
        let (stem, ending) = match name.rsplit_once('.') {
            Some((stem, ending)) if !node.is_directory() && !stem.is_empty() => (stem, ending),
            _ => (name.as_str(), ""),
        };
        let safe = |text: &str, most: usize| -> String {
            text.chars().take(most).map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
        };
        let (stem, ending) = (safe(stem, 16), safe(ending, 8));
        let plain = |number: usize| {
            let number = if number == 0 { String::new() } else { format!("_{number}") };
            match node.is_directory() {
                true => format!("{stem}{number}"),
                false => format!("{stem}{number}.{ending};1"),
            }
        };
        let mut number = 0;
        while !taken.insert(plain(number)) {
            number += 1;
        }
        node.plain = plain(number).into_bytes();
    }
}
