//! What the program says of files, and what it writes into them.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use firedrill_agent::snapshot::{Difference, Snapshot};
use firedrill_tests::program::Firedrill;
use firedrill_tests::stage::pair;
use nix::sys::signal::Signal;
use support::bench;

const DRILL: &str = "kind: Experiment\nname: drill\nsystem: duo\nsteps:\n  - target: {netns: NETNS-b}\n    \
                     inject: [{latency: {delay: 10ms}}]\n    for: 3s\nexpect: {healed: 5s}\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_wrong_file_is_shown_at_its_place_with_the_fix() {
    let firedrill = Firedrill::new().expect("firedrill");
    let wrong =
        "kind: Experiment\nname: wrong\nsteps:\n  - target: {netns: blue}\n    inject: [{latencyy: {}}]\n    for: 2s\n";
    let file = firedrill.folder().write("wrong.yaml", wrong).expect("written").display().to_string();
    for verb in ["check", "plan", "run"] {
        let output = firedrill.output(&[verb, &file]).expect("started");
        assert_eq!(output.status.code(), Some(2), "{verb}");
        let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
        for part in ["wrong.yaml:5:15", "inject: [{latencyy: {}}]", "help", "latency"] {
            assert!(told.contains(part), "{verb} does not say {part}: {told}");
        }
    }
    assert!(!firedrill.runs().exists(), "nothing was run");
}

#[test]
fn a_file_without_a_document_is_a_finding() {
    let firedrill = Firedrill::new().expect("firedrill");
    for (name, content) in [("empty.yaml", ""), ("comment.yaml", "# later\n"), ("line.yaml", "---\n")] {
        let file = firedrill.folder().write(name, content).expect("written").display().to_string();
        for verb in ["check", "plan", "run"] {
            let output = firedrill.output(&[verb, &file]).expect("started");
            let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(2), "{verb} {name}: {told}");
            assert!(told.contains("no document") && told.contains(name), "{verb} {name}: {told}");
        }
    }
}

#[test]
fn findings_are_json_also_when_a_file_cannot_be_parsed() {
    let firedrill = Firedrill::new().expect("firedrill");
    let file = firedrill.folder().write("wrong.yaml", "kind: System\nnme: x\n").expect("written");
    let output = firedrill.output(&["check", "--json", &file.display().to_string()]).expect("started");
    assert_eq!(output.status.code(), Some(2));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(findings[0]["place"]["line"], 2, "{findings:#}");
}

#[test]
fn a_file_that_is_named_twice_is_read_once() {
    let firedrill = Firedrill::new().expect("firedrill");
    let file = firedrill.folder().write("duo.yaml", "kind: System\nname: duo\ncomponents: [{name: web}]\n");
    let file = file.expect("written").display().to_string();
    let folder = firedrill.folder().path().display().to_string();
    let output = firedrill.output(&["check", &file, &folder, &file]).expect("started");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("1 document in 1 file"), "{}", text(&output.stdout));
}

#[test]
fn output_that_cannot_be_written_is_said_and_a_reader_that_left_is_not() {
    let firedrill = Firedrill::new().expect("firedrill");
    for line in [["completions", "bash"].as_slice(), &["schema"], &["runs"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let output = firedrill.command(line).stdout(full).output().expect("started");
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{line:?}: {told}");
        assert!(told.contains("cannot write to standard output"), "{line:?}: {told}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = firedrill.command(line).stdout(writer).output().expect("started");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{line:?}");
    }
}

#[test]
fn all_shipped_files_are_right() {
    let firedrill = Firedrill::new().expect("firedrill");
    for folder in ["experiments/systems", "experiments/network", "experiments/demo"] {
        let output = firedrill.output(&["check", folder]).expect("started");
        assert_eq!(output.status.code(), Some(0), "{folder}: {}", text(&output.stdout));
    }
}

#[test]
fn a_plan_names_the_changes_and_makes_none() {
    let Some(bench) = bench() else { return };
    let file = bench.files(DRILL);
    let namespaces = ["a", "b"].map(|node| bench.stage.netns(node));
    let before = Snapshot::take(&namespaces).expect("a snapshot");
    let output = bench.firedrill.output(&["plan", &file]).expect("started");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    for part in ["delay line for eth0", &namespaces[1], "10ms"] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    let after = before.lasting_diff(&namespaces, Duration::from_secs(1)).expect("a snapshot");
    let prefix = bench.stage.prefix();
    let mine = |d: &&Difference| d.line.place.starts_with(prefix) || d.line.what.contains(prefix);
    let ours: Vec<String> = after.iter().filter(mine).map(ToString::to_string).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    assert!(!bench.firedrill.runs().exists() && !bench.firedrill.run_directory().exists(), "and writes nothing");
}

#[test]
fn every_report_of_a_run_can_be_read_by_its_reader() {
    let Some(bench) = bench() else { return };
    let file = bench.files(DRILL);
    bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result").expect("held", 0);
    let run = bench.firedrill.only_run().expect("one run");

    for line in fs::read_to_string(run.join("events.ndjson")).expect("a log").lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("one event a line");
    }
    let (cases, failures) = junit(&fs::read_to_string(run.join("junit.xml")).expect("JUnit"));
    assert!(cases >= 4 && failures == 0, "{cases} cases, {failures} failures");
    let page = fs::read_to_string(run.join("report.html")).expect("a page");
    assert!(
        page.contains("</html>") && !page.contains("src=\"http") && !page.contains("href=\"http"),
        "self-contained"
    );
    assert!(fs::read_to_string(run.join("report.md")).expect("Markdown").contains("held"));

    // The log alone gives the same result again.
    let told = fs::read_to_string(run.join("result.json")).expect("JSON");
    fs::remove_file(run.join("result.json")).expect("removed");
    let again = bench.firedrill.output(&["report", "--format", "json"]).expect("started");
    assert_eq!(text(&again.stdout).trim(), told.trim());
}

