//! Reading a file: its documents by kind, each error at its place.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::diagnostic::{Diagnostic, Place};
use super::explain::explain;
use super::{Experiment, GameDay, System};

/// One document of a file.
#[derive(Clone, Debug)]
pub enum Document {
    /// `kind: System`
    System(System),
    /// `kind: Experiment`
    Experiment(Box<Experiment>),
    /// `kind: GameDay`
    GameDay(GameDay),
}

/// The kinds of document there are.
pub const KINDS: &[&str] = &["System", "Experiment", "GameDay"];

impl Document {
    /// Its kind, as written.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::System(_) => "System",
            Self::Experiment(_) => "Experiment",
            Self::GameDay(_) => "GameDay",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::System(d) => &d.name.value,
            Self::Experiment(d) => &d.name.value,
            Self::GameDay(d) => &d.name.value,
        }
    }
}

/// Reads all documents of a file.
///
/// # Errors
/// The first thing that is not YAML or does not fit its kind, with its place and a way to mend it.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Box<Diagnostic>> {
    let options = serde_saphyr::options! {
        // Far above any file that a person writes, and low enough that a file made to exhaust memory or the
        // stack is refused within milliseconds.
        budget: serde_saphyr::budget! {
            max_events: 200_000,
            max_nodes: 100_000,
            max_depth: 32,
            flow_nesting_limit: 32,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 100_000,
            max_merge_keys: 1_000,
            max_total_scalar_bytes: 4 * 1024 * 1024,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 50_000, max_replay_stack_depth: 8 },
        // As in YAML 1.2: `on` and `yes` are texts, which `json: {/state: on}` relies on.
        strict_booleans: true,
    };
    serde_saphyr::from_multiple_with_options::<Document>(text, options).map_err(|error| {
        let place = error.location().map(Place::from_location).unwrap_or_default();
        let (message, help) = explain(&error);
        Box::new(Diagnostic::new(file, text, place, message, help))
    })
}

/// The JSON Schema of one kind; `None` when there is no such kind.
pub fn schema(kind: &str) -> Option<schemars::Schema> {
    match kind {
        "System" => Some(schemars::schema_for!(System)),
        "Experiment" => Some(schemars::schema_for!(Experiment)),
        "GameDay" => Some(schemars::schema_for!(GameDay)),
        _ => None,
    }
}

/// The value of a first key that is not `kind`. Refusing it, rather than the document, tells the place.
enum NoKind {}

impl<'de> Deserialize<'de> for NoKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Err(de::Error::custom(
            "a document begins with its kind: make `kind: System`, `kind: Experiment` or `kind: GameDay` its first line",
        ))
    }
}

// By hand, because serde's `tag = "kind"` would buffer the document and lose every place in it: `kind` comes
// first, and the rest of the very same mapping is then read as that kind.
impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        enum Kind {
            System,
            Experiment,
            GameDay,
        }
        struct ByKind;
        impl<'de> Visitor<'de> for ByKind {
            type Value = Document;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a document that begins with `kind: System`, `kind: Experiment` or `kind: GameDay`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let first: Option<String> = map.next_key()?;
                if first.as_deref() != Some("kind") {
                    return map.next_value().map(|never: NoKind| match never {});
                }
                let kind: Kind = map.next_value()?;
                let rest = MapAccessDeserializer::new(map);
                match kind {
                    Kind::System => System::deserialize(rest).map(Document::System),
                    Kind::Experiment => Experiment::deserialize(rest).map(|e| Document::Experiment(Box::new(e))),
                    Kind::GameDay => GameDay::deserialize(rest).map(Document::GameDay),
                }
            }
        }
        deserializer.deserialize_map(ByKind)
    }
}
