//! The command line: what each subcommand is for, its flags, and which file runs it.
//! Parsed on the main thread; a subcommand then owns the process. Owns the words that people type.
//! Must never print anything but a subcommand's answer to stdout: scripts read it.

mod client;
mod config;
mod error;
mod out;
mod reload;
mod rooms;
mod serve;
mod status;
mod stop;
mod try_out;
mod version;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

pub use error::CliError;

use crate::config::{Config, Overrides};

/// A Kubernetes node runtime: images in, running pods out.
#[derive(Debug, Parser)]
#[command(name = "keelson", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "keelson's own files: /etc/keelson/config.toml (optional), /var/lib/keelson, /run/keelson.\n\
    First steps: `keelson try` on any machine; `keelson serve` and crictl on a node.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: serve CRI to kubelet or crictl until SIGTERM
    ///
    /// Runs on its embedded defaults when there is no configuration file. Says `keelson: serving CRI on ..` on stderr, and tells
    /// systemd, when it really serves. SIGTERM or SIGINT stops the daemon; containers go on and are found again at the next start.
    Serve(serve::Args),
    /// Try keelson on this machine: run a first pod through a daemon of its own, and clean up
    ///
    /// Starts a daemon with all its state under one scratch folder, runs a pod in it through the CRI socket, shows its address, its
    /// log and a program executed in it, removes everything and checks that nothing is left. Without IMAGE it needs no network.
    Try(try_out::Args),
    /// Ask a running daemon how it is: conditions, counts, versions
    Status(status::Args),
    /// Print the version of this program and of the API it serves
    Version(version::Args),
    /// Print the default configuration, or check one
    #[command(subcommand)]
    Config(config::Command),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What the subcommand could not do; to be printed as a chain.
    pub fn run(self) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Serve(args) => serve::run(&args),
            Command::Try(args) => try_out::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Version(args) => version::run(&args),
            Command::Config(command) => config::run(&command),
        }
    }
}

/// The flags that go over the configuration file.
#[derive(Debug, Clone, Args)]
struct Place {
    /// Configuration file; must exist when named [default: /etc/keelson/config.toml, if there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for what survives a reboot [default: /var/lib/keelson]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder for what does not; belongs on a tmpfs [default: /run/keelson]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// CRI socket [default: keelson.sock in the state folder]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Place {
    fn load(&self) -> Result<Config, CliError> {
        self.load_with(Overrides::default())
    }

    /// With more that goes over the file.
    fn load_with(&self, more: Overrides) -> Result<Config, CliError> {
        let (root, state, socket) = (self.root.clone(), self.state.clone(), self.socket.clone());
        Ok(Config::load(self.config.as_deref(), &Overrides { root, state, socket, ..more })?)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_subcommand_is_explained() {
        Cli::command().debug_assert();
        let names: Vec<String> = Cli::command().get_subcommands().map(|it| it.get_name().to_owned()).collect();
        assert_eq!(names, ["serve", "try", "status", "version", "config"]);
        let help = Cli::command().render_help().to_string();
        for subcommand in Cli::command().get_subcommands() {
            let about = subcommand.get_about().unwrap().to_string();
            assert!(help.contains(&about), "{}", subcommand.get_name());
        }
    }

    #[test]
    fn serve_takes_the_flags_of_the_contract() {
        let line = ["keelson", "serve", "--config", "/c", "--root", "/r", "--state", "/s", "--socket", "/k"];
        assert!(matches!(Cli::try_parse_from(line).unwrap().command, Command::Serve(_)));
        assert!(Cli::try_parse_from(["keelson", "serve", "--rot", "/r"]).unwrap_err().to_string().contains("--root"));
        assert!(Cli::try_parse_from(["keelson"]).is_err());
    }
}
