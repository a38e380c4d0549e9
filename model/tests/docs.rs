//! The reference of the file format is true: its examples are sound, and no key is left out of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use firedrill_model::fault::{Fault, TABLE};
use firedrill_model::file::{KINDS, schema};
use firedrill_model::lower::Library;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The blocks of a language in a Markdown text.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    text.split(&open).skip(1).map(|rest| rest.split("```").next().unwrap_or(rest)).collect()
}

#[test]
fn the_examples_of_the_reference_are_sound() {
    let text = read("docs/experiments.md");
    let mut library = Library::default();
    for (i, block) in blocks(&text, "yaml").into_iter().enumerate() {
        library.add(&format!("block {i}"), block).unwrap_or_else(|e| panic!("{e}"));
    }
    assert_eq!(library.check(), []);
    assert_eq!(library.len(), KINDS.len(), "one example of each kind");
}

#[test]
fn every_key_of_every_kind_is_in_the_reference() {
    fn keys(value: &serde_json::Value, found: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(map) => {
                if let Some(serde_json::Value::Object(properties)) = map.get("properties") {
                    found.extend(properties.keys().cloned());
                }
                map.values().for_each(|v| keys(v, found));
            }
            serde_json::Value::Array(list) => list.iter().for_each(|v| keys(v, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    for kind in KINDS {
        keys(&schema(kind).expect("a kind").to_value(), &mut found);
    }
    assert!(found.len() > 50, "{found:?}");
    let text = read("docs/experiments.md");
    let missing: Vec<_> =
        found.iter().filter(|k| !text.contains(&format!("`{k}`")) && !text.contains(&format!("{k}: "))).collect();
    assert!(missing.is_empty(), "not in docs/experiments.md: {missing:?}");
}

#[test]
fn every_fault_is_in_the_reference_and_in_the_overview_of_the_examples() {
    let (reference, overview) = (read("docs/experiments.md"), read("experiments/README.md"));
    for (name, _) in TABLE {
        assert!(reference.contains(&format!("| `{name}` |")), "{name}");
        assert!(overview.contains(&format!("faults/{name}.yaml")), "{name}");
    }
}

#[test]
fn the_guide_adds_a_fault_that_does_not_exist_yet() {
    let guide = read("docs/adding-a-fault.md");
    let example = blocks(&guide, "text").pop().expect("an example");
    assert!(Fault::schema("blackhole").is_none(), "it exists now: let the guide add another");
    // All of the example is sound but the fault.
    let found = Library::default().add("guide", example).expect_err("not in the table");
    assert!(found.message.contains("no fault `blackhole`"), "{found}");
    let mut library = Library::default();
    library.add("guide", &example.replace("blackhole", "partition")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(library.check(), []);
}
