//! Small files of forges' jobs and runners, with their tokens: for the owner alone, written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes it; what was there stays until the new one is on the disk.
pub(super) fn keep(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(unfinished, path)
}

/// Reads it; the default where there is none, or none that can be read, which is said.
pub(super) fn kept<T: DeserializeOwned + Default>(path: &Path) -> T {
    match fs::read(path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other)) {
        Ok(value) => value,
        Err(error) if error.kind() == io::ErrorKind::NotFound => T::default(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "what was kept cannot be read; it is begun anew");
            T::default()
        }
    }
}

/// A token that a person put into a file.
pub(super) fn token(path: &Path) -> io::Result<String> {
    let token = fs::read_to_string(path)?.trim().to_owned();
    if token.is_empty() { Err(io::Error::other("it is empty")) } else { Ok(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_for_its_owner_alone_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("it.json");
        assert_eq!(kept::<Vec<String>>(&path), Vec::<String>::new());
        keep(&path, &["one", "two"]).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(kept::<Vec<String>>(&path), ["one", "two"]);
    }
}
