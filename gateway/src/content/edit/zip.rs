//! zip: read by its directory, written as a stream with deflated files.

use std::io::{self, Read, Write};

use ::zip::write::{SimpleFileOptions, StreamWriter};
use ::zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::member::{DIRECTORY, Flow, Member, PATH_BYTES_MAX, REGULAR, SYMLINK, Seekable, TYPE_MASK, Visit};
use super::{cpio, evil};

/// Goes through an archive in the order of its directory.
pub(super) fn each(bytes: Box<dyn Seekable>, visit: Visit<'_>) -> io::Result<()> {
    let mut archive = ZipArchive::new(bytes)?;
    for index in 0..archive.len() {
        let mut file = archive.by_index(index)?;
        let path = file.name().map_err(io::Error::from)?.into_owned();
        let mode = file.unix_mode().filter(|mode| mode & TYPE_MASK != 0);
        let (kind, plain) = if file.is_dir() { (DIRECTORY, 0o755) } else { (REGULAR, 0o644) };
        let mode = mode.unwrap_or(kind | file.unix_mode().map_or(plain, |mode| mode & 0o7777));
        let mut member = Member { path, mode, size: file.size(), ..Member::default() };
        if member.kind() == SYMLINK {
            let mut target = String::new();
            (&mut file).take(PATH_BYTES_MAX as u64).read_to_string(&mut target)?;
            (member.link, member.size) = (Some(target), 0);
        }
        if visit(member, &mut file)? == Flow::Stop {
            return Ok(());
        }
    }
    Ok(())
}

/// An archive that is being written.
pub(super) struct Writer<W: Write>(ZipWriter<StreamWriter<W>>);

impl<W: Write> Writer<W> {
    pub(super) fn new(target: W) -> Self {
        Writer(ZipWriter::new_stream(target))
    }

    pub(super) fn add(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .unix_permissions(member.mode & 0o777)
            .large_file(member.size >= u64::from(u32::MAX));
        match (member.kind(), &member.link) {
            (DIRECTORY, _) => self.0.add_directory(&member.path, options)?,
            (SYMLINK, Some(target)) => self.0.add_symlink(&member.path, target, options)?,
            (REGULAR, None) if member.shared.is_none() => {
                self.0.start_file(&member.path, options)?;
                cpio::copy_exactly(content, &mut self.0, member.size)?;
            }
            _ => {
                let path = &member.path;
                return Err(evil(format!(
                    "`{path}` is a device or has several names, which zip cannot keep; use cpio or tar"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<W> {
        Ok(self.0.finish()?.into_inner())
    }
}
