//! The C library's allocator, told to be small: for processes of which there are many.
//! Any process; concerns the whole process, best before it has threads.
//! Owns nothing.
//! Must never change what a program does, only what it keeps.

/// Returns freed memory early and keeps one arena. Does nothing where the C library has no such knobs.
pub fn thrifty() {
    #[cfg(target_env = "gnu")]
    for (knob, value) in [
        (libc::M_MMAP_THRESHOLD, 64 * 1024),
        (libc::M_TRIM_THRESHOLD, 64 * 1024),
        (libc::M_TOP_PAD, 0),
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: mallopt takes two integers and is thread-safe; an unknown knob is refused.
        unsafe { libc::mallopt(knob, value) };
    }
}

/// Gives back what is free now.
pub fn trim() {
    // SAFETY: malloc_trim takes an integer and is thread-safe.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
