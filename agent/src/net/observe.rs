//! What there is in the kernel of what could be ours.

#![expect(clippy::wildcard_enum_match_arm, reason = "the kernel's lists of messages and attributes are open")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use weave_proto::Cidr;

use super::desired::{Desired, Route, RouteKey};
use super::messages::{self, Indices};
use super::names::{BRIDGE, Mac, PORT_PREFIX, ROUTE_PROTOCOL, TUN, VXLAN, VXLAN_ID, VXLAN_PORT, VXLAN6};
use super::sysctl::{self, Sysctls};
use super::transport::HEADER;
use super::{NetError, Netlink, Reply};
use crate::firewall;

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every link of the node, by name.
    pub links: BTreeMap<String, ObservedLink>,
    /// IPv4 addresses on links of ours.
    pub addresses: Vec<ObservedAddress>,
    /// Our routes in the main table.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Neighbours on links of ours; the MAC address only of permanent ones.
    pub neighbours: BTreeMap<(&'static str, IpAddr), Option<Mac>>,
    /// Permanent neighbours on pods' ports: port, address and MAC.
    pub residents: BTreeSet<(String, IpAddr, Mac)>,
    /// Forwarding entries of tunnel devices of ours.
    pub tunnels: BTreeMap<(&'static str, Mac), IpAddr>,
    /// Static forwarding entries of the bridge: port and MAC.
    pub port_macs: BTreeSet<(String, Mac)>,
    /// The settings that are wanted and that exist.
    pub sysctls: BTreeMap<String, String>,
    /// Whether the kernel has IPv6.
    pub ipv6: bool,
    /// The nftables tables of ours.
    pub firewall: firewall::Observed,
}

/// A link that exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedLink {
    /// The kernel's number for it.
    pub index: u32,
    /// The kind of device, as the kernel calls it.
    pub kind: String,
    /// Its MAC address, if it has one.
    pub mac: Option<Mac>,
    /// Its largest packet.
    pub mtu: u32,
    /// Its device group.
    pub group: u32,
    /// Whether it is up.
    pub up: bool,
    /// The bridge (or other master) that it is a port of.
    pub master: Option<u32>,
    /// The attributes that matter to us.
    pub shape: Shape,
    /// Whether it is a bridge port with the flags of a pod's port.
    pub port_fits: bool,
}

/// What matters about a device of a kind that we make.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Shape {
    /// A bridge; plain means without spanning tree, VLANs and multicast snooping.
    Bridge {
        /// Whether it is plain.
        plain: bool,
        /// Whether it is not plain because of VLANs.
        filters_vlans: bool,
    },
    /// A VXLAN device.
    Vxlan {
        /// In what it differs from ours, if in anything that cannot be changed.
        difference: Option<String>,
    },
    /// A TUN device.
    Tun,
    /// Anything else.
    #[default]
    Other,
}

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedAddress {
    /// The link.
    pub link: &'static str,
    /// The address.
    pub address: IpAddr,
    /// The prefix length.
    pub prefix: u8,
    /// Whether the kernel makes no route for its range.
    pub no_prefix_route: bool,
}

impl ObservedAddress {
    /// Whether it is such as we add.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.prefix == Cidr::host(self.address).prefix() && self.no_prefix_route
    }
}

impl Observed {
    /// Whether a setting of a link could exist on this kernel.
    pub(super) fn can_have(&self, key: &str) -> bool {
        self.ipv6 || !key.starts_with("net/ipv6/")
    }

    /// The links' numbers.
    pub(super) fn indices(&self) -> Indices {
        self.links.iter().map(|(name, link)| (name.clone(), link.index)).collect()
    }
}

