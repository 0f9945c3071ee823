//! Loading a profile into the kernel, by the host's `apparmor_parser`: the kernel takes compiled profiles alone.
//! Blocks for a tenth of a second; on the blocking pool of the daemon, once in its life.
//! Owns the subprocess for as long as it runs. Must never wait for it without an end, nor give it anything of a request.

use std::{
    ffi::CString,
    fs::File,
    io::{ErrorKind, Read as _, Seek as _, Write as _},
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use keelson_sys::{
    pidfd::{self, Exit},
    spawn,
};

/// Where distributions have it.
const PLACES: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// A compiler that has not ended by then is killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of what it says, bytes.
const MESSAGE_MAX: u64 = 4096;

/// The compiler.
///
/// # Errors
/// There is none.
pub(super) fn find() -> Result<&'static Path, String> {
    let found = PLACES.map(Path::new).into_iter().find(|path| path.exists());
    found.ok_or_else(|| "there is no apparmor_parser on this node: install the package `apparmor`".to_owned())
}

/// Compiles the profile and loads it in place of one of the same name.
///
/// # Errors
/// There is no compiler, or what it said.
pub(super) fn load(text: &str) -> Result<(), String> {
    let program = find()?;
    run(program, text).map_err(|reason| format!("`{} --replace`: {reason}", program.display()))
}

fn run(program: &Path, text: &str) -> Result<(), String> {
    let told = |act: &'static str| move |error: std::io::Error| format!("{act}: {error}");
    let memory = |name: &str| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        rustix::fs::memfd_create(name, flags).map(File::from).map_err(|errno| format!("make a file in memory: {errno}"))
    };
    // Files, not pipes: neither side waits for the other, and the compiler may say as much as it likes.
    let (mut input, mut output) = (memory("profile")?, memory("messages")?);
    input.write_all(text.as_bytes()).map_err(told("write the profile"))?;
    input.rewind().map_err(told("write the profile"))?;
    let file = File::open(program).map_err(told("open"))?;
    let cwd = File::open("/").map_err(told("open `/`"))?;
    // No cache: its folder may be read-only, and the profile is compiled once.
    let argv = [c"apparmor_parser", c"--skip-cache", c"--replace", c"--quiet"].map(CString::from);
    let spawned = spawn::spawn(&spawn::Program {
        file: file.as_fd(),
        argv: &argv,
        env: &[c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), c"LC_ALL=C".to_owned()],
        cwd: cwd.as_fd(),
        stdio: [input.as_fd(), output.as_fd(), output.as_fd()],
    })
    .map_err(|errno| format!("start: {errno}"))?;
    let ended = pidfd::wait_at_most(&spawned.pidfd, PATIENCE).map_err(std::io::Error::from);
    let exit = ended.and_then(|exit| exit.ok_or(ErrorKind::TimedOut.into())).map_err(told("wait for it"))?;
    if exit == Exit::Code(0) {
        return Ok(());
    }
    let mut message = Vec::new();
    output.rewind().map_err(told("read what it said"))?;
    output.take(MESSAGE_MAX).read_to_end(&mut message).map_err(told("read what it said"))?;
    let message = String::from_utf8_lossy(&message);
    Err(format!("ended with {exit:?}: {}", message.trim().escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_compiler_says_is_told() {
        // Takes the options for the name of a script.
        let error = run(Path::new("/bin/sh"), "").unwrap_err();
        assert!(error.starts_with("ended with Code("), "{error}");
        assert!(run(Path::new("/no/such/program"), "").unwrap_err().starts_with("open: "));
    }
}
