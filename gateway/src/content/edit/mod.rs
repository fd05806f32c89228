//! Artifacts made of others: archives packed, taken apart and packed again, files taken out of them, images wrapped for U-Boot.
//!
//! ```text
//!  Recipe { source?, steps } ─► identity: sha256 of the steps and of each content's version ─► edited/<identity> is there? ─► file
//!                                                                                              └─ no: one at a time per identity
//!   source ─► Input ─► step ─► file without a name ─► step ─► … ─► file ─► rename ─► edited/<identity>
//!                       ├─ uboot    uimage.rs
//!                       └─ archive  packing.rs (off) ─► member.rs: cpio, iso, tar, zip ─► keep, rewrite, match, add ─► the same (on)
//! ```
//! Nothing is unpacked into this machine's file system: members go from one stream into another. What a wrong or evil archive can do
//! is fail, with a sentence; what it can cost is bounded by the numbers below and in those files.

mod cpio;
mod files;
mod iso;
pub mod layers;
mod member;
mod packing;
mod tar;
pub mod uimage;
mod zip;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use job_schema::job::{ArchiveKind, Compression, Groups, UbootFormat};
use job_schema::pattern::Pattern;
use tempfile::NamedTempFile;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore};

pub use self::files::Found;
use self::member::{Flow, Member, REGULAR, Seekable, TYPE_MASK, clean_path};
use self::packing::{Packer, Peek, unpack};
use super::file::{LARGE_READ_BYTES, OpenFile};
use super::store::sha256;
use super::{Content, ContentError, Reader};

/// The most that a step may write, and a decompressor may give: twice the largest disk image that farms hand out as a file; an archive
/// that unpacks to more is a bomb.
pub(super) const STEP_BYTES_MAX: u64 = 32 << 30;
/// Edits that run at once, each on a core of its own: the gateway has other things to do than to compress.
const EDITS_AT_ONCE: usize = 2;
/// Names that are told when the one wanted is not in an archive.
const NAMES_TOLD: usize = 5;

/// How an artifact is made. `C` is a [`Content`], or what was opened of it.
#[derive(Clone, Debug)]
pub struct Recipe<C = Content> {
    /// What the first step works on; an archive of additions alone has none.
    pub source: Option<C>,
    /// What is done, in order.
    pub steps: Vec<Step<C>>,
}

/// One step of a [`Recipe`].
#[derive(Clone, Debug)]
pub enum Step<C = Content> {
    /// Wraps the bytes in a U-Boot image.
    Uboot(UbootFormat),
    /// Packs an archive, or takes a file out of one.
    Archive(Rework<C>),
}

/// What is done with an archive.
#[derive(Clone, Debug)]
pub struct Rework<C = Content> {
    /// The kind that is made; `None` makes the bytes of one file.
    pub kind: ArchiveKind,
    /// How the result is compressed.
    pub compression: Compression,
    /// Which files are kept, and under which name; all when the list is empty. The first that matches says.
    pub keep: Vec<(Pattern, Option<String>)>,
    /// Takes out the first file whose whole path this is.
    pub pick: Option<Pattern>,
    /// Files that are added; each replaces one of its path.
    pub add: Vec<Addition<C>>,
}

/// A file that is added to an archive.
#[derive(Clone, Debug)]
pub struct Addition<C = Content> {
    /// Its path there.
    pub path: String,
    /// Type and permissions.
    pub mode: u32,
    /// Its bytes; the target of a symbolic link.
    pub content: C,
}

