//! A launched container as its supervisor holds it: the init, its cgroup, its streams, and what an exec needs to know.
//! Runs in the shim's only thread; launching blocks for the milliseconds that takes.
//! Owns the init's pidfd, the cgroup, the log, the pipes, and the process description that execs copy. The spec is dropped.
//! Must never leave a cgroup or a process behind when it fails: the launcher undoes what it did.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use keelson_api::shim::{Failure, FailureKind, Launch};
use keelson_shim::launch::{
    self, CreateRequest, Created, ExecRequest, ExecTarget, Execed, Gate, ImageVolume, OverlayRootfs,
};
use keelson_shim::spec::Spec;
use rustix::io;

use super::failure;
use super::handler::Runtime;
use super::log::{Log, Stream};
use super::output::Output;
use super::streams::{InitStreams, Ours, Wanted, max_line, nonblocking};
use super::template::Template;
use crate::owner;

/// A container.
pub(super) struct Container {
    pub(super) created: Created,
    maker: Maker,
    /// What execs run as; absent when the init is the built-in one.
    template: Option<Template>,
    seccomp: Box<[u8]>,
    clamp_oom_score: bool,
    /// What the cgroup above had counted of the kernel's kills when this one was made.
    pub(super) oom_above: Option<u64>,
    /// Host user and group of the process: its pipes are theirs.
    owner: (u32, u32),
    pub(super) log: Option<Log>,
    /// Streams that have not come to their end.
    pub(super) outputs: Vec<Output>,
    stdin: Stdin,
}

/// Who has made the container, and adds processes to it.
enum Maker {
    /// Our own launcher.
    Launcher(Box<ExecTarget>),
    /// Another runtime's command line.
    Runtime(Box<Runtime>),
}

/// The way into the init.
enum Stdin {
    /// None, or used up.
    Closed,
    /// Writing end of a pipe.
    Pipe(OwnedFd),
    /// Writing end of a pipe that goes to the first who asks, and ends with it.
    PipeOnce(OwnedFd),
    /// The terminal's master, which is the output.
    Terminal,
}

impl Container {
    /// Makes the container; its init waits just before exec.
    pub(super) fn launch(id: &str, mut call: Launch) -> Result<Container, Failure> {
        let spec: Spec = serde_json::from_slice(&call.spec)
            .map_err(|error| failure("read spec", "", FailureKind::Invalid, &error))?;
        call.spec = Vec::new();
        let mut runtime = call.handler.as_ref().map(|handler| Box::new(Runtime::new(id, handler, call.systemd_cgroup)));
        let seccomp = match &runtime {
            // It compiles the profile of the spec.
            Some(_) => Vec::new(),
            None => seccomp(std::mem::take(&mut call.seccomp), &spec)?,
        };
        let log = match call.stdio.as_ref().map(|stdio| stdio.log_path.as_str()) {
            None | Some("") => None,
            Some(path) => Some(
                Log::open(Path::new(path)).map_err(|error| failure("open log", path, FailureKind::System, &error))?,
            ),
        };
        let streams = InitStreams::open(call.stdio.as_ref(), &spec)
            .map_err(|errno| failure("make standard streams", "", FailureKind::System, &errno))?;
        let mut created = match &mut runtime {
            Some(runtime) => runtime.create(&call, &spec, streams.child)?,
            None => create(id, &call, &spec, &seccomp, streams.child)?,
        };
        let mut outputs = streams.outputs;
        let once = call.stdio.as_ref().is_some_and(|stdio| stdio.stdin_once);
        let mut stdin = match streams.stdin {
            None => Stdin::Closed,
            Some(writer) if once => Stdin::PipeOnce(writer),
            Some(writer) => Stdin::Pipe(writer),
        };
        if let Some(master) = created.terminal.take() {
            if let Err(errno) = nonblocking(&master) {
                undo(&created, runtime.as_deref());
                return Err(failure("use terminal", "", FailureKind::System, &errno));
            }
            stdin = Stdin::Terminal;
            outputs.push(Output::new(Stream::Stdout, master, max_line(call.stdio.as_ref())));
        }
        let maker = match runtime {
            Some(runtime) => Maker::Runtime(runtime),
            None => Maker::Launcher(Box::new(created.exec_target(&spec).map_err(|error| {
                undo(&created, None);
                Failure::from(&error)
            })?)),
        };
        let owner = owner::on_host(spec.process.as_ref(), &spec);
        Ok(Container {
            oom_above: created.cgroup.oom_kills_above(),
            created,
            maker,
            template: spec.process.as_ref().map(|process| Template::fold(process, &call.env)),
            seccomp: seccomp.into(),
            clamp_oom_score: call.clamp_oom_score,
            owner,
            log,
            outputs,
            stdin,
        })
    }