/// Reads everything that `desired` could differ from, except the firewall.
///
/// # Errors
/// The kernel could not be asked; the error says about what.
pub(super) fn observe(
    route: &mut Netlink,
    sysctls: &Sysctls,
    desired: &Desired,
) -> Result<Observed, NetError> {
    let mut observed = Observed { links: links(route)?, ipv6: sysctls.has_ipv6(), ..Observed::default() };
    let names: BTreeMap<u32, String> =
        observed.links.iter().map(|(name, link)| (link.index, name.clone())).collect();
    for name in [BRIDGE, VXLAN, VXLAN6, TUN] {
        let Some(link) = observed.links.get(name) else { continue };
        for reply in dump(route, "addresses", &messages::list_addresses(link.index))? {
            if let RouteNetlinkMessage::NewAddress(message) = reply {
                observed.addresses.extend(address(name, link.index, &message));
            }
        }
        if name == BRIDGE {
            observed.port_macs = port_macs(route, link.index, &names)?;
        } else if matches!(link.shape, Shape::Vxlan { .. }) {
            observed.tunnels.extend(tunnels(route, name, link.index)?);
        }
    }
    for reply in dump(route, "neighbours", &messages::list_neighbours())? {
        if let RouteNetlinkMessage::NewNeighbour(message) = reply {
            neighbour(&message, &names, &mut observed);
        }
    }
    for reply in dump(route, "routes", &messages::list_routes(true))? {
        if let RouteNetlinkMessage::NewRoute(message) = reply {
            observed.routes.extend(our_route(&message, &names));
        }
    }
    let of_all = sysctl::REVERSE_PATH_OF_ALL;
    for key in desired.sysctls.keys().map(String::as_str).chain([of_all]) {
        let value =
            sysctls.read(key).map_err(|error| NetError::Observe { what: "kernel settings", error })?;
        observed.sysctls.extend(value.map(|value| (key.to_owned(), value)));
    }
    Ok(observed)
}

/// All links, by name.
///
/// # Errors
/// The kernel could not be asked.
pub(crate) fn links(route: &mut Netlink) -> Result<BTreeMap<String, ObservedLink>, NetError> {
    let replies = dump(route, "links", &messages::list_links())?;
    Ok(replies
        .into_iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(message) => link(&message),
            _ => None,
        })
        .collect())
}

/// Asks for a list and decodes it. A message that the decoder does not understand is passed over: it is about some
/// exotic object of somebody else, and must not blind us to our own.
pub(super) fn dump(
    route: &mut Netlink,
    what: &'static str,
    request: &[u8],
) -> Result<Vec<RouteNetlinkMessage>, NetError> {
    let replies = route.dump(request).map_err(|error| NetError::Observe { what, error })?;
    Ok(replies.iter().filter_map(decode).collect())
}

/// A route message from a raw one.
pub(super) fn decode(reply: &Reply) -> Option<RouteNetlinkMessage> {
    let mut bytes = vec![0; HEADER];
    let length = u32::try_from(HEADER + reply.payload.len()).ok()?;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&reply.kind.to_ne_bytes());
    bytes.extend_from_slice(&reply.payload);
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

/// A link's name and what there is of it.
pub(super) fn link(message: &LinkMessage) -> Option<(String, ObservedLink)> {
    let mut name = None;
    let mut link = ObservedLink {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..ObservedLink::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(info) => info.iter().for_each(|info| link_info(&mut link, info)),
            _ => {}
        }
    }
    Some((name?, link))
}

fn link_info(link: &mut ObservedLink, info: &LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => {
            link.kind = kind_name(kind);
            if link.kind == "tun" {
                link.shape = Shape::Tun;
            }
        }
        LinkInfo::Data(InfoData::Bridge(list)) => {
            let filters_vlans = list.contains(&InfoBridge::VlanFiltering(true));
            link.shape = Shape::Bridge { plain: is_plain(list), filters_vlans };
        }
        LinkInfo::Data(InfoData::Vxlan(list)) => link.shape = vxlan_shape(list),
        LinkInfo::PortData(InfoPortData::BridgePort(list)) => link.port_fits = port_fits(list),
        _ => {}
    }
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(text) => text.clone(),
        _ => format!("{kind:?}").to_lowercase(),
    }
}

