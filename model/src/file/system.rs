//! `kind: System`: components, their replicas, probes and dependencies.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::probe::Probe;
use crate::facts::Control;
use crate::target::{ProcessSelector, TargetSpec};

/// A system under test.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Its name; experiments refer to it
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// One line for people
    #[serde(default)]
    pub title: Option<String>,
    /// Network namespace in which probes run, unless a component or probe says otherwise
    #[serde(default)]
    pub netns: Option<String>,
    /// Its parts
    #[schemars(with = "Vec<Component>")]
    pub components: Vec<Spanned<Component>>,
}

/// A named part of a system.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its name, unique within the system
    #[schemars(with = "String")]
    pub name: Spanned<String>,
    /// Whether users meet it directly
    #[serde(default)]
    pub user_facing: bool,
    /// Components that it needs
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub depends_on: Vec<Spanned<String>>,
    /// The running copies of it, which faults act on
    #[serde(default)]
    #[schemars(with = "Vec<Replica>")]
    pub replicas: Vec<Spanned<Replica>>,
    /// Checks that tell whether it works
    #[serde(default)]
    #[schemars(with = "Vec<Probe>")]
    pub probes: Vec<Spanned<Probe>>,
    /// Network namespace in which its probes run
    #[serde(default)]
    pub netns: Option<String>,
}

/// One running copy of a component: a target with a name. Exactly one of the target keys is given.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// Its name within the component; made from the target when left out
    #[serde(default)]
    pub name: Option<String>,
    /// A cgroup v2 path below the mount point, such as shop/web-1
    #[serde(default)]
    pub cgroup: Option<String>,
    /// A systemd unit, such as nginx.service
    #[serde(default)]
    pub unit: Option<String>,
    /// A process id
    #[serde(default)]
    pub pid: Option<i32>,
    /// Processes by what they are
    #[serde(default)]
    pub process: Option<ProcessSelector>,
    /// A network namespace: a name under /run/netns, or a path
    #[serde(default)]
    pub netns: Option<String>,
    /// A network interface, of the namespace given beside it or of the host
    #[serde(default)]
    pub interface: Option<String>,
    /// The commands that stop and start it, where it is not a systemd unit
    #[serde(default)]
    pub control: Option<Control>,
}

impl Replica {
    /// The target that this replica is.
    pub fn target(&self) -> TargetSpec {
        TargetSpec {
            cgroup: self.cgroup.clone(),
            unit: self.unit.clone(),
            pid: self.pid,
            process: self.process.clone(),
            netns: self.netns.clone(),
            interface: self.interface.clone(),
        }
    }

    /// Its name, or one made from its target: the last part of a cgroup path, a unit without its suffix.
    pub fn name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        if let Some(cgroup) = &self.cgroup {
            return cgroup.rsplit('/').next().unwrap_or(cgroup).to_owned();
        }
        if let Some(unit) = &self.unit {
            return unit.trim_end_matches(".service").to_owned();
        }
        self.target().to_string().replace(' ', "-")
    }
}
