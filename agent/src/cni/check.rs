//! CHECK: whether everything that ADD made is still as ADD made it.
//!
//! Three accounts must agree: the record, the runtime's copy of ADD's answer, and the kernel on both sides of the
//! link. What others added since is none of our business; what we listed and is missing or changed is an error
//! that names it. CRI-O asks right after every ADD, so that a difference must be one.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel says many things that do not matter here, and more each year"
)]

use std::net::IpAddr;
use std::sync::Arc;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use weave_proto::Cidr;
use weave_proto::addr::family_bits;
use weave_proto::local::cni::{Check, ErrorCode, Expected, PodPort, Refusal, Route, Verify, mac_to_text};

use super::netlink::{Netlink, NetlinkError};
use super::pod::{PodNetns, Seen, see};
use super::{Addresses, Cni, Facts, Ports};

/// The pod's end as the kernel has it.
struct Inside {
    link: Seen,
    addresses: Vec<Cidr>,
    routes: Vec<Route>,
    neighbours: Vec<(IpAddr, Vec<u8>)>,
}

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// Compares an attachment with what ADD made.
    ///
    /// # Errors
    /// Code 100 with the first difference found.
    pub async fn check(&self, check: &Check, pod: PodNetns) -> Result<(), Refusal> {
        let key = &check.key;
        let _lock = self.locks.lock(key).await;
        let facts = self.ports.facts().map_err(|why| Refusal::new(ErrorCode::TryAgain, why))?;
        let recorded = self.addresses.lookup(key.clone()).await?.and_then(|allocation| allocation.port);
        let port = recorded.or_else(|| self.records.get(key)?.port);
        let port =
            port.ok_or_else(|| differs(&format!("{key} has no record: it was never added, or deleted")))?;
        as_answered(&check.expected, check, &port)?;
        let (name, interface) = (port.host_interface.clone(), key.interface.clone());
        let pod = Arc::new(pod);
        let (outside, inside) = self
            .kernel(move |host| {
                Ok::<_, NetlinkError>((see(host, &name)?, inside(pod.netlink(), &interface)?))
            })
            .await
            .map_err(Refusal::from)?;
        let outside = outside
            .filter(|link| link.is_host_end_of(key))
            .ok_or_else(|| differs(&format!("link {} on the node is gone", port.host_interface)))?;
        let inside =
            inside.ok_or_else(|| differs(&format!("interface {} in the pod is gone", key.interface)))?;
        links(&outside, &inside.link, check, &port, &facts)?;
        contents(&inside, check, &port, &facts)?;
        self.ports.check(port).await.map_err(|why| differs(&why))
    }

    /// Whether an address that `weave-ipam` gave out still is.
    ///
    /// # Errors
    /// Code 100 if it is not.
    pub async fn verify(&self, verify: &Verify) -> Result<(), Refusal> {
        let key = &verify.key;
        let allocation = self.addresses.lookup(key.clone()).await?;
        let allocation =
            allocation.ok_or_else(|| differs(&format!("{key} has no address of this network")))?;
        let listed = verify.addresses.iter().any(|one| one.address == allocation.address);
        if listed || verify.addresses.is_empty() {
            return Ok(());
        }
        Err(differs(&format!("{key} was given {}, which the prevResult does not list", allocation.address)))
    }
}

/// The runtime's copy of the answer against the record.
fn as_answered(expected: &Expected, check: &Check, port: &PodPort) -> Result<(), Refusal> {
    let key = &check.key;
    let pod = expected.pod.as_ref();
    let pod = pod.ok_or_else(|| differs(&format!("the prevResult lists no {} in the pod", key.interface)))?;
    same("the MAC address in the prevResult", mac_to_text(pod.mac), mac_to_text(port.mac))?;
    let host = expected.host.iter().find(|link| link.name == port.host_interface);
    let host =
        host.ok_or_else(|| differs(&format!("the prevResult does not list {}", port.host_interface)))?;
    same("the host end's MAC address in the prevResult", mac_to_text(host.mac), mac_to_text(key.host_mac()))?;
    if expected.addresses.iter().any(|one| one.address == port.address) {
        return Ok(());
    }
    Err(differs(&format!("the prevResult does not list the address {}", port.address)))
}

