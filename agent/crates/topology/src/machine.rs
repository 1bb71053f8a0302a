//! The machine: news to the modules, their wishes into one queue.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weave_proto::peer::topology::MAX_RECORDS;
use weave_proto::peer::{
    Digest, Directed, Hello, Message, PeerRecord, Refusal, RefusalCode, SPOKEN, WireVersion,
};
use weave_proto::{PeerKey, PeerName};

use crate::connector::{Connector, Sight};
use crate::gossip::{self, Gossip};
use crate::hello::{End, agree, held_twice};
use crate::links::{Incarnation, Link, Links};
use crate::own::{Contest, Own};
use crate::peers::{Peers, Verdict, flaw};
use crate::rejections::{Rejection, Rejections};
use crate::survey::Survey;
use crate::{
    Config, DialId, Direction, KnownPeer, LinkId, LinkUp, Notice, Output, OwnFacts, Reason, RejectedGossip,
    Target, Unroutable, limit,
};

/// The least time between two writes of what is known of other peers: a mesh that starts learns it in a burst.
const PERSIST_PAUSE: Duration = Duration::from_secs(1);
/// How many collisions of names are told about; each is told once.
const MAX_COLLISIONS: usize = 64;

/// The topology of the mesh as one peer sees and shapes it.
///
/// Feed it with `handle_*` and the setters; after each call take [`Output`]s with [`Self::poll_output`] until there are
/// none, and call [`Self::handle_timeout`] at [`Self::poll_timeout`] (earlier or later does no harm). The views show the
/// state after the last call.
#[derive(Debug)]
pub struct Topology {
    pub(crate) key: PeerKey,
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
        if let Some(link) = self.links.remove(link, now) {
            self.on_link_gone(&link, &reason, now);
        }
        self.settle(now);
    }

    /// An attempt failed before there was a link.
    pub fn handle_dial_failed(&mut self, dial: DialId, reason: Reason, now: Instant) {
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
            Message::Hello(_) => unexpected("a second hello"),
            Message::Refusal(_) => unexpected("a refusal without closing"),
            Message::Ipam(_) => unexpected("allocator state to the topology"),
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

    /// Sends a message to all neighbours, or all but the one it came from.
    pub fn broadcast(&mut self, message: &Message, except: Option<LinkId>) {
        let source = except.and_then(|link| self.links.by_id(link)).map(Link::peer);
        for link in self.links.in_use().filter(|link| Some(link.peer()) != source) {
            self.outputs.push_back(Output::Send { link: link.id, message: message.clone() });
        }
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

/// Links.
impl Topology {
    fn judge(&self, up: &LinkUp) -> Result<WireVersion, Refusal> {
        let theirs = End { hello: &up.hello, key: up.key };
        let known = self.peers.key(up.hello.name);
        let version = agree(End { hello: &self.hello, key: self.key }, theirs, known)?;
        if let Incarnation::Clash(live) = self.links.incarnation(&up.hello) {
            return Err(held_twice(End { hello: &live.hello, key: live.key }, theirs));
        }
        if up.direction == Direction::Inbound && self.connector.is_full_for(up.hello.name, self.sight()) {
            return Err(limit::refusal(self.me(), &self.hello.nickname, self.links.count()));
        }
        Ok(version)
    }

    fn admit(&mut self, up: LinkUp, version: WireVersion, now: Instant) {
        if matches!(self.links.incarnation(&up.hello), Incarnation::Later) {
            for old in self.links.remove_all(up.hello.name) {
                let text = format!("peer {} has started again", old.peer());
                self.close(&old, Refusal { code: RefusalCode::Duplicate, text });
            }
        }
        let dial = up.dial;
        let link = Link::new(self.me(), up, version, now);
        self.connector.on_link(dial, &link, now);
        self.gossip.tell(link.id, self.me());
        self.gossip.compare_with(link.id);
        self.links.add(link, now);
    }

    /// The other end has greeted us too: the link counts.
    fn on_confirmed(&mut self, link: LinkId, is_first: bool) {
        let Some(link) = self.links.by_id(link) else { return };
        self.connector.on_link_confirmed();
        self.rejections.settle(link.addr);
        self.peers.locate(link.peer(), link.addr);
        if is_first {
            let (peer, nickname, addr) = (link.peer(), link.hello.nickname.clone(), link.addr);
            self.outputs.push_back(Output::Notify(Notice::LinkUp { peer, nickname, addr }));
        }
        self.on_links_changed();
    }

    fn turn_down(&mut self, up: &LinkUp, refusal: Refusal, now: Instant) {
        let reason = Reason { text: refusal.text.clone(), refused: Some(refusal.code) };
        let is_news = match (up.direction, up.dial) {
            (Direction::Outbound, Some(dial)) => {
                let notice = self.connector.on_dial_failed(dial, reason, &mut self.rng, now);
                self.outputs.extend(notice);
                false
            }
            (Direction::Outbound | Direction::Inbound, _) => {
                // Whoever dials us from there is not worth dialling either; a person need not read it twice.
                let _already_told = self.connector.on_failure(up.addr, reason, &mut self.rng, now);
                let caller = Some((up.hello.name, up.hello.nickname.clone()));
                refusal.code != RefusalCode::Myself
                    && self.rejections.note(Rejection::new(up.addr, caller, &refusal.text, now))
            }
        };
        if is_news && refusal.code != RefusalCode::Limit {
            let refusal = refusal.clone();
            self.outputs.push_back(Output::Notify(Notice::Refused { addr: up.addr, refusal }));
        }
        self.outputs.push_back(Output::Close { link: up.link, refusal });
    }

    fn close(&mut self, link: &Link, refusal: Refusal) {
        self.gossip.drop_link(link.id);
        self.outputs.push_back(Output::Close { link: link.id, refusal });
    }

    /// A link was taken out of the table; it may have been the last one with its peer.
    fn on_link_gone(&mut self, link: &Link, reason: &Reason, now: Instant) {
        if !link.is_confirmed() {
            let notice = self.connector.on_failure(link.addr, reason.clone(), &mut self.rng, now);
            self.outputs.extend(notice);
            return;
        }
        if self.links.to(link.peer()).is_none() {
            self.connector.on_link_lost(link, reason, &mut self.rng, now);
            let (peer, nickname) = (link.peer(), link.hello.nickname.clone());
            let (addr, text) = (link.addr, reason.text.clone());
            self.outputs.push_back(Output::Notify(Notice::LinkDown { peer, nickname, addr, text }));
        }
        self.on_links_changed();
    }

    const fn on_links_changed(&mut self) {
        self.pace.own_changed = true;
        self.pace.links_changed = true;
        self.survey.outdate();
    }

    fn shed(&mut self, now: Instant) {
        if self.pace.shed_at.is_none_or(|at| at > now) {
            return;
        }
        self.pace.shed_at = None;
        for peer in self.connector.surplus(self.sight(), now) {
            let refusal = limit::refusal(self.me(), &self.hello.nickname, self.links.count());
            let reason = Reason { text: refusal.text.clone(), refused: Some(refusal.code) };
            for link in self.links.remove_all(peer) {
                self.close(&link, refusal.clone());
                self.on_link_gone(&link, &reason, now);
            }
        }
    }
}

/// Gossip.
impl Topology {
    fn on_records(
        &mut self,
        link: LinkId,
        from: PeerName,
        records: Vec<PeerRecord>,
        now: Instant,
    ) -> Result<(), RejectedGossip> {
        let mut result = Ok(());
        for record in records {
            match flaw(&record) {
                Some(what) => result = Err(RejectedGossip::Malformed { from, about: record.name, what }),
                None if record.name == self.me() => self.on_record_of_me(&record, now),
                None => self.on_record(link, from, record, now),
            }
        }
        result
    }

    fn on_record(&mut self, link: LinkId, from: PeerName, record: PeerRecord, now: Instant) {
        let (name, key, nickname) = (record.name, record.key, record.nickname.clone());
        match self.peers.merge(record, now) {
            Verdict::News => {
                if let Some(addr) = self.links.to(name).map(|link| link.addr) {
                    self.peers.locate(name, addr);
                }
                self.forward(name, (link, from));
                self.survey.outdate();
                self.pace.peers_changed = true;
            }
            Verdict::Same | Verdict::Old => {}
            Verdict::Collision(known) => self.on_collision(name, (known, key), nickname),
        }
    }

    /// Tells those neighbours of a record who cannot have it yet: not from its origin, nor from who passed it on.
    fn forward(&mut self, about: PeerName, (link, from): (LinkId, PeerName)) {
        let informed: BTreeSet<PeerName> = [about, from]
            .into_iter()
            .filter_map(|teller| self.peers.record(teller))
            .flat_map(|record| record.links.iter().map(|link| link.peer))
            .chain([about, from])
            .collect();
        for other in self.links.in_use().filter(|other| other.id != link) {
            if !informed.contains(&other.peer()) {
                self.gossip.tell(other.id, about);
            }
        }
    }

    fn on_record_of_me(&mut self, record: &PeerRecord, now: Instant) {
        if record.key != self.key {
            return self.on_collision(self.me(), (self.key, record.key), record.nickname.clone());
        }
        match self.own.contest(record, now) {
            Contest::Ignored => {}
            Contest::Answered => {
                if self.hello.uid != self.own.record().uid {
                    self.hello.uid = self.own.record().uid;
                    self.outputs.push_back(Output::Hello(self.hello.clone()));
                }
                self.tell_all_about_me();
            }
            Contest::GivenUp => {
                let (name, nickname) = (self.me(), record.nickname.clone());
                self.outputs.push_back(Output::Notify(Notice::IdentityHeldTwice { name, nickname }));
            }
        }
    }

    fn on_collision(
        &mut self,
        name: PeerName,
        (known, claimed): (PeerKey, PeerKey),
        nickname: weave_proto::Nickname,
    ) {
        if self.collisions.len() < MAX_COLLISIONS && self.collisions.insert((name, claimed)) {
            self.outputs.push_back(Output::Notify(Notice::NameCollision { name, known, claimed, nickname }));
        }
    }

    fn on_digest(&mut self, link: LinkId, digest: &Digest) {
        let own = self.own.record();
        let record = |name| if name == own.name { Some(own) } else { self.peers.record(name) };
        let ours = self.peers.present().map(|(record, _)| record).chain([own]);
        let difference = gossip::compare(&digest.records, ours, record);
        for chunk in difference.wanted.chunks(MAX_RECORDS) {
            self.outputs.push_back(Output::Send { link, message: Message::Want(chunk.to_vec()) });
        }
        difference.offered.into_iter().for_each(|name| self.gossip.tell(link, name));
        if digest.ipam != self.ipam_digest {
            self.outputs.push_back(Output::IpamDiffers { link });
        }
    }

    fn on_directed(&mut self, directed: Directed) {
        let (me, dst) = (self.me(), directed.dst);
        if directed.src == me {
            tracing::debug!(%dst, "a message of ours has come back in a circle");
        } else if dst == me {
            self.outputs.push_back(Output::Directed(directed));
        } else if let Some(hops_left) = directed.hops_left.checked_sub(1) {
            if let Err(error) = self.route(Directed { hops_left, ..directed }) {
                tracing::debug!(%error, "cannot forward");
            }
        } else {
            tracing::debug!(%dst, src = %directed.src, "a message has used up its hops");
        }
    }

    fn tell_all_about_me(&mut self) {
        for link in self.links.in_use() {
            self.gossip.tell(link.id, self.hello.name);
        }
        self.survey.outdate();
        self.pace.peers_changed = true;
    }
}

/// What follows from the news.
impl Topology {
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
        self.survey = Survey::draw(self.me(), &self.links, &self.peers, now);
        let routes = &self.survey.routes;
        self.pace.peers_changed |= self.peers.set_reachable(|peer| routes.reach(peer), now);
        for (&peer, addresses) in &self.survey.addresses {
            self.peers.relocate(peer, addresses);
        }
        self.connector.outdate();
    }

    fn flush(&mut self) {
        let (own, peers, ipam) = (self.own.record(), &self.peers, self.ipam_digest);
        let record = |name| if name == own.name { Some(own) } else { peers.record(name) };
        let digest = || gossip::digest(peers.present().map(|(record, _)| record).chain([own]), ipam);
        self.outputs.extend(self.gossip.flush(record, digest));
    }

    fn persist(&mut self, now: Instant) {
        if self.peers.has_unsaved() && self.pace.persisted.is_none_or(|last| last + PERSIST_PAUSE <= now) {
            self.pace.persisted = Some(now);
            let known: Vec<KnownPeer> = self.peers.take_unsaved();
            self.outputs.push_back(Output::PersistPeers(known));
        }
    }
}
