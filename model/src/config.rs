//! What the host's administrator decides: `/etc/firedrill/config.toml`. Caps on faults, and what else is protected.
//!
//! Pure: the text comes from whoever has read the file.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::file::{Diagnostic, Place, did_you_mean};
use crate::run::RunPlan;
use crate::units::{Percent, Span};

/// Where it is unless something else is said.
pub const DEFAULT_PATH: &str = "/etc/firedrill/config.toml";

/// The configuration of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The file that it was read from; `None` when there is none and all is by default.
    pub file: Option<String>,
    /// How much may be under faults.
    pub caps: Caps,
    /// What is protected besides what always is.
    pub protect: Protect,
}

/// How much may be under faults at once, and for how long.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Caps {
    /// Targets on this host that may be under faults at once.
    pub targets: usize,
    /// Share of a component's replicas that may be under faults at once. One replica always may.
    pub replicas: Percent,
    /// The longest that one fault may last.
    pub duration: Span,
}

/// Additions to what is protected.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Protect {
    /// Names of processes, as `/proc/PID/comm` has them: at most 15 bytes.
    pub processes: Vec<String>,
    /// Full names of systemd units.
    pub units: Vec<String>,
    /// Ports of the host's own network, which faults on it let through at either end.
    pub ports: Vec<u16>,
}

impl Default for Caps {
    fn default() -> Self {
        Self { targets: 64, replicas: Percent::ALL, duration: Span::from_secs(4 * 3600) }
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    caps: Caps,
    #[serde(default)]
    protect: Protect,
}

/// One target under faults, or about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held<'a> {
    /// Its name.
    pub target: &'a str,
    /// Its component, and how many replicas that has; `None` for a target that is no replica.
    pub of: Option<(&'a str, usize)>,
}

/// A cap that does not permit what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked}, but `caps.{cap}` permits {permitted} ({origin})")]
pub struct CapError {
    /// The cap's key.
    pub cap: &'static str,
    /// Its value.
    pub permitted: String,
    /// What was asked for.
    pub asked: String,
    /// Where the cap is set.
    pub origin: String,
}

impl Config {
    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// What is wrong with it, at its place.
    pub fn parse(file: &str, text: &str) -> Result<Self, Box<Diagnostic>> {
        let Written { caps, protect } = toml::from_str(text).map_err(|e| Box::new(diagnostic(file, text, &e)))?;
        let config = Self { file: Some(file.to_owned()), caps, protect };
        match config.problem() {
            None => Ok(config),
            Some((key, message)) => {
                let line = text.lines().position(|line| line.trim_start().starts_with(key));
                let place = line.map_or_else(Place::default, |line| Place { line: line + 1, column: 1 });
                Err(Box::new(Diagnostic::new(file, text, place, message, None)))
            }
        }
    }

    /// What can be written and makes no sense: the key, and why.
    fn problem(&self) -> Option<(&'static str, String)> {
        if self.caps.targets == 0 {
            return Some(("targets", "`targets = 0` permits no fault at all; `firedrill halt` does that".into()));
        }
        if self.caps.duration.0.is_zero() {
            return Some(("duration", "a duration of 0 permits no fault at all; `firedrill halt` does that".into()));
        }
        if self.protect.ports.contains(&0) {
            return Some(("ports", "0 is no port".into()));
        }
        let long = self.protect.processes.iter().find(|name| name.len() > 15 || name.is_empty())?;
        let cut: String = long.chars().take(15).collect();
        let why = format!("no process is called `{long}`: the kernel keeps 15 bytes of a name; write `{cut}`");
        Some(("processes", if long.is_empty() { "a process has a name".into() } else { why }))
    }

    /// Where it comes from, for people.
    pub fn origin(&self) -> String {
        match &self.file {
            Some(file) => format!("set in {file}"),
            None => format!("by default; {DEFAULT_PATH} would change it"),
        }
    }

