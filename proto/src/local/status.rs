//! The status documents: what `weave status` prints, `weave report` dumps and the metrics count.
//!
//! There is one document, [`Status`]. The agent publishes a new one after each batch of work; the CLI, the HTTP
//! server and the metrics read it and know nothing else, so that no two of them can disagree. Every part comes
//! from the room that believes it. Fields are only ever added: a reader ignores those that it does not know.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::peer::{SPOKEN, UniverseId, WireVersion};
use crate::{Cidr, Nickname, PeerName, PeerUid, Span};

/// Everything an operator may want to know of one agent, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The versions of the peer protocol that it speaks.
    pub wire: WireStatus,
    /// When the agent started, in seconds since 1970.
    pub started_at: u64,
    /// The peer's short name.
    pub name: PeerName,
    /// The host name.
    pub nickname: Nickname,
    /// The incarnation: how often the agent has started.
    pub uid: PeerUid,
    /// Why no pod can be attached yet, a sentence each; empty when the agent is ready.
    pub waiting_for: Vec<String>,
    /// What an operator should know and change, a sentence each with its remedy.
    pub warnings: Vec<String>,
    /// The mesh: who is there and who is linked to whom.
    pub router: RouterStatus,
    /// The IP allocator; none if the agent runs without.
    pub ipam: Option<IpamStatus>,
    /// What the agent keeps up on this node.
    pub node: NodeStatus,
    /// The tunnels in user space; none if there are none, or nothing was counted yet.
    #[serde(default)]
    pub tunnels: Option<TunnelStatus>,
}

impl Status {
    /// The status of an agent that has just started and knows nobody: to build on, and for tests.
    #[must_use]
    pub fn starting(name: PeerName, nickname: Nickname, uid: PeerUid) -> Self {
        Self {
            version: String::new(),
            wire: WireStatus { lowest: SPOKEN.0, highest: SPOKEN.1 },
            started_at: 0,
            name,
            nickname,
            uid,
            waiting_for: vec!["waiting for the agent to finish starting".to_owned()],
            warnings: Vec::new(),
            router: RouterStatus::default(),
            ipam: None,
            node: NodeStatus::default(),
            tunnels: None,
        }
    }

    /// Whether a pod could be attached now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.waiting_for.is_empty()
    }
}

/// The lowest and the highest version of the peer protocol that an agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireStatus {
    /// The lowest.
    pub lowest: WireVersion,
    /// The highest.
    pub highest: WireVersion,
}

/// The mesh as this peer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouterStatus {
    /// The UDP port of the control plane.
    pub port: u16,
    /// Whether peers learned from others are dialled.
    pub discovery: bool,
    /// The soft limit of connections; none if there is none.
    pub conn_limit: Option<u32>,
    /// What is encrypted, and with what.
    pub encryption: EncryptionStatus,
    /// Where the agent was told to find peers.
    pub targets: Vec<TargetStatus>,
    /// Connections and attempts at them.
    pub connections: Vec<ConnectionStatus>,
    /// All peers known, this one first, then by name.
    pub peers: Vec<PeerStatus>,
    /// How many established connections have ended since the start.
    pub terminations: u64,
    /// Messages of peers that were not believed since the start, counted by reason.
    pub refused: BTreeMap<String, u64>,
}

/// What is encrypted, and with what. Control is always encrypted; the question there is who may take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EncryptionStatus {
    /// Whether pod packets are.
    pub data: DataEncryption,
    /// What a peer must know to take part.
    pub control: ControlTrust,
}

/// Whether pod packets are encrypted on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataEncryption {
    /// They travel as they are.
    #[default]
    Disabled,
    /// They are encrypted.
    Enabled,
}

/// What a peer must know to take part in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ControlTrust {
    /// Nothing: no secret was given, so a well-known one serves.
    #[default]
    #[serde(rename = "public secret")]
    PublicSecret,
    /// The cluster's own secret.
    #[serde(rename = "cluster secret")]
    ClusterSecret,
}

/// One place where a peer is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// As it was given: `host` or `host:port`.
    pub target: String,
    /// Why it is of no use now, such as a name that cannot be resolved.
    pub problem: Option<String>,
}

