//! The texts in an archive beside CRIU's images, as the tools of other runtimes read them (`checkpointctl`, CRI-O, containerd).
//! Pure. Owns the names of an archive's members and the versions of what is our own.
//! Must never be read for more than which image the container was made from and what its streams were called.

use serde::{Deserialize, Serialize};

/// Folder of CRIU's images.
pub(crate) const IMAGES: &str = "checkpoint";
/// [`Config`] as JSON.
pub(crate) const CONFIG: &str = "config.dump";
/// The OCI spec; written for tools, never read.
pub(crate) const SPEC: &str = "spec.dump";
/// What the container changed in its filesystem, in the form of an image's layer.
pub(crate) const CHANGES: &str = "rootfs-diff.tar";
/// What it removed, as a JSON list of paths; for tools, the layer says it too.
pub(crate) const DELETED: &str = "deleted.files";
/// CRIU's log.
pub(crate) const LOG: &str = "dump.log";
/// CRIU's statistics.
pub(crate) const STATS: &str = "stats-dump";
/// Names of the standard streams, among the images: a JSON list of three texts.
pub(crate) const STREAMS: &str = "descriptors.json";
/// [`PodConfig`] as JSON, in the archive of a pod.
pub(crate) const POD: &str = "pod.json";

/// Which container it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Config {
    pub(crate) id: String,
    pub(crate) name: String,
    /// As the person wrote it.
    pub(crate) rootfs_image: String,
    /// The image's id.
    pub(crate) rootfs_image_ref: String,
    pub(crate) rootfs_image_name: String,
    pub(crate) runtime: String,
    /// RFC 3339, as all times here.
    pub(crate) created_time: String,
    pub(crate) checkpointed_time: String,
    pub(crate) restored_time: String,
    pub(crate) restored: bool,
}

/// What the archive of a pod holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodConfig {
    /// Of this layout: 1.
    pub(crate) version: u32,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) checkpointed_time: String,
    /// In their order.
    pub(crate) containers: Vec<PodContainer>,
}

/// One of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodContainer {
    pub(crate) name: String,
    /// The member of the archive that is its checkpoint: `containers/<number>.tar`.
    pub(crate) archive: String,
}

/// Nanoseconds since the epoch as RFC 3339 in UTC.
pub(crate) fn time(nanoseconds: i64) -> String {
    let seconds = nanoseconds.div_euclid(1_000_000_000);
    let fraction = nanoseconds.rem_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 1970 to a civil date, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_others_read_them() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(time(1_709_210_096_000_000_007), "2024-02-29T12:34:56.000000007Z");
        assert_eq!(time(1_767_225_599_999_999_999), "2025-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn the_config_has_the_keys_that_tools_look_for() {
        let text = serde_json::to_value(Config::default()).unwrap();
        for key in [
            "id",
            "name",
            "rootfsImage",
            "rootfsImageRef",
            "rootfsImageName",
            "runtime",
            "createdTime",
            "checkpointedTime",
            "restoredTime",
            "restored",
        ] {
            assert!(text.get(key).is_some(), "{key}");
        }
    }
}
