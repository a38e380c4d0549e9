//! What a user sees who wrote a file wrongly: the place to the column, what is wrong, and the fix.

use firedrill_model::file::Diagnostic;
use firedrill_model::lower::Library;

/// An experiment whose last lines are given.
fn experiment(lines: &str) -> String {
    format!("kind: Experiment\nname: e\n{lines}\n")
}

/// An experiment of one step with this fault.
fn injecting(fault: &str) -> String {
    experiment(&format!("steps:\n  - target: {{netns: blue}}\n    inject: [{fault}]\n    for: 60s"))
}

/// A system of one component with these lines.
fn component(lines: &str) -> String {
    format!("kind: System\nname: shop\ncomponents:\n  - name: web\n{lines}\n")
}

fn probe(check: &str) -> String {
    component(&format!("    probes:\n      - name: p\n        {check}"))
}

fn first_error(text: &str) -> Diagnostic {
    *Library::default().add("x.yaml", text).expect_err("the file is wrong")
}

/// `(file, line, column, part of the message, part of the help)`
fn cases() -> Vec<(String, usize, usize, &'static str, &'static str)> {
    let own_words = "";
    vec![
        // Keys and names.
        ("kind: System\nname: x\ncomponets: []\n".into(), 3, 1, "no key `componets`", "`components`"),
        (probe("htp: {url: x}"), 7, 9, "no key `htp`", "`http`"),
        (probe("http: {url: \"http://h/\", staus: 200}"), 7, 34, "no key `staus`", "`status`"),
        (injecting("{latncy: {delay: 1ms}}"), 5, 15, "no fault `latncy`", "`latency`"),
        (injecting("{latency: {dealy: 1ms}}"), 5, 25, "no key `dealy`", "`delay`"),
        (injecting("{stop: {delay: 1ms}}"), 5, 22, "no key `delay`", "write `{}`"),
        (
            experiment("steps:\n  - target: {nets: blue}\n    inject: []\n    for: 1s"),
            4,
            14,
            "no key `nets`",
            "`netns`",
        ),
        ("kind: Experimnt\nname: e\n".into(), 1, 7, "no kind of document `Experimnt`", "`Experiment`"),
        ("kind: GameDay\nname: d\nsteps: []\non_finding: halt\n".into(), 4, 13, "`halt`", "continue, stop"),
        (injecting("{kill: {signal: SIGTERM}}"), 5, 30, "`SIGTERM`", "`TERM`"),
        (injecting("{loss: {percent: 3%, direction: out}}"), 5, 46, "`out`", "egress, ingress, both"),
        // Missing and doubled keys.
        (injecting("{latency: {jitter: 10ms}}"), 5, 25, "`delay` is missing", "`delay: 100ms`"),
        (experiment("steps:\n  - target: a\n    inject: []"), 5, 5, "`for` is missing", "`for: 20s`"),
        (
            "kind: System\nname: x\ncomponents: []\n---\nkind: Experiment\nname: b\n".into(),
            6,
            1,
            "`steps` is missing",
            "steps: [",
        ),
        ("kind: System\nname: x\nkind: Experiment\n".into(), 3, 1, "two `kind` keys", "`---`"),
        ("kind: System\nname: x\nname: y\n".into(), 3, 1, "`name` stands here twice", "remove one"),
        ("name: x\nkind: System\n".into(), 1, 7, "begins with its kind", own_words),
        // Quantities.
        (probe("every: 50"), 7, 16, "`50` is not a duration", own_words),
        (probe("every: 50 parsecs"), 7, 16, "write it like `50ms`", own_words),
        (probe("every: 5years"), 7, 16, "longer than a year", own_words),
        (probe("steady: {bad: 1}"), 7, 23, "write it like `30%`", own_words),
        (injecting("{loss: {percent: 130%}}"), 5, 31, "between 0% and 100%", own_words),
        (
            injecting("{loss: {percent: {ramp: {from: 0%, to: 130%, over: 9s}}}}"),
            5,
            53,
            "between 0% and 100%",
            own_words,
        ),
        (injecting("{loss: {percent: {rmp: {from: 0%, to: 30%, over: 9s}}}}"), 5, 32, "no key `rmp`", "`ramp`"),
        (injecting("{loss: {percent: {ramp: {from: 0%, to: 30%}}}}"), 5, 49, "`over` is missing", own_words),
        (injecting("{loss: {percent: 3%, peers: [10.0.0.300]}}"), 5, 43, "not an address or network", own_words),
        (injecting("{loss: {percent: 3%, peer_ports: [90-80]}}"), 5, 48, "not a port", own_words),
        (experiment("baseline: soon"), 3, 11, "`soon` is not a duration", own_words),
        (probe("http: {url: \"http://h/\", status: 99999}"), 7, 42, "whole number", own_words),
        (component("    user_facing: yes"), 5, 18, "neither `true` nor `false`", "one of the two"),
        // Shapes.
        (injecting("stop"), 5, 14, "write `{stop: {}}`", own_words),
        (injecting("{stop: {}, pause: {}}"), 5, 14, "`stop` and `pause` stand in one item", own_words),
        (experiment("steps: {target: a}"), 3, 8, "expected a list", "`- item`"),
        (component("    probes: [http]"), 5, 14, "expected keys with values", "`key: value`"),
        ("kind: System\nname:\ncomponents: []\n".into(), 2, 5, "no value", "after the colon"),
        ("kind: System\nname: [a]\n".into(), 2, 7, "expected a text", "quotes"),
        ("- a\n- b\n".into(), 1, 1, "expected keys with values", "`key: value`"),
        // YAML itself.
        ("kind: System\nname: \"x\ncomponents: []\n".into(), 2, 7, "unclosed quote", own_words),
        ("kind: System\nname: x\ncomponents:\n\t- name: a\n".into(), 4, 2, "tabs", own_words),
        ("kind: System\nname: x\ncomponents: [*nobody]\n".into(), 3, 14, "anchor that does not exist", "write out"),
        ("kind: System\nname: x\ncomponents:\n  - name: a\n\tdepends_on: [b]\n".into(), 4, 11, "a tab", "spaces"),
    ]
}

