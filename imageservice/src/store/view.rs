//! What readers see: an immutable index of all images, replaced whole on every change.
//! Built by whoever changed a record, read by any thread without waiting.
//! Owns the rules by which a name finds an image. Must never touch the disk.

use std::{collections::HashMap, sync::Arc};

use super::record::Record;
use crate::{image::Image, reference::Reference};

#[derive(Debug, Default)]
pub(super) struct View {
    /// Ordered by id.
    images: Vec<Arc<Image>>,
    /// Tags and `repository@digest` names.
    names: HashMap<String, Arc<Image>>,
}

impl View {
    /// The view of records that come ordered by id.
    pub(super) fn new<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let mut view = Self::default();
        for record in records.filter(|record| !record.removed) {
            let image = Arc::new(record.image());
            for name in image.tags.iter().chain(&image.digests) {
                view.names.insert(name.clone(), image.clone());
            }
            view.images.push(image);
        }
        view
    }

    pub(super) fn images(&self) -> &[Arc<Image>] {
        &self.images
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.names
            .get(name)
            .cloned()
            .or_else(|| self.by_whole_id(name))
            .or_else(|| self.by_spelling(name))
            .or_else(|| self.by_prefix(name))
    }

    fn by_whole_id(&self, name: &str) -> Option<Arc<Image>> {
        let id = name.parse().or_else(|_| keelson_api::Digest::from_hex(name)).ok()?;
        let at = self.images.binary_search_by(|image| image.id.cmp(&id)).ok()?;
        self.images.get(at).cloned()
    }

    /// `busybox` for `docker.io/library/busybox:latest`; a digest beside a tag outweighs the tag.
    fn by_spelling(&self, name: &str) -> Option<Arc<Image>> {
        let canonical = name.parse::<Reference>().ok()?.to_string();
        if let Some(image) = self.names.get(&canonical) {
            return Some(image.clone());
        }
        let (tagged, digest) = canonical.split_once('@')?;
        let slash = tagged.rfind('/').map_or(0, |at| at + 1);
        let repository =
            tagged.get(slash..)?.find(':').map_or(tagged, |colon| tagged.get(..slash + colon).unwrap_or(tagged));
        self.names.get(&format!("{repository}@{digest}")).cloned()
    }

    /// A unique prefix of an id. Without the algorithm before it, twelve characters at least: a shorter one may be the name of an
    /// image that is not here, and another must not run in its place.
    fn by_prefix(&self, name: &str) -> Option<Arc<Image>> {
        let (prefix, least) = name.strip_prefix("sha256:").map_or((name, 12), |prefix| (prefix, 1));
        if !(least..=64).contains(&prefix.len()) || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let from = self.images.partition_point(|image| *image.id.hex() < *prefix);
        let mut hits = self.images.iter().skip(from).take_while(|image| image.id.hex().starts_with(prefix));
        let hit = hits.next()?;
        hits.next().is_none().then(|| hit.clone())
    }
}
