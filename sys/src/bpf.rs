//! Device programs of cgroup v2: load, attach, query, detach.
//! Any process with CAP_BPF or CAP_SYS_ADMIN, any thread; never blocks for long.
//! Owns the program descriptors it returns; an attached program lives as long as its cgroup.
//! Must never build programs: instructions come from the cgroup room.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{self, Errno};

use crate::fd::last_errno;

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_DETACH: u32 = 9;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_PROG_QUERY: u32 = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Replace the program that `replace_bpf_fd` names.
const BPF_F_REPLACE: u32 = 4;
const BPF_F_ALLOW_MULTI: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct FdByIdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE; each word is one `struct bpf_insn`.
/// <https://man7.org/linux/man-pages/man2/bpf.2.html>
pub fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttr::default()
    };
    // SAFETY: `insns` and `license` point to data that outlives the call, of the lengths given.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &attr) }?;
    // SAFETY: the kernel returned a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup, beside those that are there; with `replace`, in place of that one.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replace.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replace.map_or(0, number),
    };
    // SAFETY: the attributes hold numbers only.
    unsafe { bpf(BPF_PROG_ATTACH, &attr) }.map(drop)
}

/// Detaches a device program from a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = AttachAttr {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    // SAFETY: the attributes hold numbers only.
    unsafe { bpf(BPF_PROG_DETACH, &attr) }.map(drop)
}

/// The device programs attached to a cgroup itself, at most 64.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; 64];
    let mut attr = QueryAttr {
        target_fd: number(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    // SAFETY: `prog_ids` points to 64 writable ids, as `prog_cnt` says.
    unsafe { bpf_mut(BPF_PROG_QUERY, &mut attr) }?;
    let count = usize::try_from(attr.prog_cnt).unwrap_or(0).min(ids.len());
    ids.iter().take(count).map(|id| program_by_id(*id)).collect()
}

fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let attr = FdByIdAttr { id, ..FdByIdAttr::default() };
    // SAFETY: the attributes hold numbers only.
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &attr) }?;
    // SAFETY: the kernel returned a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
/// Pointers inside `attr` must be valid for what `command` does with them.
unsafe fn bpf<T>(command: u32, attr: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads at most the size given; the caller vouches for inner pointers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(last_errno()) } else { i32::try_from(result).map_err(|_| Errno::IO) }
}

/// # Safety
/// As [`bpf`]; the kernel may write to `attr`.
unsafe fn bpf_mut<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the size given; the caller vouches for inner pointers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(last_errno()) } else { i32::try_from(result).map_err(|_| Errno::IO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r0 = 1; exit`: everything is allowed.
    const ALLOW_ALL: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

    #[test]
    fn privileged_a_program_is_attached_replaced_and_detached() {
        let Some(root) = cgroup2() else {
            println!("SKIP privileged_a_program_is_attached_replaced_and_detached: no cgroup2 mount");
            return;
        };
        let path = format!("{root}/keelson-sys-bpf-{}", std::process::id());
        std::fs::create_dir(&path).unwrap();
        let result = std::panic::catch_unwind(|| {
            let cgroup = std::fs::File::open(&path).unwrap();
            let first = load_device_program(&ALLOW_ALL).unwrap();
            attach_device_program(cgroup.as_fd(), first.as_fd(), None).unwrap();
            assert_eq!(device_programs(cgroup.as_fd()).unwrap().len(), 1);
            let second = load_device_program(&ALLOW_ALL).unwrap();
            attach_device_program(cgroup.as_fd(), second.as_fd(), Some(first.as_fd())).unwrap();
            assert_eq!(device_programs(cgroup.as_fd()).unwrap().len(), 1);
            detach_device_program(cgroup.as_fd(), second.as_fd()).unwrap();
            assert!(device_programs(cgroup.as_fd()).unwrap().is_empty());
        });
        std::fs::remove_dir(&path).unwrap();
        result.unwrap();
    }

    fn cgroup2() -> Option<String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
            .map(str::to_owned)
    }

    #[test]
    fn a_program_that_does_not_end_is_refused() {
        assert!(load_device_program(&ALLOW_ALL[..1]).is_err());
    }
}
