//! The image config: what the image's author wants run, checked and brought into one form.
//! Pure functions over bounded bytes. Owns the treatment of malformed environment entries.
//! Must never resolve a name on the host: an entry without `=` names no variable of ours (CVE-2026-57231).

use std::collections::BTreeMap;

use keelson_api::Digest;
use serde::{Deserialize, de::IgnoredAny};

use super::{ManifestError, error, platform};
use crate::{
    config::{Limits, Platform},
    image::ImageConfig,
};

/// A checked config blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// What decides how a container runs.
    pub config: ImageConfig,
    /// Uncompressed layer digests, bottom first.
    pub diff_ids: Vec<Digest>,
    /// Environment entries that were dropped because they are not `NAME=value`.
    pub dropped_env: usize,
}

#[derive(Debug, Deserialize)]
struct RawFile {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<RawConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// A command line; old builders wrote a single word as a bare string.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

impl Words {
    fn list(words: Option<Self>) -> Vec<String> {
        match words {
            None => Vec::new(),
            Some(Self::One(word)) => vec![word],
            Some(Self::Many(words)) => words,
        }
    }
}

impl ImageFile {
    /// Parses the config of an image with `layers` layers that is to run on `node`.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8], layers: usize, node: &Platform, limits: &Limits) -> Result<Self, ManifestError> {
        let raw: RawFile = serde_json::from_slice(bytes).map_err(|source| error::json("config", &source))?;
        let made = Platform {
            os: raw.os.map_or_else(|| node.os.clone(), |os| error::cut(&os)),
            architecture: raw.architecture.map_or_else(|| node.architecture.clone(), |name| error::cut(&name)),
            variant: raw.variant.filter(|variant| !variant.is_empty()).map(|variant| error::cut(&variant)),
        };
        if !platform::runs_on(&made, node) {
            return Err(ManifestError::NoPlatform { want: platform::print(node), found: vec![platform::print(&made)] });
        }
        let diff_ids = raw.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
        if diff_ids.len() > limits.layers {
            return Err(ManifestError::TooMany { what: "layers", found: diff_ids.len(), limit: limits.layers });
        }
        if diff_ids.len() != layers {
            return Err(ManifestError::LayerCount { layers, diff_ids: diff_ids.len() });
        }
        let diff_ids = diff_ids
            .iter()
            .map(|text| text.parse().map_err(|source| ManifestError::Digest { what: "diff id", source }))
            .collect::<Result<_, _>>()?;
        let (config, dropped_env) = check(raw.config.unwrap_or_default(), raw.created)?;
        Ok(Self { config, diff_ids, dropped_env })
    }
}

fn check(raw: RawConfig, created: Option<String>) -> Result<(ImageConfig, usize), ManifestError> {
    let given = raw.env.unwrap_or_default();
    let count = given.len();
    let env: Vec<String> = given.into_iter().filter(|entry| is_assignment(entry)).collect();
    let dropped = count - env.len();
    let names =
        |set: Option<BTreeMap<String, IgnoredAny>>| -> Vec<String> { set.unwrap_or_default().into_keys().collect() };
    let config = ImageConfig {
        user: raw.user.unwrap_or_default(),
        env,
        entrypoint: Words::list(raw.entrypoint),
        cmd: Words::list(raw.cmd),
        working_dir: raw.working_dir.unwrap_or_default(),
        volumes: names(raw.volumes),
        stop_signal: raw.stop_signal.filter(|signal| !signal.is_empty()),
        labels: raw
            .labels
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.unwrap_or_default()))
            .collect(),
        exposed_ports: names(raw.exposed_ports),
        created,
    };
    let nul = |field, texts: &[String]| match texts.iter().any(|text| text.contains('\0')) {
        true => Err(ManifestError::Nul { field }),
        false => Ok(()),
    };
    nul("Entrypoint", &config.entrypoint)?;
    nul("Cmd", &config.cmd)?;
    nul("Volumes", &config.volumes)?;
    nul("WorkingDir", std::slice::from_ref(&config.working_dir))?;
    nul("User", std::slice::from_ref(&config.user))?;
    Ok((config, dropped))
}

/// `NAME=value` with a name that a process can have.
fn is_assignment(entry: &str) -> bool {
    let named = entry.split_once('=').is_some_and(|(name, _)| !name.is_empty() && !name.contains('*'));
    named && !entry.contains('\0')
}
