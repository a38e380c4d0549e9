//! The files that users write: YAML, one `kind` a document, several documents a file.
//!
//! Parsing keeps places, so that every later complaint can point at a line and a column.

mod diagnostic;
mod document;
mod experiment;
mod explain;
mod gameday;
mod probe;
mod suggest;
mod system;

pub use diagnostic::{Diagnostic, Place};
pub use document::{Document, KINDS, parse, schema};
pub use experiment::{AbortRule, Baseline, Expect, Experiment, Pick, Step};
pub use gameday::{GameDay, GameDayStep, OnFinding};
pub use probe::{Check, DnsCheck, ExecCheck, HttpCheck, Method, Probe, Steady, TcpCheck, Tls};
pub use serde_saphyr::Spanned;
pub use suggest::{closest, did_you_mean};
pub use system::{Component, Replica, System};
