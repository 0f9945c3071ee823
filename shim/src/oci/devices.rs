//! What an OCI runtime adds to a bundle's device rules: the devices that every container has (OCI runtime spec, "Default Devices").
//! Pure; before the launch, in `create` and `run`. Callers as podman deny everything and rely on it.
//! Must add nothing to a bundle without rules: that one may use every device.

use keelson_shim::spec::{DeviceRule, Spec};

/// null, zero, full, random, urandom, tty, ptmx; and the terminals of a container's own devpts.
const COMMON: [(i64, Option<i64>); 8] =
    [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];

/// After the bundle's own rules: making any node, using the common ones.
pub(super) fn allow_common(spec: &mut Spec) {
    let Some(resources) = spec.linux.as_mut().and_then(|linux| linux.resources.as_mut()) else { return };
    if resources.devices.is_empty() {
        return;
    }
    let rule = |kind: &str, major, minor, access: &str| DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    resources.devices.extend(["c", "b"].map(|kind| rule(kind, None, None, "m")));
    resources.devices.extend(COMMON.iter().map(|(major, minor)| rule("c", Some(*major), *minor, "rwm")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> usize {
        let mut spec: Spec = serde_json::from_str(text).unwrap();
        allow_common(&mut spec);
        spec.linux.unwrap().resources.unwrap().devices.len()
    }

    #[test]
    fn only_a_bundle_with_rules_gets_more() {
        assert_eq!(rules(r#"{"ociVersion":"1.0.2","linux":{"resources":{"devices":[]}}}"#), 0);
        let denied = r#"{"ociVersion":"1.0.2","linux":{"resources":{"devices":[{"allow":false,"access":"rwm"}]}}}"#;
        assert_eq!(rules(denied), 1 + 2 + COMMON.len());
    }
}
