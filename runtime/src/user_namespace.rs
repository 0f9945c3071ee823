//! A user namespace as it is asked for: which ids of the host the ids inside are, and which such wishes make sense.
//! Pure, in any task of the daemon.
//! Owns nothing.
//! Must never let through a mapping that gives a sandbox the host's root, or none to its own root.

use serde::{Deserialize, Serialize};

use crate::container::spec::IdMapping;

/// The ids of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserNamespace {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

impl UserNamespace {
    /// Whether it can be made: one range of users and one of groups (as kubelet gives), each with an inner root, none with the
    /// host's root. Returns what is wrong otherwise.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (what, ranges) in [("uids", &self.uids), ("gids", &self.gids)] {
            let [range] = ranges.as_slice() else {
                return Err(format!("{what}: {} mappings: want exactly one", ranges.len()));
            };
            check_range(what, range)?;
            if range.container_id != 0 {
                return Err(format!("{what}: id 0 of the container is not mapped: its root would be nobody"));
            }
            if range.host_id == 0 {
                return Err(format!("{what}: host id 0 is the host's root: begin above it"));
            }
        }
        Ok(())
    }

    /// User and group of the host that are root inside.
    pub(crate) fn root(&self) -> (u32, u32) {
        (outside(&self.uids, 0).unwrap_or(0), outside(&self.gids, 0).unwrap_or(0))
    }

    /// What keeps a process from being this user with these groups inside.
    pub(crate) fn refuses(&self, uid: u32, gids: &[u32]) -> Option<String> {
        let unmapped = |what: &str, id: u32, ranges: &[IdMapping]| {
            let lengths: u32 = ranges.iter().fold(0, |sum, range| sum.saturating_add(range.length));
            format!("{what} {id} is not among the {lengths} ids of the pod's user namespace")
        };
        if outside(&self.uids, uid).is_none() {
            return Some(unmapped("user", uid, &self.uids));
        }
        let gid = gids.iter().find(|gid| outside(&self.gids, **gid).is_none())?;
        Some(unmapped("group", *gid, &self.gids))
    }

    /// How many groups it has, from 0 up.
    pub(crate) fn groups(&self) -> u32 {
        self.gids.first().map_or(0, |range| range.length)
    }

    /// Whether this group has a number inside.
    pub(crate) fn has_group(&self, gid: u32) -> bool {
        outside(&self.gids, gid).is_some()
    }
}

/// A range that is empty, or goes past the last id.
pub(crate) fn check_range(what: &str, range: &IdMapping) -> Result<(), String> {
    if range.length == 0 {
        return Err(format!("{what}: a mapping of length 0 maps nothing"));
    }
    let fits = |first: u32| first.checked_add(range.length).is_some();
    if !fits(range.container_id) || !fits(range.host_id) {
        return Err(format!(
            "{what}: a mapping of length {} from {} to {} goes past 4294967295, which is no id",
            range.length, range.container_id, range.host_id
        ));
    }
    Ok(())
}

fn outside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let at = id.checked_sub(range.container_id).filter(|at| *at < range.length)?;
        range.host_id.checked_add(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, length: u32) -> IdMapping {
        IdMapping { host_id, container_id, length }
    }

    fn both(ranges: Vec<IdMapping>) -> UserNamespace {
        UserNamespace { uids: ranges.clone(), gids: ranges }
    }

    #[test]
    fn one_range_with_an_inner_root_is_what_can_be_made() {
        both(vec![range(0, 65_536, 65_536)]).check().unwrap();
        both(vec![range(0, 1000, 100_000)]).check().unwrap();
        for (ranges, want) in [
            (vec![], "0 mappings"),
            (vec![range(0, 1000, 10), range(10, 5000, 10)], "2 mappings"),
            (vec![range(0, 1000, 0)], "length 0"),
            (vec![range(1, 1000, 10)], "id 0 of the container"),
            (vec![range(0, 0, 10)], "host id 0"),
            (vec![range(0, u32::MAX, 1)], "goes past"),
            (vec![range(0, 1, u32::MAX)], "goes past"),
        ] {
            let said = both(ranges).check().unwrap_err();
            assert!(said.contains(want), "{want}: {said}");
        }
        let uneven = UserNamespace { uids: vec![range(0, 1000, 10)], gids: vec![] };
        assert!(uneven.check().unwrap_err().starts_with("gids: 0"), "each of the two is looked at");
    }

    #[test]
    fn ids_without_a_number_inside_are_named() {
        let namespace = both(vec![range(0, 70_000, 100)]);
        assert_eq!(namespace.root(), (70_000, 70_000));
        assert_eq!(namespace.refuses(99, &[0, 99]), None);
        assert!(namespace.refuses(100, &[]).unwrap().starts_with("user 100"));
        assert!(namespace.refuses(0, &[5, 100]).unwrap().starts_with("group 100"));
        assert!(namespace.has_group(5) && !namespace.has_group(100));
    }
}
