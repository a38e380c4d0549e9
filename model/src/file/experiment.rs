//! `kind: Experiment`: faults on targets, what is expected, and when to stop.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::fault::Fault;
use crate::protect::Thing;
use crate::target::StepTarget;
use crate::units::{Percent, Span};

/// An experiment on a system.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Its name
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// What it shows, as a statement: "Checkout survives the loss of one web replica"
    #[serde(default)]
    pub title: Option<String>,
    /// The system it is about; may be left out when the files hold just one
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub system: Option<Spanned<String>>,
    /// How long the steady state is observed first: auto, or a duration
    #[serde(default)]
    #[schemars(with = "Option<Baseline>")]
    pub baseline: Option<Spanned<Baseline>>,
    /// Named choices of replicas, made once at the start from the seed
    #[serde(default)]
    pub pick: BTreeMap<String, Pick>,
    /// What is done, and when
    #[schemars(with = "Vec<Step>")]
    pub steps: Vec<Spanned<Step>>,
    /// What is expected to happen
    #[serde(default)]
    pub expect: Expect,
    /// Rules that end the experiment early
    #[serde(default)]
    pub abort: Vec<AbortRule>,
    /// The longest that the whole run may take; made from the rest when left out
    #[serde(default)]
    #[schemars(with = "Option<Span>")]
    pub deadline: Option<Spanned<Span>>,
    /// Seed of every random choice; drawn and recorded when left out
    #[serde(default)]
    pub seed: Option<u64>,
}

/// How long the steady state is observed before the first fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Baseline {
    /// As long as the tolerances need.
    #[default]
    Auto,
    /// This long; refused when it is too short for the tolerances.
    For(Span),
}

/// A choice of replicas of one component, by count or percentage.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pick {
    /// The component
    #[schemars(with = "String")]
    pub component: Spanned<String>,
    /// How many of its replicas
    #[serde(default)]
    #[schemars(with = "Option<usize>")]
    pub count: Option<Spanned<usize>>,
    /// Which share of its replicas, rounded up
    #[serde(default)]
    pub percent: Option<Percent>,
}

/// Faults that act together on one target for a while.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// When it begins, counted from the first fault
    #[serde(default)]
    pub at: Span,
    /// A pick, a component, `component/replica`, or a target spelled out
    #[schemars(with = "StepTarget")]
    pub target: Spanned<StepTarget>,
    /// The faults
    #[schemars(with = "Vec<Fault>")]
    pub inject: Vec<Spanned<Fault>>,
    /// Protected things on which they may act all the same, such as `process sshd` or `port 22`; a refusal names them
    #[serde(default)]
    pub allow_protected: Vec<Thing>,
    /// How long they act
    #[serde(rename = "for")]
    #[schemars(with = "Span")]
    pub lasts: Spanned<Span>,
}

/// What is expected to happen, and so what is judged.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Components that may be hit; everything else must hold
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub radius: Vec<Spanned<String>>,
    /// The outage permitted to probes outside the radius
    #[serde(default)]
    pub outage: Span,
    /// After the last fault has ended, every probe must be steady again within this
    #[serde(default = "default_healed")]
    pub healed: Span,
}

fn default_healed() -> Span {
    Span::from_secs(30)
}

impl Default for Expect {
    fn default() -> Self {
        Self { radius: Vec::new(), outage: Span::default(), healed: default_healed() }
    }
}

/// Ends the experiment when a probe has been bad for too long.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AbortRule {
    /// `component/probe`
    #[schemars(with = "String")]
    pub probe: Spanned<String>,
    /// Bad without a good answer in between for this long
    pub bad_for: Span,
}

impl<'de> Deserialize<'de> for Baseline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Baseline;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto` or a duration such as `15s`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Baseline, E> {
                if text == "auto" { Ok(Baseline::Auto) } else { text.parse().map(Baseline::For).map_err(E::custom) }
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for Baseline {
    fn schema_name() -> Cow<'static, str> {
        "Baseline".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "auto, or a duration such as 15s" })
    }
}
