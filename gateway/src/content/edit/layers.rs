//! The root file system of a container image: its layers, laid over each other, as one tar archive (OCI image-spec, layer.md).
//!
//! ```text
//!  pass 1, from the lowest layer up: names alone ─► tree: path ─► which entry of which layer is seen there in the end
//!            .wh.NAME       NAME of lower layers is gone, with all below it
//!            .wh..wh..opq   all that lower layers have in this folder is gone
//!            a file         replaces a folder, with all below it
//!  pass 2, the same way: the entries that are seen ─► target, each once
//! ```
//! A hard link whose first name a higher layer has changed or removed becomes the file itself. Nothing is unpacked here; owners, modes,
//! times and devices stay, extended attributes do not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::member::{DIRECTORY, Flow, Member, REGULAR, clean_path};
use super::packing::{Peek, unpack};
use super::{Limit, STEP_BYTES_MAX, evil, tar};

/// Entries of all layers: a large distribution has 300,000 files, and changes some of them.
const ENTRIES_MAX: u64 = 2_000_000;
/// Hides what lower layers have.
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// An entry: its layer, and its number there.
type Place = (usize, u64);

/// Writes the tar archive of an image's root; `layers` are its layers, the lowest first, plain or compressed. Ends early once `stop` is set.
pub fn root(layers: &[PathBuf], target: impl Write, stop: &Arc<AtomicBool>) -> io::Result<()> {
    let limit = Limit { bytes_max: STEP_BYTES_MAX, stop: Arc::clone(stop) };
    let seen = Seen::of(layers, &limit)?;
    let mut writer = tar::Writer::new(target);
    each(layers, &limit, &mut |place, mut member, content| {
        let is_shown = seen.tree.get(&member.path) == Some(&place);
        match (is_shown, seen.heirs.get(&place)) {
            (true, None) => {}
            // The name is another's by now; the file lives on under a link's.
            (_, Some(heir)) => member.path.clone_from(heir),
            (false, None) => return Ok(()),
        }
        if let Some(first) = seen.firsts.get(&place) {
            match seen.heirs.get(first) {
                Some(heir) if *heir == member.path => return Ok(()),
                Some(heir) => member.link = Some(heir.clone()),
                None => member.link = member.link.as_deref().map(clean_path).transpose()?,
            }
        }
        writer.add(&member, content)
    })?;
    writer.finish()?.flush()
}

/// What is seen in the end.
#[derive(Default)]
struct Seen {
    tree: BTreeMap<String, Place>,
    /// Hard links, and the entry that each is another name of.
    firsts: HashMap<Place, Place>,
    /// Files that are seen under a link's name alone.
    heirs: HashMap<Place, String>,
}

impl Seen {
    fn of(layers: &[PathBuf], limit: &Limit) -> io::Result<Seen> {
        let (mut seen, mut entries) = (Seen::default(), 0);
        each(layers, limit, &mut |place, member, _| {
            entries += 1;
            match entries > ENTRIES_MAX {
                true => Err(evil(format!("the image has more than {ENTRIES_MAX} files"))),
                false => seen.add(place, &member),
            }
        })?;
        let shown: HashSet<Place> = seen.tree.values().copied().collect();
        for (path, place) in &seen.tree {
            let Some(first) = seen.firsts.get(place) else { continue };
            if !shown.contains(first) {
                seen.heirs.entry(*first).or_insert_with(|| path.clone());
            }
        }
        Ok(seen)
    }

    fn add(&mut self, place: Place, member: &Member) -> io::Result<()> {
        let (folder, name) = member.path.rsplit_once('/').unwrap_or(("", &member.path));
        if name == OPAQUE {
            self.remove_below(folder, Some(place.0));
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let hidden = if folder.is_empty() { hidden.to_owned() } else { format!("{folder}/{hidden}") };
            self.remove_below(&hidden, Some(place.0));
            if self.tree.get(&hidden).is_some_and(|(layer, _)| *layer < place.0) {
                self.tree.remove(&hidden);
            }
        } else {
            if member.kind() != DIRECTORY {
                self.remove_below(&member.path, None);
            }
            if let Some(link) = member.link.as_deref().filter(|_| member.kind() == REGULAR) {
                let first = self.tree.get(&clean_path(link)?).copied().ok_or_else(|| {
                    evil(format!("`{}` in it is a hard link to `{link}`, which is not there", member.path))
                })?;
                self.firsts.insert(place, self.firsts.get(&first).copied().unwrap_or(first));
            }
            self.tree.insert(member.path.clone(), place);
        }
        Ok(())
    }

    /// What is below a folder; of the layers under this one, or of all.
    fn remove_below(&mut self, folder: &str, under: Option<usize>) {
        // '0' is what follows '/'.
        let range = match folder {
            "" => (Bound::Unbounded, Bound::Unbounded),
            _ => (Bound::Excluded(format!("{folder}/")), Bound::Excluded(format!("{folder}0"))),
        };
        let goes = |(_, (layer, _)): &(&String, &Place)| under.is_none_or(|under| *layer < under);
        let gone: Vec<_> = self.tree.range(range).filter(goes).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.tree.remove(&path);
        }
    }
}

