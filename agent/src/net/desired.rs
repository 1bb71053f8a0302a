//! The complete kernel state that a [`NodeState`] asks for.
//!
//! Objects are keyed as the kernel keys them (an address by link, a route by destination and metric, a neighbour by
//! link and address), so that two of a key cannot be asked for and a difference is always "missing", "other" or
//! "too much".
//!
//! ```text
//!                                 route   universe            unreachable, last metric
//!   pod A ── vethwe…A ─┐          route   own range           dev weave        src own
//!                      ├─ weave   route   a peer's range      dev weave-vx     src own  via peer, onlink
//!   pod B ── vethwe…B ─┘          route   or, where sealed    dev weave-tun    src own
//!                                 neigh   peer     -> MAC of peer      on weave-vx
//!                                 fdb     MAC of peer -> underlay      on weave-vx, and another one for probes
//!                                 route   a pod               dev vethwe…      src own
//!                                 neigh   pod      -> MAC of pod       on vethwe… and on weave
//!                                 fdb     MAC of pod -> its port       on weave
//! ```
//! What is for a pod goes to its port without passing the bridge, which would only look up the same port again (docs/adr
//! 11). What a pod sends goes through the bridge, where the guard stands. Should a pod's route be deleted, the one for
//! the node's own range leads to the bridge, which knows the way until the route is back.
//!
//! A guest is a pod whose address another IPAM plugin gave, from outside the universe. This node reaches it, and it
//! reaches everything as a client (other nodes see this node's address); other nodes know nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weave_proto::Cidr;
use weave_proto::local::cni::PodPort;

use super::names::{
    BRIDGE, BRIDGE_GROUP, Mac, PORT_PREFIX, TUN, TUNNEL_GROUP, UNREACHABLE_METRIC, VXLAN, VXLAN6, probe_mac,
};
use super::{NetError, NodeState, PeerPath, SealedPath, sysctl};
use crate::firewall;

/// Smallest packet size that every IPv4 link carries whole (RFC 791): an overlay below it would be refused by the
/// kernel's own stack.
pub const MIN_MTU: u32 = 576;
/// Largest packet that an IP header can describe.
pub const MAX_MTU: u32 = 65_535;
/// Longest interface name (IFNAMSIZ less its terminator).
const MAX_NAME: usize = 15;

/// The complete state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Links, by name.
    pub links: BTreeMap<&'static str, Link>,
    /// The node's own address on each link that carries it.
    pub addresses: BTreeSet<(&'static str, IpAddr)>,
    /// Which addresses on our links are ours to remove.
    pub universe: Cidr,
    /// Routes of the main table.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Permanent neighbours, by link and address.
    pub neighbours: BTreeMap<(&'static str, IpAddr), Mac>,
    /// Where the tunnel devices send frames for a MAC address.
    pub tunnels: BTreeMap<(&'static str, Mac), IpAddr>,
    /// The pods' ports, by name: who lives behind each.
    pub ports: BTreeMap<String, Resident>,
    /// Kernel settings, by their path under `/proc/sys`.
    pub sysctls: BTreeMap<String, sysctl::Wanted>,
    /// The nftables tables.
    pub firewall: firewall::Desired,
    /// Peers and pods that the state lists and that cannot be had, each with the reason.
    pub left_out: Vec<String>,
}

/// Who lives behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// The pod's MAC address.
    pub mac: Mac,
    /// The pod's address.
    pub address: IpAddr,
}

impl Resident {
    /// Who lives behind a pod's port.
    #[must_use]
    pub const fn of(pod: &PodPort) -> Self {
        Self { mac: Mac(pod.mac), address: pod.address }
    }
}

/// A link of ours. What is not listed is fixed (see [`super::messages`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What kind of device.
    pub kind: LinkKind,
    /// Its MAC address: the peer's name.
    pub mac: Mac,
    /// The largest packet.
    pub mtu: u32,
}

/// What kind of device a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A VXLAN device over IPv4.
    Vxlan,
    /// A VXLAN device over IPv6.
    Vxlan6,
    /// A TUN device. It has no MAC address, and is not made here.
    Tun,
}

impl LinkKind {
    /// The device group, by which the firewall knows it.
    #[must_use]
    pub const fn group(self) -> u32 {
        match self {
            Self::Bridge => BRIDGE_GROUP,
            Self::Vxlan | Self::Vxlan6 => TUNNEL_GROUP,
            // None: what comes out of it has no MAC address to ask for, and its reader has asked for the source.
            Self::Tun => 0,
        }
    }
}

