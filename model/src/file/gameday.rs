//! `kind: GameDay`: several experiments, one after another.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::units::Span;

/// A game day.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GameDay {
    /// Its name
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// One line for people
    #[serde(default)]
    pub title: Option<String>,
    /// What is done, in order
    pub steps: Vec<GameDayStep>,
    /// Whether to go on when an experiment did not hold
    #[serde(default)]
    pub on_finding: OnFinding,
}

/// One item of a game day.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GameDayStep {
    /// Name of the experiment
    #[schemars(with = "String")]
    pub run: Spanned<String>,
    /// A question that a person must confirm first
    #[serde(default)]
    pub confirm: Option<String>,
    /// A note for the report
    #[serde(default)]
    pub note: Option<String>,
    /// Rest before it begins
    #[serde(default)]
    pub pause: Span,
}

/// What a finding does to the rest of the day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFinding {
    /// Go on with the next experiment.
    #[default]
    Continue,
    /// End the day.
    Stop,
}
