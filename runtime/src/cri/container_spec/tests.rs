//! What a container's configuration becomes, and what is refused.

use super::*;

fn config() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".into(), attempt: 1 }),
        image: Some(v1::ImageSpec {
            image: "sha256:aa".into(),
            user_specified_image: "busybox".into(),
            ..v1::ImageSpec::default()
        }),
        ..v1::ContainerConfig::default()
    }
}

fn mount() -> v1::Mount {
    v1::Mount { container_path: "/data".into(), host_path: "/srv".into(), ..v1::Mount::default() }
}

#[test]
fn a_whole_configuration_arrives() {
    let spec = decode(Some(v1::ContainerConfig {
        command: vec!["sh".into()],
        args: vec!["-c".into(), "true".into()],
        working_dir: "/w".into(),
        envs: vec![v1::KeyValue { key: "K".into(), value: vec![0xff, 0xfe, b'x'] }],
        mounts: vec![v1::Mount { readonly: true, propagation: 1, ..mount() }],
        devices: vec![v1::Device { host_path: "/dev/fuse".into(), permissions: "rw".into(), ..v1::Device::default() }],
        log_path: "app/0.log".into(),
        stdin: true,
        stdin_once: true,
        tty: true,
        stop_signal: v1::Signal::Sigquit.into(),
        ..config()
    }))
    .unwrap();
    assert_eq!((spec.key.name.as_str(), spec.key.attempt), ("app", 1));
    assert_eq!((spec.image.as_str(), spec.image_as_written.as_str()), ("sha256:aa", "busybox"));
    assert_eq!(spec.env, [EnvVar { name: "K".into(), value: vec![0xff, 0xfe, b'x'] }]);
    let volume = spec.volumes.first().unwrap();
    assert_eq!((volume.access, volume.propagation), (Access::ReadOnly, Propagation::HostToContainer));
    assert_eq!(spec.devices.first().unwrap().permissions, "rw");
    assert_eq!((spec.stdin, spec.terminal, spec.stop_signal), (Stdin::OpenOnce, true, Some(3)));
    assert_eq!(spec.log_path, std::path::Path::new("app/0.log"));
}

#[test]
fn read_only_trees_and_images_are_told_apart() {
    let access = |mount| volume(mount).unwrap().access;
    assert_eq!(access(mount()), Access::ReadWrite);
    assert_eq!(access(v1::Mount { readonly: true, ..mount() }), Access::ReadOnly);
    assert_eq!(access(v1::Mount { readonly: true, recursive_read_only: true, ..mount() }), Access::RecursiveReadOnly);
    let image = volume(v1::Mount {
        host_path: String::new(),
        readonly: true,
        image: Some(v1::ImageSpec { image: "data:1".into(), ..v1::ImageSpec::default() }),
        image_sub_path: "etc".into(),
        ..mount()
    });
    let image = image.unwrap();
    assert_eq!((image.image.as_deref(), image.image_sub_path.as_str()), (Some("data:1"), "etc"));
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    type Spoil = fn(&mut v1::ContainerConfig);
    fn with(config: &mut v1::ContainerConfig, set: fn(&mut v1::Mount)) {
        let mut mount = mount();
        set(&mut mount);
        config.mounts = vec![mount];
    }
    fn image() -> Option<v1::ImageSpec> {
        Some(v1::ImageSpec { image: "i".into(), ..v1::ImageSpec::default() })
    }
    let cases: [(&str, Spoil); 18] = [
        ("config.metadata: missing", |c| c.metadata = None),
        ("config.metadata.name: is empty", |c| c.metadata = Some(v1::ContainerMetadata::default())),
        ("config.image.image: missing", |c| c.image = None),
        ("config.image.image: missing", |c| c.image = Some(v1::ImageSpec::default())),
        ("config.windows", |c| c.windows = Some(v1::WindowsContainerConfig::default())),
        ("config.stop_signal: signal 66", |c| c.stop_signal = 66),
        ("config.mounts: `data`: container_path", |c| with(c, |m| m.container_path = "data".into())),
        ("config.mounts: `/data`: host_path must be", |c| with(c, |m| m.host_path = "srv".into())),
        ("config.mounts: `/data`: give host_path or image", |c| with(c, |m| m.host_path.clear())),
        ("config.mounts: `/data`: give either", |c| with(c, |m| m.image = image())),
        ("config.mounts: `/data`: an image is mounted read-only", |c| {
            with(c, |m| (m.image, m.host_path) = (image(), String::new()));
        }),
        ("config.mounts: `/data`: image_sub_path", |c| with(c, |m| m.image_sub_path = "etc".into())),
        ("config.mounts: `/data`: propagation 5", |c| with(c, |m| m.propagation = 5)),
        ("config.mounts: `/data`: recursive_read_only needs readonly", |c| with(c, |m| m.recursive_read_only = true)),
        ("config.mounts: `/data`: recursive_read_only needs private", |c| {
            with(c, |m| (m.readonly, m.recursive_read_only, m.propagation) = (true, true, 1));
        }),
        ("config.mounts: `/data`: mount option `exec`: want noexec, nodev or nosuid", |c| {
            with(c, |m| m.mount_options = vec!["noexec".into(), "exec".into()])
        }),
        ("config.devices: host_path `fuse`", |c| {
            c.devices = vec![v1::Device { host_path: "fuse".into(), ..v1::Device::default() }];
        }),
        ("config.devices: `/dev/fuse`: permissions", |c| {
            let (host_path, permissions) = ("/dev/fuse".into(), "rwx".into());
            c.devices = vec![v1::Device { host_path, permissions, ..v1::Device::default() }];
        }),
    ];
    for (want, spoil) in cases {
        let mut config = config();
        spoil(&mut config);
        let said = decode(Some(config)).unwrap_err().to_string();
        assert!(said.starts_with(want), "want {want}\n got {said}");
    }
    assert!(decode(None).is_err());
}

proptest::proptest! {
    /// Whatever a caller sends is either meant or refused; what is meant keeps its values.
    #[test]
    fn no_mount_or_device_is_neither_taken_nor_refused(
        container_path in "[a-z/.\\x00\\n]{0,12}",
        host_path in "[a-z/.]{0,12}",
        image in proptest::option::of("[a-z:]{0,6}"),
        image_sub_path in "[a-z/]{0,3}",
        flags in proptest::array::uniform3(proptest::bool::ANY),
        propagation in -1..4i32,
        permissions in "[rwmx]{0,4}",
    ) {
        let [readonly, recursive_read_only, selinux_relabel] = flags;
        let mount = v1::Mount {
            container_path: container_path.clone(),
            host_path: host_path.clone(),
            image: image.map(|image| v1::ImageSpec { image, ..v1::ImageSpec::default() }),
            image_sub_path,
            readonly,
            recursive_read_only,
            selinux_relabel,
            propagation,
            ..v1::Mount::default()
        };
        if let Ok(volume) = volume(mount) {
            proptest::prop_assert_eq!(volume.container_path.to_str(), Some(container_path.as_str()));
            proptest::prop_assert_eq!(volume.host_path.as_os_str().is_empty(), volume.image.is_some());
            proptest::prop_assert_eq!(volume.access == Access::ReadWrite, !readonly);
            proptest::prop_assert!(volume.image.is_none() || readonly);
        }
        let taken = device(v1::Device { host_path: host_path.clone(), permissions, ..v1::Device::default() });
        proptest::prop_assert!(taken.is_err() || host_path.starts_with('/'));
    }
}