fn is_plain(list: &[InfoBridge]) -> bool {
    list.iter().all(|info| match info {
        InfoBridge::StpState(state) => *state == BridgeStpState::Disabled,
        InfoBridge::VlanFiltering(on)
        | InfoBridge::MulticastSnooping(on)
        | InfoBridge::MulticastQuerier(on) => !on,
        _ => true,
    })
}

/// Whether the device's socket is an IPv6 one cannot be seen (the kernel does not show an unspecified local address);
/// its name says it.
fn vxlan_shape(list: &[InfoVxlan]) -> Shape {
    let (mut difference, mut id) = (None, 0);
    for info in list {
        let found = match info {
            InfoVxlan::Id(found) => {
                id = *found;
                None
            }
            InfoVxlan::Port(port) if *port != VXLAN_PORT => Some(format!("its UDP port is {port}")),
            InfoVxlan::Learning(true) => Some("it learns from packets".to_owned()),
            InfoVxlan::UDPCsum(false) => Some("it sends no UDP checksums".to_owned()),
            InfoVxlan::CollectMetadata(true) => Some("it is an external one".to_owned()),
            InfoVxlan::Proxy(true) => Some("it answers ARP itself".to_owned()),
            InfoVxlan::Group(_) | InfoVxlan::Group6(_) => Some("it has a default destination".to_owned()),
            InfoVxlan::Link(link) if *link != 0 => Some("it is tied to a link".to_owned()),
            InfoVxlan::Local(address) if !address.is_unspecified() => {
                Some("it has a local address".to_owned())
            }
            InfoVxlan::Local6(address) if !address.is_unspecified() => {
                Some("it has a local address".to_owned())
            }
            _ => None,
        };
        difference = difference.or(found);
    }
    if id != VXLAN_ID {
        difference = Some(format!("its network identifier is {id}"));
    }
    Shape::Vxlan { difference }
}

fn port_fits(list: &[InfoBridgePort]) -> bool {
    let mut hairpin = false;
    let rest = list.iter().all(|info| match info {
        InfoBridgePort::HairpinMode(on) => {
            hairpin = *on;
            true
        }
        InfoBridgePort::Learning(on)
        | InfoBridgePort::UnicastFlood(on)
        | InfoBridgePort::MulticastFlood(on)
        | InfoBridgePort::BroadcastFlood(on)
        | InfoBridgePort::Isolated(on) => !on,
        _ => true,
    });
    hairpin && rest
}

fn address(link: &'static str, index: u32, message: &AddressMessage) -> Option<ObservedAddress> {
    let mut no_prefix_route = false;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Flags(flags) => no_prefix_route = flags.contains(AddressFlags::Noprefixroute),
            _ => {}
        }
    }
    // Kernels without strict checking ignore the filter and list all links.
    let address = local.filter(|_| message.header.index == index)?;
    Some(ObservedAddress { link, address, prefix: message.header.prefix_len, no_prefix_route })
}

/// Takes note of a neighbour if it is on a link of ours.
fn neighbour(message: &NeighbourMessage, names: &BTreeMap<u32, String>, observed: &mut Observed) {
    let (Some(address), mac) = neighbour_facts(message) else { return };
    let Some(link) = names.get(&message.header.ifindex) else { return };
    let mac = mac.filter(|_| message.header.state == NeighbourState::Permanent);
    if let Some(name) = [BRIDGE, VXLAN, VXLAN6, TUN].into_iter().find(|name| name == link) {
        observed.neighbours.insert((name, address), mac);
    } else if link.starts_with(PORT_PREFIX) {
        observed.residents.extend(mac.map(|mac| (link.clone(), address, mac)));
    }
}

