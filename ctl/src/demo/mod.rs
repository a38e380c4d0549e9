//! The demo: a small shop, and the drills on it.

mod drills;
pub mod shop;
mod stage;
