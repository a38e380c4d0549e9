//! Patterns of DNS names: `db.example.org`, `*.example.org`.

use std::fmt;
use std::str::FromStr;

use super::UnitError;

/// A DNS name in which `*` stands for any part, dots included; written without the dot at its end. Case does not count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameGlob(String);

impl NameGlob {
    /// Whether it is every name.
    pub fn is_every(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }

    /// Whether it matches a name: its labels joined by dots, without one at the end.
    pub fn matches(&self, name: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut seen) = (0, 0);
        // Where the last star stands, and what it has taken so far: only the last one ever has to take more.
        let mut star = None;
        while seen < name.len() {
            if pattern.get(at) == Some(&b'*') {
                star = Some((at, seen));
                at += 1;
            } else if pattern.get(at).is_some_and(|byte| byte.eq_ignore_ascii_case(&name[seen])) {
                (at, seen) = (at + 1, seen + 1);
            } else if let Some((place, taken)) = star {
                star = Some((place, taken + 1));
                (at, seen) = (place + 1, taken + 1);
            } else {
                return false;
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for NameGlob {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let name = text.trim();
        let name = name.strip_suffix('.').unwrap_or(name);
        let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '*');
        let labels = || name.split('.').all(|label| (1..=63).contains(&label.len()));
        if name.chars().all(of_name) && labels() && name.len() <= 253 {
            Ok(Self(name.to_owned()))
        } else {
            Err(UnitError(format!(
                "`{text}` is no pattern of a DNS name: write it like `db.example.org` or `*.example.org`, in ASCII (`xn--..`)"
            )))
        }
    }
}

impl fmt::Display for NameGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<NameGlob>().expect(pattern).matches(name.as_bytes())
    }

    #[test]
    fn a_star_stands_for_any_part_and_case_does_not_count() {
        for (pattern, name) in [
            ("db.example.org", "DB.Example.ORG"),
            ("DB.example.org.", "db.example.org"),
            ("*", "anything.at.all"),
            ("*", ""),
            ("*.example.org", "a.b.example.org"),
            ("db-*.example.org", "db-1.example.org"),
            ("*.org*", "x.org"),
            ("*a*b*", "xaaxbx"),
            ("*.b.c", "b.c.b.c"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("db.example.org", "db.example.com"),
            ("db.example.org", "xdb.example.org"),
            ("*.example.org", "example.org"),
            ("*.example.org", "a.example.org.evil"),
            ("a*b", "a"),
            ("a", ""),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_no_name_looks_like_is_refused() {
        for wrong in ["", ".", "a..b", ".a", "a b", "bücher.de", "http://a", &"a".repeat(64), &"a.".repeat(150)] {
            assert!(wrong.parse::<NameGlob>().is_err(), "{wrong}");
        }
    }
}