fn links(outside: &Seen, inside: &Seen, check: &Check, port: &PodPort, facts: &Facts) -> Result<(), Refusal> {
    let (out, pod) = (&outside.name, format!("{} in the pod", inside.name));
    let mac = |seen: &Seen| seen.mac.map(mac_to_text).unwrap_or_default();
    same(&format!("the bridge of {out}"), outside.master.unwrap_or(0), facts.index)?;
    same(&format!("the MAC address of {out}"), mac(outside), mac_to_text(check.key.host_mac()))?;
    same(&format!("{out} is up"), outside.up, true)?;
    same(&format!("the other end of {out}"), outside.peer.unwrap_or(0), inside.index)?;
    same(&format!("the other end of {pod}"), inside.peer.unwrap_or(0), outside.index)?;
    same(&format!("the MAC address of {pod}"), mac(inside), mac_to_text(port.mac))?;
    same(&format!("{pod} is up"), inside.up, true)?;
    let answered = |listed: &[weave_proto::local::cni::Link], name: &str| {
        listed.iter().find(|link| link.name == name).and_then(|link| link.mtu)
    };
    let wanted = answered(&check.expected.host, out).unwrap_or(outside.mtu);
    same(&format!("the MTU of {out}"), outside.mtu, wanted)?;
    // Before 1.1.0 no MTU is listed; the two ends were made alike.
    let wanted = check.expected.pod.as_ref().and_then(|link| link.mtu).unwrap_or(outside.mtu);
    same(&format!("the MTU of {pod}"), inside.mtu, wanted)
}

fn contents(inside: &Inside, check: &Check, port: &PodPort, facts: &Facts) -> Result<(), Refusal> {
    let name = &inside.link.name;
    if !inside.addresses.contains(&Cidr::host(port.address)) {
        let there: Vec<_> = inside.addresses.iter().map(ToString::to_string).collect();
        let prefix = family_bits(port.address);
        return Err(differs(&format!("{name} in the pod lacks {}/{prefix}, it has {there:?}", port.address)));
    }
    let listed = check.expected.addresses.iter().find(|one| one.address == port.address);
    let Some(gateway) = listed.and_then(|one| one.gateway).or(facts.address) else { return Ok(()) };
    let ours = inside.neighbours.iter().find(|(address, _)| *address == gateway);
    let mac = ours.and_then(|(_, mac)| mac.as_slice().try_into().ok()).map(mac_to_text).unwrap_or_default();
    same(&format!("the permanent neighbour {gateway} of {name} in the pod"), mac, mac_to_text(facts.mac))?;
    let direct = Route { dst: Cidr::host(gateway), gw: None };
    // Routes of other plugins of the chain have other gateways, or none.
    let listed = check.expected.routes.iter().filter(|route| route.gw == Some(gateway));
    for route in listed.chain([&direct]) {
        if !inside.routes.contains(route) {
            let via = route.gw.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            return Err(differs(&format!("the pod lacks the route to {}{via} on {name}", route.dst)));
        }
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: T, was: T) -> Result<(), Refusal> {
    if is == was { Ok(()) } else { Err(differs(&format!("{what}: ADD made it {was:?}, it is {is:?}"))) }
}

fn differs(msg: &str) -> Refusal {
    Refusal::new(ErrorCode::Differs, msg)
}

fn inside(pod: &Netlink, interface: &str) -> Result<Option<Inside>, NetlinkError> {
    let Some(link) = see(pod, interface)? else { return Ok(None) };
    let index = link.index;
    let addresses =
        pod.dump("listing the pod's addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let routes =
        pod.dump("listing the pod's routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let neighbours = pod.dump(
        "listing the pod's neighbours",
        RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
    )?;
    Ok(Some(Inside {
        link,
        addresses: addresses.iter().filter_map(|message| address(message, index)).collect(),
        routes: routes.iter().filter_map(|message| route(message, index)).collect(),
        neighbours: neighbours.iter().filter_map(|message| neighbour(message, index)).collect(),
    }))
}

fn address(message: &RouteNetlinkMessage, index: u32) -> Option<Cidr> {
    let RouteNetlinkMessage::NewAddress(address) = message else { return None };
    if address.header.index != index {
        return None;
    }
    let found = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Cidr::new(found?, address.header.prefix_len).ok()
}

fn route(message: &RouteNetlinkMessage, index: u32) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let (mut dst, mut gw, mut device) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip_of(address),
            RouteAttribute::Gateway(address) => gw = ip_of(address),
            RouteAttribute::Oif(oif) => device = Some(*oif),
            _ => {}
        }
    }
    if device != Some(index) || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let any = match route.header.address_family {
        AddressFamily::Inet6 => IpAddr::from([0_u8; 16]),
        _ => IpAddr::from([0_u8; 4]),
    };
    let dst = Cidr::new(dst.unwrap_or(any), route.header.destination_prefix_length).ok()?;
    Some(Route { dst, gw })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn neighbour(message: &RouteNetlinkMessage, index: u32) -> Option<(IpAddr, Vec<u8>)> {
    let RouteNetlinkMessage::NewNeighbour(neighbour) = message else { return None };
    if neighbour.header.ifindex != index || neighbour.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &neighbour.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes.clone()),
            _ => {}
        }
    }
    Some((address?, mac?))
}
