//! Random kills: the program, its guardian or both die at random moments of random drills, and the host is looked at
//! every millisecond until it is clean. [`FIREDRILL_RANDOM_SECONDS`](SECONDS) makes it last longer,
//! [`FIREDRILL_RANDOM_SEED`](SEED) draws the same again (moments are only as exact as the machine).

mod drill;
mod figures;
#[path = "../support/mod.rs"]
mod support;
mod victim;
mod watch;

use std::time::{Duration, Instant};

use firedrill_agent::host::wait_until;
use firedrill_agent::snapshot::Snapshot;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use drill::{Drill, Running};
use figures::{Figures, Round};
use support::{Bench, bench};
use victim::{Cleaner, Victim};
use watch::Watch;

/// How long to go on (s).
const SECONDS: &str = "FIREDRILL_RANDOM_SECONDS";
/// What to draw from.
const SEED: &str = "FIREDRILL_RANDOM_SEED";

/// Whether this is a guest in software emulation, where all takes a few times as long.
fn in_guest() -> bool {
    std::env::var_os("FIREDRILL_VM").is_some()
}

/// After this a host that is not clean never will be. A host that somebody still lives to clean is judged by the
/// figures; the limit has room for a machine with other things to do.
fn limit() -> Duration {
    Duration::from_secs(if in_guest() { 30 } else { 5 })
}

#[test]
fn whoever_is_killed_whenever_in_whatever_drill_nothing_is_left() {
    let Some(bench) = bench() else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let lasts = Duration::from_secs(number(SECONDS).unwrap_or(if in_guest() { 90 } else { 45 }));
    let seed = number(SEED).unwrap_or_else(rand::random);
    println!("seed {seed}: {SEED}={seed} draws the same again");
    let mut random = StdRng::seed_from_u64(seed);
    let mut figures = Figures::default();

    let namespaces = ["a", "b"].map(|node| bench.stage.netns(node));
    let folder = bench.firedrill.folder().path().display().to_string();
    let before = Snapshot::take(&namespaces).expect("a snapshot");
    let watch = Watch::new(&bench).expect("targets");
    assert_eq!(watch.dirt(), Vec::<&str>::new(), "the watch takes a clean host for one");

    // One that nobody kills tells how long a life is.
    let begun = Instant::now();
    let first = Drill::draw(&mut random, &bench);
    let mut running = first.start(&bench).expect("started");
    assert!(wait_until(limit(), || !watch.dirt().is_empty()), "the watch sees what a drill does: {first}");
    running.wait(10 * limit());
    let life = begun.elapsed();

    while begun.elapsed() < lasts {
        let round = one_round(&mut random, &bench, &watch, life);
        let mut left =
            before.left_behind(&namespaces, &[bench.stage.prefix()], Duration::from_secs(2)).expect("a snapshot");
        // Other tests on the same machine have files, too.
        left.retain(|d| d.line.kind != "open file" || d.line.what.contains(&folder));
        assert!(left.is_empty(), "seed {seed}, {round}: left: {left:#?}");
        figures.add(round);
    }
    figures.print();
    figures.assert_meaning();
}

/// A drill, a kill, and a look until the host is clean.
fn one_round(random: &mut StdRng, bench: &Bench, watch: &Watch, life: Duration) -> Round {
    let drill = Drill::draw(random, bench);
    let victim = Victim::draw(random);
    let moment = life.mul_f64(random.random_range(0.0..1.0));
    let in_force = |watch: &Watch| watch.dirt().iter().any(|what| !watch::OF_THE_PROGRAM.contains(what));
    let mut running = drill.start(bench).expect("started");
    let begun = Instant::now();
    if random.random_bool(0.5) {
        // How long a start takes differs from drill to drill, most of all in a guest: any moment would often be too late.
        wait_until(life, || in_force(watch));
        std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
    } else {
        std::thread::sleep(moment);
    }
    let told = format!("{drill}; {victim} killed after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    let watch = watch.with(&running);
    let open = in_force(&watch);

    let killed = Instant::now();
    victim.kill(&running, watch.guardians(), random);
    let survivors = victim.leaves_somebody();
    let mut clean = match victim {
        Victim::Guardian => watch.until_guarded(&running, killed, limit()),
        _ => watch.until_clean(killed, if survivors { limit() } else { Duration::from_millis(200) }),
    };
    let mut by = None;
    if !clean.left.is_empty() {
        // Nobody was left to clean up, or the guardian died in the middle of it.
        assert!(!survivors || running.guardians().is_empty(), "{told}: after {:?} left {:?}", limit(), clean.left);
        let cleaner = Cleaner::draw(random);
        let begun = Instant::now();
        cleaner.clean(bench, &drill);
        clean = watch.until_clean(begun, limit());
        by = Some(cleaner);
    }
    assert!(clean.left.is_empty(), "{told}, {by:?}: left {:?}", clean.left);
    running.wait(10 * limit());
    let end = watch.until_clean(Instant::now(), limit());
    assert!(end.left.is_empty(), "{told}: at the end left {:?}", end.left);
    watch.targets_work().unwrap_or_else(|e| panic!("{told}: {e:#}"));
    Round { told, victim, by, open, took: clean.took, last: clean.last }
}

#[test]
fn a_drill_that_nobody_kills_is_no_finding() {
    let Some(bench) = bench() else { return };
    let watch = Watch::new(&bench).expect("targets");
    let mut random = StdRng::seed_from_u64(1);
    let mut running: Running = Drill::draw(&mut random, &bench).start(&bench).expect("started");
    running.wait(10 * limit());
    assert!(watch.until_clean(Instant::now(), limit()).left.is_empty());
}
