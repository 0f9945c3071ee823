//! System calls without libc: no errno variable, no cancellation points, no locks, so that a child between clone and exec may make
//! them while it shares or has copied another thread's memory. Any process, any thread.
//! Owns nothing: descriptors are numbers here, because the child's plan names them before they exist.
//! Must never allocate, panic or touch thread-local storage.

use core::arch::asm;
use core::ffi::{CStr, c_char, c_void};

use rustix::io::{self, Errno};

pub(crate) const CLONE_VM: u64 = 0x100;
pub(crate) const CLONE_VFORK: u64 = 0x4000;
pub(crate) const CLONE_FILES: u64 = 0x400;
pub(crate) const CLONE_PARENT: u64 = 0x8000;
pub(crate) const CLONE_PIDFD: u64 = 0x1000;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// clone3(2) whose child calls `entry(argument)` and nothing else; the parent gets the child's pid.
///
/// # Safety
/// `entry` must make only raw system calls on memory that stays valid; with CLONE_VM the flags must hold CLONE_VFORK, so that this
/// stack is the child's alone until it has exec'd or ended.
pub(crate) unsafe fn clone3_call(
    arguments: &CloneArgs,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> io::Result<i32> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel reads the arguments; the child never comes back from `entry`, so this frame returns once. Without
    // `nostack` the stack is aligned for a call and nothing lives below it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") std::ptr::from_ref(arguments),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk 1",
            "2:",
            inlateout("x0") std::ptr::from_ref(arguments) as isize => result,
            in("x1") size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3 as usize,
            in("x20") entry,
            in("x21") argument,
            lateout("x30") _,
        );
    };
    check(result).map(|pid| pid as i32)
}

/// # Safety
/// As for the system call `number` with these arguments.
pub(crate) unsafe fn syscall(number: i64, a: [usize; 6]) -> io::Result<usize> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel changes rax, rcx, r11 and what the pointers name, for which the caller vouches.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number as isize,
            inlateout("x0") a[0] as isize => result,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack),
        );
    };
    check(result)
}

fn check(result: isize) -> io::Result<usize> {
    if (-4095..0).contains(&result) { Err(Errno::from_raw_os_error(-result as i32)) } else { Ok(result as usize) }
}

/// A system call with integer and `&CStr`-derived arguments only.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let given = [$($argument as usize),*];
        let mut all = [0_usize; 6];
        all[..given.len()].copy_from_slice(&given);
        // SAFETY: every pointer argument comes from a reference that outlives the call, with its own length.
        unsafe { syscall($number as i64, all) }
    }};
}

fn fd(result: usize) -> i32 {
    result as i32
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = call!(libc::SYS_exit_group, code);
    }
}

pub(crate) fn close(fd: i32) {
    let _ = call!(libc::SYS_close, fd);
}

pub(crate) fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    call!(libc::SYS_close_range, first, last, flags).map(drop)
}

pub(crate) fn dup3(from: i32, to: i32, flags: i32) -> io::Result<()> {
    if from == to {
        // dup3 refuses equal numbers; the descriptor only has to lose its close-on-exec flag.
        return call!(libc::SYS_fcntl, to, libc::F_SETFD, 0).map(drop);
    }
    call!(libc::SYS_dup3, from, to, flags).map(drop)
}

pub(crate) fn fchdir(fd: i32) -> io::Result<()> {
    call!(libc::SYS_fchdir, fd).map(drop)
}

pub(crate) fn chroot(path: &CStr) -> io::Result<()> {
    call!(libc::SYS_chroot, path.as_ptr()).map(drop)
}

pub(crate) fn read(fd: i32, buffer: &mut [u8]) -> io::Result<usize> {
    call!(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len())
}

pub(crate) fn write(fd: i32, bytes: &[u8]) -> io::Result<usize> {
    call!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len())
}

