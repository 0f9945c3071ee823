//! Any bytes as manifest, index and config: reading never panics, and what is accepted keeps within the limits.
#![no_main]

use keelson_imageservice::{
    Limits, Platform,
    manifest::{Document, ImageFile},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let node = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
    match Document::parse(bytes, None, &limits) {
        Ok(Document::Image(manifest)) => {
            assert!(manifest.layers.len() <= limits.layers && manifest.config.size <= limits.config_bytes);
        }
        Ok(Document::Index(index)) => drop(index.choose(&node)),
        Err(error) => assert!(error.to_string().len() < 10_000),
    }
    if let Ok(file) = ImageFile::parse(bytes, 0, &node, &limits) {
        assert!(file.diff_ids.is_empty() && file.config.env.iter().all(|entry| entry.contains('=')));
    }
});
