//! Architectures: their OCI names, audit tokens, system call numbers, and which of them one machine can run.
//! Pure; called by the compiler in the daemon and the OCI command line.
//! Owns nothing; the tables are in `numbers`.
//! Must never guess: an architecture this room does not know by name is an error, one the machine cannot run is left out.

use std::collections::HashMap;

use super::{SeccompError, numbers};

/// An architecture that a filter can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    X86_64,
    /// Shares x86_64's audit token; its numbers carry [`Arch::X32_BIT`].
    X32,
    I386,
    Aarch64,
    Arm,
}

/// Known to libseccomp and so valid in a profile, but never native to a machine we run on.
const FOREIGN: [&str; 16] = [
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
];

impl Arch {
    /// What marks an x32 call's number.
    pub const X32_BIT: u32 = 0x4000_0000;

    /// The architecture of this very program.
    pub fn native() -> Option<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Arch::X86_64),
            "x86" => Some(Arch::I386),
            "aarch64" => Some(Arch::Aarch64),
            "arm" => Some(Arch::Arm),
            _ => None,
        }
    }

    /// From a profile's name for it; None for one that exists but cannot run here.
    pub(super) fn from_profile(name: &str) -> Result<Option<Arch>, SeccompError> {
        Ok(Some(match name {
            "SCMP_ARCH_X86_64" => Arch::X86_64,
            "SCMP_ARCH_X32" => Arch::X32,
            "SCMP_ARCH_X86" => Arch::I386,
            "SCMP_ARCH_AARCH64" => Arch::Aarch64,
            "SCMP_ARCH_ARM" => Arch::Arm,
            other if FOREIGN.contains(&other) => return Ok(None),
            other => return Err(SeccompError::UnknownArchitecture { architecture: other.to_owned() }),
        }))
    }

    /// The name a profile uses.
    pub fn profile_name(self) -> &'static str {
        match self {
            Arch::X86_64 => "SCMP_ARCH_X86_64",
            Arch::X32 => "SCMP_ARCH_X32",
            Arch::I386 => "SCMP_ARCH_X86",
            Arch::Aarch64 => "SCMP_ARCH_AARCH64",
            Arch::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// Itself and the 32-bit ones that its kernels can run too.
    pub fn family(self) -> &'static [Arch] {
        match self {
            Arch::X86_64 => &[Arch::X86_64, Arch::I386, Arch::X32],
            Arch::X32 => &[Arch::X32],
            Arch::I386 => &[Arch::I386],
            Arch::Aarch64 => &[Arch::Aarch64, Arch::Arm],
            Arch::Arm => &[Arch::Arm],
        }
    }

    /// `seccomp_data.arch`.
    pub fn token(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::I386 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// True when `seccomp_data.args` never has anything in the upper halves.
    pub(super) fn is_32_bit(self) -> bool {
        match self {
            Arch::I386 | Arch::Arm => true,
            Arch::X86_64 | Arch::X32 | Arch::Aarch64 => false,
        }
    }

    /// From this number on calls are private to the architecture and say nothing about the age of a profile.
    pub(super) fn private_calls(self) -> u32 {
        match self {
            Arch::Arm => 0xf_0000,
            Arch::X86_64 | Arch::X32 | Arch::I386 | Arch::Aarch64 => u32::MAX,
        }
    }

    /// Every name and its number, as `seccomp_data.nr` shows it.
    pub(super) fn calls(self) -> HashMap<&'static str, u32> {
        let (table, offset) = match self {
            Arch::X86_64 => (numbers::X86_64, 0),
            Arch::X32 => (numbers::X32, Arch::X32_BIT),
            Arch::I386 => (numbers::I386, 0),
            Arch::Aarch64 => (numbers::AARCH64, 0),
            Arch::Arm => (numbers::ARM, 0),
        };
        let mut calls = HashMap::with_capacity(512);
        let mut next = offset;
        for word in table.split_ascii_whitespace() {
            match word.strip_prefix('@').and_then(|n| n.parse::<u32>().ok()) {
                Some(number) => next = offset + number,
                None => {
                    calls.extend(word.split('=').map(|name| (name, next)));
                    next += 1;
                }
            }
        }
        calls
    }
}
