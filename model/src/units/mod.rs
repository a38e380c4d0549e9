//! Quantities as users write them: `100ms`, `30%`, `8080`, `8000-8099`, `10.0.0.0/8`.
//!
//! Each type parses from and prints to the very same text, so that a plan shows what a file says.

mod amount;
mod glob;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use amount::{Rate, Size};
pub use glob::NameGlob;

/// A length of time, written as humantime does: `50ms`, `1s 500ms`, `2m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// A share between 0 % and 100 %, written `30%` or `0.5%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Percent(f64);

/// A port or an inclusive range of ports: `5432`, `8000-8099`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// First port of the range.
    pub first: u16,
    /// Last port of the range, included.
    pub last: u16,
}

/// An address or a network, IPv4 or IPv6: `10.1.2.3`, `10.0.0.0/8`, `fd00::/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The network's address; bits beyond `prefix` are zero.
    pub address: IpAddr,
    /// Number of leading bits that count: 0–32 for IPv4, 0–128 for IPv6.
    pub prefix: u8,
}

/// Why a quantity could not be read; the text names the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

impl UnitError {
    /// One that says what is wrong, and what to write instead.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl Span {
    /// The longest that can be written: a year. Sums and products of a plan's durations cannot overflow then.
    pub const LONGEST: Self = Self::from_secs(31_557_600);

    /// `n` milliseconds.
    pub const fn from_millis(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }

    /// `n` seconds.
    pub const fn from_secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// The length in whole nanoseconds; more than 584 years saturate.
    pub fn as_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The length in seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parsed = humantime::parse_duration(text.trim()).map(Self).map_err(|error| {
            let hint = if text.trim().parse::<f64>().is_ok() {
                format!("; a unit is missing: `{0}s` or `{0}ms`?", text.trim())
            } else {
                String::from("; write it like `50ms`, `1s 500ms` or `2m`")
            };
            UnitError(format!("`{text}` is not a duration ({error}){hint}"))
        })?;
        if parsed > Self::LONGEST {
            return Err(UnitError(format!(
                "`{text}` is longer than a year, which is the longest that anything may take"
            )));
        }
        Ok(parsed)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl From<Duration> for Span {
    fn from(value: Duration) -> Self {
        Self(value)
    }
}

impl Percent {
    /// All.
    pub const ALL: Self = Self(100.0);

    /// A share from a number of percent.
    ///
    /// # Errors
    /// When it is not within 0–100.
    pub fn new(percent: f64) -> Result<Self, UnitError> {
        if (0.0..=100.0).contains(&percent) {
            Ok(Self(percent))
        } else {
            Err(UnitError(format!("{percent} % is not between 0% and 100%")))
        }
    }

    /// The number of percent, 0–100.
    pub const fn percent(self) -> f64 {
        self.0
    }

    /// The share as a fraction, 0–1.
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }

    /// `count` of this share, rounded up: how many of `count` things a percentage picks.
    pub fn of(self, count: usize) -> usize {
        // The small subtraction keeps 30 % of 10 at 3 in spite of binary fractions.
        (self.fraction() * count as f64 - 1e-9).ceil().max(0.0) as usize
    }
}

impl FromStr for Percent {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let Some(number) = text.trim().strip_suffix('%') else {
            return Err(UnitError(format!("`{text}` is not a percentage: write it like `30%`")));
        };
        let value: f64 = number
            .trim()
            .parse()
            .map_err(|_| UnitError(format!("`{text}` is not a percentage: write it like `30%`")))?;
        Self::new(value)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Ports {
    /// The range that holds just one port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether a port is in it.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for Ports {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError(format!("`{text}` is not a port: write `5432` or a range like `8000-8099`"));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: u16 = first.trim().parse().map_err(|_| bad())?;
        let last: u16 = last.trim().parse().map_err(|_| bad())?;
        if first == 0 || first > last {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Cidr {
    /// The network that holds just one address.
    pub const fn one(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether an address is in it. An IPv4 address is the same in its IPv6 form.
    pub fn contains(self, address: IpAddr) -> bool {
        let ((network, prefix), (address, _)) = (self.mapped(), Self::one(address).mapped());
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        (u128::from_be_bytes(network) ^ u128::from_be_bytes(address)) & mask == 0
    }

    /// The address as IPv6 (IPv4 becomes `::ffff:a.b.c.d`) and the prefix length counted on those 128 bits.
    pub fn mapped(self) -> ([u8; 16], u8) {
        match self.address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), self.prefix + 96),
            IpAddr::V6(v6) => (v6.octets(), self.prefix),
        }
    }
}

impl FromStr for Cidr {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || {
            UnitError(format!("`{text}` is not an address or network: write `10.0.0.5`, `10.0.0.0/8` or `fd00::/8`"))
        };
        let (address, prefix) = match text.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => width,
            Some(text) => text.parse().ok().filter(|p| *p <= width).ok_or_else(bad)?,
        };
        let network = match address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((a.to_bits() & mask).into())
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6((a.to_bits() & mask).into())
            }
        };
        Ok(Self { address: network, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == width { write!(f, "{}", self.address) } else { write!(f, "{}/{}", self.address, self.prefix) }
    }
}

