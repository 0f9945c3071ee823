//! The `keelson` program: the daemon (`keelson serve`) and the operator's tools around it.
//! Runs on the main thread until a subcommand takes over. Owns the exit code and the last line on stderr.
//! Must never do work of its own: this file is a table of contents.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use keelson_runtime::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to tell it to when stderr is gone.
            let _ = writeln!(std::io::stderr(), "keelson: {}", keelson_api::chain(&error));
            ExitCode::FAILURE
        }
    }
}
