//! On a kernel that is too old, every command that would need a newer one says so, in one sentence, and does nothing.

use std::fs;
use std::process::Output;

use firedrill_tests::needs_guest;
use firedrill_tests::program::Firedrill;

const EXPERIMENT: &str = "\
kind: System
name: site
components:
  - name: web
    replicas: [{name: web-1, process: {exe: sleep}}]
    probes:
      - {name: host, tcp: {address: \"127.0.0.1:9\"}, every: 50ms}
---
kind: Experiment
name: pause-web
system: site
steps:
  - {target: web/web-1, inject: [{pause: {}}], for: 1s}
expect: {radius: [web], healed: 5s}
";

fn refused(output: &Output, release: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!("Linux {release} is too old")) && said.contains("5.17"), "{said}");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_kernel_that_is_too_old_is_named_in_one_sentence_and_nothing_is_done() {
    needs_guest!();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release").trim().to_owned();
    let firedrill = Firedrill::new().expect("firedrill");
    let file = firedrill.folder().write("pause.yaml", EXPERIMENT).expect("written").display().to_string();

    refused(&firedrill.output(&["run", &file]).expect("started"), &release);
    refused(&firedrill.output(&["inject", "pause", "--exe", "sleep", "--for", "1s"]).expect("started"), &release);
    refused(
        &firedrill.output(&["inject", "loss", "--percent", "1%", "--interface", "lo", "--for", "1s"]).expect("started"),
        &release,
    );
    assert!(!firedrill.run_directory().exists(), "nothing was begun");

    let doctor = firedrill.output(&["doctor"]).expect("started");
    let told = String::from_utf8_lossy(&doctor.stdout);
    assert!(told.contains(&format!("Linux {release} is too old")), "{told}");
    assert_eq!(doctor.status.code(), Some(2), "{told}");
}
