//! The engine as the node that sessions see: its sessions in their words.
//! Async, in the task of a session. Owns nothing.
//! Must tell a client the whole reason of a failure, once, and nothing of the daemon beyond it.

use keelson_api::{ContainerId, SandboxId};
use tokio::net::TcpStream;

use super::{
    channel::TerminalSize,
    node::{Ended, Node, Process, Resize, Streams},
};
use crate::{
    engine::{AttachSpec, Detached, Engine, ExecSpec, Size},
    session::Terminal,
};

fn resize(terminal: Terminal) -> Resize {
    Box::new(move |TerminalSize { width, height }| terminal.resize(Size { rows: height, columns: width }))
}

#[tonic::async_trait]
impl Node for Engine {
    async fn exec(&self, container: &ContainerId, args: Vec<String>, streams: Streams) -> Result<Process, String> {
        let Streams { terminal, stdin, stdout, stderr } = streams;
        let spec = ExecSpec { args, terminal, stdin, stdout, stderr, size: None };
        let mut session = self.open_exec(container, spec).await.map_err(|error| keelson_api::chain(&error))?;
        Ok(Process {
            stdin: session.stdin.take().map(|stdin| Box::new(stdin) as _),
            stdout: session.stdout.take().map(|stdout| Box::new(stdout) as _),
            stderr: session.stderr.take().map(|stderr| Box::new(stderr) as _),
            resize: session.terminal().map(resize),
            end: Box::pin(
                async move { session.wait().await.map(Ended::Exit).map_err(|error| keelson_api::chain(&error)) },
            ),
        })
    }

    async fn attach(&self, container: &ContainerId, streams: Streams) -> Result<Process, String> {
        let Streams { terminal, stdin, stdout, stderr } = streams;
        let spec = AttachSpec { terminal, stdin, stdout, stderr };
        let mut session = Engine::attach(self, container, spec).await.map_err(|error| keelson_api::chain(&error))?;
        Ok(Process {
            stdin: session.stdin.take().map(|stdin| Box::new(stdin) as _),
            stdout: session.stdout.take().map(|stdout| Box::new(stdout) as _),
            stderr: session.stderr.take().map(|stderr| Box::new(stderr) as _),
            resize: session.terminal().map(resize),
            end: Box::pin(async move {
                match session.wait().await {
                    Ok(Detached::ContainerEnded) => Ok(Ended::Detached),
                    Ok(Detached::FellBehind) => Ok(Ended::FellBehind),
                    Err(error) => Err(keelson_api::chain(&error)),
                }
            }),
        })
    }

    async fn connect(&self, sandbox: &SandboxId, port: u16) -> Result<TcpStream, String> {
        self.connect_port(sandbox, port).await.map_err(|error| keelson_api::chain(&error))
    }
}
