//! `state`, `list` and `ps`: what is, for engines as JSON and for people as a table.
//! One look at the records and the kernel.
//! Owns nothing.
//! Must never change anything.

use std::process::ExitCode;

use keelson_shim::cgroup::Handle;
use lexopt::{Arg, Parser, ValueExt as _};
use serde_json::{Value, json};

use super::error::OciError;
use super::folder::{self, Folder};
use super::{Global, only_id, print};

/// Options of the tables.
#[derive(Default)]
struct Options {
    json: bool,
    quiet: bool,
    id: Option<String>,
}

pub(super) fn state(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let folder = Folder::of(&global.root, &only_id(parser)?)?;
    print(&format!("{:#}\n", describe(&folder)?))
}

pub(super) fn list(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let options = options(parser)?;
    // Containers come and go while this reads.
    let found: Vec<Value> = folder::all(&global.root)?.iter().filter_map(|folder| describe(folder).ok()).collect();
    if options.json {
        return print(&format!("{}\n", Value::from(found)));
    }
    let word = |container: &Value, key: &str| {
        container.get(key).map(|value| value.as_str().map_or(value.to_string(), str::to_owned))
    };
    let mut text = String::new();
    if !options.quiet {
        text.push_str("ID\tPID\tSTATUS\tBUNDLE\tCREATED\n");
    }
    for container in &found {
        let keys: &[&str] = if options.quiet { &["id"] } else { &["id", "pid", "status", "bundle", "created"] };
        let words: Vec<String> = keys.iter().filter_map(|key| word(container, key)).collect();
        text.push_str(&words.join("\t"));
        text.push('\n');
    }
    print(&text)
}

pub(super) fn ps(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let options = options(parser)?;
    let id = options.id.ok_or_else(|| OciError::Usage("the container's id is missing".to_owned()))?;
    let record = Folder::of(&global.root, &id)?.record()?;
    let pids = Handle::open(&record.cgroup)?.pids()?;
    if options.json {
        return print(&format!("{}\n", json!(pids)));
    }
    let mut text = String::from("PID\tCMD\n");
    for pid in pids {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<u8> = line.into_iter().map(|byte| if byte == 0 { b' ' } else { byte }).collect();
        text.push_str(&format!("{pid}\t{}\n", String::from_utf8_lossy(&line).trim_end()));
    }
    print(&text)
}

/// As the specification wants it, and what engines know beside.
fn describe(folder: &Folder) -> Result<Value, OciError> {
    let record = folder.record()?;
    let spec = folder.spec()?;
    let state = folder.state(&record, folder.status(&record), &spec);
    let mut described = json!(state);
    if let Some(fields) = described.as_object_mut() {
        fields.entry("pid").or_insert(json!(0));
        fields.insert("rootfs".to_owned(), json!(record.rootfs));
        fields.insert("created".to_owned(), json!(record.created));
        fields.insert("owner".to_owned(), json!(""));
    }
    Ok(described)
}

fn options(parser: &mut Parser) -> Result<Options, OciError> {
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("format") | Arg::Short('f') => options.json = parser.value()?.string()? == "json",
            Arg::Long("quiet") | Arg::Short('q') => options.quiet = true,
            Arg::Value(value) if options.id.is_none() => options.id = Some(value.string()?),
            // Options of ps(1), which engines pass on.
            Arg::Value(_) => {}
            other @ (Arg::Short(_) | Arg::Long(_)) => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}
