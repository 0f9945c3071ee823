//! Starting a program by descriptor with nothing inherited: no signal mask, no ignored signals, no environment, no descriptors
//! but the three streams. Any process, any thread: the child shares memory until it execs (vfork), so the daemon's size does not count.
//! Owns nothing afterwards: the pid and pidfd are the caller's to reap.
//! Must never run anything but raw system calls in the child.

use std::ffi::{CString, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{self, Errno};

use crate::raw;

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// The executable.
    pub file: BorrowedFd<'a>,
    /// With `argv[0]`.
    pub argv: &'a [CString],
    /// `NAME=value`.
    pub env: &'a [CString],
    /// Working directory.
    pub cwd: BorrowedFd<'a>,
    /// Standard streams: stdin, stdout, stderr.
    pub stdio: [BorrowedFd<'a>; 3],
}

/// A started child of the calling process; nobody has reaped it.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id.
    pub pid: i32,
    /// Close-on-exec.
    pub pidfd: OwnedFd,
}

struct Plan {
    file: i32,
    cwd: i32,
    stdio: [i32; 3],
    argv: *const *const c_char,
    env: *const *const c_char,
    ignored: u64,
    errno: i32,
}

/// Starts the program and returns when its execve has succeeded. An error tells why the child could not exec; it is reaped then.
pub fn spawn(program: &Program<'_>) -> io::Result<Spawned> {
    let argv = pointers(program.argv);
    let env = pointers(program.env);
    // Copies above the streams' numbers, so that no dup2 overwrites a source.
    let streams = program.stdio.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3));
    let [stdin, stdout, stderr] = streams;
    let streams = [stdin?, stdout?, stderr?];
    let mut plan = Plan {
        file: program.file.as_raw_fd(),
        cwd: program.cwd.as_raw_fd(),
        stdio: [streams[0].as_raw_fd(), streams[1].as_raw_fd(), streams[2].as_raw_fd()],
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        ignored: crate::process::ignored_signals(),
        errno: 0,
    };
    let mut pidfd = -1;
    let arguments = raw::CloneArgs {
        flags: raw::CLONE_VM | raw::CLONE_VFORK | raw::CLONE_PIDFD | raw::CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..raw::CloneArgs::default()
    };
    // Every signal waits while parent and child share this thread's memory.
    let mask = raw::block_all_signals();
    // SAFETY: CLONE_VFORK suspends this thread until the child has exec'd or ended; `run` never returns and `plan` lives here.
    let result = unsafe { raw::clone3_call(&arguments, run, (&raw mut plan).cast()) };
    raw::restore_signals(mask);
    let pid = result?;
    // SAFETY: the clone succeeded, so the kernel stored a new descriptor that nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if plan.errno != 0 {
        crate::pidfd::wait(&pidfd)?;
        return Err(Errno::from_raw_os_error(plan.errno));
    }
    Ok(Spawned { pid, pidfd })
}

/// Runs in the child, on the parent's suspended stack.
unsafe extern "C" fn run(plan: *mut core::ffi::c_void) -> ! {
    let plan: *mut Plan = plan.cast();
    // SAFETY: `spawn` passes a Plan that lives until this child has exec'd or ended.
    let plan = unsafe { &mut *plan };
    plan.errno = match execute(plan) {
        Ok(()) => libc::EIO,
        Err(errno) => errno.raw_os_error(),
    };
    raw::exit(127)
}

fn execute(plan: &Plan) -> io::Result<()> {
    raw::fchdir(plan.cwd)?;
    for (target, source) in (0..).zip(plan.stdio) {
        raw::dup3(source, target, 0)?;
    }
    raw::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)?;
    raw::default_signals(plan.ignored)?;
    raw::unblock_all_signals();
    // SAFETY: both arrays end with null and live in the parent, which is suspended.
    unsafe { raw::execveat(plan.file, c"".as_ptr(), plan.argv, plan.env, libc::AT_EMPTY_PATH) }
}

/// Pointers to the strings, ended by null, as execve wants them. They borrow from `strings`.
pub(crate) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    fn run_shell(script: &str) -> (String, crate::pidfd::Exit) {
        let shell = std::fs::File::open("/bin/sh").unwrap();
        let cwd = std::fs::File::open("/").unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let spawned = spawn(&Program {
            file: shell.as_fd(),
            argv: &[c"sh".into(), c"-c".into(), CString::new(script).unwrap()],
            env: &[c"A=b".into()],
            cwd: cwd.as_fd(),
            stdio: [null.as_fd(), writer.as_fd(), null.as_fd()],
        })
        .unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        (text, crate::pidfd::wait(&spawned.pidfd).unwrap())
    }

    #[test]
    fn a_program_runs_with_exactly_what_it_was_given() {
        let (text, exit) =
            run_shell("echo $A $HOME $PWD; ls /proc/self/fd | wc -l; grep SigIgn /proc/self/status; exit 3");
        assert_eq!(exit, crate::pidfd::Exit::Code(3));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.first(), Some(&"b /"));
        assert_eq!(lines.get(1), Some(&"4"), "0-2 and the listed folder: {text}");
        assert_eq!(lines.get(2), Some(&"SigIgn:\t0000000000000000"));
    }

    #[test]
    fn a_file_that_is_no_program_tells_why() {
        let file = std::fs::File::open("/etc/passwd").unwrap();
        let cwd = std::fs::File::open("/").unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let streams = [null.as_fd(), null.as_fd(), null.as_fd()];
        let program = Program { file: file.as_fd(), argv: &[c"x".into()], env: &[], cwd: cwd.as_fd(), stdio: streams };
        assert_eq!(spawn(&program).unwrap_err(), Errno::ACCESS);
    }
}
