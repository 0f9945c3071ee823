//! Opening sessions: an exec with streams, an attach, a connection to a port.
//! Methods of the engine, on tokio workers. Owns nothing: a session belongs to its caller.
//! Must never leave a session open whose caller has gone.

use keelson_api::{
    ContainerId, ExecId, SandboxId,
    shim::{Attach, Call, OpenExec},
};
use tokio::net::TcpStream;

use super::Engine;
use crate::{
    container::{ContainerError, check::invalid, spec::Stdin},
    sandbox::{handler, view::SandboxPhase},
    session::{
        AttachSession, AttachSpec, ExecSession, ExecSpec,
        port::{self, PortError},
    },
};

impl Engine {
    /// Runs a program in a running container, with its streams in the caller's hands. Dropping the session kills what it started.
    ///
    /// # Errors
    /// Not found, not running, or why it could not be run.
    pub async fn open_exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<ExecSession, ContainerError> {
        if spec.args.is_empty() || spec.args.iter().any(|word| word.contains('\0')) {
            return Err(invalid("cmd", "is empty or has a NUL: say what to run"));
        }
        if spec.terminal && spec.stderr {
            return Err(invalid("stderr", "a terminal has no standard error of its own: ask for stdout alone"));
        }
        let act = "exec in";
        let shim = self.running(id, act)?;
        let exec_id = self.shared.random().map(ExecId::from_random);
        let exec_id = exec_id.map_err(|error| invalid("id", format!("no random bytes: {error}")))?;
        let call = Call::OpenExec(OpenExec {
            exec_id: exec_id.to_string(),
            args: spec.args.clone(),
            terminal: spec.terminal,
            stdin: spec.stdin,
            stdout: spec.stdout,
            stderr: spec.stderr,
            rows: spec.size.map_or(0, |size| size.rows.into()),
            columns: spec.size.map_or(0, |size| size.columns.into()),
        });
        // On a task of its own: a caller who goes away leaves no half request, and its session ends with the answer.
        let opened = tokio::spawn(async move { shim.open("exec", call).await });
        let session = match opened.await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return Err(self.shim_failed(id, act, error).await),
            Err(_) => return Err(ContainerError::Draining { act: "exec in container" }),
        };
        ExecSession::new(id.clone(), &spec, session)
    }

    /// Attaches to the init of a container that has not ended. Dropping the session detaches.
    ///
    /// # Errors
    /// Not found, not running, or another terminal setting than the container's.
    pub async fn attach(&self, id: &ContainerId, spec: AttachSpec) -> Result<AttachSession, ContainerError> {
        let view = self.find_container(id.as_str()).ok_or_else(|| ContainerError::NotFound { id: id.to_string() })?;
        if spec.terminal != view.spec.terminal {
            let reason =
                if view.spec.terminal { "the container has a terminal" } else { "the container has no terminal" };
            return Err(invalid("tty", reason));
        }
        if !(spec.stdin || spec.stdout || spec.stderr) {
            return Err(invalid("stdin, stdout, stderr", "none is asked for: attach to at least one"));
        }
        let act = "attach to";
        let shim = self.running(id, act)?;
        let call = Call::Attach(Attach { stdin: spec.stdin, stdout: spec.stdout, stderr: spec.stderr });
        let opened = tokio::spawn(async move { shim.open("attach", call).await });
        let session = match opened.await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return Err(self.shim_failed(id, act, error).await),
            Err(_) => return Err(ContainerError::Draining { act: "attach to container" }),
        };
        AttachSession::new(id.clone(), spec, session, view.spec.stdin != Stdin::Closed)
    }

    /// Whether sessions with this container can be opened now. `act` is what is asked: `exec in`, ..
    ///
    /// # Errors
    /// Not found, or not running.
    pub fn check_running(&self, id: &ContainerId, act: &'static str) -> Result<(), ContainerError> {
        self.running(id, act).map(|_| ())
    }

    /// Connects to a port that a program of the sandbox listens on, on its loopback addresses (the host's with the host's network).
    ///
    /// # Errors
    /// See [`PortError`].
    pub async fn connect_port(&self, id: &SandboxId, port: u16) -> Result<TcpStream, PortError> {
        let view = self.find_sandbox(id.as_str()).ok_or_else(|| PortError::NotFound { id: id.clone() })?;
        if view.phase != SandboxPhase::Ready {
            return Err(PortError::NotReady { id: id.clone(), port });
        }
        let refused = match port::connect(id, view.netns.clone(), port).await {
            Err(refused @ PortError::Refused { .. }) => refused,
            other => return other,
        };
        // A runtime with a network stack of its own leaves the namespace's loopback empty; from the host its addresses lead inside.
        if view.addresses.is_empty() || handler::sandboxed(&self.shared.config.handlers, &view.spec).is_none() {
            return Err(refused);
        }
        let connected = port::connect_to(id, None, &view.addresses, port).await;
        connected.map_err(|error| match error {
            PortError::Refused { id, port, .. } => {
                PortError::Refused { id, port, own: ", nor on the addresses of its runtime's own network" }
            }
            other => other,
        })
    }
}
