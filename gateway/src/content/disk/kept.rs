//! A layer that outlives its users and the process: a folder of its own.
//!
//! ```text
//!  <folder>/layer    the sparse file
//!           blocks   whose each block is, for a layer over an image (map.rs); over zeros the file's own holes say it
//!           base     what it lies over: written last, so that a folder without it is no layer yet
//! ```
//! A layer belongs to its base's bytes: over another image than the one it was written over it would be neither, so it begins anew.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::BLOCK_BYTES;
use super::layer::Layer;
use super::map::{Book, Map};
use super::view::Fill;
use crate::content::file::fill;

const LAYER: &str = "layer";
const BLOCKS: &str = "blocks";
const BASE: &str = "base";

/// How a kept disk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It was not there.
    New,
    /// With what was written to it before.
    Continued,
    /// Its image is another one than before: what was written over that is gone.
    Anew,
}

/// Opens the layer in `directory` for a disk of `size` bytes over the base of this fingerprint, or begins one.
pub(super) fn open(directory: &Path, size: u64, fingerprint: &str, is_zeros: bool) -> io::Result<(Layer, Beginning)> {
    fs::create_dir_all(directory)?;
    let before = fs::read_to_string(directory.join(BASE)).ok();
    let beginning = match before.as_deref() {
        Some(before) if before == fingerprint => Beginning::Continued,
        Some(_) => Beginning::Anew,
        None => Beginning::New,
    };
    if beginning != Beginning::Continued {
        for name in [BASE, LAYER, BLOCKS] {
            remove(&directory.join(name))?;
        }
    }
    let file = open_file(&directory.join(LAYER))?;
    file.set_len(size)?;
    let blocks = size.div_ceil(BLOCK_BYTES);
    let layer = match is_zeros {
        true => {
            let map = map_of_holes(&file, size)?;
            Layer::of(file, map, None)
        }
        false => {
            let (book, map) = Book::open(open_file(&directory.join(BLOCKS))?, blocks)?;
            Layer::of(file, map, Some(book))
        }
    };
    if beginning != Beginning::Continued {
        write_base(directory, fingerprint)?;
    }
    Ok((layer, beginning))
}

/// Over zeros all that is in the file is the disk's, also what was written and never flushed: a bit for each block that is no hole.
fn map_of_holes(file: &File, size: u64) -> io::Result<Map> {
    let map = Map::new(size.div_ceil(BLOCK_BYTES));
    let mut at = 0;
    while at < size {
        let (kind, until) = fill(file, at, size)?;
        if kind == Fill::Data {
            map.set(at / BLOCK_BYTES, until.div_ceil(BLOCK_BYTES));
        }
        at = until;
    }
    Ok(map)
}

fn open_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_base(directory: &Path, fingerprint: &str) -> io::Result<()> {
    let beside = directory.join("base.new");
    let mut file = File::create(&beside)?;
    file.write_all(fingerprint.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, directory.join(BASE))?;
    File::open(directory)?.sync_all()
}
