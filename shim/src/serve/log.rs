//! A container's log file in CRI format: whole records appended, reopened between records, and no reason to stop a container.
//! Runs in the shim's only thread; writing blocks as long as the filesystem does.
//! Owns the open file; the path is the kubelet's, and so is the folder it is in.
//! Must never leave half a record behind, follow a link in the last component of its path, or fail a container for a full disk.

mod record;

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

pub(super) use record::{DEFAULT_MAX, Prefix, Splitter, Stream};

/// An open log.
pub(super) struct Log {
    path: PathBuf,
    file: OwnedFd,
    /// Set while the file takes nothing.
    lost: Option<Lost>,
}

#[derive(Debug, Clone, Copy)]
struct Lost {
    records: usize,
    bytes: usize,
    cause: Errno,
}

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error("create log folder `{path}`")]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("open log `{path}`")]
    Open {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("open log `{path}`: not a regular file")]
    NotAFile { path: PathBuf },
}

impl Log {
    /// Opens or creates the file, mode 0640, and its folder, mode 0755, where that is missing.
    pub(super) fn open(path: &Path) -> Result<Log, LogError> {
        Ok(Log { path: path.to_owned(), file: open(path)?, lost: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the path anew: the old file has been renamed. On failure the old file goes on being written.
    pub(super) fn reopen(&mut self) -> Result<(), LogError> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Appends whole records. What a full disk does not take is dropped and counted; the count is told in a record of
    /// its own as soon as there is room again.
    pub(super) fn append(&mut self, records: &[u8], moment: i64) {
        if records.is_empty() {
            return;
        }
        if let Some(lost) = self.lost {
            let note = lost.note(moment);
            if append(&self.file, &note).is_err() {
                self.lost = Some(lost.and(records, lost.cause));
                return;
            }
            self.lost = None;
        }
        if let Err((written, cause)) = append(&self.file, records) {
            let rest = records.get(written..).unwrap_or_default();
            self.lost = Some(Lost { records: 0, bytes: 0, cause }.and(rest, cause));
        }
    }
}

impl Lost {
    fn and(self, records: &[u8], cause: Errno) -> Lost {
        let count = memchr::memchr_iter(b'\n', records).count();
        Lost { records: self.records + count, bytes: self.bytes + records.len(), cause }
    }

    fn note(self, moment: i64) -> Vec<u8> {
        let cause = std::io::Error::from(self.cause);
        let text = format!("keelson: {} log records ({} bytes) were lost: {cause}\n", self.records, self.bytes);
        let mut note = Vec::with_capacity(text.len() + 64);
        Splitter::new(text.len()).push(text.as_bytes(), &Prefix::new(Stream::Stderr, moment), &mut note, usize::MAX);
        note
    }
}

/// Appends all, or says how many bytes of whole records are in the file and why no more; half a record is taken back.
fn append(file: &OwnedFd, records: &[u8]) -> Result<(), (usize, Errno)> {
    let mut rest = records;
    while !rest.is_empty() {
        match rustix::io::write(file, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => {
                let written = records.len() - rest.len();
                let whole =
                    records.get(..written).and_then(|part| memchr::memrchr(b'\n', part)).map_or(0, |end| end + 1);
                take_back(file, written - whole);
                return Err((whole, errno));
            }
        }
    }
    Ok(())
}

/// Shortens the file by what this process has appended last. Nobody else writes to it.
fn take_back(file: &OwnedFd, bytes: usize) {
    if bytes == 0 {
        return;
    }
    if let Ok(status) = rustix::fs::fstat(file) {
        let length = u64::try_from(status.st_size).unwrap_or(0);
        let _ = rustix::fs::ftruncate(file, length.saturating_sub(u64::try_from(bytes).unwrap_or(0)));
    }
}

fn open(path: &Path) -> Result<OwnedFd, LogError> {
    // O_NONBLOCK: opening a FIFO that somebody put there must not wait for its reader.
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o640);
    let failed = |source| LogError::Open { path: path.to_owned(), source };
    let file = match rustix::fs::open(path, flags, mode) {
        Err(Errno::NOENT) => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.map_err(|source| LogError::Folder { path: folder.to_owned(), source })?;
            rustix::fs::open(path, flags, mode)
        }
        other => other,
    };
    let file = file.map_err(failed)?;
    let status = rustix::fs::fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(LogError::NotAFile { path: path.to_owned() });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn records(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        Splitter::new(100).push(text.as_bytes(), &Prefix::new(Stream::Stdout, 0), &mut out, usize::MAX);
        out
    }

    #[test]
    fn a_missing_folder_is_made_and_the_file_is_not_for_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/0.log");
        Log::open(&path).unwrap().append(&records("x\n"), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1970-01-01T00:00:00.000000000Z stdout F x\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0);
    }

    #[test]
    fn links_and_pipes_in_place_of_the_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("canary");
        std::fs::write(&target, "x").unwrap();
        let link = folder.path().join("link.log");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(Log::open(&link), Err(LogError::Open { source: Errno::LOOP, .. })));
        let pipe = folder.path().join("pipe.log");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(Log::open(&pipe).is_err());
        assert!(matches!(Log::open(Path::new("/dev/null")), Err(LogError::NotAFile { .. })));
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "x");
    }

    #[test]
    fn reopening_goes_on_in_a_new_file_and_a_failed_one_in_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("0.log"), folder.path().join("0.log.1"));
        let mut log = Log::open(&path).unwrap();
        log.append(&records("one\n"), 0);
        std::fs::rename(&path, &rotated).unwrap();
        log.reopen().unwrap();
        log.append(&records("two\n"), 0);
        assert!(std::fs::read_to_string(&rotated).unwrap().ends_with(" F one\n"));
        assert!(std::fs::read_to_string(&path).unwrap().ends_with(" F two\n"));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(log.reopen().is_err());
        log.append(&records("three\n"), 0);
    }

    #[test]
    fn privileged_a_full_disk_drops_whole_records_and_tells_how_many() {
        let folder = tempfile::tempdir().unwrap();
        let options = Some(c"size=16k");
        rustix::mount::mount("none", folder.path(), "tmpfs", rustix::mount::MountFlags::empty(), options).unwrap();
        let path = folder.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        let line = format!("{}\n", "x".repeat(99));
        for _ in 0..10 {
            log.append(&records(&line.repeat(50)), 0);
        }
        let filled = std::fs::read_to_string(&path).unwrap();
        assert!(filled.ends_with(&line), "half a record: {:?}", &filled[filled.len() - 80..]);
        let kept = filled.lines().count();
        assert!(log.lost.is_some_and(|lost| lost.records == 500 - kept));
        std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        log.append(&records("again\n"), 0);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains(&format!("keelson: {} log records", 500 - kept)), "{text}");
        assert!(lines[1].ends_with(" F again") && lines.len() == 2);
        rustix::mount::unmount(folder.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
