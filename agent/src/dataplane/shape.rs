//! What a delay line does with the packets of a rule. Pure: the caller brings clock and chance.

use std::time::Duration;

use rand::Rng;

/// What is done with each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Mean of the delay, nanoseconds.
    pub delay_ns: u64,
    /// Greatest deviation from it, uniform, nanoseconds.
    pub jitter_ns: u64,
}

impl Shape {
    /// Holds packets for `delay` plus or minus up to `jitter`.
    pub(super) fn delay(delay: Duration, jitter: Duration) -> Self {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { delay_ns: ns(delay), jitter_ns: ns(jitter) }
    }

    /// How long the next packet is held, nanoseconds.
    pub(super) fn draw(&self, chance: &mut impl Rng) -> u64 {
        if self.jitter_ns == 0 {
            return self.delay_ns;
        }
        let offset = chance.random_range(0..=2 * self.jitter_ns);
        (self.delay_ns + offset).saturating_sub(self.jitter_ns)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn jitter_is_uniform_to_both_sides_and_no_delay_is_negative() {
        let mut chance = StdRng::seed_from_u64(1);
        let shape = Shape { delay_ns: 1000, jitter_ns: 100 };
        let draws: Vec<u64> = (0..10_000).map(|_| shape.draw(&mut chance)).collect();
        assert!(draws.iter().all(|drawn| (900..=1100).contains(drawn)));
        let below = |limit| draws.iter().filter(|drawn| **drawn < limit).count() as f64 / draws.len() as f64;
        for (limit, share) in [(950, 0.25), (1000, 0.5), (1050, 0.75)] {
            assert!((below(limit) - share).abs() < 0.02, "{} below {limit}", below(limit));
        }
        let wide = Shape { delay_ns: 10, jitter_ns: 100 };
        assert!((0..1000).any(|_| wide.draw(&mut chance) == 0));
        assert_eq!(Shape { delay_ns: 7, jitter_ns: 0 }.draw(&mut chance), 7);
    }
}
