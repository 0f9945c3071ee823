//! `keelson serve`: the daemon's life in one function: read, open and recover, bind, announce, serve, drain.
//! The main thread waits; two workers serve; kernel work is on the blocking pool. Owns the order of these steps.
//! Must never announce before it serves, and never stop a container on its own way out.

use std::{io::Write as _, process::ExitCode, sync::Arc, time::Duration};

use sd_notify::NotifyState;

use tokio::task::JoinSet;

use super::{CliError, Place, reload::Reload, rooms, stop::Stop};
use crate::{
    config::{Config, LogFormat, Overrides},
    cri::{Cri, server},
    engine::Engine,
    logging,
    observe::{Endpoint, trace::Tracer},
    socket::Socket,
    streaming::server::Server as StreamingServer,
};

/// Enough for requests, which only decode and wait; each more costs memory for good.
const WORKERS: usize = 2;
/// Threads for work that blocks. Idle ones end, and give their stacks and arenas back.
const BLOCKING_MAX: usize = 64;
const BLOCKING_IDLE: Duration = Duration::from_secs(5);
/// How long records and teardown work may take to come to rest at the end.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Args {
    /// What the file and the flags come to now.
    pub(super) fn load(&self) -> Result<Config, CliError> {
        let (log_level, log_format) = (self.log_level.clone(), self.log_format.clone());
        self.place.load_with(Overrides { log_level, log_format, ..Overrides::default() })
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let config = args.load()?;
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::NotRoot { act: "keelson serve" });
    }
    // Folders and files have the modes they are given, whoever starts the daemon.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_keep_alive(BLOCKING_IDLE)
        .thread_name("keelson")
        .enable_all()
        .build()
        .map_err(|source| CliError::Host { act: "start the async runtime", source })?;
    let ended = runtime.block_on(async {
        let tracer = Tracer::new(&config.traces)?;
        let level = logging::init(config.log, tracer.as_ref())?;
        let reload = Reload::new(args.clone(), config.clone(), level)?;
        let ended = daemon(config, reload).await;
        if let Some(tracer) = tracer {
            tracer.finish().await;
        }
        ended
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map(|()| ExitCode::SUCCESS)
}

async fn daemon(config: Config, reload: Reload) -> Result<(), CliError> {
    let mut stop = Stop::new()?;
    // Both end with this function; neither has anything to finish.
    let mut watchers = JoinSet::new();
    watchers.spawn(reload.run());
    let engine_config = rooms::engine(&config)?;
    let engine = tokio::select! {
        engine = Engine::open(engine_config) => engine?,
        _ = stop.asked() => return Ok(()),
    };
    let socket = Socket::bind(&config.socket).await?;
    if let Some(endpoint) = Endpoint::bind(&config.metrics).await? {
        watchers.spawn(endpoint.serve(engine.clone()));
    }
    let streaming = StreamingServer::bind(rooms::streaming(&config)).await?;
    let cri = Cri::new(engine.clone(), engine.images().clone(), streaming.handle(), config.clone());
    let sessions = streaming.serve(Arc::new(engine.clone()));
    announce(&config, &engine).await;
    let stopping = async {
        let signal = stop.asked().await;
        tracing::info!("{signal}: stopping");
    };
    server::serve(socket, cri, stopping).await?;
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    sessions.stop().await;
    if tokio::time::timeout(DRAIN, engine.drain()).await.is_err() {
        tracing::warn!(seconds = DRAIN.as_secs(), "some work did not come to rest; the next start finishes it");
    }
    watchers.shutdown().await;
    tracing::info!("stopped; containers go on");
    Ok(())
}

/// The socket is bound and listens: whoever connects from here on is served.
async fn announce(config: &Config, engine: &Engine) {
    let status = engine.status().await;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        root = %config.root.display(),
        state = %config.state.display(),
        cgroups = status.cgroup_mode,
        sandboxes = status.sandboxes,
        containers = status.containers,
        "recovered"
    );
    if let Some(why) = status.network_down {
        tracing::warn!(why, "no pod with a network of its own can be run now");
    }
    let said = format!("serving CRI on unix://{}", config.socket.display());
    // For a person and for scripts, whatever the log's level; a collector of JSON gets nothing else.
    if config.log.format == LogFormat::Text {
        let _ = writeln!(std::io::stderr(), "keelson: {said}");
    } else {
        tracing::info!("{said}");
    }
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&said)]) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
