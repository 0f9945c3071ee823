//! Places where tests make an attach fail or the daemon die. In a build without tests each is nothing.
//! Runs on the thread that armed it. Owns a thread-local. Must never be reachable in a release.

/// What a fault point may do when it is reached.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The step fails.
    Fail,
    /// The process ends here: unwinds past everything without undo.
    Die,
}

#[cfg(test)]
thread_local! {
    static ARMED: std::cell::Cell<Option<(&'static str, Fault)>> = const { std::cell::Cell::new(None) };
}

/// Every point, in the order an attach and then a detach reaches them.
#[cfg(test)]
pub(crate) const POINTS: [&str; 11] = [
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
    "setup",
];

/// Arms one point on this thread until `None`.
#[cfg(test)]
pub(crate) fn arm(fault: Option<(&'static str, Fault)>) {
    ARMED.with(|armed| armed.set(fault));
}

/// Says whether the point named here shall fail.
#[cfg(test)]
pub(crate) fn strikes(point: &'static str) -> bool {
    assert!(POINTS.contains(&point), "{point} is not listed");
    match ARMED.with(std::cell::Cell::get) {
        Some((armed, Fault::Fail)) => armed == point,
        Some((armed, Fault::Die)) if armed == point => std::panic::panic_any("died as armed"),
        Some(_) | None => false,
    }
}

#[cfg(not(test))]
#[inline]
pub(crate) fn strikes(_point: &'static str) -> bool {
    false
}
