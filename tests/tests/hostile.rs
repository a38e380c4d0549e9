//! Ten thousand damaged files, journals, answers and logs: the same entry points as `cargo xtask fuzz`, the same seeds, the
//! same bytes in every run. Nothing of it touches the host.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use firedrill_tests::hostile;

/// How many of each kind.
const MANY: u64 = 10_000;

/// Seeds of a kind: what is valid, and what once did harm.
fn seeds(kind: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(kind);
    let mut paths: Vec<_> = fs::read_dir(&folder).expect("seeds").map(|entry| entry.expect("a seed").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

fn try_many(kind: &str, holds: fn(&[u8])) {
    let seeds = seeds(kind);
    assert!(seeds.len() > 1);
    let mut slowest = (Duration::ZERO, 0);
    for number in 0..MANY {
        let seed = &seeds[number as usize % seeds.len()];
        // Each as it is first.
        let bytes = if number < seeds.len() as u64 { seed.clone() } else { hostile::damaged(seed, number) };
        let begun = Instant::now();
        if std::panic::catch_unwind(|| holds(&bytes)).is_err() {
            panic!("{kind} {number}: {}", String::from_utf8_lossy(&bytes));
        }
        slowest = slowest.max((begun.elapsed(), number));
    }
    println!("{kind}: {MANY} tried, the slowest took {:.2?} (number {})", slowest.0, slowest.1);
    assert!(slowest.0 < Duration::from_secs(15), "{kind} {}: {:?}", slowest.1, slowest.0);
}

#[test]
fn ten_thousand_files_are_taken_or_refused() {
    try_many("experiment", hostile::experiment);
}

#[test]
fn ten_thousand_journals_give_what_was_written_or_say_what_they_lack() {
    try_many("journal", hostile::journal);
}

#[test]
fn ten_thousand_answers_to_probes_are_good_or_bad() {
    try_many("answer", hostile::answer);
}

#[test]
fn ten_thousand_logs_are_reported_or_refused() {
    try_many("log", hostile::log);
}
