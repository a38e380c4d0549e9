//! Probes, and what their samples prove.
//!
//! [`probe`] asks the system under test on a fixed schedule and turns every answer, or its absence, into a sample.
//! [`guard`] watches the samples as they come and says when a run must end early. [`judge`] looks at a run's log and
//! says what was shown. Only `probe` touches the world; the other two are pure functions of samples and plan.

#![forbid(unsafe_code)]

pub mod guard;
pub mod judge;
pub mod probe;
mod words;
