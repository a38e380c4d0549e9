//! Numbers out of many: quantiles, and ratios of blocks that were measured side by side.

/// Values of one kind.
#[derive(Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// Not a number without values.
    pub fn quantile(&self, q: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * q).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What half of the values lie between.
    pub fn middle_half(&self) -> String {
        format!("{:.3}–{:.3}", self.quantile(0.25), self.quantile(0.75))
    }
}

/// Measures without and with something in turns, the order changed each time so that no drift of the machine favours
/// one. Gives, for each turn, the pair of both.
pub fn side_by_side<T>(rounds: usize, mut measure: impl FnMut(bool) -> T) -> Vec<(T, T)> {
    let turn = |round: usize| {
        if round.is_multiple_of(2) {
            let without = measure(false);
            (without, measure(true))
        } else {
            let with = measure(true);
            (measure(false), with)
        }
    };
    (0..rounds).map(turn).collect()
}
