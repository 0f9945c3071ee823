//! A folder as one layer blob: a deterministic tar with hard links, compressed, with both digests.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::Compression;

/// Layer times: builds of the same content give the same digest.
const MTIME: u64 = 1_767_225_600;

pub(super) struct Blob {
    pub(super) file: NamedTempFile,
    pub(super) digest: String,
    pub(super) diff_id: String,
    pub(super) size: u64,
}

/// Hashes what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Hashing { inner, hash: Sha256::new(), size: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        let digest = keelson_api::Digest::from_sha256(self.hash.finalize().into());
        (self.inner, digest.to_string(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

pub(super) fn pack(tree: &Path, compression: Compression, scratch: &Path) -> Result<Blob> {
    let out = Hashing::new(io::BufWriter::new(NamedTempFile::new_in(scratch)?));
    let (out, diff_id) = match compression {
        Compression::Gzip => {
            let (gz, diff_id) = write_tar(tree, flate2::write::GzEncoder::new(out, flate2::Compression::new(6)))?;
            (gz.finish()?, diff_id)
        }
        Compression::Zstd => {
            let (zs, diff_id) = write_tar(tree, zstd::Encoder::new(out, 3)?)?;
            (zs.finish()?, diff_id)
        }
        Compression::None => write_tar(tree, out)?,
    };
    let (file, digest, size) = out.finish();
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Blob { file, digest, diff_id, size })
}

fn write_tar<W: Write>(tree: &Path, out: W) -> Result<(W, String)> {
    let mut tar = tar::Builder::new(Hashing::new(out));
    let mut links = HashMap::new();
    append(&mut tar, tree, Path::new(""), &mut links)?;
    let (out, diff_id, _) = tar.into_inner()?.finish();
    Ok((out, diff_id))
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    root: &Path,
    at: &Path,
    links: &mut HashMap<u64, PathBuf>,
) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(root.join(at))?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = at.join(entry.file_name());
        let path = entry.path();
        let meta = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(MTIME);
        header.set_size(0);
        let kind = meta.file_type();
        let context = || format!("add `{}`", path.display());
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, &name, io::empty()).with_context(context)?;
            append(tar, root, &name, links)?;
        } else if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, &name, fs::read_link(&path)?).with_context(context)?;
        } else if kind.is_file() {
            if meta.nlink() > 1
                && let Some(first) = links.get(&meta.ino())
            {
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, &name, first).with_context(context)?;
                continue;
            }
            links.insert(meta.ino(), name.clone());
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(meta.len());
            tar.append_data(&mut header, &name, fs::File::open(&path)?).with_context(context)?;
        } else if kind.is_char_device() || kind.is_block_device() || kind.is_fifo() {
            let device = meta.rdev();
            header.set_entry_type(if kind.is_fifo() { tar::EntryType::Fifo } else { tar::EntryType::Char });
            header.set_device_major(rustix::fs::major(device))?;
            header.set_device_minor(rustix::fs::minor(device))?;
            tar.append_data(&mut header, &name, io::empty()).with_context(context)?;
        }
    }
    Ok(())
}