/// Makes artifacts, each once, beneath the cache's directory. Cheap to clone.
#[derive(Clone)]
pub struct Editor(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    bytes_max: u64,
    places: Semaphore,
    running: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// An artifact that is made when it is first asked for. Cheap to clone: clones are the same artifact.
#[derive(Clone)]
pub struct Edited(Arc<Order>);

struct Order {
    editor: Editor,
    recipe: Recipe,
    made: OnceCell<(String, OpenFile)>,
}

impl Editor {
    /// An editor that keeps its results in `edited` beneath `directory`. A step gives `bytes_max` at most.
    pub(super) fn new(directory: &Path, bytes_max: u64) -> Result<Self, ContentError> {
        let directory = directory.join("edited");
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(|source| ContentError::Cache { path: directory.clone(), source: Arc::new(source) })?;
        let places = Semaphore::new(EDITS_AT_ONCE);
        Ok(Editor(Arc::new(Inner { directory, bytes_max, places, running: Mutex::default() })))
    }

    /// What `recipe` makes; nothing is done before it is asked for.
    pub fn edit(&self, recipe: Recipe) -> Edited {
        Edited(Arc::new(Order { editor: self.clone(), recipe, made: OnceCell::new() }))
    }

    /// The file of `recipe`, made now unless it is there.
    async fn make(&self, recipe: &Recipe) -> Result<(String, OpenFile), ContentError> {
        let identity = recipe.identity().await?;
        let path = self.0.directory.join(&identity);
        let turn = self.turn(&identity);
        let _turn = turn.lock().await;
        if let Ok(file) = OpenFile::open(&path).await {
            // Only for the pruning, which may then come early.
            let _ = file.handle().set_modified(SystemTime::now());
            return Ok((identity, file));
        }
        let opened = recipe.open().await?;
        let _place = self.0.places.acquire().await.expect("this semaphore is never closed");
        let stop = StopWhenDropped::default();
        let limit = Limit { bytes_max: self.0.bytes_max, stop: Arc::clone(&stop.0) };
        let bench = Bench { directory: self.0.directory.clone(), handle: Handle::current(), limit };
        let (target, what) = (path.clone(), recipe.to_string());
        let work = move || bench.run(opened).and_then(|file| Ok(file.persist(target).map(drop)?));
        // A decoder that panics over evil bytes is a failed edit like any other.
        let outcome = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        outcome.map_err(|error| ContentError::Edit { what, reason: error.to_string() })?;
        Ok((identity, OpenFile::open(&path).await?))
    }

    fn turn(&self, identity: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = running.get(identity).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        running.insert(identity.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

impl Edited {
    /// Waits until the artifact is made.
    pub async fn ready(&self) -> Result<(), ContentError> {
        self.made().await.map(drop)
    }

    /// Its size, once it is made.
    pub fn size(&self) -> Option<u64> {
        self.0.made.get().map(|(_, file)| file.size())
    }

    pub(super) async fn open(&self) -> Result<OpenFile, ContentError> {
        Ok(self.made().await?.1.clone())
    }

    /// Boxed, because what it is made of may be made as well.
    fn made(&self) -> BoxFuture<'_, Result<&(String, OpenFile), ContentError>> {
        Box::pin(self.0.made.get_or_try_init(|| self.0.editor.make(&self.0.recipe)))
    }
}

impl fmt::Debug for Edited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.recipe.fmt(f)
    }
}

impl fmt::Display for Edited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.recipe.fmt(f)
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{source}, edited"),
            None => f.write_str("an archive"),
        }
    }
}

impl Recipe {
    fn contents(&self) -> impl Iterator<Item = &Content> {
        let additions = self.steps.iter().flat_map(|step| match step {
            Step::Uboot(_) => &[][..],
            Step::Archive(rework) => &rework.add,
        });
        self.source.iter().chain(additions.map(|addition| &addition.content))
    }

    /// The same for the same steps over the same versions of the same contents.
    async fn identity(&self) -> Result<String, ContentError> {
        let mut text = format!("{:?}", self.map(&mut |_| Ok::<_, ContentError>(()))?);
        for content in self.contents() {
            text.push('\n');
            text.push_str(&version(content).await?);
        }
        Ok(sha256(text.as_bytes()))
    }

    async fn open(&self) -> Result<Recipe<Reader>, ContentError> {
        let mut readers = Vec::new();
        for content in self.contents() {
            readers.push(content.open_boxed().await?);
        }
        let mut readers = readers.into_iter();
        self.map(&mut |_| Ok(readers.next().expect("a reader was opened for each content, in this order")))
    }

    /// The same recipe over other contents, each made by `with`, in order.
    fn map<D, E>(&self, with: &mut impl FnMut(&Content) -> Result<D, E>) -> Result<Recipe<D>, E> {
        let source = self.source.as_ref().map(&mut *with).transpose()?;
        let mut steps = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            steps.push(match step {
                Step::Uboot(format) => Step::Uboot(format.clone()),
                Step::Archive(rework) => Step::Archive(rework.map(with)?),
            });
        }
        Ok(Recipe { source, steps })
    }
}

