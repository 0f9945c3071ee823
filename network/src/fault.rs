//! Places where tests make a step fail or the daemon die. In a build without tests each is nothing.
//! Any thread of the network that was armed. Owns what is armed. Must never be reachable in a release.

/// What a fault point may do when it is reached.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The step fails, once.
    Fail,
    /// The process ends here: unwinds past everything without undo.
    Die,
}

/// Every point, in the order an attach and then a detach reaches them.
#[cfg(test)]
pub(crate) const POINTS: [&str; 11] = [
    "setup",
    "reserved",
    "leased",
    "recorded",
    "veth",
    "configured",
    "published",
    "unpublished",
    "unlinked",
    "released",
    "forgotten",
];

/// What is armed on one network.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    #[cfg(test)]
    armed: std::sync::Mutex<Option<(&'static str, Fault)>>,
}

#[cfg(test)]
impl Faults {
    pub(crate) fn arm(&self, point: &'static str, fault: Fault) {
        assert!(POINTS.contains(&point), "{point} is not listed");
        *self.armed.lock().unwrap() = Some((point, fault));
    }

    /// Says whether the point named here shall fail.
    pub(crate) fn strike(&self, point: &'static str) -> bool {
        assert!(POINTS.contains(&point), "{point} is not listed");
        let armed = self.armed.lock().unwrap().take_if(|(armed, _)| *armed == point);
        match armed {
            Some((_, Fault::Die)) => std::panic::panic_any("died as armed"),
            Some((_, Fault::Fail)) => true,
            None => false,
        }
    }
}

#[cfg(not(test))]
impl Faults {
    #[inline]
    pub(crate) fn strike(&self, _point: &'static str) -> bool {
        false
    }
}
