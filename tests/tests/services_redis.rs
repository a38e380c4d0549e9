//! A Redis master with two replicas and three Sentinels, under the shipped experiments.

mod services;

use firedrill_tests::stage::redis;
use services::drill;

/// `down-after-milliseconds` is 5 s; 6.2 to 6.3 s were measured.
const FAILOVER: std::ops::Range<f64> = 4.0..12.0;

#[test]
fn a_replica_takes_over_from_a_dead_master() {
    let Some(outcome) = drill("redis", redis::raise, redis::EXPERIMENTS, "lose-the-master") else { return };
    outcome.expect("held", 0);
    let outage = outcome.outage("store/write");
    assert!(FAILOVER.contains(&outage), "{outage} s: {}", outcome.told());
}

#[test]
fn a_replica_takes_over_from_a_master_without_network() {
    let Some(outcome) = drill("redis", redis::raise, redis::EXPERIMENTS, "cut-off-the-master") else { return };
    outcome.expect("held", 0);
    let outage = outcome.outage("store/write");
    assert!(FAILOVER.contains(&outage), "{outage} s: {}", outcome.told());
}

#[test]
fn a_lost_replica_does_not_move_writes() {
    let Some(outcome) = drill("redis", redis::raise, redis::EXPERIMENTS, "lose-a-replica") else { return };
    outcome.expect("held", 0);
    assert!(outcome.outage("store/write") < 1.0, "{}", outcome.told());
}