impl Rework {
    fn map<D, E>(&self, with: &mut impl FnMut(&Content) -> Result<D, E>) -> Result<Rework<D>, E> {
        let mut add = Vec::with_capacity(self.add.len());
        for Addition { path, mode, content } in &self.add {
            add.push(Addition { path: path.clone(), mode: *mode, content: with(content)? });
        }
        let Rework { kind, compression, .. } = *self;
        Ok(Rework { kind, compression, keep: self.keep.clone(), pick: self.pick.clone(), add })
    }
}

/// Names a content and its version, when all of it is there. Two that differ never share one: results are shared among jobs.
fn version(content: &Content) -> BoxFuture<'_, Result<String, ContentError>> {
    Box::pin(async move {
        Ok(match content {
            Content::Inline(bytes) => format!("inline {}", sha256(bytes)),
            Content::File(path) => format!("file {} {}", path.display(), OpenFile::open(path).await?.etag()),
            Content::Url(cached) => {
                cached.wait_complete().await?;
                // Without a validator there is no telling versions apart: then this one is nobody else's.
                let tag =
                    content.open_boxed().await?.etag().unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
                format!("url {} {tag}", cached.url())
            }
            Content::Joined(parts) | Content::Archives(parts) => {
                let how = if matches!(content, Content::Joined(_)) { "joined" } else { "archives" };
                let mut text = format!("{how} {}", parts.len());
                for part in parts.iter() {
                    text.push_str(&format!(" ({})", version(part).await?));
                }
                text
            }
            Content::Edited(edited) => format!("edited {}", edited.made().await?.0),
            Content::ByName(_) | Content::Disk(_) => {
                return Err(ContentError::Edit {
                    what: content.to_string(),
                    reason: "only files are edited".to_owned(),
                });
            }
        })
    })
}

/// Tells the thread that edits that nobody waits any more.
#[derive(Default)]
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Where the steps of one edit run: a thread that may wait.
struct Bench {
    directory: PathBuf,
    handle: Handle,
    limit: Limit,
}

/// What a step may cost: bytes, and no more time once nobody waits.
#[derive(Clone)]
struct Limit {
    bytes_max: u64,
    stop: Arc<AtomicBool>,
}

impl Limit {
    fn is_waited_for(&self) -> io::Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(io::Error::other("nobody waits for it any more")),
            false => Ok(()),
        }
    }

    /// `what` has `bytes`, or will have.
    fn check(&self, what: &str, bytes: u64) -> io::Result<()> {
        const GIB: u64 = 1 << 30;
        match self.bytes_max {
            max if bytes <= max => Ok(()),
            max if max % GIB == 0 => Err(evil(format!("{what} larger than {} GiB", max / GIB))),
            max => Err(evil(format!("{what} larger than {max} bytes"))),
        }
    }
}

