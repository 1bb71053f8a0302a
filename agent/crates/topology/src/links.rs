//! The links in use, and which of two links of one pair stays.
//!
//! Two peers that dial each other at the same moment, or a peer that is known under two addresses, end up with two
//! connections. Both ends keep the same one **without talking about it**: the one with the smaller [`Rank`], which is
//! made of the dialler's name and the number that the dialler drew for that connection. Both ends know both, so the
//! order in which they notice does not matter, nor does a third or fourth connection.
//!
//! The loser is not cut off at once. For [`LINGER`] it still carries what the other end sends on it, since that end may
//! not have seen the winner yet; then it is closed as a duplicate, which is no failure and leads to no new attempt. If
//! the winner dies in the meantime, the loser takes over: which link is in use is always just the smallest that lives.
//!
//! **A link counts once both ends want it.** Each end judges the other's hello on its own, and one may object where the
//! other does not (only one has reached its limit of links, or knows another holder of the name). So a link is *pending*
//! until something arrives on it: each end greets the other as soon as it has admitted the link. A pending link carries
//! greetings and nothing else, and is in nobody's record; if it is refused, the mesh never hears of it.
//!
//! **Incarnations.** A link of a later incarnation replaces all links of earlier ones at once: those agents no longer
//! run. If one of them does, it will come back with a smaller uid than the link in place, and that is refused as two
//! holders of one identity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_proto::peer::{Hello, LinkRecord, WireVersion};
use weave_proto::{PeerKey, PeerName};

use crate::{Direction, LinkId, LinkUp};

/// How long the loser of two links lives on. Longer than any round trip on which a mesh would still work.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Decides between links of one pair; the smallest stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    dialler: PeerName,
    nonce: u64,
}

/// An agreed link.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) key: PeerKey,
    pub(crate) hello: Hello,
    pub(crate) direction: Direction,
    pub(crate) addr: SocketAddr,
    pub(crate) since: Instant,
    pub(crate) version: WireVersion,
    rank: Rank,
    /// Whether the other end has admitted it too.
    confirmed: bool,
    /// When to close it, once a better one has taken its place.
    closing: Option<Instant>,
}

impl Link {
    pub(crate) fn new(me: PeerName, up: LinkUp, version: WireVersion, now: Instant) -> Self {
        let rank = match up.direction {
            Direction::Outbound => Rank { dialler: me, nonce: up.nonce },
            Direction::Inbound => Rank { dialler: up.hello.name, nonce: up.hello.nonce },
        };
        Self {
            id: up.link,
            key: up.key,
            hello: up.hello,
            direction: up.direction,
            addr: up.addr,
            since: now,
            version,
            rank,
            confirmed: false,
            closing: None,
        }
    }

    pub(crate) const fn peer(&self) -> PeerName {
        self.hello.name
    }

    pub(crate) const fn is_confirmed(&self) -> bool {
        self.confirmed
    }
}

/// How a new link's incarnation relates to the links in place.
#[derive(Debug)]
pub(crate) enum Incarnation {
    /// There is none, or of the same running agent.
    Same,
    /// The new link is of a later start: the ones in place are dead.
    Later,
    /// The one in place cannot be dead if the new one is true: two agents run with one identity.
    Clash(Box<Link>),
}

/// All links by peer, the one in use first.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_peer: BTreeMap<PeerName, Vec<Link>>,
    peers: BTreeMap<LinkId, PeerName>,
}

impl Links {
    /// What a link with this hello would be to those in place.
    pub(crate) fn incarnation(&self, hello: &Hello) -> Incarnation {
        match self.by_peer.get(&hello.name).and_then(|links| links.first()) {
            None => Incarnation::Same,
            Some(link) if link.hello.instance == hello.instance => Incarnation::Same,
            Some(link) if link.hello.uid < hello.uid => Incarnation::Later,
            Some(link) => Incarnation::Clash(Box::new(link.clone())),
        }
    }

    /// Adds a pending link.
    pub(crate) fn add(&mut self, link: Link, now: Instant) {
        self.peers.insert(link.id, link.peer());
        let links = self.by_peer.entry(link.peer()).or_default();
        links.push(link);
        elect(links, now);
    }

