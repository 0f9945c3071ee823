//! Whose a container's streams are: its process's user and group as the host counts them.
//! Pure, in every mode of this program.
//! Owns nothing.
//! Must never guess: an id that no mapping holds stays as it is.

use keelson_shim::spec::{IdMapping, Process, Spec};

/// User and group of `process` on the host, through the mappings of the container's user namespace.
pub(crate) fn on_host(process: Option<&Process>, spec: &Spec) -> (u32, u32) {
    let (uid, gid) = process.map(|process| (process.user.uid, process.user.gid)).unwrap_or_default();
    let linux = spec.linux.as_ref();
    (
        map(uid, linux.map_or(&[], |linux| linux.uid_mappings.as_slice())),
        map(gid, linux.map_or(&[], |linux| linux.gid_mappings.as_slice())),
    )
}

fn map(id: u32, mappings: &[IdMapping]) -> u32 {
    let of = |map: &IdMapping| id.checked_sub(map.container_id).filter(|at| *at < map.size)?.checked_add(map.host_id);
    mappings.iter().find_map(of).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shifted_by_the_mapping_that_holds_them() {
        let mappings = [
            IdMapping { container_id: 0, host_id: 100_000, size: 1000 },
            IdMapping { container_id: 1000, host_id: 5, size: 1 },
        ];
        assert_eq!([0, 999, 1000, 1001].map(|id| map(id, &mappings)), [100_000, 100_999, 5, 1001]);
        assert_eq!(map(7, &[]), 7);
    }
}
