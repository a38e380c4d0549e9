//! Peers: the other side of a packet fault, as people name it. The agent looks names up; a plan has addresses only.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::{Cidr, Ports, UnitError};

/// The other side of packets: `10.0.0.0/8`, `db.example.org`, `{component: db}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// An address or a network.
    Network(Cidr),
    /// A host, by its name.
    Host(String),
    /// The replicas of a component of the system.
    Component(String),
}

/// What a name stood for when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFacts {
    /// The name.
    pub peer: Peer,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// The ports by which it is reached at them; empty for all.
    pub ports: Vec<Ports>,
}

impl Peer {
    /// Whether it must be looked up.
    pub const fn is_name(&self) -> bool {
        !matches!(self, Self::Network(_))
    }
}

impl FromStr for Peer {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        match text.parse() {
            Ok(network) => Ok(Self::Network(network)),
            // What has no letter, such as `10.0.0.256`, or too many colons is an address with a mistake.
            Err(wrong) if !is_host_name(text) => Err(wrong),
            Err(_) => Ok(Self::Host(text.to_ascii_lowercase())),
        }
    }
}

/// A name as RFC 1123 has it, with the underscores that are met in the wild; its last label is no number.
fn is_host_name(text: &str) -> bool {
    let of_label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.chars().all(of_label) && !l.starts_with('-') && !l.ends_with('-');
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253 && name.split('.').all(label) && !last.chars().all(|c| c.is_ascii_digit())
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self::Network(Cidr::one(address))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Host(name) => f.write_str(name),
            Self::Component(name) => write!(f, "component {name}"),
        }
    }
}

/// `db.example.org is 10.0.0.5`, for plan and report.
impl fmt::Display for PeerFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| items.join(", ");
        write!(f, "{} is {}", self.peer, list(self.addresses.iter().map(Cidr::to_string).collect()))?;
        if self.ports.is_empty() {
            return Ok(());
        }
        write!(f, ", port {}", list(self.ports.iter().map(Ports::to_string).collect()))
    }
}

impl Serialize for Peer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Component(name) = self else { return serializer.collect_str(self) };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("component", name)?;
        map.end()
    }
}

// By hand, because serde's `untagged` loses the place of an error.
impl<'de> Deserialize<'de> for Peer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Named {
            component: String,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Peer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or network such as `10.0.0.0/8`, a host name, or `{component: db}`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Peer, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Peer, A::Error> {
                Named::deserialize(MapAccessDeserializer::new(map)).map(|named| Peer::Component(named.component))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Peer {
    fn schema_name() -> Cow<'static, str> {
        "Peer".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "an address or network such as `10.0.0.0/8` or `fd00::/8`, a host name, or `{component: db}`",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "component": { "type": "string", "description": "a component of the system: all its replicas" } },
                    "required": ["component"],
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
    fn addresses_host_names_and_components_are_told_apart_and_print_as_they_are_written() {
        let read = |text: &str| text.parse::<Peer>().expect(text);
        assert!(matches!(read("10.0.0.0/8"), Peer::Network(_)) && matches!(read("fd00::1"), Peer::Network(_)));
        for name in ["db", "db.example.org", "db.example.org.", "_srv.db", "localhost", "a1.b2"] {
            assert_eq!(read(name), Peer::Host(name.to_owned()));
            assert_eq!(read(name).to_string(), name);
        }
        for wrong in ["10.0.0.256", "1.2.3", "10.0.0.0/33", "fd00::/129", "a b", "-db", "db-.x", "a..b", "", "http://x"]
        {
            let error = wrong.parse::<Peer>().expect_err(wrong).to_string();
            assert!(error.contains("is not an address"), "{error}");
        }
        let yaml = "[10.0.0.5, db.example.org, {component: db}]";
        let peers: Vec<Peer> = serde_saphyr::from_str(yaml).expect("peers");
        assert_eq!(peers[2], Peer::Component("db".into()));
        let json = serde_json::to_string(&peers).expect("plain data");
        assert_eq!(json, r#"["10.0.0.5","db.example.org",{"component":"db"}]"#);
        assert_eq!(serde_json::from_str::<Vec<Peer>>(&json).expect("just written"), peers);
    }
}
