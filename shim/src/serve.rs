//! `keelson-shim serve`: the supervisor of one container. It launches it, owns its streams, writes its log, runs execs in it,
//! stops it, writes down how it ended, and ends itself.
//! One process, one thread, one epoll loop; nothing in it waits but [`poller::Poller::wait`], a launch and the log's filesystem.
//! Owns the run directory's socket, pid file and exit record, the daemon's connections, and the container.
//! Must never need a daemon: without one it goes on; signals do not end it, only the container's end or a request does.

mod attach;
mod connection;
mod console;
mod container;
mod criu;
mod drain;
mod due;
mod ending;
mod exec;
mod handler;
mod log;
mod output;
mod phase;
mod poller;
mod record;
mod requests;
mod sessions;
mod setup;
mod streams;
mod template;
mod unheard;

use std::io::Write as _;
use std::time::{Duration, Instant};

use keelson_api::shim::{Failure, FailureKind, Outcome};
use keelson_shim::cgroup::Leaf;
use keelson_sys::pidfd::Exit;
use keelson_sys::signalfd::SignalFd;
use rustix::process::WaitOptions;

use self::attach::Attach;
use self::connection::{Closed, Connection};
use self::container::Container;
use self::exec::Exec;
use self::output::{Flow, Scratch};
use self::phase::Phase;
use self::poller::{Interest, Poller, Token};
use self::unheard::Unheard;

pub(crate) use self::setup::ServeError;

use crate::clock;

/// Who is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticket {
    connection: u32,
    seq: u64,
}

/// What a request that ends the container is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    /// How it ended: `Stop`.
    Exit,
    /// `Done`: `Delete`.
    Done,
}

/// The whole process.
struct Supervisor {
    id: String,
    poller: Poller,
    signals: SignalFd,
    listener: std::os::fd::OwnedFd,
    connections: Vec<Connection>,
    last_id: u32,
    phase: Phase<Container>,
    execs: Vec<Exec>,
    attached: Vec<Attach>,
    /// Leaf cgroups of finished execs that left processes running.
    lingering: Vec<Leaf>,
    /// When they are looked after next, and how long after that.
    sweep_at: Instant,
    sweep_pause: Duration,
    waiting: Vec<(Ticket, Farewell)>,
    /// The stop signal, while the init would not hear it.
    unheard: Option<Unheard>,
    scratch: Scratch,
    /// When memory that a launch or a burst of execs has touched is given back.
    tidy_at: Option<Instant>,
    /// A CRIU at work on the container.
    criu: Option<Box<criu::Criu>>,
    /// The connection that asked for the container to be held.
    paused_by: Option<u32>,
    /// A request has asked this process to end without a container.
    dismissed: bool,
}

/// Leaf cgroups that are not empty yet are looked after this soon (what was killed is dying), and then ever more rarely.
const FIRST_SWEEP: Duration = Duration::from_millis(10);
const RAREST_SWEEP: Duration = Duration::from_secs(10);
/// Memory is given back this long after it was last needed: never between a launch and its start.
const TIDY: Duration = Duration::from_millis(100);
/// How often SIGKILL is repeated to what does not die.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// Runs the supervisor to its end.
pub(crate) fn run(id: &str) -> Result<(), ServeError> {
    let mut supervisor = setup::supervisor(id)?;
    let mut ready = Vec::with_capacity(16);
    while !supervisor.is_over() {
        let timeout = supervisor.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        supervisor.poller.wait(&mut ready, timeout).map_err(ServeError::Wait)?;
        for token in &ready {
            supervisor.handle(*token);
        }
        supervisor.expire(Instant::now());
    }
    supervisor.say_goodbye();
    Ok(())
}

impl Supervisor {
    fn is_over(&self) -> bool {
        let alone = matches!(self.phase, Phase::Empty) && self.connections.is_empty();
        self.dismissed || alone || matches!(self.phase, Phase::Ended { .. })
    }

