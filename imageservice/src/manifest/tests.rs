use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::layer::Compression;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn digest(byte: u8) -> String {
    Digest::from_sha256([byte; 32]).to_string()
}

fn descriptor(media_type: &str, byte: u8) -> Value {
    json!({ "mediaType": media_type, "digest": digest(byte), "size": 10 })
}

fn image() -> Value {
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, 1), "layers": [descriptor(LAYER, 2), descriptor("application/vnd.oci.image.layer.v1.tar", 3)],
    })
}

fn with(mut document: Value, key: &str, value: Value) -> Value {
    document[key] = value;
    document
}

fn parse(document: &Value, expected: Option<&str>) -> Result<Document, ManifestError> {
    Document::parse(document.to_string().as_bytes(), expected, &Limits::default())
}

#[test]
fn both_families_are_read() {
    let Document::Image(manifest) = parse(&image(), Some(OCI_MANIFEST)).unwrap() else { panic!("not an image") };
    assert_eq!(manifest.layers[0].compression, Compression::Gzip);
    assert_eq!(manifest.layers[1].compression, Compression::Plain);
    let docker = json!({
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
        "config": descriptor("application/vnd.docker.container.image.v1+json", 1),
        "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", 2)],
    });
    assert!(matches!(parse(&docker, Some(DOCKER_MANIFEST)), Ok(Document::Image(_))));
    let list = json!({ "schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [] });
    assert!(matches!(parse(&list, Some(DOCKER_LIST)), Ok(Document::Index(_))));
    // Careless servers and old builders.
    let mut bare = image();
    bare.as_object_mut().unwrap().remove("mediaType");
    for expected in [None, Some("application/json"), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")]
    {
        assert!(matches!(parse(&bare, expected), Ok(Document::Image(_))), "{expected:?}");
    }
    assert!(matches!(parse(&json!({ "manifests": [] }), None), Ok(Document::Index(_))));
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    assert_eq!(parse(&with(image(), "manifests", json!([])), None), Err(ManifestError::Ambiguous));
    assert!(matches!(parse(&image(), Some(OCI_INDEX)), Err(ManifestError::MediaType { .. })));
    assert!(matches!(parse(&with(image(), "mediaType", json!(OCI_INDEX)), None), Err(ManifestError::Missing { .. })));
    let doubled = br#"{"layers":[],"config":{},"layers":[]}"#;
    assert!(matches!(Document::parse(doubled, None, &Limits::default()), Err(ManifestError::Json { .. })));
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let layers = |layer: Value| with(image(), "layers", json!([layer]));
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let limits = Limits::default();
    let table: Vec<(Value, &str)> = vec![
        (json!({ "schemaVersion": 1, "fsLayers": [] }), "schema 1"),
        (json!({}), "`layers` is missing"),
        (json!([]), "parse manifest"),
        (with(image(), "mediaType", json!("application/zip")), "neither an image manifest nor an index"),
        (with(image(), "config", Value::Null), "`config` is missing"),
        (
            with(image(), "config", descriptor("application/vnd.cncf.helm.config.v1+json", 1)),
            "artifact of type `application/vnd.cncf.helm",
        ),
        (layers(descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", 1)), "encrypted"),
        (layers(descriptor("application/x-tar", 1)), "media type `application/x-tar`"),
        (layers(with(descriptor(foreign, 1), "urls", json!(["https://evil.example/x"]))), "evil.example"),
        (layers(with(descriptor(LAYER, 1), "digest", json!("sha256:../../x"))), "digest of layer"),
        (layers(with(descriptor(LAYER, 1), "digest", json!(format!("sha512:{}", "a".repeat(128))))), "digest of layer"),
        (layers(with(descriptor(LAYER, 1), "size", json!(-1))), "parse manifest"),
        (layers(with(descriptor(LAYER, 1), "size", json!(limits.layer_blob_bytes + 1))), "the limit of this node"),
        (layers(json!({ "mediaType": LAYER, "digest": digest(1) })), "`size` is missing"),
        (
            with(image(), "config", with(descriptor(CONFIG, 1), "size", json!(limits.config_bytes + 1))),
            "config sha256:",
        ),
        (with(image(), "layers", Value::Array(vec![descriptor(LAYER, 1); limits.layers + 1])), "layers, more than"),
    ];
    for (document, want) in table {
        let error = parse(&document, None).unwrap_err();
        let mut text = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            text.push_str(&source.to_string());
        }
        assert!(text.contains(want), "{want}: {text}");
        assert!(text.len() < 700, "{text}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(Document::parse(deep.as_bytes(), None, &limits), Err(ManifestError::Json { .. })));
}

fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
    let entries = platforms.iter().enumerate().map(|(at, (os, architecture, variant))| {
        let mut entry = descriptor(OCI_MANIFEST, u8::try_from(at).unwrap());
        entry["platform"] = json!({ "os": os, "architecture": architecture, "variant": variant });
        entry
    });
    match parse(&json!({ "manifests": entries.collect::<Vec<_>>() }), Some(OCI_INDEX)).unwrap() {
        Document::Index(index) => index,
        Document::Image(_) => panic!("not an index"),
    }
}

fn node(architecture: &str, variant: Option<&str>) -> Platform {
    Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(Into::into) }
}

#[test]
fn the_platform_is_chosen_by_what_the_node_can_run() {
    let all = index(&[
        ("windows", "amd64", None),
        ("linux", "amd64", Some("v3")),
        ("linux", "amd64", None),
        ("linux", "arm", Some("v6")),
        ("linux", "arm", Some("v7")),
        ("linux", "arm64", Some("v8")),
        ("unknown", "unknown", None),
    ]);
    for (want, at) in [
        (node("amd64", None), 2),
        (node("x86_64", None), 2),
        (node("amd64", Some("v3")), 1),
        (node("amd64", Some("v2")), 2),
        (node("arm", Some("v7")), 4),
        (node("arm", Some("v6")), 3),
        (node("arm64", Some("v8")), 5),
        (node("arm64", None), 5),
    ] {
        assert_eq!(all.choose(&want).unwrap().digest, Digest::from_sha256([at; 32]), "{want:?}");
    }
    let none = all.choose(&node("riscv64", None)).unwrap_err().to_string();
    assert!(none.contains("linux/riscv64") && none.contains("linux/arm64/v8") && !none.contains("unknown"), "{none}");
    assert!(all.choose(&node("arm", Some("v5"))).is_err());
}

#[test]
fn attestations_are_no_images_and_an_entry_without_platform_is_the_last_resort() {
    let mut attestation = descriptor(OCI_MANIFEST, 1);
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let unnamed = descriptor(OCI_MANIFEST, 2);
    let Document::Index(index) = parse(&json!({ "manifests": [attestation, unnamed] }), None).unwrap() else {
        panic!("no index")
    };
    assert_eq!(index.choose(&node("amd64", None)).unwrap().digest, Digest::from_sha256([2; 32]));
}

fn file(document: &Value, layers: usize) -> Result<ImageFile, ManifestError> {
    ImageFile::parse(document.to_string().as_bytes(), layers, &node("amd64", None), &Limits::default())
}

#[test]
fn a_config_is_brought_into_one_form() {
    let document = json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {
            "User": "1000:1000", "Env": ["A=1", "B", "=C", "*=D", "E=", "PATH", "X=a\u{0}b", "A=2"],
            "Entrypoint": "/init", "Cmd": ["a", "b"], "WorkingDir": "/w", "StopSignal": "", "Volumes": { "/v": {}, "/a": null },
            "ExposedPorts": { "80/tcp": {} }, "Labels": { "k": "v", "n": null }, "Healthcheck": { "Test": [] },
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(1)] }, "history": [],
    });
    let file = file(&document, 1).unwrap();
    assert_eq!(file.config.env, ["A=1", "E=", "A=2"], "what names no value is never looked up on the host");
    assert_eq!(file.dropped_env, 5);
    assert_eq!(file.config.entrypoint, ["/init"]);
    assert_eq!(file.config.cmd, ["a", "b"]);
    assert_eq!(file.config.volumes, ["/a", "/v"]);
    assert_eq!(file.config.stop_signal, None);
    assert_eq!(file.config.labels["n"], "");
    assert_eq!(file.diff_ids, [Digest::from_sha256([1; 32])]);
}

