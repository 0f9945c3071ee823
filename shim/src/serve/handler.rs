//! A container made by another OCI runtime's command line (`runc`, `crun`, ..): the bundle, the commands, what they say when they fail.
//! Runs in the shim's only thread, which waits for each command, for a bounded time: a runtime that hangs is killed.
//! Owns the bundle (the run directory), the mount namespace that has its root filesystem, and the runtime's word for the container.
//! A container that shares one process of the runtime with others of its pod is in `lodging`.
//! Must never run a program by a name to be looked up, hand on an environment or a descriptor, or believe a runtime's silence: what
//! it made is found by the cgroup, and killed there.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_api::shim::{Failure, FailureKind, Handler, Launch};
use keelson_shim::cgroup::{Handle, Location};
use keelson_shim::launch::{self, ChildStdio, Created, Execed, Staging, mount_root};
use keelson_shim::spec::{Process, Spec};
use keelson_sys::namespace::{self, NamespaceKinds};
use keelson_sys::pidfd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;

use super::console::Console;
use super::{failure, record};

mod lodging;
mod null;

use lodging::Lodging;

/// How long each command may take: less than the daemon waits for the answer.
const CREATE: Duration = Duration::from_secs(50);
const COMMAND: Duration = Duration::from_secs(20);
/// Where the bundle's root filesystem is mounted, in this process's mount namespace alone.
const ROOTFS: &str = "rootfs";
/// What a runtime writes while it works; the errors of the last command.
const LOG: &str = "runtime.log";
const OUTPUT: &str = "runtime.out";
const PID_FILE: &str = "init.pid";
/// Longest error text that is passed on, bytes.
const WORDS_MAX: usize = 2048;
/// Runtimes look for their helpers by it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A runtime and the one container that it has made here.
pub(super) struct Runtime {
    id: String,
    /// For messages.
    name: String,
    program: PathBuf,
    /// What stands before every command.
    options: Vec<String>,
    /// The container has no process of its own that could be waited for.
    lodging: Option<Lodging>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Said(String),
    #[error("it did not end within {0:?} and was killed")]
    Hangs(Duration),
    #[error("it succeeded and left no process id in {0}")]
    NoPid(&'static str),
}

impl Runtime {
    pub(super) fn new(id: &str, handler: &Handler, systemd_cgroup: bool) -> Runtime {
        let mut options: Vec<String> =
            ["--root", &handler.root, "--log", LOG, "--log-format", "json"].map(str::to_owned).into();
        if systemd_cgroup {
            options.push("--systemd-cgroup".to_owned());
        }
        options.extend(handler.options.iter().cloned());
        let program = PathBuf::from(&handler.program);
        Runtime { id: id.to_owned(), name: handler.name.clone(), program, options, lodging: None }
    }

    /// Makes the container; its init waits before exec.
    pub(super) fn create(&mut self, call: &Launch, spec: &Spec, stdio: ChildStdio) -> Result<Created, Failure> {
        let system = |act, object: &str| {
            let object = object.to_owned();
            move |errno: Errno| failure(act, &object, FailureKind::System, &errno)
        };
        let cgroups_path = spec.linux.as_ref().map(|linux| linux.cgroups_path.clone()).unwrap_or_default();
        let cgroup = Location::parse(&cgroups_path, call.systemd_cgroup)
            .and_then(|location| Handle::at(&location))
            .map_err(|error| failure("find cgroup", &cgroups_path, FailureKind::Invalid, &error))?;
        // Mounts of the host still arrive here, ours never arrive there, and all go with this process.
        namespace::unshare(NamespaceKinds::MOUNT)
            .map_err(|error| failure("make mount namespace", "", FailureKind::System, &error))?;
        let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).map_err(system("make mounts private", "/"))?;
        let place = call.handler.as_ref().map(|handler| handler.place.as_str()).unwrap_or_default();
        if !place.is_empty() {
            launch::stage(&Staging {
                place: Path::new(place),
                bundle: Path::new("."),
                spec,
                overlay: super::container::overlay(call, spec).as_ref(),
                image_volumes: &super::container::images(call),
                volumes: &call.volumes,
                resolved_sources: &call.resolved_sources,
            })
            .map_err(|error| Failure::from(&error))?;
        } else if let Some(overlay) = super::container::overlay(call, spec) {
            match rustix::fs::mkdir(ROOTFS, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(system("make folder", ROOTFS)(errno)),
            }
            let label = spec.linux.as_ref().map_or("", |linux| linux.mount_label.as_str());
            mount_root(&overlay, label, Path::new(ROOTFS), &call.volumes).map_err(|error| Failure::from(&error))?;
        }
        let (console, streams) = console("init", stdio).map_err(system("make console socket", ""))?;
        let again = lodging::copies(&streams).map_err(system("copy standard streams", ""))?;
        let mut arguments = vec!["create", "--bundle", ".", "--pid-file", PID_FILE];
        arguments.extend(console.iter().flat_map(|console| ["--console-socket", console.path()]));
        arguments.push(&self.id);
        let made = self.run(&arguments, streams, CREATE).and_then(|()| self.adopt(&cgroup, again));
        let made = made.and_then(|mut created| {
            if self.is_lodged() && console.is_some() {
                return Err(failure("make terminal", "", FailureKind::Unsupported, &lodging::NoTerminal));
            }
            created.terminal = receive(console, &self.name)?;
            Ok(created)
        });
        if made.is_err() {
            self.delete();
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
        made
    }

