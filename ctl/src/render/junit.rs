//! `junit.xml` for CI: one suite a run, one case an expectation, and one for the host.
//!
//! Inconclusive is a failure, not a skip: what was not shown must not turn a build green.

use std::time::Duration;

use firedrill_model::log::Run;
use firedrill_model::receipt::Effect;
use firedrill_model::verdict::Verdict;
use quick_junit::{NonSuccessKind, Report, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::{digest, words};

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the JUnit report could not be written: {0}; the logs are complete, `firedrill report` tries again")]
pub struct JunitError(#[from] SerializeError);

/// The report of one or more runs.
///
/// # Errors
/// When the XML cannot be written.
pub fn report(runs: &[&Run]) -> Result<String, JunitError> {
    let mut report = Report::new("firedrill");
    for run in runs {
        report.add_test_suite(suite(run));
    }
    report.set_time(Duration::from_secs_f64(runs.iter().map(|r| r.last_event.max(0.0)).sum()));
    Ok(report.to_string()?)
}

fn suite(run: &Run) -> TestSuite {
    let head = digest::headline(run);
    let mut suite = TestSuite::new(run.plan.experiment.clone());
    suite.set_time(Duration::from_secs_f64(run.last_event.max(0.0)));
    for (label, value) in digest::about(run) {
        suite.add_property((label, value));
    }
    suite.add_property(("Replay".to_owned(), words::command_line(&run.replay)));
    for case in cases(run, &head) {
        suite.add_test_case(case);
    }
    suite.add_test_case(host_case(run));
    let unproven = run.judgement.as_ref().map(|j| j.unproven.as_slice()).unwrap_or_default();
    let mut out = head.finding;
    for text in unproven {
        out.push_str("\nnot proven: ");
        out.push_str(text);
    }
    suite.set_system_out(out);
    suite
}

fn cases(run: &Run, head: &digest::Headline) -> Vec<TestCase> {
    let Some(judgement) = &run.judgement else {
        let verdict = if run.aborted.as_ref().is_some_and(|a| !a.2) { Verdict::Aborted } else { Verdict::Invalid };
        return vec![case(run, "the run comes to a verdict", verdict, &head.finding)];
    };
    if !run.plan.judged {
        let effect = |(_, r): &(usize, firedrill_model::receipt::Receipt)| {
            let verdict = match r.effect {
                Effect::Effective => Verdict::Held,
                Effect::ArmedNoTraffic => Verdict::Inconclusive,
                Effect::None => Verdict::Invalid,
            };
            case(run, &format!("{} on {} has an effect", r.fault, r.target), verdict, &r.says)
        };
        return run.receipts.iter().map(effect).collect();
    }
    let mut cases: Vec<TestCase> =
        judgement.expectations.iter().map(|e| case(run, &e.what, e.verdict, &e.reason)).collect();
    let worst = judgement.expectations.iter().map(|e| e.verdict.rank()).max();
    if worst.is_none_or(|worst| worst < judgement.verdict.rank()) {
        // A run can be worse than its parts: invalid although nothing moved. That must not look green.
        cases.push(case(run, "the run as a whole", judgement.verdict, &judgement.finding));
    }
    cases
}

fn case(run: &Run, name: &str, verdict: Verdict, reason: &str) -> TestCase {
    let status = match verdict {
        Verdict::Held => TestCaseStatus::success(),
        Verdict::Degraded | Verdict::Broken | Verdict::Inconclusive => failed(NonSuccessKind::Failure, verdict, reason),
        Verdict::Invalid | Verdict::Aborted => failed(NonSuccessKind::Error, verdict, reason),
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(format!("{}.{}", run.plan.system, run.plan.experiment));
    case
}

fn failed(kind: NonSuccessKind, verdict: Verdict, reason: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(verdict.to_string()).set_message(reason).set_description(reason);
    status
}

fn host_case(run: &Run) -> TestCase {
    let restored = digest::restored(run);
    let mut lines = restored.left.clone();
    lines.extend(restored.unknown.iter().map(|what| format!("not known to be undone: {what}")));
    let status = if lines.is_empty() {
        TestCaseStatus::success()
    } else {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        let kind = if restored.left.is_empty() { "unknown" } else { "not-restored" };
        status.set_type(kind).set_message(restored.says).set_description(lines.join("\n"));
        status
    };
    let mut case = TestCase::new("the host is as it was before", status);
    case.set_classname(format!("{}.{}", run.plan.system, run.plan.experiment));
    case
}

#[cfg(test)]
mod tests {
    use super::super::sample::{self, golden};
    use super::*;

    #[test]
    fn several_runs_make_several_suites() {
        let runs: Vec<Run> = sample::all().into_iter().map(|(_, run)| run).collect();
        golden("junit.xml", &report(&runs.iter().collect::<Vec<_>>()).expect("XML"));
    }

    #[test]
    fn only_what_is_held_is_green() {
        let run = sample::lost_web();
        for verdict in [Verdict::Degraded, Verdict::Broken, Verdict::Inconclusive, Verdict::Invalid, Verdict::Aborted] {
            let case = case(&run, "x", verdict, "why");
            assert!(matches!(case.status, TestCaseStatus::NonSuccess { .. }), "{verdict}");
        }
        assert!(matches!(case(&run, "x", Verdict::Held, "").status, TestCaseStatus::Success { .. }));
    }

    #[test]
    fn a_run_that_is_worse_than_its_parts_is_not_green() {
        let mut run = sample::lost_web();
        run.judgement.as_mut().expect("judged").verdict = Verdict::Invalid;
        let xml = report(&[&run]).expect("XML");
        assert!(xml.contains("the run as a whole") && xml.contains(r#"type="invalid""#), "{xml}");
    }

    #[test]
    fn text_from_outside_stays_text() {
        let mut run = sample::shared_store();
        run.judgement.as_mut().expect("judged").expectations[0].reason = "]]><x> & \u{1b}[31m \"q\"".into();
        let xml = report(&[&run]).expect("XML");
        assert!(!xml.contains("<x>") && !xml.contains('\u{1b}'), "{xml}");
    }
}
