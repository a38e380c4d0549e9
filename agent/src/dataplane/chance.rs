//! Draws: shares, and how delays are spread. Pure.

use std::f64::consts::TAU;

use firedrill_model::change::Distribution;
use rand::Rng;

/// Whether something of this probability happens.
pub(super) fn happens(share: f64, chance: &mut impl Rng) -> bool {
    chance.random::<f64>() < share
}

/// A sequence of deviates, each as like the one before as is asked.
#[derive(Debug, Default)]
pub(super) struct Deviate {
    /// The last normal deviate.
    last: Option<f64>,
}

impl Deviate {
    /// The next one, in units of the jitter.
    pub(super) fn next(&mut self, correlation: f64, distribution: Distribution, chance: &mut impl Rng) -> f64 {
        let normal = self.normal(correlation, chance);
        match distribution {
            Distribution::Uniform => 2.0 * share_below(normal) - 1.0,
            Distribution::Normal => normal,
            Distribution::Pareto => pareto(share_below(normal)),
            // Of one draw, as in the table of tc-netem(8).
            Distribution::ParetoNormal => 0.25 * normal + 0.75 * pareto(share_below(normal)),
        }
    }

    /// An autoregressive sequence of standard normal deviates: `r * last + sqrt(1 - r^2) * new` keeps the distribution.
    fn normal(&mut self, correlation: f64, chance: &mut impl Rng) -> f64 {
        let new = standard_normal(chance);
        let next = match self.last {
            Some(last) if correlation > 0.0 => correlation * last + (1.0 - correlation * correlation).sqrt() * new,
            _ => new,
        };
        self.last = Some(next);
        next
    }
}

/// Box and Muller 1958.
fn standard_normal(chance: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - chance.random::<f64>()).ln()).sqrt();
    radius * (TAU * chance.random::<f64>()).cos()
}

/// The share of normal deviates below `x`, by the error function of Abramowitz and Stegun 7.1.26: wrong by less than 1e-7.
fn share_below(x: f64) -> f64 {
    const P: f64 = 0.327_591_1;
    const A: [f64; 5] = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + P * z);
    let polynomial = A.iter().rev().fold(0.0, |sum, a| (sum + a) * t);
    let error = 1.0 - polynomial * (-z * z).exp();
    0.5 * (1.0 + error.copysign(x))
}

/// Pareto of index 3 at a quantile, moved to mean 0 and scaled, as in the tables of tc-netem(8): from -2/3 up. Like those it ends,
/// at 4.
fn pareto(quantile: f64) -> f64 {
    const LEAST: f64 = 1e-12;
    (((1.0 - quantile).max(LEAST).powf(-1.0 / 3.0) - 1.5) * 4.0 / 3.0).min(4.0)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const DRAWS: usize = 20_000;

    fn draws(distribution: Distribution, correlation: f64) -> Vec<f64> {
        let mut chance = StdRng::seed_from_u64(7);
        let mut deviate = Deviate::default();
        (0..DRAWS).map(|_| deviate.next(correlation, distribution, &mut chance)).collect()
    }

    /// Kolmogorov's distance between draws and the distribution that they should have.
    fn distance(mut draws: Vec<f64>, below: impl Fn(f64) -> f64) -> f64 {
        draws.sort_by(f64::total_cmp);
        let count = draws.len() as f64;
        let at = |(i, x): (usize, &f64)| {
            (below(*x) - i as f64 / count).abs().max((below(*x) - (i + 1) as f64 / count).abs())
        };
        draws.iter().enumerate().map(at).fold(0.0, f64::max)
    }

    /// The distance that one sample in a thousand exceeds (Kolmogorov), of independent draws.
    fn critical() -> f64 {
        1.95 / (DRAWS as f64).sqrt()
    }

    fn pareto_below(x: f64) -> f64 {
        if x >= 4.0 { 1.0 } else { 1.0 - (0.75 * x + 1.5).max(1.0).powi(-3) }
    }

    #[test]
    fn deviates_have_the_distribution_that_was_asked() {
        let uniform = distance(draws(Distribution::Uniform, 0.0), |x| (x + 1.0) / 2.0);
        let normal = distance(draws(Distribution::Normal, 0.0), share_below);
        let pareto = distance(draws(Distribution::Pareto, 0.0), pareto_below);
        assert!(uniform < critical() && normal < critical() && pareto < critical(), "{uniform} {normal} {pareto}");
    }

    #[test]
    fn correlation_makes_draws_alike_and_leaves_their_distribution() {
        for (asked, distribution) in [(0.5, Distribution::Normal), (0.8, Distribution::Normal)] {
            let draws = draws(distribution, asked);
            let products: f64 = draws.windows(2).map(|pair| pair[0] * pair[1]).sum();
            let squares: f64 = draws.iter().map(|x| x * x).sum();
            assert!((products / squares - asked).abs() < 0.03, "{}", products / squares);
        }
        // Draws that are alike count for fewer: (1 + r) / (1 - r) times.
        let wide = critical() * 3.0;
        assert!(distance(draws(Distribution::Uniform, 0.8), |x| (x + 1.0) / 2.0) < wide);
        assert!(distance(draws(Distribution::Pareto, 0.8), pareto_below) < wide);
    }

    #[test]
    fn a_pareto_delay_has_the_mean_that_was_asked_and_a_long_tail() {
        let draws = draws(Distribution::Pareto, 0.0);
        let mean = draws.iter().sum::<f64>() / DRAWS as f64;
        assert!(mean.abs() < 0.03, "{mean}");
        assert!(draws.iter().all(|x| (-0.667..=4.0).contains(x)));
        assert!(draws.iter().any(|x| *x > 3.0));
    }
}
