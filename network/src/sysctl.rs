//! Kernel settings of networking, read and written as files below `/proc/sys/net`.
//! Each acts on the network namespace of the calling thread, whoever's thread that is. Owns nothing.
//! Must never build a path from a name that could leave its folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why a setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{act} `{}`", path.display())]
pub struct SysctlError {
    /// `read` or `write`.
    pub act: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The file of a per-interface setting.
pub(crate) fn per_interface(family: Family, interface: &str, key: &str) -> PathBuf {
    let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
    // The kernel lets an interface's name hold anything but `/` and space, and be neither `.` nor `..`.
    Path::new("/proc/sys/net").join(family).join("conf").join(interface).join(key)
}

/// The setting's text, without the line's end; `None` when this kernel or namespace has no such setting.
pub(crate) fn read(path: &Path) -> Result<Option<String>, SysctlError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysctlError { act: "read", path: path.to_owned(), source }),
    }
}

/// Writes a setting that must be there.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), SysctlError> {
    let open = || fs::OpenOptions::new().write(true).open(path);
    open().and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes())).map_err(|source| SysctlError {
        act: "write",
        path: path.to_owned(),
        source,
    })
}

/// Writes a setting when it is there and not so already; says whether it had to.
pub(crate) fn ensure(path: &Path, value: &str) -> Result<bool, SysctlError> {
    match read(path)? {
        Some(found) if found != value => write(path, value).map(|()| true),
        Some(_) | None => Ok(false),
    }
}

/// Whether this namespace has IPv6 switched on.
pub(crate) fn ipv6_enabled() -> bool {
    ["all", "default"].iter().all(|interface| {
        matches!(read(&per_interface(Family::V6, interface, "disable_ipv6")), Ok(Some(value)) if value == "0")
    })
}

/// Settings that interfaces made in this namespace from now on inherit: see [`crate::Netns::current`].
pub(crate) fn prepare_pod() -> Result<(), SysctlError> {
    // The bridge floods multicast, so nobody needs to hear which groups a pod joins; told twice a second (the default), each
    // new pod costs more frames to every other.
    for (key, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("mldv2_unsolicited_report_interval", "86400000")] {
        match write(&per_interface(Family::V6, "default", key), value) {
            // A kernel without IPv6, or older than the setting.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}
