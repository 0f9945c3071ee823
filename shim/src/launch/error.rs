//! Why a process was not started: the step, the thing it was done to, the errno, and what to do next.
//! Built in the shim, from a failed call of the parent or from the report of the child.
//! Owns strings.
//! Must never be built in the child: there it is two numbers.

use std::fmt;

use keelson_api::shim::{Failure, FailureKind};
use rustix::io::Errno;

/// A failed launch. The text is one line: `mount \`/x\`: Operation not permitted (EPERM); hint`.
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
        LaunchError { step, object: object.into(), errno: errno.raw_os_error(), kind: FailureKind::System, hint: String::new() }
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

    #[must_use]
    pub fn with_kind(mut self, kind: FailureKind) -> LaunchError {
        self.kind = kind;
        self
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
