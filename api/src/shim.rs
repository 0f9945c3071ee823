//! The protocol between the daemon and a shim: protobuf messages in length-prefixed frames on a unix stream socket.
//! Compiled into both. The daemon sends [`Request`]s, each answered by one [`Reply`] with the same `seq`; a shim may answer out of
//! order (a long exec does not hold up a kill). A shim's end is told by end-of-file: the exit record is on disk by then.
//! Must stay compatible both ways within [`PROTOCOL`]: a new daemon drives old shims, so fields are only ever added.
//!
//! A shim is started as `keelson-shim serve --id ID` with its run directory as working directory and one end of a connected
//! socket pair as stdin; it listens on [`SOCKET_FILE`] there for later daemons. Several daemons may be connected at once.
//!
//! A session ([`Call::OpenExec`], [`Call::Attach`]) is answered twice: by [`Outcome::Streams`], whose descriptors travel with the
//! first byte of its frame (SCM_RIGHTS), and at its end by [`Outcome::Exec`] or [`Outcome::Detached`]. It ends with its connection.

pub mod frame;

/// Version of this protocol. Raised only when an older shim could not be driven any more.
pub const PROTOCOL: u32 = 1;
/// The shim's listening socket in the container's run directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// The shim's process id as decimal text in the container's run directory.
pub const PID_FILE: &str = "shim.pid";
/// The OCI runtime spec in the container's run directory, as the daemon wrote it.
pub const SPEC_FILE: &str = "config.json";
/// Output of one ExecSync stream that is kept, bytes (CRI: 16 MiB; CVE-2022-1708).
pub const EXEC_OUTPUT_MAX: usize = 16 * 1024 * 1024;

/// Daemon to shim.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Chosen by the daemon, echoed in the reply; never 0.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// What to do.
    #[prost(oneof = "Call", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17")]
    pub call: Option<Call>,
}

/// What the daemon asks.
#[allow(clippy::large_enum_variant, reason = "one is held at a time, and the largest comes once in the life of a shim")]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Call {
    /// Create the container and leave its init waiting just before exec. Once per shim, first.
    #[prost(message, tag = "2")]
    Launch(Launch),
    /// Let the init exec the user's program.
    #[prost(message, tag = "3")]
    Start(Start),
    /// What is the state now?
    #[prost(message, tag = "4")]
    State(GetState),
    /// Send a signal.
    #[prost(message, tag = "5")]
    Signal(Signal),
    /// Signal, wait for the grace period, kill the whole cgroup; answered when the exit record is on disk.
    #[prost(message, tag = "6")]
    Stop(Stop),
    /// Run a process in the container to its end and return its output.
    #[prost(message, tag = "7")]
    ExecSync(ExecSync),
    /// Open the log path anew, on a record boundary (kubelet has renamed the old file).
    #[prost(message, tag = "8")]
    ReopenLog(ReopenLog),
    /// Kill what is left, remove the container's cgroup, answer, and end. Valid in every state.
    #[prost(message, tag = "9")]
    Delete(Delete),
    /// Write the running container's processes to files and let them go on.
    #[prost(message, tag = "15")]
    Checkpoint(Checkpoint),
    /// Instead of `Start`: the init that waits gives way to processes read from files.
    #[prost(message, tag = "16")]
    Restore(Restore),
    /// Hold every process, or let all go on. Held processes go on by themselves when the connection that asked for it ends.
    #[prost(message, tag = "17")]
    Pause(Pause),
    /// Run a process in the container with streams of the daemon's own. A session.
    #[prost(message, tag = "10")]
    OpenExec(OpenExec),
    /// Give the daemon the init's streams, beside the log and whoever else is attached. A session.
    #[prost(message, tag = "11")]
    Attach(Attach),
    /// End a session of this connection: kill everything an exec started, detach an attach. Unknown ones have ended: done.
    #[prost(message, tag = "12")]
    EndSession(EndSession),
}

/// Shim to daemon.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// The `seq` of the request.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// How it went.
    #[prost(oneof = "Outcome", tags = "2, 3, 4, 5, 6, 7, 8, 10")]
    pub outcome: Option<Outcome>,
}

