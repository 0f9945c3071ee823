//! The archive of a pod: one checkpoint archive for each container, and a text that says which is which.
//! Blocks: on the blocking pool of the daemon.
//! Owns the layout, with its version.
//! Must never take anything of a pod from its archive but the names of its containers.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{
    CheckpointError, metadata,
    read::{self, Folder},
    write,
};
use crate::{engine::shared::now, sandbox::SandboxView};

const FOLDER: &str = "containers";

/// Writes it from the archives of its containers.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write(file: &File, sandbox: &SandboxView, parts: &[(String, PathBuf)]) -> Result<(), CheckpointError> {
    let member = |number: usize| format!("{FOLDER}/{number}.tar");
    let containers = parts.iter().enumerate();
    let config = metadata::PodConfig {
        version: 1,
        id: sandbox.id.to_string(),
        name: sandbox.spec.key.name.clone(),
        namespace: sandbox.spec.key.namespace.clone(),
        uid: sandbox.spec.key.uid.clone(),
        checkpointed_time: metadata::time(now()),
        containers: containers
            .map(|(number, (name, _))| metadata::PodContainer { name: name.clone(), archive: member(number) })
            .collect(),
    };
    let written = || -> io::Result<()> {
        let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 20, file));
        write::text(&mut tar, metadata::POD, &serde_json::to_vec_pretty(&config)?)?;
        for (number, (_, path)) in parts.iter().enumerate() {
            write::file(&mut tar, path, Path::new(&member(number)))?;
        }
        io::Write::flush(&mut tar.into_inner()?)
    };
    written().map_err(CheckpointError::io("write archive of", Path::new(&config.name)))
}

/// The names of an unpacked archive's containers, and where the checkpoint of each is.
///
/// # Errors
/// The archive is none of a pod, or names a member that it has not.
pub(crate) fn containers(folder: &Folder) -> Result<Vec<(String, PathBuf)>, CheckpointError> {
    let bad = |reason: String| CheckpointError::File { name: metadata::POD, reason };
    let pod = read::pod(folder)?;
    if pod.containers.is_empty() {
        return Err(bad("it names no container".to_owned()));
    }
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for (number, container) in pod.containers.into_iter().enumerate() {
        // Paths are ours: what the archive says must be the same.
        let member = format!("{FOLDER}/{number}.tar");
        let path = folder.archive().join(&member);
        if container.archive != member || !path.is_file() {
            return Err(bad(format!("container {number} is not the member `{member}`")));
        }
        if found.iter().any(|(name, _)| *name == container.name) {
            return Err(bad(format!("container {number} has the name of another")));
        }
        found.push((container.name, path));
    }
    Ok(found)
}