    fn adopt(&mut self, cgroup: &Handle, streams: [OwnedFd; 3]) -> Result<Created, Failure> {
        let (pid, init) = self.process(PID_FILE)?;
        if lodging::is_anothers(&init) {
            self.lodging = Some(Lodging::new(pid, streams));
            return Ok(Created::elsewhere(pid, init, cgroup.clone()));
        }
        // Where the runtime knows fewer hierarchies than this machine has, the container's cgroup is completed while it waits.
        cgroup.adopt(pid).map_err(|error| failure("complete cgroup", "", FailureKind::System, &error))?;
        Ok(Created::elsewhere(pid, init, cgroup.clone()))
    }

    /// Lets the init exec.
    pub(super) fn start(&mut self, created: &mut Created) -> Result<(), Failure> {
        match self.lodging.as_ref().and_then(Lodging::streams) {
            Some(streams) => self.run(&["start", &self.id], streams, COMMAND)?,
            None => self.command(&["start", &self.id])?,
        }
        self.await_lodger(created)
    }

    /// Sends a signal to the init.
    pub(super) fn kill(&self, signal: i32) -> Result<(), Failure> {
        self.command(&["kill", &self.id, &signal.to_string()])
    }

    /// Makes the runtime forget the container. Everything in it is dead or dying.
    pub(super) fn delete(&self) {
        // Without a container of this name there is nothing to forget, and runtimes do not agree on whether that is an error.
        let _ = self.command(&["delete", "--force", &self.id]);
    }

    /// Adds a process; it is put into a cgroup of its own as soon as it is known.
    pub(super) fn exec(
        &self,
        cgroup: &Handle,
        exec_id: &str,
        process: &Process,
        stdio: ChildStdio,
    ) -> Result<Execed, Failure> {
        let (description, pid_file) = (format!("exec-{exec_id}.json"), format!("exec-{exec_id}.pid"));
        let inner = format!("exec-{exec_id}.inner");
        let system = |act: &'static str| move |errno: Errno| failure(act, "", FailureKind::System, &errno);
        let leaf = cgroup.leaf(exec_id).map_err(|error| failure("create cgroup", "", FailureKind::System, &error))?;
        let run = || {
            let text = serde_json::to_vec(process).unwrap_or_default();
            record::put(&description, &text).map_err(system("write process description"))?;
            let (console, streams) = console(exec_id, stdio).map_err(system("make console socket"))?;
            let mut arguments = vec!["exec", "--detach", "--process", &description, "--pid-file", &pid_file];
            if self.lodging.is_some() {
                arguments.extend(["--internal-pid-file", &inner]);
            }
            arguments.extend(console.iter().flat_map(|console| ["--console-socket", console.path()]));
            arguments.push(&self.id);
            self.run(&arguments, streams, COMMAND)?;
            let (pid, pidfd) = self.process(&pid_file)?;
            let terminal = receive(console, &self.name);
            leaf.adopt(pid).map_err(|error| failure("use cgroup", "", FailureKind::System, &error))?;
            Ok((pid, pidfd, terminal?))
        };
        let made = run();
        for file in [&description, &pid_file] {
            let _ = rustix::fs::unlink(file.as_str());
        }
        match made {
            Ok((pid, pidfd, terminal)) => {
                self.remember_exec(pid, &inner);
                Ok(Execed { pid, pidfd, leaf, terminal })
            }
            Err(failure) => {
                let _ = rustix::fs::unlink(inner.as_str());
                let _ = leaf.kill();
                let _ = leaf.remove();
                Err(failure)
            }
        }
    }

    /// A command that says nothing on the container's streams.
    fn command(&self, arguments: &[&str]) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let streams = || -> rustix::io::Result<[OwnedFd; 3]> {
            let output = rustix::fs::open(OUTPUT, flags, Mode::from_raw_mode(0o600))?;
            Ok([null::own()?, rustix::io::fcntl_dupfd_cloexec(&output, 3)?, output])
        };
        let streams = streams().map_err(|errno| failure("open file", OUTPUT, FailureKind::System, &errno))?;
        self.run(arguments, streams, COMMAND)
    }

