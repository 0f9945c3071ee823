//! The files of a run directory that the shim writes: its process id and the exit record.
//! Runs in the shim's only thread, whose working directory is the run directory: a tmpfs, so nothing is synced.
//! Owns nothing; a reader sees the old content or the new, never a part.
//! Must never tell anybody of an exit before the record is in place.

use keelson_api::ExitRecord;
use rustix::fs::{Mode, OFlags};
use rustix::io;

/// Writes `name` in the working directory, replacing it whole.
pub(super) fn put(name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = format!(".{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&temporary, flags, Mode::from_raw_mode(0o600))?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    rustix::fs::rename(&temporary, name)
}

/// Writes the exit record.
pub(super) fn put_exit(record: &ExitRecord) -> io::Result<()> {
    // Numbers and booleans always have a JSON form.
    let text = serde_json::to_vec(record).unwrap_or_default();
    put(ExitRecord::FILE, &text)
}
