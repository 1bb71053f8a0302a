//! One step as the netlink message that performs it: a pure translation, with the help of `rtnetlink`'s builders.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoKind, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
};
use weave_proto::Cidr;

use super::desired::{Link, LinkKind, Route, RouteKey};
use super::names::{BRIDGE, Mac, PORT_GROUP, ROUTE_PROTOCOL, VXLAN_ID, VXLAN_PORT};
use super::plan::{LinkChange, Step};

/// Flags of a request that makes a new object and fails if there is one.
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Flags of a request that makes an object or replaces the one of the same key.
const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The numbers that the kernel gave to links, by name.
pub(super) type Indices = BTreeMap<String, u32>;

/// Why there is no message for a step: the link that it is about does not exist.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoSuchLink(pub(super) String);

/// The messages of a step, in order; none for steps that are not netlink's (settings, firewall).
pub(super) fn messages(step: &Step, indices: &Indices, ipv6: bool) -> Result<Vec<Vec<u8>>, NoSuchLink> {
    let index = |link: &str| indices.get(link).copied().ok_or_else(|| NoSuchLink(link.to_owned()));
    Ok(match step {
        Step::Sysctl { .. } | Step::Firewall(_) => Vec::new(),
        Step::CreateLink { name, link } => create_link(name, link),
        Step::AdjustLink { name, change } => vec![adjust_link(index(name)?, change)],
        Step::DeleteLink { name, .. } => {
            let message = LinkUnspec::new_with_index(index(name)?).build();
            vec![encode(RouteNetlinkMessage::DelLink(message), 0)]
        }
        Step::AddAddress { link, address } => {
            vec![encode(RouteNetlinkMessage::NewAddress(address_message(index(link)?, *address)), CREATE)]
        }
        Step::DeleteAddress { link, address, prefix } => {
            let mut message = address_message(index(link)?, *address);
            message.header.prefix_len = *prefix;
            vec![encode(RouteNetlinkMessage::DelAddress(message), 0)]
        }
        Step::AddRoute { key, route } => {
            vec![encode(RouteNetlinkMessage::NewRoute(route_message(*key, route, &index)?), CREATE)]
        }
        Step::ReplaceRoute { key, route, .. } => {
            vec![encode(RouteNetlinkMessage::NewRoute(route_message(*key, route, &index)?), REPLACE)]
        }
        Step::DeleteRoute { key, route } => {
            let mut message = route_builder(*key).kind(RouteType::Unspec).scope(RouteScope::NoWhere).build();
            // No other of the same destination: a pod's address may be another pod's by now.
            if let Some(link) = route.link() {
                message.attributes.push(RouteAttribute::Oif(index(link)?));
            }
            vec![encode(RouteNetlinkMessage::DelRoute(message), 0)]
        }
        Step::PutNeighbour { link, address, mac } => {
            vec![encode(
                RouteNetlinkMessage::NewNeighbour(neighbour(index(link)?, *address, Some(*mac))),
                REPLACE,
            )]
        }
        Step::DeleteNeighbour { link, address } => {
            vec![encode(RouteNetlinkMessage::DelNeighbour(neighbour(index(link)?, *address, None)), 0)]
        }
        Step::PutTunnel { link, mac, underlay } => {
            vec![encode(
                RouteNetlinkMessage::NewNeighbour(tunnel(index(link)?, *mac, Some(*underlay))),
                REPLACE,
            )]
        }
        Step::DeleteTunnel { link, mac } => {
            vec![encode(RouteNetlinkMessage::DelNeighbour(tunnel(index(link)?, *mac, None)), 0)]
        }
        Step::EnslavePort { port } => vec![enslave(index(port)?, index(BRIDGE)?, ipv6)],
        Step::SetPortFlags { port } => vec![port_flags(index(port)?)],
        Step::PutPortMac { port, mac } => {
            vec![encode(RouteNetlinkMessage::NewNeighbour(port_mac(index(port)?, *mac)), REPLACE)]
        }
        Step::DeletePortMac { port, mac } => {
            vec![encode(RouteNetlinkMessage::DelNeighbour(port_mac(index(port)?, *mac)), 0)]
        }
    })
}

/// The request for a veth pair, both ends up, without IPv6.
pub(super) fn create_veth(name: &str, peer: &str) -> [Vec<u8>; 2] {
    let message = LinkVeth::new(name, peer).up().build();
    let up = LinkUnspec::new_with_name(peer).up().build();
    [encode(RouteNetlinkMessage::NewLink(message), CREATE), encode(RouteNetlinkMessage::NewLink(up), 0)]
}

