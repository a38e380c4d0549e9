//! Whole-program tests, and what they share.
//!
//! The name of a file in `tests/` says in which suite it runs: `services*` with real services, `demo*` the demo, `vm_*`
//! in a guest with an old kernel, all others on this kernel. All of them need root.

mod skip;