impl Bench {
    fn run(&self, recipe: Recipe<Reader>) -> io::Result<NamedTempFile> {
        let mut bytes: Option<Box<dyn Seekable>> = recipe.source.map(|reader| self.input(reader)).transpose()?;
        let last = recipe.steps.len().saturating_sub(1);
        for (index, step) in recipe.steps.into_iter().enumerate() {
            if index == last {
                let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory)?;
                self.step(step, bytes.take(), file.as_file_mut())?;
                return Ok(file);
            }
            let mut file = tempfile::tempfile_in(&self.directory)?;
            self.step(step, bytes.take(), &mut file)?;
            file.rewind()?;
            bytes = Some(Box::new(file));
        }
        Err(io::Error::other("a recipe without steps makes nothing"))
    }

    fn input(&self, reader: Reader) -> io::Result<Box<dyn Seekable>> {
        let size = self.handle.block_on(reader.complete_size()).map_err(io::Error::other)?;
        let (handle, limit) = (self.handle.clone(), self.limit.clone());
        Ok(Box::new(Input { reader, handle, limit, size, position: 0, ready: Bytes::new() }))
    }

    fn step(&self, step: Step<Reader>, bytes: Option<Box<dyn Seekable>>, target: &mut File) -> io::Result<()> {
        match step {
            Step::Uboot(format) => {
                let mut bytes = bytes.ok_or_else(|| evil("there is nothing to wrap".to_owned()))?;
                uimage::wrap(&format, &mut bytes, target)
            }
            Step::Archive(rework) => self.rework(rework, bytes, target),
        }
    }

    fn rework(&self, rework: Rework<Reader>, bytes: Option<Box<dyn Seekable>>, target: &mut File) -> io::Result<()> {
        let capped = BufWriter::with_capacity(LARGE_READ_BYTES, Capped { target, bytes: 0, limit: &self.limit });
        let packer = Packer::new(capped, rework.compression);
        let is_plain = rework.kind == ArchiveKind::None && rework.keep.is_empty() && rework.add.is_empty();
        let packer = match (bytes, &rework.pick) {
            (Some(bytes), None) if is_plain => repack(bytes, &self.limit, packer)?,
            (bytes, _) => self.archive(rework, bytes, packer)?,
        };
        packer.finish()?.flush()
    }

    fn archive<W: Write>(&self, rework: Rework<Reader>, bytes: Option<Box<dyn Seekable>>, target: W) -> io::Result<W> {
        let spool = |stream: &mut dyn Read| self.spool(stream);
        let mut writer = Writer::new(rework.kind, target, tempfile::tempfile_in(&self.directory)?, &self.limit);
        let added: BTreeSet<String> = rework.add.iter().map(|add| clean_path(&add.path)).collect::<io::Result<_>>()?;
        let mut choice = Choice { keep: rework.keep, pick: rework.pick, added: &added, taken: 0, seen: Vec::new() };
        if let Some(bytes) = bytes {
            member::each(bytes, &self.limit, &spool, &mut |member, content| choice.put(member, content, &mut writer))?;
            choice.check()?;
        }
        for addition in rework.add {
            let (member, mut content) = self.addition(addition)?;
            writer.add(&member, &mut content)?;
        }
        writer.finish()
    }

    fn addition(&self, addition: Addition<Reader>) -> io::Result<(Member, Box<dyn Seekable>)> {
        let path = clean_path(&addition.path)?;
        if path.is_empty() {
            return Err(evil(format!("`{}` names no file to add; give it a name", addition.path)));
        }
        let mut content = self.input(addition.content)?;
        let size = content.seek(SeekFrom::End(0))?;
        content.rewind()?;
        // `mode: 0644` says nothing of a type, and means a file.
        let kind = if addition.mode & TYPE_MASK == 0 { REGULAR } else { 0 };
        let mut member = Member { path, mode: addition.mode | kind, size, ..Member::default() };
        match member.kind() {
            member::SYMLINK => {
                let mut target = String::new();
                (&mut content).take(member::PATH_BYTES_MAX as u64).read_to_string(&mut target)?;
                (member.link, member.size) = (Some(target), 0);
            }
            member::REGULAR => {}
            _ => member.size = 0,
        }
        Ok((member, content))
    }

    /// A copy that can be read from its end.
    fn spool(&self, stream: &mut dyn Read) -> io::Result<File> {
        let mut file = tempfile::tempfile_in(&self.directory)?;
        io::copy(stream, &mut Capped { target: &mut file, bytes: 0, limit: &self.limit })?;
        file.rewind()?;
        Ok(file)
    }
}

/// The bytes without their compression, in that which is wanted.
fn repack<W: Write>(bytes: Box<dyn Seekable>, limit: &Limit, mut target: W) -> io::Result<W> {
    let (mut stream, _) = unpack(Peek::new(Box::new(bytes)), limit)?;
    io::copy(&mut stream, &mut target)?;
    Ok(target)
}

/// Which files of an archive are taken.
struct Choice<'a> {
    keep: Vec<(Pattern, Option<String>)>,
    pick: Option<Pattern>,
    added: &'a BTreeSet<String>,
    taken: u64,
    seen: Vec<String>,
}