/// What tells routes of one table apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// The destination.
    pub destination: Cidr,
    /// The metric.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Nowhere, with an ICMP error.
    Unreachable,
    /// To a link on which the destination lives.
    Direct {
        /// The link.
        link: String,
        /// The source address of what the node itself sends, if it is to be a particular one.
        source: Option<IpAddr>,
        /// The largest packet, if it is smaller than the link's.
        mtu: Option<u32>,
    },
    /// To a gateway on a link, which need not be in a range of the link.
    Via {
        /// The link.
        link: String,
        /// The gateway.
        gateway: IpAddr,
        /// The source address of what the node itself sends.
        source: IpAddr,
        /// The largest packet, if it is smaller than the link's.
        mtu: Option<u32>,
    },
    /// Something that we never ask for, as text.
    Other(String),
}

/// The complete state for `state`.
///
/// # Errors
/// The state contradicts itself; the message says how.
pub fn desired(state: &NodeState) -> Result<Desired, NetError> {
    check(state)?;
    let (state, left_out) = usable(state);
    let state = &state;
    let links = links(state);
    let addresses =
        state.address.iter().flat_map(|&address| links.keys().map(move |&link| (link, address))).collect();
    let mut neighbours = BTreeMap::new();
    let mut tunnels = BTreeMap::new();
    for path in state.peers.iter().chain(&state.probed) {
        let (link, mac) = (device(path), Mac(path.peer.mac()));
        neighbours.insert((link, path.overlay), mac);
        tunnels.insert((link, mac), path.underlay);
        tunnels.insert((link, probe_mac(path.peer)), path.underlay);
    }
    let mut ports = BTreeMap::new();
    for pod in &state.pods {
        neighbours.insert((BRIDGE, pod.address), Mac(pod.mac));
        ports.insert(pod.host_interface.clone(), Resident::of(pod));
    }
    let sysctls = sysctl::wanted(links.keys().copied());
    let routes = routes(state);
    let firewall = firewall::desired(state);
    let universe = state.universe;
    Ok(Desired {
        links,
        addresses,
        universe,
        routes,
        neighbours,
        tunnels,
        ports,
        sysctls,
        firewall,
        left_out,
    })
}

/// The state without what cannot be had, and why not.
fn usable(state: &NodeState) -> (NodeState, Vec<String>) {
    let mut usable = state.clone();
    let mut left_out = Vec::new();
    usable.peers.retain(|path| keep(unusable_path(state, path), &mut left_out));
    usable.probed.retain(|path| unusable_path(state, path).is_none());
    usable.sealed.retain(|path| keep(unusable_ranges(state, path), &mut left_out));
    usable.pods.retain(|pod| keep(unusable_pod(state.universe, pod), &mut left_out));
    (usable, left_out)
}

fn keep(reason_against: Option<String>, left_out: &mut Vec<String>) -> bool {
    let keep = reason_against.is_none();
    left_out.extend(reason_against);
    keep
}

/// The tunnel device towards a peer.
#[must_use]
pub fn device(path: &PeerPath) -> &'static str {
    if path.underlay.is_ipv4() { VXLAN } else { VXLAN6 }
}

fn links(state: &NodeState) -> BTreeMap<&'static str, Link> {
    let link = |kind| Link { kind, mac: Mac(state.name.mac()), mtu: state.mtu };
    let mut links = BTreeMap::from([(BRIDGE, link(LinkKind::Bridge)), (VXLAN, link(LinkKind::Vxlan))]);
    if state.peers.iter().chain(&state.probed).any(|path| path.underlay.is_ipv6()) {
        links.insert(VXLAN6, link(LinkKind::Vxlan6));
    }
    if state.has_tun {
        links.insert(TUN, Link { mac: Mac([0; 6]), ..link(LinkKind::Tun) });
    }
    links
}

fn routes(state: &NodeState) -> BTreeMap<RouteKey, Route> {
    let key = |destination| RouteKey { destination, metric: 0 };
    let mut routes = BTreeMap::new();
    if let Some(source) = state.address {
        for path in &state.peers {
            for &range in &path.ranges {
                let (link, mtu) = (device(path).to_owned(), lesser(path.mtu, state));
                routes.insert(key(range), Route::Via { link, gateway: path.overlay, source, mtu });
            }
        }
        for path in &state.sealed {
            for &range in &path.ranges {
                let (link, mtu) = (TUN.to_owned(), lesser(path.mtu, state));
                routes.insert(key(range), Route::Direct { link, source: Some(source), mtu });
            }
        }
        for &range in &state.own {
            let link = BRIDGE.to_owned();
            routes.insert(key(range), Route::Direct { link, source: Some(source), mtu: None });
        }
    }
    for pod in &state.pods {
        routes.insert(key(Cidr::host(pod.address)), to_pod(&pod.host_interface, state.address));
    }
    routes.insert(RouteKey { destination: state.universe, metric: UNREACHABLE_METRIC }, Route::Unreachable);
    routes
}

