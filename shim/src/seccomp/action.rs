//! OCI seccomp actions as the values that a filter returns.
//! Pure; called by the compiler in the daemon and the OCI command line.
//! Owns nothing.
//! Must never turn an unknown action into a milder one.

use super::SeccompError;

pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const NOTIFY: u32 = 0x7fc0_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const MAX_ERRNO: u32 = 4095;

/// The return value for `action`; an errno defaults to EPERM.
pub(super) fn parse(action: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let with_errno = |base: u32| match errno.unwrap_or(EPERM) {
        errno if errno > MAX_ERRNO => Err(SeccompError::Errno { errno }),
        errno => Ok(base | errno),
    };
    let value = match action {
        "SCMP_ACT_ERRNO" => return with_errno(ERRNO),
        "SCMP_ACT_TRACE" => return with_errno(TRACE),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_NOTIFY" => NOTIFY,
        _ => return Err(SeccompError::UnknownAction { action: action.to_owned() }),
    };
    match errno {
        Some(errno) => Err(SeccompError::NeedlessErrno { action: action.to_owned(), errno }),
        None => Ok(value),
    }
}

/// What a call that the profile's author cannot have known gets, given the default action: a program must be able to tell
/// "this kernel has it not" from "you may not", or it does not fall back to the older call.
pub(super) fn for_unknown_calls(default: u32) -> u32 {
    match default & 0xffff_0000 {
        ALLOW | LOG | TRACE | NOTIFY => default,
        _ => ERRNO | ENOSYS,
    }
}
