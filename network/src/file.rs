//! The files of this room: small JSON records, replaced as a whole.
//! Runs on the caller's thread, blocks on disk only when told to be durable. Owns nothing.
//! Must never leave a record half-written under its own name.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// Why a file of the network's folder could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{act} `{}`", path.display())]
pub struct FileError {
    /// What was attempted.
    pub act: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Shorthand for `map_err`.
pub(crate) fn failed<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError { act, path: path.to_owned(), source }
}

/// Whether the record must be on disk when the call returns, or only survive this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survive {
    Crash,
    PowerLoss,
}

/// Replaces the record at `path`.
pub(crate) fn put<T: Serialize>(path: &Path, record: &T, survive: Survive) -> Result<(), FileError> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        if survive == Survive::PowerLoss {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)?;
        if let (Survive::PowerLoss, Some(folder)) = (survive, path.parent()) {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(failed("write", path))
}

/// Makes or replaces the record at `path`, to survive this process. A new one is written under its own name at once: who finds
/// it empty or cut short knows that what it announces was not begun.
pub(crate) fn announce<T: Serialize>(path: &Path, record: &T) -> Result<(), FileError> {
    let write = || {
        let bytes = serde_json::to_vec(record)?;
        fs::OpenOptions::new().write(true).create_new(true).open(path)?.write_all(&bytes)
    };
    match write() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => put(path, record, Survive::Crash),
        done => done.map_err(failed("write", path)),
    }
}

/// The record at `path`; `None` when there is none. One that cannot be understood (torn by a power failure, or of another
/// version) is an error of kind `InvalidData`.
pub(crate) fn get<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from).map_err(|error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            failed("read", path)(error)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Removes a file; one that is not there is removed already.
pub(crate) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The names in a folder that are UTF-8; others are none of ours.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        names.extend(entry.map_err(failed("list", folder))?.file_name().into_string().ok());
    }
    Ok(names)
}
