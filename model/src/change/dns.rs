//! What is done to the DNS queries of a target.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::{NameGlob, Percent, Span, UnitError};

/// Which queries are acted upon, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DnsQueries {
    /// Those for these names.
    pub names: Vec<NameGlob>,
    /// The share of them.
    pub share: Percent,
    /// What they are answered, in place of their server; `None`: they go on to it.
    pub answer: Option<DnsAnswer>,
    /// How long they, or their answers, take longer.
    pub delay: Span,
}

impl DnsQueries {
    /// Whether a name (its labels joined by dots) is among those asked for.
    pub fn is_about(&self, name: &[u8]) -> bool {
        self.names.iter().any(|glob| glob.matches(name))
    }
}

impl fmt::Display for DnsQueries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            Some(answer) => write!(f, "answer {answer}")?,
            None => f.write_str("delay")?,
        }
        if !self.delay.0.is_zero() {
            let how = if self.answer.is_some() { "after" } else { "by" };
            write!(f, " {how} {}", self.delay)?;
        }
        if self.share != Percent::ALL {
            write!(f, " to {}", self.share)?;
        }
        let names: Vec<String> = self.names.iter().map(NameGlob::to_string).collect();
        write!(f, " when asked for {}", names.join(", "))
    }
}

/// An answer that does not come from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsAnswer {
    /// There is no such name.
    NxDomain,
    /// The server failed.
    ServFail,
    /// The server does not want to.
    Refused,
    /// None ever.
    Timeout,
    /// These addresses: queries for A get those of IPv4, for AAAA those of IPv6, and all others that there is nothing.
    Addresses(Vec<IpAddr>),
}

const WORDS: [(&str, DnsAnswer); 4] = [
    ("nxdomain", DnsAnswer::NxDomain),
    ("servfail", DnsAnswer::ServFail),
    ("refused", DnsAnswer::Refused),
    ("timeout", DnsAnswer::Timeout),
];

impl FromStr for DnsAnswer {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        if let Some((_, answer)) = WORDS.iter().find(|(word, _)| *word == text.trim()) {
            return Ok(answer.clone());
        }
        let addresses = text.split(',').map(|address| address.trim().parse()).collect::<Result<Vec<_>, _>>();
        addresses.map(Self::Addresses).map_err(|_| {
            UnitError::new(format!(
                "`{text}` is no answer: write `nxdomain`, `servfail`, `refused`, `timeout`, or `{{addresses: [10.0.0.66]}}`"
            ))
        })
    }
}

impl fmt::Display for DnsAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Addresses(addresses) = self {
            let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            return f.write_str(&texts.join(","));
        }
        let word = WORDS.iter().find(|(_, answer)| answer == self).map_or("", |(word, _)| word);
        f.write_str(word)
    }
}

impl Serialize for DnsAnswer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Addresses(addresses) = self else { return serializer.collect_str(self) };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("addresses", addresses)?;
        map.end()
    }
}

// By hand, so that a word, a map and the option of a command line are all read, and an error keeps its place.
impl<'de> Deserialize<'de> for DnsAnswer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wrong {
            addresses: Vec<IpAddr>,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = DnsAnswer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`nxdomain`, `servfail`, `refused`, `timeout`, or `{addresses: [10.0.0.66]}`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DnsAnswer, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DnsAnswer, A::Error> {
                Wrong::deserialize(MapAccessDeserializer::new(map)).map(|wrong| DnsAnswer::Addresses(wrong.addresses))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for DnsAnswer {
    fn schema_name() -> Cow<'static, str> {
        "Answer".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "nxdomain, servfail, refused, timeout, or {addresses: [10.0.0.66]}",
            "anyOf": [
                { "enum": ["nxdomain", "servfail", "refused", "timeout"] },
                {
                    "type": "object",
                    "properties": {
                        "addresses": { "type": "array", "items": { "type": "string" }, "description": "wrong addresses, IPv4 and IPv6" }
                    },
                    "required": ["addresses"],
                    "additionalProperties": false
                }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_words_maps_and_lists_and_written_so_that_they_read_again() {
        let read = |yaml: &str| serde_saphyr::from_str::<DnsAnswer>(yaml);
        let wrong = DnsAnswer::Addresses(vec!["10.0.0.66".parse().expect("v4"), "fd00::66".parse().expect("v6")]);
        assert_eq!(read("nxdomain").expect("a word"), DnsAnswer::NxDomain);
        assert_eq!(read("{addresses: [10.0.0.66, \"fd00::66\"]}").expect("a map"), wrong);
        assert_eq!("10.0.0.66,fd00::66".parse::<DnsAnswer>().expect("a list"), wrong);
        assert!(read("nodomain").expect_err("no word").to_string().contains("servfail"));
        for answer in [DnsAnswer::ServFail, DnsAnswer::Timeout, wrong] {
            let json = serde_json::to_string(&answer).expect("plain data");
            assert_eq!(serde_json::from_str::<DnsAnswer>(&json).expect("just written"), answer);
            assert_eq!(answer.to_string().parse::<DnsAnswer>().expect("as on the command line"), answer);
        }
    }
}
