//! Where a container's cgroup goes: the two spellings of `linux.cgroupsPath`, and what systemd makes of slice names.
//! Pure; in the daemon, the shim and the OCI command line.
//! Owns nothing.
//! Must never let a path leave the hierarchy or a unit name hold anything but a name.

use super::error::CgroupError;

/// A place for a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location<'a> {
    /// A path below the root of every hierarchy.
    Path(&'a str),
    /// `prefix-name.scope` in a slice.
    Systemd { slice: &'a str, prefix: &'a str, name: &'a str },
}

impl<'a> Location<'a> {
    /// Reads `linux.cgroupsPath`. With `systemd` it has to be `slice:prefix:name`; without, that form is turned into the path
    /// that systemd would have used, as is everything else that the cgroupfs driver meets.
    pub fn parse(cgroups_path: &'a str, systemd: bool) -> Result<Location<'a>, CgroupError> {
        let bad = |reason| CgroupError::BadPath { path: cgroups_path.to_owned(), reason };
        if cgroups_path.is_empty() {
            return Err(bad("it is empty"));
        }
        let mut parts = cgroups_path.split(':');
        let location = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(slice), Some(prefix), Some(name), None) if !cgroups_path.contains('/') => {
                Location::Systemd { slice: if slice.is_empty() { "system.slice" } else { slice }, prefix, name }
            }
            _ if systemd => return Err(bad("the systemd driver needs the form `slice:prefix:name`")),
            _ => Location::Path(cgroups_path),
        };
        location.path()?;
        Ok(location)
    }

    /// The path below the root of a hierarchy: absolute, no empty, `.` or `..` parts.
    pub fn path(&self) -> Result<String, CgroupError> {
        match self {
            Location::Path(path) => normalise(path),
            Location::Systemd { slice, .. } => {
                let parent = expand_slice(slice)?;
                Ok(format!("{parent}/{}", self.unit()?))
            }
        }
    }

    /// The scope's name.
    pub(super) fn unit(&self) -> Result<String, CgroupError> {
        let Location::Systemd { prefix, name, .. } = self else {
            let Location::Path(path) = self else { return Ok(String::new()) };
            return Err(CgroupError::BadPath {
                path: (*path).to_owned(),
                reason: "the systemd driver needs the form `slice:prefix:name`",
            });
        };
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        let bad = |reason| CgroupError::BadPath { path: unit.clone(), reason };
        // systemd.unit(5): at most 255 characters, of these.
        let valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if name.is_empty() {
            return Err(bad("the unit has no name"));
        }
        if name.ends_with(".slice") {
            return Err(bad("a container is a scope, not a slice"));
        }
        if unit.len() > 255 || !unit.chars().all(valid) {
            return Err(bad("it is no name for a systemd unit"));
        }
        Ok(unit)
    }
}

/// What `linux.cgroupsPath` should be when nobody says.
pub fn default_path(id: &str, systemd: bool) -> String {
    if systemd { format!("system.slice:keelson:{id}") } else { format!("/keelson-{id}") }
}

/// `linux.cgroupsPath` for a container of a pod whose cgroup is `parent`, as the kubelet spells it: a path for either driver,
/// for systemd with slices as its parts, the last of which is the pod's.
pub fn container_path(parent: &str, systemd: bool, prefix: &str, id: &str) -> Result<String, CgroupError> {
    let last = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let path = match (systemd, parent.is_empty()) {
        (_, true) => default_path(id, systemd),
        (true, false) if last.ends_with(".slice") => format!("{last}:{prefix}:{id}"),
        (true, false) => {
            return Err(CgroupError::BadPath {
                path: parent.to_owned(),
                reason: "systemd manages cgroups here and this is no slice; set the kubelet's cgroupDriver to systemd",
            });
        }
        (false, false) if !parent.contains('/') && last.ends_with(".slice") => format!("{last}:{prefix}:{id}"),
        (false, false) => format!("{}/{id}", parent.trim_end_matches('/')),
    };
    Location::parse(&path, systemd)?;
    Ok(path)
}

