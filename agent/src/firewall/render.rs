//! From facts to the text of the tables. Same facts, same text, in stable order.
//!
//! # The guard (table `bridge weave`)
//!
//! A pod's frame is let in if it is for the bridge's own MAC address and comes from the pod's own MAC and IP address
//! (one look-up of port, whole header and address in one set), or if it is an ARP message to the bridge or to all, whose
//! sender is the pod in all three places where a sender stands. Everything else from a pod's port is dropped and counted by
//! what was wrong with it; the questions that tell the kinds apart are asked only on the way to the drop. IPv6 frames
//! are dropped, for the overlay hands out no IPv6 addresses: a pod's link-local address is its own invention, which
//! would let it speak to neighbours past every policy. A frame with a VLAN tag is none of the above (its type is the
//! tag's) and is dropped too.
//!
//! The hook is the bridge's `prerouting` before br_netfilter (priority 0), because that hands frames to the IP hooks,
//! where a forged packet must not arrive. Ingress of each `netdev` would be earlier by a few instructions, but it
//! needs a chain (or a changed device list) a pod, a transaction on the whole table for each ADD.
//!
//! Frames from a port that is no pod's (somebody put a device into our bridge) reach nobody: not the node (dropped by
//! the bridge's MAC, and, should they be broadcast, in `inet` where packets from the bridge must be unicast), not a
//! pod (the bridge's `forward` hook). The bridge's name cannot be asked for in this family on every kernel, so what
//! tells our bridge from others is the MAC address (no other device has it) and the names of the ports.
//!
//! # What is routed (table `inet weave`)
//!
//! - VXLAN packets are taken from peers only, before connection tracking: a stranger can neither inject packets nor
//!   fill the table. They are not tracked at all: each inner flow has its own outer source port, so tracking them
//!   would double the entries and the lookups of every flow, for packets that are never translated.
//! - A pod sends no datagram to the VXLAN port of anything outside the universe: behind the node's address it would be
//!   a peer's packet to the other node, with whatever inner source the pod likes among those of this node.
//! - What comes out of the tunnel must have a source address that the sending peer (by its MAC address) owns, and what
//!   comes from outside none of the universe: whoever shares the underlay could speak as any pod otherwise.
//! - A packet for the universe leaves by a device of the overlay or not at all. This is asked in `postrouting`,
//!   which forwarded and local packets both pass, rather than in `forward` and `output`: a local packet to a Service
//!   is translated in `output` and only then routed anew, while rules of `output` still see the first route's device.
//! - Every packet of the machine passes these chains, those of the overlay several times on its way. What costs is
//!   less what a rule asks than where it lies: each chain that a packet is sent to is memory that must be fetched. So
//!   the common cases are whole rules in the first chain that end there, and devices are known by their group, one
//!   number. What no such rule has accepted is asked everything again, slowly; the names follow as a second question
//!   after the groups, for the moment in which somebody has changed a device's group: then it costs a little more, and
//!   nothing is let through.
//! - Source addresses: what enters the tunnel from outside the universe gets the node's overlay address, which the
//!   peers route back through the tunnel. A fixed address, decided before kube-proxy's MASQUERADE (priority 100):
//!   masquerading would choose the underlay's address where the route changed after the choice of the source, and
//!   the kernel kills masqueraded connections when their output device changes, which a change of tunnel is.
//!   For the same reason packets that kube-proxy marked for masquerading are given the fixed address here.
//!   The same holds towards the node's own pods: their ports have no address that MASQUERADE could choose.
//! - A pod's packet comes by the bridge, where the guard stands: from a port itself (taken off the bridge) none is taken.
//! - What leaves the universe (or a pod whose address another plugin gave) for the outside is masqueraded, behind
//!   priority 100, so that whatever the administrator or a plugin decides about such packets wins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use weave_proto::Cidr;

use super::elements::{Element, Family, Set, TABLE};
use super::{Desired, block_mask};
use crate::net::NodeState;
use crate::net::names::{
    BRIDGE, BRIDGE_GROUP, Mac, PORT_PREFIX, TUN, TUNNEL_GROUP, VXLAN, VXLAN_PORT, VXLAN6,
};

/// kube-proxy's mark on packets that it wants masqueraded (its `--iptables-masquerade-bit`, 14 by default).
const MASQUERADE_MARK: u32 = 0x4000;
/// Finds the groups of our devices that a packet may leave by, which differ in the last two bits.
const GROUPS_MASK: u32 = !3;
/// Address blocks that nobody answers from: packets from pods to these are not masqueraded.
const MULTICAST: &str = "224.0.0.0/4";