    /// A restored process is the init from now on; the one that waited ends.
    pub(super) fn take_init(&mut self, pid: i32, pidfd: OwnedFd, spec: &Spec) -> Result<(), Failure> {
        self.created.replace_init(pid, pidfd);
        let target = self.created.exec_target(spec).map_err(|error| Failure::from(&error))?;
        self.maker = Maker::Launcher(Box::new(target));
        Ok(())
    }

    /// Lets the init exec the user's program.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        match &mut self.maker {
            Maker::Launcher(_) => self.created.start().map_err(|error| Failure::from(&error)),
            Maker::Runtime(runtime) => runtime.start(&mut self.created),
        }
    }

    /// The host process to look for the container in.
    pub(super) fn pid(&self) -> i32 {
        self.lodger().map_or(self.created.pid, Runtime::host)
    }

    /// The runtime of a container that shares a process with others of its pod.
    fn lodger(&self) -> Option<&Runtime> {
        match &self.maker {
            Maker::Runtime(runtime) if runtime.is_lodged() => Some(runtime),
            Maker::Runtime(_) | Maker::Launcher(_) => None,
        }
    }

    /// Whether no child of this process tells of the container's end.
    pub(super) fn ends_unseen(&self) -> bool {
        self.lodger().is_some_and(|runtime| !runtime.is_awaited())
    }

    /// How the container ended, when the child that tells of it has ended so.
    pub(super) fn exit(&self, exit: keelson_sys::pidfd::Exit) -> keelson_sys::pidfd::Exit {
        self.lodger().map_or(exit, Runtime::told)
    }

    /// Whether its init would not hear this signal now.
    pub(super) fn is_deaf(&self, signal: i32) -> bool {
        // What a lodger hears, its runtime alone knows.
        self.lodger().is_none() && super::unheard::is_deaf(self.created.pid, signal)
    }

    /// Kills what an exec has started.
    pub(super) fn kill_exec(&self, exec: &super::exec::Exec) {
        if let Some(runtime) = self.lodger() {
            runtime.kill_exec(exec.pid);
        }
        if let Err(error) = exec.leaf.kill() {
            super::complain(&error);
        }
    }

    /// An exec is over.
    pub(super) fn forget_exec(&self, pid: i32) {
        if let Some(runtime) = self.lodger() {
            runtime.forget_exec(pid);
        }
    }

    /// Another runtime has made it: what only our own launcher can do is refused.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self.maker, Maker::Runtime(_))
    }

    /// Gives back what is left when every process is gone.
    pub(super) fn remove(&self) {
        if let Maker::Runtime(runtime) = &self.maker {
            runtime.delete();
        }
        if let Err(error) = self.created.cgroup.remove() {
            super::complain(&error);
        }
    }

    /// Runs `args` as the init's user, with its environment, rights and limits; returns it with our ends of its streams.
    pub(super) fn exec(&self, exec_id: &str, args: Vec<String>, wanted: Wanted) -> Result<(Execed, Ours), Failure> {
        let Some(template) = &self.template else {
            return Err(failure("exec", exec_id, FailureKind::State, &NoProcess));
        };
        let (mut process, env) =
            template.unfold(args, wanted).map_err(|error| failure("exec", exec_id, FailureKind::System, &error))?;
        let (stdio, mut ours) = wanted
            .open(self.owner)
            .map_err(|errno| failure("make standard streams", "", FailureKind::System, &errno))?;
        let mut execed = match &self.maker {
            Maker::Launcher(target) => launch::exec(ExecRequest {
                target,
                process: &process,
                env: (!env.is_empty()).then_some(env.as_slice()),
                exec_id,
                seccomp: (!self.seccomp.is_empty()).then_some(&self.seccomp),
                clamp_oom_score: self.clamp_oom_score,
                stdio,
            })
            .map_err(|error| Failure::from(&error))?,
            Maker::Runtime(runtime) => {
                if !env.is_empty() {
                    process.env = env.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
                }
                runtime.exec(&self.created.cgroup, exec_id, &process, stdio)?
            }
        };
        ours.terminal = execed.terminal.take();
        if let Some(Err(errno)) = ours.terminal.as_ref().map(nonblocking) {
            let _ = execed.leaf.kill();
            return Err(failure("use terminal", "", FailureKind::System, &errno));
        }
        Ok((execed, ours))
    }

    /// A way into the init for an attach session: its terminal in any case (it has a size), or the pipe to its stdin.
    pub(super) fn enter(&mut self, stdin: bool) -> io::Result<Ours> {
        match &self.stdin {
            Stdin::Terminal => {
                let master = self.outputs.first().map(|output| rustix::io::fcntl_dupfd_cloexec(output.as_fd(), 3));
                Ok(Ours { terminal: master.transpose()?, ..Ours::default() })
            }
            Stdin::Pipe(writer) if stdin => {
                Ok(Ours { stdin: Some(rustix::io::fcntl_dupfd_cloexec(writer, 3)?), ..Ours::default() })
            }
            Stdin::PipeOnce(_) if stdin => match std::mem::replace(&mut self.stdin, Stdin::Closed) {
                Stdin::PipeOnce(writer) => Ok(Ours { stdin: Some(writer), ..Ours::default() }),
                Stdin::Closed | Stdin::Pipe(_) | Stdin::Terminal => Ok(Ours::default()),
            },
            Stdin::Closed | Stdin::Pipe(_) | Stdin::PipeOnce(_) => Ok(Ours::default()),
        }
    }

    /// Whether more may come on this stream.
    pub(super) fn speaks(&self, stream: Stream) -> bool {
        self.outputs.iter().any(|output| output.stream == stream)
    }

    /// Sends a signal to the init, or to every process. Processes that have ended meanwhile are no failure.
    pub(super) fn signal(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let failed = |errno: &io::Errno| failure("send signal", &signal.to_string(), FailureKind::System, errno);
        if !(1..=64).contains(&signal) {
            return Err(failure("send signal", &signal.to_string(), FailureKind::Invalid, &NoSignal));
        }
        if let Some(runtime) = self.lodger() {
            return runtime.signal(signal, all);
        }
        let targets = match (all, signal == rustix::process::Signal::KILL.as_raw()) {
            (false, false) if self.is_foreign() => {
                let Maker::Runtime(runtime) = &self.maker else { return Ok(()) };
                return runtime.kill(signal).or_else(|failure| match self.ended() {
                    true => Ok(()),
                    false => Err(failure),
                });
            }
            (false, _) => {
                return ended_is_fine(keelson_sys::pidfd::send_signal(&self.created.pidfd, signal))
                    .map_err(|e| failed(&e));
            }
            (true, true) => {
                let killed = self.created.cgroup.kill();
                return killed.map_err(|error| failure("kill cgroup", "", FailureKind::System, &error));
            }
            (true, false) => self.created.cgroup.pids(),
        };
        let targets = targets.map_err(|error| failure("list processes", "", FailureKind::System, &error))?;
        for pid in targets {
            let sent = keelson_sys::pidfd::open(pid).and_then(|pidfd| keelson_sys::pidfd::send_signal(&pidfd, signal));
            ended_is_fine(sent).map_err(|errno| failed(&errno))?;
        }
        Ok(())
    }

    fn ended(&self) -> bool {
        keelson_sys::pidfd::send_signal(&self.created.pidfd, 0).is_err()
    }

    /// Kills every process of the container, whichever way works.
    pub(super) fn kill(&self) {
        if let Some(runtime) = self.lodger()
            && runtime.kill_lodger()
        {
            return;
        }
        if let Err(error) = self.created.cgroup.kill() {
            super::complain(&error);
        }
        if !self.ends_unseen() {
            let _ = keelson_sys::pidfd::send_signal(&self.created.pidfd, rustix::process::Signal::KILL.as_raw());
        }
    }
}