/// Where systemd puts a slice: one directory for each dash.
pub(super) fn expand_slice(slice: &str) -> Result<String, CgroupError> {
    let bad = |reason| CgroupError::BadSlice { slice: slice.to_owned(), reason };
    let name = slice.strip_suffix(".slice").ok_or_else(|| bad("its name does not end in `.slice`"))?;
    if name == "-" {
        return Ok(String::new());
    }
    if slice.len() > 255 || !name.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c)) {
        return Err(bad("it is no name for a systemd unit"));
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(bad("a dash stands where a name should"));
        }
        prefix.push_str(part);
        path.push_str(&format!("/{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

fn normalise(path: &str) -> Result<String, CgroupError> {
    let bad = |reason| CgroupError::BadPath { path: path.to_owned(), reason };
    let mut plain = String::with_capacity(path.len() + 1);
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(bad("it goes up by `..`"));
        }
        if part.len() > 255 {
            return Err(bad("a part of it is longer than 255 bytes"));
        }
        if part.contains(['\0', '\n']) {
            return Err(bad("it holds a NUL or a line break"));
        }
        plain.push('/');
        plain.push_str(part);
    }
    if plain.is_empty() {
        return Err(bad("it is the root of the hierarchy"));
    }
    if plain.len() > 3500 {
        return Err(bad("it is too long"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(cgroups_path: &str) -> Result<String, String> {
        Location::parse(cgroups_path, false).and_then(|location| location.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn both_forms_become_paths() {
        for (given, expected) in [
            ("/kubepods/burstable/pod1/abc", "/kubepods/burstable/pod1/abc"),
            ("kubepods//./pod1/abc/", "/kubepods/pod1/abc"),
            ("a:b", "/a:b"),
            ("a:b:c:d", "/a:b:c:d"),
            (
                "kubepods-burstable-pod1_2.slice:cri:abc",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-abc.scope",
            ),
            (":cri:abc", "/system.slice/cri-abc.scope"),
            ("-.slice::abc", "/abc.scope"),
        ] {
            assert_eq!(path(given).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for given in
            ["", "/", "../x", "/a/../../b", "a/\n/b", "x.slice:p:", "x.slice:p:n m", "x.slice:p:n.slice", "no:p:n"]
        {
            assert!(path(given).is_err(), "{given:?} gave {:?}", path(given));
        }
        for slice in ["a--b.slice", "-a.slice", "a-.slice", ".slice", "a b.slice", "a;b.slice"] {
            assert!(expand_slice(slice).is_err(), "{slice}");
        }
        let long = "x".repeat(256);
        assert!(path(&long).is_err());
    }

    #[test]
    fn the_systemd_driver_takes_its_own_form_only() {
        let error = Location::parse("/kubepods/pod1/abc", true).unwrap_err();
        assert!(error.to_string().contains("slice:prefix:name"), "{error}");
    }

    #[test]
    fn pod_parents_of_either_driver_are_understood() {
        let slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for (parent, systemd, expected) in [
            ("/kubepods/burstable/pod1", false, "/kubepods/burstable/pod1/abc"),
            ("", false, "/keelson-abc"),
            ("", true, "system.slice:keelson:abc"),
            (slices, true, "kubepods-burstable-pod1_2.slice:cri:abc"),
            ("/test.slice", true, "test.slice:cri:abc"),
            ("test.slice", false, "test.slice:cri:abc"),
        ] {
            let got = container_path(parent, systemd, "cri", "abc").map_err(|e| e.to_string());
            assert_eq!(got.as_deref(), Ok(expected), "{parent}");
        }
        assert_eq!(container_path(slices, false, "cri", "abc").unwrap(), format!("{slices}/abc"));
        let error = container_path("/kubepods/pod1", true, "cri", "abc").unwrap_err().to_string();
        assert!(error.contains("cgroupDriver"), "{error}");
        assert!(container_path("/a/../b", false, "cri", "abc").is_err());
    }
}
