//! `exec`: a further process in a running container, described by a file or by arguments.
//! One process; it stays until the other ends, unless detached.
//! Owns the leaf cgroup of the exec while it stays; a detached one's goes with the container.
//! Must never give the process more than the container's own has, unless a description says so.

use std::path::PathBuf;
use std::process::ExitCode;

use keelson_shim::cgroup::Handle;
use keelson_shim::launch::{self, ChildStdio, ExecRequest, ExecTarget};
use keelson_shim::spec::{Process, Spec};
use keelson_sys::pidfd;
use lexopt::{Arg, Parser, ValueExt as _};
use rustix::process::Signal;

use super::error::{OciError, file};
use super::folder::{Folder, Status, put};
use super::{Global, console, flag, foreground, process, sealed};
use crate::clock;

/// What the arguments say.
#[derive(Default)]
struct Options {
    process: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    detach: bool,
    terminal: bool,
    no_new_privileges: bool,
    cwd: Option<String>,
    user: Option<String>,
    groups: Vec<u32>,
    env: Vec<String>,
    capabilities: Vec<String>,
    arguments: Vec<String>,
}

pub(super) fn exec(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let (id, options) = options(parser)?;
    sealed::ensure()?;
    let folder = Folder::of(&global.root, &id)?;
    let record = folder.record()?;
    let status = folder.status(&record);
    if status != Status::Running {
        return Err(OciError::NotRunning { verb: "exec in", id, status });
    }
    let spec = folder.spec()?;
    let described = describe(&options, &spec)?;
    if options.console_socket.is_some() && !described.terminal {
        return Err(OciError::Invalid("--console-socket is given, but no terminal is asked for".to_owned()));
    }
    if described.terminal && options.console_socket.is_none() && !foreground::has_terminal() {
        return Err(OciError::Invalid("a terminal needs --console-socket, or a terminal as stdin".to_owned()));
    }
    let seccomp = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref()).map(keelson_shim::seccomp::compile);
    let seccomp = seccomp.transpose().map_err(|error| OciError::Invalid(error.to_string()))?;
    let streams =
        if described.terminal { ChildStdio::Terminal } else { process::own_streams(Some(&described), &spec)? };
    let cgroup = Handle::open(&record.cgroup)?;
    let target = ExecTarget::open(record.pid, record.start_time, &cgroup, &spec)?;
    let signals = foreground::hold_signals()?;
    let execed = launch::exec(ExecRequest {
        target: &target,
        process: &described,
        env: None,
        // Unique among the execs of a container: two processes at one moment have two pids.
        exec_id: &format!("{}-{}", std::process::id(), clock::now()),
        seccomp: seccomp.as_ref().map(keelson_shim::seccomp::Program::as_bytes),
        clamp_oom_score: true,
        stdio: streams,
    })?;
    let told = || {
        if let (Some(master), Some(socket)) = (&execed.terminal, &options.console_socket) {
            console::send(master, socket)?;
        }
        options.pid_file.as_ref().map_or(Ok(()), |path| put(path, execed.pid.to_string().as_bytes(), 0o644))
    };
    if let Err(error) = told() {
        let _ = pidfd::send_signal(&execed.pidfd, Signal::KILL.as_raw());
        let _ = execed.leaf.kill();
        let _ = pidfd::wait(&execed.pidfd);
        let _ = execed.leaf.remove();
        return Err(error);
    }
    if options.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let relayed = execed.terminal.as_ref().filter(|_| options.console_socket.is_none());
    let code = foreground::wait(&execed.pidfd, &signals, relayed)?;
    // With something still running in it, it goes with the container.
    if execed.leaf.is_empty().unwrap_or(false) {
        let _ = execed.leaf.remove();
    }
    Ok(code)
}