/// What the skeleton depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The bridge's MAC address.
    pub mac: Mac,
    /// The mesh's range.
    pub universe: Cidr,
    /// The node's overlay address.
    pub address: Option<IpAddr>,
    /// Whether what leaves the universe is masqueraded.
    pub masquerade: bool,
    /// Whether clients from outside keep their address towards local pods.
    pub keep_client_addresses: bool,
}

/// Why a packet was dropped: the name of its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drop {
    /// A pod sent from an address that is not its own.
    ForgedAddress,
    /// A pod sent from a MAC address that is not its own.
    ForgedMac,
    /// A pod sent ARP in somebody else's name.
    ForgedArp,
    /// A pod sent a frame to another machine than the node.
    ToNeighbour,
    /// A pod sent multicast or broadcast, which is not carried.
    Multicast,
    /// A pod sent IPv6, which is not handed out.
    PodIpv6,
    /// A pod sent something that is neither IP nor ARP.
    OtherProtocol,
    /// A frame came from a port that is no pod's.
    UnknownPort,
    /// A VXLAN packet came from somebody who is no peer, or whose packets must be sealed, or from a pod.
    ForgedVxlan,
    /// A packet came out of the tunnel with an address that the sending peer does not own, or from outside with one of
    /// the universe.
    ForgedSource,
    /// A packet for the universe was about to leave by a device that is not the overlay's.
    AroundOverlay,
    /// A packet from the bridge was not addressed to the node alone.
    NotUnicast,
}

impl Drop {
    /// All of them, those of the guard first.
    pub const ALL: [Self; 12] = [
        Self::ForgedAddress,
        Self::ForgedMac,
        Self::ForgedArp,
        Self::ToNeighbour,
        Self::Multicast,
        Self::PodIpv6,
        Self::OtherProtocol,
        Self::UnknownPort,
        Self::ForgedVxlan,
        Self::ForgedSource,
        Self::AroundOverlay,
        Self::NotUnicast,
    ];

    /// The counter's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForgedAddress => "forged_address",
            Self::ForgedMac => "forged_mac",
            Self::ForgedArp => "forged_arp",
            Self::ToNeighbour => "to_neighbour",
            Self::Multicast => "multicast",
            Self::PodIpv6 => "pod_ipv6",
            Self::OtherProtocol => "other_protocol",
            Self::UnknownPort => "unknown_port",
            Self::ForgedVxlan => "forged_vxlan",
            Self::ForgedSource => "forged_source",
            Self::AroundOverlay => "around_overlay",
            Self::NotUnicast => "not_unicast",
        }
    }

    /// The table that its counter is in.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::ForgedVxlan | Self::ForgedSource | Self::AroundOverlay | Self::NotUnicast => Family::Inet,
            Self::ForgedAddress
            | Self::ForgedMac
            | Self::ForgedArp
            | Self::ToNeighbour
            | Self::Multicast
            | Self::PodIpv6
            | Self::OtherProtocol
            | Self::UnknownPort => Family::Bridge,
        }
    }
}

impl Facts {
    /// The facts of a state.
    #[must_use]
    pub const fn of(state: &NodeState) -> Self {
        Self {
            mac: Mac(state.name.mac()),
            universe: state.universe,
            address: state.address,
            masquerade: state.options.masquerade,
            keep_client_addresses: state.options.keep_client_addresses,
        }
    }

    /// The tables without elements: what the digest is taken of.
    #[must_use]
    pub fn skeleton(&self) -> String {
        self.render(&BTreeMap::new())
    }

    fn render(&self, sets: &BTreeMap<Set, BTreeSet<Element>>) -> String {
        let mut text = Text::default();
        for family in Family::ALL.map(Family::name) {
            // Adding first makes the deletion succeed where there is nothing to delete.
            text.line(&format!("add table {family} {TABLE}"));
            text.line(&format!("delete table {family} {TABLE}"));
        }
        text.block(&format!("table inet {TABLE}"), |text| {
            declarations(text, sets, Family::Inet);
            self.tunnel(text);
            self.containment(text);
            self.source_addresses(text);
        });
        text.block(&format!("table bridge {TABLE}"), |text| {
            declarations(text, sets, Family::Bridge);
            self.guard(text);
        });
        text.0
    }

