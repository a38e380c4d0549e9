//! When datagrams arrived, by the kernel's clock: however late their receiver is, it is not part of the figure.

use std::{io::IoSliceMut, net::UdpSocket, os::fd::AsRawFd as _, time::Duration};

use nix::{
    cmsg_space,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};

/// Has the kernel keep times of arrival, and so many bytes of what nobody has read yet.
pub fn note_arrivals(at: &UdpSocket, bytes: usize) {
    setsockopt(at, sockopt::RcvBufForce, &bytes).expect("room");
    setsockopt(at, sockopt::ReceiveTimestampns, &true).expect("times of arrival");
}

/// The number at the beginning of each datagram that arrives until `most` have, or none came for a while; and when,
/// since 1970.
pub fn arrivals(at: &UdpSocket, most: usize) -> Vec<(usize, Duration)> {
    let mut arrived = Vec::with_capacity(most);
    let mut control = cmsg_space!(TimeSpec);
    while arrived.len() < most {
        let mut number = [0; 8];
        let mut parts = [IoSliceMut::new(&mut number)];
        let Ok(message) = recvmsg::<()>(at.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) else {
            break;
        };
        let time = message.cmsgs().expect("room for the time").find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
            _ => None,
        });
        arrived.push((u64::from_ne_bytes(number) as usize, time.expect("a time of arrival")));
    }
    arrived
}
