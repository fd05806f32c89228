//! The boot images that a farm with virtual or simulated DUTs offers to its jobs, at `{{ images_url }}/kernel` and
//! `{{ images_url }}/initramfs`.
//!
//! The operator's listener serves them, and the farm fetches them from there like any other `url:`: through the cache, by HTTP.
//! Where no kernel is installed (a farm of simulated DUTs needs none) the kernel is the payload of `tiny.rs`, which a simulated
//! DUT downloads just as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{initramfs, install, tiny};

/// A boot image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A file of the cache.
    File(PathBuf),
    /// Bytes of this program.
    Bytes(&'static [u8]),
}

/// Gives jobs the variable `images_url`, unless the farm file has its own.
pub fn add_variables(variables: &mut BTreeMap<String, String>, api: SocketAddr) {
    variables.entry("images_url".into()).or_insert_with(|| format!("http://{api}/images"));
}

/// A kernel of the farm's own choice for machines that register: its image, and the folder of its modules.
pub type OtherKernel = (PathBuf, PathBuf);

/// The image of this name, built now if it has to be. Blocks while it builds (a second or two, once per kernel).
pub fn find(name: &str, other: Option<&OtherKernel>) -> Result<Option<Image>, String> {
    match name {
        "registration-kernel" => match other {
            Some((image, _)) => Ok(Some(Image::File(image.clone()))),
            None => find("kernel", None),
        },
        "registration-initramfs" => match other {
            Some(kernel) => initramfs_of(kernel).map(Some),
            None => find("initramfs", None),
        },
        "kernel" => Ok(Some(kernel().map_or(Image::Bytes(tiny::ELF), |kernel| Image::File(kernel.image)))),
        "initramfs" => initramfs_of_the_kernel().map(Some),
        "tiny" => Ok(Some(Image::Bytes(tiny::ELF))),
        "tiny-arm64" => Ok(Some(Image::Bytes(tiny::ARM64))),
        _ => Ok(None),
    }
}

fn initramfs_of((image, modules): &OtherKernel) -> Result<Image, String> {
    let cache = install::cache_folder().map_err(|error| error.to_string())?;
    let busybox = install::look(&cache).busybox.ok_or("no static busybox; `wharf virtual install` gets one")?;
    let version = modules.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let kernel = install::Kernel { version, image: image.clone(), modules: modules.clone() };
    initramfs::build_for_hardware(&kernel, &busybox, &cache).map(Image::File).map_err(|error| error.to_string())
}

fn kernel() -> Option<install::Kernel> {
    install::look(&install::cache_folder().ok()?).kernel
}

fn initramfs_of_the_kernel() -> Result<Image, String> {
    let cache = install::cache_folder().map_err(|error| error.to_string())?;
    let installed = install::look(&cache);
    let (Some(kernel), Some(busybox)) = (installed.kernel, installed.busybox) else {
        return Ok(Image::Bytes(tiny::ELF));
    };
    initramfs::build(&kernel, &busybox, &cache).map(Image::File).map_err(|error| error.to_string())
}
