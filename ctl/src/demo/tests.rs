//! What the demo concludes, from runs that are made up here.

use std::time::Duration;

use firedrill_agent::snapshot::{Difference, Line};
use firedrill_model::event::{Event, Record};
use firedrill_model::facts::HostFacts;
use firedrill_model::log::Run;
use firedrill_model::verdict::{Containment, ExitCode, Judgement, Radius, Verdict};

use super::conclude::{Outcome, exit_code, findings};
use super::drills::{self, DRILLS, Drill, Expected};
use super::survive::Survival;
use super::{Choices, PathBuf, index};

/// A run of one of the demo's experiments that came to `verdict`, with these components hit.
fn run(experiment: &str, verdict: Verdict, observed: &[&str]) -> Run {
    let library = drills::library("d9", "/bin/firedrill").expect("valid files");
    let choices = Choices { seed: 1, force_seed: false, env: &|_| None };
    let plan = library.lower(experiment, &choices).expect("valid experiment").plan;
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let radius = Radius {
        declared: plan.radius.clone(),
        observed: names(observed),
        escapes: observed.iter().map(ToString::to_string).filter(|o| !plan.radius.contains(o)).collect(),
        over_predicted: Vec::new(),
        unprobed: Vec::new(),
        components: plan.components.len(),
        containment: Containment::Contained,
    };
    let judgement = Judgement {
        verdict,
        finding: format!("{experiment} came to <{verdict}>"),
        expectations: Vec::new(),
        probes: Vec::new(),
        radius,
        unproven: Vec::new(),
    };
    let started = Event::RunStarted {
        id: "id".into(),
        version: "0".into(),
        started: "2026-01-01T00:00:00+00:00".into(),
        replay: Vec::new(),
        host: Box::new(HostFacts::default()),
        plan: Box::new(plan),
    };
    let mut run = Run::start(&Record { at: 0.0, event: started }).expect("a beginning");
    run.push(&Record { at: 9.0, event: Event::Judged(Box::new(judgement)) });
    run
}

fn drill(experiment: &str) -> &'static Drill {
    DRILLS.iter().find(|d| d.experiment == experiment).expect("a drill")
}

fn outcome(experiment: &str, verdict: Verdict, observed: &[&str]) -> Outcome {
    let folder = PathBuf::from(format!("runs/2026-{experiment}"));
    Outcome { drill: drill(experiment), run: run(experiment, verdict, observed), folder }
}

/// Every drill as it is expected to come out.
fn as_hoped() -> Vec<Outcome> {
    let verdict = |d: &Drill| if let Expected::Is(verdict) = d.expected { verdict } else { Verdict::Degraded };
    DRILLS.iter().map(|d| outcome(d.experiment, verdict(d), &["front", "web", "store", "db"])).collect()
}

#[test]
fn a_shared_part_with_one_replica_is_named_and_the_claim_above_it_refuted() {
    let held = run("lose-one-store", Verdict::Held, &["store"]);
    let broken = run("lose-the-datastore", Verdict::Broken, &["front", "web", "store", "db"]);
    let found = findings(&[&held, &broken]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("db is a single point of failure"), "{found:?}");
    assert!(found[1].starts_with("store is not redundant"), "{found:?}");
    assert!(found[1].contains("lose-one-store: held"), "{found:?}");
}

#[test]
fn without_users_being_hit_nothing_is_called_a_single_point_of_failure() {
    let unseen = run("lose-the-datastore", Verdict::Broken, &["store", "db"]);
    let held = run("lose-the-datastore", Verdict::Held, &["db"]);
    assert_eq!(findings(&[&unseen, &held]), Vec::<String>::new());
}

#[test]
fn redundancy_is_refuted_only_where_it_was_seen_to_hold_for_one_replica() {
    let broken = run("lose-the-datastore", Verdict::Broken, &["front", "web", "store", "db"]);
    let also = run("lose-one-store", Verdict::Broken, &["front", "store"]);
    let found = findings(&[&broken, &also]);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn the_exit_code_tells_left_overs_from_drills_that_could_not_be_judged() {
    let left = ["cgroup x".to_owned()];
    assert_eq!(exit_code(&as_hoped(), DRILLS.len(), true, &[]), ExitCode::Held);
    assert_eq!(exit_code(&as_hoped(), DRILLS.len(), true, &left), ExitCode::NotRestored);
    assert_eq!(exit_code(&as_hoped(), DRILLS.len(), false, &[]), ExitCode::Unproven);
    assert_eq!(exit_code(&as_hoped()[1..], DRILLS.len(), true, &[]), ExitCode::Unproven);
    let mut unsteady = as_hoped();
    unsteady[0] = outcome("lose-one-web", Verdict::Invalid, &[]);
    assert_eq!(exit_code(&unsteady, DRILLS.len(), true, &[]), ExitCode::Unproven);
    // Another verdict than hoped for is still a verdict.
    let mut otherwise = as_hoped();
    otherwise[0] = outcome("lose-one-web", Verdict::Broken, &[]);
    assert_eq!(exit_code(&otherwise, DRILLS.len(), true, &[]), ExitCode::Held);
    assert!(!otherwise[0].as_expected());
}

#[test]
fn the_page_shows_every_verdict_escapes_what_it_quotes_and_needs_no_network() {
    let difference = Difference {
        line: Line { place: "d9-lb".into(), kind: "qdisc".into(), what: "clsact".into() },
        appeared: true,
    };
    let survival = Survival {
        clean_after: Some(Duration::from_millis(37)),
        bad: 12,
        undone: vec!["freeze cgroup d9/db: thawed".into()],
        differences: vec![difference],
        compared: 4321,
        folder: PathBuf::new(),
    };
    let outcomes = as_hoped();
    let page = index::page(&outcomes, &["db is <single>".into()], Some(&survival), &[], "now").expect("a page");
    // The template engine writes slashes as entities.
    let page = page.replace("&#x2f;", "/");
    for outcome in &outcomes {
        assert!(
            page.contains(&format!("../2026-{}/report.html", outcome.drill.experiment)),
            "{}",
            outcome.drill.experiment
        );
    }
    assert!(page.contains("db is &lt;single&gt;") && !page.contains("<single>"));
    assert!(page.contains("37 ms") && page.contains("+ d9-lb: qdisc clsact") && page.contains("d9/db: thawed"));
    assert!(!page.contains("http://") && !page.contains("https://"));
}
