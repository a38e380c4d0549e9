//! The machine's summary: `firedrill run --json`. Fields are only ever added; `schema` changes when that is not
//! enough.

use firedrill_model::log::Run;
use firedrill_model::receipt::{Effect, ReceiptLine};
use firedrill_model::units::Span;
use firedrill_model::verdict::{Expectation, Healed, ProbeJudgement, Radius, Verdict, WindowStats};
use serde::Serialize;

use super::digest::{self, Fate};

/// Names this format.
const SCHEMA: &str = "firedrill/summary/1";

/// A run in numbers. Times in seconds, latencies in milliseconds, shares as fractions.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    schema: &'static str,
    run: &'a str,
    experiment: &'a str,
    title: &'a str,
    system: &'a str,
    started: &'a str,
    seconds: f64,
    version: &'a str,
    seed: u64,
    /// False for an ad-hoc `inject`, which only reports.
    judged: bool,
    /// Null when the run did not come to one.
    verdict: Option<Verdict>,
    /// Null when the log has no end.
    exit_code: Option<u8>,
    finding: String,
    aborted: Option<AbortedPart<'a>>,
    expectations: &'a [Expectation],
    probes: Vec<ProbePart<'a>>,
    radius: Option<&'a Radius>,
    receipts: Vec<ReceiptPart<'a>>,
    changes: ChangesPart,
    left_over: Vec<String>,
    /// Changes that the log tells no end of.
    not_known_undone: Vec<String>,
    unproven: &'a [String],
    replay: &'a [String],
}

#[derive(Debug, Serialize)]
struct AbortedPart<'a> {
    at: f64,
    why: &'a str,
    invalid: bool,
}

#[derive(Debug, Serialize)]
struct ProbePart<'a> {
    name: &'a str,
    component: &'a str,
    judged: bool,
    verdict: Verdict,
    reason: &'a str,
    moved: bool,
    baseline: WindowPart,
    fault: WindowPart,
    recovery: WindowPart,
    outage: Option<OutagePart>,
    /// `after`, `not-within` or `unknown`.
    healed: &'static str,
    healed_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct WindowPart {
    due: usize,
    taken: usize,
    missing: usize,
    bad: usize,
    bad_share: f64,
    bad_lower: f64,
    bad_upper: f64,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct OutagePart {
    impact: f64,
    lasted: f64,
    error: f64,
    censored: bool,
}

#[derive(Debug, Serialize)]
struct ReceiptPart<'a> {
    step: usize,
    fault: &'a str,
    target: &'a str,
    effect: Effect,
    says: &'a str,
    lines: &'a [ReceiptLine],
}

#[derive(Debug, Serialize)]
struct ChangesPart {
    applied: usize,
    undone: usize,
    irreversible: usize,
}

/// The summary of a run.
fn summary(run: &Run) -> Summary<'_> {
    let judgement = run.judgement.as_ref();
    let plan = &run.plan;
    let host = digest::restored(run);
    let early = run.aborted.as_ref().map(|a| if a.2 { Verdict::Invalid } else { Verdict::Aborted });
    let fates = |wanted: Fate| run.changes.iter().filter(|c| digest::fate(c) == wanted).count();
    Summary {
        schema: SCHEMA,
        run: &run.id,
        experiment: &plan.experiment,
        title: &plan.title,
        system: &plan.system,
        started: &run.started,
        seconds: run.last_event,
        version: &run.version,
        seed: plan.seed,
        judged: plan.judged,
        verdict: judgement.map(|j| j.verdict).or(early),
        exit_code: run.ended.as_ref().map(|(exit, _)| *exit as u8),
        finding: digest::headline(run).finding,
        aborted: run.aborted.as_ref().map(|(at, why, invalid)| AbortedPart { at: *at, why, invalid: *invalid }),
        expectations: judgement.map(|j| j.expectations.as_slice()).unwrap_or_default(),
        probes: judgement.map(|j| j.probes.iter().filter_map(|p| probe(run, p)).collect()).unwrap_or_default(),
        radius: judgement.map(|j| &j.radius),
        receipts: run
            .receipts
            .iter()
            .map(|(step, r)| ReceiptPart {
                step: step + 1,
                fault: &r.fault,
                target: &r.target,
                effect: r.effect,
                says: &r.says,
                lines: &r.lines,
            })
            .collect(),
        changes: ChangesPart {
            applied: run.changes.len(),
            undone: fates(Fate::Undone),
            irreversible: fates(Fate::Irreversible),
        },
        left_over: host.left,
        not_known_undone: host.unknown,
        unproven: judgement.map(|j| j.unproven.as_slice()).unwrap_or_default(),
        replay: &run.replay,
    }
}

/// The summary as a JSON document.
pub fn report(run: &Run) -> String {
    // Only text, numbers and lists: nothing that serde_json could refuse.
    serde_json::to_string_pretty(&summary(run)).expect("a summary has no map with keys other than text") + "\n"
}

fn probe<'a>(run: &'a Run, p: &'a ProbeJudgement) -> Option<ProbePart<'a>> {
    let plan = digest::probe(run, p.probe)?;
    let secs = |span: Span| Some(span.as_secs_f64());
    let (healed, healed_seconds) = match p.healed {
        Healed::After(span) => ("after", secs(span)),
        Healed::NotWithin(span) => ("not-within", secs(span)),
        Healed::Unknown => ("unknown", None),
    };
    Some(ProbePart {
        name: &plan.name,
        component: &plan.component,
        judged: p.judged,
        verdict: p.verdict,
        reason: &p.reason,
        moved: p.moved,
        baseline: window(&p.baseline),
        fault: window(&p.fault),
        recovery: window(&p.recovery),
        outage: p.outage.map(|o| OutagePart {
            impact: o.impact.as_secs_f64(),
            lasted: o.lasted.as_secs_f64(),
            error: o.error.as_secs_f64(),
            censored: o.censored,
        }),
        healed,
        healed_seconds,
    })
}

fn window(w: &WindowStats) -> WindowPart {
    WindowPart {
        due: w.due,
        taken: w.taken,
        missing: w.missing(),
        bad: w.bad,
        bad_share: w.bad_share(),
        bad_lower: w.bad_lower,
        bad_upper: w.bad_upper,
        p50_ms: w.p50_ms,
        p95_ms: w.p95_ms,
        p99_ms: w.p99_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, golden};
    use super::*;

    #[test]
    fn the_summary_keeps_its_shape() {
        golden("summary-refuted.json", &report(&sample::shared_store()));
        golden("summary-cut.json", &report(&sample::cut()));
    }

    #[test]
    fn a_run_without_an_end_has_neither_verdict_nor_exit_code() {
        let run = sample::cut();
        let value = serde_json::to_value(summary(&run)).expect("JSON");
        assert!(value["verdict"].is_null() && value["exit_code"].is_null());
        assert_eq!(value["not_known_undone"].as_array().map(Vec::len), Some(1));
    }
}
