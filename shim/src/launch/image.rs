//! An image as a volume: its layers stacked read-only, or one folder of that stack.
//! In the shim, before the clone; the stack is a detached mount and never in the host's mount table.
//! Owns the mount until it is in the plan.
//! Must never find a sub path by joining it with anything: links of an image end inside the image.

use std::os::fd::AsFd;

use keelson_sys::child::{MountSource, Propagation};
use keelson_sys::{inside, mount};
use rustix::fs::ResolveFlags;
use rustix::io::Errno;

use super::options::Options;
use super::rootfs::{self, Shift};
use super::{ImageVolume, LaunchError};

pub(super) const STEP: &str = "mount image volume";

/// The mount, with the attributes of the options; always read-only, whatever they say.
pub(super) fn source(
    volume: &ImageVolume,
    options: &Options,
    shift: Option<&Shift<'_>>,
    label: &str,
) -> Result<MountSource, LaunchError> {
    let told = |mut error: LaunchError| {
        error.object = format!("{}: {} {}", volume.destination, error.step, error.object);
        error.step = STEP;
        error
    };
    let tree = rootfs::read_only(&volume.lower, shift, label).map_err(told)?;
    let mut attributes = options.attributes;
    attributes.set |= options.recursive_attributes.set | mount::Attributes::RDONLY;
    attributes.clear &= !attributes.set;
    mount::set_attributes(tree.as_fd(), attributes, Some(Propagation::Private), false)
        .map_err(|errno| LaunchError::system(STEP, &volume.destination, errno))?;
    if volume.sub_path.is_empty() {
        return Ok(MountSource::Tree(tree));
    }
    let part = inside::folder(&tree, volume.sub_path.as_str(), ResolveFlags::NO_XDEV).map_err(|errno| {
        let object = format!("{}: sub path {}", volume.destination, volume.sub_path);
        match errno {
            Errno::NOENT => LaunchError::invalid(STEP, object, "is not in the image"),
            Errno::NOTDIR => LaunchError::invalid(STEP, object, "is not a folder of the image"),
            errno => LaunchError::system(STEP, object, errno),
        }
    })?;
    Ok(MountSource::Part { tree, part })
}
