//! What the YAML parser complains about, said in the words of the person who wrote the file.

use serde_saphyr::Error;

use super::document::KINDS;
use super::suggest::did_you_mean;
use crate::fault;

/// What is wrong, and what would mend it.
pub(super) fn explain(error: &Error) -> (String, Option<String>) {
    match error.without_snippet() {
        Error::AliasError { error, .. } => explain(error),
        Error::SerdeUnknownField { field, expected, .. } => {
            (format!("there is no key `{field}` here"), meant(field, expected))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            let what = if expected.as_slice() == KINDS {
                format!("there is no kind of document `{variant}`")
            } else if expected.iter().eq(fault::TABLE.iter().map(|(name, _)| name)) {
                format!("there is no fault `{variant}`")
            } else {
                format!("`{variant}` is not one of the values that can stand here")
            };
            (what, meant(variant, expected))
        }
        Error::SerdeMissingField { field, .. } => {
            let help = example(field).map(|line| format!("for example `{line}`"));
            (format!("the key `{field}` is missing here"), help)
        }
        Error::DuplicateMappingKey { key: Some(key), .. } if key.contains("kind") => {
            let help = "begin another document with a line `---`".to_owned();
            ("there are two `kind` keys in one document".to_owned(), Some(help))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().map(|k| format!(" `{}`", k.trim_matches('`'))).unwrap_or_default();
            (format!("the key{key} stands here twice"), Some("remove one of the two".into()))
        }
        Error::Unexpected { expected, .. } => {
            let (what, help) = match *expected {
                "mapping start" => ("keys with values", "write `key: value` lines, or `{key: value}`"),
                "sequence start" => ("a list", "write `- item` lines, or `[item, item]`"),
                "string scalar" => ("a text", "write one word, or a text in quotes"),
                other => return (format!("expected {other}"), None),
            };
            (format!("expected {what}"), Some(help.into()))
        }
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            (format!("expected {expected}, found {unexpected}"), None)
        }
        Error::NullIntoString { .. } => ("there is no value here".into(), Some("write one after the colon".into())),
        Error::InvalidBooleanStrict { .. } => {
            ("this is neither `true` nor `false`".into(), Some("write one of the two, without quotes".into()))
        }
        Error::InvalidScalar { ty, .. } => {
            let whole = ty.trim_start_matches(['u', 'i']).parse::<u8>().is_ok();
            let what = match *ty {
                "boolean" | "bool" => "`true` or `false`",
                _ if whole => "a whole number, or it is too large",
                other => other,
            };
            (format!("this is not {what}"), None)
        }
        Error::Eof { .. } => ("the file ends in the middle of something".into(), None),
        Error::UnknownAnchor { .. } => (
            "this alias names an anchor that does not exist".into(),
            Some("write out what is meant; an anchor ends with its document, at `---`".into()),
        ),
        Error::Budget { .. } => (
            "the file is too large or too deeply nested to be a file of experiments".into(),
            Some("split it up".into()),
        ),
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            ("the aliases of this file expand to far too much".into(), Some("write out what is meant".into()))
        }
        other => match plain(other) {
            tab if tab.contains("found a tab") => {
                ("there is a tab here, or in the next line".into(), Some("indent with spaces".into()))
            }
            what => (what, None),
        },
    }
}

fn meant(wrong: &str, expected: &[&'static str]) -> Option<String> {
    Some(if expected.is_empty() {
        "nothing can stand here: write `{}`".to_owned()
    } else {
        did_you_mean(wrong, expected.iter().copied())
    })
}

/// The keys that must be there, as they may be written.
fn example(key: &str) -> Option<&'static str> {
    Some(match key {
        "name" => "name: checkout",
        "components" => "components: [{name: web, replicas: [{unit: nginx.service}]}]",
        "component" => "component: web",
        "steps" => "steps: [{target: {netns: blue}, inject: [{loss: {percent: 30%}}], for: 20s}]",
        "target" => "target: {unit: nginx.service}",
        "inject" => "inject: [{latency: {delay: 100ms}}]",
        "for" => "for: 20s",
        "run" => "run: lose-one-web",
        "probe" => "probe: front/checkout",
        "bad_for" => "bad_for: 5s",
        "url" => "url: \"http://127.0.0.1:8080/\"",
        "address" => "address: \"127.0.0.1:5432\"",
        "command" => "command: [/usr/bin/pg_isready]",
        "delay" => "delay: 100ms",
        "percent" => "percent: 30%",
        "stop" => "stop: [/usr/local/bin/web, stop]",
        "start" => "start: [/usr/local/bin/web, start]",
        _ => return None,
    })
}

/// The parser's message without its own rendering of the place, which the diagnostic shows anyway.
fn plain(error: &Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    text.trim_start_matches("error: ").trim_end_matches([',', ' ', ':']).to_owned()
}
