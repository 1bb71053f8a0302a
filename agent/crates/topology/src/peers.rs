//! The records of all peers, and who is gone.
//!
//! ```text
//!              a path appears
//!        +---------------------------+----------------------------+
//!        v                           |                            |
//!   Reachable -- no path --> Unreachable -- GRACE --> Departed -- MEMORY --> (record dropped)
//! ```
//!
//! A peer that cannot be reached stays in the graph for a while, since most come back. Then it *departs*: it is no
//! longer shown, counted or told to others, but its record stays known. That is what keeps the dead from walking: if
//! the record were dropped at once, the next digest of a neighbour that is a moment behind would bring it back as
//! news, with a new grace period, and so on around the mesh for ever. And where a partition heals in which the peer
//! itself has changed nothing, its old record is what makes it reachable again.
//!
//! What the data plane needs of a peer (its addresses) outlives the record: see [`KnownPeer`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_proto::peer::PeerRecord;
use weave_proto::peer::topology::MAX_LINKS;
use weave_proto::{PeerKey, PeerName, PeerUid};

use crate::KnownPeer;

/// How long a peer without a path still counts. An agent's restart takes a few seconds, a node's a minute or so; after
/// that a status which still lists it says little.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
/// How long a departed peer's record is kept, and how long a lost peer is looked for where it was. By then every peer of the same part of the mesh, whose graces began
/// within seconds of ours, has long stopped to mention it.
pub(crate) const MEMORY: Duration = Duration::from_secs(3600);

/// How a record compares with what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is larger, or the first of its peer: take it.
    News,
    /// It is what we have.
    Same,
    /// We have a larger one.
    Old,
    /// The name belongs to another key.
    Collision(PeerKey),
}

/// Compares a record with what is known of that name. Taking only news, in any order and any number of times, always
/// ends with the largest.
pub(crate) fn judge(known: Option<&PeerRecord>, record: &PeerRecord) -> Verdict {
    let Some(known) = known else { return Verdict::News };
    if known.key != record.key {
        return Verdict::Collision(known.key);
    }
    match (record.uid, record.version).cmp(&(known.uid, known.version)) {
        std::cmp::Ordering::Greater => Verdict::News,
        std::cmp::Ordering::Equal => Verdict::Same,
        std::cmp::Ordering::Less => Verdict::Old,
    }
}

/// What is wrong with the form of a record; nothing if it is sound.
pub(crate) fn flaw(record: &PeerRecord) -> Option<&'static str> {
    if record.links.len() > MAX_LINKS {
        Some("lists too many links")
    } else if !record.links.is_sorted_by(|one, next| one.peer < next.peer) {
        Some("lists links out of order or twice")
    } else if record.links.iter().any(|link| link.peer == record.name) {
        Some("lists a link with itself")
    } else {
        None
    }
}

/// Whether a peer can be reached, and since when not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Reachable,
    Unreachable { since: Instant },
    Departed { since: Instant },
}

#[derive(Debug, Clone)]
struct Entry {
    record: PeerRecord,
    standing: Standing,
}

#[derive(Debug, Clone)]
struct Remembered {
    facts: KnownPeer,
    hope: Hope,
}

/// Whether a peer is worth looking for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hope {
    /// No need: it is in reach.
    InReach,
    /// It may come back where it was.
    Until(Instant),
    /// It has been away for too long.
    GivenUp,
}

/// The records by name, this peer's own not among them.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    entries: BTreeMap<PeerName, Entry>,
    known: BTreeMap<PeerName, Remembered>,
    /// Whose remembered facts have changed since they were last taken for the store.
    unsaved: BTreeSet<PeerName>,
    /// Whether the way to a peer's pods is among what has changed.
    path_unsaved: bool,
}

impl Peers {
    pub(crate) fn new(known: Vec<KnownPeer>, now: Instant) -> Self {
        let known = known
            .into_iter()
            .map(|facts| (facts.name, Remembered { facts, hope: Hope::Until(now + MEMORY) }))
            .collect();
        Self { known, ..Self::default() }
    }