#[test]
fn a_config_that_does_not_fit_is_refused() {
    let base = json!({ "architecture": "amd64", "os": "linux", "config": null, "rootfs": { "type": "layers", "diff_ids": [] } });
    assert!(file(&base, 0).is_ok());
    assert_eq!(file(&base, 1), Err(ManifestError::LayerCount { layers: 1, diff_ids: 0 }));
    let ids = with(base.clone(), "rootfs", json!({ "diff_ids": [digest(1)] }));
    assert_eq!(file(&ids, 0), Err(ManifestError::LayerCount { layers: 0, diff_ids: 1 }), "layers from nowhere");
    assert!(matches!(
        file(&with(base.clone(), "architecture", json!("s390x")), 0),
        Err(ManifestError::NoPlatform { .. })
    ));
    assert!(matches!(file(&with(base.clone(), "os", json!("windows")), 0), Err(ManifestError::NoPlatform { .. })));
    let nul = with(base.clone(), "config", json!({ "Cmd": ["a\u{0}"] }));
    assert_eq!(file(&nul, 0), Err(ManifestError::Nul { field: "Cmd" }));
    for wrong in [json!({ "Env": "A=1" }), json!({ "Entrypoint": 7 }), json!({ "Labels": [] }), json!(3)] {
        assert!(matches!(file(&with(base.clone(), "config", wrong), 0), Err(ManifestError::Json { .. })));
    }
    let bad = with(base, "rootfs", json!({ "diff_ids": ["sha256:x"] }));
    assert!(matches!(file(&bad, 1), Err(ManifestError::Digest { .. })));
}

/// Documents with the right words in the wrong places.
fn near_miss() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u8>().prop_map(|byte| Value::from(digest(byte))),
        prop_oneof![
            Just(OCI_MANIFEST),
            Just(OCI_INDEX),
            Just(LAYER),
            Just(CONFIG),
            Just("amd64"),
            Just("linux"),
            Just("")
        ]
        .prop_map(Value::from),
    ];
    let keys = prop_oneof![
        Just("layers"),
        Just("manifests"),
        Just("config"),
        Just("mediaType"),
        Just("digest"),
        Just("size"),
        Just("urls"),
        Just("platform"),
        Just("os"),
        Just("architecture"),
        Just("schemaVersion"),
        Just("rootfs"),
        Just("diff_ids"),
        Just("Env"),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::vec((keys.clone(), inner), 0..6).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_panics(document in near_miss(), noise in proptest::collection::vec(any::<u8>(), 0..60)) {
        for bytes in [document.to_string().into_bytes(), noise] {
            if let Ok(Document::Index(index)) = Document::parse(&bytes, None, &Limits::default()) {
                let _ = index.choose(&node("amd64", None));
            }
            if let Ok(file) = ImageFile::parse(&bytes, 1, &node("amd64", None), &Limits::default()) {
                prop_assert_eq!(file.diff_ids.len(), 1);
                prop_assert!(file.config.env.iter().all(|entry| entry.contains('=')));
            }
        }
    }
}