fn neighbour_facts(message: &NeighbourMessage) -> (Option<IpAddr>, Option<Mac>) {
    let (mut address, mut found) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = neighbour_address(destination),
            NeighbourAttribute::LinkLayerAddress(bytes) => found = mac(bytes),
            _ => {}
        }
    }
    (address, found)
}

/// A neighbour's address; that of a tunnel's forwarding entry comes as bare bytes.
fn neighbour_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from)).ok()
        }
        _ => None,
    }
}

fn tunnels(
    route: &mut Netlink,
    link: &'static str,
    index: u32,
) -> Result<BTreeMap<(&'static str, Mac), IpAddr>, NetError> {
    let replies = dump(route, "tunnel forwarding entries", &messages::list_tunnels(index))?;
    Ok(replies
        .into_iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == index => {
                let (address, mac) = neighbour_facts(&message);
                Some(((link, mac?), address?))
            }
            _ => None,
        })
        .collect())
}

fn port_macs(
    route: &mut Netlink,
    bridge: u32,
    names: &BTreeMap<u32, String>,
) -> Result<BTreeSet<(String, Mac)>, NetError> {
    let replies = dump(route, "bridge forwarding entries", &messages::list_bridge_entries(bridge))?;
    Ok(replies
        .into_iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.state == NeighbourState::Noarp => {
                let of_bridge = message.attributes.contains(&NeighbourAttribute::Controller(bridge));
                let port = names.get(&message.header.ifindex).filter(|_| of_bridge)?;
                Some((port.clone(), neighbour_facts(&message).1?))
            }
            _ => None,
        })
        .collect())
}

pub(super) fn our_route(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<(RouteKey, Route)> {
    let ours = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
        && message.header.table == RouteHeader::RT_TABLE_MAIN;
    if !ours {
        return None;
    }
    let facts = RouteFacts::of(message, names);
    Some((RouteKey { destination: facts.destination?, metric: facts.metric }, facts.route(message)))
}

/// A route's attributes, each at most once.
#[derive(Debug, Clone, Default)]
pub(super) struct RouteFacts {
    pub(super) destination: Option<Cidr>,
    pub(super) metric: u32,
    pub(super) link: Option<String>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
    pub(super) table: u32,
}

impl RouteFacts {
    pub(super) fn of(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Self {
        let mut facts = Self { table: u32::from(message.header.table), ..Self::default() };
        let mut destination = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address),
                RouteAttribute::Gateway(address) => facts.gateway = ip(address),
                RouteAttribute::PrefSource(address) => facts.source = ip(address),
                RouteAttribute::Priority(metric) => facts.metric = *metric,
                RouteAttribute::Table(table) => facts.table = *table,
                RouteAttribute::Oif(index) => facts.link = names.get(index).cloned(),
                RouteAttribute::Metrics(metrics) => {
                    facts.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        // The default route has no destination attribute.
        let destination = destination.or_else(|| {
            (message.header.destination_prefix_length == 0).then_some(IpAddr::from([0, 0, 0, 0]))
        });
        facts.destination =
            destination.and_then(|first| Cidr::new(first, message.header.destination_prefix_length).ok());
        facts
    }

    fn route(self, message: &RouteMessage) -> Route {
        let plain = message.header.tos == 0 && message.header.source_prefix_length == 0;
        let onlink = message.header.flags.contains(RouteFlags::Onlink);
        let unicast = message.header.kind == RouteType::Unicast && plain;
        match (self.link, self.gateway, self.source) {
            (None, None, None) if message.header.kind == RouteType::Unreachable && plain => {
                Route::Unreachable
            }
            (Some(link), None, source) if unicast && message.header.scope == RouteScope::Link => {
                Route::Direct { link, source, mtu: self.mtu }
            }
            (Some(link), Some(gateway), Some(source)) if unicast && onlink => {
                Route::Via { link, gateway, source, mtu: self.mtu }
            }
            _ => Route::Other(format!("{:?} {:?}", message.header, message.attributes)),
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}
