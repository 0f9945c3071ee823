use super::*;

#[test]
fn a_minimal_spec_reads_with_empty_lists() {
    let spec: Spec = serde_json::from_str(
        r#"{"ociVersion":"1.0.2","mounts":null,"linux":{"namespaces":[{"type":"network","path":"/x"}]}}"#,
    )
    .unwrap();
    assert!(spec.mounts.is_empty());
    assert_eq!(spec.linux.unwrap().namespaces, [Namespace { kind: NamespaceKind::Network, path: "/x".into() }]);
}

#[test]
fn unknown_fields_are_tolerated() {
    let spec: Spec =
        serde_json::from_str(r#"{"vm":{},"process":{"cwd":"/","execCPUAffinity":{},"args":["a"]}}"#).unwrap();
    assert_eq!(spec.process.unwrap().args, ["a"]);
}

#[test]
fn what_is_written_is_read_back() {
    let mut spec = Spec { hostname: "h".into(), ..Spec::default() };
    spec.process = Some(Process { args: vec!["x".into()], ..Process::default() });
    spec.linux = Some(Linux {
        uid_mappings: vec![IdMapping { container_id: 0, host_id: 1000, size: 1 }],
        resources: Some(Resources {
            memory: Some(Memory { kernel_tcp: Some(1), ..Memory::default() }),
            ..Resources::default()
        }),
        ..Linux::default()
    });
    let text = serde_json::to_string(&spec).unwrap();
    assert!(text.contains("\"containerID\":0") && text.contains("\"kernelTCP\":1"), "{text}");
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}

#[test]
fn the_spellings_of_the_specification_are_kept() {
    let text = r#"{"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":5}]},"network":{"classID":7},"memory":{"disableOOMKiller":true}}"#;
    let resources: Resources = serde_json::from_str(text).unwrap();
    assert_eq!(resources.block_io.unwrap().throttle_read_iops_device.len(), 1);
    assert_eq!(resources.network.unwrap().class_id, Some(7));
    assert_eq!(resources.memory.unwrap().disable_oom_killer, Some(true));
}
