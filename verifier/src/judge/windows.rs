//! The windows of a run: before, under and after the fault.

use firedrill_model::event::Phase;
use firedrill_model::log::Run;

/// Windows in seconds since the run began; `None` where there was none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Windows {
    /// From the beginning of the baseline to the first inject.
    pub baseline: Option<(f64, f64)>,
    /// From the first inject to the last revert.
    pub fault: Option<(f64, f64)>,
    /// From the last revert to the end of observation.
    pub recovery: Option<(f64, f64)>,
}

impl Windows {
    /// The windows of a run.
    pub fn of(run: &Run) -> Self {
        // Probes are asked until they are stopped, which is about when the verdict is due; nothing shows that more
        // should have come after the last sample of all.
        let newest = run.samples.iter().flatten().map(|s| s.due).max_by(f64::total_cmp);
        let closed = run.began(Phase::Verdict).unwrap_or(run.last_event);
        let end = newest.map_or(closed, |n| closed.min(n + 1e-3));
        let fault = run.fault_window();
        let began = run.began(Phase::Baseline);
        Self {
            baseline: began.map(|from| (from, fault.map_or(end, |f| f.0))).filter(|(from, to)| to > from),
            fault: fault.filter(|(from, to)| to > from),
            recovery: fault.map(|f| (f.1, end)).filter(|(from, to)| to > from),
        }
    }
}