/// The root filesystem that the daemon asks for.
pub(super) fn overlay(call: &Launch, spec: &Spec) -> Option<OverlayRootfs> {
    let overlay = call.overlay.as_ref()?;
    Some(OverlayRootfs {
        lower: overlay.lower.iter().map(PathBuf::from).collect(),
        upper: overlay.upper.clone().into(),
        work: overlay.work.clone().into(),
        // The daemon discards writable layers of a boot that is over.
        volatile: true,
        // Layers hold the ids of the container.
        idmapped: spec.linux.as_ref().is_some_and(|linux| !linux.uid_mappings.is_empty()),
    })
}

/// The images that the daemon asks for.
pub(super) fn images(call: &Launch) -> Vec<ImageVolume> {
    let image = |volume: &keelson_api::shim::ImageVolume| ImageVolume {
        destination: volume.destination.clone(),
        lower: volume.lower.iter().map(PathBuf::from).collect(),
        sub_path: volume.sub_path.clone(),
    };
    call.image_volumes.iter().map(image).collect()
}

/// By our own launcher.
fn create(id: &str, call: &Launch, spec: &Spec, seccomp: &[u8], stdio: launch::ChildStdio) -> Result<Created, Failure> {
    let bundle =
        std::env::current_dir().map_err(|error| failure("find run directory", "", FailureKind::System, &error))?;
    let images = images(call);
    launch::create(CreateRequest {
        id,
        bundle: &bundle,
        spec,
        env: (!call.env.is_empty()).then_some(call.env.as_slice()),
        overlay: overlay(call, spec).as_ref(),
        volumes: &call.volumes,
        image_volumes: &images,
        resolved_sources: &call.resolved_sources,
        seccomp: Some(seccomp).filter(|program| !program.is_empty()),
        systemd_cgroup: call.systemd_cgroup,
        builtin_init: call.builtin_init,
        clamp_oom_score: call.clamp_oom_score,
        no_pivot: false,
        stdio,
        gate: Gate::Creator,
    })
    .map_err(|error| Failure::from(&error))
}

