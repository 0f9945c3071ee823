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

/// Allows at most `count` arenas, for a program with many threads. Does nothing where the C library has none.
pub fn limit_arenas(count: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and is thread-safe.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count)
    };
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives back what is free now.
pub fn trim() {
    // SAFETY: malloc_trim takes an integer and is thread-safe.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Gives back the pages of the main thread's stack below the caller, which earlier, deeper calls have touched. Does nothing on
/// another thread: below its stack there may be somebody else's memory.
#[inline(never)]
pub fn drop_unused_stack() {
    /// For this call's own frames.
    const KEPT: usize = 4 * 1024;
    /// Less than what the kernel leaves free below the main stack, however far that has grown.
    const REACH: usize = 1024 * 1024;
    if rustix::thread::gettid() != rustix::process::getpid() {
        return;
    }
    let marker = 0_u8;
    let here = std::hint::black_box(&raw const marker);
    let end = here.map_addr(|address| (address - KEPT) & !(rustix::param::page_size() - 1));
    let begin = end.map_addr(|address| address.saturating_sub(REACH));
    // SAFETY: this is the main thread, whose stack grows down: between `begin` and `end` there is its unused part and then
    // nothing mapped (mmap_base keeps a gap of at least 128 MiB), so no live value is dropped. An error tells of that gap.
    unsafe { libc::madvise(begin.cast_mut().cast(), end.addr() - begin.addr(), libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    #[inline(never)]
    fn deep(levels: usize) -> u8 {
        let room = std::hint::black_box([1_u8; 4096]);
        if levels == 0 { room[7] } else { room[8] + deep(levels - 1) - 1 }
    }

    #[test]
    fn live_values_survive_on_any_thread() {
        let value = std::hint::black_box(vec![7_u8; 100]);
        assert_eq!(deep(20), 1);
        super::drop_unused_stack();
        super::trim();
        assert_eq!(deep(20), 1);
        assert_eq!(value, [7; 100]);
    }
}
