//! Whether the universe is already in use on this node.
//!
//! A host route inside (or around) the universe means that its addresses belong to somebody else: the overlay would
//! cut the node off from them, or they would swallow the overlay's packets. So the agent refuses to start and names
//! the route. The default route, and the two halves by which VPN programs override it, cover everything and mean
//! nothing. What is on devices of ours, or carries our protocol number, is ours.

use std::collections::BTreeMap;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use netlink_sys::protocols::NETLINK_ROUTE;
use weave_proto::Cidr;

use super::names::{BRIDGE, PORT_PREFIX, ROUTE_PROTOCOL, TUN, VXLAN, VXLAN6};
use super::observe::RouteFacts;
use super::{NetError, Netlink, messages, observe};

/// The kernel's table of the node's own addresses: each is a host route, and each network that an address belongs to
/// is in the main table as well.
const LOCAL_TABLE: u32 = 255;
/// Routes this short stand for "everything": the default route and its halves.
const EVERYTHING: u8 = 1;

/// A route that shares addresses with the universe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the range {universe} overlaps the existing route {destination}{}{}: choose another range with \
     --ipalloc-range, or remove the route", device_text(.device.as_ref()), table_text(*.table)
)]
pub struct Overlap {
    /// The universe.
    pub universe: Cidr,
    /// The route's destination.
    pub destination: Cidr,
    /// The device that it leads to.
    pub device: Option<String>,
    /// The table that it is in.
    pub table: u32,
}

fn device_text(device: Option<&String>) -> String {
    device.map(|device| format!(" on device {device}")).unwrap_or_default()
}

fn table_text(table: u32) -> String {
    const MAIN: u32 = 254;
    if table == MAIN { String::new() } else { format!(" in table {table}") }
}

/// The first foreign route that overlaps `universe`, if there is one.
///
/// # Errors
/// The kernel could not be asked.
pub fn find(universe: Cidr) -> Result<Option<Overlap>, NetError> {
    let open = |error| NetError::Socket { what: "route netlink", error };
    let mut route = Netlink::open(NETLINK_ROUTE).map_err(open)?;
    let names: BTreeMap<u32, String> =
        observe::links(&mut route)?.into_iter().map(|(name, link)| (link.index, name)).collect();
    let routes = observe::dump(&mut route, "routes", &messages::list_routes(false))?;
    Ok(routes.iter().find_map(|reply| {
        let RouteNetlinkMessage::NewRoute(message) = reply else { return None };
        overlap(universe, message, &names)
    }))
}

fn overlap(universe: Cidr, message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Overlap> {
    let facts = RouteFacts::of(message, names);
    let destination = facts.destination?;
    let ours = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
        || facts.link.as_deref().is_some_and(is_ours);
    let occupies = matches!(
        message.header.kind,
        RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
    );
    let concerns = destination.prefix() > EVERYTHING && facts.table != LOCAL_TABLE && occupies;
    (concerns && !ours && destination.overlaps(universe)).then_some(Overlap {
        universe,
        destination,
        device: facts.link,
        table: facts.table,
    })
}

fn is_ours(link: &str) -> bool {
    [BRIDGE, VXLAN, VXLAN6, TUN].contains(&link) || link.starts_with(PORT_PREFIX)
}
