//! Rates and sizes: `10mbit`, `64KiB`.

use std::fmt;
use std::str::FromStr;

use super::UnitError;

/// A rate in bits a second, with powers of ten as tc(8) has them: `10mbit`, `1.5gbit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

/// A number of bytes: `1500B`, `64KiB` (1024), `64kB` (1000).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Units, the greatest first, so that a quantity prints in the greatest one that divides it.
type Units = &'static [(&'static str, u64)];

const RATES: Units =
    &[("tbit", 1_000_000_000_000), ("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];
const SIZES: Units = &[
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("B", 1),
];

/// No quantity is greater: a hundred terabits or terabytes.
const MOST: f64 = 1e14;

fn parse(text: &str, units: Units, what: &str, like: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError(format!("`{text}` is not {what}: write it like {like}"));
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim_start();
    let (_, scale) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let value = number * *scale as f64;
    if value > MOST {
        return Err(UnitError(format!("`{text}` is more than Firedrill reckons with")));
    }
    Ok(value.round() as u64)
}

fn print(value: u64, units: Units, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fits = |scale: u64| value >= scale && value.is_multiple_of(scale);
    match units.iter().find(|(_, scale)| fits(*scale)).or(units.last()) {
        Some((name, scale)) => write!(f, "{}{name}", value / scale),
        None => write!(f, "{value}"),
    }
}

impl FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, RATES, "a rate", "`10mbit`").map(Self)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, RATES, f)
    }
}

impl FromStr for Size {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, SIZES, "a size", "`64KiB`").map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(self.0, SIZES, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_sizes_print_as_they_are_written() {
        for text in ["10mbit", "1500kbit", "9bit", "0bit", "2tbit"] {
            assert_eq!(text.parse::<Rate>().expect("valid").to_string(), text);
        }
        for text in ["64KiB", "1500B", "3MB", "1MiB", "0B"] {
            assert_eq!(text.parse::<Size>().expect("valid").to_string(), text);
        }
    }

    #[test]
    fn fractions_and_either_case_are_understood_and_bare_numbers_are_not() {
        assert_eq!("1.5gbit".parse(), Ok(Rate(1_500_000_000)));
        assert_eq!("10Mbit".parse(), Ok(Rate(10_000_000)));
        assert_eq!("1 MiB".parse(), Ok(Size(1 << 20)));
        for text in ["10", "10mbps", "mbit", "-1mbit", "1e3kbit", "9999tbit", "1.2.3mbit", ""] {
            let error = text.parse::<Rate>().expect_err(text);
            assert!(!error.to_string().is_empty());
        }
        assert!("10".parse::<Size>().is_err());
    }
}
