//! How fast one layer is unpacked: a synthetic tar of 54,000 files and 400 MB, plain, gzip and zstd.
//! Run by hand: `cargo run --release -p keelson-imageservice --example unpack_speed [folder]`. Owns a temporary folder in the one it
//! is given. Must never be read as a comparison: figures of different machines, or of debug builds, say nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, run by a person")]

use std::{io::Write as _, time::Instant};

use keelson_imageservice::{
    Compression, Config, Digest, ImageService, ImportedImage, Job, LayerDescriptor, SnapshotKey,
};
use sha2::{Digest as _, Sha256};

fn main() {
    let folder = std::env::args_os().nth(1).unwrap_or_else(|| std::env::temp_dir().into());
    let tar = synthetic();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(&tar).unwrap();
    let blobs = [
        (Compression::Plain, tar.clone()),
        (Compression::Gzip, gzip.finish().unwrap()),
        (Compression::Zstd, zstd::stream::encode_all(tar.as_slice(), 3).unwrap()),
    ];
    let diff_id = digest(&tar);
    snapshots(&folder);
    println!("tar {} MB", tar.len() >> 20);
    for round in 0..3 {
        for (compression, blob) in &blobs {
            let temp = tempfile::tempdir_in(&folder).unwrap();
            let service = ImageService::open(Config { root: temp.path().join("store"), ..Config::default() }).unwrap();
            let told = LayerDescriptor { digest: digest(blob), size: blob.len() as u64, compression: *compression };
            let (before, started) = (cpu(), Instant::now());
            let hold = service.layers().unpack(&told, &diff_id, blob.as_slice(), &Job::new()).unwrap();
            let (wall, used) = (started.elapsed(), cpu() - before);
            drop(hold);
            println!(
                "round {round} {compression:?}: {:.2} s wall, {used:.2} s CPU, {} MB in, {:.0} MB/s of tar",
                wall.as_secs_f64(),
                blob.len() >> 20,
                (tar.len() >> 20) as f64 / wall.as_secs_f64(),
            );
        }
    }
}

/// A snapshot made and given up again, as each container does.
fn snapshots(folder: &std::ffi::OsStr) {
    let temp = tempfile::tempdir_in(folder).unwrap();
    let service = ImageService::open(Config { root: temp.path().join("store"), ..Config::default() }).unwrap();
    let layers = (0..8u8).map(|byte| vec![0; 1024 + 512 * usize::from(byte)]).collect();
    let image = service.import(ImportedImage { name: "speed".into(), layers, ..ImportedImage::default() }).unwrap();
    let keys: Vec<SnapshotKey> = (0..1000).map(|at| format!("c{at}").parse().unwrap()).collect();
    let started = Instant::now();
    for key in &keys {
        service.prepare(key, &image.id).unwrap();
    }
    let prepared = started.elapsed() / 1000;
    let started = Instant::now();
    for key in &keys {
        service.discard(key).unwrap();
    }
    println!("prepare {prepared:?}, discard {:?} each", started.elapsed() / 1000);
}

/// 54,000 files in 3,000 directories, most of them small, text and noise mixed as in a distribution.
fn synthetic() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::with_capacity(450 << 20));
    let mut seed = 88_172_645_463_325_252u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let words: Vec<String> = (0..4000).map(|_| format!("{:x} ", random() % 0xff_ffff)).collect();
    for directory in 0..3000u64 {
        let path = format!("usr/lib/group{}/package{directory}", directory % 50);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        tar.append_data(&mut header, &path, std::io::empty()).unwrap();
        for file in 0..18 {
            let size = if file == 0 { 60_000 + random() % 20_000 } else { random() % 7600 };
            let size = usize::try_from(size).unwrap();
            let mut data = Vec::with_capacity(size + 16);
            while data.len() < size {
                if random() % 5 == 0 {
                    data.extend(random().to_le_bytes());
                } else {
                    data.extend(words[usize::try_from(random() % 4000).unwrap()].bytes());
                }
            }
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000 + random() % 1000);
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, format!("{path}/file{file}"), data.as_slice()).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// User and system seconds of this process.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}
