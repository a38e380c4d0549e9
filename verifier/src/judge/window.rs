//! Samples of one probe by window. Windows are half open, `from ≤ due < to`, in seconds since the run began.
//!
//! Probes go by a fixed schedule, so what should be there is known: a slot of the schedule without an answer is
//! missing, whether the log says so or says nothing. Missing samples count as bad where something is to be shown
//! good, and as good where it is to be shown bad.

use firedrill_model::event::{Outcome, Sample};
use firedrill_model::file::Steady;
use firedrill_model::run::ProbePlan;
use firedrill_model::verdict::WindowStats;

use super::stats::{self, ALPHA};

/// The samples of one probe.
#[derive(Clone, Copy)]
pub(crate) struct Series<'a> {
    /// The probe.
    pub plan: &'a ProbePlan,
    /// Its samples, ascending by due time.
    pub samples: &'a [Sample],
}

/// What was counted in one window, or several together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Samples that were due.
    pub due: usize,
    /// Bad ones.
    pub bad: usize,
    /// Latencies of the good ones in milliseconds, ascending.
    pub good: Vec<f64>,
}

/// A latency limit of a probe: the `q` quantile is at most `ms`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// `p50`, `p95` or `p99`.
    pub name: &'static str,
    /// The quantile.
    pub q: f64,
    /// The limit in milliseconds.
    pub ms: f64,
}

/// The latency limits of a tolerance.
pub(crate) fn limits(steady: &Steady) -> impl Iterator<Item = Limit> {
    [("p50", 0.50, steady.p50), ("p95", 0.95, steady.p95), ("p99", 0.99, steady.p99)]
        .into_iter()
        .filter_map(|(name, q, limit)| limit.map(|l| Limit { name, q, ms: l.as_secs_f64() * 1e3 }))
}

impl<'a> Series<'a> {
    /// Seconds from one sample to the next.
    pub fn every(&self) -> f64 {
        // Zero is refused in files; a log may say anything.
        self.plan.every.as_secs_f64().max(1e-6)
    }

    /// The samples due within a window.
    pub fn within(&self, from: f64, to: f64) -> &'a [Sample] {
        let start = self.samples.partition_point(|s| s.due < from - self.slack());
        let end = self.samples.partition_point(|s| s.due < to - self.slack());
        self.samples.get(start..end).unwrap_or_default()
    }

    /// A thousandth of an interval absorbs what floating point does to due times.
    fn slack(&self) -> f64 {
        self.every() * 1e-3
    }

    /// Number of the first slot of the schedule at or after a time, counted from the first sample.
    fn slot(&self, at: f64) -> f64 {
        let origin = self.samples.first().map_or(0.0, |s| s.due);
        ((at - self.slack() - origin) / self.every()).ceil()
    }

    /// Due time of a slot.
    fn due(&self, slot: f64) -> f64 {
        self.samples.first().map_or(0.0, |s| s.due) + slot * self.every()
    }

    /// How many samples the schedule has within a window.
    pub fn scheduled(&self, from: f64, to: f64) -> usize {
        if to <= from { 0 } else { (self.slot(to) - self.slot(from)).max(0.0) as usize }
    }

    /// Counts one window.
    pub fn counts(&self, from: f64, to: f64) -> Counts {
        let mut counts = Counts::default();
        counts.add(self, from, to);
        counts
    }

    /// Counts a window less a part of it.
    pub fn counts_without(&self, (from, to): (f64, f64), (cut, resume): (f64, f64)) -> Counts {
        let mut counts = self.counts(from, cut.clamp(from, to));
        counts.add(self, resume.clamp(from, to), to);
        counts
    }

    /// Due time of the first bad sample in a window.
    pub fn first_bad(&self, from: f64, to: f64) -> Option<f64> {
        self.within(from, to).iter().find(|s| s.outcome.is_bad()).map(|s| s.due)
    }

    /// Due time of the first sample in a window that is bad or missing.
    pub fn first_not_good(&self, from: f64, to: f64) -> Option<f64> {
        let mut next = self.slot(from);
        for sample in self.within(from, to) {
            if sample.due > self.due(next) + self.every() / 2.0 {
                return Some(self.due(next).max(from));
            }
            if !sample.outcome.is_good() {
                return Some(sample.due);
            }
            next = self.slot(sample.due) + 1.0;
        }
        (next < self.slot(to)).then(|| self.due(next).max(from))
    }

    /// The part of a window before an event that all answers came in before: what was under way may have been hit
    /// by the event, and says nothing about the time before it. From the first sample on, because probes may start
    /// a little later than a phase.
    pub fn before(&self, from: f64, event: f64) -> (f64, f64) {
        let samples = self.within(from, event);
        let came = |s: &Sample| match &s.outcome {
            Outcome::Good(ms) => s.due + ms / 1e3,
            Outcome::Bad(bad) => s.due + bad.ms / 1e3,
            Outcome::Missed(_) => s.due,
        };
        let under_way = samples.iter().find(|s| came(s) >= event);
        (samples.first().map_or(from, |s| s.due), under_way.map_or(event, |s| s.due))
    }

    /// Until when everything that was due is answered, looking at `now`. A slow answer may still be out, and then
    /// nothing from there on counts: the quick ones among the answers would be counted first. What is older than
    /// the time-out is missing and holds nothing up.
    pub fn settled(&self, now: f64) -> f64 {
        // Beyond the time-out an answer needs a moment to be noted, and may have been sent an interval late.
        let patience = self.plan.timeout.as_secs_f64() + self.every() + 0.25;
        let young = now - patience;
        let Some(first) = self.samples.first() else { return young };
        let mut next = self.slot(young.max(first.due));
        for sample in self.within(young.max(first.due), now) {
            if sample.due > self.due(next) + self.every() / 2.0 {
                break;
            }
            next = self.slot(sample.due) + 1.0;
        }
        // Half an interval before the first that is not there.
        (self.due(next) - self.every() / 2.0).min(now)
    }
}

