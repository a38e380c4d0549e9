//! The first sentence of the report.

use super::drill::*;

#[test]
fn a_held_run_names_the_probe_the_numbers_and_what_was_done() {
    let judgement = Drill::new().judged(&|_| good(), &|_| good());
    assert_eq!(
        judgement.finding,
        "Checkout held: front/checkout stayed within 1 % bad (0 of 400 bad) while web/web-2 was paused for 20s."
    );
}

#[test]
fn a_broken_run_names_what_went_down_for_how_long_and_where_else() {
    let down = |due| if under_fault(due) { bad() } else { good() };
    let judgement = Drill::new().judged(&down, &down);
    assert_eq!(
        judgement.finding,
        "Broken: losing web/web-2 takes front/checkout down: 100 % bad (400 of 400) until the fault ended; the loss of 1 \
         of 2 replicas of web is not survived; declared radius was [web], and front was hit too."
    );
}

#[test]
fn the_loss_of_all_replicas_shows_a_single_point_of_failure() {
    let mut drill = Drill::new();
    drill.plan.components[1].replicas = vec!["web-2".into()];
    let judgement = drill.judged(&|due| if under_fault(due) { bad() } else { good() }, &|_| good());
    assert!(judgement.finding.contains("web is a single point of failure"), "{}", judgement.finding);
}

#[test]
fn the_loss_of_all_of_several_replicas_is_no_single_point_of_failure() {
    let mut drill = Drill::new();
    let mut other = drill.plan.steps[0].targets[0].clone();
    other.name = "web/web-1".into();
    drill.plan.steps[0].targets.push(other);
    let judgement = drill.judged(&|due| if under_fault(due) { bad() } else { good() }, &|_| good());
    assert!(judgement.finding.contains("nothing stands in for all 2 replicas of web"), "{}", judgement.finding);
}

#[test]
fn several_steps_and_probes_are_told_together() {
    let down = |due| if under_fault(due) { bad() } else { good() };
    let mut drill = Drill::new();
    let mut other = drill.plan.steps[0].targets[0].clone();
    other.name = "web/web-1".into();
    drill.plan.steps[0].targets.push(other);
    drill.plan.radius = Vec::new();
    let finding = drill.judged(&down, &down).finding;
    let begins =
        "Broken: losing web/web-2 and web/web-1 takes front/checkout and web/ready down: 100 % bad (400 of 400 of ";
    assert!(finding.starts_with(begins), "{finding}");
}

#[test]
fn latency_limits_are_part_of_what_held() {
    let mut drill = Drill::new();
    drill.plan.probes[0].steady.p95 = Some(firedrill_model::units::Span::from_millis(200));
    let judgement = drill.judged(&|_| good(), &|_| good());
    assert_eq!(
        judgement.finding,
        "Checkout held: front/checkout stayed within 1 % bad (0 of 400 bad) and its p95 within 200 ms (12 ms) while \
         web/web-2 was paused for 20s."
    );
}

#[test]
fn a_degraded_run_names_both_shares() {
    let judgement = Drill::new().judged(&|due| if (12.0..14.0).contains(&due) { bad() } else { good() }, &|_| good());
    assert_eq!(
        judgement.finding,
        "Degraded: front/checkout was 10 % bad (40 of 400), and at most 1 % is tolerated, while web/web-2 was paused for \
         20s; declared radius was [web], and front was hit too."
    );
}

#[test]
fn an_inconclusive_run_says_what_would_decide_it() {
    let judgement = Drill::new().judged(&|due| if (12.0..12.1).contains(&due) { bad() } else { good() }, &|_| good());
    assert!(judgement.finding.starts_with("Inconclusive: front/checkout was neither shown to hold nor shown to fail"));
    assert!(judgement.unproven[0].contains("with no more bad ones 628 would show it"), "{:?}", judgement.unproven);
}

#[test]
fn every_finding_is_one_sentence() {
    for n in 0..400 {
        let until = FAULT.0 + f64::from(n) * EVERY;
        let judgement =
            Drill::new().judged(&|due| if (FAULT.0..until).contains(&due) { bad() } else { good() }, &|_| good());
        assert!(judgement.finding.ends_with('.') && !judgement.finding.ends_with(".."), "{}", judgement.finding);
    }
}
