//! Who owns which address: the first split, the ring and the removals, as peers tell each other.
//!
//! A peer always sends everything it knows ([`IpamState`]); merging is commutative, associative and idempotent,
//! so it does not matter how often, in what order and by which way a state arrives. Two disciplines make the
//! merge simple: a [`RingEntry`] is changed by its owner alone, and a [`Candidacy`] or [`Opinion`] is changed by
//! the peer it speaks for alone, each change counted in a version and durable before it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::UniverseId;
use crate::{Cidr, PeerName};

/// The most entries a ring may have. An entry takes about forty bytes on the wire, so that a whole ring fits in
/// one message; a donation which would exceed the limit is denied.
pub const MAX_RING_ENTRIES: usize = 16_384;

/// The most candidacies, and the most removals, that one state may hold.
pub const MAX_VOTERS: usize = 1024;

/// Everything a peer knows about ownership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamState {
    /// The range that is shared out.
    pub universe: Cidr,
    /// Whether it has been shared out, and how.
    pub phase: IpamPhase,
}

/// The two ages of a universe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpamPhase {
    /// Nobody owns anything yet: the candidates agree on the founders.
    Electing(BTreeMap<PeerName, Candidacy>),
    /// The founders are known, and with them the ring. Wins over every election.
    Founded(Box<Founded>),
}

/// The decision that begins a universe: who gets a share in the first split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// The peers that share the range equally.
    pub founders: BTreeSet<PeerName>,
    /// Drawn by the proposer: tells two universes apart that the same peers founded. Zero where the founders
    /// were given as a list.
    pub nonce: u64,
}

/// A universe that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founded {
    /// How it began.
    pub founding: Founding,
    /// The ring in the order of tokens; the first token is the first address of the range.
    pub ring: Vec<RingEntry>,
    /// The peers that were removed for good, or are about to be.
    pub removals: BTreeMap<PeerName, Removal>,
}

/// One token of the ring: its peer owns every address from the token up to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingEntry {
    /// The first address owned.
    pub token: IpAddr,
    /// The owner.
    pub owner: PeerName,
    /// Counts the changes of this entry within its era; only its owner makes new ones.
    pub version: u32,
    /// The takeover that the entry descends from.
    pub era: Era,
}

/// Whose word counts about an address: everything said in a later era overrides everything said in an earlier
/// one. A new era begins for the ranges of a removed peer when its heir takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Era {
    /// How many takeovers lie between the first split and this entry.
    pub takeovers: u32,
    /// The heir that began the era; none in the first.
    pub heir: Option<PeerName>,
}

/// Orders the attempts to reach agreement; of two attempts of one round, the larger name's is the higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Grows with each attempt.
    pub round: u32,
    /// Who attempts.
    pub proposer: PeerName,
}

/// What one acceptor has bound itself to. Durable before anybody hears of it, and never taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote<V> {
    /// Accepts nothing in a lower ballot than this.
    pub promised: Option<Ballot>,
    /// The last proposal accepted.
    pub accepted: Option<Accepted<V>>,
}

impl<V> Default for Vote<V> {
    fn default() -> Self {
        Self { promised: None, accepted: None }
    }
}

/// A proposal that an acceptor accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted<V> {
    /// The ballot of the proposal.
    pub ballot: Ballot,
    /// What was proposed.
    pub value: V,
}

/// A set of peers by name, a majority of which decides the first split.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Electorate {
    /// Numbers the attempts to enumerate an electorate: a later one supersedes an earlier one.
    pub attempt: u32,
    /// The peers, as many as founders are expected.
    pub members: BTreeSet<PeerName>,
}

/// One peer's part in the first split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidacy {
    /// Counts the changes; only the candidate makes new ones.
    pub version: u64,
    /// How many founders the candidate expects.
    pub founders: u16,
    /// The last attempt the candidate took part in, or stood aside from: it votes in no earlier one.
    pub attempt: u32,
    /// The electorate that the candidate has locked on in that attempt; none if it stands aside.
    pub lock: Option<Electorate>,
    /// Electorates that the candidate has left and that might still decide. While there is one, the lock does
    /// not count.
    pub leaving: BTreeSet<Electorate>,
    /// The vote in the locked electorate.
    pub vote: Vote<Founding>,
}

/// The tombstone of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Removal {
    /// Somebody asked for it; the others' acknowledgements are being collected.
    Pending(BTreeMap<PeerName, Opinion>),
    /// A majority has acknowledged, durably, that this heir takes the removed peer's ranges.
    Decided {
        /// Who inherits.
        heir: PeerName,
    },
}

/// One peer's part in the removal of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    /// Counts the changes; only the peer that has the opinion makes new ones.
    pub version: u64,
    /// Whether the peer was told by its operator to have the other removed.
    pub stance: Stance,
    /// The acknowledgement.
    pub vote: Vote<Inheritance>,
}

/// What a peer's operator wants to happen to another peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stance {
    /// Nothing.
    Silent,
    /// Remove it, since it is gone; withdrawn if it is seen again before the decision.
    Asks,
    /// Remove it even if it lives.
    Insists,
}

/// Who shall inherit, and who has a say in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inheritance {
    /// Takes the ranges.
    pub heir: PeerName,
    /// The owners of ranges, without the removed ones: a majority of these decides.
    pub electors: BTreeSet<PeerName>,
}

/// What one peer asks of another, and the answers. A question is answered at once, always: nobody waits for a
/// peer that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpamDirected {
    /// Please give me some of your free space.
    SpaceRequest {
        /// Drawn for this question; repeated in the answer.
        token: u64,
        /// The universe that the sender lives in.
        universe: UniverseId,
        /// How much is wanted.
        want: Want,
    },
    /// Part of my space is yours: here is the ring that says so.
    SpaceGranted {
        /// Of the question.
        token: u64,
        /// The giver's state, in which the receiver owns more than before.
        state: Box<IpamState>,
    },
    /// I have none to give.
    SpaceDenied {
        /// Of the question.
        token: u64,
    },
}

/// How much space is asked for, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// Somebody waits for an address; about half of the donor's free space is welcome.
    Share,
    /// Nobody has free space: even an address that was freed a moment ago.
    Leftover,
    /// Nobody waits, but the shares have become uneven.
    Balance {
        /// How many addresses the asking peer owns.
        owned: u64,
    },
}
