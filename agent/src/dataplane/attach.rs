//! Where our programs are attached.

use std::{fmt, io, os::fd::AsFd};

use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions},
};
use nix::net::if_::if_indextoname;

use firedrill_model::change::Way;

use super::{clsact, error::DataPlaneError};
use crate::{crash_point, sys::bpf};

/// One hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// What leaves.
    Egress,
    /// What arrives.
    Ingress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        })
    }
}

impl From<Way> for Direction {
    fn from(way: Way) -> Self {
        match way {
            Way::Egress => Self::Egress,
            Way::Ingress => Self::Ingress,
        }
    }
}

impl Direction {
    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Egress => TcAttachType::Egress,
            Self::Ingress => TcAttachType::Ingress,
        }
    }
}

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// tcx links, which end with the process. Kernels from 6.6.
    Tcx,
    /// Filters of a `clsact` qdisc, which do not.
    Clsact,
}

/// What was attached, for the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A link: it ends with the descriptor.
    Tcx {
        /// Its id, to see that it is gone.
        link_id: u32,
    },
    /// A filter: it must be removed, see [`super::remove_clsact_filters`].
    Clsact {
        /// The interface had no `clsact` qdisc before.
        created_qdisc: bool,
    },
}

/// A program at a hook.
#[derive(Debug)]
pub(super) enum Hooked {
    Tcx(FdLink, u32),
    Clsact,
    /// The interface is gone, and the program with it.
    Lost,
}

/// Whether a program is where it was attached. To be called in the interface's namespace. In doubt, it is.
pub(super) fn is_attached(hooked: &Hooked, ifindex: u32, direction: Direction) -> bool {
    match hooked {
        Hooked::Tcx(_, program) => {
            // By its index: it may have been renamed.
            let Some(name) = name_of(ifindex) else { return false };
            let there = SchedClassifier::query_tcx(&name, direction.attach_type());
            there.map_or(true, |(_, programs)| programs.iter().any(|p| p.id() == *program))
        }
        Hooked::Clsact => clsact::filters(ifindex, direction)
            .map_or(name_of(ifindex).is_some(), |filters| filters.iter().any(clsact::is_ours)),
        Hooked::Lost => false,
    }
}

/// The name of the interface with an index; `None` when there is none.
fn name_of(ifindex: u32) -> Option<String> {
    // nix gives an empty name where there is none.
    let name = if_indextoname(ifindex).ok()?.to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

/// Attaches a program first in the chain. To be called in the interface's namespace.
pub(super) fn attach(
    bpf: &mut Ebpf,
    program_name: &str,
    mode: AttachMode,
    ifindex: u32,
    ifname: &str,
    direction: Direction,
) -> Result<(Hooked, Attachment), DataPlaneError> {
    let failed = |reason: String| DataPlaneError::Attach { name: ifname.into(), direction, reason };
    let program: &mut SchedClassifier = bpf
        .program_mut(program_name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| failed(format!("the eBPF object has no program {program_name}")))?;
    match mode {
        AttachMode::Tcx => {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = crash_point::around("tcx.attach", || {
                program.attach_with_options(ifname, direction.attach_type(), options)
            });
            let link = id.and_then(|id| program.take_link(id)).map_err(|error| failed(super::chain(&error)))?;
            let link = FdLink::try_from(link).map_err(|error| failed(super::chain(&error)))?;
            let info = link.info().map_err(|error| failed(super::chain(&error)))?;
            let (link_id, program_id) = (info.id(), info.program_id());
            Ok((Hooked::Tcx(link, program_id), Attachment::Tcx { link_id }))
        }
        AttachMode::Clsact => {
            let traffic_control = |what| move |source| DataPlaneError::TrafficControl { what, ifindex, source };
            let had_clsact = clsact::has_clsact(ifindex).map_err(traffic_control("listing qdiscs"))?;
            if !had_clsact {
                clsact::add_clsact(ifindex).map_err(|source| match source.raw_os_error() {
                    Some(libc::EEXIST) => {
                        failed("it has an `ingress` qdisc of another's, which excludes clsact".into())
                    }
                    _ => traffic_control("adding a clsact qdisc")(source),
                })?;
            }
            let fd = program.fd().map_err(|error| failed(super::chain(&error)))?;
            if let Err(source) = clsact::add_filter(ifindex, direction, fd.as_fd(), program_name) {
                if !had_clsact {
                    // Nothing of ours is left then; should this fail too, recovery finds it by the journal.
                    let _ = clsact::remove_if_unused(ifindex);
                }
                return Err(traffic_control("adding a filter")(source));
            }
            Ok((Hooked::Clsact, Attachment::Clsact { created_qdisc: !had_clsact }))
        }
    }
}

/// Detaches. To be called in the interface's namespace. A `clsact` qdisc goes when it is unused and `own_qdisc`.
pub(super) fn detach(
    hooked: Hooked,
    ifindex: u32,
    direction: Direction,
    own_qdisc: bool,
) -> Result<(), DataPlaneError> {
    match hooked {
        Hooked::Lost => {}
        Hooked::Tcx(link, _) => {
            crash_point::around("tcx.detach", || {
                // Closing it is not enough while anybody who lists the links of this host has it open, too.
                let open = link.info().map_err(io::Error::other).and_then(|info| bpf::link(info.id()));
                if let Err(error) = open.and_then(|open| bpf::detach_link(open.as_fd())) {
                    tracing::debug!(%error, ifindex, "a link ends with its descriptor only");
                }
                drop(link);
            });
        }
        Hooked::Clsact => {
            let failed = |what| move |source| DataPlaneError::TrafficControl { what, ifindex, source };
            clsact::remove_ours(ifindex, direction).map_err(failed("removing a filter"))?;
            if own_qdisc {
                clsact::remove_if_unused(ifindex).map_err(failed("removing the clsact qdisc"))?;
            }
        }
    }
    Ok(())
}
