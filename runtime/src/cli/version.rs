//! `keelson version`: this program, and the API it serves.
//! Main thread, no daemon needed. Owns nothing. Must never ask a daemon: that is `keelson status`.

use std::process::ExitCode;

use serde_json::json;

use super::{CliError, out};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    let version = env!("CARGO_PKG_VERSION");
    if args.json {
        let value = json!({ "name": "keelson", "version": version, "cri": "v1", "arch": std::env::consts::ARCH });
        out::line(value);
    } else {
        out::line(format_args!("keelson {version} (CRI v1, {})", std::env::consts::ARCH));
    }
    Ok(ExitCode::SUCCESS)
}
