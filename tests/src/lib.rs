//! Whole-program tests, and what they share.
//!
//! The name of a file in `tests/` says in which suite it runs: `services*` with real services, `units*` with systemd in
//! a container, `demo*` the demo, `vm_*` in a guest, because they would harm a host
//! ([`needs_guest`]), all others on this kernel. All of them need root.
//!
//! [`stage`] makes namespaces, wires and processes that go away with their owner; `firedrill-stage` shows the same
//! stages to people. [`program`] runs the real `firedrill` binary.

pub mod hostile;
pub mod needs;
pub mod program;
mod skip;
pub mod stage;
pub mod systemd;