/// Goes through all layers; paths are clean by then.
fn each(
    layers: &[PathBuf],
    limit: &Limit,
    visit: &mut dyn FnMut(Place, Member, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    for (layer, path) in layers.iter().enumerate() {
        let file = Peek::new(Box::new(BufReader::new(File::open(path)?)));
        let (stream, _) = unpack(file, limit)?;
        let mut index = 0;
        tar::each(stream, &mut |mut member, content| {
            member.path = clean_path(&member.path)?;
            // The root itself is there already.
            if !member.path.is_empty() {
                visit((layer, index), member, content)?;
            }
            index += 1;
            Ok(Flow::On)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name/` is a folder, `name=text` a file, `name->target` a symbolic link, `name=>first` a hard link.
    fn layer(folder: &std::path::Path, name: &str, entries: &[&str]) -> PathBuf {
        let path = folder.join(name);
        let mut builder = ::tar::Builder::new(File::create(&path).unwrap());
        for entry in entries {
            let mut header = ::tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(7);
            header.set_mtime(1);
            header.set_size(0);
            if let Some((name, target)) = entry.split_once("->") {
                header.set_entry_type(::tar::EntryType::Symlink);
                builder.append_link(&mut header, name, target).unwrap();
            } else if let Some((name, first)) = entry.split_once("=>") {
                header.set_entry_type(::tar::EntryType::Link);
                builder.append_link(&mut header, name, first).unwrap();
            } else if let Some((name, text)) = entry.split_once('=') {
                header.set_size(text.len() as u64);
                builder.append_data(&mut header, name, text.as_bytes()).unwrap();
            } else {
                header.set_entry_type(::tar::EntryType::Directory);
                builder.append_data(&mut header, entry, io::empty()).unwrap();
            }
        }
        builder.finish().unwrap();
        path
    }

    fn flat(layers: &[&[&str]]) -> io::Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = layers
            .iter()
            .enumerate()
            .map(|(index, entries)| layer(folder.path(), &index.to_string(), entries))
            .collect();
        let mut bytes = Vec::new();
        root(&paths, &mut bytes, &Arc::default())?;
        let mut archive = ::tar::Archive::new(bytes.as_slice());
        let said = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let path = entry.path().unwrap().display().to_string();
            assert_eq!((entry.header().gid().unwrap(), entry.header().mode().unwrap()), (7, 0o755), "{path}");
            match (entry.header().entry_type(), link) {
                (::tar::EntryType::Link, Some(first)) => format!("{path}=>{first}"),
                (_, Some(target)) => format!("{path}->{target}"),
                (::tar::EntryType::Directory, None) => format!("{}/", path.trim_end_matches('/')),
                (_, None) => format!("{path}={text}"),
            }
        });
        Ok(said.collect())
    }

    #[test]
    fn upper_layers_replace_and_hide_what_lower_ones_have() {
        let lower: &[&str] =
            &["./", "./bin/", "bin/sh=old", "bin/ls=ls", "etc/", "etc/a=a", "etc/d/", "etc/d/x=x", "lib->usr/lib"];
        let upper: &[&str] =
            &["bin/sh=new", "etc/.wh.a=", "etc/d/.wh..wh..opq=", "etc/d/y=y", ".wh.lib=", "lib/", "lib/so=so"];
        let expected = ["bin/", "bin/ls=ls", "etc/", "etc/d/", "bin/sh=new", "etc/d/y=y", "lib/", "lib/so=so"];
        assert_eq!(flat(&[lower, upper]).unwrap(), expected);
        // A file in the place of a folder, and a folder again: nothing of the first comes back.
        assert_eq!(flat(&[&["d/", "d/x=x"], &["d=file"], &["d/", "d/y=y"]]).unwrap(), ["d/", "d/y=y"]);
        // A name that only begins like a hidden one.
        assert_eq!(flat(&[&["a/", "a/x=1", "a0=2", "a-b=3"], &[".wh.a="]]).unwrap(), ["a0=2", "a-b=3"]);
    }

    #[test]
    fn hard_links_outlive_their_first_name() {
        assert_eq!(flat(&[&["a=one", "b=>a"]]).unwrap(), ["a=one", "b=>a"]);
        assert_eq!(flat(&[&["a=one", "b=>a", "c=>a"], &["a=two"]]).unwrap(), ["b=one", "c=>b", "a=two"]);
        assert_eq!(flat(&[&["a=one", "b=>a"], &[".wh.a="]]).unwrap(), ["b=one"]);
        assert_eq!(flat(&[&["a=one", "b=>a"], &["b=two"]]).unwrap(), ["a=one", "b=two"]);
        assert_eq!(flat(&[&["a=one"], &["b=>a"]]).unwrap(), ["a=one", "b=>a"]);
    }

    #[test]
    fn an_evil_image_is_refused_with_a_sentence() {
        let error = flat(&[&["b=>a"]]).unwrap_err().to_string();
        assert_eq!(error, "`b` in it is a hard link to `a`, which is not there");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer");
        let mut header = ::tar::Header::new_gnu();
        let name = b"../../etc/passwd";
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        let mut builder = ::tar::Builder::new(File::create(&path).unwrap());
        builder.append(&header, io::empty()).unwrap();
        builder.finish().unwrap();
        let error = root(&[path], Vec::new(), &Arc::default()).unwrap_err().to_string();
        assert!(error.contains("leads out of the archive"), "{error}");
    }
}
