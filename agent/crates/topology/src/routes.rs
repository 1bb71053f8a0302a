//! The graph of links and the next hops through it.
//!
//! A link counts if *both* ends report it: a peer that died cannot deny the links that it last reported, but its former
//! neighbours do. Only the links of the peer that computes are taken as it sees them itself, since it need not wait to
//! hear about them from others.
//!
//! The routes are computed anew from the whole graph each time and never repaired. Breadth first, neighbours in the
//! order of their names: peers which know the same graph compute distances that agree, so each hop brings a message
//! one step nearer and there is no loop. While peers know different graphs a message may run in a circle; the hop limit
//! of [`Directed`](weave_proto::peer::Directed) ends that, and what it carries is repeated by its sender.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weave_proto::PeerName;
use weave_proto::peer::PeerRecord;

/// Who is linked to whom, as far as both say so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Graph {
    edges: BTreeMap<PeerName, BTreeSet<PeerName>>,
}

impl Graph {
    /// The links that both ends report, and those of `me` as given.
    pub(crate) fn new<'a>(
        me: PeerName,
        neighbours: &BTreeSet<PeerName>,
        records: impl Iterator<Item = &'a PeerRecord>,
    ) -> Self {
        let claims: BTreeMap<PeerName, BTreeSet<PeerName>> = records
            .filter(|record| record.name != me)
            .map(|record| (record.name, record.links.iter().map(|link| link.peer).collect()))
            .collect();
        let mut edges: BTreeMap<PeerName, BTreeSet<PeerName>> = BTreeMap::new();
        for (&one, others) in &claims {
            let agreed =
                others.iter().filter(|other| claims.get(other).is_some_and(|back| back.contains(&one)));
            edges.insert(one, agreed.copied().collect());
        }
        for &neighbour in neighbours {
            edges.entry(neighbour).or_default().insert(me);
        }
        edges.insert(me, neighbours.clone());
        Self { edges }
    }

    /// Whether the two are linked.
    pub(crate) fn has(&self, one: PeerName, other: PeerName) -> bool {
        self.edges.get(&one).is_some_and(|others| others.contains(&other))
    }

    /// Whether the same peers are linked in both.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let linked = |(_, others): &(&PeerName, &BTreeSet<PeerName>)| !others.is_empty();
        self.edges.iter().filter(linked).eq(other.edges.iter().filter(linked))
    }

    /// Those of `some` that are linked to `peer`.
    pub(crate) fn between(&self, some: impl Iterator<Item = PeerName>, peer: PeerName) -> Vec<PeerName> {
        let Some(others) = self.edges.get(&peer) else { return Vec::new() };
        some.filter(|one| others.contains(one)).collect()
    }

    /// How many links a peer has.
    pub(crate) fn degree(&self, peer: PeerName) -> usize {
        self.edges.get(&peer).map_or(0, BTreeSet::len)
    }
}

/// The first step on a shortest path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The neighbour to hand it to.
    pub(crate) via: PeerName,
    /// How many links there are to the end.
    pub(crate) distance: usize,
}

/// For each peer that there is a path to, the first step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Routes {
    hops: BTreeMap<PeerName, Hop>,
}

impl Routes {
    /// The routes of `me`.
    pub(crate) fn new(me: PeerName, graph: &Graph) -> Self {
        let mut hops: BTreeMap<PeerName, Hop> = BTreeMap::new();
        let mut ahead = VecDeque::from([(me, None)]);
        while let Some((at, reached)) = ahead.pop_front() {
            for &next in graph.edges.get(&at).into_iter().flatten() {
                if next == me || hops.contains_key(&next) {
                    continue;
                }
                let hop = reached.map_or(Hop { via: next, distance: 1 }, |Hop { via, distance }| Hop {
                    via,
                    distance: distance + 1,
                });
                hops.insert(next, hop);
                ahead.push_back((next, Some(hop)));
            }
        }
        Self { hops }
    }

    /// The first step to a peer.
    pub(crate) fn to(&self, peer: PeerName) -> Option<Hop> {
        self.hops.get(&peer).copied()
    }

    /// Whether there is a path to a peer.
    pub(crate) fn reach(&self, peer: PeerName) -> bool {
        self.hops.contains_key(&peer)
    }

    /// Everybody that there is a path to, in the order of names.
    pub(crate) fn reached(&self) -> impl Iterator<Item = PeerName> {
        self.hops.keys().copied()
    }
}

#[cfg(test)]
mod tests;
