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

/// What machines boot that register themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registration {
    /// A kernel with drivers for real machines: the farm file's, or the cache's.
    Hardware(OtherKernel),
    /// The kernel of virtual machines, which has none.
    Virtual,
    /// No Linux at all. Simulated machines need none.
    None,
}

/// What there is for them. Reads a few folders.
pub fn registration(other: Option<&OtherKernel>) -> Registration {
    let installed = install::cache_folder().map(|cache| install::look(&cache)).unwrap_or_default();
    registration_with(other, installed)
}

fn registration_with(other: Option<&OtherKernel>, installed: install::Installed) -> Registration {
    // Whoever names a kernel hears what else is missing when it is fetched.
    if let Some(other) = other {
        return Registration::Hardware(other.clone());
    }
    match (installed.drivers, installed.kernel, installed.busybox) {
        (Some(kernel), _, Some(_)) => Registration::Hardware((kernel.image, kernel.modules)),
        (_, Some(_), Some(_)) => Registration::Virtual,
        _ => Registration::None,
    }
}

/// The image of this name, built now if it has to be. Blocks while it builds (a second or two, once per kernel).
pub fn find(name: &str, other: Option<&OtherKernel>) -> Result<Option<Image>, String> {
    match name {
        "registration-kernel" => match registration(other) {
            Registration::Hardware((image, _)) => Ok(Some(Image::File(image))),
            Registration::Virtual | Registration::None => find("kernel", None),
        },
        "registration-initramfs" => match registration(other) {
            Registration::Hardware(kernel) => initramfs_of(&kernel).map(Some),
            Registration::Virtual | Registration::None => find("initramfs", None),
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

/// The kernel of virtual machines, where there is none the one of real ones.
fn kernel() -> Option<install::Kernel> {
    let installed = install::look(&install::cache_folder().ok()?);
    installed.kernel.or(installed.drivers)
}

fn initramfs_of_the_kernel() -> Result<Image, String> {
    let cache = install::cache_folder().map_err(|error| error.to_string())?;
    let installed = install::look(&cache);
    let Some(busybox) = installed.busybox else { return Ok(Image::Bytes(tiny::ELF)) };
    let built = match (installed.kernel, installed.drivers) {
        (Some(kernel), _) => initramfs::build(&kernel, &busybox, &cache),
        (None, Some(kernel)) => initramfs::build_for_hardware(&kernel, &busybox, &cache),
        (None, None) => return Ok(Image::Bytes(tiny::ELF)),
    };
    built.map(Image::File).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_registers_boots_the_farm_files_kernel_or_one_with_drivers_or_one_without() {
        let kernel = |name: &str| install::Kernel {
            version: name.into(),
            image: format!("/{name}/vmlinuz").into(),
            modules: format!("/{name}/modules").into(),
        };
        let pair = |name: &str| (kernel(name).image, kernel(name).modules);
        let mut installed = install::Installed::default();
        assert_eq!(registration_with(None, installed.clone()), Registration::None);
        (installed.kernel, installed.busybox) = (Some(kernel("cloud")), Some("/bin/busybox".into()));
        assert_eq!(registration_with(None, installed.clone()), Registration::Virtual);
        installed.drivers = Some(kernel("general"));
        assert_eq!(registration_with(None, installed.clone()), Registration::Hardware(pair("general")));
        assert_eq!(registration_with(Some(&pair("own")), installed), Registration::Hardware(pair("own")));
    }
}
