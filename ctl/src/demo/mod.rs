//! The demo: a small shop, and six drills on it.

pub mod shop;
