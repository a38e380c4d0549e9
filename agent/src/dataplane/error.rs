//! What can go wrong in the data plane.

use std::io;

use aya::maps::MapError;

use super::Direction;
use crate::host::rights;

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// The in-kernel programs were refused.
    #[error("the kernel refused the eBPF programs: {0}; `firedrill doctor` says what is missing")]
    Load(String),
    /// This kernel runs packet programs in a way that ours are not made for.
    #[error(
        "this kernel is built for real time (PREEMPT_RT), where packet programs interrupt each other: boot another one \
         for faults on packets; `kill`, `stop` and `pause` work on it"
    )]
    RealTime,
    /// A map operation failed.
    #[error("eBPF map {map}: {reason}")]
    Map {
        /// Which map.
        map: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// Entering the namespace failed.
    #[error("cannot enter the network namespace: {0}{hint}", hint = rights::hint(.0))]
    Namespace(#[source] io::Error),
    /// The interface is not the one that was resolved.
    #[error("interface {name} no longer has index {ifindex}: it was removed or replaced; resolve the target again")]
    InterfaceChanged {
        /// Its name.
        name: String,
        /// The index that it had.
        ifindex: u32,
    },
    /// The interface has no Ethernet header.
    #[error(
        "interface {name} has no Ethernet header (hardware type {hardware}): packet faults need one; \
         name the interface below it, or a veth, bridge or loopback"
    )]
    NoEthernetHeader {
        /// Its name.
        name: String,
        /// `ARPHRD_*`.
        hardware: u16,
    },
    /// Attaching a program failed.
    #[error("cannot attach at {direction} of interface {name}: {reason}")]
    Attach {
        /// Its name.
        name: String,
        /// Which hook.
        direction: Direction,
        /// What the kernel said.
        reason: String,
    },
    /// Nothing is attached there.
    #[error("nothing is attached at {direction} of interface {ifindex}: attach it first")]
    NotAttached {
        /// Which interface.
        ifindex: u32,
        /// Which hook.
        direction: Direction,
    },
    /// A traffic-control request failed.
    #[error("{what} on interface {ifindex}: {source}{}", rights::hint(source))]
    TrafficControl {
        /// What was asked.
        what: &'static str,
        /// Which interface.
        ifindex: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The delay line could not be made.
    #[error("delay line of interface {name}: {what}: {source}{}", rights::hint(source))]
    DelayLine {
        /// The interface.
        name: String,
        /// Which step.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread of a delay line is gone.
    #[error("the thread of delay line {tap} has ended: {reason}")]
    LineEnded {
        /// The TAP.
        tap: String,
        /// Why.
        reason: String,
    },
    /// The rule cannot be expressed.
    #[error("{0}")]
    Rule(#[from] super::rule::RuleError),
    /// Everything is taken.
    #[error("all {limit} {what} of this network namespace are in use: end a fault, or spread the targets")]
    Exhausted {
        /// What.
        what: &'static str,
        /// How many there are.
        limit: u32,
    },
    /// No such rule.
    #[error("rule {0} is not in force")]
    NoSuchRule(u64),
    /// A cgroup could not be used.
    #[error("cgroup {path}: {reason}")]
    Cgroup {
        /// Its directory.
        path: String,
        /// Why.
        reason: String,
    },
    /// A process could not be used.
    #[error("process {pid}: {what}: {source}{}", rights::hint(source))]
    Process {
        /// Which.
        pid: u32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An error and what caused it, on one line: aya puts the kernel's answer into the sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

pub(crate) fn map_error(map: &'static str) -> impl Fn(MapError) -> DataPlaneError {
    move |error| DataPlaneError::Map { map, reason: chain(&error) }
}
