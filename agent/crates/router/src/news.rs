//! What is told of ownership, when and to whom.
//!
//! The whole state is told each time, and a first split among two dozen peers changes it a hundred times within seconds.
//! So the first change is told at once and the next ones, together, after a pause that grows with the number of
//! neighbours; nobody is told what somebody else tells it, or what it was told already.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_proto::peer::{IpamState, Message};
use weave_topology::LinkId;

use crate::router::{Output, Router};

/// The pause between two times, for a peer without neighbours.
const PAUSE: Duration = Duration::from_millis(50);
/// What each neighbour adds to it.
const PAUSE_PER_LINK: Duration = Duration::from_millis(5);

/// What is to be told, and what was.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Whether something is new from here, which nobody else tells.
    own: bool,
    /// Who has said something else that is new: each tells its own neighbours.
    heard_from: BTreeSet<PeerName>,
    /// When something was last told.
    last: Option<Instant>,
    /// The digest of what each neighbour was last told, by link.
    told: BTreeMap<LinkId, u64>,
}

impl News {
    /// Something is new, said by somebody or from here.
    pub(crate) fn add(&mut self, heard_from: Option<PeerName>) {
        match heard_from {
            Some(peer) => drop(self.heard_from.insert(peer)),
            None => self.own = true,
        }
    }

    /// A link is gone: what was under way on it may be lost.
    pub(crate) fn drop_link(&mut self, link: LinkId) {
        self.told.remove(&link);
    }

    /// Whether what has this digest was sent on this link, so that it arrives or the link is lost.
    pub(crate) fn is_told(&self, link: LinkId, digest: u64) -> bool {
        self.told.get(&link) == Some(&digest)
    }

    /// When to tell, if there is something to tell.
    pub(crate) fn due(&self, neighbours: usize) -> Option<Instant> {
        let pause = PAUSE + PAUSE_PER_LINK * u32::try_from(neighbours).unwrap_or(u32::MAX);
        self.last.map(|last| last + pause).filter(|_| self.own || !self.heard_from.is_empty())
    }

    fn is_due(&self, neighbours: usize, now: Instant) -> bool {
        (self.own || !self.heard_from.is_empty()) && self.due(neighbours).is_none_or(|due| due <= now)
    }
}

impl Router {
    /// Tells what is new, if it is time. To be called when no room has anything left to do, lest something be told that
    /// is still to be made durable.
    pub(crate) fn tell_news(&mut self, now: Instant) {
        if !self.news.is_due(self.topology.neighbours(), now) {
            return;
        }
        self.news.last = Some(now);
        let (own, heard_from) =
            (std::mem::take(&mut self.news.own), std::mem::take(&mut self.news.heard_from));
        let links: BTreeSet<LinkId> = if own {
            self.topology.links_for_news(&[]).into_iter().collect()
        } else {
            heard_from.iter().flat_map(|&peer| self.topology.links_for_news(&[peer])).collect()
        };
        let digest = self.ipam.digest();
        for link in links {
            if !self.news.is_told(link, digest) {
                self.tell_ipam(link, Box::new(self.ipam.state()), digest);
            }
        }
    }

    /// Tells one neighbour what is known of ownership.
    pub(crate) fn tell_ipam(&mut self, link: LinkId, state: Box<IpamState>, digest: u64) {
        self.news.told.insert(link, digest);
        self.outputs.push_back(Output::Send { link, message: Message::Ipam(state) });
    }
}