/// Test cases and failures of a JUnit file.
fn junit(xml: &str) -> (usize, usize) {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(xml);
    let (mut cases, mut failures) = (0, 0);
    loop {
        match reader.read_event().expect("XML") {
            Event::Start(tag) | Event::Empty(tag) if tag.name().as_ref() == b"testcase" => cases += 1,
            Event::Start(tag) | Event::Empty(tag) if matches!(tag.name().as_ref(), b"failure" | b"error") => {
                failures += 1;
            }
            Event::Eof => return (cases, failures),
            _ => {}
        }
    }
}

#[test]
fn a_torn_log_is_reported_as_far_as_it_goes() {
    let Some(bench) = bench() else { return };
    let file = bench.files(DRILL);
    let mut program = bench.start(&["run", &file, "--quiet"]);
    program.signal(Signal::SIGKILL).expect("runs");
    program.wait(Duration::from_secs(2)).expect("dies");
    let log = bench.firedrill.only_run().expect("one run").join("events.ndjson");
    let whole = fs::read(&log).expect("a log");
    fs::write(&log, &whole[..whole.len() - 20]).expect("torn in the middle of a line");
    for format in ["text", "html", "junit", "markdown", "json"] {
        let output = bench.firedrill.output(&["report", "--format", format]).expect("started");
        assert_eq!(output.status.code(), Some(0), "{format}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains("drill"), "{format}: {}", text(&output.stdout));
    }
    let json = bench.firedrill.output(&["report", "--format", "json"]).expect("started");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(json["verdict"].is_null() && json["exit_code"].is_null(), "no end, no verdict: {json:#}");
    let xml = bench.firedrill.output(&["report", "--format", "junit"]).expect("started");
    assert!(junit(&text(&xml.stdout)).1 > 0, "and nothing that CI could take for a pass");
}

#[test]
fn secrets_reach_no_file_and_no_screen() {
    let Some(bench) = bench() else { return };
    let file = bench.files(DRILL);
    let open = "http: {url: \"http://10.215.0.2:8080/\", status: 200, contains: hello}";
    let secret = "http: {url: \"http://bob:s3cret-url@10.215.0.2:8080/?token=s3cret-query\", status: 200, contains: hello, \
                  headers: {Authorization: \"Bearer ${DRILL_TOKEN}\", X-Key: s3cret-header}}";
    let yaml = fs::read_to_string(&file).expect("written");
    assert!(yaml.contains(open), "the probe to be changed is there");
    fs::write(&file, yaml.replace(open, secret)).expect("written");
    let mut command = bench.firedrill.command(&["run", &file]);
    let output = command.env("DRILL_TOKEN", "s3cret-environment").output().expect("started");
    let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(!told.contains("s3cret"), "{told}");
    let run = bench.firedrill.only_run().expect("one run");
    let written = files_below(&run);
    assert!(written.len() >= 5, "{written:?}");
    for path in written {
        let content = text(&fs::read(&path).expect("readable"));
        assert!(!content.contains("s3cret"), "{} tells a secret", path.display());
    }
}

#[test]
fn secrets_of_a_watched_url_reach_no_report() {
    let Some(bench) = bench() else { return };
    let (group, from) = (bench.stage.cgroup(pair::WEB), bench.stage.netns("a"));
    let url = "http://bob:s3cret-url@10.215.0.2:8080/?token=s3cret-query";
    for watch in [vec!["--watch", url], vec!["--watch=http://bob:s3cret-url@10.215.0.2:8080/?token=s3cret-query"]] {
        let line = ["inject", "pause", "--cgroup", &group, "--for", "1s", "--watch-from", &from];
        let output = bench.firedrill.output(&[line.as_slice(), &watch].concat()).expect("started");
        let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{told}");
        assert!(told.contains("@10.215.0.2:8080") && !told.contains("s3cret"), "{told}");
    }
    for path in files_below(&bench.firedrill.runs()) {
        let content = text(&fs::read(&path).expect("readable"));
        assert!(!content.contains("s3cret"), "{} tells a secret", path.display());
    }
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("readable").flatten().map(|e| e.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
