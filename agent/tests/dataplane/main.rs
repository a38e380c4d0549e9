//! The data plane on this kernel, in network namespaces that each test makes for itself.

mod latency;
mod support;
