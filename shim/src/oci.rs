//! `keelson-shim oci`: an OCI runtime command line over the launcher, for engines that call one program per verb.
//! One short-lived process per command; `run` and a foreground `exec` stay until their process ends.
//! Owns `<root>/<id>`: the record, the copied spec and, until the start, the socket at which the init waits.
//! Must never leave the init running from a file that the host owns (CVE-2019-5736): see `sealed`.

mod console;
mod create;
mod delete;
mod devices;
mod error;
mod exec;
mod features;
mod folder;
mod foreground;
mod kill;
mod list;
mod process;
mod report;
mod sealed;
mod update;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt as _};

use error::OciError;

const HELP: &str = "\
keelson-shim oci: an OCI runtime command line

Usage: keelson-shim oci [GLOBAL OPTIONS] COMMAND [OPTIONS] [ARGUMENTS]
       Called by the name keelson-oci, the program takes these without the word `oci`.

Global options:
  --root DIR           records of containers (default /run/keelson-oci)
  --log FILE           write errors there too
  --log-format FORMAT  text or json
  --systemd-cgroup     linux.cgroupsPath is slice:prefix:name, made by systemd
  --version

Commands:
  create  [-b DIR] [--pid-file FILE] [--console-socket SOCKET] [--no-pivot] ID     make a container; its program waits
  start   ID                                                                     let the program run
  run     [-d] [options of create] ID                                            create, start, wait, delete
  state   ID                                                                     tell the state as JSON
  kill    [-a] ID [SIGNAL]                                                       send a signal (default SIGTERM)
  delete  [-f] ID                                                                remove what is left of it
  exec    [-d] [-t] [-p FILE] [-u UID[:GID]] [-e NAME=VALUE] [--cwd DIR]
          [--pid-file FILE] [--console-socket SOCKET] ID [PROGRAM ARGUMENTS...]    run a further process
  list    [-q] [-f json|table]                                                   containers
  ps      [-f json|table] ID                                                     processes of a container
  update  -r FILE|- ID                                                           change limits
  pause, resume ID                                                               stop and go on
  features                                                                       what this runtime can do, as JSON
";

/// What stands before the command.
pub(crate) struct Global {
    root: PathBuf,
    log: report::Log,
    systemd_cgroup: bool,
}

/// Runs a command to its end.
pub(crate) fn run(parser: &mut Parser) -> ExitCode {
    let mut global =
        Global { root: PathBuf::from("/run/keelson-oci"), log: report::Log::default(), systemd_cgroup: false };
    let outcome = dispatch(parser, &mut global);
    outcome.unwrap_or_else(|error| {
        global.log.error(&error);
        ExitCode::FAILURE
    })
}

fn dispatch(parser: &mut Parser, global: &mut Global) -> Result<ExitCode, OciError> {
    let command = loop {
        match parser.next()? {
            Some(Arg::Long("root")) => global.root = parser.value()?.into(),
            Some(Arg::Long("log")) => global.log.path = Some(parser.value()?.into()),
            Some(Arg::Long("log-format")) => global.log.json = parser.value()?.string()? == "json",
            Some(Arg::Long("systemd-cgroup")) => global.systemd_cgroup = flag(parser)?,
            // Words of other runtimes that change nothing here.
            Some(Arg::Long("debug")) => {
                flag(parser)?;
            }
            Some(Arg::Long("rootless" | "criu" | "cgroup-manager")) => {
                parser.value()?;
            }
            Some(Arg::Long("version") | Arg::Short('v')) => {
                let version = env!("CARGO_PKG_VERSION");
                return print(&format!("keelson-shim oci version {version}\nspec: {}\n", keelson_shim::spec::VERSION));
            }
            Some(Arg::Long("help") | Arg::Short('h')) | None => return print(HELP),
            Some(Arg::Value(command)) => break command,
            Some(other) => return Err(other.unexpected().into()),
        }
    };
    command_named(&command, parser, global)
}

fn command_named(command: &OsString, parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    match command.to_str() {
        Some("create") => create::create(parser, global),
        Some("run") => create::run(parser, global),
        Some("start") => create::start(parser, global),
        Some("state") => list::state(parser, global),
        Some("list") => list::list(parser, global),
        Some("ps") => list::ps(parser, global),
        Some("kill") => kill::kill(parser, global),
        Some("pause") => kill::pause(parser, global, true),
        Some("resume") => kill::pause(parser, global, false),
        Some("delete") => delete::delete(parser, global),
        Some("exec") => exec::exec(parser, global),
        Some("update") => update::update(parser, global),
        Some("features") => features::features(parser),
        Some("help") => print(HELP),
        Some(_) | None => Err(OciError::Usage(format!("unknown command {command:?}; see --help"))),
    }
}

/// The value of a flag that may be written `--flag=false`.
fn flag(parser: &mut Parser) -> Result<bool, OciError> {
    Ok(parser.optional_value().is_none_or(|value| value != "false" && value != "0"))
}

/// The one argument of a command that knows no options.
fn only_id(parser: &mut Parser) -> Result<String, OciError> {
    let mut id = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(value) if id.is_none() => id = Some(value.string()?),
            other @ (Arg::Value(_) | Arg::Short(_) | Arg::Long(_)) => return Err(other.unexpected().into()),
        }
    }
    id.ok_or_else(|| OciError::Usage("the container's id is missing".to_owned()))
}

fn print(text: &str) -> Result<ExitCode, OciError> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|source| OciError::File { act: "write", path: "stdout".into(), source })?;
    Ok(ExitCode::SUCCESS)
}
