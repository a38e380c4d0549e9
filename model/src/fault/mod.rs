//! The faults. One file each: parameters, checks, the plan, and how its receipt is read.
//!
//! To add one: write its file, add its line to the table below, and an example to `experiments/faults/`.
//! The command line, the schema, the plan and the reports know of it from then on.

mod bandwidth;
mod calls;
mod connect_fail;
mod corrupt;
mod dns;
mod duplicate;
mod kill;
mod latency;
mod loss;
mod network;
mod partition;
mod pause;
mod peers;
mod port_exhaustion;
mod ramps;
mod reorder;
mod reset;
mod stop;
mod tcp;

use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::change::Plan;
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, Receipt, ReceiptLine};

/// One kind of disturbance. Implemented by the parameters of each fault.
pub trait FaultKind {
    /// Problems that lie in the parameters alone, such as a jitter greater than the delay.
    ///
    /// # Errors
    /// Says what is wrong and how to mend it.
    fn check(&self) -> Result<(), String>;

    /// The parameters in a few words: `50ms ± 5ms, egress`.
    fn describe(&self) -> String;

    /// The other sides that it is about. The names among them are looked up before it is planned.
    fn peers(&self) -> &[Peer] {
        &[]
    }

    /// The changes that put this fault on the target. Pure: everything it may know is in `facts`.
    ///
    /// # Errors
    /// When this target cannot have this fault; the text says why and what would work.
    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError>;

    /// Reads the measurements of the planned changes (in the plan's order; `None` for those that measure
    /// nothing): did it work, and what was applied?
    fn read(&self, measured: &[Measured]) -> Reading;
}

/// What the measurements say.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Whether the fault worked.
    pub effect: Effect,
    /// One sentence.
    pub says: String,
    /// Requested against applied.
    pub lines: Vec<ReceiptLine>,
}

/// Why a fault cannot be put on a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault} cannot act on {target}: {why}")]
pub struct PlanError {
    /// The fault.
    pub fault: &'static str,
    /// The target.
    pub target: String,
    /// The reason, and what would work instead.
    pub why: String,
}

impl PlanError {
    fn new(fault: &'static str, facts: &FactsSnapshot, why: impl Into<String>) -> Self {
        Self { fault, target: facts.target.name.clone(), why: why.into() }
    }
}

/// Makes the [`Fault`] enum and its dispatch from the table of faults.
macro_rules! faults {
    ($( $(#[doc = $summary:literal])+ $name:literal => $variant:ident($params:ty), )+) => {
        /// A fault with its parameters, as experiment files write it: `{latency: {delay: 100ms}}`.
        #[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
        pub enum Fault {
            $( $(#[doc = $summary])+ #[serde(rename = $name)] $variant($params), )+
        }

        /// Names and summaries of all faults, in the order in which help shows them.
        pub const TABLE: &[(&str, &str)] = &[$( ($name, concat!($($summary),+)) ),+];

        impl Fault {
            /// The fault's name.
            pub fn name(&self) -> &'static str {
                match self { $( Self::$variant(_) => $name, )+ }
            }

            fn kind(&self) -> &dyn FaultKind {
                match self { $( Self::$variant(params) => params, )+ }
            }

            /// Reads the parameters of the fault `name`.
            fn parameters<'de, A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error> {
                match name {
                    $( $name => map.next_value().map(Self::$variant), )+
                    other => {
                        const NAMES: &[&str] = &[$( $name ),+];
                        // The value is read so that the parser knows where this is.
                        let _: IgnoredAny = map.next_value()?;
                        Err(de::Error::unknown_variant(other, NAMES))
                    }
                }
            }

            /// The JSON Schema of a fault's parameters; `None` when there is no such fault.
            pub fn schema(name: &str) -> Option<schemars::Schema> {
                match name { $( $name => Some(schemars::schema_for!($params)), )+ _ => None }
            }
        }
    };
}

faults! {
    /// Hold packets back for a while
    "latency" => Latency(latency::Latency),
    /// Drop a share of the packets, silently
    "loss" => Loss(loss::Loss),
    /// Have packets arrive twice
    "duplicate" => Duplicate(duplicate::Duplicate),
    /// Flip bits in packets
    "corrupt" => Corrupt(corrupt::Corrupt),
    /// Put packets behind those that follow them
    "reorder" => Reorder(reorder::Reorder),
    /// Let packets pass no faster than at a rate
    "bandwidth" => Bandwidth(bandwidth::Bandwidth),
    /// Cut the network to and from peers
    "partition" => Partition(partition::Partition),
    /// Answer the target's DNS queries for certain names wrongly, late or not at all
    "dns" => Dns(dns::Dns),
    /// Destroy established TCP connections
    "reset" => Reset(reset::Reset),
    /// Have connections fail with an error
    "connect_fail" => ConnectFail(connect_fail::ConnectFail),
    /// Have the target find no free local port
    "port_exhaustion" => PortExhaustion(port_exhaustion::PortExhaustion),
    /// Carry TCP connections by a proxy that delays, slows or closes them
    "tcp" => Tcp(tcp::Tcp),
    /// End processes by a signal
    "kill" => Kill(kill::Kill),
    /// Stop a unit or replica, and start it again at the end
    "stop" => Stop(stop::Stop),
    /// Freeze processes, and thaw them at the end
    "pause" => Pause(pause::Pause),
}

// By hand, because the derived one answers `- stop` and two faults in one item with the parser's own words, at the
// place of whatever comes next.
impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneKey;
        impl<'de> Visitor<'de> for OneKey {
            type Value = Fault;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a fault with its parameters, such as `{latency: {delay: 100ms}}`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Fault, E> {
                Err(E::custom(format!(
                    "a fault needs its parameters, even when there are none: write `{{{name}: {{}}}}`"
                )))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fault, A::Error> {
                let name: String = map.next_key()?.ok_or_else(|| de::Error::custom("there is no fault in here"))?;
                let fault = Fault::parameters(&name, &mut map)?;
                match map.next_key::<String>()? {
                    None => Ok(fault),
                    Some(second) => {
                        let _: IgnoredAny = map.next_value()?;
                        Err(de::Error::custom(format!(
                            "`{name}` and `{second}` stand in one item: write `[{{{name}: ..}}, {{{second}: ..}}]`"
                        )))
                    }
                }
            }
        }
        deserializer.deserialize_any(OneKey)
    }
}

impl Fault {
    /// See [`FaultKind::check`].
    ///
    /// # Errors
    /// Says what is wrong and how to mend it.
    pub fn check(&self) -> Result<(), String> {
        self.kind().check()
    }

    /// See [`FaultKind::describe`].
    pub fn describe(&self) -> String {
        self.kind().describe()
    }

    /// See [`FaultKind::peers`].
    pub fn peers(&self) -> &[Peer] {
        self.kind().peers()
    }

    /// See [`FaultKind::plan`].
    ///
    /// # Errors
    /// When this target cannot have this fault.
    pub fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let mut plan = self.kind().plan(facts)?;
        for thing in &facts.target.lifted {
            plan.notes
                .push(format!("`{thing}` is not protected from this fault: it is allowed on {}", facts.target.name));
        }
        Ok(plan)
    }

    /// The receipt of this fault on `target`, from what its changes measured.
    pub fn receipt(&self, target: &str, measured: Vec<Measured>) -> Receipt {
        let Reading { effect, says, lines } = network::unless_removed(self.kind().read(&measured), &measured);
        Receipt { fault: self.name().into(), target: target.into(), effect, says, lines, measured }
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
