//! What the node is asked to be.

use std::net::IpAddr;

use weave_proto::local::cni::PodPort;
use weave_proto::{Cidr, PeerName};

/// Everything that decides the node's kernel state. Complete: what is not listed is removed if it is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// This peer.
    pub name: PeerName,
    /// The range that the mesh shares out.
    pub universe: Cidr,
    /// The node's own address in the overlay. Until there is one, there are no routes into the overlay, since they
    /// would have no source address.
    pub address: Option<IpAddr>,
    /// The ranges from which this node gives out addresses.
    pub own: Vec<Cidr>,
    /// The peers that are reached directly through the kernel's tunnel.
    pub peers: Vec<PeerPath>,
    /// The peers whose packets go another way, but which may be probed, and may send, through the kernel's tunnel.
    pub probed: Vec<PeerPath>,
    /// The peers that are reached through the device of the tunnels in user space.
    pub sealed: Vec<SealedPath>,
    /// Whether that device is made, by whoever reads it, and is to be looked after.
    pub has_tun: bool,
    /// The pods of this node, those with another IPAM plugin's address included. A pod that
    /// [`super::Node::attach`] brought stays until it is detached, or until a
    /// state that no longer lists it follows one that did.
    pub pods: Vec<PodPort>,
    /// The largest packet inside the overlay (see [`super::mtu`]).
    pub mtu: u32,
    /// What the operator chose.
    pub options: HostOptions,
}

/// A peer that is reached directly through the kernel's tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerPath {
    /// The peer; its name is its tunnel end point's MAC address.
    pub peer: PeerName,
    /// Where its tunnel packets go, and where they come from.
    pub underlay: IpAddr,
    /// Its own address in the overlay: the next hop of its routes.
    pub overlay: IpAddr,
    /// The ranges that it owns.
    pub ranges: Vec<Cidr>,
    /// The largest packet that passes, where it is smaller than the devices'.
    pub mtu: Option<u32>,
}

/// A peer that is reached through the device of the tunnels in user space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SealedPath {
    /// The peer.
    pub peer: PeerName,
    /// Its own address in the overlay.
    pub overlay: IpAddr,
    /// The ranges that it owns.
    pub ranges: Vec<Cidr>,
    /// The largest packet that passes, where it is smaller than the device's.
    pub mtu: Option<u32>,
}

/// What the operator chose about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOptions {
    /// Whether packets from pods to the outside get the node's address. On, unless the underlay knows a way back.
    pub masquerade: bool,
    /// Weave's `NO_MASQ_LOCAL`: whether clients from outside the universe keep their address when they reach a pod
    /// of this node. On; off makes them appear as the node.
    pub keep_client_addresses: bool,
    /// Whether forwarding may be allowed in a foreign firewall that drops it.
    pub forward_accept: ForwardAccept,
}

/// Whether the one foreign change may be made: accept rules for the pods' bridge in the iptables FORWARD chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardAccept {
    /// When a foreign forward hook drops what is forwarded.
    Auto,
    /// Never: report it only.
    Never,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { masquerade: true, keep_client_addresses: true, forward_accept: ForwardAccept::Auto }
    }
}
