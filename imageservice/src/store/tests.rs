//! What the store promises, with the power cut at each step: an image exists wholly or not at all.
//! Beside the code because only here the failpoints of `ImageService::step` exist; the rest is in `tests/store.rs`.

use super::*;
use crate::{image::ImageConfig, import::ImportedImage};

fn open(root: &std::path::Path) -> ImageService {
    ImageService::open(Config { root: root.to_owned(), ..Config::default() }).unwrap()
}

fn tar(data: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(data.len()).unwrap());
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", data).unwrap();
    tar.into_inner().unwrap()
}

fn image(name: &str, data: &[u8]) -> ImportedImage {
    let config = ImageConfig { cmd: vec![String::from_utf8_lossy(data).into_owned()], ..ImageConfig::default() };
    ImportedImage { name: name.into(), config, layers: vec![tar(data)], pinned: false }
}

/// Everything on disk that is not a folder of ours.
fn left(root: &std::path::Path) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["images", "layers", "content/sha256", "content/tmp", "images/tmp", "layers/tmp"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name != "tmp" {
                left.push(format!("{folder}/{name}"));
            }
        }
    }
    left
}

#[test]
fn privileged_a_crash_before_the_record_leaves_nothing_and_after_it_the_image() {
    for (step, exists) in [("blobs are stored", false), ("filesystem is synced", false), ("record is written", true)] {
        let temp = tempfile::tempdir().unwrap();
        let service = open(temp.path());
        *service.fail_at.lock().unwrap() = Some(step);
        assert!(service.import(image("docker.io/library/a:1", b"a")).is_err(), "{step}");
        // The failpoint stands for the end of the process: what memory holds from here on is lost.
        drop(service);
        let service = open(temp.path());
        assert_eq!(service.find("docker.io/library/a:1").is_some(), exists, "{step}");
        assert_eq!(left(temp.path()).is_empty(), !exists, "{step}: {:?}", left(temp.path()));
        // And the next attempt succeeds.
        service.import(image("docker.io/library/a:1", b"a")).unwrap();
        assert_eq!(service.list().len(), 1);
    }
}

#[test]
fn privileged_a_crash_in_the_middle_of_a_tags_move_leaves_it_to_the_later_image() {
    let temp = tempfile::tempdir().unwrap();
    let service = open(temp.path());
    let old = service.import(image("docker.io/library/a:1", b"old")).unwrap();
    *service.fail_at.lock().unwrap() = Some("record is written");
    assert!(service.import(image("docker.io/library/a:1", b"new")).is_err());
    drop(service);
    for _ in 0..2 {
        let service = open(temp.path());
        let found = service.find("docker.io/library/a:1").unwrap();
        assert_ne!(found.id, old.id);
        assert!(service.find(&old.id.to_string()).unwrap().tags.is_empty());
    }
}

#[test]
fn privileged_folders_that_take_too_long_to_look_for_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let limits = crate::Limits { entries: 100, ..crate::Limits::default() };
    let service = ImageService::open(Config { root: temp.path().to_owned(), limits, ..Config::default() }).unwrap();
    let of = |depth: usize| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{}f", "d/".repeat(depth)), std::io::empty()).unwrap();
        let layers = vec![super::tests::tar(b"below"), tar.into_inner().unwrap()];
        ImportedImage { layers, ..image("docker.io/library/a:1", b"") }
    };
    service.import(of(20)).unwrap();
    let error = service.import(of(90)).unwrap_err();
    let text = std::error::Error::source(&error).and_then(std::error::Error::source).unwrap().to_string();
    assert!(text.contains("takes too long"), "{text}");
}

#[test]
fn privileged_an_image_whose_record_cannot_be_written_is_not_shown() {
    let temp = tempfile::tempdir().unwrap();
    let service = open(temp.path());
    // A folder where the record should go.
    let id = service.import(image("docker.io/library/a:1", b"a")).unwrap().id;
    service.remove("docker.io/library/a:1").unwrap();
    std::fs::create_dir(temp.path().join("images").join(Record::file_name(&id))).unwrap();
    assert!(service.import(image("docker.io/library/a:1", b"a")).is_err());
    assert!(service.list().is_empty());
    assert_eq!(std::fs::read_dir(temp.path().join("images/tmp")).unwrap().count(), 0);
}
