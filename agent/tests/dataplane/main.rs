//! The data plane on this kernel, in network namespaces that each test makes for itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arrivals;
mod child;
mod dns;
mod fidelity;
mod frames;
mod latency;
mod lifecycle;
mod loss;
mod netem;
mod reject;
mod shapes;
mod sockets;
mod spare;
mod statistics;
mod support;
