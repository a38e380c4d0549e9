//! Links of our own namespaces: veth pairs, addresses and routes, by rtnetlink (rtnetlink(7)).

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use firedrill_model::change::VethEnd;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_nametoindex;

use super::netns_path;
use crate::{crash_point, dataplane};

/// Joins two named namespaces by a veth pair, with addresses, up, and with routes.
///
/// # Errors
/// A namespace is not there, or a name or address is taken; the pair is then gone with its namespaces.
pub fn join(a: &VethEnd, b: &VethEnd) -> io::Result<()> {
    let (first, second) = (File::open(netns_path(&a.netns))?, File::open(netns_path(&b.netns))?);
    dataplane::within(first.as_fd(), || create_pair(&a.interface, &b.interface, second.as_fd().as_raw_fd()))??;
    for (end, namespace) in [(a, &first), (b, &second)] {
        dataplane::within(namespace.as_fd(), || set_up(end))?
            .map_err(|e| io::Error::new(e.kind(), format!("{}:{}: {e}", end.netns, end.interface)))?;
    }
    Ok(())
}

/// Brings a link of the thread's namespace up.
///
/// # Errors
/// There is no such link.
pub(super) fn bring_up(name: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = if_nametoindex(name)?;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    request(RouteNetlinkMessage::SetLink(link), 0)
}

fn create_pair(name: &str, peer: &str, peer_netns: i32) -> io::Result<()> {
    let mut other = LinkMessage::default();
    other.attributes = vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(peer_netns)];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

fn set_up(end: &VethEnd) -> io::Result<()> {
    let index = if_nametoindex(end.interface.as_str())?;
    for (address, prefix) in &end.addresses {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = *prefix;
        message.header.index = index;
        // Without duplicate address detection an IPv6 address can be used at once.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![AddressAttribute::Address(*address), AddressAttribute::Local(*address)];
        request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    bring_up(&end.interface)?;
    for route in &end.routes {
        let mut message = RouteMessage::default();
        message.header.address_family = family(&route.via);
        message.header.destination_prefix_length = route.to.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        if route.to.prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(to_route(route.to.address)));
        }
        message.attributes.push(RouteAttribute::Gateway(to_route(route.via)));
        message.attributes.push(RouteAttribute::Oif(index));
        request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)?;
    }
    Ok(())
}

fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn to_route(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

/// Sends one request and waits for the kernel's answer.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut buffer = vec![0; packet.buffer_len()];
    packet.serialize(&mut buffer);
    let (answer, _) = crash_point::around("rtnetlink", || {
        socket.send(&buffer, 0)?;
        socket.recv_from_full()
    })?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(()),
            Some(_) => Err(error.to_io()),
        },
        other => Err(io::Error::other(format!("unexpected answer from rtnetlink: {other:?}"))),
    }
}
