//! A unix socket in the file system: its name, its mode, and how it goes on and off.
//! Binding is done on a worker before the first request. Owns the listening socket and its file.
//! Must never take a socket that somebody answers on, nor be open to others than its mode says at any moment.

use std::{
    io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

use crate::config::SOCKET_PATH_MAX;

/// Read and write for root and its group: no other user of the node may run pods, or look at them.
const SOCKET_MODE: u32 = 0o660;
/// Traversable, so that a pod with other ids can reach what is mounted from below; not listable.
const DIR_MODE: u32 = 0o711;

/// Why the socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "bind `{path}`: another process answers on it: stop it, or give this daemon a socket of its own (--socket)"
    )]
    InUse { path: PathBuf },
    #[error("bind `{path}`: there is something else than a socket in its place; move it away")]
    NotASocket { path: PathBuf },
    #[error("bind `{path}`: the path of a socket has at most {max} bytes")]
    TooLong { path: PathBuf, max: usize },
    #[error("{act} `{path}`")]
    Io { act: &'static str, path: PathBuf, source: io::Error },
}

/// A bound socket that nobody is served on yet. Its file goes when this does.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

impl Socket {
    /// Binds the socket, over a stale one; makes its folder.
    ///
    /// # Errors
    /// Somebody answers on it, something else is there, or the kernel refuses.
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |act| move |source| SocketError::Io { act, path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(folder);
            made.map_err(failed("make the folder of"))?;
        }
        refuse_taken(path).await?;
        // Bound and made private under another name first: at no moment can anybody else connect.
        let temporary = temporary(path)?;
        let _ = std::fs::remove_file(&temporary);
        let listener = UnixListener::bind(&temporary).map_err(failed("bind"))?;
        let mode = std::fs::Permissions::from_mode(SOCKET_MODE);
        std::fs::set_permissions(&temporary, mode).map_err(failed("set the mode of"))?;
        let inode = std::fs::metadata(&temporary).map_err(failed("look at"))?.ino();
        std::fs::rename(&temporary, path).map_err(failed("put in place"))?;
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), inode } })
    }

    /// To be listened on, and to be kept as long as that.
    pub(crate) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// The name of a bound socket in the file system.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon may have put its own there.
        if std::fs::metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// An error when the path is taken by anything but a socket nobody answers on.
async fn refuse_taken(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Io { act: "look at", path: path.to_owned(), source }),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(source) => Err(SocketError::Io { act: "try", path: path.to_owned(), source }),
    }
}

fn temporary(path: &Path) -> Result<PathBuf, SocketError> {
    let temporary = path.with_file_name(format!(".s{}", std::process::id()));
    if temporary.as_os_str().len().max(path.as_os_str().len()) > SOCKET_PATH_MAX {
        return Err(SocketError::TooLong { path: path.to_owned(), max: SOCKET_PATH_MAX });
    }
    Ok(temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[tokio::test]
    async fn a_socket_is_private_and_its_file_goes_with_it() {
        let folder = folder();
        let path = folder.path().join("deep/er/k.sock");
        let socket = Socket::bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        let parent = std::fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, DIR_MODE);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_is_answered_on_is_not_taken() {
        let folder = folder();
        let path = folder.path().join("k.sock");
        let _first = Socket::bind(&path).await.unwrap();
        let said = Socket::bind(&path).await.unwrap_err().to_string();
        assert!(said.contains("another process answers"), "{said}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_its_old_owner_leaves_the_new_one() {
        let folder = folder();
        let path = folder.path().join("k.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::bind(&path).await.unwrap();
        let stranger = SocketFile { path: path.clone(), inode: 1 };
        drop(stranger);
        assert!(path.exists());
        drop(socket);
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = folder();
        let path = folder.path().join("k.sock");
        std::fs::write(&path, "precious").unwrap();
        let said = Socket::bind(&path).await.unwrap_err().to_string();
        assert!(said.contains("something else than a socket"), "{said}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