/// The request for all links, without their statistics (most of the bytes).
pub(super) fn list_links() -> Vec<u8> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    encode_list(RouteNetlinkMessage::GetLink(message))
}

/// The request for one link.
pub(super) fn link_named(name: &str) -> Vec<u8> {
    let mut message = LinkUnspec::new_with_name(name).build();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    serialize(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST)
}

/// The request for the addresses of a link.
pub(super) fn list_addresses(index: u32) -> Vec<u8> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    encode_list(RouteNetlinkMessage::GetAddress(message))
}

/// The request for routes: ours in the main table, or all of them.
pub(super) fn list_routes(ours_only: bool) -> Vec<u8> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    if ours_only {
        message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
    }
    encode_list(RouteNetlinkMessage::GetRoute(message))
}

/// The request for the route to an address.
pub(super) fn route_to(address: IpAddr) -> Vec<u8> {
    let mut message = RouteMessage::default();
    let host = Cidr::host(address);
    message.header.address_family =
        if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = host.prefix();
    message.attributes.push(RouteAttribute::Destination(address.into()));
    serialize(RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST)
}

/// The request for all neighbours: a pod's is on its own port, and asking port by port would take as many requests.
pub(super) fn list_neighbours() -> Vec<u8> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    encode_list(RouteNetlinkMessage::GetNeighbour(message))
}

/// The request for the forwarding entries of a tunnel device.
pub(super) fn list_tunnels(index: u32) -> Vec<u8> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    encode_list(RouteNetlinkMessage::GetNeighbour(message))
}

/// The request for the forwarding entries of a bridge and its ports.
pub(super) fn list_bridge_entries(index: u32) -> Vec<u8> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.attributes.push(NeighbourAttribute::Controller(index));
    encode_list(RouteNetlinkMessage::GetNeighbour(message))
}

fn encode(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    serialize(message, NLM_F_REQUEST | NLM_F_ACK | flags)
}

fn encode_list(message: RouteNetlinkMessage) -> Vec<u8> {
    serialize(message, NLM_F_REQUEST | NLM_F_DUMP)
}

fn serialize(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn create_link(name: &str, link: &Link) -> Vec<Vec<u8>> {
    let mac = link.mac.0.to_vec();
    let create = |mut message: LinkMessage| {
        message.attributes.push(LinkAttribute::Group(link.kind.group()));
        encode(RouteNetlinkMessage::NewLink(message), CREATE)
    };
    match link.kind {
        LinkKind::Bridge => {
            // A bridge's MTU follows the smallest of its ports until somebody changes it, and giving it at creation,
            // or giving the one that it has, is not changing it.
            let other = link.mtu - 1;
            let mut fixed = LinkUnspec::new_with_name(name).mtu(link.mtu).build();
            fixed.header.change_mask = LinkFlags::empty();
            vec![
                create(bridge_settings(LinkBridge::new(name)).address(mac).mtu(other).build()),
                encode(RouteNetlinkMessage::NewLink(fixed), 0),
            ]
        }
        LinkKind::Vxlan => {
            vec![create(vxlan_settings(LinkVxlan::new(name, VXLAN_ID)).address(mac).mtu(link.mtu).build())]
        }
        LinkKind::Vxlan6 => {
            // Asking for "any IPv6 address" as the local one is what makes the device's socket an IPv6 one.
            let any = std::net::Ipv6Addr::UNSPECIFIED;
            let vxlan = vxlan_settings(LinkVxlan::new(name, VXLAN_ID)).local6(any);
            vec![create(vxlan.address(mac).mtu(link.mtu).build())]
        }
        // Its reader makes it; a plan has no step for it.
        LinkKind::Tun => Vec::new(),
    }
}

/// A bridge that switches nothing: frames go from a pod to the node and from the node to a pod. No spanning tree
/// and no VLANs, since there is nothing behind a port but a pod; no multicast snooping, since the guard lets no
/// multicast in and the snooping code costs CPU and memory a group. VLAN filtering is off unless somebody turned it
/// on; kernels without it refuse even to turn it off, so it is not mentioned without need.
fn bridge_settings(bridge: LinkMessageBuilder<LinkBridge>) -> LinkMessageBuilder<LinkBridge> {
    bridge.stp_state(BridgeStpState::Disabled).mcast_snooping(false).mcast_querier(false)
}

/// A tunnel device whose every fact is written by us: nothing is learned from packets, since what can be learned
/// can be forged. Outer UDP checksums are on: with an inner packet whose checksum is still to be filled in (every
/// packet of a local TCP) the kernel computes the outer one from it almost for free, network cards and GRO at the
/// receiver merge segments only under a verified checksum, and over IPv6 a zero checksum is refused by default.
fn vxlan_settings(vxlan: LinkMessageBuilder<LinkVxlan>) -> LinkMessageBuilder<LinkVxlan> {
    vxlan.port(VXLAN_PORT).learning(false).udp_csum(true).up()
}

/// Brings what can be changed on a living link back, and sets it up.
fn adjust_link(index: u32, change: &LinkChange) -> Vec<u8> {
    let mut bridge = LinkMessageBuilder::<LinkBridge>::new_with_info_kind(InfoKind::Bridge);
    if change.bridge_settings {
        bridge = bridge_settings(bridge);
    }
    if change.filters_vlans {
        bridge = bridge.vlan_filtering(false);
    }
    let mut message = if change.bridge_settings || change.filters_vlans {
        bridge.index(index).up().build()
    } else {
        LinkUnspec::new_with_index(index).up().build()
    };
    message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    message.attributes.extend(change.group.map(LinkAttribute::Group));
    encode(RouteNetlinkMessage::NewLink(message), 0)
}

/// Makes a veth a port of the bridge, up, in the ports' group, without IPv6 of its own: a port has no addresses, and the
/// router solicitations and duplicate address detection that the kernel would send from it only wake the pod.
fn enslave(port: u32, bridge: u32, ipv6: bool) -> Vec<u8> {
    let mut message = LinkUnspec::new_with_index(port).controller(bridge).up().build();
    message.attributes.push(LinkAttribute::Group(PORT_GROUP));
    if ipv6 {
        let silent = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![silent])]));
    }
    encode(RouteNetlinkMessage::NewLink(message), 0)
}

