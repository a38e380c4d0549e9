//! A cluster of three etcd members, under the shipped experiments.

mod services;

use firedrill_tests::stage::etcd;
use services::drill;

#[test]
fn writes_resume_one_election_after_the_leaders_death() {
    let Some(outcome) = drill("etcd", etcd::raise, etcd::EXPERIMENTS, "lose-the-leader") else { return };
    outcome.expect("held", 0);
    // Without a leader for 0.9 to 1.6 s; a write that waits for the new one is bad only if it waits 300 ms.
    let outage = outcome.outage("store/quorum");
    assert!((0.4..4.0).contains(&outage), "{outage} s: {}", outcome.told());
}

#[test]
fn a_slow_follower_does_not_move_writes() {
    let Some(outcome) = drill("etcd", etcd::raise, etcd::EXPERIMENTS, "slow-follower") else { return };
    outcome.expect("held", 0);
    let quorum = outcome.probe("store/quorum");
    assert_eq!((&quorum["moved"], &quorum["verdict"]), (&false.into(), &"held".into()), "{}", outcome.told());
    let slow = outcome.probe("members/etcd-3")["fault"]["p50_ms"].as_f64();
    assert!(slow >= Some(95.0), "whoever asks the slow follower itself waits for it: {slow:?}");
}

#[test]
fn one_of_three_members_writes_nothing_until_the_others_are_back() {
    let Some(outcome) = drill("etcd", etcd::raise, etcd::EXPERIMENTS, "lose-the-quorum") else { return };
    outcome.expect("broken", 1);
    assert!(outcome.outage("store/put") > 4.0, "{}", outcome.told());
    assert_eq!(outcome.probe("store/put")["healed"], "after", "{}", outcome.told());
}
