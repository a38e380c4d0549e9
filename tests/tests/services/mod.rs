//! One experiment on one stage, from its set-up to its end.

use std::path::{Path, PathBuf};

use anyhow::Result;
use firedrill_tests::needs;
use firedrill_tests::program::{Firedrill, Outcome, unique};
use firedrill_tests::stage::{Programs, Stage};

type Raise = fn(&Programs, &str, &Path) -> Result<Stage>;

/// Sets a stage up, runs one shipped experiment on it, and takes it down; `None` when it cannot be done here.
///
/// # Panics
/// The stage does not stand, or the experiment gives no result.
pub fn drill(service: &str, raise: Raise, file: &str, experiment: &str) -> Option<Outcome> {
    let programs: &[&str] = match service {
        "redis" => &["redis-server", "redis-sentinel", "redis-cli"],
        "etcd" => &["etcd", "etcdctl"],
        _ => &["haproxy"],
    };
    if let Some(missing) = needs::missing(programs) {
        println!("SKIPPED: {missing}");
        return None;
    }
    let firedrill = Firedrill::new().expect("firedrill");
    let tools = Programs {
        firedrill: firedrill.binary().to_owned(),
        stage: PathBuf::from(env!("CARGO_BIN_EXE_firedrill-stage")),
    };
    let prefix = unique("sys");
    let stage = raise(&tools, &prefix, &firedrill.folder().path().join("stage")).expect("the stage stands");
    let outcome = firedrill.drill(file, &prefix, experiment).expect("a result");
    drop(stage);
    println!("{} ({:.1} s)", outcome.finding(), outcome.json["seconds"].as_f64().unwrap_or_default());
    for probe in outcome.json["probes"].as_array().into_iter().flatten() {
        let lasted = probe["outage"]["lasted"].as_f64();
        println!("  {}: {}, outage {lasted:?} s", probe["name"], probe["verdict"]);
    }
    Some(outcome)
}
