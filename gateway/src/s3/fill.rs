//! A bucket's beginning: the files of an archive, each an object.
//!
//! ```text
//!  content ─► archive, plain or compressed (content/edit) ─► each regular file ─► Writing (quota) ─► put, with [`ATTRIBUTES`]
//!                                                             └ links, devices, directories: left out, and counted
//! ```

use std::io::{self, Read};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::bucket::{Bucket, BucketError, Headers};
use crate::content::Content;
use crate::content::edit::{self, Editor};

/// Read of a file at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// The longest name of an object, as S3 has it.
const KEY_BYTES_MAX: usize = 1024;
/// The header `X-Amz-Meta-Mc-Attrs`.
const ATTRIBUTES: &str = "mc-attrs";

/// What was put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Files.
    pub files: usize,
    /// Links, devices and the like, which no object can be.
    pub left_out: usize,
}

/// Puts every file of the archive `content` into the bucket; `Err`: why that ended, with what was put until then still in it.
pub async fn fill(bucket: &Bucket, editor: &Editor, content: &Content) -> Result<Filled, String> {
    let (bucket, handle) = (bucket.clone(), Handle::current());
    let mut filled = Filled::default();
    let visit = move |found: edit::Found<'_>| match found {
        edit::Found::Other => {
            filled.left_out += 1;
            Ok(filled)
        }
        edit::Found::File { path, mode, modified, bytes } => {
            put(&bucket, &handle, path, attributes(mode, modified), bytes)?;
            filled.files += 1;
            Ok(filled)
        }
    };
    editor.each_file(content, visit).await.map_err(|error| error.to_string()).map(Option::unwrap_or_default)
}

/// What MinIO's client writes with an object, and reads back into a file where it is told to preserve (`mc cp -a`): so are the files of CI-tron's
/// buckets, and what its DUTs mirror can be run there.
fn attributes(mode: u32, modified: u32) -> Headers {
    let attributes = format!("gid:0/gname:root/mode:{mode}/mtime:{modified}/uid:0/uname:root");
    Headers { metadata: [(ATTRIBUTES.to_owned(), attributes)].into(), ..Headers::default() }
}

/// The permissions of a file that was put so, by us or by a client that preserves them.
pub fn permissions(headers: &Headers) -> Option<u32> {
    let mode = headers.metadata.get(ATTRIBUTES)?.split('/').find_map(|pair| pair.strip_prefix("mode:"))?;
    mode.parse().ok().map(|mode: u32| mode & 0o777)
}

fn put(bucket: &Bucket, handle: &Handle, path: &str, headers: Headers, bytes: &mut dyn Read) -> io::Result<()> {
    let failed = |error: BucketError| io::Error::other(error.to_string());
    if path.is_empty() || path.len() > KEY_BYTES_MAX {
        return Err(io::Error::other(format!(
            "the path `{path}` is no name of an object: it has 1 to {KEY_BYTES_MAX} bytes"
        )));
    }
    let mut writing = handle.block_on(bucket.write()).map_err(failed)?;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        if bytes.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)? == 0 {
            break;
        }
        handle.block_on(writing.push(&Bytes::from(chunk))).map_err(failed)?;
    }
    let piece = handle.block_on(writing.finish()).map_err(failed)?;
    bucket.put(path, headers, piece).map_err(failed)?;
    Ok(())
}
