//! `keelson-shim`: the supervisor of one container, and an OCI runtime command line over the same launcher.
//! One thread in every mode; which process this is, the first argument says.
//! Owns nothing itself.
//! Must never do more here than choose.

mod clock;
mod criu;
mod hello;
mod oci;
mod owner;
mod pause;
mod serve;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt as _};

const HELP: &str = "\
keelson-shim: supervises one container, and runs containers as an OCI runtime

Usage:
  keelson-shim serve --id ID     supervise the container ID (started by `keelson serve`, in the container's run directory,
                                 with a connected socket as stdin)
  keelson-shim oci COMMAND ...   OCI runtime command line (`keelson-shim oci --help`); also by the name keelson-oci
  keelson-shim hello [id]        say hello from inside a container (the program of the built-in image)
  keelson-shim pause             do nothing until told to end (the container that holds the sandbox of a sandboxed runtime)
  keelson-shim --version
";

/// Called by this name, the program is an OCI runtime: engines call a runtime without a word before the verb.
const OCI_NAME: &str = "keelson-oci";

fn main() -> ExitCode {
    let mut parser = Parser::from_env();
    if parser.bin_name().and_then(|name| name.rsplit('/').next()) == Some(OCI_NAME) {
        return oci::run(&mut parser);
    }
    let outcome = match parser.next() {
        Ok(Some(Arg::Value(command))) => run(&command, &mut parser),
        Ok(Some(Arg::Long("version") | Arg::Short('V'))) => {
            print(&format!("keelson-shim {}\n", env!("CARGO_PKG_VERSION")))
        }
        Ok(Some(Arg::Long("help") | Arg::Short('h'))) => print(HELP),
        Ok(Some(other)) => Err(other.unexpected().into()),
        Ok(None) => Err("which command? See --help".into()),
        Err(error) => Err(error.into()),
    };
    outcome.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "keelson-shim: {}", keelson_api::chain(&*error));
        ExitCode::FAILURE
    })
}

type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;

fn run(command: &OsString, parser: &mut Parser) -> Outcome {
    match command.to_str() {
        Some("serve") => {
            serve::run(&id(parser)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Some("criu") => match criu::run() {
            Ok(never) => match never {},
            Err(error) => Err(error.into()),
        },
        Some("oci") => Ok(oci::run(parser)),
        Some("hello") => hello::run(parser.next()?.is_some()).map_err(Into::into),
        Some("pause") => pause::run().map_err(Into::into),
        Some(_) | None => Err(format!("unknown command {command:?}; see --help").into()),
    }
}

fn id(parser: &mut Parser) -> Result<String, Box<dyn std::error::Error>> {
    let mut id = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("id") => id = Some(parser.value()?.string()?),
            other @ (Arg::Short(_) | Arg::Long(_) | Arg::Value(_)) => return Err(other.unexpected().into()),
        }
    }
    id.ok_or_else(|| "serve: --id is missing".into())
}

fn print(text: &str) -> Outcome {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
