//! The per-host agent: finds targets, applies faults, and undoes them whatever happens.
//!
//! [`agent::Agent`] is the door. Behind it one thread owns the [`engine`], which makes changes through
//! [`local`] (this host) and records them in the [`journal`]; the [`guardian`] undoes them if we die.

#![deny(unsafe_code)]

pub mod aftermath;
pub mod agent;
pub mod calls;
pub mod config;
pub mod crash_point;
pub mod dataplane;
pub mod engine;
pub mod guardian;
pub mod halt;
pub mod host;
pub mod journal;
pub mod local;
mod netlink;
pub mod owner;
pub mod proxy;
mod pulse;
pub mod recover;
pub mod snapshot;
pub mod stage;
pub mod standing;
#[allow(unsafe_code)]
pub mod sys;
mod sysctl;
pub mod target;
pub mod undo;
