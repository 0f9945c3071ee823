//! OCI hooks: programs of the operator, run at fixed points, told the container's state on their stdin.
//! In the shim or the OCI command line; blocks until a hook ends or its time is over.
//! Owns a hook's process: it is reaped, and killed when its time is over.
//! Must never run a hook with anything of this process's: no environment but its own, no descriptors, working directory the bundle.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use keelson_sys::child::{self, Capabilities, CloneOptions, Exec, Op, Strings};
use keelson_sys::namespace::NamespaceKinds;
use keelson_sys::pidfd::{self, Exit};
use keelson_sys::spawn::{self, Program};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::{LaunchError, c_string};
use crate::spec::{Hook, Hooks};

/// The state of a container as the specification defines it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    pub oci_version: String,
    pub id: String,
    pub status: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    pub bundle: PathBuf,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl ContainerState {
    /// `status` is `creating`, `created`, `running` or `stopped`; `pid` 0 when there is none.
    pub fn new(
        id: &str,
        status: &str,
        pid: i32,
        bundle: &Path,
        annotations: &BTreeMap<String, String>,
    ) -> ContainerState {
        ContainerState {
            oci_version: crate::spec::VERSION.to_owned(),
            id: id.to_owned(),
            status: status.to_owned(),
            pid,
            bundle: bundle.to_owned(),
            annotations: annotations.clone(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    fn step(self) -> &'static str {
        match self {
            Point::Prestart => "run prestart hook",
            Point::CreateRuntime => "run createRuntime hook",
            Point::CreateContainer => "run createContainer hook",
            Point::StartContainer => "run startContainer hook",
            Point::Poststart => "run poststart hook",
            Point::Poststop => "run poststop hook",
        }
    }
}

/// Whether `create` has to stop for hooks.
pub(super) fn any_before_start(hooks: &Hooks) -> bool {
    !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() || !hooks.create_container.is_empty()
}

/// Runs hooks in this process's namespaces, in order; the first failure ends it.
pub fn run_hooks(point: Point, hooks: &[Hook], state: &ContainerState) -> Result<(), LaunchError> {
    hooks.iter().try_for_each(|hook| run(point, hook, state, None))
}

/// Runs hooks in the namespaces of a container's init.
pub fn run_hooks_inside(
    point: Point,
    hooks: &[Hook],
    state: &ContainerState,
    init: &OwnedFd,
) -> Result<(), LaunchError> {
    hooks.iter().try_for_each(|hook| run(point, hook, state, Some(init)))
}

fn run(point: Point, hook: &Hook, state: &ContainerState, init: Option<&OwnedFd>) -> Result<(), LaunchError> {
    let step = point.step();
    let failed = |errno| LaunchError::system(step, &hook.path, errno);
    if !hook.path.starts_with('/') {
        return Err(LaunchError::invalid(step, &hook.path, "not an absolute path"));
    }
    let text = serde_json::to_vec(state).map_err(|error| LaunchError::invalid(step, &hook.path, error.to_string()))?;
    let stdin = keelson_sys::memfd::sealed_bytes(c"keelson-hook-state", &text).map_err(failed)?;
    rustix::fs::seek(&stdin, rustix::fs::SeekFrom::Start(0)).map_err(failed)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let strings = |list: &[String]| list.iter().map(|text| c_string(step, text)).collect::<Result<Vec<CString>, _>>();
    let argv = if hook.args.is_empty() { vec![c_string(step, &hook.path)?] } else { strings(&hook.args)? };
    let env = strings(&hook.env)?;
    let pidfd = match init {
        None => {
            let (program, argv) = match interpreter(&hook.path).map_err(failed)? {
                None => (hook.path.clone(), argv),
                Some(words) => {
                    let path = c_string(step, &hook.path)?;
                    let program = words.first().cloned().unwrap_or_default();
                    let words = strings(&words)?.into_iter().chain([path]).chain(argv.into_iter().skip(1));
                    (program, words.collect())
                }
            };
            let file = rustix::fs::open(&program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let cwd = rustix::fs::open(&state.bundle, flags, Mode::empty()).map_err(failed)?;
            let stdio = [stdin.as_fd(), null.as_fd(), null.as_fd()];
            spawn::spawn(&Program { file: file.as_fd(), argv: &argv, env: &env, cwd: cwd.as_fd(), stdio })
                .map_err(failed)?
                .pidfd
        }
        Some(init) => inside(step, hook, init, (stdin, null), (argv, env))?,
    };
    match wait(&pidfd, hook.timeout).map_err(failed)? {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => Err(LaunchError::invalid(step, &hook.path, format!("it ended with {exit:?}"))),
        None => Err(failed(Errno::TIMEDOUT)),
    }
}

/// The words of a script's first line. A program is started by a descriptor that it does not inherit: the kernel cannot tell a
/// script's interpreter which file to read then, so it is told here.
fn interpreter(path: &str) -> rustix::io::Result<Option<Vec<String>>> {
    // As much as the kernel looks at.
    let mut head = [0; 256];
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let length = rustix::io::read(&file, &mut head)?;
    let head = head.get(..length).unwrap_or_default();
    let Some(line) = head.strip_prefix(b"#!") else { return Ok(None) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    // One argument at most, blanks and all.
    let words = line.trim().splitn(2, [' ', '\t']).map(|word| word.trim().to_owned());
    let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    if words.is_empty() { Err(Errno::NOEXEC) } else { Ok(Some(words)) }
}

type Streams = (OwnedFd, OwnedFd);
type Words = (Vec<CString>, Vec<CString>);

fn inside(
    step: &'static str,
    hook: &Hook,
    init: &OwnedFd,
    (stdin, null): Streams,
    (argv, env): Words,
) -> Result<OwnedFd, LaunchError> {
    let failed = |errno| LaunchError::system(step, &hook.path, errno);
    let init = rustix::io::fcntl_dupfd_cloexec(init, 3).map_err(failed)?;
    let null = Rc::new(null);
    let kinds = NamespaceKinds::MOUNT | NamespaceKinds::NET | NamespaceKinds::IPC | NamespaceKinds::UTS;
    let own = super::capability::own();
    let ops = [
        Op::SetNamespaces { fd: Rc::new(init), kinds, what: "of the container" },
        Op::Session,
        Op::Streams([Rc::new(stdin), null.clone(), null]),
        Op::CloseOnExec,
        Op::Signals { ignored: keelson_sys::process::ignored_signals() },
        Op::Capabilities(Capabilities { effective: own, permitted: own, inheritable: 0, ambient: 0 }),
        Op::Exec(Exec {
            file: None,
            candidates: vec![c_string(step, &hook.path)?],
            argv: Strings::new(argv),
            env: Strings::new(env),
        }),
    ];
    match child::run(&ops, None, CloneOptions::default()).map_err(failed)? {
        Ok(child) => Ok(child.pidfd),
        Err(report) => Err(failed(Errno::from_raw_os_error(report.errno))),
    }
}

/// None when the time was over; the hook is killed then.
fn wait(pidfd: &OwnedFd, seconds: Option<u64>) -> rustix::io::Result<Option<Exit>> {
    match seconds.filter(|seconds| *seconds > 0) {
        Some(seconds) => pidfd::wait_at_most(pidfd, Duration::from_secs(seconds)),
        None => pidfd::wait(pidfd).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<u64>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["A=b".into()],
            timeout,
        }
    }

    fn state(bundle: &Path) -> ContainerState {
        ContainerState::new("c1", "creating", 7, bundle, &BTreeMap::new())
    }

    #[test]
    fn a_hook_reads_the_state_and_has_only_its_own_environment() {
        let bundle = tempfile::tempdir().unwrap();
        let script = hook("cat > state; env > env", None);
        run_hooks(Point::CreateRuntime, &[script], &state(bundle.path())).unwrap();
        let seen: serde_json::Value =
            serde_json::from_slice(&std::fs::read(bundle.path().join("state")).unwrap()).unwrap();
        assert_eq!((seen["id"].as_str(), seen["pid"].as_i64()), (Some("c1"), Some(7)));
        let env = std::fs::read_to_string(bundle.path().join("env")).unwrap();
        assert!(env.contains("A=b") && !env.contains("HOME="), "{env}");
    }

    #[test]
    fn a_hook_can_be_a_script() {
        use std::os::unix::fs::PermissionsExt;
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join("hook");
        std::fs::write(&path, "#! /bin/sh -e\ncat > state\necho \"$0 $1\" > words\nfalse\ntouch late\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = path.to_string_lossy().into_owned();
        let hook = Hook { path: path.clone(), args: vec!["ignored".into(), "one".into()], ..Hook::default() };
        let error = run_hooks(Point::Poststart, &[hook], &state(bundle.path())).unwrap_err();
        assert!(error.to_string().contains("Code(1)"), "the interpreter has its argument: {error}");
        let read = |name: &str| std::fs::read_to_string(bundle.path().join(name)).unwrap();
        assert_eq!(read("words"), format!("{path} one\n"));
        assert!(read("state").contains("\"c1\"") && !bundle.path().join("late").exists());
        assert_eq!(interpreter("/bin/sh").unwrap(), None);
    }

    #[test]
    fn a_failing_hook_and_a_slow_one_end_the_row() {
        let bundle = tempfile::tempdir().unwrap();
        let row = [hook("exit 3", None), hook("touch second", None)];
        let error = run_hooks(Point::Prestart, &row, &state(bundle.path())).unwrap_err();
        assert!(error.to_string().contains("Code(3)"), "{error}");
        assert!(!bundle.path().join("second").exists());
        let error = run_hooks(Point::Prestart, &[hook("sleep 60", Some(1))], &state(bundle.path())).unwrap_err();
        assert_eq!(error.errno, libc::ETIMEDOUT);
        let relative = Hook { path: "sh".into(), ..Hook::default() };
        assert!(run_hooks(Point::Prestart, &[relative], &state(bundle.path())).is_err());
    }
}
