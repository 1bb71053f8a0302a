//! What two agents tell each other, after the QUIC handshake has proven that both hold the cluster secret.
//!
//! ```text
//!   dialler                         listener
//!      | ---- Hello ------------------> |     each side sends its Hello first and unasked
//!      | <------------------ Hello ---- |
//!      |      (both check, either may answer with Refusal and close)
//!      | <---- Topology, Ipam, … -----> |     state, pushed on change, forwarded when new
//!      | <---- Digest ----------------> |     now and then, to repair what was lost
//!      | <---- Warning ---------------> |     what the other side cannot see itself
//! ```
//!
//! Everything but [`Directed`] and [`Routed`] is *state*: it may be lost, repeated and reordered, and merging it
//! twice is harmless.

pub mod ipam;
pub mod topology;
pub mod tunnel;

use serde::{Deserialize, Serialize};

use crate::{Cidr, Nickname, PeerName, PeerUid};
pub use ipam::{IpamDirected, IpamState};
pub use topology::{Features, LinkRecord, PeerRecord, RecordDigest, RecordVersion};
pub use tunnel::{Handshake, Offer, Routed, Step, Terms};

/// A version of the peer protocol. Two peers speak the highest that both know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WireVersion(pub u16);

/// The lowest and the highest version that this program speaks.
pub const SPOKEN: (WireVersion, WireVersion) = (WireVersion(1), WireVersion(1));

/// Names one first split of one universe for ever: a hash of the range and of the decision who shares it. Two
/// meshes with different ids have given out the same addresses independently and must never be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UniverseId(pub u64);

/// Introduces a peer. The layout of this message is frozen in every version: it must be readable by a peer that
/// shares no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The lowest version spoken.
    pub lowest: WireVersion,
    /// The highest version spoken.
    pub highest: WireVersion,
    /// The sender's short name; the receiver checks it against the key of the QUIC connection.
    pub name: PeerName,
    /// The sender's incarnation.
    pub uid: PeerUid,
    /// The sender's host name.
    pub nickname: Nickname,
    /// A number drawn for this connection attempt; tells two connections of one pair apart on both sides.
    pub nonce: u64,
    /// A number drawn at each start of the sender: tells a peer that has reached itself from two machines that
    /// hold one identity.
    pub instance: u64,
    /// The range the sender shares out; none if it does without IPAM.
    pub range: Option<Cidr>,
    /// The first split the sender has taken part in or learned of, once there is one.
    pub universe: Option<UniverseId>,
    /// How many founders the sender expects at the first split, if it was told, and while there is none.
    pub founders: Option<u16>,
    /// What else the sender can do.
    pub features: Features,
}

/// Why a peer wants no connection. The code decides what the other side does next, the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub code: RefusalCode,
    /// The sentence to show, naming both sides' values and the remedy.
    pub text: String,
}

/// What may be wrong with a connection. On the wire and as the QUIC application error code, a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum RefusalCode {
    /// The agent stops or forgot the peer: nothing is wrong.
    Goodbye,
    /// This pair has another, better connection.
    Duplicate,
    /// The peer has reached itself.
    Myself,
    /// No wire version is spoken by both.
    Version,
    /// Two keys have the same short name, or two machines hold the same key.
    NameCollision,
    /// The ranges differ.
    Range,
    /// Both have a first split, and not the same.
    Universe,
    /// The numbers of founders differ.
    Electorate,
    /// The connection limit is reached.
    Limit,
    /// A message could not be read.
    Garbage,
    /// The peer has been removed for good.
    Removed,
    /// A code of a later version.
    Other(u32),
}

impl From<u32> for RefusalCode {
    fn from(code: u32) -> Self {
        match code {
            0 => Self::Goodbye,
            1 => Self::Duplicate,
            2 => Self::Myself,
            3 => Self::Version,
            4 => Self::NameCollision,
            5 => Self::Range,
            6 => Self::Universe,
            7 => Self::Electorate,
            8 => Self::Limit,
            9 => Self::Garbage,
            10 => Self::Removed,
            other => Self::Other(other),
        }
    }
}

impl From<RefusalCode> for u32 {
    fn from(code: RefusalCode) -> Self {
        match code {
            RefusalCode::Goodbye => 0,
            RefusalCode::Duplicate => 1,
            RefusalCode::Myself => 2,
            RefusalCode::Version => 3,
            RefusalCode::NameCollision => 4,
            RefusalCode::Range => 5,
            RefusalCode::Universe => 6,
            RefusalCode::Electorate => 7,
            RefusalCode::Limit => 8,
            RefusalCode::Garbage => 9,
            RefusalCode::Removed => 10,
            RefusalCode::Other(other) => other,
        }
    }
}

/// Everything a peer may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Who am I (first on every connection).
    Hello(Hello),
    /// I close this connection, and why.
    Refusal(Refusal),
    /// Records of peers, at most [`topology::MAX_RECORDS`].
    Topology(Vec<PeerRecord>),
    /// What I know, in short; an answer is whatever I lack.
    Digest(Digest),
    /// Send me your records of these peers.
    Want(Vec<PeerName>),
    /// All I know about who owns which address.
    Ipam(Box<IpamState>),
    /// For one peer, over any number of hops.
    Directed(Directed),
    /// Something is wrong with you, though I keep this connection: another agent with your identity has called me.
    Warning(Refusal),
    /// What I demand of pod packets between us two.
    Terms(Terms),
    /// How to send sealed records to me with the keys of this connection.
    Offer(Offer),
    /// For one peer's data plane, over any number of hops.
    Routed(Routed),
    /// Keys for two peers without a link: only inside [`Message::Routed`].
    Handshake(Handshake),
}

/// What a peer knows, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The version of each record known, in the order of names.
    pub records: Vec<RecordDigest>,
    /// A hash of the ring, the split and the tombstones.
    pub ipam: u64,
}

/// A message for one peer, forwarded along the shortest path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directed {
    /// Who said it.
    pub src: PeerName,
    /// Who shall hear it.
    pub dst: PeerName,
    /// How many more peers may forward it; ends loops while routes change.
    pub hops_left: u8,
    /// What is said.
    pub body: IpamDirected,
}

impl Directed {
    /// The number of hops a message may take: no mesh that works has a longer shortest path.
    pub const MAX_HOPS: u8 = 32;
}
