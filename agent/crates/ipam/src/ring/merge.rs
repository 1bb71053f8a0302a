//! Two rings become one.
//!
//! Address by address the later era wins; where both rings are of one era, entry by entry the later version.
//! An entry survives exactly if the other ring does not know a later era for the token's address, which removes
//! the tokens that a takeover swept over without knowing them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weave_proto::PeerName;
use weave_proto::peer::ipam::{MAX_RING_ENTRIES, RingEntry};

use super::{Entry, Ring};

/// What came of a merge that broke no rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Both rings together.
    pub ring: Ring,
    /// The entries that are new or newer than in the first ring.
    pub news: Vec<RingEntry>,
    /// Whether it differs from the first ring.
    pub learns: bool,
    /// Whether it differs from the second ring, so that whoever sent that has something to learn.
    pub teaches: bool,
}

/// Why two rings cannot both be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// An entry of mine has changed, and not by me.
    #[error(
        "{token} is mine in version {ours}, but they know version {theirs}, which I did not make: \
         was an old copy of a store brought back?"
    )]
    NewerThanMine {
        /// The entry.
        token: IpAddr,
        /// The version I made last.
        ours: u32,
        /// The version they know.
        theirs: u32,
    },
    /// Somebody has cut my range, and not me.
    #[error("{token} is in a range of mine, but they know it as a range of {owner}, which I did not give")]
    CutsMine {
        /// The entry that I do not know.
        token: IpAddr,
        /// Whose it is said to be.
        owner: PeerName,
    },
    /// One version of one entry says two things.
    #[error("{token} belongs to {ours} here and to {theirs} there, both in version {version}")]
    TwoOwners {
        /// The entry.
        token: IpAddr,
        /// Its owner here.
        ours: PeerName,
        /// Its owner there.
        theirs: PeerName,
        /// The version of both.
        version: u32,
    },
    /// Together they have more entries than may be.
    #[error("together with theirs, the ring would have {0} entries, more than {MAX_RING_ENTRIES}")]
    Large(usize),
}

impl Ring {
    /// This ring and `theirs` together, as seen by `me`; this ring stays as it is. Both must be of one universe.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn merge(&self, theirs: &Self, me: PeerName) -> Result<Merged, Conflict> {
        let tokens: BTreeSet<IpAddr> = self.entries.keys().chain(theirs.entries.keys()).copied().collect();
        let mut ring = Self { universe: self.universe, entries: self.entries.clone() };
        let mut news = Vec::new();
        for token in tokens {
            match self.settle(theirs, token, me)? {
                Some(entry) => {
                    if ring.entries.insert(token, entry) != Some(entry) {
                        let Entry { owner, version, era } = entry;
                        news.push(RingEntry { token, owner, version, era });
                    }
                }
                None => {
                    ring.entries.remove(&token);
                }
            }
        }
        if ring.entries.len() > MAX_RING_ENTRIES {
            return Err(Conflict::Large(ring.entries.len()));
        }
        let (learns, teaches) = (ring != *self, ring != *theirs);
        Ok(Merged { ring, news, learns, teaches })
    }

    /// What both rings together say about one token; none if a later era has swept over it.
    fn settle(&self, theirs: &Self, token: IpAddr, me: PeerName) -> Result<Option<Entry>, Conflict> {
        let (our_rule, their_rule) = (self.entry_of(token), theirs.entry_of(token));
        let era = our_rule.map(|entry| entry.era).max(their_rule.map(|entry| entry.era));
        let current = |entry: &&Entry| Some(entry.era) == era;
        let ours = self.entries.get(&token).filter(current);
        match (ours, theirs.entries.get(&token).filter(current)) {
            (Some(ours), Some(theirs)) => later(token, ours, theirs, me).map(Some),
            (Some(ours), None) => Ok(Some(*ours)),
            (None, Some(theirs)) => match our_rule.filter(current) {
                Some(rule) if rule.owner == me => Err(Conflict::CutsMine { token, owner: theirs.owner }),
                _ => Ok(Some(*theirs)),
            },
            (None, None) => Ok(None),
        }
    }
}

/// The later of two entries of one token and one era.
fn later(token: IpAddr, ours: &Entry, theirs: &Entry, me: PeerName) -> Result<Entry, Conflict> {
    if ours.version > theirs.version {
        return Ok(*ours);
    }
    if ours.version < theirs.version {
        return if ours.owner == me {
            Err(Conflict::NewerThanMine { token, ours: ours.version, theirs: theirs.version })
        } else {
            Ok(*theirs)
        };
    }
    if ours.owner == theirs.owner {
        return Ok(*ours);
    }
    Err(Conflict::TwoOwners { token, ours: ours.owner, theirs: theirs.owner, version: ours.version })
}
