//! Levels that keep pods apart: one sensitivity, two categories, no two sandboxes with the same pair.
//! Pure. Owns nothing: what is taken is the caller's to know.
//! Must never give out a level that is taken, nor one that another includes: every level has exactly two categories.

/// Categories of the policies that distributions have: `c0` to `c1023`.
const CATEGORIES: u32 = 1024;
/// Pairs of two of them.
pub(crate) const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// The first free level after the one that the random number means; `None`: all are taken.
pub(crate) fn pick(random: u32, taken: impl Fn(&str) -> bool) -> Option<String> {
    (0..PAIRS).map(|step| text((random % PAIRS + step) % PAIRS)).find(|level| !taken(level))
}

/// The pair with this number, below [`PAIRS`].
fn text(pair: u32) -> String {
    // (0,1) (0,2) (1,2) (0,3) ...: the pairs whose second is n begin at n(n-1)/2.
    let mut second = (1 + 8 * pair).isqrt().div_ceil(2);
    if second * (second - 1) / 2 > pair {
        second -= 1;
    }
    format!("s0:c{},c{second}", pair - second * (second - 1) / 2)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_is_another_pair() {
        let all: HashSet<String> = (0..PAIRS).map(text).collect();
        assert_eq!(all.len(), PAIRS as usize);
        assert_eq!([text(0), text(1), text(2), text(3)], ["s0:c0,c1", "s0:c0,c2", "s0:c1,c2", "s0:c0,c3"]);
        assert_eq!(text(PAIRS - 1), "s0:c1022,c1023");
        for level in &all {
            let (first, second) = level.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
            let (first, second): (u32, u32) = (first.parse().unwrap(), second.parse().unwrap());
            assert!(first < second && second < CATEGORIES, "{level}");
        }
    }

    #[test]
    fn a_taken_level_is_never_given_out() {
        let mut taken = HashSet::new();
        for _ in 0..100 {
            let level = pick(u32::MAX, |level| taken.contains(level)).unwrap();
            assert!(taken.insert(level));
        }
        assert_eq!(pick(7, |level| level != "s0:c0,c1").as_deref(), Some("s0:c0,c1"), "round to the beginning");
        assert_eq!(pick(7, |_| true), None);
    }
}
