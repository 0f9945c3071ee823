//! The text of the default AppArmor profile.
//! Pure. Owns the choice of what a container may not do whatever its capabilities: the same as other runtimes' default profiles keep
//! from it, so that a workload that runs under them runs here.
//! Must never name a file of the host's policy that a host may lack: the text stands alone.

/// Its name in the kernel.
pub(super) const NAME: &str = "keelson-default";
/// Where the compiler finds the features of the version of the language that the text is written for.
pub(super) const ABI: &str = "/etc/apparmor.d/abi/3.0";

/// The profile. `abi`: the compiler knows [`ABI`]; without the statement it takes the features that the host's administrator chose.
///
/// Newer features (user namespaces, io_uring) are left to the system call filter: with them, what is not written is forbidden.
pub(super) fn text(abi: bool) -> String {
    let abi = if abi { "abi <abi/3.0>,\n" } else { "" };
    format!("{abi}profile {NAME} flags=(attach_disconnected, mediate_deleted) {{\n{RULES}}}\n")
}

/// A rule that denies wins over one that allows.
const RULES: &str = "
  # What namespaces, capabilities and the system call filter leave.
  capability,
  network,
  file,
  umount,

  # Signals come from the node's side and from the container's own; they go to the container's own alone.
  signal (receive) peer=unconfined,
  signal (receive) peer={runc,crun,runsc,youki},
  signal (send, receive) peer=keelson-default,
  ptrace (trace, read, tracedby, readby) peer=keelson-default,

  # Also with CAP_SYS_ADMIN.
  deny mount,

  # Of /proc, what is not about a process is not written, but for the settings of the container's own IPC namespace.
  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^ey]*/** w,
  deny /proc/sysvipc/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^sm]* w,
  deny /proc/sys/kernel/[^sm]*/** w,
  deny /proc/sys/kernel/s[^he]* w,
  deny /proc/sys/kernel/s*/** w,
  deny /proc/sys/kernel/m[^s]* w,
  deny /proc/sys/kernel/m*/** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  # Of /sys, only cgroups are written; some of it is not read either.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
  deny /sys/kernel/debug/** rwklx,
";
