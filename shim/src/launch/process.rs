//! A process as operations: who it is, what it may, where it runs, what it executes. The same for an init and for an exec.
//! In the shim, before the clone.
//! Owns nothing afterwards.
//! Must never resolve names: users are numbers here, programs are looked for by the child inside the container.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use keelson_sys::child::{Exec, Identity, Op, Shared, Strings, Terminal};
use rustix::fs::FileType;

use super::capability::{self, Granted};
use super::{ChildStdio, LaunchError, c_string, lsm};
use crate::spec::{Process, Rlimit, Seccomp, User};

/// `PATH` for a container that has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) struct Wanted<'a> {
    pub(super) process: &'a Process,
    pub(super) env: Option<&'a [Vec<u8>]>,
    pub(super) seccomp: Option<Filter>,
    /// Runs instead of `process.args`.
    pub(super) program: Option<Shared>,
    pub(super) create_cwd: bool,
    /// A procfs for the labels of security modules.
    pub(super) proc: Option<&'a Shared>,
    pub(super) console: bool,
}

/// A seccomp program with the flags to load it with.
pub(super) struct Filter {
    pub(super) program: Vec<u64>,
    pub(super) flags: u32,
}

impl Filter {
    pub(super) fn new(program: &[u8], profile: Option<&Seccomp>) -> Result<Filter, LaunchError> {
        const STEP: &str = "load seccomp filter";
        let words = program.as_chunks::<8>();
        if !words.1.is_empty() || words.0.is_empty() {
            return Err(LaunchError::invalid(STEP, "", "not a list of BPF instructions"));
        }
        const SPEC_ALLOW: u32 = 1 << 2;
        let wanted = profile.map(|profile| profile.flags.as_slice()).unwrap_or_default();
        // Without it, kernels before 5.16 slow every filtered process down by their mitigations.
        let mut flags = if wanted.is_empty() { SPEC_ALLOW } else { 0 };
        for flag in wanted {
            flags |= match flag.as_str() {
                // Of one thread there is nothing to synchronise.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => SPEC_ALLOW,
                other => return Err(LaunchError::unsupported(STEP, other, "not offered")),
            };
        }
        Ok(Filter { program: words.0.iter().map(|word| u64::from_ne_bytes(*word)).collect(), flags })
    }
}

/// Before the identity changes: session, terminal or streams, limits, working directory.
pub(super) fn prepare(ops: &mut Vec<Op>, stdio: ChildStdio, wanted: &Wanted<'_>) -> Result<(), LaunchError> {
    let process = wanted.process;
    match stdio {
        ChildStdio::Terminal => {
            let size = process.console_size.map(|size| (size.height, size.width));
            ops.push(Op::Terminal(Terminal { uid: process.user.uid, size, console: wanted.console }));
        }
        ChildStdio::Fds { stdin, stdout, stderr } => {
            let streams = [above(stdin)?, above(stdout)?, above(stderr)?];
            let which = if process.user.uid == 0 { 0 } else { pipes(&streams) };
            ops.push(Op::Streams(streams.map(Rc::new)));
            if which != 0 {
                ops.push(Op::OwnStreams { uid: process.user.uid, which });
            }
        }
    }
    for limit in &process.rlimits {
        ops.push(rlimit(limit)?);
    }
    if let Some(scheduler) = &process.scheduler {
        ops.push(super::schedule::scheduler(scheduler)?);
    }
    if let Some(priority) = &process.io_priority {
        ops.push(super::schedule::io_priority(priority)?);
    }
    Ok(())
}