/// How a request went.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Outcome {
    /// It failed; nothing half-made is left by it.
    #[prost(message, tag = "2")]
    Failed(Failure),
    /// Done, nothing to tell.
    #[prost(message, tag = "3")]
    Done(Done),
    /// To `Launch`, `Start` and `State`.
    #[prost(message, tag = "4")]
    State(State),
    /// To `ExecSync`; to `OpenExec` when its process has ended (without output).
    #[prost(message, tag = "5")]
    Exec(ExecResult),
    /// To `Stop`, and to `State` of an ended container.
    #[prost(message, tag = "6")]
    Exited(Exit),
    /// To `Checkpoint`.
    #[prost(message, tag = "10")]
    Checkpointed(Checkpointed),
    /// To `OpenExec` and `Attach`, first: the streams.
    #[prost(message, tag = "7")]
    Streams(Streams),
    /// To `Attach`, at its end.
    #[prost(message, tag = "8")]
    Detached(Detached),
}

/// See [`Call::Launch`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Launch {
    /// The OCI runtime spec, JSON. `root.path` is used when `overlay` is absent.
    #[prost(bytes = "vec", tag = "1")]
    pub spec: Vec<u8>,
    /// The root filesystem to mount inside the container's mount namespace alone.
    #[prost(message, optional, tag = "2")]
    pub overlay: Option<Overlay>,
    /// Standard streams.
    #[prost(message, optional, tag = "3")]
    pub stdio: Option<Stdio>,
    /// Compiled seccomp program (`struct sock_filter` array, native endian); empty: compile `linux.seccomp` of the spec.
    #[prost(bytes = "vec", tag = "4")]
    pub seccomp: Vec<u8>,
    /// Place the container by a systemd scope; `linux.cgroupsPath` then is `slice:prefix:name`.
    #[prost(bool, tag = "5")]
    pub systemd_cgroup: bool,
    /// Run the shim's own reaping init instead of `process.args`: the holder of a shared PID namespace.
    #[prost(bool, tag = "6")]
    pub builtin_init: bool,
    /// The daemon's own oom_score_adj may not be lowered without CAP_SYS_RESOURCE: clamp instead of failing.
    #[prost(bool, tag = "7")]
    pub clamp_oom_score: bool,
    /// Environment of the init and of every exec, `NAME=value` as the kernel sees it; when not empty it replaces `process.env`
    /// of the spec, which is JSON and can hold UTF-8 alone.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub env: Vec<Vec<u8>>,
    /// Directories of the root filesystem (an image's volumes): made when missing, and still writable when the root is read-only.
    #[prost(string, repeated, tag = "9")]
    pub volumes: Vec<String>,
    /// Images whose trees are mounted, each in place of the spec's mount with the same destination.
    #[prost(message, repeated, tag = "13")]
    pub image_volumes: Vec<ImageVolume>,
    /// Sources of bind mounts of the spec in which no symbolic link is left: one that is met there after all is refused.
    #[prost(string, repeated, tag = "14")]
    pub resolved_sources: Vec<String>,
    /// Have this OCI runtime make the container from the spec, instead of the shim's own launcher.
    #[prost(message, optional, tag = "16")]
    pub handler: Option<Handler>,
}

/// An image's tree (or a folder of it) for a container, read-only.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageVolume {
    /// `destination` of the mount of the spec, whose attribute options (`nosuid`, ..) hold.
    #[prost(string, tag = "1")]
    pub destination: String,
    /// Directories to stack, top first: two or more.
    #[prost(string, repeated, tag = "2")]
    pub lower: Vec<String>,
    /// Folder of the tree to mount, found inside it; empty: all of it.
    #[prost(string, tag = "3")]
    pub sub_path: String,
}

/// An OCI runtime's command line.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Handler {
    /// What the node calls it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its program, absolute.
    #[prost(string, tag = "2")]
    pub program: String,
    /// What stands before every command, beside what every runtime understands.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
    /// Where it keeps its own state, absolute.
    #[prost(string, tag = "4")]
    pub root: String,
    /// An empty folder of the host that the shim covers, in a mount namespace of its own, with what the spec in the bundle refers to:
    /// the root filesystem (`root`), mounts of [`Launch::spec`] with mapped ids or of images by their index in it (`7`), and
    /// [`Launch::volumes`] by theirs where the root is read-only (`v0`). Empty: `rootfs` in the bundle, and nothing else.
    #[prost(string, tag = "5")]
    pub place: String,
}

/// An overlay root filesystem.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Overlay {
    /// Lower directories, top layer first. Never empty.
    #[prost(string, repeated, tag = "1")]
    pub lower: Vec<String>,
    /// Upper directory.
    #[prost(string, tag = "2")]
    pub upper: String,
    /// Work directory, on the filesystem of `upper`.
    #[prost(string, tag = "3")]
    pub work: String,
}

