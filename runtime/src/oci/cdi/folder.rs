//! The folders that specs are found in: which files count, how they are read, which spec a name leads to.
//! Blocks; on the blocking pool, while a container with such a device is created.
//! Owns nothing. Must never read a file without bound, nor let one bad file hide the others.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    name::DeviceName,
    spec::{Device, Spec},
};

/// Files of one folder.
const FILES_MAX: usize = 1024;
/// A node with hundreds of devices has some hundred KiB.
const FILE_MAX: u64 = 8 << 20;

/// A spec and where it came from.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) path: PathBuf,
    pub(super) spec: Spec,
    /// Of its folder in the list: a later one rules.
    rank: usize,
}

/// What the folders hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    specs: Vec<Loaded>,
    /// Files that are no specs, and why.
    pub(super) problems: Vec<String>,
}

/// Why a name leads to no device.
#[derive(Debug)]
pub(super) enum Missing {
    /// Nothing describes its kind.
    Kind,
    /// The kind has these devices.
    Device(Vec<String>),
    /// Two files of one folder describe it.
    Conflict(PathBuf, PathBuf),
}

/// Reads all folders; one that is not there is empty.
pub(super) fn read(folders: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for (rank, folder) in folders.iter().enumerate() {
        let mut paths: Vec<PathBuf> = match fs::read_dir(folder) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| is_spec(path)).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                found.problems.push(format!("{}: {error}", folder.display()));
                continue;
            }
        };
        paths.sort();
        if paths.len() > FILES_MAX {
            found.problems.push(format!("{}: files after the first {FILES_MAX}", folder.display()));
            paths.truncate(FILES_MAX);
        }
        for path in paths {
            match load(&path) {
                Ok(spec) => found.specs.push(Loaded { path, spec, rank }),
                Err(why) => found.problems.push(format!("{}: {why}", path.display())),
            }
        }
    }
    found
}

/// Names that an editor or a half-done writer makes begin with a dot.
fn is_spec(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "json" || extension == "yaml")
}

fn load(path: &Path) -> Result<Spec, String> {
    let text = text(path).map_err(|error| error.to_string())?;
    let spec: Spec = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    } else {
        yaml(&text)?
    };
    spec.check()?;
    Ok(spec)
}

/// As vendors write them: numbers of file modes are octal with a leading zero (YAML 1.1). Anchors that blow up are refused.
fn yaml(text: &str) -> Result<Spec, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// A regular file's text; a pipe put there does not hold the daemon up.
fn text(path: &Path) -> io::Result<String> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_MAX {
        return Err(io::Error::other(format!("has more than {FILE_MAX} bytes")));
    }
    Ok(text)
}

impl Found {
    /// The device of the folder that rules.
    pub(super) fn device(&self, name: &DeviceName) -> Result<(&Loaded, &Device), Missing> {
        let of_kind = || self.specs.iter().filter(|loaded| loaded.spec.kind == name.kind);
        let all = || {
            of_kind().filter_map(|loaded| {
                let device = loaded.spec.devices.iter().find(|device| device.name == name.device)?;
                Some((loaded, device))
            })
        };
        let Some(rank) = all().map(|(loaded, _)| loaded.rank).max() else {
            let known = of_kind().flat_map(|loaded| loaded.spec.devices.iter().map(|device| device.name.clone()));
            return Err(match of_kind().next() {
                Some(_) => Missing::Device(known.collect()),
                None => Missing::Kind,
            });
        };
        let mut ruling = all().filter(|(loaded, _)| loaded.rank == rank);
        match (ruling.next(), ruling.next()) {
            (Some((one, _)), Some((other, _))) => Err(Missing::Conflict(one.path.clone(), other.path.clone())),
            (Some(found), None) => Ok(found),
            (None, _) => Err(Missing::Kind),
        }
    }
}
