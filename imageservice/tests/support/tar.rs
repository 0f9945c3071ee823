//! Writes tars that no honest tool would write: any name, any order, any header.
//! Test code. Owns nothing. Must never correct what it is told to write.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Write as _;

use keelson_imageservice::{Compression, Digest, LayerDescriptor};
use sha2::{Digest as _, Sha256};

#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

/// One entry; defaults are a file of mode 0644 owned by root at time 1.
pub(crate) struct Entry<'a> {
    pub(crate) flag: u8,
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) data: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) pax: Vec<(&'a str, Vec<u8>)>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            flag: b'0',
            name: b"",
            link: b"",
            data: b"",
            mode: 0o644,
            owner: (0, 0),
            mtime: 1,
            device: (0, 0),
            pax: Vec::new(),
        }
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(&Entry { name: name.as_bytes(), data, ..Entry::default() })
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(&Entry { flag: b'5', name: name.as_bytes(), mode: 0o755, ..Entry::default() })
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(&Entry { flag: b'2', name: name.as_bytes(), link: target.as_bytes(), ..Entry::default() })
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(&Entry { flag: b'1', name: name.as_bytes(), link: target.as_bytes(), ..Entry::default() })
    }

    pub(crate) fn entry(mut self, entry: &Entry) -> Self {
        let mut pax = entry.pax.clone();
        if entry.name.len() > 100 {
            pax.push(("path", entry.name.to_vec()));
        }
        if entry.link.len() > 100 {
            pax.push(("linkpath", entry.link.to_vec()));
        }
        if !pax.is_empty() {
            let text: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            self.raw(b'x', b"pax", &text);
        }
        let mut header = header(entry.flag, entry.name, entry.data.len());
        let old = header.as_old_mut();
        put(&mut old.linkname, entry.link);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        header.set_device_major(entry.device.0).unwrap();
        header.set_device_minor(entry.device.1).unwrap();
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.pad(entry.data);
        self
    }

    pub(crate) fn raw(&mut self, flag: u8, name: &[u8], data: &[u8]) {
        self.0.extend(header(flag, name, data.len()).as_bytes());
        self.pad(data);
    }

    pub(crate) fn pad(&mut self, data: &[u8]) {
        self.0.extend(data);
        let filled = self.0.len().next_multiple_of(512);
        self.0.resize(filled, 0);
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub(crate) fn header(flag: u8, name: &[u8], size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let old = header.as_old_mut();
    put(&mut old.name, name);
    old.linkflag = [flag];
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

fn put(field: &mut [u8; 100], text: &[u8]) {
    let length = text.len().min(100);
    field[..length].copy_from_slice(&text[..length]);
}

pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| rest + length.to_string().len() == *length).unwrap();
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend(value);
    record.push(b'\n');
    record
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

pub(crate) fn descriptor(blob: &[u8], compression: Compression) -> LayerDescriptor {
    LayerDescriptor { digest: digest(blob), size: blob.len() as u64, compression }
}