fn options(parser: &mut Parser) -> Result<(String, Options), OciError> {
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("process") | Arg::Short('p') => options.process = Some(parser.value()?.into()),
            Arg::Long("pid-file") => options.pid_file = Some(parser.value()?.into()),
            Arg::Long("console-socket") => options.console_socket = Some(parser.value()?.into()),
            Arg::Long("detach") | Arg::Short('d') => options.detach = flag(parser)?,
            Arg::Long("tty") | Arg::Short('t') => options.terminal = flag(parser)?,
            Arg::Long("no-new-privs") => options.no_new_privileges = flag(parser)?,
            Arg::Long("ignore-paused" | "no-subreaper") => {
                flag(parser)?;
            }
            Arg::Long("cwd") => options.cwd = Some(parser.value()?.string()?),
            Arg::Long("user") | Arg::Short('u') => options.user = Some(parser.value()?.string()?),
            Arg::Long("additional-gids") | Arg::Short('g') => options.groups.push(number(&parser.value()?.string()?)?),
            Arg::Long("env") | Arg::Short('e') => options.env.push(parser.value()?.string()?),
            Arg::Long("cap") | Arg::Short('c') => options.capabilities.push(parser.value()?.string()?),
            Arg::Long("preserve-fds") => process::refuse_preserved(&parser.value()?.string()?)?,
            Arg::Value(id) => {
                // What follows the id is the program and its own arguments.
                for argument in parser.raw_args()? {
                    options.arguments.push(argument.string()?);
                }
                return Ok((id.string()?, options));
            }
            other @ (Arg::Short(_) | Arg::Long(_)) => return Err(other.unexpected().into()),
        }
    }
    Err(OciError::Usage("the container's id is missing".to_owned()))
}

/// The process to run: the file's, or the container's own with what the arguments change.
fn describe(options: &Options, spec: &Spec) -> Result<Process, OciError> {
    if let Some(path) = &options.process {
        let text = std::fs::read(path).map_err(file("read", path))?;
        let mut described: Process =
            serde_json::from_slice(&text).map_err(|source| OciError::Json { path: path.clone(), source })?;
        described.terminal |= options.terminal;
        return Ok(described);
    }
    let mut described = spec.process.clone().unwrap_or_default();
    if options.arguments.is_empty() {
        return Err(OciError::Usage("which program? Name one, or give --process".to_owned()));
    }
    described.args.clone_from(&options.arguments);
    described.terminal = options.terminal;
    described.no_new_privileges |= options.no_new_privileges;
    described.env.extend(options.env.iter().cloned());
    if let Some(cwd) = &options.cwd {
        described.cwd.clone_from(cwd);
    }
    if let Some(user) = &options.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        described.user.uid = number(uid)?;
        described.user.gid = gid.map_or(Ok(0), number)?;
    }
    described.user.additional_gids.extend(&options.groups);
    if !options.capabilities.is_empty() {
        let sets = described.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(options.capabilities.iter().cloned());
        }
    }
    Ok(described)
}

/// A user or group: plain decimal, and nothing else (CVE-2026-30892).
fn number(text: &str) -> Result<u32, OciError> {
    let plain =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    // The highest number means "leave as it is" to the kernel.
    let number = text.parse::<u32>().ok().filter(|number| plain && *number < u32::MAX);
    number.ok_or_else(|| OciError::Usage(format!("`{text}` is no user or group number; names are not looked up")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_plain_numbers() {
        for text in
            ["", "-1", "+1", "0x0", "00", "01", "1 ", " 1", "1a", "root", "4294967295", "4294967296", "99999999999"]
        {
            assert!(number(text).is_err(), "{text:?}");
        }
        assert_eq!([number("0").unwrap(), number("1").unwrap(), number("4294967294").unwrap()], [0, 1, 4_294_967_294]);
    }

    #[test]
    fn arguments_change_the_containers_own_process() {
        let process = Process { env: vec!["A=1".into()], cwd: "/".into(), ..Process::default() };
        let spec = Spec { process: Some(process), ..Spec::default() };
        let options = Options {
            arguments: vec!["id".into()],
            user: Some("1:2".into()),
            env: vec!["B=2".into()],
            ..Options::default()
        };
        let described = describe(&options, &spec).unwrap();
        assert_eq!((described.user.uid, described.user.gid), (1, 2));
        assert_eq!(
            (described.env, described.args, described.cwd),
            (vec!["A=1".into(), "B=2".into()], vec!["id".into()], "/".into())
        );
        assert!(describe(&Options::default(), &spec).is_err());
    }
}