/// Standard streams of the init.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stdio {
    /// CRI log file, absolute; empty: output is discarded.
    #[prost(string, tag = "1")]
    pub log_path: String,
    /// Keep stdin open for attach; without it stdin is /dev/null.
    #[prost(bool, tag = "2")]
    pub stdin: bool,
    /// Close stdin after the first attach session.
    #[prost(bool, tag = "3")]
    pub stdin_once: bool,
    /// Give the process a terminal (`process.terminal` of the spec agrees).
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// Longest content of one log record, bytes; 0: 16384.
    #[prost(uint32, tag = "5")]
    pub max_line: u32,
}

/// See [`Call::Start`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Start {}

/// See [`Call::State`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct GetState {}

/// See [`Call::Signal`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    /// Linux signal number.
    #[prost(int32, tag = "1")]
    pub signal: i32,
    /// To every process of the container's cgroup, not only the init.
    #[prost(bool, tag = "2")]
    pub all: bool,
}

/// See [`Call::Stop`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stop {
    /// Linux signal number to begin with.
    #[prost(int32, tag = "1")]
    pub signal: i32,
    /// Milliseconds between the signal and the kill; 0: kill at once. A later, shorter request shortens the wait.
    #[prost(uint64, tag = "2")]
    pub grace_ms: u64,
}

/// See [`Call::ExecSync`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecSync {
    /// Id of this exec: names its cgroup.
    #[prost(string, tag = "1")]
    pub exec_id: String,
    /// Arguments; the rest (user, env, cwd, capabilities, seccomp) is as the container's own process.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// Milliseconds until everything the exec started is killed; 0: no limit.
    #[prost(uint64, tag = "3")]
    pub timeout_ms: u64,
}

/// See [`Call::ReopenLog`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReopenLog {}

/// See [`Call::Delete`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Delete {}

/// See [`Call::Checkpoint`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Checkpoint {
    /// The CRIU program, absolute.
    #[prost(string, tag = "1")]
    pub criu: String,
    /// An empty directory for CRIU's images, absolute.
    #[prost(string, tag = "2")]
    pub images: String,
    /// A directory for its log (`dump.log`) and statistics, absolute.
    #[prost(string, tag = "3")]
    pub work: String,
    /// Milliseconds until it is given up; 0: no limit.
    #[prost(uint64, tag = "4")]
    pub timeout_ms: u64,
}

/// What a checkpoint refers to outside its images.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Checkpointed {
    /// The names under which CRIU knows the standard streams 0 to 2 (`pipe:[123]`, `file[1a:3]`); empty: not from outside.
    #[prost(string, repeated, tag = "1")]
    pub stdio: Vec<String>,
}

/// See [`Call::Restore`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Restore {
    /// The CRIU program, absolute.
    #[prost(string, tag = "1")]
    pub criu: String,
    /// The directory of checked images, absolute. Nobody but root may have written there.
    #[prost(string, tag = "2")]
    pub images: String,
    /// A directory for its log (`restore.log`) and a mount point (`stage`), absolute.
    #[prost(string, tag = "3")]
    pub work: String,
    /// Milliseconds until it is given up; 0: no limit.
    #[prost(uint64, tag = "4")]
    pub timeout_ms: u64,
    /// The mounts of the init that waits, which the restored processes get.
    #[prost(message, repeated, tag = "5")]
    pub mounts: Vec<ExternalMount>,
    /// As [`Checkpointed::stdio`]: what the container's own streams take the place of.
    #[prost(string, repeated, tag = "6")]
    pub stdio: Vec<String>,
    /// `apparmor:PROFILE` or `selinux:LABEL` to restore with, whatever the images say; empty: none.
    #[prost(string, tag = "7")]
    pub lsm_profile: String,
}

/// A mount that CRIU takes from us.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExternalMount {
    /// Where it is in the container, without symbolic links.
    #[prost(string, tag = "1")]
    pub mountpoint: String,
    /// Its name in the images.
    #[prost(string, tag = "2")]
    pub key: String,
    /// Its id in the init's `mountinfo`: what is found at the mount point must be this mount.
    #[prost(uint64, tag = "3")]
    pub mount_id: u64,
}

/// See [`Call::Pause`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Pause {
    /// Hold; else let go.
    #[prost(bool, tag = "1")]
    pub on: bool,
}

