//! The mesh as seen from here at one moment: what the other modules look things up in.
//!
//! Drawing it takes time in proportion to all links of all peers, and every record that arrives changes it a little. So
//! it is drawn at once when the mesh was quiet and otherwise at most every [`PAUSE`]; in between, decisions are made by
//! the last one. Direct links need no survey and are always known as they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_proto::peer::PeerRecord;

use crate::limit::Ring;
use crate::links::Links;
use crate::peers::Peers;
use crate::routes::{Graph, Routes};

/// The least time between two surveys. In a full mesh of 200 peers one takes some milliseconds.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);
/// How many addresses of one peer are worth trying: a few interfaces, not what a mistaken NAT makes up.
const MAX_ADDRESSES: usize = 3;

/// See the module's docs.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) graph: Graph,
    pub(crate) routes: Routes,
    /// Everybody within reach, this peer too.
    pub(crate) ring: Ring,
    /// Where others see the peers that we have no link with, the best first.
    pub(crate) addresses: BTreeMap<PeerName, Vec<SocketAddr>>,
    drawn: Option<Instant>,
    /// Whether something has changed since.
    outdated: bool,
}

impl Survey {
    /// Something has changed.
    pub(crate) const fn outdate(&mut self) {
        self.outdated = true;
    }

    /// When the next one is to be drawn, if something has changed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.outdated.then(|| self.drawn.map(|drawn| drawn + PAUSE)).flatten()
    }

    /// Whether it is time to draw the next one.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.outdated && self.drawn.is_none_or(|drawn| drawn + PAUSE <= now)
    }

    /// The mesh as it is now.
    pub(crate) fn draw(me: PeerName, links: &Links, peers: &Peers, now: Instant) -> Self {
        let graph = Graph::new(me, &links.neighbours(), peers.all());
        let routes = Routes::new(me, &graph);
        let ring = Ring::new(routes.reached().chain([me]));
        let addresses = addresses(me, links, &routes, peers);
        Self { graph, routes, ring, addresses, drawn: Some(now), outdated: false }
    }
}

/// The addresses at which peers within reach see those that we have no link with. Where somebody has dialled comes
/// first: that has worked at least once.
fn addresses(
    me: PeerName,
    links: &Links,
    routes: &Routes,
    peers: &Peers,
) -> BTreeMap<PeerName, Vec<SocketAddr>> {
    let mut found: BTreeMap<PeerName, Vec<(bool, SocketAddr)>> = BTreeMap::new();
    let witnesses = peers.all().filter(|record: &&PeerRecord| routes.reach(record.name));
    for link in witnesses.flat_map(|record| &record.links) {
        if link.peer != me && links.to(link.peer).is_none() {
            found.entry(link.peer).or_default().push((!link.outbound, link.addr));
        }
    }
    let best = |mut seen: Vec<(bool, SocketAddr)>| {
        seen.sort_unstable();
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for (_, addr) in seen {
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&addr) {
                addresses.push(addr);
            }
        }
        addresses
    };
    found.into_iter().map(|(peer, seen)| (peer, best(seen))).collect()
}