    fn next_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Signals => self.reap(),
            Token::Listener => self.accept(),
            Token::Connection(id) => self.converse(id),
            Token::Output(stream) => self.pump(stream),
            Token::Exec(id, stream) => {
                if let Some(exec) = self.execs.iter_mut().find(|exec| exec.id == id) {
                    exec.pump(stream, Instant::now());
                }
            }
            Token::Attach(id, stream) => self.unheard(id, stream),
        }
    }

    /// Reads the signals away and reaps every child that has ended: the init, execs, and orphans that came to this subreaper.
    fn reap(&mut self) {
        // The signals that ask for an end are read and forgotten: a supervisor ends with its container.
        while let Ok(Some(_)) = self.signals.read() {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let exit = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => continue,
            };
            let pid = pid.as_raw_pid();
            let now = Instant::now();
            if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == pid) {
                exec.reaped(exit, now);
            } else if let Some(container) = self.phase.container().filter(|container| container.created.pid == pid) {
                self.init_ended(container.exit(exit), now);
            } else {
                self.other_child_ended(pid, exit, now);
            }
        }
    }

    fn accept(&mut self) {
        use rustix::net::SocketFlags;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            match rustix::net::sockopt::socket_peercred(&socket) {
                Ok(peer) if peer.uid.is_root() || peer.uid == rustix::process::geteuid() => {
                    if let Err(errno) = self.welcome(socket) {
                        complain(&errno);
                    }
                }
                // Anybody else is not spoken to.
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn welcome(&mut self, socket: std::os::fd::OwnedFd) -> rustix::io::Result<()> {
        let id = self.next_id();
        self.poller.add(&socket, Token::Connection(id), Interest::READ)?;
        self.connections.push(Connection::new(id, socket));
        Ok(())
    }

    /// Sends what a connection's peer takes, and handles the requests it has sent.
    fn converse(&mut self, id: u32) {
        loop {
            let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else { return };
            let request = match connection.flush() {
                Ok(()) if connection.keeps_up() => connection.next_request(),
                Ok(()) => Ok(None),
                Err(closed) => Err(closed),
            };
            match request {
                Ok(Some(request)) => self.serve(Ticket { connection: id, seq: request.seq }, request.call),
                Ok(None) => break,
                Err(closed) => return self.hang_up(id, &closed),
            }
            if self.is_over() {
                return;
            }
        }
        self.watch(id);
    }

    /// Waits for what the connection can do next.
    fn watch(&mut self, id: u32) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else { return };
        let wanted = connection.wanted();
        if connection.interest != wanted {
            connection.interest = wanted;
            if let Err(errno) = self.poller.modify(connection.as_fd(), Token::Connection(id), wanted) {
                complain(&errno);
            }
        }
    }

    fn reply(&mut self, ticket: Ticket, outcome: Outcome) {
        self.reply_with(ticket, outcome, Vec::new());
    }

    /// Replies, and passes descriptors with it.
    fn reply_with(&mut self, ticket: Ticket, outcome: Outcome, fds: Vec<std::os::fd::OwnedFd>) {
        // Whoever asked may have gone.
        let found = self.connections.iter_mut().find(|connection| connection.id == ticket.connection);
        match found.map(|connection| connection.reply(ticket.seq, outcome, fds)) {
            None => {}
            Some(Ok(())) => self.watch(ticket.connection),
            Some(Err(closed)) => self.hang_up(ticket.connection, &closed),
        }
    }

    /// Forgets a connection. Nobody will hear what its execs say: they are killed, and who is attached is detached.
    /// Everything else goes on.
    fn hang_up(&mut self, id: u32, closed: &Closed) {
        if !matches!(closed, Closed::HungUp) {
            complain(closed);
        }
        self.connections.retain(|connection| connection.id != id);
        self.waiting.retain(|(ticket, _)| ticket.connection != id);
        let now = Instant::now();
        for exec in self.execs.iter_mut().filter(|exec| exec.ticket.connection == id) {
            exec.abandon(now);
        }
        self.forget_pause(id);
        self.attached.retain(|attach| attach.ticket.connection != id);
    }

    fn pump(&mut self, stream: log::Stream) {
        let Some(container) = self.phase.container_mut() else { return };
        let log = &mut container.log;
        container.outputs.retain_mut(|output| {
            if output.stream != stream || output.pump(log.as_mut(), &mut self.attached, &mut self.scratch) == Flow::Open
            {
                return true;
            }
            // A daemon may have a copy of a terminal's master.
            let _ = self.poller.remove(output.as_fd());
            for attach in &mut self.attached {
                attach.close(stream);
            }
            false
        });
    }
}

/// A failure as the daemon is told.
fn failure(step: &str, object: &str, kind: FailureKind, error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut message = format!("{step} `{object}`: {error}");
    if object.is_empty() {
        message = format!("{step}: {error}");
    }
    let mut errno = 0;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        errno =
            io.or_else(|| error.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error())).unwrap_or(errno);
        cause = error.source();
        if let Some(cause) = cause {
            message.push_str(": ");
            message.push_str(&cause.to_string());
        }
    }
    Failure { step: step.to_owned(), object: object.to_owned(), errno, message, kind: kind.into() }
}

/// A line in `shim.log` for what nobody asked about and nobody is told.
fn complain(error: &(dyn std::error::Error + 'static)) {
    let failure = failure("supervise", "", FailureKind::System, error);
    let _ = writeln!(std::io::stderr(), "{} {}", clock::now(), failure.message);
}