/// See [`Call::OpenExec`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct OpenExec {
    /// Id of this exec: names its cgroup.
    #[prost(string, tag = "1")]
    pub exec_id: String,
    /// Arguments; the rest (user, env, cwd, capabilities, seccomp) is as the container's own process.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// A terminal of the container's devpts instead of pipes; the next three are without meaning then.
    #[prost(bool, tag = "3")]
    pub terminal: bool,
    /// A pipe to standard input; without it, /dev/null.
    #[prost(bool, tag = "4")]
    pub stdin: bool,
    /// A pipe from standard output; without it, /dev/null.
    #[prost(bool, tag = "5")]
    pub stdout: bool,
    /// A pipe from standard error; without it, /dev/null.
    #[prost(bool, tag = "6")]
    pub stderr: bool,
    /// Height of the terminal in characters; 0: not known.
    #[prost(uint32, tag = "7")]
    pub rows: u32,
    /// Width of the terminal in characters; 0: not known.
    #[prost(uint32, tag = "8")]
    pub columns: u32,
}

/// See [`Call::Attach`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    /// The writing end of standard input, when there is one (left).
    #[prost(bool, tag = "1")]
    pub stdin: bool,
    /// What is said on standard output from now on; of a terminal, everything.
    #[prost(bool, tag = "2")]
    pub stdout: bool,
    /// What is said on standard error from now on; of a terminal, nothing.
    #[prost(bool, tag = "3")]
    pub stderr: bool,
}

/// See [`Call::EndSession`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct EndSession {
    /// The `seq` of the request that opened it.
    #[prost(uint64, tag = "1")]
    pub session: u64,
}

/// Which descriptors come with this frame, in this order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Streams {
    /// A terminal's master: to write input to, to set the size of, and for an exec to read output from.
    #[prost(bool, tag = "1")]
    pub terminal: bool,
    /// Writing end of a pipe, non-blocking.
    #[prost(bool, tag = "2")]
    pub stdin: bool,
    /// Reading end of a pipe, non-blocking.
    #[prost(bool, tag = "3")]
    pub stdout: bool,
    /// Reading end of a pipe, non-blocking.
    #[prost(bool, tag = "4")]
    pub stderr: bool,
}

/// How an attach session ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Detached {
    /// The daemon did not read fast enough: the rest of the output is in the log alone.
    #[prost(bool, tag = "1")]
    pub fell_behind: bool,
}

/// Success without content.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// No container: not launched, or the launch failed.
    Empty = 0,
    /// Init waits before exec.
    Created = 1,
    /// The user's program runs.
    Running = 2,
    /// Ended; the exit record is on disk.
    Stopped = 3,
}

/// The state of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// Protocol version of this shim.
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// Where in its life.
    #[prost(enumeration = "Phase", tag = "2")]
    pub phase: i32,
    /// Init's process id in the daemon's PID namespace; 0 when there is none.
    #[prost(int32, tag = "3")]
    pub pid: i32,
    /// When the user's program was started, nanoseconds since the epoch; 0: not yet.
    #[prost(int64, tag = "4")]
    pub started_at: i64,
}

/// How a container ended: [`crate::ExitRecord`] on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exit {
    /// Exit code, 128 + signal.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The signal that ended it, or 0.
    #[prost(int32, tag = "2")]
    pub signal: i32,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    #[prost(int64, tag = "4")]
    pub finished_at: i64,
    /// The OOM killer was at work.
    #[prost(bool, tag = "5")]
    pub oom_killed: bool,
}

/// What an ExecSync gave.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecResult {
    /// At most [`EXEC_OUTPUT_MAX`] bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    /// At most [`EXEC_OUTPUT_MAX`] bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal.
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
    /// The timeout passed and everything the exec started was killed.
    #[prost(bool, tag = "4")]
    pub timed_out: bool,
    /// Output beyond the cap was discarded.
    #[prost(bool, tag = "5")]
    pub truncated: bool,
}

/// A failure with what a person needs to act on it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// What was attempted: `mount`, `set user`, `exec`.
    #[prost(string, tag = "1")]
    pub step: String,
    /// On what: a path, a name; may be empty.
    #[prost(string, tag = "2")]
    pub object: String,
    /// The system's errno, or 0.
    #[prost(int32, tag = "3")]
    pub errno: i32,
    /// The cause in words and, where known, what to do next.
    #[prost(string, tag = "4")]
    pub message: String,
    /// What kind of failure, for the caller's decisions.
    #[prost(enumeration = "FailureKind", tag = "5")]
    pub kind: i32,
}

/// What a caller must tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// The system refused.
    System = 0,
    /// The request is wrong: bad spec, bad user, missing program.
    Invalid = 1,
    /// Not in a state for this.
    State = 2,
    /// The kernel lacks something the request needs.
    Unsupported = 3,
}
