//! How large a packet inside the overlay may be.
//!
//! The tunnel adds a header to each packet, and what comes out must fit the device that leads to the peer. All pods
//! have one MTU, so it is the smallest over all peers that are known; without peers, the device of the default route
//! stands for them, since that is where peers are usually found.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteAttribute;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::desired::MIN_MTU;
use super::names::{VXLAN_OVERHEAD, VXLAN_OVERHEAD6};
use super::{NetError, Netlink, messages, observe};

/// What Ethernet carries unless told otherwise.
pub const ETHERNET_MTU: u32 = 1500;
/// Addresses that stand for "somewhere far away" when there is no peer: the documentation's (RFC 5737, RFC 3849),
/// which nobody routes specially.
const FAR_AWAY: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// An underlay device, and what fits through the tunnel over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The device; none if there is no route to anywhere.
    pub device: Option<String>,
    /// The device's MTU.
    pub device_mtu: u32,
    /// The overlay's.
    pub overlay_mtu: u32,
}

/// The narrowest underlay towards `peers`; without peers, that of the default route; without one, Ethernet.
///
/// # Errors
/// The kernel could not be asked about links. An address without a route is passed over.
pub fn underlay(peers: &[IpAddr]) -> Result<Underlay, NetError> {
    let open = |error| NetError::Socket { what: "route netlink", error };
    let mut route = Netlink::open(NETLINK_ROUTE).map_err(open)?;
    let links = observe::links(&mut route)?;
    let mut towards = |address: IpAddr| {
        let address = address.to_canonical();
        let index = output_link(&mut route, address)?;
        let (name, link) = links.iter().find(|(_, link)| link.index == index)?;
        Some(over(Some(name.clone()), link.mtu, address))
    };
    let narrowest = |found: Vec<Underlay>| found.into_iter().min_by_key(|underlay| underlay.overlay_mtu);
    let to_peers = narrowest(peers.iter().filter_map(|&peer| towards(peer)).collect());
    let found = to_peers.or_else(|| FAR_AWAY.into_iter().find_map(&mut towards));
    Ok(found.unwrap_or_else(|| over(None, ETHERNET_MTU, FAR_AWAY[0])))
}

fn over(device: Option<String>, device_mtu: u32, address: IpAddr) -> Underlay {
    let overhead = if address.is_ipv4() { VXLAN_OVERHEAD } else { VXLAN_OVERHEAD6 };
    // The loopback device (tests, or a peer on the same machine) has room for more than an Ethernet frame; pods'
    // devices are no faster for it, and other nodes would be told a size that they cannot have.
    let usable = if device.as_deref() == Some("lo") { ETHERNET_MTU } else { device_mtu };
    Underlay { device, device_mtu, overlay_mtu: usable.saturating_sub(overhead).max(MIN_MTU) }
}

fn output_link(route: &mut Netlink, address: IpAddr) -> Option<u32> {
    let reply = route.get(&messages::route_to(address)).ok()?;
    let RouteNetlinkMessage::NewRoute(message) = observe::decode(&reply)? else { return None };
    message.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Oif(index) = attribute else { return None };
        Some(*index)
    })
}
