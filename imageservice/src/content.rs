//! Blobs by digest: `content/sha256/<hex>`, verified when written, read with a bound.
//! Called from blocking threads of the daemon; `has` and `usage` answer from memory.
//! Owns the folder `content` and its `tmp`. Must never make a blob visible under a digest that its bytes do not have.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use keelson_api::Digest;
use rustix::fs::{AtFlags, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::{
    disk::{self, Durability},
    usage::FsUsage,
};

/// Why a blob could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The bytes hash to something else.
    #[error("store blob {expected}: its bytes have the digest {found}")]
    Mismatch {
        /// What was promised.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// No such blob.
    #[error("read blob {digest}: not in the content store")]
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// The blob is larger than the reader is ready for.
    #[error("read blob {digest}: larger than {max} bytes")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// The reader's bound.
        max: u64,
    },
    /// The filesystem refused.
    #[error("{act} blob {digest}")]
    Io {
        /// `store`, `read`, `remove`.
        act: &'static str,
        /// The blob.
        digest: Digest,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The content store; a handle that is cheap to clone.
#[derive(Debug, Clone)]
pub struct Content(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    blobs: OwnedFd,
    tmp: OwnedFd,
    /// Every stored blob.
    present: Mutex<HashMap<Digest, Present>>,
}

#[derive(Debug, Clone, Copy)]
struct Present {
    size: u64,
    /// Covered by a `syncfs` since it was stored.
    durable: bool,
}

impl Content {
    /// Opens `content` below `root` and sweeps temporaries. Which blobs are needed, and so durable, the image records say.
    pub(crate) fn open(root: &OwnedFd) -> io::Result<Self> {
        let dir = disk::ensure_dir(root, "content", Mode::RWXU)?;
        let blobs = disk::ensure_dir(&dir, "sha256", Mode::RWXU)?;
        let tmp = disk::ensure_dir(&dir, "tmp", Mode::RWXU)?;
        for name in disk::names(&tmp)? {
            rustix::fs::unlinkat(&tmp, &*name, AtFlags::empty())?;
        }
        let mut present = HashMap::new();
        for name in disk::names(&blobs)? {
            if let Ok(digest) = Digest::from_hex(&name) {
                let stat = rustix::fs::statat(&blobs, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                present.insert(digest, Present { size, durable: true });
            }
        }
        Ok(Self(Arc::new(Inner { blobs, tmp, present: Mutex::new(present) })))
    }

    /// Whether the blob is here; memory only.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.present().contains_key(digest)
    }

    /// Stores a small blob (manifest, index, config). Storing it again is a success.
    ///
    /// # Errors
    /// [`ContentError::Mismatch`] when the bytes are not the digest's; [`ContentError::Io`].
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ContentError> {
        let found = Digest::from_sha256(Sha256::digest(bytes).into());
        if found != *digest {
            return Err(ContentError::Mismatch { expected: *digest, found });
        }
        if self.has(digest) {
            return Ok(());
        }
        disk::replace_file(&self.0.blobs, &self.0.tmp, &digest.hex(), (bytes, Durability::Cached))
            .map_err(|source| ContentError::Io { act: "store", digest: *digest, source })?;
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.present().insert(*digest, Present { size, durable: false });
        Ok(())
    }

    /// Reads a blob of at most `max` bytes and verifies it again: a disk may have lost what was written. What it has lost is no longer
    /// here, so that the next `put` stores it anew.
    ///
    /// # Errors
    /// [`ContentError::Missing`], [`ContentError::TooLarge`], [`ContentError::Mismatch`], [`ContentError::Io`].
    pub fn read(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, ContentError> {
        let bytes = disk::read_file(&self.0.blobs, &digest.hex(), max).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                self.present().remove(digest);
                ContentError::Missing { digest: *digest }
            }
            io::ErrorKind::FileTooLarge => ContentError::TooLarge { digest: *digest, max },
            _ => ContentError::Io { act: "read", digest: *digest, source },
        })?;
        let found = Digest::from_sha256(Sha256::digest(&bytes).into());
        if found != *digest {
            self.present().remove(digest);
            return Err(ContentError::Mismatch { expected: *digest, found });
        }
        Ok(bytes)
    }

    /// Removes a blob; one that is not here is a success.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), ContentError> {
        match rustix::fs::unlinkat(&self.0.blobs, digest.hex(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(ContentError::Io { act: "remove", digest: *digest, source: errno.into() }),
        }
        self.present().remove(digest);
        Ok(())
    }

    /// Whether every one of these is here and has been covered by a `syncfs`.
    pub(crate) fn all_durable<'a>(&self, mut digests: impl Iterator<Item = &'a Digest>) -> bool {
        let present = self.present();
        digests.all(|digest| present.get(digest).is_some_and(|blob| blob.durable))
    }

    /// Notes that a `syncfs` which began after these were stored has ended.
    pub(crate) fn mark_durable<'a>(&self, digests: impl Iterator<Item = &'a Digest>) {
        let mut present = self.present();
        for digest in digests {
            if let Some(blob) = present.get_mut(digest) {
                blob.durable = true;
            }
        }
    }

    /// Every blob here.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        self.present().keys().copied().collect()
    }

    /// Size of a blob, if it is here.
    pub(crate) fn size(&self, digest: &Digest) -> Option<u64> {
        self.present().get(digest).map(|blob| blob.size)
    }

    /// Bytes and inodes of all blobs; memory only.
    pub(crate) fn usage(&self) -> FsUsage {
        self.present().values().fold(FsUsage::default(), |sum, blob| sum.plus(&FsUsage::file(blob.size)))
    }

    /// A blob that is written while it streams by.
    pub(crate) fn writer(&self) -> io::Result<BlobWriter> {
        let name = disk::temp_name("blob");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.0.tmp, &*name, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(BlobWriter { content: self.clone(), file, name: Some(name), size: 0 })
    }

    fn present(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Present>> {
        self.0.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob under way; dropped without [`BlobWriter::publish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    content: Content,
    file: File,
    name: Option<String>,
    size: u64,
}

impl BlobWriter {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size = self.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.file.write_all(bytes)
    }

    /// Makes the blob visible; the caller has verified that what was written has this digest.
    pub(crate) fn publish(mut self, verified: &Digest) -> io::Result<()> {
        if let Some(name) = self.name.take() {
            let inner = &self.content.0;
            if let Err(errno) = rustix::fs::renameat(&inner.tmp, &*name, &inner.blobs, verified.hex()) {
                self.name = Some(name);
                return Err(errno.into());
            }
            self.content.present().insert(*verified, Present { size: self.size, durable: false });
        }
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Best effort: what stays is swept at the next open.
            let _ = rustix::fs::unlinkat(&self.content.0.tmp, &**name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Content) {
        let temp = tempfile::tempdir().unwrap();
        let root = disk::ensure_root(temp.path(), Mode::RWXU).unwrap();
        let content = Content::open(&root).unwrap();
        (temp, content)
    }

    fn digest(bytes: &[u8]) -> Digest {
        Digest::from_sha256(Sha256::digest(bytes).into())
    }

    #[test]
    fn a_blob_is_read_back_and_found_again_after_reopening() {
        let (temp, content) = store();
        let id = digest(b"manifest");
        content.put(&id, b"manifest").unwrap();
        content.put(&id, b"manifest").unwrap();
        assert_eq!(content.read(&id, 100).unwrap(), b"manifest");
        assert!(matches!(content.read(&id, 7), Err(ContentError::TooLarge { max: 7, .. })));
        let root = disk::ensure_root(temp.path(), Mode::RWXU).unwrap();
        let again = Content::open(&root).unwrap();
        assert!(again.has(&id));
        assert_eq!(again.usage().inodes_used, 1);
        again.remove(&id).unwrap();
        again.remove(&id).unwrap();
        assert!(matches!(again.read(&id, 100), Err(ContentError::Missing { .. })));
    }

    #[test]
    fn bytes_that_do_not_match_are_refused_at_both_ends() {
        let (temp, content) = store();
        let id = digest(b"good");
        assert!(matches!(content.put(&id, b"evil"), Err(ContentError::Mismatch { .. })));
        assert!(!content.has(&id));
        content.put(&id, b"good").unwrap();
        std::fs::write(temp.path().join("content/sha256").join(id.hex()), b"torn").unwrap();
        assert!(matches!(content.read(&id, 100), Err(ContentError::Mismatch { .. })));
        // What the disk lost is stored anew.
        content.put(&id, b"good").unwrap();
        assert_eq!(content.read(&id, 100).unwrap(), b"good");
    }

    #[test]
    fn a_writer_dropped_half_way_leaves_nothing() {
        let (temp, content) = store();
        let mut writer = content.writer().unwrap();
        writer.write(b"half").unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(temp.path().join("content/tmp")).unwrap().count(), 0);
        let mut writer = content.writer().unwrap();
        writer.write(b"whole").unwrap();
        writer.publish(&digest(b"whole")).unwrap();
        assert_eq!(content.read(&digest(b"whole"), 9).unwrap(), b"whole");
    }
}
