//! Parameters that are a value, or a ramp: one that goes from one value to another in steps while the fault lasts.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::units::{Percent, Rate, Span, UnitError};

/// A quantity that can be ramped.
pub trait Quantity: Copy + PartialOrd + fmt::Display + FromStr<Err = UnitError> {
    /// What is expected where one is missing.
    const EXPECTS: &str;

    /// The value that lies a share (0 to 1) of the way from this one to another.
    #[must_use]
    fn towards(self, to: Self, share: f64) -> Self;
}

impl Quantity for Percent {
    const EXPECTS: &str = "a percentage such as `30%`, or a ramp";

    fn towards(self, to: Self, share: f64) -> Self {
        let percent = self.percent() + share * (to.percent() - self.percent());
        // So that a sixth of 30 % prints as 5 %. Between two shares there is none beyond them.
        Self::new((percent * 1e6).round() / 1e6).unwrap_or(to)
    }
}

impl Quantity for Span {
    const EXPECTS: &str = "a duration such as `50ms`, `1s 500ms` or `2m`, or a ramp";

    fn towards(self, to: Self, share: f64) -> Self {
        let micros = |span: Self| span.as_nanos() as f64 / 1e3;
        Self(Duration::from_micros((micros(self) + share * (micros(to) - micros(self))).round() as u64))
    }
}

impl Quantity for Rate {
    const EXPECTS: &str = "a rate such as `10mbit`, `500kbit` or `1.5gbit`, or a ramp";

    fn towards(self, to: Self, share: f64) -> Self {
        Self((self.0 as f64 + share * (to.0 as f64 - self.0 as f64)).round() as u64)
    }
}

/// From one value to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ramp<T> {
    /// The value at first
    pub from: T,
    /// The value at last, which then stays
    pub to: T,
    /// How long it takes
    pub over: Span,
    /// In how many equal steps (10 by default)
    #[serde(default = "ten")]
    pub steps: u32,
}

fn ten() -> u32 {
    10
}

/// The shortest time from one step to the next: steps are taken when the agent's clock ticks.
const SHORTEST_STEP: Span = Span::from_millis(100);
/// The most steps.
const MOST_STEPS: u32 = 1000;

/// A value, or a ramp: `30%`, `{ramp: {from: 0%, to: 30%, over: 60s, steps: 6}}`; on the command line also
/// `0% to 30% over 60s in 6 steps`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Ramped<T> {
    /// One value for as long as the fault lasts.
    Value(T),
    /// A ramp.
    Ramp {
        /// It.
        ramp: Ramp<T>,
    },
}

impl<T: Quantity> Ramped<T> {
    /// The value at a time after the fault came into force.
    pub fn at(self, time: Span) -> T {
        let ramp = match self {
            Self::Value(value) => return value,
            Self::Ramp { ramp } => ramp,
        };
        let step = (time.as_nanos() as f64 / ramp.step().as_nanos().max(1) as f64 + 1e-6).floor();
        let share = step.min(f64::from(ramp.steps)) / f64::from(ramp.steps.max(1));
        ramp.from.towards(ramp.to, share)
    }

    /// When it changes.
    pub fn times(self) -> BTreeSet<Span> {
        match self {
            Self::Value(_) => BTreeSet::new(),
            Self::Ramp { ramp } => (1..=ramp.steps).map(|n| Span(ramp.step().0 * n)).collect(),
        }
    }

    /// The smallest value that it ever has.
    pub fn least(self) -> T {
        match self {
            Self::Value(value) => value,
            Self::Ramp { ramp } => {
                if ramp.to < ramp.from {
                    ramp.to
                } else {
                    ramp.from
                }
            }
        }
    }

    /// The greatest value that it ever has.
    pub fn most(self) -> T {
        match self {
            Self::Value(value) => value,
            Self::Ramp { ramp } => {
                if ramp.to > ramp.from {
                    ramp.to
                } else {
                    ramp.from
                }
            }
        }
    }

    /// Whether it can be gone through.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub fn check(self) -> Result<(), String> {
        let Self::Ramp { ramp } = self else { return Ok(()) };
        if ramp.from == ramp.to {
            return Err(format!("a ramp from {0} to {0} goes nowhere: write just `{0}`", ramp.from));
        }
        if ramp.steps == 0 || ramp.steps > MOST_STEPS {
            return Err(format!("a ramp has 1 to {MOST_STEPS} steps, not {}", ramp.steps));
        }
        if ramp.step() < SHORTEST_STEP {
            return Err(format!(
                "{} steps over {} are one every {}, and the shortest is {SHORTEST_STEP}: fewer steps, or a longer time",
                ramp.steps,
                ramp.over,
                ramp.step()
            ));
        }
        Ok(())
    }
}

impl<T> Ramp<T> {
    fn step(&self) -> Span {
        Span(self.over.0 / self.steps.max(1))
    }
}

impl<T> From<T> for Ramped<T> {
    fn from(value: T) -> Self {
        Self::Value(value)
    }
}

impl<T: Default> Default for Ramped<T> {
    fn default() -> Self {
        Self::Value(T::default())
    }
}

