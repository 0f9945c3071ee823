//! `keelson config`: the commented default, and a check of a file with what it comes to.
//! Main thread, no daemon needed, no root needed. Owns nothing.
//! Must never write the file: whoever wants one redirects the output.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;

use super::{CliError, out};
use crate::config::{Config, DEFAULT_PATH, DEFAULT_TEXT, Overrides};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the default configuration, every key commented
    Default,
    /// Check a configuration file; say what is wrong with it, or the folders and names it comes to
    Check {
        /// The file [default: /etc/keelson/config.toml]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(command: &Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Default => out::text(DEFAULT_TEXT),
        Command::Check { file } => {
            let config = Config::load(file.as_deref(), &Overrides::default())?;
            match file {
                Some(file) => out::line(format_args!("{}: good", file.display())),
                None if Path::new(DEFAULT_PATH).exists() => out::line(format_args!("{DEFAULT_PATH}: good")),
                None => out::line(format_args!("{DEFAULT_PATH}: absent; the built-in defaults")),
            }
            out::pair("root", config.root.display());
            out::pair("state", config.state.display());
            out::pair("socket", config.socket.display());
            out::pair("bridge", if config.network.enabled { &config.network.bridge } else { "none (disabled)" });
        }
    }
    Ok(ExitCode::SUCCESS)
}