/// From the identity to just before the gate.
pub(super) fn settle(ops: &mut Vec<Op>, wanted: &Wanted<'_>) -> Result<(), LaunchError> {
    let process = wanted.process;
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    if !cwd.starts_with('/') {
        return Err(LaunchError::invalid("change to working directory", cwd, "not an absolute path"));
    }
    let path = c_string("change to working directory", cwd)?;
    ops.push(Op::WorkingDirectory { path: path.clone(), create: wanted.create_cwd, again: false });
    lsm::label(ops, process, wanted.proc)?;
    check_ids(&process.user)?;
    let own = capability::own();
    let granted = capability::granted(process.capabilities.as_ref(), own);
    let early_filter = wanted.seccomp.is_some() && !process.no_new_privileges;
    ops.push(Op::Identity(Identity {
        bounding: granted.bounding,
        groups: process.user.additional_gids.clone(),
        gid: process.user.gid,
        uid: process.user.uid,
        keep_effective: early_filter.then_some(own),
    }));
    ops.push(Op::WorkingDirectory { path, create: false, again: true });
    ops.push(Op::Umask(process.user.umask.unwrap_or(0o022)));
    if process.no_new_privileges {
        ops.push(Op::NoNewPrivileges);
    }
    Ok(())
}

/// From the gate to exec: nothing but what must be last.
pub(super) fn finish(ops: &mut Vec<Op>, wanted: Wanted<'_>, ignored: u64) -> Result<(), LaunchError> {
    let process = wanted.process;
    let Granted { sets, .. } = capability::granted(process.capabilities.as_ref(), capability::own());
    ops.push(Op::Signals { ignored });
    match wanted.seccomp {
        // With no_new_privs a filter needs no right: it comes last, and what precedes it need not be allowed by it.
        Some(Filter { program, flags }) if process.no_new_privileges => {
            ops.push(Op::Capabilities(sets));
            ops.push(Op::Seccomp { program, flags });
        }
        Some(Filter { program, flags }) => {
            ops.push(Op::Seccomp { program, flags });
            ops.push(Op::Capabilities(sets));
        }
        None => ops.push(Op::Capabilities(sets)),
    }
    ops.push(Op::Exec(program(process, wanted.env, wanted.program)?));
    Ok(())
}

/// To the kernel this number means `leave it as it is`, which would be root.
fn check_ids(user: &User) -> Result<(), LaunchError> {
    let refused = |step| LaunchError::invalid(step, u32::MAX.to_string(), "not an id");
    if user.uid == u32::MAX {
        return Err(refused("set user"));
    }
    if user.gid == u32::MAX {
        return Err(refused("set group"));
    }
    if user.additional_gids.contains(&u32::MAX) {
        return Err(refused("set supplementary groups"));
    }
    Ok(())
}

fn program(process: &Process, env: Option<&[Vec<u8>]>, file: Option<Shared>) -> Result<Exec, LaunchError> {
    const STEP: &str = "exec";
    if file.is_some() {
        return Ok(Exec {
            file,
            candidates: Vec::new(),
            argv: Strings::new(vec![c"keelson-init".into()]),
            env: Strings::new(Vec::new()),
        });
    }
    let argv = process.args.iter().map(|arg| c_string(STEP, arg)).collect::<Result<Vec<_>, _>>()?;
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
        return Err(LaunchError::invalid(STEP, "", "no program is named"));
    };
    let env = match env {
        Some(env) => env.iter().map(|entry| variable(entry)).collect::<Result<Vec<_>, _>>()?,
        None => process.env.iter().map(|entry| variable(entry.as_bytes())).collect::<Result<Vec<_>, _>>()?,
    };
    Ok(Exec { file: None, candidates: candidates(name, &env)?, argv: Strings::new(argv), env: Strings::new(env) })
}

/// An entry without a name or a value would mean something else to every program that reads it.
fn variable(entry: &[u8]) -> Result<CString, LaunchError> {
    let shown = || String::from_utf8_lossy(entry.split(|byte| *byte == b'=').next().unwrap_or_default()).into_owned();
    match entry.iter().position(|byte| *byte == b'=') {
        None | Some(0) => Err(LaunchError::invalid("set environment", shown(), "not of the form NAME=value")),
        Some(_) => CString::new(entry)
            .map_err(|_| LaunchError::invalid("set environment", shown(), "has a byte of value zero")),
    }
}

