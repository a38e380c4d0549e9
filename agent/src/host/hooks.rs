//! Our programs at the hooks of interfaces: that they are gone is looked at, not assumed.

use std::io;

use aya::programs::tc::{SchedClassifier, TcAttachType};
use firedrill_model::change::Way;
use firedrill_model::facts::NetnsRef;
use nix::net::if_::if_nametoindex;

use super::netns;
use crate::dataplane::{self, PROGRAM_PREFIX};

/// How many of our programs are linked to one direction of an interface (tcx, Linux 6.6 and later). None where the
/// namespace or the interface is gone.
///
/// # Errors
/// The kernel cannot be asked.
pub fn ours(namespace: &NetnsRef, index: u32, interface: &str, way: Way) -> io::Result<usize> {
    Ok(at(namespace, index, interface, || ours_here(interface, way))?.unwrap_or(0))
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

/// Whether one of our programs is at one direction of an interface, by a link or by a filter; `None` where the namespace or
/// the interface is gone.
///
/// # Errors
/// The kernel cannot be asked.
pub fn is_in_place(
    namespace: &NetnsRef,
    index: u32,
    interface: &str,
    way: Way,
    by_link: bool,
) -> io::Result<Option<bool>> {
    let count = || if by_link { ours_here(interface, way) } else { dataplane::own_filters(index, way.into()) };
    Ok(at(namespace, index, interface, count)?.map(|count| count > 0))
}

/// Asks in the namespace of an interface; `None` where one of them is gone.
fn at<T: Send>(
    namespace: &NetnsRef,
    index: u32,
    interface: &str,
    ask: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<Option<T>> {
    let is_there = || if_nametoindex(interface) == Ok(index);
    match netns::within(namespace, || if is_there() { ask().map(Some) } else { Ok(None) }) {
        Ok(answer) => answer,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