impl<T: Quantity> fmt::Display for Ramped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.fmt(f),
            Self::Ramp { ramp: Ramp { from, to, over, steps } } => {
                write!(f, "{from} to {to} over {over} in {steps} {}", if *steps == 1 { "step" } else { "steps" })
            }
        }
    }
}

impl<T: Quantity> FromStr for Ramped<T> {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let Some((from, rest)) = text.split_once(" to ") else { return text.parse().map(Self::Value) };
        let (to, rest) = rest.split_once(" over ").ok_or_else(|| {
            UnitError::new(format!(
                "`{text}` does not say how long the ramp takes: write `.. to .. over 60s in 6 steps`"
            ))
        })?;
        let (over, steps) = rest.split_once(" in ").map_or((rest, None), |(over, steps)| (over, Some(steps)));
        let count = |text: &str| text.trim_end_matches('s').trim_end_matches("step").trim().parse();
        let steps = steps.map_or(Ok(ten()), count);
        let steps = steps.map_err(|_| UnitError::new(format!("`{text}`: how many steps? Write `in 6 steps`")))?;
        Ok(Self::Ramp { ramp: Ramp { from: from.parse()?, to: to.parse()?, over: over.parse()?, steps } })
    }
}

// By hand, because serde's `untagged` loses the place of an error.
impl<'de, T: Quantity + Deserialize<'de>> Deserialize<'de> for Ramped<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Key<T> {
            ramp: Ramp<T>,
        }
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Quantity + Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = Ramped<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTS)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ramped<T>, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Ramped<T>, E> {
                number.to_string().parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Ramped<T>, A::Error> {
                Key::deserialize(MapAccessDeserializer::new(map)).map(|key| Ramped::Ramp { ramp: key.ramp })
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Ramped<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrRamp", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (value, ramp) = (generator.subschema_for::<T>(), generator.subschema_for::<Ramp<T>>());
        json_schema!({
            "anyOf": [
                value,
                { "type": "object", "properties": { "ramp": ramp }, "required": ["ramp"], "additionalProperties": false }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Ramped<Percent> {
        serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn a_ramp_goes_from_the_first_value_to_the_last_in_equal_steps_and_stays_there() {
        let ramp = read("{ramp: {from: 0%, to: 30%, over: 60s, steps: 6}}");
        let at = |secs| ramp.at(Span::from_secs(secs)).to_string();
        assert_eq!([0, 9, 10, 19, 50, 59, 60, 500].map(at), ["0%", "0%", "5%", "5%", "25%", "25%", "30%", "30%"]);
        let times: Vec<u64> = ramp.times().into_iter().map(|t| t.0.as_secs()).collect();
        assert_eq!(times, [10, 20, 30, 40, 50, 60]);
        assert_eq!((ramp.least().to_string(), ramp.most().to_string()), ("0%".into(), "30%".into()));
        // Each at the very time at which the agent takes it, also where a step is no round number, and down as well as up.
        let down = read("{ramp: {from: 30%, to: 10%, over: 1s, steps: 7}}");
        for (n, time) in down.times().into_iter().enumerate() {
            assert_eq!(down.at(time), Percent::new(30.0).expect("a share").towards(down.least(), (n + 1) as f64 / 7.0));
        }
        let slower: Ramped<Span> = "10ms to 200ms over 10s in 3 steps".parse().expect("a ramp");
        assert_eq!(slower.at(Span::from_secs(4)).to_string(), "73ms 333us");
        let rate: Ramped<Rate> = "10mbit to 1mbit over 9s in 9 steps".parse().expect("a ramp");
        assert_eq!(rate.at(Span::from_secs(4)).to_string(), "6mbit");
    }

    #[test]
    fn values_and_ramps_read_back_as_they_were_written() {
        assert_eq!(read("30%"), Ramped::Value("30%".parse().expect("a share")));
        for text in ["30%", "0% to 30% over 1m in 6 steps", "30% to 0% over 1s in 1 step"] {
            let ramp: Ramped<Percent> = text.parse().expect(text);
            assert_eq!(ramp.to_string(), text);
            let json = serde_json::to_string(&ramp).expect("plain data");
            assert_eq!(serde_json::from_str::<Ramped<Percent>>(&json).expect("just written"), ramp, "{json}");
        }
        assert_eq!(read("{ramp: {from: 0%, to: 30%, over: 60s}}").times().len(), 10);
    }

    #[test]
    fn what_is_no_ramp_is_refused_with_the_reason() {
        for (text, part) in [
            ("0% to 0% over 60s", "goes nowhere"),
            ("0% to 5% over 60s in 0 steps", "1 to 1000"),
            ("0% to 5% over 1s in 100 steps", "the shortest is 100ms"),
        ] {
            let ramp: Ramped<Percent> = text.parse().expect("well-formed");
            assert!(ramp.check().is_err_and(|why| why.contains(part)), "{text}");
        }
        for (text, part) in [
            ("0% to 5%", "how long"),
            ("0% to 5% over 1s in many steps", "how many"),
            ("0 to 5% over 1s", "not a percentage"),
            ("5", "not a percentage"),
        ] {
            let error = text.parse::<Ramped<Percent>>().expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
