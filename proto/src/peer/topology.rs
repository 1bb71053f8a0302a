//! A peer's record: what it says about itself, and what everybody repeats.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{Nickname, PeerKey, PeerName, PeerUid};

/// The most records in one message; a larger topology is sent in several.
pub const MAX_RECORDS: usize = 256;
/// The most links a record may list.
pub const MAX_LINKS: usize = 1024;

/// Counts the changes of one incarnation's record. Of two records, the larger (uid, version) wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordVersion(pub u64);

/// What a peer's data plane can do: a set of bits, unknown ones kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Features(pub u32);

impl Features {
    /// The kernel forwards VXLAN on UDP 6784.
    pub const FASTDP: Self = Self(1);
    /// Sealed records on UDP 6785.
    pub const SLEEVE: Self = Self(2);
    /// Sealed records in datagrams of a QUIC connection of their own on UDP 6783.
    pub const QUIC: Self = Self(4);
    /// Passes on sealed records between two other peers.
    pub const RELAY: Self = Self(8);
    /// Wants every pod packet to and from it sealed, except where it has said otherwise to a peer
    /// ([`Terms`](super::Terms)).
    pub const ENCRYPT: Self = Self(16);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a peer says about itself. Only that peer makes new versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The short name.
    pub name: PeerName,
    /// The key that the name comes from.
    pub key: PeerKey,
    /// The incarnation.
    pub uid: PeerUid,
    /// The version within the incarnation.
    pub version: RecordVersion,
    /// The host name.
    pub nickname: Nickname,
    /// The node's own address in the overlay (the bridge's), once it has one.
    pub overlay: Option<IpAddr>,
    /// About how many addresses it could give away. A hint: never the base of a decision that must be right.
    pub free: u64,
    /// What its data plane can do.
    pub features: Features,
    /// Its established links, ordered by name, at most [`MAX_LINKS`].
    pub links: Vec<LinkRecord>,
}

/// One end's view of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkRecord {
    /// The peer at the other end.
    pub peer: PeerName,
    /// Where this end sees the other: since a peer dials from the port it listens on, an address to dial.
    pub addr: SocketAddr,
    /// Whether this end dialled.
    pub outbound: bool,
}

/// The version of a record, without the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordDigest {
    /// Whose record.
    pub name: PeerName,
    /// The incarnation.
    pub uid: PeerUid,
    /// The version within the incarnation.
    pub version: RecordVersion,
}