/// Where execvp(3) would look, by the container's own PATH.
fn candidates(name: &str, env: &[CString]) -> Result<Vec<CString>, LaunchError> {
    if name.contains('/') {
        return Ok(vec![c_string("exec", name)?]);
    }
    let path = env.iter().rev().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH.as_bytes())
        .split(|byte| *byte == b':')
        .map(|folder| {
            let folder = if folder.is_empty() { b"." } else { folder };
            let candidate = [folder, b"/", name.as_bytes()].concat();
            CString::new(candidate).map_err(|_| LaunchError::invalid("exec", name, "has a byte of value zero"))
        })
        .collect()
}

/// A descriptor above 2, so that setting one stream overwrites no other.
fn above(fd: OwnedFd) -> Result<OwnedFd, LaunchError> {
    use std::os::fd::AsRawFd;
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, 3).map_err(|errno| LaunchError::system("set standard streams", "", errno))
}

/// Which streams are pipes or sockets: they are the container's alone, so a user other than root may be given them and open
/// `/dev/stdout`. Never a device: its inode is the host's.
fn pipes(streams: &[OwnedFd; 3]) -> u8 {
    let mut which = 0;
    for (bit, fd) in [1, 2, 4].into_iter().zip(streams) {
        let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
            which |= bit;
        }
    }
    which
}

fn rlimit(limit: &Rlimit) -> Result<Op, LaunchError> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let known = limit.kind.strip_prefix("RLIMIT_").and_then(|name| (0..).zip(NAMES).find(|(_, known)| *known == name));
    let Some((resource, _)) = known else {
        return Err(LaunchError::invalid("set resource limit", &limit.kind, "no such limit"));
    };
    if limit.soft > limit.hard {
        return Err(LaunchError::invalid("set resource limit", &limit.kind, "the soft limit is above the hard one"));
    }
    let name = format!("{} {}:{}", limit.kind, limit.soft, limit.hard);
    Ok(Op::Rlimit { resource, soft: limit.soft, hard: limit.hard, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_looked_for_by_the_last_path() {
        let env = [c"PATH=/a".to_owned(), c"PATH=/x::/y".to_owned()];
        let found = candidates("sh", &env).unwrap();
        assert_eq!(found, [c"/x/sh".to_owned(), c"./sh".to_owned(), c"/y/sh".to_owned()]);
        assert_eq!(candidates("./sh", &env).unwrap(), [c"./sh".to_owned()]);
        assert_eq!(candidates("sh", &[]).unwrap().len(), 6);
    }

    #[test]
    fn malformed_environments_are_refused() {
        for entry in [&b"NAME"[..], b"=x", b"", b"A=b\0c"] {
            assert!(variable(entry).is_err(), "{entry:?}");
        }
        assert_eq!(variable(b"A=\xff").unwrap().as_bytes(), b"A=\xff");
    }

    #[test]
    fn limits_are_numbered_as_the_kernel_does() {
        for (name, number) in [("RLIMIT_CPU", 0), ("RLIMIT_NOFILE", 7), ("RLIMIT_RTTIME", 15)] {
            let op = rlimit(&Rlimit { kind: name.into(), soft: 1, hard: 2 }).unwrap();
            assert!(matches!(op, Op::Rlimit { resource, .. } if resource == number));
        }
        assert!(rlimit(&Rlimit { kind: "RLIMIT_MAGIC".into(), soft: 1, hard: 2 }).is_err());
        assert!(rlimit(&Rlimit { kind: "RLIMIT_CPU".into(), soft: 3, hard: 2 }).is_err());
    }

    #[test]
    fn a_torn_filter_is_refused() {
        assert!(Filter::new(&[0; 12], None).is_err());
        assert!(Filter::new(&[], None).is_err());
        assert_eq!(Filter::new(&[0; 16], None).unwrap().program.len(), 2);
    }
}
