//! How the mesh stays in one piece when each peer may have a few links only.
//!
//! With a limit, peers must not link with whoever comes first: a mesh in which everybody's links are used up can be two
//! meshes, and nobody has a free link to join them. The rule has four parts.
//!
//! 1. **A ring that is always allowed.** All peers within reach, this one among them, are put in the order of their
//!    names and the last is followed by the first. A peer links with the one before and the one after it whatever its
//!    limit is. Names are hashes of keys, so everybody computes the same ring, nobody has to agree on it, and each peer
//!    has just two such neighbours. If all these links are up, the mesh is connected by them alone, and any others may
//!    come and go.
//! 2. **Chance fills the rest.** Below its limit, a peer links with others in an order of its own, drawn from its seed.
//!    A ring alone has long ways and two failures split it; with one or more links at random on top, ways are short
//!    (their length grows with the logarithm of the number of peers) and a split needs many failures.
//! 3. **Who is cut off is let in.** A peer that cannot be reached is dialled, and its call is taken, beyond the limit.
//!    That covers a newcomer which knows one full peer, and the two halves of a healed partition.
//! 4. **Shedding never cuts.** A peer above its limit closes links that have lived for [`SETTLING`], a quarter of the
//!    surplus at a time, and only links which the ring makes superfluous: both ends have both their ring links, neither
//!    is the other's ring neighbour. Two peers that shed at the same moment thus rely on ring links, which nobody
//!    sheds, and not on each other's surplus. Where a ring link cannot be had (a firewall, discovery switched off), the
//!    peers concerned keep what they have.
//!
//! So the limit is soft: it bounds what a peer asks for, and it is exceeded where the mesh would suffer. Should a cut
//! happen in spite of all that, part 3 mends it, since the other side is then out of reach.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use weave_proto::peer::{Refusal, RefusalCode};
use weave_proto::{Nickname, PeerName};

use crate::links::{Link, Links};
use crate::survey::Survey;

/// How long a link above the limit lives at least: a newcomer needs it to learn of the others and to link with its
/// neighbours in the ring.
pub(crate) const SETTLING: Duration = Duration::from_secs(10);
/// The time between two rounds of shedding: enough for what the first one changed to be known everywhere.
pub(crate) const SHED_INTERVAL: Duration = Duration::from_secs(5);

/// Peers in the order of their names, the last followed by the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ring {
    names: Vec<PeerName>,
}

impl Ring {
    pub(crate) fn new(names: impl Iterator<Item = PeerName>) -> Self {
        let mut names: Vec<PeerName> = names.collect();
        names.sort_unstable();
        names.dedup();
        Self { names }
    }

    /// The peers before and after this one, whether it is in the ring already or not; fewer if there are not so many.
    pub(crate) fn neighbours(&self, of: PeerName) -> Vec<PeerName> {
        let others = self.names.iter().copied().filter(|&name| name != of);
        let before = others.clone().rfind(|&name| name < of).or_else(|| others.clone().next_back());
        let after = others.clone().find(|&name| name > of).or_else(|| others.clone().next());
        let mut neighbours: Vec<PeerName> = before.into_iter().chain(after).collect();
        neighbours.dedup();
        neighbours
    }

    /// Whether the two stand side by side.
    pub(crate) fn are_neighbours(&self, one: PeerName, other: PeerName) -> bool {
        self.neighbours(one).contains(&other) || self.neighbours(other).contains(&one)
    }
}

/// How many more links a peer may ask for.
pub(crate) fn allowance(limit: Option<NonZeroUsize>, links: usize) -> usize {
    limit.map_or(usize::MAX, |limit| limit.get().saturating_sub(links))
}

/// Whether a link that another peer asks for is to be taken, although the limit is reached.
pub(crate) fn is_needed(me: PeerName, other: PeerName, survey: &Survey) -> bool {
    !survey.routes.reach(other) || survey.ring.are_neighbours(me, other)
}

/// The links to close now, if there are more than the limit allows: what part 4 of the rule says. `luck` orders the
/// candidates that are as good as each other.
pub(crate) fn surplus(
    me: PeerName,
    limit: NonZeroUsize,
    (links, survey): (&Links, &Survey),
    luck: impl Fn(PeerName) -> u64,
    now: Instant,
) -> Vec<PeerName> {
    let excess = links.count().saturating_sub(limit.get());
    let has_ring_links = |peer: PeerName| {
        survey.ring.neighbours(peer).into_iter().all(|neighbour| survey.graph.has(peer, neighbour))
    };
    if excess == 0 || !has_ring_links(me) {
        return Vec::new();
    }
    let may_go = |link: &&Link| {
        now >= link.since + SETTLING
            && has_ring_links(link.peer())
            && !survey.ring.are_neighbours(me, link.peer())
    };
    let mut candidates: Vec<PeerName> = links.in_use().filter(may_go).map(Link::peer).collect();
    // Those with most links miss one least.
    candidates.sort_by_key(|&peer| (usize::MAX - survey.graph.degree(peer), luck(peer)));
    candidates.truncate(excess.div_ceil(4));
    candidates
}

/// What to say to a peer that is not taken in, or that is let go.
pub(crate) fn refusal(me: PeerName, nickname: &Nickname, links: usize) -> Refusal {
    Refusal {
        code: RefusalCode::Limit,
        text: format!(
            "peer {me}({nickname}) has {links} links, as many as its --conn-limit allows; the two stay connected through \
             other peers"
        ),
    }
}

/// A number that a peer draws for another one: different for each seed, the same each time.
pub(crate) fn luck(salt: u64, peer: PeerName) -> u64 {
    draw(salt, &peer.mac())
}

/// The same for an address at which nobody is known.
pub(crate) fn luck_of_address(salt: u64, addr: SocketAddr) -> u64 {
    let port = u64::from(addr.port());
    match addr.ip() {
        IpAddr::V4(ip) => draw(salt ^ port, &ip.octets()),
        IpAddr::V6(ip) => draw(salt ^ port, &ip.octets()),
    }
}

fn draw(salt: u64, bytes: &[u8]) -> u64 {
    let bits = bytes.iter().fold(salt, |bits, &byte| bits.rotate_left(8) ^ u64::from(byte));
    // The finishing steps of SplitMix64: each bit of the input changes about half of the bits of the result.
    let mixed = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
