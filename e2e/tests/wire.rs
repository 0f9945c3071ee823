//! Our `.proto` and the k8s-cri crate agree on the wire for everything that k8s-cri has: every message, field number and type,
//! every enum value and every RPC. Field by field from both descriptors, so nothing is left to a sample.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use protox::prost_reflect::{DescriptorPool, Kind};

fn k8s_cri_proto() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .expect("run cargo metadata");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let package =
        metadata["packages"].as_array().expect("packages").iter().find(|p| p["name"] == "k8s-cri").expect("k8s-cri");
    PathBuf::from(package["manifest_path"].as_str().expect("path")).parent().expect("parent").join("proto")
}

fn pool(dir: PathBuf, file: &str) -> DescriptorPool {
    DescriptorPool::from_file_descriptor_set(protox::compile([file], [dir]).expect("compile")).expect("descriptors")
}

/// Wire-equal kinds have one name here: bytes and string are the same on the wire (`KeyValue.value` became bytes in 1.37).
fn wire_kind(kind: Kind) -> String {
    match kind {
        Kind::String | Kind::Bytes => "string".into(),
        Kind::Message(message) => message.full_name().into(),
        Kind::Enum(message) => message.full_name().into(),
        other => format!("{other:?}"),
    }
}

#[test]
fn every_message_of_k8s_cri_has_the_same_fields_here() {
    let theirs = pool(k8s_cri_proto(), "v1.proto");
    let ours = pool(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../api/cri/proto")), "runtime_v1.proto");
    let mut compared = 0;
    for message in theirs.all_messages().filter(|m| m.full_name().starts_with("runtime.v1.")) {
        let our = ours
            .get_message_by_name(message.full_name())
            .unwrap_or_else(|| panic!("{} is missing", message.full_name()));
        for field in message.fields() {
            let at = format!("{}.{}", message.full_name(), field.name());
            let mine = our.get_field(field.number()).unwrap_or_else(|| panic!("{at} = {} is missing", field.number()));
            assert_eq!(mine.name(), field.name(), "{at}");
            assert_eq!(mine.cardinality(), field.cardinality(), "{at}");
            assert_eq!(wire_kind(mine.kind()), wire_kind(field.kind()), "{at}");
            compared += 1;
        }
    }
    assert!(compared > 400, "only {compared} fields were compared");
}

#[test]
fn every_enum_of_k8s_cri_has_the_same_numbers_here() {
    let theirs = pool(k8s_cri_proto(), "v1.proto");
    let ours = pool(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../api/cri/proto")), "runtime_v1.proto");
    for theirs in theirs.all_enums().filter(|e| e.full_name().starts_with("runtime.v1.")) {
        let our =
            ours.get_enum_by_name(theirs.full_name()).unwrap_or_else(|| panic!("{} is missing", theirs.full_name()));
        let values = |e: &protox::prost_reflect::EnumDescriptor| {
            e.values().map(|v| (v.number(), v.name().to_owned())).collect::<BTreeMap<_, _>>()
        };
        for (number, name) in values(&theirs) {
            assert_eq!(values(&our).get(&number), Some(&name), "{} {number}", theirs.full_name());
        }
    }
}

#[test]
fn every_rpc_of_k8s_cri_is_the_same_here() {
    let theirs = pool(k8s_cri_proto(), "v1.proto");
    let ours = pool(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../api/cri/proto")), "runtime_v1.proto");
    let methods = |pool: &DescriptorPool| {
        pool.services()
            .flat_map(|s| s.methods().collect::<Vec<_>>())
            .map(|m| {
                (
                    m.full_name().to_owned(),
                    (m.input().full_name().to_owned(), m.output().full_name().to_owned(), m.is_server_streaming()),
                )
            })
            .collect::<BTreeMap<_, _>>()
    };
    let our = methods(&ours);
    assert_eq!(our.len(), 43, "37 + 6 RPCs");
    for (name, method) in methods(&theirs).into_iter().filter(|(n, _)| n.starts_with("runtime.v1.")) {
        assert_eq!(our.get(&name), Some(&method), "{name}");
    }
}
