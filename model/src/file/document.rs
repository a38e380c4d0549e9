//! Reading a file: its documents by kind, each error at its place.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::diagnostic::{Diagnostic, Place};
use super::suggest::did_you_mean;
use super::{Experiment, GameDay, System};

/// One document of a file.
#[derive(Clone, Debug)]
pub enum Document {
    /// `kind: System`
    System(System),
    /// `kind: Experiment`
    Experiment(Experiment),
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
    serde_saphyr::from_multiple::<Document>(text).map_err(|error| {
        let place = error.location().map(Place::from_location).unwrap_or_default();
        let message = plain(&error);
        let help = help_for(&message);
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

/// The parser's message without its own rendering of the place, which the diagnostic shows anyway.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    text.trim_start_matches("error: ").trim_end_matches([',', ' ', ':']).to_owned()
}

/// Finds the name that was meant, from serde's list of what it expected.
fn help_for(message: &str) -> Option<String> {
    let names = |part: &str| -> Vec<String> {
        part.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let (wrong, expected) = message.split_once("expected")?;
    if !wrong.starts_with("unknown ") {
        return None;
    }
    let wrong = names(wrong).into_iter().next()?;
    let expected = names(expected);
    Some(did_you_mean(&wrong, expected.iter().map(String::as_str)))
}

// By hand, because serde's `tag = "kind"` would buffer the document and lose every place in it: `kind` comes
// first, and the rest of the very same mapping is then read as that kind.
impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByKind;
        impl<'de> Visitor<'de> for ByKind {
            type Value = Document;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a document that begins with `kind: System`, `kind: Experiment` or `kind: GameDay`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let first: Option<String> = map.next_key()?;
                if first.as_deref() != Some("kind") {
                    return Err(de::Error::custom(
                        "a document begins with its kind: make `kind: System`, `kind: Experiment` or `kind: GameDay` its \
                         first line",
                    ));
                }
                let kind: String = map.next_value()?;
                let rest = MapAccessDeserializer::new(map);
                match kind.as_str() {
                    "System" => System::deserialize(rest).map(Document::System),
                    "Experiment" => Experiment::deserialize(rest).map(Document::Experiment),
                    "GameDay" => GameDay::deserialize(rest).map(Document::GameDay),
                    other => Err(de::Error::unknown_variant(other, KINDS)),
                }
            }
        }
        deserializer.deserialize_map(ByKind)
    }
}
