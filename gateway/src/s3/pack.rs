//! A bucket as one tar archive, made while it is read.

use std::io::{self, Read, Write};

use bytes::Bytes;
use futures_util::Stream;
use tar::{Builder, Header};
use tokio::sync::mpsc;

use super::bucket::{Bucket, Object};

/// Pieces of the archive that wait for a slow reader: with [`PIECE_BYTES`] half a megabyte.
const PIECES_MAX: usize = 8;
/// Of the archive, at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// The archive of all objects, in the order of their names. One whose name is no path is left out: `..`, a slash at its beginning, or a
/// name that is a directory of others.
pub fn tar(bucket: &Bucket) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (send, mut receive) = mpsc::channel(PIECES_MAX);
    let bucket = bucket.clone();
    tokio::task::spawn_blocking(move || {
        let target = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(send.clone()));
        if let Err(error) = write(&bucket, target) {
            // A reader that has gone hears nothing of it.
            let _ = send.blocking_send(Err(error));
        }
    });
    futures_util::stream::poll_fn(move |context| receive.poll_recv(context))
}

fn write(bucket: &Bucket, target: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(target);
    let keys = bucket.keys();
    for (index, key) in keys.iter().enumerate() {
        let is_folder = keys[index + 1..]
            .iter()
            .take_while(|other| other.starts_with(key.as_str()))
            .any(|other| other[key.len()..].starts_with('/'));
        let (Some(object), true) = (bucket.get(key), is_path(key) && !is_folder) else { continue };
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(object.modified_s);
        header.set_size(object.size());
        builder.append_data(&mut header, key, bytes_of(&object)?)?;
    }
    builder.into_inner()?.flush()
}

fn is_path(key: &str) -> bool {
    key.split('/').all(|step| !matches!(step, "" | "." | "..")) && !key.contains('\0')
}

fn bytes_of(object: &Object) -> io::Result<Box<dyn Read>> {
    let mut all: Box<dyn Read> = Box::new(io::empty());
    for piece in &object.pieces {
        all = Box::new(all.chain(Late(piece.path().to_owned(), None)));
    }
    Ok(all)
}

/// A file that is opened when it is read: an object may have ten thousand.
struct Late(std::path::PathBuf, Option<std::fs::File>);

impl Read for Late {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file = match &mut self.1 {
            Some(file) => file,
            none => none.insert(std::fs::File::open(&self.0)?),
        };
        let count = file.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.1 = None;
            self.0 = "/dev/null".into();
        }
        Ok(count)
    }
}

struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
