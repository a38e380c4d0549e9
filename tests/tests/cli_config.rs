//! The host's configuration: what is wrong with it is shown, and its caps are told before anything begins.

use firedrill_tests::program::Firedrill;

const FILES: &str = "\
kind: System
name: shop
components:
  - name: web
    replicas: [{name: web-1, cgroup: shop/web-1}, {name: web-2, cgroup: shop/web-2}]
---
kind: Experiment
name: lose-all
system: shop
steps:
  - {target: web, inject: [{pause: {}}], for: 2m}
";

/// Exit code, and all that was said, on one line.
fn told(firedrill: &Firedrill, arguments: &[&str]) -> (Option<i32>, String) {
    let output = firedrill.output(arguments).expect("started");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.code(), text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn written(firedrill: &Firedrill, name: &str, text: &str) -> String {
    firedrill.folder().write(name, text).expect("written").display().to_string()
}

#[test]
fn a_wrong_configuration_is_shown_at_its_place_and_nothing_is_done() {
    let firedrill = Firedrill::new().expect("firedrill");
    let files = written(&firedrill, "shop.yaml", FILES);
    let config = written(&firedrill, "wrong.toml", "[caps]\nreplica = \"50%\"\n");
    let verbs: [&[&str]; 4] = [&["check", &files], &["plan", &files], &["run", &files], &["doctor"]];
    for verb in verbs {
        let (code, text) = told(&firedrill, &[verb, &["--config", &config]].concat());
        assert_eq!(code, Some(2), "{verb:?}: {text}");
        for part in ["wrong.toml:2:1", "replica = \"50%\"", "did you mean `replicas`?"] {
            assert!(text.contains(part), "{verb:?} does not say {part}: {text}");
        }
    }
    let (code, text) = told(&firedrill, &["--config", "/nonexistent.toml", "doctor"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("/nonexistent.toml"), "{text}");
    assert!(!firedrill.runs().exists(), "nothing was run");
}

#[test]
fn what_exceeds_a_cap_is_told_by_check_plan_and_run() {
    let firedrill = Firedrill::new().expect("firedrill");
    let files = written(&firedrill, "shop.yaml", FILES);
    let config = written(&firedrill, "caps.toml", "[caps]\nreplicas = \"50%\"\nduration = \"1m\"\n");
    for verb in ["check", "plan", "run"] {
        let (code, text) = told(&firedrill, &[verb, &files, "--config", &config]);
        assert_eq!(code, Some(2), "{verb}: {text}");
        for part in ["`caps.duration` permits 1m", "a fault of 2m", "caps.toml"] {
            assert!(text.contains(part), "{verb} does not say {part}: {text}");
        }
    }
    let short = written(&firedrill, "short.yaml", &FILES.replace("2m", "20s"));
    let (code, text) = told(&firedrill, &["check", &short, "--config", &config]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("one of 2 of the 2 replicas of web"), "{text}");
    assert!(!firedrill.runs().exists(), "nothing was run");
    let generous = written(&firedrill, "generous.toml", "");
    let (code, text) = told(&firedrill, &["check", &files, "--config", &generous]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn the_doctor_prints_the_caps_and_the_ports_that_are_let_through() {
    let firedrill = Firedrill::new().expect("firedrill");
    let config = written(&firedrill, "c.toml", "[caps]\ntargets = 7\n[protect]\nports = [8443]\n");
    let (_, text) = told(&firedrill, &["doctor", "--config", &config]);
    for part in ["7 targets at once", "4h a fault", "c.toml", "8443"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
