//! How long a fault may last.

use super::*;

#[test]
fn a_fault_whose_lease_lapses_is_reverted_by_the_next_tick_and_a_renewed_one_is_not() {
    let mut bench = Bench::new(SECOND);
    let id = bench.apply(&five());
    for _ in 0..4 {
        bench.pass(9 * TENTH);
        bench.renew();
        assert!(bench.engine.tick().is_empty());
    }
    bench.pass(SECOND);
    let ended = bench.engine.tick();
    assert_eq!(ended.len(), 1);
    assert!(ended[0].lapsed && ended[0].fault == id);
    assert_eq!(ended[0].changes.len(), 5);
    assert!(bench.engine.is_idle() && bench.engine.tick().is_empty());
}

#[test]
fn a_lapsed_lease_is_not_resumed_by_a_late_renewal() {
    let mut bench = Bench::new(SECOND);
    bench.apply(&[rule(1.0)]);
    let lapses = bench.engine.host().expires(&rule(1.0));
    bench.pass(SECOND);
    bench.renew();
    assert_eq!(bench.engine.host().expires(&rule(1.0)), lapses, "the kernel is told nothing");
    bench.pass(TENTH);
    bench.renew();
    let ended = bench.engine.tick();
    assert!(ended.len() == 1 && ended[0].lapsed);
    assert_eq!(ended[0].silent, TENTH, "it was ignored until it was reverted");
}

#[test]
fn a_renewal_in_time_that_is_honoured_late_leaves_a_gap_which_is_told() {
    let mut bench = Bench::new(SECOND);
    let id = bench.apply(&[rule(1.0)]);
    bench.pass(9 * TENTH);
    let in_time = bench.now();
    bench.engine.leases().renew(in_time);
    bench.pass(5 * TENTH);
    assert!(bench.engine.tick().is_empty(), "its owner did renew");
    assert_eq!(bench.engine.silent(id), 4 * TENTH);
    assert_eq!(bench.engine.host().expires(&rule(1.0)), in_time + SECOND);
    assert_eq!(bench.engine.revert(id).silent, 4 * TENTH);
}

#[test]
fn no_renewal_carries_a_fault_beyond_its_deadline() {
    let mut bench = Bench::new(TTL);
    bench.engine.apply(&plan(&[rule(1.0)]), SECOND).map_err(|e| e.0).expect("applies");
    let ends = bench.now() + SECOND;
    bench.renew();
    assert_eq!(bench.engine.host().expires(&rule(1.0)), ends, "the kernel is not told a later time either");
    bench.pass(SECOND);
    bench.renew();
    assert_eq!(bench.engine.tick().len(), 1);
}

#[test]
fn a_shared_change_lasts_as_long_as_the_fault_that_lasts_longest() {
    let mut bench = Bench::new(TTL);
    bench.engine.apply(&plan(&[attach(1)]), TENTH).map_err(|e| e.0).expect("applies");
    bench.apply(&[attach(1)]);
    bench.renew();
    let now = bench.now();
    assert!(bench.engine.host().expires(&attach(1)) > now + 60 * SECOND);
    bench.pass(2 * TENTH);
    assert_eq!(bench.engine.tick().len(), 1);
    assert!(!bench.engine.is_idle(), "the second fault still needs it");
}

#[test]
fn changes_slower_than_the_lease_end_no_fault_while_its_owner_renews() {
    let mut bench = Bench::new(SECOND);
    let first = bench.apply(&[rule(1.0)]);
    bench.engine.host().slow = 8 * TENTH;
    bench.renew_meanwhile();
    let second = bench.engine.apply(&plan(&five()), 3 * SECOND).map_err(|e| e.0).expect("applies").0;
    assert!(bench.engine.tick().is_empty(), "neither the new fault nor the one before it");
    let now = bench.now();
    for change in [rule(1.0), rule(30.0)] {
        assert_eq!(bench.engine.host().expires(&change), now + SECOND, "{change}");
    }
    assert_eq!(bench.engine.silent(first) + bench.engine.silent(second), Duration::ZERO);
    bench.engine.host().renewing = None;
    for _ in 0..5 {
        bench.pass(6 * TENTH);
        bench.renew();
    }
    let ended: Vec<FaultId> = bench.engine.tick().iter().map(|r| r.fault).collect();
    assert_eq!(ended, [second], "its time begins when all of it is in force");
}

#[test]
fn what_is_not_renewed_while_it_is_slowly_applied_is_given_up() {
    let mut bench = Bench::new(SECOND);
    bench.engine.host().slow = 4 * TENTH;
    let (error, reverted) = bench.engine.apply(&plan(&five()), LONG).expect_err("its owner hangs");
    assert!(matches!(error, ChangeError::Lapsed(ttl) if ttl == SECOND), "{error}");
    assert_eq!(reverted.changes.len(), 3, "no change is begun after the lease has ended");
    assert!(bench.engine.is_idle() && bench.outstanding().is_empty());
}