/// What the agent keeps up on its node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The bridge's name.
    pub bridge: String,
    /// The node's own address in the overlay, once it has one.
    pub address: Option<IpAddr>,
    /// The largest packet a pod may send.
    pub mtu: Option<u32>,
    /// How many pods are attached.
    pub pods: u64,
    /// What could not be brought into the desired state, an object and an error each.
    pub problems: Vec<String>,
    /// What others on this node do to the packets of pods, a sentence each with its remedy.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Times that something was found changed or missing and put right, counted by kind of object.
    pub repairs: BTreeMap<String, u64>,
    /// Packets that the node refused, counted by reason.
    pub drops: BTreeMap<String, u64>,
}

/// What the tunnels in user space have done, all since they were started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// Bytes of datagrams sent: packets, probes and what was relayed.
    pub sent_bytes: u64,
    /// Bytes of datagrams received, whatever they were.
    pub received_bytes: u64,
    /// Authentic records received. One may hold a part of a packet, or several small ones.
    pub opened_records: u64,
    /// Records sent on for other peers.
    pub relayed_frames: u64,
    /// Packets, records or runs of them that were not passed on, by reason; every reason is there.
    pub drops: BTreeMap<String, u64>,
    /// How often something was done the slow way since the kernel could not do it the fast way, by kind.
    pub fallbacks: BTreeMap<String, u64>,
}

/// What has passed in the session with a peer, since the session began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Records of pods' packets sealed for the peer.
    pub sealed_records: u64,
    /// Authentic records from it, probes included.
    pub opened_records: u64,
}

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

/// How far a connection has come. Weave's words, in the order in which the summary counts them.
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

impl ConnectionState {
    /// Every state, in order.
    pub const ALL: [Self; 5] =
        [Self::Established, Self::Pending, Self::Retrying, Self::Failed, Self::Connecting];

    /// Weave's word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
            Self::Connecting => "connecting",
        }
    }
}

/// The data-plane method to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodStatus {
    /// Its name: `fastdp`, `sleeve`, `quic`, `relay`, or `none`.
    pub name: String,
    /// Why this one and not a better one.
    pub reason: String,
    /// The largest packet a pod may send through it.
    pub mtu: Option<u32>,
    /// Whether data is encrypted.
    pub encrypted: bool,
    /// Through which peer, if it is relayed.
    #[serde(default)]
    pub via: Option<PeerName>,
    /// By which method that peer is reached, if it is relayed.
    #[serde(default)]
    pub by: Option<String>,
    /// The smoothed round trip of its probes, in microseconds; none while nothing has answered.
    #[serde(default)]
    pub round_trip_us: Option<u64>,
    /// The other methods, best first, and why they are not used.
    #[serde(default)]
    pub rejected: Vec<RejectedMethod>,
    /// The sealed session with the peer, whether the present method uses it or not; none if there is none.
    #[serde(default)]
    pub session: Option<SessionStatus>,
}

/// A method that is not in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedMethod {
    /// Its name; a relay's with the peer.
    pub name: String,
    /// Why it is not used, with the remedy where there is one.
    pub reason: String,
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
    /// How its pods are reached; none of this peer itself.
    #[serde(default)]
    pub method: Option<MethodStatus>,
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
    /// Containers of this node that hold an address which is another peer's now, and are cut off.
    #[serde(default)]
    pub lost: Vec<AllocationStatus>,
    /// Addresses freed a short while ago and not given out again yet.
    pub quarantined: u64,
    /// Requests waiting, and for what. One that wants a certain address begins with [`CLAIM`].
    pub pending: Vec<String>,
    /// Updates refused since the start, by reason.
    pub refused: Vec<String>,
    /// Peers removed for good, and who has or will have their ranges.
    pub removed: Vec<RemovedStatus>,
}

/// How a line of [`IpamStatus::pending`] begins whose request wants a certain address.
pub const CLAIM: &str = "claim ";

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
    /// [`ACKNOWLEDGED`], or how many acknowledgements are still missing.
    pub state: String,
}

/// The [`RemovedStatus::state`] of a removal that is decided.
pub const ACKNOWLEDGED: &str = "acknowledged";
