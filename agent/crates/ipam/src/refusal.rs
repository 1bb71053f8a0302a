//! Why an update of another peer was not taken in.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::UniverseId;
use weave_proto::{Cidr, PeerName};

use crate::api::Allocation;
use crate::ring::{Conflict, MalformedRing};

/// An update that was refused. Nothing has changed by it, and the connection it came over is none the worse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused an update of {from}: {reason}")]
pub struct RejectedUpdate {
    /// Who sent it; not always whose mistake it is, since peers repeat each other.
    pub from: PeerName,
    /// What is wrong.
    pub reason: Rejection,
}

/// What may be wrong with an update.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Another range is shared out there.
    #[error(
        "it shares out {theirs} and this peer {ours}: give both the same --ipalloc-range, after `weave reset` on \
         the one that is wrong"
    )]
    Range {
        /// Theirs.
        theirs: Cidr,
        /// Ours.
        ours: Cidr,
    },
    /// Both have had their first split, and not the same.
    #[error(
        "its mesh (universe {:016x}) was founded apart from this one (universe {:016x}) and has given out the same \
         addresses: keep the side with more pods, and on every peer of the other side run `weave reset --force`, \
         then `weave launch` with a peer of the side that stays",
        theirs.0, ours.0
    )]
    Universe {
        /// Theirs.
        theirs: UniverseId,
        /// Ours.
        ours: UniverseId,
    },
    /// Two candidates expect different numbers of founders.
    #[error(
        "{peer} expects {theirs} founders and this peer {ours}: give both the same --ipalloc-init consensus=N"
    )]
    Founders {
        /// Who expects something else.
        peer: PeerName,
        /// What.
        theirs: u16,
        /// What this peer expects.
        ours: u16,
    },
    /// The others remember promises of this peer that it does not.
    #[error(
        "the others know a later vote of this peer than itself: was an old copy of its store brought back?"
    )]
    Forgotten,
    /// What was sent is no ring.
    #[error("its ring is malformed: {0}")]
    Malformed(#[from] MalformedRing),
    /// The rings contradict each other.
    #[error("the rings disagree: {0}")]
    Conflict(#[from] Conflict),
    /// More candidates or removals than one state may hold.
    #[error("it knows more candidates than can be told")]
    Crowded,
}

/// Why the allocator cannot begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The store is of another range.
    #[error(
        "the store holds addresses of {stored}, but the range given is {given}: give --ipalloc-range {stored}, or \
         `weave reset` to begin anew"
    )]
    Range {
        /// In the store.
        stored: Cidr,
        /// On the command line.
        given: Cidr,
    },
    /// Too few addresses to share out, or too many to count.
    #[error("{0} cannot be shared out: a range holds at least 4 addresses and at most 2^64")]
    Size(Cidr),
    /// A list of founders that is empty.
    #[error("the list of seeds is empty: name at least one peer, as in --ipalloc-init seed=NAME,NAME")]
    NoSeeds,
    /// The stored ring is malformed.
    #[error("the ring in the store is malformed: {0}; `weave reset` begins anew")]
    Ring(#[from] MalformedRing),
    /// The stored allocations contradict each other or the ring.
    #[error("the store gives {address} to {key}, which the ring forbids; `weave reset` begins anew")]
    Allocation {
        /// Which address.
        address: IpAddr,
        /// For whom.
        key: AttachmentKey,
    },
}

impl From<Box<Allocation>> for RestoreError {
    fn from(allocation: Box<Allocation>) -> Self {
        Self::Allocation { address: allocation.address, key: allocation.key }
    }
}

/// The refusals since the start, by reason, for the status.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals {
    counts: BTreeMap<String, u64>,
    others: u64,
}

/// How many different refusals are kept apart: enough to see what is going on, too few to fill the memory.
const MAX_KINDS: usize = 32;

impl Refusals {
    /// Counts one.
    pub(crate) fn count(&mut self, rejected: &RejectedUpdate) {
        let text = rejected.to_string();
        if self.counts.len() < MAX_KINDS || self.counts.contains_key(&text) {
            *self.counts.entry(text).or_default() += 1;
        } else {
            self.others += 1;
        }
    }

    /// One line for each kind.
    #[must_use]
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |(text, count): (&String, &u64)| format!("{text} ({count} times)");
        let others = (self.others > 0).then(|| format!("{} refusals for other reasons", self.others));
        self.counts.iter().map(line).chain(others).collect()
    }
}