pub(crate) fn accept(listener: i32) -> io::Result<i32> {
    call!(libc::SYS_accept4, listener, 0, 0, libc::SOCK_CLOEXEC).map(fd)
}

/// Sends the descriptor `passed` beside one byte.
pub(crate) fn send_fd(socket: i32, passed: i32, bytes: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        fd: i32,
        padding: i32,
    }
    // SAFETY: all-zero bytes are a valid cmsghdr.
    let mut header: libc::cmsghdr = unsafe { core::mem::zeroed() };
    header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<i32>()) as _;
    header.cmsg_level = libc::SOL_SOCKET;
    header.cmsg_type = libc::SCM_RIGHTS;
    let mut control = Control { header, fd: passed, padding: 0 };
    let mut data = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero bytes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    call!(libc::SYS_sendmsg, socket, &raw const message, libc::MSG_NOSIGNAL).map(drop)
}

/// How often the kernel is asked to look again. A rename or a mount anywhere on the machine while it walks `..` below a root makes
/// it give up (EAGAIN); who renames without pause makes a look fail often, but does not hold us for ever.
const LOOKS: u32 = 100_000;

/// `struct open_how`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

pub(crate) fn openat2(dir: i32, path: &CStr, flags: i32, mode: u32, resolve: u64) -> io::Result<i32> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve };
    for _ in 0..LOOKS {
        match call!(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<OpenHow>()) {
            Err(Errno::AGAIN) => {}
            other => return other.map(fd),
        }
    }
    Err(Errno::AGAIN)
}

pub(crate) fn readlinkat(dir: i32, path: &CStr, buffer: &mut [u8]) -> io::Result<usize> {
    call!(libc::SYS_readlinkat, dir, path.as_ptr(), buffer.as_mut_ptr(), buffer.len())
}

pub(crate) fn mkdirat(dir: i32, path: &CStr, mode: u32) -> io::Result<()> {
    call!(libc::SYS_mkdirat, dir, path.as_ptr(), mode).map(drop)
}

pub(crate) fn mknodat(dir: i32, path: &CStr, mode: u32, device: u64) -> io::Result<()> {
    call!(libc::SYS_mknodat, dir, path.as_ptr(), mode, device).map(drop)
}

pub(crate) fn symlinkat(target: &CStr, dir: i32, path: &CStr) -> io::Result<()> {
    call!(libc::SYS_symlinkat, target.as_ptr(), dir, path.as_ptr()).map(drop)
}

pub(crate) fn fchownat(dir: i32, path: &CStr, uid: u32, gid: u32, flags: i32) -> io::Result<()> {
    call!(libc::SYS_fchownat, dir, path.as_ptr(), uid, gid, flags).map(drop)
}

pub(crate) fn statx(dir: i32, path: &CStr, flags: i32, mask: u32) -> io::Result<libc::statx> {
    // SAFETY: all-zero bytes are a valid statx.
    let mut found: libc::statx = unsafe { core::mem::zeroed() };
    call!(libc::SYS_statx, dir, path.as_ptr(), flags, mask, &raw mut found)?;
    Ok(found)
}

/// The filesystem's magic number.
pub(crate) fn filesystem(fd: i32) -> io::Result<i64> {
    // SAFETY: all-zero bytes are a valid statfs.
    let mut found: libc::statfs = unsafe { core::mem::zeroed() };
    call!(libc::SYS_fstatfs, fd, &raw mut found)?;
    #[allow(clippy::unnecessary_cast, reason = "the field's type differs between C libraries")]
    Ok(found.f_type as i64)
}

pub(crate) fn fsopen(kind: &CStr) -> io::Result<i32> {
    call!(libc::SYS_fsopen, kind.as_ptr(), 1).map(fd)
}

pub(crate) fn fsconfig_flag(context: i32, key: &CStr) -> io::Result<()> {
    call!(libc::SYS_fsconfig, context, 0, key.as_ptr(), 0, 0).map(drop)
}