    /// Takes the record if it is news. A peer of which nothing was known has no path until the graph says so.
    pub(crate) fn merge(&mut self, record: PeerRecord, now: Instant) -> Verdict {
        let verdict = judge(self.entries.get(&record.name).map(|entry| &entry.record), &record);
        if verdict == Verdict::News {
            self.remember(&record, now);
            match self.entries.get_mut(&record.name) {
                Some(entry) => entry.record = record,
                None => {
                    let standing = Standing::Unreachable { since: now };
                    self.entries.insert(record.name, Entry { record, standing });
                }
            }
        }
        verdict
    }

    /// The record of a peer, departed or not.
    pub(crate) fn record(&self, name: PeerName) -> Option<&PeerRecord> {
        self.entries.get(&name).map(|entry| &entry.record)
    }

    /// The key that a name is known with.
    pub(crate) fn key(&self, name: PeerName) -> Option<PeerKey> {
        self.record(name).map(|record| record.key)
    }

    /// All records, those of departed peers too: what the graph is made of.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PeerRecord> {
        self.entries.values().map(|entry| &entry.record)
    }

    /// The records of peers that have not departed.
    pub(crate) fn present(&self) -> impl Iterator<Item = &PeerRecord> {
        self.entries.keys().filter_map(|&name| self.present_one(name))
    }

    /// The record of one peer, if it has not departed.
    pub(crate) fn present_one(&self, name: PeerName) -> Option<&PeerRecord> {
        let entry = self.entries.get(&name)?;
        match entry.standing {
            Standing::Reachable | Standing::Unreachable { .. } => Some(&entry.record),
            Standing::Departed { .. } => None,
        }
    }

    pub(crate) fn is_reachable(&self, name: PeerName) -> bool {
        self.entries.get(&name).is_some_and(|entry| entry.standing == Standing::Reachable)
    }

    /// What is remembered of each peer.
    pub(crate) fn known(&self) -> impl Iterator<Item = &KnownPeer> {
        self.known.values().map(|known| &known.facts)
    }

    /// Where to look for peers that are out of reach, as long as there is hope.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (PeerName, SocketAddr)> {
        self.known.values().filter_map(|known| match (known.hope, known.facts.underlay) {
            (Hope::Until(_), Some(underlay)) => Some((known.facts.name, underlay)),
            (Hope::Until(_), None) | (Hope::InReach | Hope::GivenUp, _) => None,
        })
    }

    /// Notes where a peer is.
    pub(crate) fn locate(&mut self, name: PeerName, underlay: SocketAddr) -> bool {
        let Some(known) = self.known.get_mut(&name).filter(|known| known.facts.underlay != Some(underlay))
        else {
            return false;
        };
        known.facts.underlay = Some(underlay);
        self.path_unsaved |= known.facts.overlay.is_some();
        self.unsaved.insert(name);
        true
    }

    /// Others see a peer at these addresses, the best first: notes a new place if nobody sees it at the old one any more.
    pub(crate) fn relocate(&mut self, name: PeerName, seen: &[SocketAddr]) -> bool {
        let old = self.known.get(&name).and_then(|known| known.facts.underlay);
        match seen.first() {
            Some(&best) if old.is_none_or(|old| !seen.contains(&old)) => self.locate(name, best),
            Some(_) | None => false,
        }
    }

    /// Notes who has a path now; whether that changed anything.
    pub(crate) fn set_reachable(&mut self, has_path: impl Fn(PeerName) -> bool, now: Instant) -> bool {
        let mut changed = false;
        for (&name, entry) in &mut self.entries {
            let standing = match (has_path(name), entry.standing) {
                (true, _) => Standing::Reachable,
                (false, Standing::Reachable) => Standing::Unreachable { since: now },
                (false, same @ (Standing::Unreachable { .. } | Standing::Departed { .. })) => same,
            };
            if standing == entry.standing {
                continue;
            }
            changed = true;
            entry.standing = standing;
            if let Some(known) = self.known.get_mut(&name) {
                known.hope = match standing {
                    Standing::Reachable => Hope::InReach,
                    Standing::Unreachable { .. } | Standing::Departed { .. } => Hope::Until(now + MEMORY),
                };
            }
        }
        changed
    }

    /// Lets peers depart and be forgotten whose time has come; returns those that departed.
    pub(crate) fn age(&mut self, now: Instant) -> Vec<PeerRecord> {
        let mut departed = Vec::new();
        for known in self.known.values_mut() {
            if matches!(known.hope, Hope::Until(end) if end <= now) {
                known.hope = Hope::GivenUp;
            }
        }
        self.entries.retain(|_, entry| match entry.standing {
            Standing::Reachable => true,
            Standing::Unreachable { since } => {
                if now >= since + GRACE {
                    entry.standing = Standing::Departed { since: now };
                    departed.push(entry.record.clone());
                }
                true
            }
            Standing::Departed { since } => now < since + MEMORY,
        });
        departed
    }

    /// When [`Self::age`] has something to do.
    pub(crate) fn next_change(&self) -> Option<Instant> {
        let standings = self.entries.values().filter_map(|entry| match entry.standing {
            Standing::Reachable => None,
            Standing::Unreachable { since } => Some(since + GRACE),
            Standing::Departed { since } => Some(since + MEMORY),
        });
        let hopes = self.known.values().filter_map(|known| match known.hope {
            Hope::Until(end) => Some(end),
            Hope::InReach | Hope::GivenUp => None,
        });
        standings.chain(hopes).min()
    }

    /// Drops all that is known of a peer: it was removed for good.
    pub(crate) fn forget(&mut self, name: PeerName) {
        self.entries.remove(&name);
        self.known.remove(&name);
        self.unsaved.remove(&name);
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Whether an agent that died now would start again without the way to a peer's pods, and take it down.
    pub(crate) const fn has_unsaved_path(&self) -> bool {
        self.path_unsaved
    }

    /// The remembered facts that the store does not have yet.
    pub(crate) fn take_unsaved(&mut self) -> Vec<KnownPeer> {
        self.path_unsaved = false;
        let names = std::mem::take(&mut self.unsaved);
        names.iter().filter_map(|name| Some(self.known.get(name)?.facts.clone())).collect()
    }

    fn remember(&mut self, record: &PeerRecord, now: Instant) {
        let old = self.known.get(&record.name);
        let facts = KnownPeer {
            name: record.name,
            key: record.key,
            nickname: record.nickname.clone(),
            features: record.features,
            // An agent that has just started may not know its own address yet; its pods are still behind the old one.
            overlay: record.overlay.or_else(|| old.and_then(|old| old.facts.overlay)),
            underlay: old.and_then(|old| old.facts.underlay),
        };
        if old.is_some_and(|old| old.facts == facts) {
            return;
        }
        let moved = old.is_none_or(|old| old.facts.overlay != facts.overlay);
        self.path_unsaved |= moved && facts.overlay.is_some() && facts.underlay.is_some();
        let hope = old.map_or(Hope::Until(now + MEMORY), |old| old.hope);
        self.unsaved.insert(record.name);
        self.known.insert(record.name, Remembered { facts, hope });
    }
}

/// Whether a record that claims to be ours is from another incarnation or another holder of our identity.
pub(crate) fn outranks(record: &PeerRecord, own: &PeerRecord) -> bool {
    (record.uid, record.version) > (own.uid, own.version)
}

/// The uid that wins against one which somebody else used in our name.
pub(crate) const fn above(uid: PeerUid) -> PeerUid {
    PeerUid(uid.0.saturating_add(1))
}

#[cfg(test)]
mod tests;
