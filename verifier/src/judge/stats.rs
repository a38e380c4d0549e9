//! Bounds on a share and on quantiles, from counts.
//!
//! Shares: Clopper and Pearson (1934), which is never less sure than it says, unlike Wilson's interval (that one
//! passes 1 % at n = 268). Quantiles: order statistics. "The q quantile is at most L" is the same statement as "at
//! most 1 − q of the values are above L", so both come from the one bound.

use statrs::function::beta::beta_reg;

pub(crate) use firedrill_model::sampling::ALPHA;

/// One-sided upper bound, with confidence 1 − `alpha`, of a share of which `hits` of `n` were seen. 1 when nothing
/// was seen.
pub(crate) fn upper(hits: usize, n: usize, alpha: f64) -> f64 {
    if hits >= n {
        1.0
    } else if hits == 0 {
        // The closed form of the next line, exact.
        1.0 - (alpha.ln() / n as f64).exp()
    } else {
        quantile_of_beta(hits as f64 + 1.0, (n - hits) as f64, 1.0 - alpha)
    }
}

/// One-sided lower bound, likewise. 0 when nothing was seen.
pub(crate) fn lower(hits: usize, n: usize, alpha: f64) -> f64 {
    if hits == 0 || n == 0 {
        0.0
    } else if hits >= n {
        (alpha.ln() / n as f64).exp()
    } else {
        quantile_of_beta(hits as f64, (n - hits) as f64 + 1.0, alpha)
    }
}

/// The `p` quantile of a beta distribution, by bisection: the library's own inverse need not end for large numbers.
fn quantile_of_beta(a: f64, b: f64, p: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if beta_reg(a, b, middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// Fewest samples after which a share of which `hits` were seen is shown to be at most `limit`; `None` when no
/// number of them up to a hundred million is enough.
pub(crate) fn needed(hits: usize, limit: f64) -> Option<usize> {
    let enough = |n: usize| upper(hits, n, ALPHA) <= limit;
    let mut high = hits + 1;
    while !enough(high) {
        high = high.checked_mul(2).filter(|n| *n <= 100_000_000)?;
    }
    let mut low = hits;
    while high - low > 1 {
        let middle = low.midpoint(high);
        if enough(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// The `q` quantile of ascending values by nearest rank: the smallest with at least `q` of them at or below it.
pub(crate) fn quantile(ascending: &[f64], q: f64) -> Option<f64> {
    let rank = (q * ascending.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    ascending.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// P(X ≤ k) for X binomial, added up term by term in logarithms: nothing in common with the beta function.
    fn binomial_at_most(k: usize, n: usize, p: f64) -> f64 {
        let mut term = n as f64 * (1.0 - p).ln();
        let mut sum = term.exp();
        for i in 1..=k {
            term += ((n - i + 1) as f64 / i as f64).ln() + (p / (1.0 - p)).ln();
            sum += term.exp();
        }
        sum
    }

    #[test]
    fn the_bounds_are_where_the_binomial_tail_is_5_percent() {
        let mut rng = StdRng::seed_from_u64(1);
        for round in 0..400 {
            // Up to a day of a probe each second, and few bad as well as many.
            let n = rng.random_range(1..if round % 4 == 0 { 86_400 } else { 3000 });
            let k = if round % 2 == 0 { rng.random_range(0..=n) } else { rng.random_range(0..=n.min(40)) };
            if k < n {
                let tail = binomial_at_most(k, n, upper(k, n, ALPHA));
                assert!((tail - ALPHA).abs() < 1e-6, "upper {k} of {n}: tail {tail}");
            }
            if k > 0 {
                let tail = 1.0 - binomial_at_most(k - 1, n, lower(k, n, ALPHA));
                assert!((tail - ALPHA).abs() < 1e-6, "lower {k} of {n}: tail {tail}");
            }
        }
    }

    #[test]
    fn each_bound_covers_the_truth_at_least_95_times_in_100() {
        let mut rng = StdRng::seed_from_u64(2);
        for (p, n) in [(0.002, 300), (0.01, 299), (0.05, 80), (0.3, 40), (0.9, 100)] {
            let (mut below, mut above, trials) = (0, 0, 4000);
            for _ in 0..trials {
                let k = (0..n).filter(|_| rng.random_bool(p)).count();
                below += usize::from(upper(k, n, ALPHA) < p);
                above += usize::from(lower(k, n, ALPHA) > p);
            }
            // Three standard errors above 5 % of 4000.
            assert!(below <= 241 && above <= 241, "p {p}, n {n}: missed {below} and {above} of {trials}");
        }
    }

    #[test]
    fn without_failures_299_samples_show_1_percent_and_298_do_not() {
        assert!(upper(0, 299, ALPHA) <= 0.01);
        assert!(upper(0, 298, ALPHA) > 0.01);
        assert!(upper(1, 473, ALPHA) <= 0.01);
        assert!(upper(1, 472, ALPHA) > 0.01);
    }

    #[test]
    fn needed_is_the_first_number_that_is_enough() {
        assert_eq!(needed(0, 0.01), Some(299));
        assert_eq!(needed(1, 0.01), Some(473));
        assert_eq!(needed(0, 0.05), Some(59));
        assert_eq!(needed(0, 0.5), Some(5));
        assert_eq!(needed(3, 1.0), Some(4));
        assert_eq!(needed(0, 0.0), None);
    }

    #[test]
    fn no_data_proves_nothing() {
        assert_eq!((upper(0, 0, ALPHA), lower(0, 0, ALPHA)), (1.0, 0.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn quantiles_go_by_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|q| quantile(&values, q)), [50.0, 95.0, 99.0, 100.0].map(Some));
        assert_eq!(quantile(&[7.0], 0.01), Some(7.0));
    }
}
