//! Lowering: the design's own example, what is refused and where, and what never reaches the log.

use std::collections::BTreeSet;

use super::{Choices, Library, Lowered};
use crate::file::{Diagnostic, Place};
use crate::units::Span;

/// The example of the design, its victims with commands that stop and start them.
const SHOP: &str = r#"kind: System
name: shop
components:
  - name: front
    user_facing: true
    depends_on: [web]
    replicas: [{unit: haproxy.service}]
    probes:
      - name: checkout
        http: {url: "http://127.0.0.1:8080/checkout", status: 200, contains: ok}
        every: 50ms
        timeout: 1s
        steady: {bad: 1%, p95: 200ms}
  - name: web
    replicas:
      - {name: web-1, cgroup: shop/web-1, control: {stop: [web, stop, "1"], start: [web, start, "1"]}}
      - {name: web-2, cgroup: shop/web-2, control: {stop: [web, stop, "2"], start: [web, start, "2"]}}
---
kind: Experiment
name: lose-one-web
title: Checkout survives the loss of one web replica
system: shop
baseline: auto
pick: {victim: {component: web, count: 1}}
steps:
  - at: 0s
    target: victim
    inject: [{stop: {}}]
    for: 20s
  - at: 25s
    target: victim
    inject: [{latency: {delay: 80ms, jitter: 10ms}}]
    for: 20s
expect: {radius: [web], outage: 5s, healed: 30s}
abort: [{probe: front/checkout, bad_for: 5s}]
seed: 7
"#;

fn library(text: &str) -> Library {
    let mut library = Library::default();
    library.add("shop.yaml", text).unwrap_or_else(|e| panic!("{e}"));
    library
}

fn lower_with(text: &str, choices: &Choices<'_>) -> Result<Lowered, Vec<Diagnostic>> {
    let library = library(text);
    let name = library.experiments(None).first().expect("an experiment").clone();
    library.lower(&name, choices)
}

fn lower(text: &str) -> Result<Lowered, Vec<Diagnostic>> {
    lower_with(text, &Choices { seed: 1, force_seed: false, env: &|_| None })
}

/// The shop with one text replaced, which must be there.
fn shop_with(old: &str, new: &str) -> String {
    assert!(SHOP.contains(old), "{old}");
    SHOP.replacen(old, new, 1)
}

