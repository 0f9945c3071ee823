//! Why a process was not started: the step, the thing it was done to, the errno, and what to do next.
//! Built in the shim, from a failed call of the parent or from the report of the child.
//! Owns strings.
//! Must never be built in the child: there it is three numbers.

use std::fmt;

use keelson_api::shim::{Failure, FailureKind};
use keelson_sys::child::{Op, Report};
use rustix::io::Errno;

/// A failed launch. The text is one line: `mount /x: Operation not permitted (os error 1); hint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchError {
    /// The attempted act: `mount`, `set user`, `exec`.
    pub step: &'static str,
    /// A path or name; may be empty.
    pub object: String,
    /// 0 when the system was not asked.
    pub errno: i32,
    pub kind: FailureKind,
    /// The cause in words or what to do next; may be empty.
    pub hint: String,
}

impl LaunchError {
    /// The system refused.
    pub fn system(step: &'static str, object: impl Into<String>, errno: Errno) -> LaunchError {
        let (kind, hint) = explain(step, errno);
        LaunchError { step, object: object.into(), errno: errno.raw_os_error(), kind, hint: hint.to_owned() }
    }

    /// The request is wrong.
    pub fn invalid(step: &'static str, object: impl Into<String>, hint: impl Into<String>) -> LaunchError {
        LaunchError { step, object: object.into(), errno: 0, kind: FailureKind::Invalid, hint: hint.into() }
    }

    /// This kernel or build lacks what the request needs.
    pub fn unsupported(step: &'static str, object: impl Into<String>, hint: impl Into<String>) -> LaunchError {
        LaunchError { step, object: object.into(), errno: 0, kind: FailureKind::Unsupported, hint: hint.into() }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> LaunchError {
        self.hint = hint.into();
        self
    }

    /// From the child's report and the plan it walked.
    pub(super) fn reported(ops: &[Op], report: Report) -> LaunchError {
        let index = usize::try_from(report.op).unwrap_or(usize::MAX);
        let (step, object) = ops.get(index).map_or(("start", String::new()), |op| op.describe(report.part));
        LaunchError::system(step, object, Errno::from_raw_os_error(report.errno))
    }

    /// From the report of a child whose plan another process made.
    pub(super) fn told(report: Report, words: &[u8]) -> LaunchError {
        let words = String::from_utf8_lossy(words);
        let (step, object) = words.split_once('\0').unwrap_or((&words, ""));
        let known = ["exec", "load seccomp filter", "set capabilities", "reset signals"];
        let step = known.into_iter().find(|known| *known == step).unwrap_or("start");
        LaunchError::system(step, object, Errno::from_raw_os_error(report.errno))
    }
}

/// What to do about the failures that people meet.
fn explain(step: &'static str, errno: Errno) -> (FailureKind, &'static str) {
    use FailureKind::{Invalid, System, Unsupported};
    match (step, errno) {
        ("exec", Errno::NOENT) => (Invalid, "no such program in the container (or its interpreter is missing)"),
        ("exec", Errno::ACCESS) => (Invalid, "the program is not an executable file, or its user may not execute it"),
        ("exec", Errno::NOEXEC) => {
            (Invalid, "not a program of this machine: wrong architecture, or a script without `#!`")
        }
        ("exec", Errno::TOOBIG) => (Invalid, "arguments and environment are larger than the kernel takes"),
        ("change to working directory", Errno::XDEV) => (Invalid, "it is outside the container"),
        ("change to working directory", Errno::LOOP) => {
            (Invalid, "it leads through a link of /proc, or through too many links")
        }
        ("change to working directory", Errno::NOENT) => (Invalid, "no such folder in the container"),
        ("change to working directory", Errno::NOTDIR) => (Invalid, "it is not a folder"),
        ("mount onto procfs at", _) => (Invalid, "a bind mount there could mislead whoever reads /proc"),
        ("open mount target", Errno::LOOP) => (Invalid, "the target leads through a symbolic link"),
        ("open mount target", Errno::ROFS) => {
            (Invalid, "it is missing and the filesystem is read-only; make it in the image")
        }
        ("mount", Errno::NOTDIR) => (Invalid, "source and target are not of one kind (folder or file)"),
        ("set resource limit", Errno::PERM) => {
            (Invalid, "the hard limit is above this node's own; ask for less, or raise the limit of the service")
        }
        ("load seccomp filter", Errno::ACCESS) => {
            (Invalid, "without noNewPrivileges a filter needs CAP_SYS_ADMIN; set noNewPrivileges")
        }
        ("load seccomp filter", Errno::INVAL) => (Invalid, "the kernel does not take this program or these flags"),
        ("create device", Errno::EXIST) => (Invalid, "the image has something else at this path"),
        ("create device", Errno::PERM) => (System, "not permitted in a user namespace, or by the device cgroup"),
        ("create terminal", Errno::NODEV | Errno::NOENT) => (Invalid, "a terminal needs a devpts mounted on /dev/pts"),
        ("set supplementary groups" | "set group" | "set user", Errno::INVAL) => {
            (Invalid, "an id is not mapped into the user namespace")
        }
        (_, Errno::NOSYS) => (Unsupported, "this kernel lacks the system call (5.12 is the oldest supported)"),
        _ => (System, ""),
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step)?;
        if !self.object.is_empty() {
            write!(f, " `{}`", self.object)?;
        }
        if self.errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.hint.is_empty() {
            write!(f, "{} {}", if self.errno == 0 { ":" } else { ";" }, self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for LaunchError {}

impl From<&LaunchError> for Failure {
    fn from(error: &LaunchError) -> Failure {
        Failure {
            step: error.step.to_owned(),
            object: error.object.clone(),
            errno: error.errno,
            message: error.to_string(),
            kind: error.kind.into(),
        }
    }
}
