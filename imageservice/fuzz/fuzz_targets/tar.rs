//! Any tar, told honestly by its digest: importing it never panics, never touches what is beside the store, and can be undone.
//! Runs as root, best with TMPDIR on a tmpfs.
#![no_main]

use std::sync::LazyLock;

use keelson_imageservice::{Config, ImageService, ImportedImage, Limits};

static STORE: LazyLock<(std::path::PathBuf, ImageService)> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("keelson-fuzz-tar-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("canary"), b"untouched").unwrap();
    let limits = Limits { layer_bytes: 8 << 20, entries: 2000, ..Limits::default() };
    let service = ImageService::open(Config { root: folder.join("store"), limits, ..Config::default() }).unwrap();
    (folder, service)
});

libfuzzer_sys::fuzz_target!(|tar: &[u8]| {
    let (folder, service) = &*STORE;
    // The fuzzer cannot find checksums: give every block that could be a header its own.
    let mut tar = tar.to_vec();
    for block in tar.chunks_exact_mut(512) {
        if block[148..156] == *b"checksum" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let image = ImportedImage { name: "fuzz:tar".into(), layers: vec![tar], ..ImportedImage::default() };
    if let Ok(image) = service.import(image) {
        service.remove(&image.id.to_string()).unwrap();
    }
    assert!(service.list().is_empty());
    let beside: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 2);
    assert_eq!(std::fs::read(folder.join("canary")).unwrap(), b"untouched");
});