    /// Whether one more target may come under a fault of this length, beside those that are.
    ///
    /// # Errors
    /// The first cap that it would exceed.
    pub fn permits(&self, held: &[Held<'_>], asked: Held<'_>, lasts: Duration) -> Result<(), CapError> {
        let exceeded = |cap, permitted: String, asked| Err(CapError { cap, permitted, asked, origin: self.origin() });
        let Caps { targets, replicas, duration } = &self.caps;
        if lasts > duration.0 {
            return exceeded(
                "duration",
                duration.to_string(),
                format!("a fault of {} on {}", Span(lasts), asked.target),
            );
        }
        let together: HashSet<Held<'_>> = held.iter().copied().chain([asked]).collect();
        if together.len() > *targets {
            let what = format!("{} would be one of {} targets under faults at once", asked.target, together.len());
            return exceeded("targets", targets.to_string(), what);
        }
        if let Some((component, of)) = asked.of {
            let count = together.iter().filter(|h| h.of.is_some_and(|(name, _)| name == component)).count();
            if count > self.caps.most_replicas(of) {
                let what = format!(
                    "{} would be one of {count} of the {of} replicas of {component} under faults at once",
                    asked.target
                );
                return exceeded("replicas", replicas.to_string(), what);
            }
        }
        Ok(())
    }

    /// The caps that a run would exceed, each once, known before anything is looked at on the host.
    pub fn objections(&self, plan: &RunPlan) -> Vec<CapError> {
        let mut found: Vec<CapError> = Vec::new();
        for step in &plan.steps {
            // Under faults when this step begins: itself, and whatever began before and has not ended.
            let others = plan.steps.iter().filter(|o| o.at.0 < step.at.0 && step.at.0 < o.at.0 + o.lasts.0);
            let mut held: Vec<Held<'_>> = others.flat_map(|o| &o.targets).map(|t| t.held()).collect();
            for target in &step.targets {
                if let Err(error) = self.permits(&held, target.held(), step.lasts.0)
                    && !found.iter().any(|f| f.cap == error.cap)
                {
                    found.push(error);
                }
                held.push(target.held());
            }
        }
        found
    }
}

/// For people.
impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { targets, replicas, duration } = self;
        write!(f, "{targets} targets at once, {replicas} of a component's replicas at once, {duration} a fault")
    }
}

impl Caps {
    /// How many replicas of so many may be under faults at once. One always may: a cap is no ban.
    fn most_replicas(&self, of: usize) -> usize {
        // Rounded down, or a cap of 50 % would permit two of three.
        ((self.replicas.fraction() * of as f64 + 1e-9) as usize).max(1)
    }
}

/// What the parser says, at its place, with what was probably meant.
fn diagnostic(file: &str, text: &str, error: &toml::de::Error) -> Diagnostic {
    let place = error.span().map_or_else(Place::default, |span| place(text, span.start));
    let message = error.message().trim();
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    match unknown {
        Some((wrong, rest)) => {
            let known = rest.split('`').skip(1).step_by(2);
            Diagnostic::new(
                file,
                text,
                place,
                format!("there is no key `{wrong}` here"),
                Some(did_you_mean(wrong, known)),
            )
        }
        None => Diagnostic::new(file, text, place, message, None),
    }
}

