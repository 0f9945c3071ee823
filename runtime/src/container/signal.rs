//! Signal names: how images and people write them, and the kernel's numbers.
//! Pure functions. Owns the table of names.
//! Must never fail a container over an image's nonsense: TERM is what stops it then.

/// The kernel's names, by number from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const TERM: i32 = 15;
/// As the C library counts them: the kernel's first two are its own.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The signal that stops a container: the request's, else the image's, else TERM.
pub(crate) fn effective(asked: Option<i32>, image: Option<&str>) -> i32 {
    asked.or_else(|| image.and_then(parse)).unwrap_or(TERM)
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
pub(crate) fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if !upper.is_empty() && upper.bytes().all(|byte| byte.is_ascii_digit()) {
        return upper.parse().ok().filter(|number| (1..=RTMAX).contains(number));
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset =
        |rest: &str, sign| if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, '+')
            .map(|offset| RTMIN.saturating_add(offset))
            .filter(|number| (RTMIN..=RTMAX).contains(number));
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, '-')
            .map(|offset| RTMAX.saturating_sub(offset))
            .filter(|number| (RTMIN..=RTMAX).contains(number));
    }
    let name = match name {
        "IOT" => "ABRT",
        "POLL" => "IO",
        "CLD" => "CHLD",
        other => other,
    };
    NAMES.iter().position(|known| *known == name).and_then(|index| i32::try_from(index + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGKILL", Some(9)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("SIGRTMIN+99999999999", None),
            ("SIGRTMAX-40", None),
            ("SIG", None),
            ("", None),
            ("NOPE", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    #[test]
    fn the_request_rules_and_nonsense_means_term() {
        assert_eq!(effective(Some(10), Some("QUIT")), 10);
        assert_eq!(effective(None, Some("QUIT")), 3);
        assert_eq!(effective(None, Some("NOPE")), 15);
        assert_eq!(effective(None, None), 15);
    }
}