    /// Something has arrived on a link; whether that is the first time. If it is the best of its pair now, the others
    /// linger.
    pub(crate) fn confirm(&mut self, id: LinkId, now: Instant) -> bool {
        let links = self.peers.get(&id).and_then(|peer| self.by_peer.get_mut(peer));
        let Some(links) = links else { return false };
        match links.iter_mut().find(|link| link.id == id) {
            Some(link) if !link.confirmed => link.confirmed = true,
            Some(_) | None => return false,
        }
        elect(links, now);
        true
    }

    /// Takes a link out.
    pub(crate) fn remove(&mut self, id: LinkId, now: Instant) -> Option<Link> {
        let peer = self.peers.remove(&id)?;
        let links = self.by_peer.get_mut(&peer)?;
        let at = links.iter().position(|link| link.id == id)?;
        let link = links.remove(at);
        if links.is_empty() {
            self.by_peer.remove(&peer);
        } else {
            elect(links, now);
        }
        Some(link)
    }

    /// Takes all links with a peer out.
    pub(crate) fn remove_all(&mut self, peer: PeerName) -> Vec<Link> {
        let links = self.by_peer.remove(&peer).unwrap_or_default();
        for link in &links {
            self.peers.remove(&link.id);
        }
        links
    }

    /// Takes those out whose lingering is over.
    pub(crate) fn take_lingered(&mut self, now: Instant) -> Vec<Link> {
        let over = |link: &Link| link.closing.is_some_and(|at| at <= now);
        let ids: Vec<LinkId> =
            self.by_peer.values().flatten().filter(|link| over(link)).map(|link| link.id).collect();
        ids.into_iter().filter_map(|id| self.remove(id, now)).collect()
    }

    /// When the next lingering is over.
    pub(crate) fn next_lingered(&self) -> Option<Instant> {
        self.by_peer.values().flatten().filter_map(|link| link.closing).min()
    }

    /// A link by its name, in use or lingering.
    pub(crate) fn by_id(&self, id: LinkId) -> Option<&Link> {
        self.by_peer.get(self.peers.get(&id)?)?.iter().find(|link| link.id == id)
    }

    /// The link in use with a peer.
    pub(crate) fn to(&self, peer: PeerName) -> Option<&Link> {
        self.by_peer.get(&peer)?.first().filter(|link| link.confirmed)
    }

    /// The links in use, by peer.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = &Link> {
        self.by_peer.values().filter_map(|links| links.first().filter(|link| link.confirmed))
    }

    /// The links that the other end has not answered on.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Link> {
        self.by_peer.values().flatten().filter(|link| !link.confirmed)
    }

    /// The peers that there are links in use with.
    pub(crate) fn neighbours(&self) -> BTreeSet<PeerName> {
        self.in_use().map(Link::peer).collect()
    }

    /// Whether there is a link with a peer, pending or in use.
    pub(crate) fn has(&self, peer: PeerName) -> bool {
        self.by_peer.contains_key(&peer)
    }

    /// The addresses at the other ends, and who is there.
    pub(crate) fn addresses(&self) -> BTreeMap<SocketAddr, PeerName> {
        self.by_peer.values().flatten().map(|link| (link.addr, link.peer())).collect()
    }

    /// How many peers there are links with, pending or in use.
    pub(crate) fn count(&self) -> usize {
        self.by_peer.len()
    }

    /// What our record says about them.
    pub(crate) fn records(&self) -> Vec<LinkRecord> {
        let record = |link: &Link| LinkRecord {
            peer: link.peer(),
            addr: link.addr,
            outbound: link.direction == Direction::Outbound,
        };
        self.in_use().map(record).collect()
    }
}

/// Puts the best link first and lets the others go after a while.
fn elect(links: &mut [Link], now: Instant) {
    links.sort_by_key(|link| (!link.confirmed, link.rank, link.id));
    for (at, link) in links.iter_mut().enumerate() {
        link.closing = if at == 0 || !link.confirmed { None } else { link.closing.or(Some(now + LINGER)) };
    }
}

#[cfg(test)]
mod tests;