pub(crate) fn fsconfig_string(context: i32, key: &CStr, value: &CStr) -> io::Result<()> {
    call!(libc::SYS_fsconfig, context, 1, key.as_ptr(), value.as_ptr(), 0).map(drop)
}

pub(crate) fn fsconfig_create(context: i32) -> io::Result<()> {
    call!(libc::SYS_fsconfig, context, 6, 0, 0, 0).map(drop)
}

pub(crate) fn fsmount(context: i32, attributes: u64) -> io::Result<i32> {
    call!(libc::SYS_fsmount, context, 1, attributes).map(fd)
}

/// open_tree(2) with OPEN_TREE_CLONE of the mount that `fd` is in.
pub(crate) fn clone_mount(from: i32, recursive: bool) -> io::Result<i32> {
    const OPEN_TREE_CLONE: i32 = 1;
    let flags =
        OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    call!(libc::SYS_open_tree, from, c"".as_ptr(), flags).map(fd)
}

/// move_mount(2) from a mount's descriptor to a place's descriptor.
pub(crate) fn attach_mount(mount: i32, place: i32) -> io::Result<()> {
    const BOTH_EMPTY: u32 = 0x04 | 0x40;
    call!(libc::SYS_move_mount, mount, c"".as_ptr(), place, c"".as_ptr(), BOTH_EMPTY).map(drop)
}

/// move_mount(2) to a name in a folder; a link of that name is not followed.
pub(crate) fn attach_mount_in(mount: i32, folder: i32, name: &CStr) -> io::Result<()> {
    const FROM_EMPTY: u32 = 0x04;
    call!(libc::SYS_move_mount, mount, c"".as_ptr(), folder, name.as_ptr(), FROM_EMPTY).map(drop)
}

/// move_mount(2) to a path.
pub(crate) fn attach_mount_at(mount: i32, path: &CStr) -> io::Result<()> {
    const FROM_EMPTY: u32 = 0x04;
    call!(libc::SYS_move_mount, mount, c"".as_ptr(), libc::AT_FDCWD, path.as_ptr(), FROM_EMPTY).map(drop)
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) userns: u64,
}

pub(crate) fn mount_setattr(dir: i32, path: &CStr, flags: i32, attr: &MountAttr) -> io::Result<()> {
    call!(libc::SYS_mount_setattr, dir, path.as_ptr(), flags, std::ptr::from_ref(attr), size_of::<MountAttr>())
        .map(drop)
}

pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: u64, data: &CStr) -> io::Result<()> {
    call!(libc::SYS_mount, source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr()).map(drop)
}

pub(crate) fn umount_here() -> io::Result<()> {
    call!(libc::SYS_umount2, c".".as_ptr(), libc::MNT_DETACH).map(drop)
}

pub(crate) fn pivot_root_here() -> io::Result<()> {
    call!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()).map(drop)
}

pub(crate) fn setns(fd: i32, kinds: u32) -> io::Result<()> {
    call!(libc::SYS_setns, fd, kinds).map(drop)
}

pub(crate) fn unshare(kinds: u32) -> io::Result<()> {
    call!(libc::SYS_unshare, kinds).map(drop)
}

pub(crate) fn setsid() -> io::Result<()> {
    call!(libc::SYS_setsid).map(drop)
}

pub(crate) fn ioctl(fd: i32, request: libc::Ioctl, argument: usize) -> io::Result<usize> {
    call!(libc::SYS_ioctl, fd, request, argument)
}

pub(crate) fn sethostname(name: &CStr) -> io::Result<()> {
    call!(libc::SYS_sethostname, name.as_ptr(), name.to_bytes().len()).map(drop)
}

pub(crate) fn setdomainname(name: &CStr) -> io::Result<()> {
    call!(libc::SYS_setdomainname, name.as_ptr(), name.to_bytes().len()).map(drop)
}

