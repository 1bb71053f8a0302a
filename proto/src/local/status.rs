//! The status documents: what `weave status` prints, `weave report` dumps and the metrics count.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::peer::UniverseId;
use crate::{Cidr, Nickname, PeerName, PeerUid, Span};

/// One connection or attempt at one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// The other end's address.
    pub address: SocketAddr,
    /// Whether this peer dialled.
    pub outbound: bool,
    /// How far it has come.
    pub state: ConnectionState,
    /// The peer at the other end, once it has said who it is.
    pub peer: Option<PeerName>,
    /// Its host name.
    pub nickname: Option<Nickname>,
    /// The error, or what is being waited for; empty when established.
    pub info: String,
    /// Seconds until the next attempt, when retrying.
    pub retry_in_seconds: Option<u64>,
    /// The data-plane method in use to this peer and why; filled in from the overlay.
    pub method: Option<MethodStatus>,
}

/// How far a connection has come. Weave's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// Both ends agreed and the data path is up.
    Established,
    /// Both ends agreed; the data path is not up yet.
    Pending,
    /// An attempt failed; another will follow.
    Retrying,
    /// An attempt failed for good.
    Failed,
    /// An attempt is under way.
    Connecting,
}

/// The data-plane method to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodStatus {
    /// Its name: `fastdp`, or `none`.
    pub name: String,
    /// Why this one and not a better one.
    pub reason: String,
    /// The largest packet a pod may send through it.
    pub mtu: Option<u32>,
    /// Whether data is encrypted.
    pub encrypted: bool,
}

/// One peer of the mesh as this peer knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The short name.
    pub name: PeerName,
    /// The host name.
    pub nickname: Nickname,
    /// The incarnation.
    pub uid: PeerUid,
    /// The record's version.
    pub version: u64,
    /// The node's own address in the overlay.
    pub overlay: Option<IpAddr>,
    /// Whether there is a path to it through the mesh.
    pub reachable: bool,
    /// Its links.
    pub links: Vec<PeerLinkStatus>,
}

/// One link in a peer's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLinkStatus {
    /// The other end.
    pub peer: PeerName,
    /// Its host name, if known.
    pub nickname: Option<Nickname>,
    /// Where it is seen.
    pub address: SocketAddr,
    /// Whether the record's peer dialled.
    pub outbound: bool,
    /// Whether the other end reports the link too.
    pub established: bool,
}

/// What the IP allocator believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamStatus {
    /// One line for people: `ready`, or what is being waited for and what would help.
    pub state: String,
    /// Whether an address could be given out now.
    pub ready: bool,
    /// The range that is shared out.
    pub range: Cidr,
    /// The first split's name, once there is one.
    pub universe: Option<UniverseId>,
    /// Shares by peer, own first, then by name.
    pub shares: Vec<ShareStatus>,
    /// Every entry of the ring in the order of tokens.
    pub entries: Vec<RingEntryStatus>,
    /// Addresses given out on this node.
    pub allocations: Vec<AllocationStatus>,
    /// Addresses freed a short while ago and not given out again yet.
    pub quarantined: u64,
    /// Requests waiting, and for what.
    pub pending: Vec<String>,
    /// Updates refused since the start, by reason.
    pub refused: Vec<String>,
    /// Peers removed for good, and who has or will have their ranges.
    pub removed: Vec<RemovedStatus>,
}

/// One peer's part of the range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareStatus {
    /// The owner.
    pub peer: PeerName,
    /// Its host name, if known.
    pub nickname: Option<Nickname>,
    /// How many addresses it owns.
    pub addresses: u64,
    /// How many of them are in use; known for this peer only.
    pub active: Option<u64>,
    /// Whether there is a path to the owner.
    pub reachable: bool,
}

/// One run of addresses between two tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingEntryStatus {
    /// The addresses.
    pub span: Span,
    /// The owner.
    pub owner: PeerName,
    /// How often the entry has changed.
    pub version: u32,
}

/// One address in use on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationStatus {
    /// The container, or a reserved name such as `weave:expose`.
    pub container: String,
    /// The interface in the container.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// The pod port's host end, if it has one.
    pub host_interface: Option<String>,
    /// The pod end's MAC address in text form, if it has one.
    pub mac: Option<String>,
    /// The pod as `namespace/name`, where known.
    pub pod: Option<String>,
}

/// A peer removed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedStatus {
    /// The removed peer.
    pub peer: PeerName,
    /// Who takes its ranges.
    pub heir: PeerName,
    /// `acknowledged`, or how many acknowledgements are still missing.
    pub state: String,
}
