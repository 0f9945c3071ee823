//! `keelson-shim criu`: the process that becomes CRIU. It takes the place in which CRIU must be (the container's network, IPC, UTS
//! and cgroup namespaces, so that these are nothing to CRIU; to restore also its cgroup and its mounts), and executes it.
//! A child of the supervisor, one thread, its job as JSON on stdin, complaints on stderr.
//! Owns a mount namespace of its own for a restore; it ends with it.
//! Must never resolve a path inside the container but to compare it with the mount that is expected there, nor give CRIU an
//! environment, a configuration file or a descriptor that it was not meant to have.

mod dump;
mod restore;

use std::convert::Infallible;
use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::{AsFd as _, IntoRawFd as _, OwnedFd};

use keelson_sys::namespace::{self, NamespaceKinds};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use serde::{Deserialize, Serialize};

pub(crate) use dump::stream_names;

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The program.
    pub(crate) criu: String,
    /// Image directory.
    pub(crate) images: String,
    /// Directory of its log.
    pub(crate) work: String,
    /// The container's init: the one to dump, or the one that waits.
    pub(crate) init: i32,
    /// Its cgroup in the freezer, for a dump; without one CRIU leaves what it has dumped stopped, and the supervisor goes on.
    pub(crate) freezer: Option<String>,
    pub(crate) restore: Option<Restore>,
}

/// What a restore needs beside that.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Restore {
    /// `cgroup.procs` of the container, one for each hierarchy.
    pub(crate) cgroups: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
    /// Names of the standard streams in the images; empty: leave it.
    pub(crate) stdio: Vec<String>,
    pub(crate) lsm_profile: String,
}

/// A mount of the init that waits.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) mountpoint: String,
    pub(crate) key: String,
    pub(crate) id: u64,
}

/// CRIU's log of a dump, in the work directory.
pub(crate) const DUMP_LOG: &str = "dump.log";
/// CRIU's log of a restore.
pub(crate) const RESTORE_LOG: &str = "restore.log";
/// Where CRIU tells the restored init's process id.
pub(crate) const PID_FILE: &str = "init.pid";
/// What came before CRIU's own log: this program's complaint, and what CRIU says of its command line.
pub(crate) const COMPLAINTS: &str = "criu.err";

/// Why there is no CRIU.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CriuError {
    #[error("read job")]
    Job(#[source] std::io::Error),
    #[error("decode job")]
    Decode(#[source] serde_json::Error),
    #[error("{act} `{object}`")]
    System {
        act: &'static str,
        object: String,
        #[source]
        source: Errno,
    },
    #[error("find mount `{mountpoint}`: another one is there than was checked")]
    OtherMount { mountpoint: String },
}

fn system(act: &'static str, object: &str) -> impl FnOnce(Errno) -> CriuError + use<> {
    let object = object.to_owned();
    move |source| CriuError::System { act, object, source }
}

fn namespaces(act: &'static str, object: &str) -> impl FnOnce(std::io::Error) -> CriuError + use<> {
    let object = object.to_owned();
    move |error| CriuError::System { act, object, source: Errno::from_io_error(&error).unwrap_or(Errno::IO) }
}

/// Does the job on stdin; returns only when it cannot.
pub(crate) fn run() -> Result<Infallible, CriuError> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(CriuError::Job)?;
    let job: Job = serde_json::from_slice(&text).map_err(CriuError::Decode)?;
    let null = open("/dev/null", OFlags::RDWR)?;
    rustix::stdio::dup2_stdin(&null).map_err(system("close", "stdin"))?;
    // Opened here: once in place, the path may mean something else.
    let program = open(&job.criu, OFlags::PATH)?;
    let arguments = match &job.restore {
        None => dump::prepare(&job)?,
        Some(restore) => restore::prepare(&job, restore)?,
    };
    let argv: Vec<CString> = arguments.into_iter().filter_map(|text| CString::new(text).ok()).collect();
    // CRIU may need iptables or tar; both are the host's.
    let env = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    let mut errno = keelson_sys::process::exec_fd(&program, &argv, &env);
    if errno == Errno::NOENT {
        // A script around CRIU: its interpreter opens it by this descriptor.
        rustix::io::fcntl_setfd(&program, FdFlags::empty()).map_err(system("hand down", &job.criu))?;
        errno = keelson_sys::process::exec_fd(&program, &argv, &env);
    }
    Err(system("execute", &job.criu)(errno))
}

/// What every call of CRIU is told.
fn common(job: &Job, verb: &str, log: &str) -> Vec<String> {
    let mut words: Vec<String> =
        [&job.criu, verb, "--no-default-config", "--images-dir", &job.images].map(str::to_owned).to_vec();
    let more = ["--work-dir", &job.work, "--log-file", log, "-v2", "--manage-cgroups=ignore"];
    words.extend(more.map(str::to_owned));
    // A connection to somebody who knows nothing of this cannot go on; locks can.
    words.extend(["--tcp-close", "--file-locks"].map(str::to_owned));
    words
}

/// Enters the namespaces that CRIU shall take for its own: what it shares with the container is nothing to it.
fn enter(init: i32) -> Result<(), CriuError> {
    for (name, kind) in [
        ("cgroup", NamespaceKinds::CGROUP),
        ("ipc", NamespaceKinds::IPC),
        ("uts", NamespaceKinds::UTS),
        ("net", NamespaceKinds::NET),
    ] {
        let path = format!("/proc/{init}/ns/{name}");
        let file = open(&path, OFlags::RDONLY)?;
        namespace::set(file.as_fd(), kind).map_err(namespaces("enter namespace", &path))?;
    }
    Ok(())
}

fn open(path: &str, flags: OFlags) -> Result<OwnedFd, CriuError> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(system("open", path))
}

/// The descriptor's number, for a program that inherits it.
fn hand_down(fd: OwnedFd) -> Result<i32, CriuError> {
    rustix::io::fcntl_setfd(&fd, FdFlags::empty()).map_err(system("hand down", "a descriptor"))?;
    // Closed by the program, or with this process.
    Ok(fd.into_raw_fd())
}
