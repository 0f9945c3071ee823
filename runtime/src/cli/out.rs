//! Standard output of the subcommands: lines for a person, JSON for a script.
//! Main thread only. Owns no buffer: what was said was written.
//! Must never fail a command because its reader went away.

use std::{fmt::Display, io::Write as _};

/// One line.
pub(super) fn line(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A text as it is.
pub(super) fn text(text: impl Display) {
    let _ = write!(std::io::stdout(), "{text}");
}

/// A name and what it is, in two columns.
pub(super) fn pair(name: &str, value: impl Display) {
    line(format_args!("  {name:<14} {value}"));
}

/// Bytes as a person says them.
pub(super) fn bytes(count: u64) -> String {
    let mut value = u32::try_from(count >> 10).map_or(f64::from(u32::MAX), f64::from);
    if count < 1024 {
        return format!("{count} B");
    }
    for unit in ["KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_the_nearest_unit() {
        for (count, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536 << 10, "1.5 MiB"),
            (3 << 30, "3.0 GiB"),
            (2 << 40, "2.0 TiB"),
        ] {
            assert_eq!(bytes(count), want);
        }
    }
}
