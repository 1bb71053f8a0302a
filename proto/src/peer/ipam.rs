//! Who owns which address: the ring, the first split and the tombstones, as peers tell each other.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Cidr, PeerName};

/// Everything a peer knows about ownership. Merging is commutative, associative and idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamState {
    /// The range that is shared out.
    pub universe: Cidr,
    /// The ring; empty before the first split.
    pub ring: Vec<RingEntry>,
}

/// One token of the ring: its peer owns every address from the token up to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingEntry {
    /// The first address owned.
    pub token: IpAddr,
    /// The owner.
    pub owner: PeerName,
    /// Counts the changes of this entry; only its owner makes new ones.
    pub version: u32,
}

/// What one peer asks of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpamDirected {
    /// Please give me some of your free space.
    SpaceRequest,
    /// I have none to give.
    SpaceDenied,
}
