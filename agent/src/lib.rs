//! The per-host agent of Firedrill.
#![deny(unsafe_code)]
pub mod dataplane;
#[allow(unsafe_code)]
pub mod sys;
