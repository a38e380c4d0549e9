//! Targets as people name them. The agent resolves them to [`crate::facts::TargetFacts`].

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// What a fault acts on. Exactly one of the keys is given, but `interface` may stand beside `netns`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// A cgroup v2 path below the mount point, such as shop/web-1
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// A systemd unit, such as nginx.service
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// A process id
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Processes by what they are; all given conditions must hold
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessSelector>,
    /// A network namespace: a name under /run/netns, the path of one, or host
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// A network interface, of the namespace given beside it or of the host
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// Chooses processes. All given conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessSelector {
    /// Path of the executable, or just its file name
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Text that the command line contains
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Name or number of the user it runs as
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A TCP or UDP port that it listens on
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listens_on: Option<u16>,
}

impl TargetSpec {
    /// Whether it says exactly one thing.
    ///
    /// # Errors
    /// Says which keys are there and which combination is allowed.
    pub fn check(&self) -> Result<(), String> {
        let mut keys = Vec::new();
        let mut note = |given: bool, name: &'static str| {
            if given {
                keys.push(name);
            }
        };
        note(self.cgroup.is_some(), "cgroup");
        note(self.unit.is_some(), "unit");
        note(self.pid.is_some(), "pid");
        note(self.process.is_some(), "process");
        note(self.netns.is_some(), "netns");
        note(self.interface.is_some(), "interface");
        match keys.as_slice() {
            [] => Err("a target needs one of `cgroup`, `unit`, `pid`, `process`, `netns` or `interface`".into()),
            [_] | ["netns", "interface"] => Ok(()),
            more => Err(format!(
                "a target is one thing, but this names {}; only `netns` and `interface` go together",
                more.join(" and ")
            )),
        }?;
        if self.process.as_ref().is_some_and(|p| *p == ProcessSelector::default()) {
            return Err("`process` needs at least one of `exe`, `cmdline`, `user` or `listens_on`".into());
        }
        Ok(())
    }
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cgroup) = &self.cgroup {
            write!(f, "cgroup {cgroup}")
        } else if let Some(unit) = &self.unit {
            write!(f, "unit {unit}")
        } else if let Some(pid) = self.pid {
            write!(f, "pid {pid}")
        } else if let Some(p) = &self.process {
            let mut parts = Vec::new();
            parts.extend(p.exe.as_ref().map(|e| format!("exe {e}")));
            parts.extend(p.cmdline.as_ref().map(|c| format!("cmdline {c}")));
            parts.extend(p.user.as_ref().map(|u| format!("user {u}")));
            parts.extend(p.listens_on.map(|l| format!("listening on {l}")));
            write!(f, "process {}", parts.join(", "))
        } else {
            match (&self.netns, &self.interface) {
                (Some(netns), Some(interface)) => write!(f, "interface {interface} of netns {netns}"),
                (Some(netns), None) => write!(f, "netns {netns}"),
                (None, Some(interface)) => write!(f, "interface {interface}"),
                (None, None) => f.write_str("nothing"),
            }
        }
    }
}

/// The target of a step: a name defined elsewhere in the files, or a target spelled out.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(untagged)]
pub enum StepTarget {
    /// A pick, a component, or `component/replica`
    Named(String),
    /// A target spelled out
    Spec(TargetSpec),
}

// By hand, because serde's `untagged` loses the place of an error.
impl<'de> Deserialize<'de> for StepTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = StepTarget;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a pick, component or replica, or a target such as `{unit: nginx.service}`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<StepTarget, E> {
                Ok(StepTarget::Named(name.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StepTarget, A::Error> {
                TargetSpec::deserialize(MapAccessDeserializer::new(map)).map(StepTarget::Spec)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
