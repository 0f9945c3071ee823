//! `keelson try`: a first pod on this machine, through a daemon of its own, told step by step, with nothing left behind.
//! Main thread and a small async runtime; the daemon is a child process, `keelson serve`, under one scratch folder.
//! Owns the scratch folder, the daemon and the pod, and takes all of them down whatever failed.
//! Must never touch another daemon's folders, and never claim that nothing is left without having looked.

mod daemon;
mod leftovers;
mod payload;
mod pod;

use std::{
    fmt::Display,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use super::{
    CliError,
    client::{self, Client},
    out,
    stop::Stop,
};
use crate::config::{Config, Overrides};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An image from a registry, such as docker.io/library/nginx:latest; without one, a small image built into keelson
    image: Option<String>,
    /// Scratch folder for all state; must be new or empty [default: a new folder in /tmp]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Configuration file of the daemon, for mirrors and the like; its folders are not used
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the scratch folder (with the daemon's log) afterwards
    #[arg(long)]
    keep: bool,
}

/// One step of the story failed.
fn broken(step: &'static str, reason: impl Display) -> CliError {
    CliError::Try { step, reason: reason.to_string() }
}

/// Says what is being done, and when it is done how long it took.
struct Step(Instant);

impl Step {
    fn begin(what: impl Display) -> Self {
        out::line(format_args!("\n==> {what}"));
        Self(Instant::now())
    }

    fn done(self, what: impl Display) {
        out::line(format_args!("    {what} ({:.1} ms)", self.0.elapsed().as_secs_f64() * 1000.0));
    }
}

pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::NotRoot { act: "keelson try" });
    }
    let scratch = Scratch::choose(args.root.as_deref())?;
    let overrides = Overrides {
        root: Some(scratch.path.join("root")),
        state: Some(scratch.path.join("state")),
        socket: Some(scratch.path.join("keelson.sock")),
        ..Overrides::default()
    };
    let config = Config::load(args.config.as_deref(), &overrides)?;
    scratch.make()?;
    out::line(format_args!("keelson {}: trying this machine, everything under {}", env!("CARGO_PKG_VERSION"), scratch));
    let mut made = Vec::new();
    let tried = story(args, &config, &scratch, &mut made);
    let step = Step::begin("Look for anything left");
    let left = leftovers::clean_and_look(&config, &scratch.path, &made);
    if let Ok(()) = &left {
        step.done("no process, no mount, no cgroup, no network interface");
    }
    if tried.is_err() {
        daemon::show_log(&scratch.path);
    }
    // Something left is a fault to be looked at: the folder stays.
    if left.is_ok() && !args.keep {
        scratch.remove()?;
    } else {
        out::line(format_args!("    kept: {scratch}"));
    }
    tried.and(left)?;
    what_next(args.image.as_deref());
    Ok(ExitCode::SUCCESS)
}

/// The steps with a daemon; it is stopped on every way out. `made` gets the ids of what was made.
fn story(args: &Args, config: &Config, scratch: &Scratch, made: &mut Vec<String>) -> Result<(), CliError> {
    // From here on a signal ends the story, not the process: what was made is taken down.
    let runtime = client::runtime()?;
    let mut stop = runtime.block_on(async { Stop::new() })?;
    let image = match &args.image {
        Some(image) => image.clone(),
        None => {
            let step = Step::begin("Make the built-in image: one static program, no registry needed");
            let image = payload::import(config)?;
            step.done(format_args!("{} {}, {}", payload::NAME, short(&image.id.to_string()), out::bytes(image.size)));
            payload::NAME.to_owned()
        }
    };
    let step = Step::begin("Start the daemon: keelson serve");
    let daemon = daemon::Daemon::start(args.config.as_deref(), config, &scratch.path)?;
    step.done(format_args!("it says it serves unix://{}", config.socket.display()));
    let told = runtime.block_on(async {
        let mut client = Client::connect(&config.socket).await?;
        let work = async {
            if args.image.is_some() {
                pod::pull(&mut client, &image).await?;
            }
            pod::run(&mut client, &image, &scratch.path.join("logs"), made).await
        };
        let told = tokio::select! {
            told = work => told,
            signal = stop.asked() => Err(broken("interrupted", format_args!("{signal}; what was made is removed"))),
        };
        // Also after a failure: what was made is removed by the daemon that made it.
        told.and(pod::remove_all(&mut client).await)
    });
    // With it goes the connection, which the daemon would wait for.
    drop(runtime);
    let step = Step::begin("Stop the daemon with SIGTERM");
    daemon.stop()?;
    step.done("it ended with code 0");
    told
}

/// What a person looks at of an id: enough to tell it from others.
fn short(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id).get(..12).unwrap_or(id)
}

fn what_next(image: Option<&str>) {
    out::line("\nThis machine runs pods. What to try next:");
    let mut next = vec![
        ("sudo keelson serve", "the daemon, on its defaults"),
        ("sudo keelson status", "how it is"),
        ("export CONTAINER_RUNTIME_ENDPOINT=unix:///run/keelson/keelson.sock", ""),
        ("sudo -E crictl pull docker.io/library/nginx:latest", "crictl: github.com/kubernetes-sigs/cri-tools"),
        ("sudo -E crictl runp pod.json", "docs/operator.md has a pod.json"),
        ("keelson config default", "everything that can be set"),
    ];
    if image.is_none() {
        next.insert(0, ("sudo keelson try docker.io/library/nginx:latest", "the same with an image from a registry"));
    }
    for (command, what) in next {
        let what = if what.is_empty() { String::new() } else { format!("# {what}") };
        out::line(format_args!("  {command:<50} {what}").to_string().trim_end());
    }
}

/// The folder for all state.
struct Scratch {
    path: PathBuf,
}

impl Display for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Scratch {
    fn choose(given: Option<&Path>) -> Result<Self, CliError> {
        let path = match given {
            Some(path) => std::path::absolute(path).map_err(|source| CliError::File {
                act: "find",
                path: path.to_owned(),
                source,
            })?,
            None => std::env::temp_dir().join(format!("keelson-try-{}", std::process::id())),
        };
        Ok(Self { path })
    }

    fn make(&self) -> Result<(), CliError> {
        let failed = |act| move |source| CliError::File { act, path: self.path.clone(), source };
        // Others may pass through, not look: a pod's processes may have any user id.
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.path).map_err(failed("make folder"))?;
        if std::fs::read_dir(&self.path).map_err(failed("read folder"))?.next().is_some() {
            return Err(broken("choose the scratch folder", format_args!("`{self}` is not empty")));
        }
        Ok(())
    }

    fn remove(&self) -> Result<(), CliError> {
        let failed = |source| CliError::File { act: "remove folder", path: self.path.clone(), source };
        std::fs::remove_dir_all(&self.path).map_err(failed)
    }
}
