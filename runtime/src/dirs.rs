//! The folders as types: where each file of a sandbox and of a container lives, and who may look into it.
//! Pure path arithmetic, and the making of the top folders at open, on the blocking pool of the daemon.
//! Owns the layout of `docs/on-disk.md`. Must never take a path part that is not a checked id.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use keelson_api::{ContainerId, ExitRecord, SandboxId, shim};

/// What is gone after a reboot: `/run/keelson`.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

/// `<state>/sandboxes/<id>`.
#[derive(Debug, Clone)]
pub(crate) struct SandboxDir(PathBuf);

/// `<state>/containers/<id>`, and the holder's directory inside its sandbox's: what a shim has as working directory.
#[derive(Debug, Clone)]
pub(crate) struct ContainerDir(PathBuf);

/// What survives a reboot, as far as the engine is concerned: `/var/lib/keelson`.
#[derive(Debug, Clone)]
pub(crate) struct RootDir(PathBuf);

impl RootDir {
    /// The folder itself.
    #[must_use]
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// 0711: the root of a user namespace must traverse it, nobody may list it.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make(&self) -> io::Result<()> {
        make(&self.0, 0o711)
    }

    /// Held while a daemon works on this folder.
    #[must_use]
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// A folder that is there for a moment at the daemon's start.
    #[must_use]
    pub(crate) fn probe(&self) -> PathBuf {
        self.0.join("probe")
    }

    /// The program that holds sandboxes of other runtimes.
    #[must_use]
    pub(crate) fn pause(&self) -> PathBuf {
        self.0.join("pause")
    }

    /// Records that must survive a reboot.
    #[must_use]
    pub(crate) fn database(&self) -> PathBuf {
        self.0.join("state.redb")
    }
}

impl StateDir {
    /// The folder itself.
    #[must_use]
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// 0711 itself (sockets have modes of their own), 0700 below.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make(&self) -> io::Result<()> {
        make(&self.0, 0o711)?;
        make(&self.sandboxes(), 0o700)?;
        make(&self.containers(), 0o700)
    }

    /// Held while a daemon works on this folder.
    #[must_use]
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// The kernel's boot id under which what is here was made.
    #[must_use]
    pub(crate) fn boot_id(&self) -> PathBuf {
        self.0.join("boot_id")
    }

    /// All sandboxes.
    #[must_use]
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.0.join("sandboxes")
    }

    /// All containers.
    #[must_use]
    pub(crate) fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    /// What other runtimes keep of their containers.
    #[must_use]
    pub(crate) fn runtimes(&self) -> PathBuf {
        self.0.join("runtimes")
    }

    /// Always empty here: shims cover it, each in a mount namespace of its own, with what other runtimes are to mount.
    #[must_use]
    pub(crate) fn staging(&self) -> PathBuf {
        self.0.join("staging")
    }

    /// What the runtime of this handler keeps of its containers; a configured name is one plain word.
    #[must_use]
    pub(crate) fn runtime(&self, handler: &str) -> PathBuf {
        self.runtimes().join(handler)
    }

    /// One sandbox.
    #[must_use]
    pub(crate) fn sandbox(&self, id: &SandboxId) -> SandboxDir {
        SandboxDir(self.sandboxes().join(id.as_str()))
    }

    /// One container.
    #[must_use]
    pub(crate) fn container(&self, id: &ContainerId) -> ContainerDir {
        ContainerDir(self.containers().join(id.as_str()))
    }
}

impl SandboxDir {
    /// Makes it, 0700.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make(&self) -> io::Result<()> {
        make(&self.0, 0o700)
    }

    /// The directory's path.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Pinned network namespace.
    #[must_use]
    pub(crate) fn net(&self) -> PathBuf {
        self.0.join("net")
    }

    /// Pinned IPC namespace.
    #[must_use]
    pub(crate) fn ipc(&self) -> PathBuf {
        self.0.join("ipc")
    }

    /// Pinned UTS namespace.
    #[must_use]
    pub(crate) fn uts(&self) -> PathBuf {
        self.0.join("uts")
    }

    /// Pinned user namespace, when the sandbox has one of its own.
    #[must_use]
    pub(crate) fn user(&self) -> PathBuf {
        self.0.join("user")
    }

    /// Pinned PID namespace, when the sandbox shares one.
    #[must_use]
    pub(crate) fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }

    /// Mount point of its /dev/shm.
    #[must_use]
    pub(crate) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// Its resolver file.
    #[must_use]
    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    /// Its hosts file.
    #[must_use]
    pub(crate) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    /// Its host name file.
    #[must_use]
    pub(crate) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    /// Interfaces of the host that it has.
    #[must_use]
    pub(crate) fn interfaces(&self) -> PathBuf {
        self.0.join("interfaces.json")
    }

    /// Run directory of the process that holds a shared PID namespace.
    #[must_use]
    pub(crate) fn holder(&self) -> ContainerDir {
        ContainerDir(self.0.join("holder"))
    }
}

impl ContainerDir {
    /// Makes it, 0700.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn make(&self) -> io::Result<()> {
        make(&self.0, 0o700)
    }

    /// The directory's path.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The OCI spec as launched.
    #[must_use]
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join(shim::SPEC_FILE)
    }

    /// What the shim had to complain about.
    #[must_use]
    pub(crate) fn shim_log(&self) -> PathBuf {
        self.0.join("shim.log")
    }

    /// How it ended.
    #[must_use]
    pub(crate) fn exit(&self) -> PathBuf {
        self.0.join(ExitRecord::FILE)
    }

    /// What is left to do when it is gone.
    #[must_use]
    pub(crate) fn aftermath(&self) -> PathBuf {
        self.0.join("aftermath.json")
    }

    /// An empty directory: root of the holder, and of what a hook of a container sees as its root.
    #[must_use]
    pub(crate) fn empty_root(&self) -> PathBuf {
        self.0.join("rootfs")
    }
}

/// A directory with exactly this mode, parents as needed; one that exists gets the mode if it is ours and looser.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
        && !parent.exists()
    {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(path)?;
            if !metadata.is_dir() {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, "exists and is not a directory"));
            }
            if metadata.permissions().mode() & 0o777 & !mode != 0 {
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_closed_to_others_also_when_they_were_open_before() {
        let scratch = tempfile::tempdir().unwrap();
        let state = StateDir::new(scratch.path().join("a/b/run"));
        state.make().unwrap();
        fs::set_permissions(state.containers(), fs::Permissions::from_mode(0o777)).unwrap();
        state.make().unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(scratch.path().join("a/b/run")), 0o711);
        assert_eq!((mode(state.sandboxes()), mode(state.containers())), (0o700, 0o700));
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("run");
        fs::File::create(&path).unwrap();
        assert_eq!(StateDir::new(path).make().unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
