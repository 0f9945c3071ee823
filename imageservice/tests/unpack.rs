//! Suites T6 and T8 of the security rules, and what honest layers must come out as.
//! Runs as root: owners, device nodes and overlay attributes are the point. Every layer goes through the public way in.
//! Owns a temporary folder per test. Must never leave a mount behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test panics, in its helpers too")]

#[path = "unpack/bombs.rs"]
mod bombs;
#[path = "unpack/broken.rs"]
mod broken;
#[path = "unpack/escapes.rs"]
mod escapes;
#[path = "unpack/honest.rs"]
mod honest;
#[path = "unpack/model.rs"]
mod model;
#[path = "unpack/random.rs"]
mod random;
#[path = "support/tar.rs"]
mod support;

use std::{
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use keelson_imageservice::{Compression, Config, ImageService, Job, LayerHold, Limits, UnpackError};
use support::{descriptor, digest};

struct Store {
    temp: tempfile::TempDir,
    service: ImageService,
}

impl Store {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self::at(tempfile::tempdir().unwrap(), limits)
    }

    /// In memory where that is possible, for tests that make very many files or stores.
    fn fast(limits: Limits) -> Self {
        Self::at(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(), limits)
    }

    fn at(temp: tempfile::TempDir, limits: Limits) -> Self {
        let service =
            ImageService::open(Config { root: temp.path().join("store"), limits, ..Config::default() }).unwrap();
        Self { temp, service }
    }

    fn unpack(&self, tar: &[u8]) -> Result<Layer, UnpackError> {
        self.unpack_as(tar, tar, Compression::Plain)
    }

    fn unpack_as(&self, blob: &[u8], tar: &[u8], compression: Compression) -> Result<Layer, UnpackError> {
        let id = digest(tar);
        let hold = self.service.layers().unpack(&descriptor(blob, compression), &id, blob, &Job::new())?;
        let path = self.temp.path().join("store/layers").join(id.hex()).join("fs");
        Ok(Layer { path, _hold: hold })
    }

    /// Nothing half-made is visible: no layer, no temporary, and the trash drains.
    fn assert_empty(&self) {
        let layers = self.temp.path().join("store/layers");
        let names: Vec<_> = std::fs::read_dir(&layers).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["tmp"]);
        assert_eq!(std::fs::read_dir(layers.join("tmp")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(self.temp.path().join("store/content/tmp")).unwrap().count(), 0);
    }
}

#[derive(Debug)]
struct Layer {
    path: PathBuf,
    _hold: LayerHold,
}

impl Layer {
    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn stat(&self, name: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn xattr(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 70_000];
        match rustix::fs::lgetxattr(self.at(name), attribute, &mut value) {
            Ok(length) => Some(value[..length].to_vec()),
            Err(rustix::io::Errno::NODATA) => None,
            Err(errno) => panic!("{name} {attribute}: {errno}"),
        }
    }

    fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let stat = self.stat(name);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }
}

struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, options: &str) -> Self {
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), &*options).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