/// The route to the pod behind a port. `source` is the node's own address.
pub(super) fn to_pod(port: &str, source: Option<IpAddr>) -> Route {
    Route::Direct { link: port.to_owned(), source, mtu: None }
}

/// A path's MTU, if it says more than the devices do.
fn lesser(mtu: Option<u32>, state: &NodeState) -> Option<u32> {
    mtu.filter(|&mtu| mtu < state.mtu).map(|mtu| mtu.max(MIN_MTU))
}

/// Whether the node's own part of the state makes sense.
fn check(state: &NodeState) -> Result<(), NetError> {
    let bad = |text: String| Err(NetError::BadState(text));
    let universe = state.universe;
    if universe.first().is_ipv6() {
        return bad(format!("the range {universe} is IPv6, and only IPv4 overlays are carried"));
    }
    if !(MIN_MTU..=MAX_MTU).contains(&state.mtu) {
        return bad(format!("an MTU of {} is not between {MIN_MTU} and {MAX_MTU}", state.mtu));
    }
    if let Some(address) = state.address.filter(|&address| !universe.contains(address)) {
        return bad(format!("this node's address {address} is not in the range {universe}"));
    }
    match state.own.iter().find(|&&range| !within(universe, range)) {
        Some(range) => bad(format!("this node's range {range} is not part of the range {universe}")),
        None => Ok(()),
    }
}

/// Why a peer's path cannot be used. Others told us these facts, so one bad peer must not stop the rest.
fn unusable_path(state: &NodeState, path: &PeerPath) -> Option<String> {
    let PeerPath { peer, underlay, overlay, ranges, .. } = path;
    let universe = state.universe;
    if *peer == state.name {
        Some(format!("the peer at {underlay} has this node's own name {peer}"))
    } else if !universe.contains(*overlay) || Some(*overlay) == state.address {
        Some(format!("peer {peer} says that its overlay address is {overlay}"))
    } else if underlay.is_unspecified() || underlay.is_multicast() || universe.contains(*underlay) {
        Some(format!("peer {peer} cannot be reached at {underlay}"))
    } else {
        foreign_range(universe, *peer, ranges)
    }
}

/// Why a sealed path cannot be used.
fn unusable_ranges(state: &NodeState, path: &SealedPath) -> Option<String> {
    let SealedPath { peer, overlay, ranges, .. } = path;
    if !state.has_tun {
        Some(format!("peer {peer} is to be reached through {TUN}, which cannot be had"))
    } else if !state.universe.contains(*overlay) || Some(*overlay) == state.address {
        Some(format!("peer {peer} says that its overlay address is {overlay}"))
    } else {
        foreign_range(state.universe, *peer, ranges)
    }
}

fn foreign_range(universe: Cidr, peer: weave_proto::PeerName, ranges: &[Cidr]) -> Option<String> {
    let range = ranges.iter().find(|&&range| !within(universe, range))?;
    Some(format!("peer {peer} says that it owns {range}, which is not part of {universe}"))
}

/// Why a pod cannot be attached.
pub(super) fn unusable_pod(universe: Cidr, pod: &PodPort) -> Option<String> {
    if is_guest(universe, pod) && !is_host_address(pod.address) {
        return Some(format!(
            "the pod at {} was given {}, which cannot be one machine's IPv4 address: correct the range of the IPAM \
             plugin that gave it",
            pod.host_interface, pod.address
        ));
    }
    check_port_name(&pod.host_interface).err().map(|error| error.to_string())
}

/// Whether a pod's address is another IPAM plugin's, from outside the universe.
pub(super) fn is_guest(universe: Cidr, pod: &PodPort) -> bool {
    !universe.contains(pod.address)
}

/// Whether an address can be that of one machine on a link: IPv4, and neither a group's nor the machine's own.
fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_multicast() || v4.is_loopback() || v4.is_broadcast())
        }
        IpAddr::V6(_) => false,
    }
}

fn within(universe: Cidr, range: Cidr) -> bool {
    universe.contains(range.first()) && universe.contains(range.last())
}

/// Whether `name` may be the host's end of a pod: the guard knows pod ports by the beginning of their name.
///
/// # Errors
/// It may not.
pub(super) fn check_port_name(name: &str) -> Result<(), NetError> {
    let printable =
        name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'"' | b'\\'));
    if name.starts_with(PORT_PREFIX) && name.len() > PORT_PREFIX.len() && name.len() <= MAX_NAME && printable
    {
        Ok(())
    } else {
        Err(NetError::BadState(format!(
            "{name:?} is no name for a pod's host interface: it must start with {PORT_PREFIX} and be at most {MAX_NAME} \
             letters long"
        )))
    }
}

#[cfg(test)]
mod tests;