    fn tunnel(&self, text: &mut Text) {
        let (peers4, peers6) = (Set::Peers4.name(), Set::Peers6.name());
        // The second half of a transport header's first word, whatever the protocol: a packet that is taken for
        // VXLAN by accident (of ICMP it is the checksum) only goes the longer way.
        let not_vxlan = format!("@th,16,16 != {VXLAN_PORT}");
        let from_peer = format!("ether saddr . ip saddr @{}", Set::Sources.name());
        text.block("chain prerouting", |text| {
            text.line("type filter hook prerouting priority raw; policy accept;");
            // Sender and type in one piece, as in the guard.
            text.line(&format!(
                "iifgroup {TUNNEL_GROUP} @ll,48,64 . @nh,96,32 & {:#010x} @{} {not_vxlan} accept",
                u32::from(block_mask(self.universe)),
                Set::Blocks.name()
            ));
            text.line(&format!("iifgroup {BRIDGE_GROUP} meta pkttype host {not_vxlan} accept"));
            text.line(&format!(
                "iifgroup & {GROUPS_MASK:#x} != {BRIDGE_GROUP} udp dport {VXLAN_PORT} ip saddr @{peers4} notrack accept"
            ));
            text.line(&format!("iifgroup {TUNNEL_GROUP} goto from_tunnel"));
            text.line(&format!("iifgroup {BRIDGE_GROUP} goto from_bridge"));
            text.line(&format!(
                "iifname vmap {{ \"{BRIDGE}\" : goto from_bridge, \"{VXLAN}\" : goto from_tunnel, \
                 \"{VXLAN6}\" : goto from_tunnel }}"
            ));
            text.line(&format!("iifname \"{PORT_PREFIX}*\" {}", count_and_drop(Drop::ForgedSource)));
            // Without masquerading, pods reach the own addresses of other nodes from outside.
            if self.masquerade {
                text.line(&format!(
                    "ip saddr {} iifname != {{ \"{TUN}\", \"lo\" }} {}",
                    self.universe,
                    count_and_drop(Drop::ForgedSource)
                ));
            }
            text.line("goto to_tunnel");
        });
        text.block("chain from_bridge", |text| {
            text.line(&format!("meta pkttype != host {}", count_and_drop(Drop::NotUnicast)));
            text.line(&format!("udp dport {VXLAN_PORT} goto vxlan_of_pod"));
        });
        text.block("chain vxlan_of_pod", |text| {
            text.line("fib daddr type local goto vxlan");
            text.line(&format!("ip daddr != {} {}", self.universe, count_and_drop(Drop::ForgedVxlan)));
        });
        text.block("chain from_tunnel", |text| {
            text.line(&format!("{from_peer} goto to_tunnel"));
            text.line(&count_and_drop(Drop::ForgedSource));
        });
        text.block("chain to_tunnel", |text| {
            text.line(&format!("udp dport {VXLAN_PORT} fib daddr type local goto vxlan"));
        });
        text.block("chain vxlan", |text| {
            text.line(&format!("ip saddr @{peers4} notrack accept"));
            text.line(&format!("ip6 saddr @{peers6} notrack accept"));
            text.line(&count_and_drop(Drop::ForgedVxlan));
        });
        text.block("chain output", |text| {
            text.line("type filter hook output priority raw; policy accept;");
            text.line(&format!("udp dport {VXLAN_PORT} ip daddr @{peers4} notrack accept"));
            text.line(&format!("udp dport {VXLAN_PORT} ip6 daddr @{peers6} notrack accept"));
            // Pods of one node talk through the bridge address on purpose; see sysctl `send_redirects`.
            text.line(&format!("icmp type redirect oifname \"{BRIDGE}\" drop"));
            text.line(&format!("icmp type redirect oifname \"{PORT_PREFIX}*\" drop"));
        });
    }

    fn containment(&self, text: &mut Text) {
        let universe = self.universe;
        text.block("chain postrouting", |text| {
            text.line("type filter hook postrouting priority raw; policy accept;");
            text.line(&format!(
                "oifgroup & {GROUPS_MASK:#x} != {BRIDGE_GROUP} ip daddr {universe} \
                 oifname != {{ \"{BRIDGE}\", \"{VXLAN}\", \"{VXLAN6}\", \"{TUN}\", \"lo\" }} \
                 oifname != \"{PORT_PREFIX}*\" {}",
                count_and_drop(Drop::AroundOverlay)
            ));
        });
    }