/// Text in files, text in logs: one implementation of serde and of the JSON Schema for all of them.
macro_rules! as_text {
    ($type:ty, $name:literal, $expects:literal, $pattern:literal, $number:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expects)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        let parse: fn(u64) -> Result<$type, UnitError> = $number;
                        parse(number).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "integer"], "description": $expects, "pattern": $pattern })
            }
        }
    };
}

as_text!(Span, "Duration", "a duration such as `50ms`, `1s 500ms` or `2m`", r"^[0-9]", |n| n.to_string().parse());
as_text!(Percent, "Percent", "a percentage such as `30%`", r"^[0-9.]+ ?%$", |n| n.to_string().parse());
as_text!(Ports, "Ports", "a port `5432` or a range `8000-8099`", r"^[0-9]+(-[0-9]+)?$", |n| n.to_string().parse());
as_text!(
    Cidr,
    "Cidr",
    "an address or network such as `10.0.0.0/8` or `fd00::/8`",
    r"^[0-9a-fA-F.:]+(/[0-9]+)?$",
    |n| { n.to_string().parse() }
);

as_text!(
    Rate,
    "Rate",
    "a rate such as `10mbit`, `500kbit` or `1.5gbit`, in bits a second",
    r"^[0-9.]+ ?([kmgt]?bit)$",
    |n| n.to_string().parse()
);
as_text!(NameGlob, "Name", "a DNS name such as `db.example.org` or `*.example.org`", r"^[-0-9A-Za-z_.*]+$", |n| {
    n.to_string().parse()
});
as_text!(Size, "Size", "a size such as `64KiB`, `1500B` or `1MiB`", r"^[0-9.]+ ?(B|kB|MB|GB|KiB|MiB|GiB)$", |n| {
    n.to_string().parse()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_without_a_unit_is_refused_with_the_fix() {
        let error = "5".parse::<Span>().expect_err("no unit");
        assert!(error.to_string().contains("`5s` or `5ms`"), "{error}");
        assert!("1year".parse::<Span>().is_ok());
        assert!("2years".parse::<Span>().is_err());
    }

    #[test]
    fn quantities_print_as_they_are_written() {
        for text in ["50ms", "1s 500ms", "2m"] {
            assert_eq!(text.parse::<Span>().expect("valid").to_string(), text);
        }
        for text in ["30%", "0.5%", "100%"] {
            assert_eq!(text.parse::<Percent>().expect("valid").to_string(), text);
        }
        for text in ["5432", "8000-8099"] {
            assert_eq!(text.parse::<Ports>().expect("valid").to_string(), text);
        }
        for text in ["10.0.0.5", "10.0.0.0/8", "fd00::/8", "::1", "0.0.0.0/0"] {
            assert_eq!(text.parse::<Cidr>().expect("valid").to_string(), text);
        }
    }

    #[test]
    fn a_network_forgets_the_bits_beyond_its_prefix() {
        assert_eq!("10.1.2.3/8".parse::<Cidr>().expect("valid").to_string(), "10.0.0.0/8");
        assert_eq!("fd00::1/8".parse::<Cidr>().expect("valid").to_string(), "fd00::/8");
    }

    #[test]
    fn a_network_holds_its_addresses_in_either_form() {
        let holds = |network: &str, address: &str| {
            network.parse::<Cidr>().expect("valid").contains(address.parse().expect("an address"))
        };
        assert!(holds("10.0.0.0/8", "10.255.0.1") && holds("10.0.0.0/8", "::ffff:10.0.0.1"));
        assert!(holds("::ffff:10.0.0.0/104", "10.0.0.1") && holds("0.0.0.0/0", "1.2.3.4") && holds("::/0", "fd00::1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.1") && !holds("0.0.0.0/0", "fd00::1") && !holds("fd00::1", "fd00::2"));
    }

    #[test]
    fn shares_outside_0_to_100_and_ranges_that_run_backwards_are_refused() {
        for text in ["101%", "-1%", "30", "x%", "NaN%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
        for text in ["0", "9-8", "70000", "a"] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
        for text in ["10.0.0.0/33", "fd00::/129", "example.org", "1.2.3"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_percentage_of_a_count_rounds_up_and_never_exceeds_it() {
        let p = |t: &str| t.parse::<Percent>().expect("valid");
        assert_eq!(p("30%").of(10), 3);
        assert_eq!(p("1%").of(10), 1);
        assert_eq!(p("0%").of(10), 0);
        assert_eq!(p("100%").of(7), 7);
    }
}