/// The one finding about a file.
fn finding(text: &str) -> Diagnostic {
    let mut library = Library::default();
    if let Err(found) = library.add("shop.yaml", text) {
        return *found;
    }
    let mut found = library.check();
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// The place of the `n`th occurrence of a text, counting from 0.
fn place_of(text: &str, part: &str, n: usize) -> Place {
    let at = text.match_indices(part).nth(n).unwrap_or_else(|| panic!("{part} is not there")).0;
    let line = text[..at].matches('\n').count() + 1;
    let column = at - text[..at].rfind('\n').map_or(0, |i| i + 1) + 1;
    Place { line, column }
}

#[test]
fn the_design_example_lowers_with_its_defaults_filled_in() {
    assert_eq!(library(SHOP).check(), []);
    let plan = lower(SHOP).expect("valid").plan;
    assert_eq!((plan.experiment.as_str(), plan.system.as_str(), plan.seed), ("lose-one-web", "shop", 7));
    assert_eq!(plan.title, "Checkout survives the loss of one web replica");
    // 299 samples every 50 ms, and one more.
    assert_eq!((plan.baseline, plan.baseline_auto), (Span::from_millis(15_000), true));
    assert_eq!(plan.fault_window(), Span::from_secs(45));
    assert_eq!(
        (plan.outage, plan.healed, plan.radius.clone()),
        (Span::from_secs(5), Span::from_secs(30), vec!["web".into()])
    );
    let [probe] = plan.probes.as_slice() else { panic!("{:?}", plan.probes) };
    assert_eq!(
        (probe.name.as_str(), probe.component.as_str(), probe.kind.as_str()),
        ("front/checkout", "front", "http")
    );
    assert_eq!((probe.needs, probe.netns.clone()), (299, None));
    assert!(!plan.is_inside(probe));
    assert_eq!(plan.abort[0].probe, 0);
    assert!(plan.deadline > Span(plan.expected_length().0 + plan.healed.0), "{}", plan.deadline);
    let [stop, slow] = plan.steps.as_slice() else { panic!("{:?}", plan.steps) };
    assert_eq!((stop.at, slow.at), (Span::default(), Span::from_secs(25)));
    assert_eq!(stop.targets, slow.targets, "the pick is made once");
    let [target] = stop.targets.as_slice() else { panic!("{:?}", stop.targets) };
    assert_eq!(target.component.as_deref(), Some("web"));
    assert_eq!(target.name, format!("web/{}", plan.picks[0].chosen[0]));
    assert_eq!(target.spec.cgroup.as_deref(), Some(format!("shop/{}", plan.picks[0].chosen[0]).as_str()));
    let control = target.control.as_ref().expect("from the replica");
    assert_eq!((control.stop[1].as_str(), control.start[1].as_str()), ("stop", "start"));
}

#[test]
fn the_run_plan_survives_the_log() {
    let plan = lower(SHOP).expect("valid").plan;
    let json = serde_json::to_string(&plan).expect("plain data");
    assert_eq!(serde_json::from_str::<crate::run::RunPlan>(&json).expect("just written"), plan);
}

#[test]
fn a_window_that_cannot_reach_held_is_refused_with_the_numbers() {
    let text = shop_with("bad: 1%", "bad: 0.1%");
    let found = finding(&text);
    // 45 s less 5 s at 20 a second are 800 samples; 0.1 % needs 2995, which take 2 min 29.75 s.
    assert!(found.message.contains("45s of faults less 5s"), "{found}");
    assert!(found.message.contains("800 samples") && found.message.contains("2995"), "{found}");
    assert!(found.help.as_deref().is_some_and(|h| h.contains("2m 34s 750ms")), "{found}");
    assert_eq!(found.place, place_of(&text, "20s", 1));
}

#[test]
fn a_window_is_long_enough_from_exactly_the_length_that_the_help_names() {
    // 299 samples at 50 ms are 14.95 s, and 5 s may be lost.
    let steps = |lasts: &str| {
        let (start, end) = (SHOP.find("steps:").expect("there"), SHOP.find("expect:").expect("there"));
        format!(
            "{}steps: [{{target: victim, inject: [{{stop: {{}}}}], for: {lasts}}}]\n{}",
            &SHOP[..start],
            &SHOP[end..]
        )
    };
    let found = finding(&steps("19s 900ms"));
    assert!(found.help.as_deref().is_some_and(|h| h.contains("last 19s 950ms or longer")), "{found}");
    assert_eq!(library(&steps("19s 950ms")).check(), []);
}

#[test]
fn probes_inside_the_radius_need_no_window_for_they_are_not_judged() {
    let text = shop_with("bad: 1%", "bad: 0.1%").replace("radius: [web]", "radius: [web, front]");
    assert_eq!(library(&text).check(), []);
}

#[test]
fn a_tolerance_of_nothing_is_refused_for_it_can_never_be_shown() {
    let found = finding(&shop_with("bad: 1%", "bad: 0%"));
    assert!(found.message.contains("front/checkout") && found.message.contains("0%"), "{found}");
    assert!(found.help.is_some_and(|h| h.contains("0.1%")));
    let found = finding(&shop_with("bad: 1%", "bad: 1e-300%").replace("radius: [web]", "radius: [web, front]"));
    assert!(found.message.contains("takes years"), "{found}");
}

#[test]
fn a_baseline_too_short_for_the_tolerances_is_refused_with_the_numbers() {
    let text = shop_with("baseline: auto", "baseline: 14s");
    let found = finding(&text);
    assert!(found.message.contains("299 samples, one every 50ms, so 14s 950ms"), "{found}");
    assert_eq!(found.place, place_of(&text, "14s", 0));
    let plan = lower(&shop_with("baseline: auto", "baseline: 15s")).expect("long enough").plan;
    assert_eq!((plan.baseline, plan.baseline_auto), (Span::from_secs(15), false));
}

#[test]
fn a_deadline_shorter_than_the_run_is_refused_at_its_place() {
    let text = shop_with("seed: 7", "deadline: 50s");
    let found = finding(&text);
    assert!(found.message.contains("50s") && found.message.contains("45s"), "{found}");
    assert_eq!(found.place, place_of(&text, "50s", 0));
    assert_eq!(lower(&shop_with("seed: 7", "deadline: 2m")).expect("long enough").plan.deadline, Span::from_secs(120));
}

/// `(old, new, the wrong name, its occurrence, part of the message, part of the help)`
const WRONG_NAMES: &[(&str, &str, &str, usize, &str, &str)] = &[
    ("depends_on: [web]", "depends_on: [wbe]", "wbe", 0, "no component `wbe`", "`web`"),
    ("system: shop", "system: shpo", "shpo", 0, "no system `shpo`", "`shop`"),
    ("component: web, count", "component: wep, count", "wep", 0, "no component `wep`", "`web`"),
    ("target: victim", "target: victm", "victm", 0, "`victm`", "`victim`"),
    ("target: victim", "target: web/web-3", "web/web-3", 0, "no such replica", "web/web-1"),
    ("radius: [web]", "radius: [web, frnt]", "frnt", 0, "no component `frnt`", "`front`"),
    ("front/checkout", "front/chekout", "front/chekout", 0, "no probe `front/chekout`", "`front/checkout`"),
    ("bad: 1%", "bda: 1%", "bda", 0, "no key `bda`", "`bad`"),
    ("{stop: {}}", "{stpo: {}}", "stpo", 0, "no fault `stpo`", "`stop`"),
    ("jitter", "jiter", "jiter", 0, "no key `jiter`", "`jitter`"),
    ("cgroup: shop/web-2", "crgoup: shop/web-2", "crgoup", 0, "no key `crgoup`", "`cgroup`"),
    ("kind: Experiment", "kind: Experimant", "Experimant", 0, "no kind of document", "`Experiment`"),
];

#[test]
fn an_unknown_name_is_reported_at_its_place_with_the_one_that_was_meant() {
    for (old, new, wrong, n, message, help) in WRONG_NAMES {
        let text = shop_with(old, new);
        let found = finding(&text);
        assert!(found.message.contains(message), "{new}: {found}");
        assert!(found.help.as_deref().is_some_and(|h| h.contains(help)), "{new}: {found}");
        assert_eq!(found.place, place_of(&text, wrong, *n), "{found}");
        assert_eq!(found.line, text.lines().nth(found.place.line - 1).unwrap_or_default());
    }
}

#[test]
fn a_pick_that_cannot_be_made_is_one_finding_and_not_two() {
    assert!(finding(&shop_with("count: 1", "count: 3")).message.contains("cannot pick 3 of the 2 replicas"));
    assert!(finding(&shop_with("count: 1", "count: 0")).message.contains("cannot pick 0"));
    assert!(finding(&shop_with(", count: 1", "")).message.contains("either `count` or `percent`"));
    assert!(finding(&shop_with("count: 1", "count: 1, percent: 50%")).message.contains("either `count` or `percent`"));
}

#[test]
fn a_pick_by_count_or_percent_follows_the_seed_and_every_replica_gets_its_turn() {
    let four =
        "      - {name: web-2, cgroup: b}\n      - {name: web-3, cgroup: c}\n      - {name: web-4, cgroup: d}\n---";
    let at = SHOP.find("      - {name: web-2").expect("there");
    let end = SHOP.find("---").expect("there") + 3;
    let text = format!("{}{four}{}", &SHOP[..at], &SHOP[end..]).replace("{stop: {}}", "{pause: {}}");
    for (pick, size) in [("count: 1", 1), ("count: 3", 3), ("percent: 50%", 2), ("percent: 51%", 3), ("percent: 1%", 1)]
    {
        let text = text.replace("count: 1", pick);
        let chosen = |seed, force_seed| {
            let plan = lower_with(&text, &Choices { seed, force_seed, env: &|_| None }).expect("valid").plan;
            assert_eq!(plan.seed, if force_seed { seed } else { 7 });
            assert_eq!((plan.picks[0].chosen.len(), plan.picks[0].of), (size, 4), "{pick}");
            plan.picks[0].chosen.clone()
        };
        assert_eq!(chosen(1, false), chosen(2, false), "the file's seed decides");
        let mut seen = BTreeSet::new();
        for seed in 0..40 {
            assert_eq!(chosen(seed, true), chosen(seed, true));
            seen.extend(chosen(seed, true));
        }
        assert_eq!(seen.len(), 4, "{pick}: {seen:?}");
    }
}

#[test]
fn a_component_as_a_target_means_all_its_replicas_and_a_replica_just_itself() {
    let names = |target: &str| -> Vec<String> {
        let text = SHOP.replace("target: victim", &format!("target: {target}"));
        let plan = lower(&text).unwrap_or_else(|e| panic!("{e:?}")).plan;
        plan.steps[0].targets.iter().map(|t| t.name.clone()).collect()
    };
    assert_eq!(names("web"), ["web/web-1", "web/web-2"]);
    assert_eq!(names("web/web-2"), ["web/web-2"]);
    assert_eq!(names("{netns: blue, interface: eth0}"), ["interface eth0 of netns blue"]);
}

#[test]
fn secrets_of_probes_appear_nowhere_in_the_plan() {
    let probes = r#"probes:
      - name: checkout
        every: 50ms
        http:
          url: "https://bob:S3CRET-a@shop.example:8443/x?token=S3CRET-b&S3CRET-c"
          method: POST
          headers: {Authorization: "Bearer S3CRET-d", X-Key: "${KEY}"}
          body: "password=S3CRET-e${KEY}"
      - {name: path, every: 50ms, http: {url: "http://127.0.0.1/${KEY}/x"}}
      - {name: whole, every: 50ms, http: {url: "${URL}"}}
      - {name: redis, every: 50ms, tcp: {address: "127.0.0.1:6379", send: "AUTH S3CRET-h\r\n", expect: OK}}
      - {name: sql, every: 50ms, exec: {command: [/usr/bin/psql, "--password=S3CRET-i"], user: nobody}}
"#;
    let (start, end) = (SHOP.find("probes:").expect("there"), SHOP.find("  - name: web\n").expect("there"));
    let text = format!("{}{probes}{}", &SHOP[..start], &SHOP[end..]);
    let env = |name: &str| match name {
        "KEY" => Some("S3CRET-f".to_owned()),
        "URL" => Some("https://eve:S3CRET-g@h/S3CRET-g".to_owned()),
        _ => None,
    };
    let lowered =
        lower_with(&text, &Choices { seed: 1, force_seed: false, env: &env }).unwrap_or_else(|e| panic!("{e:#?}"));
    let json = serde_json::to_string(&lowered.plan).expect("plain data");
    assert!(!json.contains("S3CRET"), "{json}");
    assert!(json.contains("https://***@shop.example:8443/x?token=***&***"), "{json}");
    assert!(json.contains("${KEY}/x") && json.contains("/usr/bin/psql"), "{json}");
    // They are where they are needed.
    let checks = format!("{:?}", lowered.checks);
    for secret in 'a'..='i' {
        assert!(checks.contains(&format!("S3CRET-{secret}")), "S3CRET-{secret} was lost: {checks}");
    }
}

#[test]
fn a_variable_that_is_not_set_is_named_when_a_run_is_planned_and_no_matter_when_files_are_checked() {
    let text = shop_with("http://127.0.0.1:8080/checkout", "${BASE}/checkout");
    assert_eq!(library(&text).check(), []);
    let found = lower(&text).expect_err("not set");
    assert!(found[0].message.contains("BASE") && found[0].message.contains("front/checkout"), "{found:?}");
}

#[test]
fn a_probe_is_exactly_one_check_that_is_well_formed() {
    let http = r#"http: {url: "http://127.0.0.1:8080/checkout", status: 200, contains: ok}"#;
    let cases = [
        ("", "exactly one of"),
        (r#"{http: {url: "http://h/"}, tcp: {address: "h:1"}}"#, "exactly one of"),
        (r#"{http: {url: "h:8080"}}"#, "is not a URL"),
        (r#"{http: {url: "http://h/", json: {status: up}}}"#, "JSON pointer"),
        (r#"{tcp: {address: "localhost"}}"#, "is not host:port"),
        (r#"{dns: {name: x, record: PTR}}"#, "PTR"),
        (r#"{dns: {name: x, server: 127.0.0.1}}"#, "address:port"),
        ("{exec: {command: []}}", "`command` is empty"),
    ];
    for (new, message) in cases {
        let new = new.trim_start_matches('{').strip_suffix('}').unwrap_or(new);
        let new = new.replace("}, tcp", "}\n        tcp");
        let found = finding(&shop_with(http, &new));
        assert!(found.message.contains(message), "{new}: {found}");
    }
    for (old, new) in [("every: 50ms", "every: 0s"), ("timeout: 1s", "timeout: 0s")] {
        let found = finding(&shop_with(old, new));
        assert!(found.message.contains("0s"), "{found}");
    }
}

#[test]
fn two_things_of_one_name_are_refused() {
    let again = SHOP.replacen("name: web\n", "name: front\n", 1).replace("[web]", "[front]");
    let found = library(&again.replace("component: web", "component: front")).check();
    assert!(found.iter().any(|d| d.message.contains("two components named `front`")), "{found:#?}");
    assert!(finding(&shop_with("name: web-2", "name: web-1")).message.contains("two replicas named `web-1`"));
    let mut twice = library(SHOP);
    twice.add("copy.yaml", SHOP).expect("valid by itself");
    let found = twice.check();
    assert!(
        found.iter().any(|d| d.file == "copy.yaml"
            && d.message.contains("another Experiment")
            && d.message.contains("shop.yaml"))
    );
}

#[test]
fn names_resolve_across_files() {
    let (system, experiment) = SHOP.split_once("---\n").expect("two documents");
    let mut both = Library::default();
    both.add("experiment.yaml", experiment).expect("valid");
    let found = both.check();
    assert!(
        found[0].message.contains("no system `shop`")
            && found[0].help.as_deref().is_some_and(|h| h.contains("give its file"))
    );
    both.add("system.yaml", system).expect("valid");
    assert_eq!(both.check(), []);
    assert_eq!(both.experiments(Some("experiment.yaml")), ["lose-one-web"]);
    assert_eq!(both.experiments(Some("system.yaml")), [""; 0]);
}

#[test]
fn a_game_day_names_experiments_that_exist() {
    let day = "---\nkind: GameDay\nname: autumn\nsteps:\n  - run: lose-one-web\n  - {run: lose-one-wbe, confirm: Go on?, pause: 10s}\n";
    let text = format!("{SHOP}{day}");
    let found = finding(&text);
    assert!(found.message.contains("lose-one-wbe"), "{found}");
    assert_eq!(found.help.as_deref(), Some("did you mean `lose-one-web`?"));
    assert_eq!(found.place, place_of(&text, "lose-one-wbe", 0));
    let library = library(&text.replace("wbe", "web"));
    assert_eq!(library.check(), []);
    assert_eq!(library.game_days(None)[0].steps.len(), 2);
}

#[test]
fn a_peer_by_name_is_left_to_the_agent_with_the_replicas_of_its_component() {
    let with = |peers: &str| shop_with("{delay: 80ms", &format!("{{peers: [{peers}], delay: 80ms"));
    let plan = lower(&with("10.0.0.1, db.example.org, {component: front}")).expect("valid").plan;
    let peers = &plan.steps[1].targets[0].peers;
    let text: Vec<String> = peers.iter().map(|p| p.peer.to_string()).collect();
    assert_eq!(text, ["db.example.org", "component front"]);
    assert_eq!(peers[1].replicas[0].unit.as_deref(), Some("haproxy.service"));
    for (wrong, message, help) in [
        ("{component: frnt}", "no component `frnt`", "`front`"),
        ("front", "a component, not a host", "`{component: front}`"),
        ("{componet: front}", "componet", "component"),
    ] {
        let text = with(wrong);
        let found = finding(&text);
        assert!(found.message.contains(message) && found.place.line > 30, "{found}");
        assert!(found.help.clone().unwrap_or_default().contains(help), "{found}");
    }
}
