//! What a security context becomes, and what is refused.

use v1::security_profile::ProfileType;

use super::*;

fn context() -> v1::LinuxContainerSecurityContext {
    v1::LinuxContainerSecurityContext::default()
}

fn profile(profile_type: impl Into<i32>, localhost_ref: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost_ref.into() })
}

#[test]
fn no_context_hides_the_default_paths_and_an_empty_one_hides_none() {
    assert_eq!(decode(None).unwrap().masked_paths, None);
    let unmasked = decode(Some(context())).unwrap();
    assert_eq!((unmasked.masked_paths, unmasked.readonly_paths), (Some(vec![]), Some(vec![])));
}

#[test]
fn a_whole_context_arrives() {
    let security = decode(Some(v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
        }),
        run_as_user: Some(v1::Int64Value { value: 1000 }),
        run_as_group: Some(v1::Int64Value { value: -7 }),
        supplemental_groups: vec![5, 6],
        supplemental_groups_policy: 1,
        readonly_rootfs: true,
        no_new_privs: true,
        masked_paths: vec!["/proc/kcore".into()],
        seccomp: profile(ProfileType::RuntimeDefault, ""),
        ..context()
    }))
    .unwrap();
    assert_eq!(security.run_as, RunAs::Uid(1000));
    // Passed on as it is: the engine refuses it by the same rule as an image's.
    assert_eq!(security.run_as_group, Some(-7));
    assert_eq!((security.groups_policy, security.supplementary_groups), (GroupsPolicy::Strict, vec![5, 6]));
    assert_eq!(security.capabilities.ambient, ["NET_BIND_SERVICE"]);
    assert!(security.readonly_rootfs && security.no_new_privileges && !security.privileged);
    assert_eq!(security.masked_paths.as_deref(), Some(["/proc/kcore".to_owned()].as_slice()));
    assert_eq!(security.seccomp, Seccomp::RuntimeDefault);
}

#[test]
fn profiles_are_read_in_both_forms_and_the_new_one_wins() {
    for (new, old, want) in [
        (None, "", Some(Seccomp::Unconfined)),
        (None, "unconfined", Some(Seccomp::Unconfined)),
        (None, "runtime/default", Some(Seccomp::RuntimeDefault)),
        (None, "docker/default", Some(Seccomp::RuntimeDefault)),
        (None, "localhost//p.json", Some(Seccomp::Localhost("/p.json".into()))),
        (None, "localhost/p.json", None),
        (None, "Unconfined", None),
        (profile(ProfileType::Unconfined, ""), "runtime/default", Some(Seccomp::Unconfined)),
        (profile(ProfileType::Localhost, "/p.json"), "", Some(Seccomp::Localhost("/p.json".into()))),
        (profile(ProfileType::Localhost, "../p.json"), "", None),
        (profile(ProfileType::Localhost, ""), "", None),
        (profile(7, ""), "", None),
    ] {
        assert_eq!(seccomp(new.clone(), old).ok(), want, "{new:?} {old}");
    }
    for (new, old, want) in [
        (None, "", Some(AppArmor::Unspecified)),
        (None, "unconfined", Some(AppArmor::Unconfined)),
        (None, "runtime/default", Some(AppArmor::RuntimeDefault)),
        (None, "localhost/mine", Some(AppArmor::Localhost("mine".into()))),
        (None, "mine", None),
        (profile(ProfileType::RuntimeDefault, ""), "unconfined", Some(AppArmor::RuntimeDefault)),
        (profile(ProfileType::Localhost, "mine"), "", Some(AppArmor::Localhost("mine".into()))),
        (profile(-1, ""), "", None),
    ] {
        assert_eq!(apparmor(new.clone(), old).ok(), want, "{new:?} {old}");
    }
}

#[test]
fn pid_namespaces_are_those_of_the_protocol() {
    let id = "a5".repeat(32);
    assert_eq!(pid(0, "").unwrap(), ContainerPid::Sandbox);
    assert_eq!(pid(1, "").unwrap(), ContainerPid::Own);
    assert_eq!(pid(2, "").unwrap(), ContainerPid::Host);
    assert_eq!(pid(3, &id).unwrap(), ContainerPid::Target(id.parse().unwrap()));
    for (value, target, want) in [(4, "", "pid: mode 4"), (3, "../x", "target_id: `../x`"), (3, "", "target_id: ``")] {
        let said = pid(value, target).unwrap_err().to_string();
        assert!(said.contains(want), "{said}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    type Spoil = fn(&mut v1::LinuxContainerSecurityContext);
    let cases: [(&str, Spoil); 4] = [
        ("run_as_username: is set beside", |c| {
            c.run_as_user = Some(v1::Int64Value { value: 0 });
            c.run_as_username = "root".into();
        }),
        ("supplemental_groups_policy: policy 2", |c| c.supplemental_groups_policy = 2),
        ("cgroup_mount_mode: mode 3", |c| c.cgroup_mount_mode = 3),
        ("namespace_options.userns_options: uids: 0 mappings", |c| {
            c.namespace_options = Some(v1::NamespaceOption {
                userns_options: Some(v1::UserNamespace::default()),
                ..v1::NamespaceOption::default()
            });
        }),
    ];
    for (want, spoil) in cases {
        let mut context = context();
        spoil(&mut context);
        let said = decode(Some(context)).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{FIELD}.{want}")), "want {want}\n got {said}");
    }
}
