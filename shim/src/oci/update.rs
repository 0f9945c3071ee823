//! `update`: new limits for a running container, as the `resources` of a spec.
//! One pass over the cgroup's files.
//! Owns nothing.
//! Must never touch a limit that the request leaves out.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use keelson_shim::cgroup::Handle;
use keelson_shim::spec::Resources;
use lexopt::{Arg, Parser, ValueExt as _};

use super::Global;
use super::error::{OciError, file};
use super::folder::{Folder, Status};

pub(super) fn update(parser: &mut Parser, global: &Global) -> Result<ExitCode, OciError> {
    let (mut id, mut resources) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("resources") | Arg::Short('r') => resources = Some(PathBuf::from(parser.value()?)),
            Arg::Value(value) if id.is_none() => id = Some(value.string()?),
            other @ (Arg::Value(_) | Arg::Short(_) | Arg::Long(_)) => return Err(other.unexpected().into()),
        }
    }
    let id = id.ok_or_else(|| OciError::Usage("the container's id is missing".to_owned()))?;
    let path = resources.ok_or_else(|| OciError::Usage("--resources is missing".to_owned()))?;
    let mut text = Vec::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().lock().read_to_end(&mut text),
        Some(_) | None => std::fs::File::open(&path).and_then(|mut source| source.read_to_end(&mut text)),
    };
    read.map_err(file("read", &path))?;
    let resources: Resources = serde_json::from_slice(&text).map_err(|source| OciError::Json { path, source })?;
    let folder = Folder::of(&global.root, &id)?;
    let record = folder.record()?;
    let status = folder.status(&record);
    if status == Status::Stopped {
        return Err(OciError::NotRunning { verb: "update", id, status });
    }
    Handle::open(&record.cgroup)?.update(&resources)?;
    Ok(ExitCode::SUCCESS)
}