fn place(text: &str, at: usize) -> Place {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place { line: before.matches('\n').count() + 1, column: before[start..].chars().count() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse("c.toml", text).map_err(|d| d.to_string())
    }

    fn config(text: &str) -> Config {
        parse(text).expect("a configuration")
    }

    fn web(target: &str, of: usize) -> Held<'_> {
        Held { target, of: Some(("web", of)) }
    }

    #[test]
    fn all_is_by_default_and_each_key_can_be_set() {
        let empty = config("");
        assert_eq!((empty.caps.clone(), empty.protect), (Caps::default(), Protect::default()));
        let text = "[caps]\ntargets = 3\nreplicas = \"50%\"\nduration = \"10m\"\n\
                    [protect]\nprocesses = [\"etcd\"]\nunits = [\"pg.service\"]\nports = [8443]\n";
        let full = config(text);
        assert_eq!(full.caps.targets, 3);
        assert_eq!(full.caps.replicas.percent(), 50.0);
        assert_eq!(full.caps.duration, Span::from_secs(600));
        assert_eq!(full.protect.processes, ["etcd"]);
        assert_eq!(full.protect.units, ["pg.service"]);
        assert_eq!(full.protect.ports, [8443]);
    }

    #[test]
    fn what_is_wrong_is_shown_at_its_place() {
        let cases = [
            ("[caps]\n  targts = 3\n", "c.toml:2:3", "did you mean `targets`?"),
            ("[cap]\n", "c.toml:1:2", "did you mean `caps`?"),
            ("[caps]\ntargets = -1\n", "c.toml:2:11", "invalid value"),
            ("[caps]\nreplicas = \"half\"\n", "c.toml:2:12", "not a percentage"),
            ("[caps]\nduration = 10\n", "c.toml:2:12", "invalid type"),
            ("[protect]\nports = [22, 70000]\n", "c.toml:2:14", "70000"),
            ("[caps\n", "c.toml:1:6", "1 | [caps"),
            ("\n[caps]\ntargets = 0\n", "c.toml:3:1", "firedrill halt"),
            ("[protect]\nprocesses = [\"a-name-of-17-chars\"]\n", "c.toml:2:1", "`a-name-of-17-ch`"),
            ("[protect]\nports = [0]\n", "c.toml:2:1", "0 is no port"),
        ];
        for (text, place, help) in cases {
            let error = parse(text).expect_err(text);
            assert!(error.contains(place) && error.contains(help), "{text}\n{error}");
        }
    }

    #[test]
    fn no_text_at_all_panics_the_parser() {
        for text in [
            "\u{0}",
            "é = 1",
            "[caps]\nduration = \"é\"",
            "[[[[",
            "caps = 1",
            "a = \"\"\"",
            "\r\r\r",
            "[caps]\n\u{1f600}=1",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_cap_says_what_was_asked_what_is_permitted_and_where_it_is_set() {
        let config = config("[caps]\ntargets = 2\nreplicas = \"50%\"\nduration = \"1m\"\n");
        let minute = Duration::from_secs(60);
        let none = |target| Held { target, of: None };
        assert_eq!(config.permits(&[], none("a"), minute), Ok(()));
        let error = config.permits(&[], none("a"), minute * 2).expect_err("too long");
        assert_eq!(error.to_string(), "a fault of 2m on a, but `caps.duration` permits 1m (set in c.toml)");
        let error = config.permits(&[none("a"), none("b")], none("c"), minute).expect_err("too many");
        assert_eq!(
            error.to_string(),
            "c would be one of 3 targets under faults at once, but `caps.targets` permits 2 (set in c.toml)"
        );
        assert_eq!(config.permits(&[none("a"), none("b")], none("b"), minute), Ok(()), "a target counts once");
        let error = config.permits(&[web("web-1", 3)], web("web-2", 3), minute).expect_err("half of three is one");
        assert!(error.to_string().contains("one of 2 of the 3 replicas of web"), "{error}");
        assert_eq!(config.permits(&[web("web-1", 4)], web("web-2", 4), minute), Ok(()));
        let other = Held { target: "db-1", of: Some(("db", 2)) };
        assert_eq!(config.permits(&[web("web-1", 2)], other, minute), Ok(()), "another component");
        let by_default = Config::default().permits(&[], none("a"), minute * 60 * 24).expect_err("a day");
        assert!(by_default.to_string().contains(DEFAULT_PATH), "{by_default}");
    }

    #[test]
    fn one_replica_always_may_and_no_more_than_the_share_ever() {
        for of in 1..=40 {
            for percent in [0.0, 1.0, 25.0, 33.4, 50.0, 66.7, 99.0, 100.0] {
                let replicas = Percent::new(percent).expect("a share");
                let most = Caps { replicas, ..Caps::default() }.most_replicas(of);
                assert!((1..=of).contains(&most), "{percent} % of {of}: {most}");
                assert!(most == 1 || most as f64 <= percent / 100.0 * of as f64 + 1e-6, "{percent} % of {of}: {most}");
            }
        }
    }
}
