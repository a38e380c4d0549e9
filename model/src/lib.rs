//! The domain of Firedrill: what experiments, faults, targets, events and verdicts are.
//!
//! Pure by rule: nothing here opens a file, asks the kernel or looks at a clock. What the host is like comes
//! in as a [`facts::FactsSnapshot`]; what should happen goes out as a [`change::Plan`] or as an effect of the
//! [`lifecycle`].

#![forbid(unsafe_code)]

pub mod change;
pub mod config;
pub mod event;
pub mod facts;
pub mod fault;
pub mod fight;
pub mod file;
pub mod lifecycle;
pub mod log;
pub mod lower;
pub mod peer;
pub mod pick;
pub mod protect;
pub mod ramp;
pub mod receipt;
pub mod run;
pub mod sampling;
pub mod target;
pub mod units;
pub mod verdict;
