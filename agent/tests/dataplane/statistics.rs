//! What chance permits: bounds that a sound program exceeds once in a million runs.

use firedrill_model::change::Distribution;

/// Standard deviations of a normal deviate that is farther off, either way, once in a million.
pub const FAR: f64 = 4.9;
/// Kolmogorov's distance, times the root of the number of draws, that is exceeded once in a million: `sqrt(ln(2e6) / 2)`.
pub const FAR_APART: f64 = 2.7;

/// A binomial count, in standard deviations from what is expected of it.
pub fn binomial_z(found: usize, of: usize, share: f64) -> f64 {
    let n = of as f64;
    (found as f64 - n * share) / (n * share * (1.0 - share)).sqrt()
}

/// The number of runs of equal outcomes (Wald and Wolfowitz 1940), in standard deviations from that of independent ones.
pub fn runs_z(outcomes: &[bool]) -> f64 {
    let n = outcomes.len() as f64;
    let yes = outcomes.iter().filter(|yes| **yes).count() as f64;
    let runs = 1.0 + outcomes.windows(2).filter(|pair| pair[0] != pair[1]).count() as f64;
    let twice = 2.0 * yes * (n - yes);
    let mean = 1.0 + twice / n;
    let variance = twice * (twice - n) / (n * n * (n - 1.0));
    (runs - mean) / variance.sqrt()
}

/// By how much more of a sample lies below a point than should, at most: 0 when never.
fn excess(sorted: &[f64], below: impl Fn(f64) -> f64) -> f64 {
    let n = sorted.len() as f64;
    (1..).zip(sorted).map(|(rank, x)| f64::from(rank) / n - below(*x)).fold(0.0, f64::max)
}

/// By how much less of a sample lies below a point than should, at most: 0 when never.
fn deficit(sorted: &[f64], below: impl Fn(f64) -> f64) -> f64 {
    let n = sorted.len() as f64;
    (0..).zip(sorted).map(|(rank, x)| below(*x) - f64::from(rank) / n).fold(0.0, f64::max)
}

/// Kolmogorov's distance between a sample and a distribution, where values may be up to `late` greater: what is measured on
/// a busy machine is late, and never early.
pub fn distance(mut sample: Vec<f64>, late: f64, below: impl Fn(f64) -> f64) -> f64 {
    sample.sort_by(f64::total_cmp);
    excess(&sample, &below).max(deficit(&sample, |x| below(x - late)))
}

/// Smirnov's distance between two samples, of which the second may be up to `late` greater, in units of what is
/// exceeded once in a million.
pub fn two_sample_distance(mut first: Vec<f64>, mut second: Vec<f64>, late: f64) -> f64 {
    first.sort_by(f64::total_cmp);
    second.sort_by(f64::total_cmp);
    let share = |sorted: &[f64], x: f64| sorted.partition_point(|y| *y <= x) as f64 / sorted.len() as f64;
    let apart = excess(&second, |x| share(&first, x)).max(deficit(&second, |x| share(&first, x - late)));
    let (n, m) = (first.len() as f64, second.len() as f64);
    apart / (FAR_APART * ((n + m) / (n * m)).sqrt())
}

/// As [`two_sample_distance`], where values of either may be up to `late` greater.
pub fn distance_but_for(first: &[f64], second: &[f64], late: f64) -> f64 {
    let earlier = first.iter().map(|x| x - late).collect();
    two_sample_distance(earlier, second.to_vec(), 2.0 * late)
}

/// The difference of two shares of as many draws, in standard deviations from none.
pub fn shares_z(first: usize, second: usize, of: usize) -> f64 {
    let n = of as f64;
    let share = (first + second) as f64 / (2.0 * n);
    (first as f64 - second as f64) / n / (2.0 * share * (1.0 - share) / n).sqrt()
}

/// The share of delays below `x`, in units of the jitter from the mean.
pub fn below(distribution: Distribution, x: f64) -> f64 {
    match distribution {
        Distribution::Uniform => f64::midpoint(x, 1.0).clamp(0.0, 1.0),
        Distribution::Normal => normal_below(x),
        Distribution::Pareto => pareto_below(x),
        // A quarter of a normal deviate and three quarters of the Pareto one that is as rare: found by halving.
        Distribution::ParetoNormal => {
            let (mut low, mut high) = (-6.0, 6.0);
            for _ in 0..50 {
                let middle = f64::midpoint(low, high);
                let there = 0.25 * middle + 0.75 * pareto(normal_below(middle));
                if there < x { low = middle } else { high = middle }
            }
            normal_below(low)
        }
    }
}

/// The Pareto deviate of which so many are less.
fn pareto(share: f64) -> f64 {
    (((1.0 - share).powf(-1.0 / 3.0) - 1.5) * 4.0 / 3.0).min(4.0)
}

/// Pareto of index 3, moved and scaled as in the tables of tc-netem, which end at 4.
fn pareto_below(x: f64) -> f64 {
    if x >= 4.0 { 1.0 } else { 1.0 - (0.75 * x + 1.5).max(1.0).powi(-3) }
}

/// By the series of Marsaglia 2004.
fn normal_below(x: f64) -> f64 {
    if x.abs() > 7.0 {
        return f64::from(x > 0.0);
    }
    let (mut sum, mut term, mut i) = (x, x, 1.0);
    while sum + term != sum {
        i += 2.0;
        term *= x * x / i;
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

#[test]
fn what_is_not_by_chance_is_found() {
    let regular: Vec<bool> = (0..10_000).map(|i| i % 3 == 0).collect();
    assert!(runs_z(&regular) > FAR, "{}", runs_z(&regular));
    let bursts: Vec<bool> = (0..10_000).map(|i| i / 4 % 3 == 0).collect();
    assert!(runs_z(&bursts) < -FAR, "{}", runs_z(&bursts));
    assert!(binomial_z(1200, 10_000, 0.1) > FAR);
    let n = 2000;
    let even: Vec<f64> = (0..n).map(|i| f64::from(i) / f64::from(n)).collect();
    let bound = FAR_APART / f64::from(n).sqrt();
    assert!(distance(even.clone(), 0.0, |x| x) < bound, "a sample of its own distribution");
    assert!(distance(even.iter().map(|x| x * 0.8).collect(), 0.0, |x| x) > bound, "too narrow");
    assert!(distance(even.iter().map(|x| x + 0.1).collect(), 0.2, |x| x) < bound, "late as permitted");
    assert!(distance(even.iter().map(|x| x - 0.1).collect(), 0.2, |x| x) > bound, "early");
    assert!(two_sample_distance(even.clone(), even.iter().map(|x| x + 0.01).collect(), 0.02) < 1.0);
    assert!(two_sample_distance(even.clone(), even.iter().map(|x| x + 0.2).collect(), 0.02) > 1.0);
    assert!((normal_below(1.0) - 0.841_344_746).abs() < 1e-9);
    // As in the table of netem.
    assert!((below(Distribution::ParetoNormal, 0.974) - 0.9).abs() < 2e-3);
    assert!((below(Distribution::ParetoNormal, 30.0) - 1.0).abs() < 1e-3);
}
