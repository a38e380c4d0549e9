//! Sparklines: the latest latencies of a probe in a few characters.

use firedrill_model::event::{Outcome, Sample};

use super::words::Tone;

const BLOCKS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// The latest `cells` stretches of `width` seconds up to `now`, oldest first: the character and its tone. A bad
/// answer shows whatever else there was, and looks different without colour, too.
///
/// Blocks grow by one with each doubling over `usual`, so that a picture does not change its scale while it is
/// looked at. What is slower than `limit` milliseconds has the tone of a warning.
pub fn cells(
    samples: &[Sample],
    now: f64,
    cells: usize,
    width: f64,
    usual: f64,
    limit: f64,
) -> Vec<(&'static str, Tone)> {
    let last = (now / width).floor() as i64;
    let first = last - cells as i64 + 1;
    let from = samples.partition_point(|s| ((s.due / width).floor() as i64) < first);
    let mut out = Vec::with_capacity(cells);
    let mut rest = samples[from..].iter().peekable();
    for cell in first..=last {
        let (mut good, mut bad, mut missed) = (Vec::new(), false, false);
        while let Some(sample) = rest.next_if(|s| (s.due / width).floor() as i64 <= cell) {
            match &sample.outcome {
                Outcome::Good(ms) => good.push(*ms),
                Outcome::Bad(_) => bad = true,
                Outcome::Missed(_) => missed = true,
            }
        }
        good.sort_by(f64::total_cmp);
        out.push(match (bad, missed, good.get(good.len() / 2)) {
            (true, ..) => ("×", Tone::Bad),
            (_, true, _) => ("?", Tone::Unknown),
            (_, _, Some(ms)) => (BLOCKS[level(*ms, usual)], if *ms > limit { Tone::Warn } else { Tone::Plain }),
            (_, _, None) => (" ", Tone::Plain),
        });
    }
    out
}

fn level(ms: f64, usual: f64) -> usize {
    let doublings = (ms.max(1e-3) / usual.max(1e-3)).log2();
    (doublings.round().clamp(0.0, 7.0)) as usize
}

/// What is usual for a probe: the median of its first good answers, in milliseconds.
pub fn usual(samples: &[Sample]) -> f64 {
    let good = |s: &Sample| if let Outcome::Good(ms) = s.outcome { Some(ms) } else { None };
    let mut first: Vec<f64> = samples.iter().filter_map(good).take(100).collect();
    first.sort_by(f64::total_cmp);
    first.get(first.len() / 2).copied().unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use firedrill_model::event::Bad;

    use super::*;

    fn samples(n: u32, outcome: impl Fn(u32) -> Outcome) -> Vec<Sample> {
        (0..n).map(|i| Sample { probe: 0, due: f64::from(i) * 0.1, outcome: outcome(i) }).collect()
    }

    fn text(samples: &[Sample], now: f64, n: usize) -> String {
        cells(samples, now, n, 0.5, usual(samples), 50.0).into_iter().map(|c| c.0).collect()
    }

    #[test]
    fn one_bad_answer_among_many_good_ones_shows() {
        let all =
            samples(50, |i| if i == 22 { Outcome::Bad(Bad { ms: 1.0, why: "x".into() }) } else { Outcome::Good(2.0) });
        assert_eq!(text(&all, 4.95, 10), "▁▁▁▁×▁▁▁▁▁");
    }

    #[test]
    fn each_doubling_is_one_block_and_what_was_not_sampled_is_blank() {
        let all = samples(200, |i| if i < 100 { Outcome::Good(2.0) } else { Outcome::Good(8.0) });
        assert_eq!(text(&all, 10.9, 4), "▁▁▃▃");
        assert_eq!(text(&all[..100], 11.4, 5), "▁▁   ");
        assert_eq!(text(&[], 3.0, 3), "   ");
    }
}
