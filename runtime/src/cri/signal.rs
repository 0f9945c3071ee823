//! CRI's signal enum against Linux signal numbers: the enum counts alphabetically, the kernel does not.
//! Pure tables, in any task of the daemon. Owns nothing.
//! Must never be asked about a signal that did not come through CRI or the kernel.

use keelson_cri::v1;

/// Where the C library's real-time signals begin and end.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Name as CRI has it, number as Linux has it on x86-64 and arm64; of two names for a number the first is reported.
const NUMBERS: [(v1::Signal, i32); 34] = {
    use v1::Signal::*;
    [
        (Sigabrt, 6),
        (Sigalrm, 14),
        (Sigbus, 7),
        (Sigchld, 17),
        (Sigcld, 17),
        (Sigcont, 18),
        (Sigfpe, 8),
        (Sighup, 1),
        (Sigill, 4),
        (Sigint, 2),
        (Sigio, 29),
        (Sigiot, 6),
        (Sigkill, 9),
        (Sigpipe, 13),
        (Sigpoll, 29),
        (Sigprof, 27),
        (Sigpwr, 30),
        (Sigquit, 3),
        (Sigsegv, 11),
        (Sigstkflt, 16),
        (Sigstop, 19),
        (Sigsys, 31),
        (Sigterm, 15),
        (Sigtrap, 5),
        (Sigtstp, 20),
        (Sigttin, 21),
        (Sigttou, 22),
        (Sigurg, 23),
        (Sigusr1, 10),
        (Sigusr2, 12),
        (Sigvtalrm, 26),
        (Sigwinch, 28),
        (Sigxcpu, 24),
        (Sigxfsz, 25),
    ]
};

/// The Linux number; `None` for "the runtime's default".
pub(super) fn number(signal: v1::Signal) -> Option<i32> {
    if signal == v1::Signal::RuntimeDefault {
        return None;
    }
    // CRI goes on without a gap from RTMIN (35) to RTMAX (65), as Linux does from 34 to 64.
    let real_time = || i32::from(signal) - i32::from(v1::Signal::Sigrtmin) + RTMIN;
    NUMBERS.iter().find(|(name, _)| *name == signal).map_or_else(|| Some(real_time()), |(_, number)| Some(*number))
}

/// CRI's name for a Linux number; "the runtime's default" for one without a name.
pub(super) fn name(number: i32) -> v1::Signal {
    if (RTMIN..=RTMAX).contains(&number) {
        let signal = number - RTMIN + i32::from(v1::Signal::Sigrtmin);
        return v1::Signal::try_from(signal).unwrap_or_default();
    }
    NUMBERS.iter().find(|(_, known)| *known == number).map_or(v1::Signal::default(), |(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_protocol_has_a_number_and_comes_back() {
        for value in 1..=65 {
            let signal = v1::Signal::try_from(value).unwrap();
            let linux = number(signal).unwrap();
            assert!((1..=64).contains(&linux), "{signal:?} {linux}");
            assert_eq!(number(name(linux)), Some(linux), "{signal:?}");
        }
        assert_eq!(number(v1::Signal::RuntimeDefault), None);
    }

    #[test]
    fn the_common_ones_are_right() {
        for (signal, linux) in [
            (v1::Signal::Sigterm, 15),
            (v1::Signal::Sigkill, 9),
            (v1::Signal::Sigint, 2),
            (v1::Signal::Sighup, 1),
            (v1::Signal::Sigusr1, 10),
            (v1::Signal::Sigrtmin, 34),
            (v1::Signal::Sigrtminplus3, 37),
            (v1::Signal::Sigrtmax, 64),
        ] {
            assert_eq!(number(signal), Some(linux));
            assert_eq!(name(linux), signal);
        }
        assert_eq!(name(6), v1::Signal::Sigabrt);
        assert_eq!(name(99), v1::Signal::RuntimeDefault);
    }
}
