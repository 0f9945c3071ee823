//! The time of day, and its text: RFC 3339 with nine digits of a second, in UTC.
//! Any process, any thread; the text is pure arithmetic.
//! Owns nothing.
//! Must never be used for a deadline (the time of day may jump; deadlines are `Instant`s), nor allocate: it runs for every batch.

/// Bytes of a formatted moment: `2026-01-02T03:04:05.000000006Z`.
pub(crate) const LENGTH: usize = 30;

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Formats nanoseconds since the epoch. Moments before the epoch or after the year 9999 are clamped to those ends.
pub(crate) fn format(nanoseconds: i64) -> [u8; LENGTH] {
    let nanoseconds = u64::try_from(nanoseconds).unwrap_or(0);
    let seconds = nanoseconds / 1_000_000_000;
    let (year, month, day) = civil(seconds / 86_400);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put(&mut text, 0..4, year);
    put(&mut text, 5..7, month);
    put(&mut text, 8..10, day);
    put(&mut text, 11..13, seconds / 3600 % 24);
    put(&mut text, 14..16, seconds / 60 % 60);
    put(&mut text, 17..19, seconds % 60);
    put(&mut text, 20..29, nanoseconds % 1_000_000_000);
    text
}

/// Year, month and day of a day after the epoch. Years begin in March here, so that the leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day)
}

fn put(text: &mut [u8; LENGTH], place: std::ops::Range<usize>, mut number: u64) {
    for digit in text.get_mut(place).into_iter().flatten().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seconds: i64, nanoseconds: i64) -> String {
        String::from_utf8(format(seconds * 1_000_000_000 + nanoseconds).to_vec()).unwrap()
    }

    #[test]
    fn known_moments_are_written_as_everybody_writes_them() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(text(seconds, 0), expected);
        }
        assert_eq!(text(1, 23), "1970-01-01T00:00:01.000000023Z");
        assert_eq!(text(-5, 0), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let days_of = |year: u64, month: u64| match month {
            2 if (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = (1970, 1, 1);
        for day in 0..200_000 {
            assert_eq!(civil(day), expected);
            let (year, month, day) = expected;
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, last) if last == days_of(year, month) => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }
}