    fn run(&self, arguments: &[&str], streams: [OwnedFd; 3], limit: Duration) -> Result<(), Failure> {
        let _ = rustix::fs::unlink(LOG);
        let spawned = self.spawn(arguments, &streams)?;
        drop(streams);
        let failed = |kind, error: &(dyn std::error::Error + 'static)| self.failed(arguments, kind, error);
        match pidfd::wait_at_most(&spawned.pidfd, limit) {
            Ok(Some(pidfd::Exit::Code(0))) => Ok(()),
            Ok(Some(exit)) => {
                let said = said().unwrap_or_else(|| format!("exit code {}", exit.code()));
                Err(failed(kind(&said), &Trouble::Said(said)))
            }
            Ok(None) => Err(failed(FailureKind::System, &Trouble::Hangs(limit))),
            Err(errno) => Err(failed(FailureKind::System, &errno)),
        }
    }

    fn failed(&self, arguments: &[&str], kind: FailureKind, error: &(dyn std::error::Error + 'static)) -> Failure {
        let act = format!("{} {}", self.name, arguments.first().copied().unwrap_or_default());
        failure(&act, &self.program.display().to_string(), kind, error)
    }

    /// Starts a command.
    fn spawn(&self, arguments: &[&str], streams: &[OwnedFd; 3]) -> Result<keelson_sys::spawn::Spawned, Failure> {
        let failed = |kind, error: &(dyn std::error::Error + 'static)| self.failed(arguments, kind, error);
        let words = self.options.iter().map(String::as_str).chain(arguments.iter().copied());
        let argv = std::iter::once(CString::new(self.program.as_os_str().as_bytes())).chain(words.map(CString::new));
        let argv: Vec<CString> =
            argv.collect::<Result<_, _>>().map_err(|error| failed(FailureKind::Invalid, &error))?;
        let env = [CString::new(PATH).unwrap_or_default(), CString::new("LANG=C.UTF-8").unwrap_or_default()];
        let spawned = || {
            let file = rustix::fs::open(&self.program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let cwd = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            keelson_sys::spawn::spawn(&keelson_sys::spawn::Program {
                file: file.as_fd(),
                argv: &argv,
                env: &env,
                cwd: cwd.as_fd(),
                stdio: [streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()],
            })
        };
        spawned().map_err(|errno| failed(FailureKind::System, &errno))
    }

    /// The process whose id the runtime has written.
    fn process(&self, file: &str) -> Result<(i32, OwnedFd), Failure> {
        let pid = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let pid = pid.ok_or_else(|| {
            failure(
                &self.name,
                &self.program.display().to_string(),
                FailureKind::System,
                &Trouble::NoPid("its pid file"),
            )
        })?;
        let opened = pidfd::open(pid);
        Ok((pid, opened.map_err(|errno| failure("open process", &pid.to_string(), FailureKind::System, &errno))?))
    }
}

/// A socket for a terminal's master, and the streams for the command.
fn console(name: &str, stdio: ChildStdio) -> rustix::io::Result<(Option<Console>, [OwnedFd; 3])> {
    match stdio {
        ChildStdio::Fds { stdin, stdout, stderr } => {
            Ok((None, [null::instead(stdin)?, null::instead(stdout)?, null::instead(stderr)?]))
        }
        ChildStdio::Terminal => Ok((Some(Console::listen(name)?), [null::own()?, null::own()?, null::own()?])),
    }
}

fn receive(console: Option<Console>, name: &str) -> Result<Option<OwnedFd>, Failure> {
    let received = console.map(Console::receive).transpose();
    received.map_err(|errno| failure("receive terminal", name, FailureKind::System, &errno))
}

/// The last command's error: of its log, else what it said on its own streams.
fn said() -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
    }
    let text = String::from_utf8_lossy(&std::fs::read(LOG).unwrap_or_default()).into_owned();
    let entries: Vec<Entry> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_error = |entry: &&Entry| matches!(entry.level.as_str(), "error" | "fatal" | "panic");
    let found = entries.iter().rev().find(is_error).or(entries.last()).map(|entry| entry.msg.clone());
    let plain = || Some(text.clone()).filter(|text| !text.trim().is_empty());
    let output = || std::fs::read(OUTPUT).ok().map(|output| String::from_utf8_lossy(&output).into_owned());
    let mut words = found.or_else(plain).or_else(output)?.trim().to_owned();
    if let Some((cut, _)) = words.char_indices().find(|(at, _)| *at >= WORDS_MAX) {
        words.truncate(cut);
    }
    Some(words).filter(|words| !words.is_empty())
}

/// A program that is not there is the request's fault, as with our own launcher.
fn kind(said: &str) -> FailureKind {
    let missing = ["no such file or directory", "executable file not found", "not found in $PATH", "permission denied"];
    let lower = said.to_lowercase();
    if lower.contains("exec") && missing.iter().any(|words| lower.contains(words)) {
        FailureKind::Invalid
    } else {
        FailureKind::System
    }
}
