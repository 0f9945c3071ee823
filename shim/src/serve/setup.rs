//! How the supervisor comes to be: its session, its signals, its socket, its first connection.
//! Runs once at the start of the shim's only thread, in the run directory the daemon chose as working directory.
//! Owns what it hands to the supervisor.
//! Must never leave the daemon's end of the first connection open twice: its closing must be seen.

use keelson_api::shim::{PID_FILE, SOCKET_FILE};
use keelson_sys::signalfd::SignalFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;

use super::output::Scratch;
use super::phase::Phase;
use super::poller::{Interest, Poller, Token};
use super::{Supervisor, record};

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("{act}")]
    Setup {
        act: &'static str,
        #[source]
        source: Errno,
    },
    #[error("wait for events")]
    Wait(#[source] Errno),
}

/// These ask a process to end; a supervisor does not. SIGPIPE is ignored by the standard library's start.
const SIGNALS: [Signal; 7] =
    [Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Prepares this process and its supervisor.
pub(super) fn supervisor(id: &str) -> Result<Supervisor, ServeError> {
    let act = |act| move |source| ServeError::Setup { act, source };
    keelson_sys::memory::thrifty();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    match rustix::process::setsid() {
        // Already a leader: started from a shell.
        Ok(_) | Err(Errno::PERM) => {}
        Err(errno) => return Err(act("start a session")(errno)),
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(act("become a subreaper"))?;
    keelson_sys::process::set_undumpable().map_err(act("become undumpable"))?;
    let signals = SignalFd::block(&SIGNALS.map(Signal::as_raw)).map_err(act("open signalfd"))?;
    let poller = Poller::new().map_err(act("open epoll"))?;
    poller.add(&signals, Token::Signals, Interest::READ).map_err(act("watch signals"))?;
    let first = first_connection().map_err(act("take over stdin as the daemon's connection"))?;
    let listener = listen().map_err(act("listen on shim.sock"))?;
    poller.add(&listener, Token::Listener, Interest::READ).map_err(act("watch shim.sock"))?;
    let pid = rustix::process::getpid().as_raw_pid();
    record::put(PID_FILE, format!("{pid}\n").as_bytes()).map_err(act("write shim.pid"))?;
    // Asked while the daemon prepares its first request. A failure shows in the launch, where it can be told.
    let _ = keelson_shim::cgroup::detect();
    let mut supervisor = Supervisor {
        id: id.to_owned(),
        poller,
        signals,
        listener,
        connections: Vec::new(),
        last_id: 0,
        phase: Phase::Empty,
        execs: Vec::new(),
        attached: Vec::new(),
        lingering: Vec::new(),
        sweep_at: std::time::Instant::now(),
        sweep_pause: super::FIRST_SWEEP,
        waiting: Vec::new(),
        unheard: None,
        scratch: Scratch::default(),
        tidy_at: None,
        criu: None,
        paused_by: None,
        dismissed: false,
    };
    supervisor.welcome(first).map_err(act("watch the daemon's connection"))?;
    Ok(supervisor)
}

/// The connected socket that was stdin; stdin itself becomes `/dev/null`.
fn first_connection() -> io::Result<std::os::fd::OwnedFd> {
    let socket = keelson_sys::fd::adopt(0)?;
    rustix::net::sockopt::socket_type(&socket)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::fs::fcntl_setfl(&socket, rustix::fs::fcntl_getfl(&socket)? | OFlags::NONBLOCK)?;
    Ok(socket)
}

fn listen() -> io::Result<std::os::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::fs::unlink(SOCKET_FILE) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    // Nobody but the owner may connect, from the first moment on.
    let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&listener, &SocketAddrUnix::new(SOCKET_FILE)?);
    rustix::process::umask(mask);
    bound?;
    rustix::net::listen(&listener, 16)?;
    Ok(listener)
}
