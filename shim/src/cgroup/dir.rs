//! One cgroup directory in one hierarchy: its control files read and written whole.
//! Blocking for microseconds; daemon blocking pool, shim, OCI command line.
//! Owns a path, no descriptor.
//! Must never create a file: cgroupfs makes them, and a file that is missing says that the kernel lacks the feature.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::CgroupError;

/// A cgroup directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dir {
    path: String,
}

impl Dir {
    /// `path` is empty for the root, or begins with a slash.
    pub(super) fn new(mount: &str, path: &str) -> Dir {
        Dir { path: format!("{mount}{path}") }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn child(&self, name: &str) -> Dir {
        Dir { path: format!("{}/{name}", self.path) }
    }

    pub(super) fn exists(&self, file: &str) -> bool {
        rustix::fs::access(self.file(file), rustix::fs::Access::EXISTS).is_ok()
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        self.try_write(file, value).map_err(|source| self.write_error(file, value, source))
    }

    pub(super) fn try_write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.file(file), flags, Mode::empty())?;
        write_whole(&file, value)
    }

    pub(super) fn write_error(&self, file: &str, value: &str, source: Errno) -> CgroupError {
        CgroupError::Write { path: self.file(file), value: value.to_owned(), source }
    }

    /// Writes values that constrain each other, in the order that the kernel accepts: what it calls invalid is tried again
    /// after the others.
    pub(super) fn write_settling(&self, values: &[(&str, String)]) -> Result<(), CgroupError> {
        let mut pending: Vec<&(&str, String)> = values.iter().collect();
        while !pending.is_empty() {
            let mut refused = Vec::new();
            for entry in &pending {
                match self.try_write(entry.0, &entry.1) {
                    Ok(()) => {}
                    Err(Errno::INVAL) => refused.push(*entry),
                    Err(source) => return Err(self.write_error(entry.0, &entry.1, source)),
                }
            }
            if let (true, Some(first)) = (refused.len() == pending.len(), refused.first()) {
                return Err(self.write_error(first.0, &first.1, Errno::INVAL));
            }
            pending = refused;
        }
        Ok(())
    }

    /// Several writes to one file, which takes one entry each time.
    pub(super) fn write_each(&self, file: &str, values: &[String]) -> Result<(), CgroupError> {
        if values.is_empty() {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let open = rustix::fs::open(self.file(file), flags, Mode::empty());
        let open = open.map_err(|source| self.write_error(file, "", source))?;
        for value in values {
            write_whole(&open, value).map_err(|source| self.write_error(file, value, source))?;
        }
        Ok(())
    }

    pub(super) fn read(&self, file: &str) -> Result<String, CgroupError> {
        self.try_read(file).map_err(|source| CgroupError::Read { path: self.file(file), source })
    }

    pub(super) fn try_read(&self, file: &str) -> Result<String, Errno> {
        let open = rustix::fs::open(self.file(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = Vec::new();
        let read = read_once(&open, &mut bytes)?;
        Ok(String::from_utf8_lossy(bytes.get(..read).unwrap_or_default()).into_owned())
    }

    /// A file of many records, which comes in as many pieces as the kernel likes.
    pub(super) fn try_read_list(&self, file: &str) -> Result<String, Errno> {
        let open = rustix::fs::open(self.file(file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = vec![0; 8192];
        let mut end = 0;
        loop {
            if end == bytes.len() {
                bytes.resize(end * 2, 0);
            }
            match rustix::io::retry_on_intr(|| rustix::io::read(&open, bytes.get_mut(end..).unwrap_or_default()))? {
                0 => return Ok(String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()),
                read => end += read,
            }
        }
    }

    /// A file that holds one number, or `max`, which is None.
    pub(super) fn read_limit(&self, file: &str) -> Result<Option<u64>, CgroupError> {
        let text = self.read(file)?;
        match text.trim() {
            "max" => Ok(None),
            number => {
                let content = || CgroupError::Content { path: self.file(file), found: number.to_owned() };
                number.parse().map(Some).map_err(|_| content())
            }
        }
    }

    pub(super) fn file(&self, file: &str) -> String {
        format!("{}/{file}", self.path)
    }

    /// Names of the cgroups directly below; none when this one is gone.
    pub(super) fn children(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

fn write_whole(file: impl std::os::fd::AsFd, value: &str) -> Result<(), Errno> {
    // A control file takes one write; an empty one would never reach it.
    let value = if value.is_empty() { "\n" } else { value };
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
    if written == value.len() { Ok(()) } else { Err(Errno::IO) }
}

/// A control file that the kernel makes whole for one read, however often it was read before. Reading on to see the end would
/// make it sum everything up once more.
pub(super) fn read_once(file: impl std::os::fd::AsFd, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    if buffer.len() < 4096 {
        buffer.resize(4096, 0);
    }
    loop {
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&file, buffer.as_mut_slice(), 0))?;
        if read < buffer.len() {
            return Ok(read);
        }
        buffer.resize(buffer.len() * 2, 0);
    }
}