    fn source_addresses(&self, text: &mut Text) {
        let universe = self.universe;
        if let Some(address) = self.address {
            let tunnels = format!("oifname {{ \"{VXLAN}\", \"{VXLAN6}\", \"{TUN}\" }}");
            let local = [format!("oifname \"{BRIDGE}\""), format!("oifname \"{PORT_PREFIX}*\"")];
            let fixed = |devices: &str, which: &str| {
                format!("{devices} ip daddr {universe} {which} snat ip to {address} fully-random")
            };
            text.block("chain into_overlay", |text| {
                text.line("type nat hook postrouting priority srcnat - 10; policy accept;");
                let (client, marked) = (
                    format!("ip saddr != {universe}"),
                    format!("meta mark & {MASQUERADE_MARK:#x} == {MASQUERADE_MARK:#x}"),
                );
                for devices in std::iter::once(&tunnels).chain(&local) {
                    if !(self.keep_client_addresses && local.contains(devices)) {
                        text.line(&fixed(devices, &client));
                    }
                    text.line(&fixed(devices, &marked));
                }
            });
        }
        if self.masquerade {
            text.block("chain out_of_overlay", |text| {
                text.line("type nat hook postrouting priority srcnat + 10; policy accept;");
                // What goes to a port or the bridge is for a pod of this node, which may have an address of another
                // plugin's.
                let outside = format!(
                    "ip daddr != {{ {universe}, {MULTICAST} }} oifname != {{ \"{BRIDGE}\", \"lo\" }} \
                     oifname != \"{PORT_PREFIX}*\""
                );
                let guests = format!("@{}", Set::Guests.name());
                for source in [universe.to_string(), guests] {
                    text.line(&format!("ip saddr {source} {outside} masquerade fully-random"));
                }
            });
        }
    }

    fn guard(&self, text: &mut Text) {
        let (mac, frames, pods) = (self.mac, Set::Frames.name(), Set::Pods.name());
        text.block("chain prerouting", |text| {
            text.line("type filter hook prerouting priority -250; policy accept;");
            // Both MAC addresses and the type are taken in one piece, and the source address without the question
            // after the type that its name would bring: half of what single comparisons cost.
            text.line(&format!("iifname . @ll,0,112 . @nh,96,32 @{frames} accept"));
            text.line(&format!("iifname \"{PORT_PREFIX}*\" goto pod"));
            text.line(&format!("ether daddr {mac} {}", count_and_drop(Drop::UnknownPort)));
        });
        text.block("chain pod", |text| {
            text.line(&format!(
                "ether daddr {{ {mac}, ff:ff:ff:ff:ff:ff }} ether type arp \
                 iifname . ether saddr . arp saddr ip @{pods} iifname . arp saddr ether . arp saddr ip @{pods} accept"
            ));
            text.line(&format!("ether type ip6 {}", count_and_drop(Drop::PodIpv6)));
            text.line(&format!("iifname != @{} {}", Set::Ports.name(), count_and_drop(Drop::UnknownPort)));
            let forged_mac = count_and_drop(Drop::ForgedMac);
            text.line(&format!("iifname . ether saddr != @{} {forged_mac}", Set::PortMacs.name()));
            text.line(&format!(
                "ether type arp ether daddr {{ {mac}, ff:ff:ff:ff:ff:ff }} {}",
                count_and_drop(Drop::ForgedArp)
            ));
            let group = "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00";
            text.line(&format!("{group} {}", count_and_drop(Drop::Multicast)));
            text.line(&format!("ether daddr != {mac} {}", count_and_drop(Drop::ToNeighbour)));
            text.line(&format!("ether type ip {}", count_and_drop(Drop::ForgedAddress)));
            text.line(&count_and_drop(Drop::OtherProtocol));
        });
        text.block("chain forward", |text| {
            text.line("type filter hook forward priority -250; policy accept;");
            let ports = format!("oifname \"{PORT_PREFIX}*\" iifname != \"{PORT_PREFIX}*\"");
            text.line(&format!("{ports} {}", count_and_drop(Drop::UnknownPort)));
        });
    }
}

impl Desired {
    /// The transaction that replaces both tables, elements included.
    #[must_use]
    pub fn render(&self) -> String {
        self.facts.render(&self.sets)
    }
}

fn count_and_drop(reason: Drop) -> String {
    format!("counter name {} drop", reason.name())
}

fn declarations(text: &mut Text, sets: &BTreeMap<Set, BTreeSet<Element>>, family: Family) {
    for reason in Drop::ALL.iter().filter(|reason| reason.family() == family) {
        text.line(&format!("counter {} {{ }}", reason.name()));
    }
    for set in Set::ALL.into_iter().filter(|set| set.family() == family) {
        text.block(&format!("set {}", set.name()), |text| {
            text.line(set.type_text());
            let elements: Vec<String> =
                sets.get(&set).into_iter().flatten().map(ToString::to_string).collect();
            if !elements.is_empty() {
                text.line(&format!("elements = {{ {} }}", elements.join(", ")));
            }
        });
    }
}

/// Lines with indentation.
#[derive(Default)]
struct Text(String, usize);

impl Text {
    fn line(&mut self, line: &str) {
        // Writing to a string cannot fail.
        let _infallible = writeln!(self.0, "{:indent$}{line}", "", indent = self.1);
    }

    fn block(&mut self, head: &str, inside: impl FnOnce(&mut Self)) {
        self.line(&format!("{head} {{"));
        self.1 += 4;
        inside(self);
        self.1 -= 4;
        self.line("}");
    }
}

#[cfg(test)]
mod tests;
