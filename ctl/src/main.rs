//! The `firedrill` command.
#![forbid(unsafe_code)]
mod demo;
mod render;

fn main() {}
