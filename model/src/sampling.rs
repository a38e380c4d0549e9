//! How many samples a tolerance needs before anything can be said about it.

use crate::file::Steady;

/// One-sided error probability of every statement: 5 %.
pub const ALPHA: f64 = 0.05;

/// Fewest samples, all good, after which the bad share is at most `p0` with confidence 1 − α:
/// n ≥ ln α / ln(1 − p0), the zero-failure case of Clopper and Pearson (1934). 299 for 1 %.
///
/// `None` when `p0` is 0: no number of samples proves that something never happens.
pub fn needed_for_share(p0: f64) -> Option<usize> {
    if p0 <= 0.0 {
        return None;
    }
    if p0 >= 1.0 {
        return Some(1);
    }
    // ln_1p, because 1 − p0 is 1 for a tiny share, whose samples would then come out as none at all.
    Some((ALPHA.ln() / (-p0).ln_1p()).ceil() as usize)
}

/// Fewest samples after which the largest one is an upper bound of the `q` quantile with confidence 1 − α:
/// q^n ≤ α (order statistics; Wilks 1941). 59 for p95, 299 for p99.
pub fn needed_for_quantile(q: f64) -> usize {
    (ALPHA.ln() / q.ln()).ceil() as usize
}

/// Fewest samples with which every tolerance of `steady` can be shown to hold.
///
/// `None` when one of them can never be shown.
pub fn needed(steady: &Steady) -> Option<usize> {
    let mut most = needed_for_share(steady.bad.fraction())?;
    for (limit, q) in [(steady.p50, 0.50), (steady.p95, 0.95), (steady.p99, 0.99)] {
        if limit.is_some() {
            most = most.max(needed_for_quantile(q));
        }
    }
    Some(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_sizes_are_the_textbook_ones() {
        assert_eq!(needed_for_share(0.01), Some(299));
        assert_eq!(needed_for_share(0.005), Some(598));
        assert_eq!(needed_for_share(0.001), Some(2995));
        assert_eq!(needed_for_share(0.0), None);
        assert!(needed_for_share(1e-300).expect("finite") > 1 << 60);
        assert_eq!(needed_for_share(1.0), Some(1));
        assert_eq!(needed_for_quantile(0.95), 59);
        assert_eq!(needed_for_quantile(0.99), 299);
    }
}
