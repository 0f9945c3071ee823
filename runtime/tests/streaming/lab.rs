//! A server with a node that is not there: its processes are tasks, its pods are listeners of this machine.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use keelson_api::{ContainerId, SandboxId};
use keelson_runtime::streaming::{
    Ask, Streaming, StreamingConfig,
    channel::TerminalSize,
    node::{Ended, Node, Process, Streams},
    server::{Running, Server},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::TcpStream,
};

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the stand-ins did.
#[derive(Default)]
pub(crate) struct Seen {
    /// Processes that have not been let go.
    pub(crate) alive: AtomicUsize,
    /// Bytes that `yes` has written.
    pub(crate) written: AtomicUsize,
    /// Sizes a terminal was given.
    pub(crate) sizes: Mutex<Vec<TerminalSize>>,
}

/// The node.
pub(crate) struct Fake(pub(crate) Arc<Seen>);

/// A process that lives until its session lets it go.
struct Alive(Arc<Seen>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn process(&self, args: &[String], streams: Streams) -> Process {
        self.0.alive.fetch_add(1, Ordering::SeqCst);
        let alive = Alive(Arc::clone(&self.0));
        let (stdin, stdin_end) = duplex(4096);
        let (stdout, stdout_end) = duplex(4096);
        let (stderr, stderr_end) = duplex(4096);
        let seen = Arc::clone(&self.0);
        let program = run(args.to_vec(), stdin_end, stdout_end, stderr_end, seen);
        let (over, wait) = tokio::sync::oneshot::channel();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let _ = over.send(program.await);
        });
        let seen = Arc::clone(&self.0);
        Process {
            stdin: streams.stdin.then(|| Box::new(stdin) as _),
            stdout: streams.stdout.then(|| Box::new(stdout) as _),
            stderr: (streams.stderr && !streams.terminal).then(|| Box::new(stderr) as _),
            resize: streams.terminal.then(|| {
                Box::new(move |size| {
                    seen.sizes.lock().unwrap().push(size);
                    Ok(())
                }) as _
            }),
            end: Box::pin(async move {
                let (_alive, _tasks) = (alive, tasks);
                wait.await.map_err(|_| "the program was ended".to_owned())
            }),
        }
    }
}

/// The programs there are.
async fn run(
    args: Vec<String>,
    mut stdin: DuplexStream,
    mut stdout: DuplexStream,
    mut stderr: DuplexStream,
    seen: Arc<Seen>,
) -> Ended {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["cat"] => {
            let _ = tokio::io::copy(&mut stdin, &mut stdout).await;
            Ended::Exit(0)
        }
        ["say", out, err, code] => {
            let _ = stdout.write_all(out.as_bytes()).await;
            let _ = stderr.write_all(err.as_bytes()).await;
            Ended::Exit(code.parse().unwrap())
        }
        ["much", count] => {
            let line = [b'm'; 1000];
            for _ in 0..count.parse::<usize>().unwrap() {
                if stdout.write_all(&line).await.is_err() {
                    return Ended::Exit(141);
                }
            }
            Ended::Exit(7)
        }
        ["yes"] => loop {
            if stdout.write_all(&[b'y'; 1000]).await.is_err() {
                return Ended::Exit(141);
            }
            seen.written.fetch_add(1000, Ordering::SeqCst);
        },
        ["count"] => {
            let mut all = Vec::new();
            let _ = stdin.read_to_end(&mut all).await;
            let _ = stdout.write_all(all.len().to_string().as_bytes()).await;
            Ended::Exit(0)
        }
        _ => std::future::pending().await,
    }
}

#[tonic::async_trait]
impl Node for Fake {
    async fn exec(&self, _: &ContainerId, args: Vec<String>, streams: Streams) -> Result<Process, String> {
        if args[0] == "missing" {
            return Err("exec in container: `missing`: No such file or directory".into());
        }
        Ok(self.process(&args, streams))
    }

    async fn attach(&self, _: &ContainerId, streams: Streams) -> Result<Process, String> {
        Ok(self.process(&["cat".to_owned()], streams))
    }

    async fn connect(&self, _: &SandboxId, port: u16) -> Result<TcpStream, String> {
        TcpStream::connect(("127.0.0.1", port))
            .await
            .map_err(|error: io::Error| format!("connect to port {port}: {error}"))
    }
}

/// A server at work.
pub(crate) struct Lab {
    pub(crate) streaming: Streaming,
    pub(crate) running: Running,
    pub(crate) seen: Arc<Seen>,
}

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: StreamingConfig) -> Self {
        let server = Server::bind(config).await.unwrap();
        let (streaming, seen) = (server.handle(), Arc::new(Seen::default()));
        Self { streaming, running: server.serve(Arc::new(Fake(Arc::clone(&seen)))), seen }
    }

    pub(crate) fn exec(&self, args: &[&str], streams: Streams) -> String {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.streaming.url(Ask::Exec { container: ContainerId::from_random([1; 32]), args, streams }).unwrap()
    }

    pub(crate) fn attach(&self, streams: Streams) -> String {
        self.streaming.url(Ask::Attach { container: ContainerId::from_random([1; 32]), streams }).unwrap()
    }

    pub(crate) fn forward(&self, ports: &[u16]) -> String {
        let sandbox = SandboxId::from_random([2; 32]);
        self.streaming.url(Ask::PortForward { sandbox, ports: ports.to_vec() }).unwrap()
    }

    /// Waits until every process has been let go.
    pub(crate) async fn all_gone(&self) {
        until("every process is let go", || self.seen.alive.load(Ordering::SeqCst) == 0).await;
    }
}

pub(crate) fn config() -> StreamingConfig {
    StreamingConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        idle_timeout: Duration::from_secs(3600),
        creation_timeout: Duration::from_secs(30),
    }
}

pub(crate) const OUT: Streams = Streams { terminal: false, stdin: false, stdout: true, stderr: true };
pub(crate) const ALL: Streams = Streams { terminal: false, stdin: true, stdout: true, stderr: true };
pub(crate) const TERMINAL: Streams = Streams { terminal: true, stdin: true, stdout: true, stderr: false };

/// Waits for something that comes by itself.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
