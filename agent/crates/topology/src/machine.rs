//! The machine: news to the modules, their wishes into one queue.

mod linking;
mod telling;

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weave_proto::peer::{Directed, Hello, Message, Refusal, RefusalCode, Routed, SPOKEN};
use weave_proto::{PeerKey, PeerName};

use crate::connector::{Connector, Sight};
use crate::gossip::{self, Gossip};
use crate::links::{Link, Links};
use crate::own::Own;
use crate::peers::Peers;
use crate::rejections::{Rejection, Rejections};
use crate::survey::Survey;
use crate::{
    Config, DialId, KnownPeer, LinkId, LinkUp, Notice, Output, OwnFacts, Reason, RejectedGossip, Target,
    Unroutable, limit,
};

/// The least time between two writes of what is known of other peers: a mesh that starts learns it in a burst. The way
/// to a peer's pods does not wait: an agent that dies before it is saved would take it down at its next start.
const PERSIST_PAUSE: Duration = Duration::from_secs(1);
/// The topology of the mesh as one peer sees and shapes it.
///
/// Feed it with `handle_*` and the setters; after each call take [`Output`]s with [`Self::poll_output`] until there are
/// none, and call [`Self::handle_timeout`] at [`Self::poll_timeout`] (earlier or later does no harm). The views show the
/// state after the last call.
#[derive(Debug)]
pub struct Topology {
    pub(crate) key: PeerKey,
    name_of: fn(&PeerKey) -> PeerName,
    pub(crate) hello: Hello,
    facts: OwnFacts,
    pub(crate) own: Own,
    pub(crate) peers: Peers,
    pub(crate) links: Links,
    pub(crate) survey: Survey,
    pub(crate) connector: Connector,
    pub(crate) rejections: Rejections,
    gossip: Gossip,
    ipam_digest: u64,
    collisions: BTreeSet<(PeerName, PeerKey)>,
    pace: Pace,
    rng: StdRng,
    outputs: VecDeque<Output>,
}

/// What is to be done at the end of a call, or later.
#[derive(Debug, Default)]
struct Pace {
    own_changed: bool,
    peers_changed: bool,
    links_changed: bool,
    shed_at: Option<Instant>,
    persisted: Option<Instant>,
}

