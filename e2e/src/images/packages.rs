//! Debian packages as files: downloaded by apt, unpacked by dpkg-deb, nothing installed and no maintainer script run.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Unpacks `packages` (with everything they depend on when `closure`) into `into`.
pub(super) fn unpack(cache: &Path, packages: &[&str], closure: bool, into: &Path) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let archives = cache.join(packages.join("+").replace(['/', ' '], "_"));
    fs::create_dir_all(archives.join("partial"))?;
    if closure {
        // An empty dpkg status makes apt resolve as on a bare system.
        run(Command::new("apt-get")
            .args(["install", "-y", "--download-only", "--no-install-recommends"])
            .args(["-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"])
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .args(packages))?;
    } else {
        run(Command::new("apt-get")
            .args(["download", "-o", "APT::Sandbox::User=root"])
            .args(packages)
            .current_dir(&archives))?;
    }
    let mut files: Vec<_> = fs::read_dir(&archives)?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "deb")) {
        run(Command::new("dpkg-deb").arg("-x").arg(file).arg(into))?;
    }
    fs::remove_dir_all(&archives)?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("run {:?} (a Debian or Ubuntu machine is needed to build test images)", command.get_program())
    })?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