/// A pod's port: what the pod sends may come back to it (its own Service), nothing is learned, and nothing that is
/// not addressed to the pod is sent to it. Not isolated: with `bridge-nf-call-iptables` the kernel turns a DNAT to a
/// pod of the same bridge into a bridged frame, which isolation would drop.
fn port_flags(port: u32) -> Vec<u8> {
    let message = LinkBridgePort::new(port)
        .hairpin(true)
        .learning(false)
        .flood(false)
        .mcast_flood(false)
        .bcast_flood(false)
        .isolated(false)
        .build();
    encode(RouteNetlinkMessage::NewLink(message), 0)
}

/// The node's address on a link, without a route for its range: routes are ours to write.
fn address_message(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    let host = Cidr::host(address);
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = host.prefix();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(AddressFlags::Noprefixroute),
    ];
    message
}

fn route_builder(key: RouteKey) -> RouteMessageBuilder<IpAddr> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .priority(key.metric);
    let message = builder.get_mut();
    let v4 = key.destination.first().is_ipv4();
    message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = key.destination.prefix();
    message.attributes.push(RouteAttribute::Destination(key.destination.first().into()));
    builder
}

fn route_message(
    key: RouteKey,
    route: &Route,
    index: &impl Fn(&str) -> Result<u32, NoSuchLink>,
) -> Result<RouteMessage, NoSuchLink> {
    let builder = route_builder(key);
    let mut message = match route {
        Route::Unreachable | Route::Other(_) => builder.kind(RouteType::Unreachable).build(),
        Route::Direct { link, .. } => builder.output_interface(index(link)?).scope(RouteScope::Link).build(),
        Route::Via { link, gateway, .. } => {
            let mut message = builder.output_interface(index(link)?).onlink().build();
            message.attributes.push(RouteAttribute::Gateway((*gateway).into()));
            message
        }
    };
    let (source, mtu) = match route {
        Route::Direct { source, mtu, .. } => (*source, *mtu),
        Route::Via { source, mtu, .. } => (Some(*source), *mtu),
        Route::Unreachable | Route::Other(_) => (None, None),
    };
    message.attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
    Ok(message)
}

fn neighbour(index: u32, address: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

/// A tunnel device's forwarding entry: frames for `mac` go to `underlay`.
fn tunnel(index: u32, mac: Mac, underlay: Option<IpAddr>) -> NeighbourMessage {
    let mut message = bridge_entry(index, mac);
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.extend(underlay.map(|underlay| NeighbourAttribute::Destination(underlay.into())));
    message
}

/// A bridge's forwarding entry: `mac` lives behind the port. "Noarp" is the kernel's word for static here.
fn port_mac(port: u32, mac: Mac) -> NeighbourMessage {
    let mut message = bridge_entry(port, mac);
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message
}

fn bridge_entry(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}