impl Counts {
    fn add(&mut self, series: &Series<'_>, from: f64, to: f64) {
        if to <= from {
            return;
        }
        let samples = series.within(from, to);
        for sample in samples {
            match &sample.outcome {
                Outcome::Good(ms) => self.good.push(if ms.is_finite() { *ms } else { f64::MAX }),
                Outcome::Bad(_) => self.bad += 1,
                Outcome::Missed(_) => {}
            }
        }
        self.good.sort_by(f64::total_cmp);
        self.due += series.scheduled(from, to).max(samples.len());
    }

    /// Samples with an answer.
    pub fn taken(&self) -> usize {
        self.good.len() + self.bad
    }

    /// Samples that were due and not taken.
    pub fn missing(&self) -> usize {
        self.due.saturating_sub(self.taken())
    }

    /// Upper bound of the bad share; missing ones may all have been bad.
    pub fn bad_upper(&self) -> f64 {
        stats::upper(self.bad + self.missing(), self.due, ALPHA)
    }

    /// Lower bound of the bad share, with error probability `alpha`; missing ones may all have been good.
    pub fn bad_lower(&self, alpha: f64) -> f64 {
        stats::lower(self.bad, self.due, alpha)
    }

    fn slower_than(&self, limit: Limit) -> usize {
        self.good.len() - self.good.partition_point(|ms| *ms <= limit.ms)
    }

    /// Samples that may count against a latency limit, and all that count for it at all.
    fn for_limit(&self, limit: Limit) -> (usize, usize) {
        (self.slower_than(limit) + self.missing(), self.good.len() + self.missing())
    }

    /// Whether a latency limit is shown to hold.
    pub fn shows(&self, limit: Limit) -> bool {
        let (slow, of) = self.for_limit(limit);
        at_most(stats::upper(slow, of, ALPHA), 1.0 - limit.q)
    }

    /// Whether a latency limit is shown to be exceeded.
    pub fn exceeds(&self, limit: Limit, alpha: f64) -> bool {
        let (_, of) = self.for_limit(limit);
        stats::lower(self.slower_than(limit), of, alpha) > 1.0 - limit.q
    }

    /// Whether the tolerance is shown to hold, in all its parts.
    pub fn shows_steady(&self, steady: &Steady) -> bool {
        at_most(self.bad_upper(), steady.bad.fraction()) && limits(steady).all(|l| self.shows(l))
    }

    /// Whether the bad share is shown to be above its tolerance.
    pub fn shows_bad(&self, steady: &Steady, alpha: f64) -> bool {
        self.bad_lower(alpha) > steady.bad.fraction()
    }

    /// The first latency limit that is shown to be exceeded.
    pub fn exceeded(&self, steady: &Steady, alpha: f64) -> Option<Limit> {
        limits(steady).find(|l| self.exceeds(*l, alpha))
    }

    /// Samples that the tolerance needs in all when everything to come is good; `None` when it can never be shown.
    pub fn needed(&self, steady: &Steady) -> Option<usize> {
        let mut most = stats::needed(self.bad + self.missing(), steady.bad.fraction())?;
        for limit in limits(steady) {
            let (slow, _) = self.for_limit(limit);
            // Bad answers have no latency, so they come on top.
            most = most.max(stats::needed(slow, 1.0 - limit.q)? + self.bad);
        }
        Some(most)
    }

    /// The numbers for the log.
    pub fn stats(&self) -> WindowStats {
        WindowStats {
            due: self.due,
            taken: self.taken(),
            bad: self.bad,
            bad_lower: self.bad_lower(ALPHA),
            bad_upper: self.bad_upper(),
            p50_ms: stats::quantile(&self.good, 0.50),
            p95_ms: stats::quantile(&self.good, 0.95),
            p99_ms: stats::quantile(&self.good, 0.99),
        }
    }
}

/// `bound ≤ limit`, where the limit went through a subtraction such as 1 − 0.95.
fn at_most(bound: f64, limit: f64) -> bool {
    bound <= limit + 1e-12
}
