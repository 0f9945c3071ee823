//! The smallest possible first process of a pid namespace: it reaps what is orphaned to it and ends at SIGTERM, SIGINT or SIGQUIT.
//! A complete program of a few hundred bytes, run from a sealed memory file: two resident pages, no heap, no library, nothing of
//! the shim's memory or descriptors, and no file of the host behind `/proc/1/exe`.
//! Owns nothing.
//! Must never grow: a supervisor is the shim's work.

use std::os::fd::OwnedFd;

use rustix::io;

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .rodata.keelson_init, \"a\"",
    ".globl keelson_init_begin",
    ".globl keelson_init_end",
    "keelson_init_begin:",
    "push -1",
    // rt_sigprocmask(SIG_BLOCK, all, none, 8)
    "mov eax, 14",
    "xor edi, edi",
    "mov rsi, rsp",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    // prctl(PR_SET_NAME, name)
    "mov eax, 157",
    "mov edi, 15",
    "lea rsi, [rip + 7f]",
    "syscall",
    // signal = rt_sigtimedwait(all, none, no timeout, 8)
    "2:",
    "mov eax, 128",
    "mov rdi, rsp",
    "xor esi, esi",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "cmp eax, 15",
    "je 4f",
    "cmp eax, 2",
    "je 4f",
    "cmp eax, 3",
    "je 4f",
    "cmp eax, 17",
    "jne 2b",
    // while wait4(any, none, WNOHANG, none) > 0
    "3:",
    "mov eax, 61",
    "mov rdi, -1",
    "xor esi, esi",
    "mov edx, 1",
    "xor r10d, r10d",
    "syscall",
    "test rax, rax",
    "jg 3b",
    "jmp 2b",
    // exit_group(0)
    "4:",
    "mov eax, 231",
    "xor edi, edi",
    "syscall",
    "7:",
    ".asciz \"keelson-init\"",
    "keelson_init_end:",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".pushsection .rodata.keelson_init, \"a\"",
    ".balign 4",
    ".globl keelson_init_begin",
    ".globl keelson_init_end",
    "keelson_init_begin:",
    "mov x9, #-1",
    "str x9, [sp, #-16]!",
    "mov x8, #135",
    "mov x0, #0",
    "mov x1, sp",
    "mov x2, #0",
    "mov x3, #8",
    "svc #0",
    "mov x8, #167",
    "mov x0, #15",
    "adr x1, 7f",
    "svc #0",
    "2:",
    "mov x8, #137",
    "mov x0, sp",
    "mov x1, #0",
    "mov x2, #0",
    "mov x3, #8",
    "svc #0",
    "cmp w0, #15",
    "b.eq 4f",
    "cmp w0, #2",
    "b.eq 4f",
    "cmp w0, #3",
    "b.eq 4f",
    "cmp w0, #17",
    "b.ne 2b",
    "3:",
    "mov x8, #260",
    "mov x0, #-1",
    "mov x1, #0",
    "mov x2, #1",
    "mov x3, #0",
    "svc #0",
    "cmp x0, #0",
    "b.gt 3b",
    "b 2b",
    "4:",
    "mov x8, #94",
    "mov x0, #0",
    "svc #0",
    "7:",
    ".asciz \"keelson-init\"",
    "keelson_init_end:",
    ".popsection",
);

unsafe extern "C" {
    static keelson_init_begin: u8;
    static keelson_init_end: u8;
}

const BASE: u64 = 0x40_0000;
const FILE_HEADER: usize = 64;
const SEGMENT_HEADER: usize = 56;
const CODE: usize = FILE_HEADER + 2 * SEGMENT_HEADER;
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// The program as a sealed, executable memory file.
pub fn program() -> io::Result<OwnedFd> {
    crate::memfd::sealed_bytes(c"keelson-init", &image())
}

fn code() -> &'static [u8] {
    let (begin, end) = (&raw const keelson_init_begin, &raw const keelson_init_end);
    // SAFETY: the assembler put both labels into one section, `end` behind `begin`, with only the program between them.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

/// An ELF executable of one read-only, executable segment, and a stack that is not executable.
fn image() -> Vec<u8> {
    let code = code();
    let length = (CODE + code.len()) as u64;
    let mut image = Vec::with_capacity(CODE + code.len());
    image.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    image.extend(2_u16.to_le_bytes());
    image.extend(MACHINE.to_le_bytes());
    image.extend(1_u32.to_le_bytes());
    for word in [BASE + CODE as u64, FILE_HEADER as u64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [FILE_HEADER as u16, SEGMENT_HEADER as u16, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    const LOAD: (u32, u32) = (1, 5);
    const STACK: (u32, u32) = (0x6474_e551, 6);
    for ((kind, flags), size, align) in [(LOAD, length, 0x1000_u64), (STACK, 0, 16)] {
        image.extend(kind.to_le_bytes());
        image.extend(flags.to_le_bytes());
        let address = if size == 0 { 0 } else { BASE };
        for word in [0, address, address, size, size, align] {
            image.extend(word.to_le_bytes());
        }
    }
    image.extend(code);
    image
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn it_runs_and_ends_at_sigterm() {
        let program = program().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let cwd = std::fs::File::open("/").unwrap();
        let spawned = crate::spawn::spawn(&crate::spawn::Program {
            file: program.as_fd(),
            argv: &[c"init".into()],
            env: &[],
            cwd: cwd.as_fd(),
            stdio: [null.as_fd(); 3],
        })
        .unwrap();
        let status = format!("/proc/{}/status", spawned.pid);
        // Its name is set by its second call, after its signals are blocked; then it sleeps.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let text = loop {
            let text = std::fs::read_to_string(&status).unwrap();
            if text.starts_with("Name:\tkeelson-init") && text.contains("State:\tS") {
                break text;
            }
            assert!(std::time::Instant::now() < deadline, "{text}");
            std::thread::yield_now();
        };
        assert!(text.contains("Threads:\t1"));
        crate::pidfd::send_signal(&spawned.pidfd, libc::SIGUSR1).unwrap();
        crate::pidfd::send_signal(&spawned.pidfd, libc::SIGCHLD).unwrap();
        assert_eq!(crate::pidfd::try_wait(&spawned.pidfd).unwrap(), None);
        crate::pidfd::send_signal(&spawned.pidfd, libc::SIGTERM).unwrap();
        assert_eq!(crate::pidfd::wait(&spawned.pidfd).unwrap(), crate::pidfd::Exit::Code(0));
    }

    #[test]
    fn it_is_small() {
        assert!(image().len() < 512, "{}", image().len());
    }
}