pub(crate) fn setrlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let new = [soft, hard];
    call!(libc::SYS_prlimit64, 0, resource, new.as_ptr(), 0).map(drop)
}

pub(crate) fn umask(mask: u32) {
    let _ = call!(libc::SYS_umask, mask);
}

pub(crate) fn prctl(option: i32, argument: usize, second: usize) -> io::Result<()> {
    call!(libc::SYS_prctl, option, argument, second, 0, 0).map(drop)
}

pub(crate) fn setgroups(groups: &[u32]) -> io::Result<()> {
    call!(libc::SYS_setgroups, groups.len(), groups.as_ptr()).map(drop)
}

pub(crate) fn setresgid(gid: u32) -> io::Result<()> {
    call!(libc::SYS_setresgid, gid, gid, gid).map(drop)
}

pub(crate) fn setresuid(uid: u32) -> io::Result<()> {
    call!(libc::SYS_setresuid, uid, uid, uid).map(drop)
}

/// capset(2) on the calling thread.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let low = |set: u64| set as u32;
    let high = |set: u64| (set >> 32) as u32;
    let data = [low(effective), low(permitted), low(inheritable), high(effective), high(permitted), high(inheritable)];
    call!(libc::SYS_capset, header.as_ptr(), data.as_ptr()).map(drop)
}

pub(crate) fn seccomp_load(program: &[u64], flags: u32) -> io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    call!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter).map(drop)
}

/// The working directory's path as the kernel sees it; it begins with `/` only when it is below the root.
pub(crate) fn getcwd(buffer: &mut [u8]) -> io::Result<usize> {
    call!(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len())
}

/// # Safety
/// `argv` and `env` must be arrays of C strings that end with null.
pub(crate) unsafe fn execve(path: &CStr, argv: *const *const c_char, env: *const *const c_char) -> io::Result<()> {
    call!(libc::SYS_execve, path.as_ptr(), argv, env).map(drop)
}

/// # Safety
/// As [`execve`]; `path` must be a C string.
pub(crate) unsafe fn execveat(
    dir: i32,
    path: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    flags: i32,
) -> io::Result<()> {
    call!(libc::SYS_execveat, dir, path, argv, env, flags).map(drop)
}

/// Blocks every signal of this thread; returns the mask before.
pub(crate) fn block_all_signals() -> u64 {
    let (all, mut before) = (u64::MAX, 0_u64);
    let _ = call!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut before, 8);
    before
}

pub(crate) fn restore_signals(mask: u64) {
    let _ = call!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0, 8);
}

pub(crate) fn unblock_all_signals() {
    restore_signals(0);
}

/// Gives the signals of `mask` (bit `n - 1` for signal `n`) their default action.
pub(crate) fn default_signals(mask: u64) -> io::Result<()> {
    // The kernel's own struct sigaction, all zero: SIG_DFL, no flags, empty mask.
    let default = [0_u64; 4];
    for signal in 1..=64_u32 {
        if mask & (1 << (signal - 1)) != 0 {
            call!(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8)?;
        }
    }
    Ok(())
}

/// Whether this process ignores the signal. Asked of the kernel itself: a C library hides the signals that it uses.
pub(crate) fn is_ignored(signal: u32) -> bool {
    let mut action = [0_u64; 4];
    call!(libc::SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), 8).is_ok() && action[0] == libc::SIG_IGN as u64
}

/// sched_setattr(2) of the calling thread.
pub(crate) fn sched_setattr(attributes: &[u64; 6]) -> io::Result<()> {
    call!(libc::SYS_sched_setattr, 0, attributes.as_ptr(), 0).map(drop)
}

/// ioprio_set(2) of the calling thread.
pub(crate) fn ioprio_set(value: i32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    call!(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value).map(drop)
}

/// personality(2).
pub(crate) fn personality(value: u32) -> io::Result<()> {
    call!(libc::SYS_personality, value).map(drop)
}
