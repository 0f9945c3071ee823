//! Where a container's cgroup is, as `linux.cgroupsPath` says it: a path, or `slice:prefix:name` when systemd makes it.
//! Pure functions. Owns the prefix `keelson`.
//! Must never let a sandbox's parent path leave the cgroup tree: it was checked before.

/// Names a container's scope: `keelson-<id>.scope`. kubelet and cAdvisor take what follows the last `-` for the id.
const PREFIX: &str = "keelson";

/// The path for the process tree `id`. `parent` is the sandbox's, in either form; `own` names a parent of our own for an empty one.
pub(crate) fn of(systemd: bool, parent: &str, own: &str, id: &str) -> String {
    if systemd {
        return format!("{}:{PREFIX}:{id}", slice(parent));
    }
    match parent.trim_end_matches('/') {
        "" => format!("/{PREFIX}-{own}/{id}"),
        parent => format!("{parent}/{id}"),
    }
}

/// The parent under cgroupfs that a sandbox with this id uses.
pub(crate) fn parent(parent: &str, own: &str) -> String {
    match parent.trim_end_matches('/') {
        "" => format!("/{PREFIX}-{own}"),
        parent => parent.to_owned(),
    }
}

/// The slice that a parent means: the last part of a systemd path, or a cgroupfs path written as nested slices.
fn slice(parent: &str) -> String {
    let parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        [] => "system.slice".to_owned(),
        [.., last] if last.ends_with(".slice") => (*last).to_owned(),
        parts => {
            let escaped: Vec<String> = parts.iter().map(|part| part.replace('-', "_")).collect();
            format!("{}.slice", escaped.join("-"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_parent_serve_both_drivers() {
        let slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for (systemd, parent, want) in [
            (false, "/kubepods/burstable/pod1-2", "/kubepods/burstable/pod1-2/c"),
            (false, "/kubepods/burstable/pod1-2/", "/kubepods/burstable/pod1-2/c"),
            (false, slice, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/c"),
            (false, "", "/keelson-s/c"),
            (false, "/", "/keelson-s/c"),
            (true, slice, "kubepods-burstable-pod1_2.slice:keelson:c"),
            (true, "/test.slice", "test.slice:keelson:c"),
            (true, "", "system.slice:keelson:c"),
            (true, "/kubepods/burstable/pod1-2", "kubepods-burstable-pod1_2.slice:keelson:c"),
        ] {
            assert_eq!(of(systemd, parent, "s", "c"), want);
        }
        assert_eq!((parent("", "s").as_str(), parent("/a/", "s").as_str()), ("/keelson-s", "/a"));
    }
}
