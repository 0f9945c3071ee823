//! The image built into keelson: one layer with one file, the static shim program, which can also say hello.
//! Blocking, before the daemon starts: the image service is opened on the scratch folder, filled, and closed again.
//! Owns the image's name and layout. Must never need a registry or any file but the shim.

use std::sync::Arc;

use keelson_imageservice::{Image, ImageConfig, ImageService, ImportedImage};

use super::{
    super::{CliError, rooms},
    broken,
};
use crate::config::Config;

/// No registry has this host: nothing can be meant but the built-in image.
pub(super) const NAME: &str = "keelson.internal/hello:latest";
/// The program in the image.
pub(super) const PROGRAM: &str = "/hello";

pub(super) fn import(config: &Config) -> Result<Arc<Image>, CliError> {
    let path = rooms::shim(config)?;
    let program = std::fs::read(&path).map_err(|source| CliError::File { act: "read", path: path.clone(), source })?;
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| CliError::Import { source };
    let images = ImageService::open(rooms::images(config)).map_err(|error| failed(error.into()))?;
    let layer = layer(&program).ok_or_else(|| broken("make the built-in image", "the shim program is too large"))?;
    let image = ImportedImage {
        name: NAME.to_owned(),
        config: ImageConfig {
            entrypoint: vec![PROGRAM.to_owned(), "hello".to_owned()],
            env: vec!["PATH=/".to_owned()],
            working_dir: "/".to_owned(),
            ..ImageConfig::default()
        },
        layers: vec![layer],
        pinned: false,
    };
    images.import(image).map_err(|error| failed(error.into()))
}

/// A tar archive with the program, executable, owned by root.
fn layer(program: &[u8]) -> Option<Vec<u8>> {
    const BLOCK: usize = 512;
    let mut archive = header(PROGRAM.trim_start_matches('/'), program.len())?.to_vec();
    archive.extend_from_slice(program);
    // Whole blocks, and two empty ones at the end.
    archive.resize(archive.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    Some(archive)
}

/// A ustar header of a regular file with mode 0755.
fn header(name: &str, size: usize) -> Option<[u8; 512]> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &[u8]| header.get_mut(at..at + text.len()).map(|place| place.copy_from_slice(text));
    put(0, name.as_bytes())?;
    put(100, b"0000755\0")?;
    put(108, b"0000000\0")?;
    put(116, b"0000000\0")?;
    put(124, format!("{size:011o}\0").as_bytes())?;
    put(136, b"00000000000\0")?;
    // The checksum is taken with its own field full of spaces.
    put(148, b"        ")?;
    put(156, b"0")?;
    put(257, b"ustar\x0000")?;
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    let sum = format!("{sum:06o}\0 ");
    header.get_mut(148..156)?.copy_from_slice(sum.as_bytes());
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_an_archive_that_tar_reads() {
        let folder = tempfile::tempdir().unwrap();
        for size in [1, 511, 512, 513, 100_000] {
            let program: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let layer = layer(&program).unwrap();
            assert_eq!(layer.len() % 512, 0);
            let archive = folder.path().join("layer.tar");
            std::fs::write(&archive, &layer).unwrap();
            let mut archive = tar::Archive::new(std::fs::File::open(&archive).unwrap());
            let mut entries = archive.entries().unwrap();
            let mut entry = entries.next().unwrap().unwrap();
            assert_eq!(entry.path().unwrap().to_str(), Some("hello"));
            assert_eq!((entry.header().mode().unwrap(), entry.header().size().unwrap()), (0o755, size));
            let mut found = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut found).unwrap();
            assert_eq!(found, program);
            assert!(entries.next().is_none());
        }
    }
}
