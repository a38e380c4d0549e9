//! Our programs at the hooks of interfaces: that they are gone is looked at, not assumed.

use std::io;

use aya::programs::tc::{SchedClassifier, TcAttachType};
use firedrill_model::change::Way;
use firedrill_model::facts::NetnsRef;
use nix::net::if_::if_nametoindex;

use super::netns;
use crate::dataplane::PROGRAM_PREFIX;

/// How many of our programs are linked to one direction of an interface (tcx, Linux 6.6 and later). None where the
/// namespace or the interface is gone.
///
/// # Errors
/// The kernel cannot be asked.
pub fn ours(namespace: &NetnsRef, index: u32, interface: &str, way: Way) -> io::Result<usize> {
    let asked = netns::within(namespace, || {
        if if_nametoindex(interface) == Ok(index) { ours_here(interface, way) } else { Ok(0) }
    });
    match asked {
        Ok(answer) => answer,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

/// The same in the calling thread's network namespace.
///
/// # Errors
/// There is no such interface, or the kernel cannot be asked.
pub fn ours_here(interface: &str, way: Way) -> io::Result<usize> {
    let hook = match way {
        Way::Egress => TcAttachType::Egress,
        Way::Ingress => TcAttachType::Ingress,
    };
    let (_, programs) = SchedClassifier::query_tcx(interface, hook).map_err(io::Error::other)?;
    Ok(programs.iter().filter(|p| p.name_as_str().is_some_and(|name| name.starts_with(PROGRAM_PREFIX))).count())
}
