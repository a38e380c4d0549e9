//! Files made by chance or by malice are refused at once, and never make the reader panic.

use std::time::{Duration, Instant};

use firedrill_model::file::Diagnostic;
use firedrill_model::lower::{Choices, Library};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A file with a document of each kind.
const SHOP: &str = r#"kind: System
name: shop
components:
  - name: front
    user_facing: true
    depends_on: [web]
    probes:
      - name: checkout
        http: {url: "http://127.0.0.1:8080/checkout", status: 200, contains: ok}
        every: 50ms
        timeout: 1s
        steady: {bad: 1%, p95: 200ms}
  - name: web
    replicas:
      - {name: web-1, cgroup: shop/web-1}
      - {name: web-2, unit: web-2.service}
---
kind: Experiment
name: lose-one-web
system: shop
baseline: auto
pick: {victim: {component: web, percent: 50%}}
steps:
  - at: 0s
    target: victim
    inject: [{pause: {}}, {partition: {peers: [10.0.0.0/8, "fd00::/8"], peer_ports: [80, 8000-8099]}}]
    for: 20s
  - at: 25s
    target: web
    inject: [{latency: {delay: 80ms, jitter: 10ms}}]
    for: 20s
expect: {radius: [web], outage: 5s, healed: 30s}
abort: [{probe: front/checkout, bad_for: 5s}]
deadline: 5m
---
kind: GameDay
name: autumn
steps: [{run: lose-one-web, pause: 5s}]
"#;

/// Refused, and at once: a run of the same length over a valid file takes a few milliseconds.
fn refused_at_once(text: &str) -> Diagnostic {
    let begun = Instant::now();
    let found = Library::default().add("bomb.yaml", text).expect_err("refused");
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    *found
}

#[test]
fn files_made_to_exhaust_memory_or_the_stack_are_refused_at_once() {
    let mut laughs = String::from("kind: System\nname: x\ncomponents:\n  - &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..30 {
        laughs.push_str(&format!("  - &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")));
    }
    refused_at_once(&laughs);
    // Where any value is taken, so that nothing but the budget stands in the way.
    let json =
        "kind: System\nname: x\ncomponents: [{name: a, probes: [{name: p, http: {url: \"http://h/\", json: {/x: ";
    let mut nested = format!("{json}\n  [&a0 [x, x, x, x, x, x, x, x, x, x]");
    for i in 1..9 {
        nested.push_str(&format!(",\n   &a{i} [{}]", vec![format!("*a{}", i - 1); 10].join(", ")));
    }
    nested.push_str("]}}}]}]\n");
    let found = refused_at_once(&nested);
    assert!(found.message.contains("aliases") || found.message.contains("too large"), "{found}");
    for depth in [40, 100_000] {
        let deep = format!("{json}{}{}}}}}}}]}}]\n", "[".repeat(depth), "]".repeat(depth));
        refused_at_once(&deep);
        refused_at_once(&format!("{json}{}1{}}}}}}}]}}]\n", "{a: ".repeat(depth), "}".repeat(depth)));
        refused_at_once(&"- ".repeat(depth));
    }
    let many = format!("{json}[{}]}}}}]}}]\n", "1, ".repeat(150_000));
    assert!(refused_at_once(&many).message.contains("too large"));
}

#[test]
fn a_file_of_ten_thousand_lines_of_comments_is_no_problem() {
    let comments = "      # a comment\n".repeat(10_000);
    let text = SHOP.replace("      - {name: web-2", &format!("{comments}      - {{name: web-2"));
    let mut library = Library::default();
    library.add("x.yaml", &text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(library.check(), []);
}

/// One random edit of a text.
fn mutate(text: &str, rng: &mut StdRng) -> String {
    const PIECES: &[&str] = &[
        "",
        "{",
        "}",
        "[",
        "]",
        ":",
        "-",
        "---\n",
        "\n",
        "  ",
        "\t",
        "\"",
        "'",
        "*a",
        "&a ",
        "<<: *a",
        "!!int ",
        "%",
        "0",
        "-1",
        "1e99",
        "99999999999999999999",
        "100years",
        "1ns",
        "0%",
        "100%",
        "1e-300%",
        "null",
        "~",
        "true",
        "ü",
        "\u{0}",
        "${X}",
        "${",
        "# ",
        "|\n",
        "kind: System\n",
        "name",
        "loss: {percent: 3%}",
        "kill: {}",
        ".nan",
        "2001-01-01",
        "0x10",
        "?",
        "@",
        "`",
    ];
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..rng.random_range(1..3) {
        let at = rng.random_range(0..=chars.len());
        let end = (at + rng.random_range(0..12)).min(chars.len());
        match rng.random_range(0..6) {
            0 => drop(chars.drain(at..end)),
            1 => {
                let copy: Vec<char> = chars[at..end].to_vec();
                let to = rng.random_range(0..=chars.len());
                drop(chars.splice(to..to, copy));
            }
            // A digit for a digit, a letter for a letter: what is still YAML, and means something else.
            2 | 3 => {
                if let Some(c) = chars.get_mut(at).filter(|c| c.is_ascii_alphanumeric()) {
                    let of = if c.is_ascii_digit() { "0123456789" } else { "abehimnstwx" };
                    *c = char::from(of.as_bytes()[rng.random_range(0..of.len())]);
                }
            }
            _ => drop(chars.splice(at..end, PIECES[rng.random_range(0..PIECES.len())].chars())),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn ten_thousand_broken_files_are_refused_or_taken_but_never_panic() {
    let (mut refused, mut found, mut taken) = (0, 0, 0);
    for seed in 0..10_000 {
        let text = mutate(SHOP, &mut StdRng::seed_from_u64(seed));
        let mut library = Library::default();
        if let Err(error) = library.add("x.yaml", &text) {
            refused += 1;
            assert!(error.place.line <= text.lines().count() + 1, "seed {seed}: {error}");
            assert!(!error.message.is_empty());
            let _ = error.to_string();
            continue;
        }
        let findings = library.check();
        found += usize::from(!findings.is_empty());
        for finding in &findings {
            let _ = finding.to_string();
        }
        for name in library.experiments(None) {
            let lowered = library.lower(&name, &Choices { seed, force_seed: true, env: &|_| None });
            taken += usize::from(lowered.is_ok());
        }
    }
    assert!(refused > 1000 && found > 100 && taken > 500, "{refused} refused, {found} with findings, {taken} taken");
}

#[test]
fn the_line_ends_and_the_mark_of_windows_editors_are_taken() {
    let text = format!("\u{feff}{}", SHOP.replace('\n', "\r\n"));
    let mut library = Library::default();
    library.add("x.yaml", &text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(library.check(), []);
    let wrong = text.replace("radius: [web]", "radius: [wep]");
    let mut library = Library::default();
    library.add("x.yaml", &wrong).unwrap_or_else(|e| panic!("{e}"));
    let found = library.check();
    assert_eq!((found[0].place.line, found[0].place.column), (32, 19), "{}", found[0]);
}

#[test]
fn a_mistake_is_shown_where_lines_end_as_they_did_on_old_macs() {
    let text = SHOP.replace('\n', "\r").replace("radius: [web]", "radius: [wep]");
    let mut library = Library::default();
    library.add("x.yaml", &text).unwrap_or_else(|e| panic!("{e}"));
    let found = library.check();
    assert_eq!((found[0].place.line, found[0].place.column), (32, 19), "{}", found[0]);
    assert!(found[0].line.starts_with("expect: {radius: [wep]"), "{}", found[0]);
}
