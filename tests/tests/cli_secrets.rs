//! What a file has from the environment, and the arguments of users' own commands, get into nothing that is kept or shown.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::bench;

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

const PROBES: &str = "    probes:
      - name: page
        http:
          url: \"http://bob:${PASSWORD}@10.215.0.2:8080/${TOKEN}/x?key=${KEY}&sig=S3CRET-e\"
          headers: {Authorization: \"Bearer ${BEARER}\"}
          body: \"p=${BODY}\"
        every: 50ms
        timeout: 500ms
        steady: {bad: 20%}
      - name: refused
        http: {url: \"http://${HOST}:8080/${TOKEN}\", status: 200}
        every: 50ms
        timeout: 500ms
        steady: {bad: 20%}
";

#[test]
fn no_secret_reaches_log_report_plan_status_or_screen() {
    let Some(bench) = bench() else { return };
    let file = bench.files(
        "kind: Experiment\nname: secrets\nsystem: duo\nsteps:\n  - target: web/kept\n    inject: [{stop: {}}]\n    for: 2s\n\
         expect: {radius: [front, web], healed: 2s}\n",
    );
    let text = fs::read_to_string(&file).expect("there");
    let begin = text.find("    probes:\n").expect("probes");
    let end = text.find("  - name: web\n").expect("a component");
    let text = format!("{}{PROBES}{}", &text[..begin], &text[end..]);
    // It is stopped, and cannot be started again: what failed is told everywhere.
    let control = text.find("control: {").expect("control");
    let rest = text[control..].find('\n').expect("a line") + control;
    let commands = "control: {stop: [\"true\", S3CRET-i], start: [sh, -c, \"exit 3\", S3CRET-j]}";
    fs::write(&file, format!("{}{commands}{}", &text[..control], &text[rest..])).expect("written");
    let variables = [
        ("PASSWORD", "S3CRET-a"),
        ("TOKEN", "S3CRET-b"),
        ("KEY", "S3CRET-c"),
        ("BEARER", "S3CRET-f"),
        ("BODY", "S3CRET-g"),
        ("HOST", "10.215.0.2"),
    ];
    let outputs = [
        &["plan", &file][..],
        &["plan", &file, "--json"],
        &["run", &file, "--json"],
        &["status"],
        &["status", "--json"],
        &["recover"],
        &["recover", "--json"],
        &["status"],
        &["report"],
    ]
    .map(|args| {
        let done: Output = bench.firedrill.command(args).envs(variables).output().expect("started");
        let told = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (args[0], done.status.code(), told)
    });
    let code = |verb: &str| outputs.iter().find(|o| o.0 == verb).expect("was run").1;
    assert_eq!(
        ["plan", "run", "status"].map(code),
        [Some(0), Some(5), Some(5)],
        "it could not be started: {outputs:#?}"
    );
    for (verb, _, told) in &outputs {
        assert!(!told.contains("S3CRET"), "{verb}: {told}");
    }
    assert!(outputs[2].2.contains("`sh ***`"), "what failed is named all the same: {}", outputs[2].2);
    // The journals are for root alone: they must hold the commands.
    let places = [bench.firedrill.runs(), bench.firedrill.run_directory()];
    let kept: Vec<PathBuf> = places.iter().flat_map(|place| files(place)).collect();
    assert!(kept.iter().any(|path| path.ends_with("report.html")), "{kept:?}");
    for path in kept.iter().filter(|path| !path.ends_with("journal.ndjson")) {
        assert!(!String::from_utf8_lossy(&fs::read(path).expect("there")).contains("S3CRET"), "{}", path.display());
    }
}
