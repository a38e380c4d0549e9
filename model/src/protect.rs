//! What is protected from faults, and the words by which a user lifts the protection of one thing.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One protected thing whose protection can be lifted, as a user names it: `process sshd`, `unit ssh.service`, `port 22`.
///
/// Firedrill itself, its guardian and ancestors, the host's init, kernel threads and the root cgroup have no such name:
/// nothing lifts their protection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String")]
pub enum Thing {
    /// Processes of this name, as `/proc/PID/comm` has it.
    Process(String),
    /// A systemd unit, by its full name.
    Unit(String),
    /// A port of the host's own network, at either end.
    Port(u16),
}

/// A text that names no thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a protected thing; write `process NAME`, `unit NAME` or `port NUMBER`, as the refusal has it"
)]
pub struct ThingError(String);

impl FromStr for Thing {
    type Err = ThingError;

    fn from_str(text: &str) -> Result<Self, ThingError> {
        let wrong = || ThingError(text.to_owned());
        let (kind, name) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let name = name.trim();
        match kind {
            "process" if !name.is_empty() => Ok(Self::Process(name.to_owned())),
            "unit" if !name.is_empty() => Ok(Self::Unit(name.to_owned())),
            "port" => name.parse().ok().filter(|port| *port > 0).map(Self::Port).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(name) => write!(f, "process {name}"),
            Self::Unit(name) => write!(f, "unit {name}"),
            Self::Port(port) => write!(f, "port {port}"),
        }
    }
}

impl From<Thing> for String {
    fn from(thing: Thing) -> Self {
        thing.to_string()
    }
}

impl TryFrom<String> for Thing {
    type Error = ThingError;

    fn try_from(text: String) -> Result<Self, ThingError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_read_as_it_is_written() {
        for text in ["process sshd", "process tmux: server", "unit ssh.service", "port 22"] {
            let thing: Thing = text.parse().expect("a thing");
            assert_eq!(thing.to_string(), text);
            let json = serde_json::to_string(&thing).expect("a text");
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Thing>(&json).expect("itself"), thing);
        }
    }

    #[test]
    fn what_is_no_thing_is_refused_with_the_forms_there_are() {
        for text in ["sshd", "", "process ", "port ssh", "port 0", "port 65536", "pid 1", "everything"] {
            let error = text.parse::<Thing>().expect_err(text);
            assert!(error.to_string().contains("process NAME"), "{error}");
        }
    }
}
