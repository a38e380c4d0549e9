//! Where it is measured: two namespaces, a veth pair between them, and a data plane at one end.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::time::Duration;

use firedrill_agent::dataplane::{DataPlane, Direction, monotonic_ns};
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::Pair;

/// The end that has the data plane, and the other.
pub const NEAR: &str = "10.78.0.1";
pub const FAR: &str = "10.78.0.2";
/// The near interface.
pub const DEVICE: &str = "va";

pub struct World {
    pub pair: Pair,
    pub ifindex: u32,
}

impl World {
    pub fn new() -> Self {
        let pair = Pair::new();
        let ifindex = pair.a.within(|| nix::net::if_::if_nametoindex(DEVICE)).expect("the interface");
        Self { pair, ifindex }
    }

    /// A data plane that is attached nowhere.
    pub fn plane(&self) -> DataPlane {
        let netns = File::open(self.pair.a.reference().path).expect("the namespace");
        DataPlane::open(netns.as_fd()).expect("a data plane")
    }

    /// A data plane with a delay line on what leaves.
    pub fn plane_with_line(&self) -> DataPlane {
        let mut plane = self.plane();
        plane.attach_with_line(self.ifindex, DEVICE, Direction::Egress).expect("attached");
        plane
    }

    /// A socket at each end: the near one is connected to the far one.
    pub fn sockets(&self) -> (UdpSocket, UdpSocket) {
        let far = self.pair.b.within(|| UdpSocket::bind((FAR, 0))).expect("bound");
        far.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out");
        let near = self.pair.a.within(|| UdpSocket::bind((NEAR, 0))).expect("bound");
        near.connect(far.local_addr().expect("bound")).expect("connected");
        (near, far)
    }
}

/// Has a socket keep so many bytes: nothing is to be lost for want of a reader.
pub fn keep(socket: &UdpSocket, bytes: usize) {
    setsockopt(socket, sockopt::RcvBufForce, &bytes).expect("room");
}

/// A time that no measurement reaches.
pub fn later() -> u64 {
    monotonic_ns() + 600_000_000_000
}
