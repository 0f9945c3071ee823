//! Running from a sealed copy of this program, so that `/proc/self/exe` in a container is nothing of the host's (CVE-2019-5736).
//! At the start of every command that puts a process into a container; the process replaces itself once.
//! Owns nothing afterwards: the memory file lives as long as a process runs from it.
//! Must never go on from an exposed program file, and never loop.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt as _;

use super::error::{OciError, file, system};

/// Set in the second life; without effect if somebody else sets it, because the seals are looked at again.
const MARK: &str = "KEELSON_SEALED=1";

/// Returns only in a process that runs from a sealed memory file.
pub(super) fn ensure() -> Result<(), OciError> {
    if !keelson_sys::process::executable_is_exposed() {
        return Ok(());
    }
    let own = "/proc/self/exe";
    let program = std::fs::File::open(own).map_err(file("open", own))?;
    let copy = keelson_sys::memfd::sealed_copy(&program).map_err(system("copy this program to sealed memory"))?;
    let strings = |list: Vec<OsString>| list.into_iter().filter_map(|text| CString::new(text.into_vec()).ok());
    let argv: Vec<CString> = strings(std::env::args_os().collect()).collect();
    let pairs = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let mut env: Vec<CString> = strings(pairs.collect()).collect();
    let mark = CString::new(MARK).unwrap_or_default();
    if env.contains(&mark) {
        let text = "this program does not run from sealed memory although it was started from it; is /proc mounted?";
        return Err(OciError::Invalid(text.to_owned()));
    }
    env.push(mark);
    Err(system("execute the sealed copy of this program")(keelson_sys::process::exec_fd(&copy, &argv, &env)))
}
