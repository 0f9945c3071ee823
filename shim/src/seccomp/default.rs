//! The profile `RuntimeDefault`: an allow-list of system calls, wider for a container that holds the capability that a call
//! needs anyway. Pure but for a small cache of compiled programs; called by the daemon and the OCI command line.
//! Owns the list and that cache: what differs between containers is only a handful of capabilities.
//! Must never allow what reaches kernel code that no container needs: AF_ALG, AF_VSOCK, io_uring, keyrings, userfaultfd,
//! user namespaces without CAP_SYS_ADMIN; nor i386's socketcall, whose arguments a filter cannot see.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::arch::Arch;
use super::{Program, SeccompError};
use crate::spec::{Capabilities, Seccomp, SeccompArg, SeccompRule};

/// Allowed to every container.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime \
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 \
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock fork \
    fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue \
    futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents \
    getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername \
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit \
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat \
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
    listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules \
    lsm_set_self_attr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir \
    mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync \
    munlock munlockall munmap name_to_handle_at nanosleep _newselect newfstatat open openat openat2 pause \
    pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 \
    preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace \
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 \
    recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop \
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area \
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid \
    setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn sigsuspend socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat \
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Allowed besides, by the machine.
const OF_X86: &str = "arch_prctl modify_ldt";
const OF_ARM: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// Allowed besides, by the capability that the kernel asks for them.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

const SYS_ADMIN: &str = "CAP_SYS_ADMIN";

const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;

/// Mount, cgroup, UTS, IPC, user, PID and network namespaces.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The values of personality(2) that change nothing a filter or the kernel relies on; the last one asks.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// What `RuntimeDefault` means for a process with these capabilities.
pub fn default_profile(capabilities: &Capabilities) -> Seccomp {
    let native = Arch::native().unwrap_or(Arch::X86_64);
    profile_for(native, held(capabilities))
}

/// The same, compiled once for each set of capabilities that makes a difference.
pub fn default_program(capabilities: &Capabilities) -> Result<Arc<Program>, SeccompError> {
    static PROGRAMS: Mutex<Option<HashMap<u32, Arc<Program>>>> = Mutex::new(None);
    let held = held(capabilities);
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let programs = programs.get_or_insert_default();
    if let Some(program) = programs.get(&held) {
        return Ok(program.clone());
    }
    let program = Arc::new(super::compile(&default_profile(capabilities))?);
    programs.insert(held, program.clone());
    Ok(program)
}

/// One bit for each entry of [`BY_CAPABILITY`].
fn held(capabilities: &Capabilities) -> u32 {
    let holds = |name: &str| capabilities.bounding.iter().any(|held| held == name);
    BY_CAPABILITY.iter().enumerate().filter(|(_, (name, _))| holds(name)).fold(0, |bits, (i, _)| bits | 1 << i)
}

pub(super) fn profile_for(native: Arch, held: u32) -> Seccomp {
    let granted = || BY_CAPABILITY.iter().enumerate().filter(|(i, _)| held & 1 << i != 0).map(|(_, entry)| entry);
    let of_machine = match native {
        Arch::X86_64 | Arch::X32 | Arch::I386 => OF_X86,
        Arch::Aarch64 | Arch::Arm => OF_ARM,
    };
    let mut names: Vec<String> = Vec::with_capacity(512);
    for list in [ALWAYS, of_machine].into_iter().chain(granted().map(|(_, calls)| *calls)) {
        names.extend(list.split_ascii_whitespace().map(str::to_owned));
    }
    let mut rules = vec![rule(names, "SCMP_ACT_ALLOW")];
    let one = |name: &str| vec![name.to_owned()];

    // The kernel takes the family from the lower half only: compared whole, a set upper bit would slip through.
    for family in [AF_ALG, AF_VSOCK] {
        rules.push(SeccompRule {
            errno_ret: Some(EAFNOSUPPORT),
            args: vec![argument("SCMP_CMP_MASKED_EQ", 0xffff_ffff, family)],
            ..rule(one("socket"), "SCMP_ACT_ERRNO")
        });
    }
    rules.push(SeccompRule {
        args: vec![argument("SCMP_CMP_MASKED_EQ", 0, 0)],
        ..rule(one("socket"), "SCMP_ACT_ALLOW")
    });
    rules.push(SeccompRule { errno_ret: Some(ENOSYS), ..rule(one("socketcall"), "SCMP_ACT_ERRNO") });
    for value in PERSONALITIES {
        let args = vec![argument("SCMP_CMP_EQ", value, 0)];
        rules.push(SeccompRule { args, ..rule(one("personality"), "SCMP_ACT_ALLOW") });
    }
    if !granted().any(|(name, _)| *name == SYS_ADMIN) {
        let args = vec![argument("SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES, 0)];
        rules.push(SeccompRule { args, ..rule(one("clone"), "SCMP_ACT_ALLOW") });
        // Its flags are behind a pointer; the C libraries fall back to clone.
        rules.push(SeccompRule { errno_ret: Some(ENOSYS), ..rule(one("clone3"), "SCMP_ACT_ERRNO") });
    }
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(EPERM),
        architectures: native.family().iter().map(|arch| arch.profile_name().to_owned()).collect(),
        syscalls: rules,
        ..Seccomp::default()
    }
}

fn rule(names: Vec<String>, action: &str) -> SeccompRule {
    SeccompRule { names, action: action.to_owned(), ..SeccompRule::default() }
}

fn argument(operator: &str, value: u64, value_two: u64) -> SeccompArg {
    SeccompArg { index: 0, value, value_two, op: operator.to_owned() }
}