impl Topology {
    /// A peer without links, which wants to reach its targets. `seed` is drawn anew at each start.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Instant) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (lowest, highest) = SPOKEN;
        let hello = Hello {
            lowest,
            highest,
            name: config.name,
            uid: config.uid,
            nickname: config.nickname.clone(),
            nonce: 0,
            instance: rng.random(),
            range: config.range,
            universe: None,
            founders: config.founders,
            features: config.features,
        };
        let mut topology = Self {
            key: config.key,
            name_of: config.name_of,
            facts: OwnFacts { founders: config.founders, ..OwnFacts::default() },
            own: Own::new(&config),
            connector: Connector::new(&config, rng.random(), now),
            peers: Peers::new(config.known, now),
            links: Links::default(),
            survey: Survey::default(),
            rejections: Rejections::default(),
            gossip: Gossip::new(&mut rng, now),
            ipam_digest: 0,
            collisions: BTreeSet::new(),
            pace: Pace::default(),
            rng,
            outputs: VecDeque::from([Output::Hello(hello.clone())]),
            hello,
        };
        topology.survey.outdate();
        topology.settle(now);
        topology
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and what wants it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let unsaved = self.pace.persisted.filter(|_| self.peers.has_unsaved()).map(|at| at + PERSIST_PAUSE);
        let timers = [
            (Some(self.gossip.next_round()), "compare records"),
            (self.own.due(), "tell a change of our own record"),
            (self.survey.due(), "draw the graph"),
            (self.connector.next_timeout(), "dial or look up"),
            (self.links.next_lingered(), "close a duplicate link"),
            (self.peers.next_change(), "let a lost peer depart"),
            (self.pace.shed_at, "shed links"),
            (self.rejections.next_expiry(), "forget a caller"),
            (self.own.twin_fades(), "trust in our identity again"),
            (unsaved, "save known peers"),
        ];
        timers.into_iter().filter_map(|(at, why)| Some((at?, why))).min_by_key(|&(at, _)| at)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for link in self.links.take_lingered(now) {
            let text = format!("there is another link between {} and {}", self.me(), link.peer());
            self.close(&link, Refusal { code: RefusalCode::Duplicate, text });
        }
        let (used, pending) = (self.links.in_use(), self.links.pending());
        let [used, pending]: [Vec<LinkId>; 2] =
            [used.map(|link| link.id).collect(), pending.map(|link| link.id).collect()];
        self.gossip.on_timeout((&used, &pending), &mut self.rng, now);
        for record in self.peers.age(now) {
            let (peer, nickname) = (record.name, record.nickname);
            self.outputs.push_back(Output::Notify(Notice::PeerDeparted { peer, nickname }));
            self.pace.peers_changed = true;
        }
        self.connector.outdate();
        self.rejections.expire(now);
        if self.own.forget_twin(now) {
            self.outputs.push_back(Output::Notify(Notice::IdentityHeldOnce));
        }
        self.shed(now);
        self.settle(now);
    }

    /// A connection is up: both ends have said hello. It becomes a link, or is closed with a reason.
    pub fn handle_link_up(&mut self, up: LinkUp, now: Instant) {
        match self.judge(&up) {
            Ok(version) => self.admit(up, version, now),
            Err(refusal) => self.turn_down(&up, refusal, now),
        }
        self.settle(now);
    }

    /// A link is gone.
    pub fn handle_link_down(&mut self, link: LinkId, reason: Reason, now: Instant) {
        self.gossip.drop_link(link);
        self.heed(&reason, now);
        if let Some(link) = self.links.remove(link, now) {
            self.on_link_gone(&link, &reason, now);
        }
        self.settle(now);
    }

    /// An attempt failed before there was a link.
    pub fn handle_dial_failed(&mut self, dial: DialId, reason: Reason, now: Instant) {
        self.heed(&reason, now);
        let notice = self.connector.on_dial_failed(dial, reason, &mut self.rng, now);
        self.outputs.extend(notice);
        self.settle(now);
    }

    /// Somebody called and failed before there was a link, for example for want of the secret.
    pub fn handle_caller_refused(&mut self, addr: SocketAddr, text: &str, now: Instant) {
        self.rejections.note(Rejection::new(addr, None, text, now));
        self.settle(now);
    }

    /// A name was looked up, or could not be.
    pub fn handle_resolved(&mut self, target: &Target, found: Result<Vec<SocketAddr>, String>, now: Instant) {
        let notice = self.connector.on_resolved(target, found, &mut self.rng, now);
        self.outputs.extend(notice);
        self.settle(now);
    }

    /// A neighbour said something that concerns the topology, or a message for one peer came by.
    ///
    /// # Errors
    /// The message, or a part of it, was not believed. The rest was taken.
    pub fn handle_message(
        &mut self,
        link: LinkId,
        message: Message,
        now: Instant,
    ) -> Result<(), RejectedGossip> {
        let from = self.links.by_id(link).map(Link::peer).ok_or(RejectedGossip::NoSuchLink)?;
        let is_first = self.links.to(from).is_none();
        if self.links.confirm(link, now) {
            self.on_confirmed(link, is_first);
        }
        let unexpected = |what| Err(RejectedGossip::Unexpected { from, what });
        let result = match message {
            Message::Topology(records) => self.on_records(link, from, records, now),
            Message::Digest(digest) => {
                self.on_digest(link, &digest);
                Ok(())
            }
            Message::Want(names) => {
                names.into_iter().for_each(|name| self.gossip.tell(link, name));
                Ok(())
            }
            Message::Directed(directed) => {
                self.on_directed(directed);
                Ok(())
            }
            Message::Warning(warning) => {
                self.heed(&Reason { text: warning.text, refused: Some(warning.code) }, now);
                Ok(())
            }
            Message::Routed(routed) => {
                self.on_routed(routed);
                Ok(())
            }
            Message::Terms(terms) => {
                self.outputs.push_back(Output::Terms { from, terms });
                Ok(())
            }
            Message::Offer(offer) => {
                self.outputs.push_back(Output::Offer { link, from, offer });
                Ok(())
            }
            Message::Hello(_) => unexpected("a second hello"),
            Message::Refusal(_) => unexpected("a refusal without closing"),
            Message::Ipam(_) => unexpected("allocator state to the topology"),
            Message::Handshake(_) => unexpected("a handshake for peers without a link"),
        };
        self.settle(now);
        result
    }

    /// What other rooms want to be told to the mesh.
    pub fn set_own(&mut self, facts: OwnFacts, now: Instant) {
        if (facts.universe, facts.founders) != (self.hello.universe, self.hello.founders) {
            self.hello.universe = facts.universe;
            self.hello.founders = facts.founders;
            self.outputs.push_back(Output::Hello(self.hello.clone()));
        }
        self.pace.own_changed |= facts != self.facts;
        self.facts = facts;
        self.settle(now);
    }

    /// The hash of what this peer knows about ownership; digests carry it.
    pub const fn set_ipam_digest(&mut self, digest: u64) {
        self.ipam_digest = digest;
    }

    /// People want these peers reached too, or with `replace` these and no others.
    pub fn connect(&mut self, targets: Vec<Target>, replace: bool, now: Instant) {
        self.connector.connect(targets, replace, now);
        self.outputs.push_back(Output::PersistTargets(self.connector.targets()));
        self.settle(now);
    }

    /// People no longer want these peers reached. Links that are up stay up.
    pub fn forget(&mut self, targets: &[Target], now: Instant) {
        self.connector.forget(targets);
        self.outputs.push_back(Output::PersistTargets(self.connector.targets()));
        self.settle(now);
    }

    /// A peer was removed from the mesh for good: closes its links for that reason and forgets where it was.
    pub fn remove_peer(&mut self, peer: PeerName, text: &str, now: Instant) {
        for link in self.links.remove_all(peer) {
            self.close(&link, Refusal { code: RefusalCode::Removed, text: text.to_owned() });
            self.on_link_gone(
                &link,
                &Reason { text: text.to_owned(), refused: Some(RefusalCode::Removed) },
                now,
            );
        }
        self.peers.forget(peer);
        self.pace.peers_changed = true;
        self.survey.outdate();
        self.settle(now);
    }

    /// Sends a message to one peer, over as many hops as it takes.
    ///
    /// # Errors
    /// There is no path.
    pub fn route(&mut self, directed: Directed) -> Result<(), Unroutable> {
        if directed.dst == self.me() {
            self.outputs.push_back(Output::Directed(directed));
            return Ok(());
        }
        let link = self.link_towards(directed.dst).ok_or(Unroutable(directed.dst))?.id;
        self.outputs.push_back(Output::Send { link, message: Message::Directed(directed) });
        Ok(())
    }

    /// Sends bytes to one peer's data plane, over as many hops as it takes.
    ///
    /// # Errors
    /// There is no path.
    pub fn route_tunnel(&mut self, routed: Routed) -> Result<(), Unroutable> {
        if routed.dst == self.me() {
            self.outputs.push_back(Output::Routed(routed));
            return Ok(());
        }
        let link = self.link_towards(routed.dst).ok_or(Unroutable(routed.dst))?.id;
        self.outputs.push_back(Output::Send { link, message: Message::Routed(routed) });
        Ok(())
    }

    pub(crate) const fn me(&self) -> PeerName {
        self.hello.name
    }

    /// The link to hand something to that is meant for `peer`.
    pub(crate) fn link_towards(&self, peer: PeerName) -> Option<&Link> {
        self.links.to(peer).or_else(|| self.links.to(self.survey.routes.to(peer)?.via))
    }

    fn sight(&self) -> Sight<'_> {
        Sight { links: &self.links, peers: &self.peers, survey: &self.survey }
    }
}

