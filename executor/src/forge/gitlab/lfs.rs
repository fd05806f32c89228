//! Files of Git LFS: in the repository is a pointer of a few lines, and the file itself is asked of the instance with the job's token.
//!
//! ```text
//!  git ls-files ':(attr:filter=lfs)' ─► pointers ─► POST …/info/lfs/objects/batch ─► GET each ─► length and SHA-256 compared ─► in the pointer's place
//! ```
//! The instance alone is asked, whatever the repository's `.lfsconfig` says: where its own answer leads to is followed (an object store), where
//! the author leads to is not. (git-lfs, docs/spec.md and docs/api/batch.md)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::client::Client;
use super::git::Git;

/// The specification lets a pointer have no more.
const POINTER_BYTES_MAX: u64 = 1024;
/// Asked for at once, as git-lfs does.
const BATCH: usize = 100;
/// All of a job's: what its files may have altogether when it begins (checkout.rs).
const BYTES_MAX: u64 = 8 << 30;
const VERSION: &str = "version https://git-lfs.github.com/spec/v1";
const JSON: &str = "application/vnd.git-lfs+json";
/// One file of some GiB over a slow line.
const FILE_TIME: Duration = Duration::from_secs(1800);

/// What stands in a file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pointer {
    digest: String,
    size: u64,
}

impl Pointer {
    /// `None`: it is a file of its own.
    fn read(text: &str) -> Option<Pointer> {
        let mut lines = text.lines();
        lines.next().filter(|line| *line == VERSION)?;
        let keys: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
        let digest = keys.get("oid")?.strip_prefix("sha256:")?;
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = keys.get("size")?.parse().ok()?;
        is_digest.then(|| Pointer { digest: digest.to_ascii_lowercase(), size })
    }
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    #[serde(rename = "oid")]
    digest: String,
    #[serde(default)]
    actions: BTreeMap<String, Action>,
    error: Option<Wrong>,
}

#[derive(Clone, Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Wrong {
    message: String,
}

/// Puts the files in their pointers' places; a sentence of that, where there were any.
pub(super) async fn fetch(git: &Git, client: &Client) -> Result<Option<String>, String> {
    let listed = git.run(&["ls-files", "-z", "--", ":(attr:filter=lfs)"]).await?;
    let mut wanted: Vec<(PathBuf, Pointer)> = Vec::new();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let path = git.folder.join(name);
        // A link of the repository may lead anywhere.
        let is_small = path.symlink_metadata().is_ok_and(|it| it.is_file() && it.len() <= POINTER_BYTES_MAX);
        let text = is_small.then(|| std::fs::read_to_string(&path).ok()).flatten();
        wanted.extend(text.and_then(|text| Pointer::read(&text)).map(|pointer| (path, pointer)));
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    let bytes = wanted.iter().fold(0u64, |sum, (_, pointer)| sum.saturating_add(pointer.size));
    if bytes > BYTES_MAX {
        return Err(format!(
            "Git LFS: all files together have more than {} GiB; set GIT_LFS_SKIP_SMUDGE to 1",
            BYTES_MAX >> 30
        ));
    }
    for some in wanted.chunks(BATCH) {
        let actions = actions(git, client, some).await.map_err(|why| format!("Git LFS: {why}"))?;
        for (path, pointer) in some {
            let action =
                actions.get(&pointer.digest).ok_or_else(|| format!("Git LFS: no answer for {}", path.display()))?;
            let got = load(client, action, pointer, path).await;
            got.map_err(|why| format!("Git LFS: {}: {why}", path.strip_prefix(&git.folder).unwrap_or(path).display()))?;
        }
    }
    Ok(Some(format!("Git LFS: {} files of {bytes} bytes", wanted.len())))
}

/// How each of these is had.
async fn actions(git: &Git, client: &Client, some: &[(PathBuf, Pointer)]) -> Result<BTreeMap<String, Action>, String> {
    let base = git.url.strip_suffix(".git").unwrap_or(&git.url);
    let objects: Vec<_> = some.iter().map(|(_, it)| json!({"oid": it.digest, "size": it.size})).collect();
    let body = json!({"operation": "download", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"});
    let request = client.http().post(format!("{base}.git/info/lfs/objects/batch"));
    let request =
        request.header("Accept", JSON).header("Content-Type", JSON).header(AUTHORIZATION, git.authorization());
    let sent = request.timeout(FILE_TIME).body(body.to_string()).send().await;
    let response = sent.map_err(|error| error.without_url().to_string())?;
    if !response.status().is_success() {
        return Err(format!("{base}.git/info/lfs answered {}", response.status()));
    }
    let text = super::super::http::whole_of(response, 1 << 20).await?;
    let batch: Batch = serde_json::from_slice(&text).map_err(|error| format!("its answer: {error}"))?;
    let mut actions = BTreeMap::new();
    for object in batch.objects {
        match (object.actions.get("download"), object.error) {
            (Some(action), _) => drop(actions.insert(object.digest, action.clone())),
            (None, Some(wrong)) => return Err(format!("{}: {}", object.digest, wrong.message)),
            (None, None) => return Err(format!("{} cannot be downloaded", object.digest)),
        }
    }
    Ok(actions)
}

async fn load(client: &Client, action: &Action, pointer: &Pointer, path: &Path) -> Result<(), String> {
    let mut request = client.http().get(&action.href).timeout(FILE_TIME);
    for (name, value) in &action.header {
        request = request.header(name, value);
    }
    let response = request.send().await.map_err(|error| error.without_url().to_string())?;
    if !response.status().is_success() {
        return Err(format!("the server answered {}", response.status()));
    }
    let cannot = |error: std::io::Error| error.to_string();
    let mut file = tokio::fs::File::create(path).await.map_err(cannot)?;
    let (mut hash, mut size, mut chunks) = (Sha256::new(), 0, response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| error.without_url().to_string())?;
        size += chunk.len() as u64;
        if size > pointer.size {
            break;
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(cannot)?;
    }
    file.flush().await.map_err(cannot)?;
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match size == pointer.size && digest == pointer.digest {
        true => Ok(()),
        false => Err("what came is not what the pointer says".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_known_by_its_first_line() {
        let digest = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let text = format!("{VERSION}\noid sha256:{digest}\nsize 12345\n");
        assert_eq!(Pointer::read(&text), Some(Pointer { digest: digest.into(), size: 12345 }));
        for other in ["#!/bin/sh\n", "version 1\noid sha256:00\nsize 1\n", &text.replace("sha256:4d", "sha256:../4d")] {
            assert_eq!(Pointer::read(other), None, "{other}");
        }
    }
}
