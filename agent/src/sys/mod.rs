//! The only unsafe code of the agent.
pub mod bpf;
pub mod child;
pub mod clock;
pub mod descriptor;
pub mod memory;
pub mod mmap;
pub mod signals;
pub mod sockets;
pub mod thread;
pub mod tun;
