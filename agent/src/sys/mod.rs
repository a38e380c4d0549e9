//! The only unsafe code of the agent.
pub mod bpf;
pub mod clock;
pub mod mmap;
pub mod sockets;
pub mod tun;
pub mod signals;
pub mod thread;
