//! `create`, `start` and `run`.
//! `create` ends while the init waits at its socket; `start` is another process that lets it go; `run` does both and stays.
//! Owns a container from the taking of its id to the record; a failure on the way gives everything back.
//! Must never write the pid file before the record: who reads it may start at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use keelson_shim::launch::{self, ChildStdio, CreateRequest, Created, Gate, Point};
use keelson_shim::spec::Spec;
use lexopt::{Arg, Parser, ValueExt as _};

use super::error::{OciError, file, system};
use super::folder::{Folder, Record, Status, put};
use super::{Global, console, delete, devices, flag, foreground, only_id, process, sealed};
use crate::clock;

/// Options of `create` and `run`.
#[derive(Default)]
struct Options {
    id: String,
    bundle: PathBuf,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    no_pivot: bool,
    detach: bool,
    keep: bool,
}

/// A container with an init that waits.
struct Made {
    folder: Folder,
    created: Created,
}

pub(super) fn create(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let options = options(parser)?;
    sealed::ensure()?;
    make(&options, global, options.console_socket.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let options = options(parser)?;
    sealed::ensure()?;
    foreground::adopt_orphans()?;
    let signals = foreground::hold_signals()?;
    let made = make(&options, global, options.console_socket.as_deref())?;
    let undo = |error| {
        let _ = delete::destroy(&made.folder);
        error
    };
    start_folder(&made.folder).map_err(undo)?;
    if options.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let code = foreground::wait(&made.created.pidfd, &signals, made.created.terminal.as_ref()).map_err(undo)?;
    if !options.keep {
        delete::destroy(&made.folder)?;
    }
    Ok(code)
}

pub(super) fn start(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let folder = Folder::of(&global.root, &only_id(parser)?)?;
    start_folder(&folder)?;
    Ok(ExitCode::SUCCESS)
}

fn start_folder(folder: &Folder) -> Result<(), OciError> {
    let record = folder.record()?;
    match folder.status(&record) {
        Status::Created => {}
        status @ (Status::Running | Status::Stopped) => {
            return Err(OciError::Status { verb: "start", id: folder.id().to_owned(), status });
        }
    }
    let spec = folder.spec()?;
    if let Some(hooks) = spec.hooks.as_ref().filter(|hooks| !hooks.start_container.is_empty()) {
        let init = keelson_sys::pidfd::open(record.pid).map_err(system("open the container's init"))?;
        let state = folder.state(&record, Status::Created, &spec);
        launch::run_hooks_inside(Point::StartContainer, &hooks.start_container, &state, &init)?;
    }
    let stream = folder.connect()?;
    let started = launch::start_through(stream);
    folder.forget_socket();
    started?;
    if let Some(hooks) = &spec.hooks {
        launch::run_hooks(Point::Poststart, &hooks.poststart, &folder.state(&record, Status::Running, &spec))?;
    }
    Ok(())
}

fn options(parser: &mut Parser) -> Result<Options, OciError> {
    let mut options = Options { bundle: PathBuf::from("."), ..Options::default() };
    let mut id = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("bundle") | Arg::Short('b') => options.bundle = parser.value()?.into(),
            Arg::Long("pid-file") => options.pid_file = Some(parser.value()?.into()),
            Arg::Long("console-socket") => options.console_socket = Some(parser.value()?.into()),
            Arg::Long("no-pivot") => options.no_pivot = flag(parser)?,
            Arg::Long("detach") | Arg::Short('d') => options.detach = flag(parser)?,
            Arg::Long("keep") => options.keep = flag(parser)?,
            // No session keyring is made, and this process is a subreaper where it has to be.
            Arg::Long("no-new-keyring" | "no-subreaper") => {
                flag(parser)?;
            }
            Arg::Long("preserve-fds") => process::refuse_preserved(&parser.value()?.string()?)?,
            Arg::Value(value) if id.is_none() => id = Some(value.string()?),
            other @ (Arg::Value(_) | Arg::Short(_) | Arg::Long(_)) => return Err(other.unexpected().into()),
        }
    }
    options.id = id.ok_or_else(|| OciError::Usage("the container's id is missing".to_owned()))?;
    Ok(options)
}

fn make(options: &Options, global: &Global, console_socket: Option<&Path>) -> Result<Made, OciError> {
    let folder = Folder::of(&global.root, &options.id)?;
    let bundle = std::fs::canonicalize(&options.bundle).map_err(file("find bundle", &options.bundle))?;
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).map_err(file("read", &path))?;
    let mut spec: Spec = serde_json::from_slice(&text).map_err(|source| OciError::Json { path, source })?;
    devices::allow_common(&mut spec);
    let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
    match (terminal, console_socket) {
        (false, Some(_)) => {
            return Err(OciError::Invalid("--console-socket is given, but process.terminal is false".to_owned()));
        }
        (true, None) if !foreground::has_terminal() => {
            return Err(OciError::Invalid(
                "process.terminal needs --console-socket, or a terminal as stdin".to_owned(),
            ));
        }
        (true | false, _) => {}
    }
    folder.make()?;
    let make = || -> Result<Created, OciError> {
        folder.keep_spec(&text)?;
        let stdio = if terminal { ChildStdio::Terminal } else { process::own_streams(spec.process.as_ref(), &spec)? };
        let request = CreateRequest {
            id: &options.id,
            bundle: &bundle,
            spec: &spec,
            env: None,
            overlay: None,
            volumes: &[],
            image_volumes: &[],
            resolved_sources: &[],
            seccomp: None,
            systemd_cgroup: global.systemd_cgroup,
            builtin_init: false,
            clamp_oom_score: true,
            no_pivot: options.no_pivot,
            stdio,
            gate: Gate::Listener(folder.listen()?),
        };
        let created = launch::create(request)?;
        let finish = || finish(&folder, &created, &spec, &bundle, options, console_socket);
        match finish() {
            Ok(()) => Ok(created),
            Err(error) => {
                delete::end(&created.pidfd, &created.cgroup);
                Err(error)
            }
        }
    };
    match make() {
        Ok(created) => Ok(Made { folder, created }),
        Err(error) => {
            let _ = folder.remove();
            Err(error)
        }
    }
}

fn finish(
    folder: &Folder,
    created: &Created,
    spec: &Spec,
    bundle: &Path,
    options: &Options,
    console_socket: Option<&Path>,
) -> Result<(), OciError> {
    if let (Some(master), Some(socket)) = (&created.terminal, console_socket) {
        console::send(master, socket)?;
    }
    let root = spec.root.as_ref().map_or("", |root| root.path.as_str());
    folder.keep_record(&Record {
        version: 1,
        pid: created.pid,
        start_time: launch::start_time(created.pid)?,
        bundle: bundle.to_owned(),
        rootfs: bundle.join(root),
        created: String::from_utf8_lossy(&clock::format(clock::now())).into_owned(),
        cgroup: created.cgroup.paths(),
    })?;
    match &options.pid_file {
        Some(path) => put(path, created.pid.to_string().as_bytes(), 0o644),
        None => Ok(()),
    }
}