/// What follows from the news.
impl Topology {
    /// Remembers that the other end talks to somebody else of our name.
    fn heed(&mut self, reason: &Reason, now: Instant) {
        if reason.refused == Some(RefusalCode::NameCollision) {
            self.beware(reason.text.clone(), now);
        }
    }

    /// Somebody else speaks in our name.
    fn beware(&mut self, text: String, now: Instant) {
        if self.own.beware(text.clone(), now) {
            self.outputs.push_back(Output::Notify(Notice::IdentityHeldTwice(text)));
        }
    }

    fn settle(&mut self, now: Instant) {
        let own_due = self.own.due().is_some_and(|at| at <= now);
        if std::mem::take(&mut self.pace.own_changed) || own_due {
            let links = self.links.records();
            if self.own.publish(&self.facts, links, now) {
                self.tell_all_about_me();
            }
        }
        if self.survey.is_due(now) {
            self.draw_survey(now);
        }
        let sight = Sight { links: &self.links, peers: &self.peers, survey: &self.survey };
        self.outputs.extend(self.connector.plan(sight, &mut self.rng, now));
        if !self.connector.is_above_limit(self.links.count()) {
            self.pace.shed_at = None;
        } else if self.pace.shed_at.is_none() {
            self.pace.shed_at = Some(now + crate::backoff::vary(limit::SHED_INTERVAL, &mut self.rng));
        }
        self.flush();
        self.persist(now);
        if std::mem::take(&mut self.pace.links_changed) {
            self.outputs.push_back(Output::LinksChanged);
        }
        if std::mem::take(&mut self.pace.peers_changed) {
            self.outputs.push_back(Output::PeersChanged);
        }
    }

    fn draw_survey(&mut self, now: Instant) {
        let drawn = Survey::draw(self.me(), &self.links, &self.peers, now);
        // Whoever looks things up in the graph finds something else now.
        self.pace.peers_changed |= !self.survey.graph.is_like(&drawn.graph);
        self.survey = drawn;
        let routes = &self.survey.routes;
        self.pace.peers_changed |= self.peers.set_reachable(|peer| routes.reach(peer), now);
        for (&peer, addresses) in &self.survey.addresses {
            self.pace.peers_changed |= self.peers.relocate(peer, addresses);
        }
        self.connector.outdate();
    }

    fn flush(&mut self) {
        let (own, peers, ipam) = (self.own.record(), &self.peers, self.ipam_digest);
        let record = |name| if name == own.name { Some(own) } else { peers.record(name) };
        let digest = || gossip::digest(peers.present().chain([own]), ipam);
        self.outputs.extend(self.gossip.flush(record, digest));
    }

    fn persist(&mut self, now: Instant) {
        let due = self.pace.persisted.is_none_or(|last| last + PERSIST_PAUSE <= now);
        if self.peers.has_unsaved_path() || (self.peers.has_unsaved() && due) {
            self.pace.persisted = Some(now);
            let known: Vec<KnownPeer> = self.peers.take_unsaved();
            self.outputs.push_back(Output::PersistPeers(known));
        }
    }
}

#[cfg(test)]
mod tests;