#[derive(Debug, thiserror::Error)]
#[error("the built-in init takes no further processes")]
struct NoProcess;

#[derive(Debug, thiserror::Error)]
#[error("not a signal number (1 to 64)")]
struct NoSignal;

/// Ends and forgets a container that was made but cannot be used.
fn undo(created: &Created, runtime: Option<&Runtime>) {
    if let Some(runtime) = runtime.filter(|runtime| runtime.is_lodged()) {
        return runtime.delete();
    }
    let _ = keelson_sys::pidfd::send_signal(&created.pidfd, rustix::process::Signal::KILL.as_raw());
    let _ = created.cgroup.kill();
    let _ = keelson_sys::pidfd::wait(&created.pidfd);
    if let Some(runtime) = runtime {
        runtime.delete();
    }
    if let Err(error) = created.cgroup.remove() {
        super::complain(&error);
    }
}

fn ended_is_fine(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(io::Errno::SRCH) => Ok(()),
        other => other,
    }
}

fn seccomp(compiled: Vec<u8>, spec: &Spec) -> Result<Vec<u8>, Failure> {
    let profile = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
    match profile {
        Some(profile) if compiled.is_empty() => keelson_shim::seccomp::compile(profile)
            .map(keelson_shim::seccomp::Program::into_bytes)
            .map_err(|error| failure("compile seccomp profile", "", FailureKind::Invalid, &error)),
        Some(_) | None => Ok(compiled),
    }
}