impl Choice<'_> {
    fn put<W: Write>(&mut self, member: Member, content: &mut dyn Read, writer: &mut Writer<W>) -> io::Result<Flow> {
        if self.seen.len() <= NAMES_TOLD {
            self.seen.push(member.path.clone());
        }
        if let Some(pick) = &self.pick {
            if !pick.is_full_match(member.path.as_bytes()).map_err(io::Error::other)? {
                return Ok(Flow::On);
            }
            if member.kind() != REGULAR || member.link.is_some() {
                return Err(evil(format!(
                    "`{}` matches, and is no plain file; name the file that it leads to",
                    member.path
                )));
            }
            self.taken += 1;
            writer.add(&member, content)?;
            return Ok(Flow::Stop);
        }
        let Some(path) = self.new_path(&member.path)?.filter(|path| !path.is_empty() && !self.added.contains(path))
        else {
            return Ok(Flow::On);
        };
        self.taken += 1;
        writer.add(&Member { path, ..member }, content)?;
        Ok(Flow::On)
    }

    /// What a file is called in the result, if it is kept.
    fn new_path(&self, path: &str) -> io::Result<Option<String>> {
        if self.keep.is_empty() {
            return Ok(Some(path.to_owned()));
        }
        for (pattern, rewrite) in &self.keep {
            let Some(groups) = Groups::of(pattern, path).map_err(io::Error::other)? else { continue };
            return rewrite
                .as_ref()
                .map_or(Ok(path.to_owned()), |rewrite| clean_path(&groups.expand(rewrite)))
                .map(Some);
        }
        Ok(None)
    }

    /// What was wanted has to have been there.
    fn check(&self) -> io::Result<()> {
        let wanted = match &self.pick {
            Some(pick) => vec![pick.as_str()],
            None => self.keep.iter().map(|(pattern, _)| pattern.as_str()).collect(),
        };
        if self.taken > 0 || wanted.is_empty() {
            return Ok(());
        }
        let more = if self.seen.len() > NAMES_TOLD { ", …" } else { "" };
        let names = self.seen.iter().take(NAMES_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(evil(format!("no file in it is `{}`; it has {names}{more}", wanted.join("` or `"))))
    }
}

/// The archive that is made.
enum Writer<W: Write> {
    Bare(W, Option<String>),
    Cpio(cpio::Writer<W>),
    Iso(Box<iso::Writer<W>>),
    Tar(Box<tar::Writer<W>>),
    Zip(Box<zip::Writer<W>>),
}

impl<W: Write> Writer<W> {
    fn new(kind: ArchiveKind, target: W, spool: File, limit: &Limit) -> Self {
        match kind {
            ArchiveKind::None => Writer::Bare(target, None),
            ArchiveKind::Cpio => Writer::Cpio(cpio::Writer::new(target)),
            ArchiveKind::Iso => Writer::Iso(Box::new(iso::Writer::new(target, spool, limit.clone()))),
            ArchiveKind::Tar => Writer::Tar(Box::new(tar::Writer::new(target))),
            ArchiveKind::Zip => Writer::Zip(Box::new(zip::Writer::new(target))),
        }
    }

    fn add(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        match self {
            Writer::Bare(target, first @ None) if member.kind() == REGULAR && member.link.is_none() => {
                *first = Some(member.path.clone());
                cpio::copy_exactly(content, target, member.size)
            }
            Writer::Bare(_, first) => {
                let both = first.as_ref().map_or(String::new(), |first| format!("`{first}` and "));
                Err(evil(format!(
                    "{both}`{}` cannot be one plain file; give an `extension`, such as cpio",
                    member.path
                )))
            }
            Writer::Cpio(writer) => writer.add(member, content),
            Writer::Iso(writer) => writer.add(member, content),
            Writer::Tar(writer) => writer.add(member, content),
            Writer::Zip(writer) => writer.add(member, content),
        }
    }

    fn finish(self) -> io::Result<W> {
        match self {
            Writer::Bare(target, _) => Ok(target),
            Writer::Cpio(writer) => writer.finish(),
            Writer::Iso(writer) => writer.finish(),
            Writer::Tar(writer) => writer.finish(),
            Writer::Zip(writer) => writer.finish(),
        }
    }
}

/// A content, read by a thread that may wait.
struct Input {
    reader: Reader,
    handle: Handle,
    limit: Limit,
    size: u64,
    position: u64,
    ready: Bytes,
}

impl Read for Input {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            self.limit.is_waited_for()?;
            let read = self.handle.block_on(self.reader.read_at(self.position, LARGE_READ_BYTES));
            self.ready = read.map_err(io::Error::other)?;
        }
        let count = self.ready.len().min(target.len());
        self.ready.copy_to_slice(&mut target[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Input {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        self.ready = Bytes::new();
        Ok(self.position)
    }
}

/// A file that takes so many bytes and no more.
struct Capped<'a> {
    target: &'a mut File,
    bytes: u64,
    limit: &'a Limit,
}

impl Write for Capped<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.limit.check("it would be", self.bytes + bytes.len() as u64)?;
        let count = self.target.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.flush()
    }
}

/// What is wrong with the bytes, as opposed to this machine.
fn evil(sentence: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, sentence)
}

#[cfg(test)]
mod tests;