#[test]
fn every_error_tells_its_line_its_column_what_is_wrong_and_the_fix() {
    for (text, line, column, message, help) in cases() {
        let found = first_error(&text);
        assert_eq!((found.place.line, found.place.column), (line, column), "{text}\n{found}");
        assert!(found.message.contains(message), "{text}\n{found}");
        assert!(found.help.as_deref().unwrap_or_default().contains(help), "{text}\n{found}");
        assert_eq!(found.line, text.lines().nth(line - 1).expect("a line of the file"));
    }
}

#[test]
fn no_error_speaks_of_the_parser_or_of_rust() {
    let jargon =
        ["serde", "Option<", "String>", "u16", "usize", "scalar", "variant", "field `", "struct", "Policy", "error:"];
    for (text, ..) in cases() {
        let shown = first_error(&text).to_string();
        for word in jargon {
            assert!(!shown.contains(word), "`{word}` in\n{shown}");
        }
    }
}

#[test]
fn an_error_is_shown_with_its_line_and_a_caret_under_the_place() {
    let shown = first_error(&injecting("{latncy: {delay: 1ms}}")).to_string();
    let expected = "\
there is no fault `latncy`
 --> x.yaml:5:15
  |
5 |     inject: [{latncy: {delay: 1ms}}]
  |               ^
   = help: did you mean `latency`?";
    assert_eq!(shown, expected);
}

#[test]
fn columns_count_characters_and_tabs_keep_their_width() {
    let found = first_error("kind: System\nname: \"Grüße\"\ncomponents: [{name: \"Grüße\", nmae: x}]\n");
    assert_eq!((found.place.line, found.place.column), (3, 30), "{found}");
    let found = Diagnostic::new("x", "\ta: b", firedrill_model::file::Place { line: 1, column: 2 }, "m", None);
    assert!(found.to_string().ends_with("|\n1 | \ta: b\n  | \t^"), "{found}");
}

#[test]
fn a_file_cannot_steer_the_terminal_that_shows_its_errors() {
    let place = firedrill_model::file::Place { line: 1, column: 1 };
    let found = Diagnostic::new("x", "na\u{1b}[2Jme: x", place, "m", None);
    assert!(!found.to_string().contains('\u{1b}'), "{found}");
}

#[test]
fn several_findings_are_all_shown_in_the_order_of_the_file() {
    let text = "kind: System\nname: s\ncomponents:\n  - name: a\n    depends_on: [b]\n    replicas: [{}]\n    probes: [{name: p, every: 0s, tcp: {address: h}}]\n\
                ---\nkind: Experiment\nname: e\nsteps: []\nexpect: {radius: [c]}\nabort: [{probe: a/q, bad_for: 1s}]\n";
    let mut library = Library::default();
    library.add("x.yaml", text).unwrap_or_else(|e| panic!("{e}"));
    let lines: Vec<usize> = library.check().iter().map(|d| d.place.line).collect();
    assert_eq!(lines, [5, 6, 7, 10, 12, 13]);
}
