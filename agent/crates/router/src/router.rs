//! The machine itself: inputs to the rooms, their outputs into one queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use weave_ipam::{Answer, Ipam, Mode, PeerFacts, Request, RequestError, RequestId};
use weave_overlay::{Encryption, KnownWay, Overlay, Probe, ProbeAnswer, WayNews};
use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::{
    Directed, Features, Hello, IpamDirected, IpamState, Message, Offer, Refusal, Routed, Terms,
};
use weave_proto::{Cidr, Nickname, PeerName};
use weave_topology::{DialId, KnownPeer, LinkId, LinkUp, OwnFacts, Reason, Target, Topology};

use crate::news::News;
use crate::node::{Distant, EXPOSE_RETRY, Expose, NodeView};

/// The id of the router's own request for the node's address. Callers count from one.
const EXPOSE: RequestId = RequestId(0);

/// How many different reasons for not believing a message are kept: more would only be a peer that makes them up.
const MAX_REFUSED_REASONS: usize = 64;

/// What the rooms are made of.
pub struct Config {
    /// Names, targets and limits of the mesh.
    pub topology: weave_topology::Config,
    /// The range and how it is first split.
    pub ipam: weave_ipam::Config,
    /// What the store held of the allocator, from earlier incarnations.
    pub restored: weave_ipam::Restored,
    /// What this node demands of packets on their way.
    pub encryption: Encryption,
    /// What the store held of the last ways to other peers.
    pub ways: Vec<KnownWay>,
}

/// What is kept in the store. All operations of one [`Output::Persist`] become durable together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOp {
    /// Something of the allocator's.
    Ipam(weave_ipam::StoreOp),
    /// The targets given by people.
    Targets(Vec<Target>),
    /// Peers' last known addresses, each in the place of an older one of its name.
    Known(Vec<KnownPeer>),
    /// The last way to a peer, in the place of an older one.
    Way(KnownWay),
    /// These peers were removed for good: what was known of them, their ways too, is of no use any more.
    ForgetKnown(Vec<PeerName>),
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Output {
    /// Make durable before anything behind it is performed.
    Persist(Vec<StoreOp>),
    /// Say this on new links from now on.
    Hello(Hello),
    /// Send a message.
    Send {
        /// On which link.
        link: LinkId,
        /// What.
        message: Message,
    },
    /// Try to reach an address.
    Dial {
        /// Names the attempt in the answer.
        dial: DialId,
        /// Where.
        addr: SocketAddr,
    },
    /// Look up a name.
    Resolve(Target),
    /// Tell why, and close.
    Close {
        /// Which link.
        link: LinkId,
        /// Why.
        refusal: Refusal,
    },
    /// Answer a request.
    Reply {
        /// Which.
        request: RequestId,
        /// The answer.
        result: Result<Answer, RequestError>,
    },
    /// Make the kernel so.
    Publish(NodeView),
    /// Send a probe, and tell the answer by [`Router::handle_probe_answer`].
    Probe(Probe),
    /// For the data plane: how to send sealed records to a neighbour with the keys of this link.
    Offer {
        /// The link.
        link: LinkId,
        /// The neighbour.
        peer: PeerName,
        /// What it said.
        offer: Offer,
    },
    /// For the data plane: these are all peers without a link with which keys can be agreed on through the mesh.
    Distant(Vec<Distant>),
    /// For the data plane: a peer's has said something to this one's, through the mesh.
    Routed {
        /// Who.
        from: PeerName,
        /// What.
        body: Vec<u8>,
    },
    /// These pods hold addresses that this peer has lost for good: cut them off, and tell the operator.
    Lost(Vec<weave_ipam::Allocation>),
    /// This peer was removed from the mesh for good, which is durable: end, and start again as a new peer.
    Rejoin,
    /// Tell the operator, in the log.
    Notify(Notice),
}

/// Something for the log.
#[derive(Debug)]
pub enum Notice {
    /// From the mesh.
    Topology(weave_topology::Notice),
    /// From the allocator.
    Ipam(weave_ipam::Notice),
    /// From the overlay, about a peer that is called so.
    Overlay(weave_overlay::Moved, Option<Nickname>),
}

/// Topology, ipam and overlay joined. After every `handle_*`, take outputs with [`Self::poll_output`] until there are
/// none, and call [`Self::handle_timeout`] at [`Self::poll_timeout`].
pub struct Router {
    pub(crate) me: PeerName,
    pub(crate) universe: Cidr,
    /// Who was to share the range, if people listed them; empty otherwise.
    pub(crate) seeds: BTreeSet<PeerName>,
    pub(crate) topology: Topology,
    pub(crate) ipam: Ipam,
    pub(crate) expose: Expose,
    pub(crate) overlay: Overlay,
    /// Who might relay to whom, as the graph has it.
    pub(crate) relays: BTreeMap<PeerName, Vec<PeerName>>,
    /// Who was last told to the data plane to be within reach, but without a link.
    pub(crate) distant: Vec<Distant>,
    /// Whether the graph has changed since.
    pub(crate) graph_changed: bool,
    /// Whether anything else has changed that the overlay or the kernel is told of.
    pub(crate) facts_changed: bool,
    /// Since when something has been handled that may have to be told to them.
    unpublished: Option<Instant>,
    /// What was last said to each neighbour about packets in clear, and on which link.
    pub(crate) terms: BTreeMap<PeerName, (LinkId, Terms)>,
    pub(crate) view: Option<NodeView>,
    pub(crate) outputs: VecDeque<Output>,
    /// What is to be told of ownership.
    pub(crate) news: News,
    /// What was last told to the mesh about this peer.
    own: OwnFacts,
    /// Whether the topology has said since that peers have changed.
    peers_changed: bool,
    /// Who was last told to the allocator to be reachable.
    reachable: BTreeMap<PeerName, PeerFacts>,
    /// Whose removal has been carried out here.
    pub(crate) removed: BTreeSet<PeerName>,
    /// Whether this peer itself is to start again as another.
    ends: bool,
    /// Messages of peers that were not believed, by reason.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Established links that have ended.
    pub(crate) terminations: u64,
}

impl Router {
    /// A router that starts with what the store held.
    ///
    /// # Errors
    /// What the store held contradicts the configuration.
    pub fn new(mut config: Config, seed: u64, now: Instant) -> Result<Self, weave_ipam::RestoreError> {
        let me = config.topology.name;
        if config.encryption.wanted {
            config.topology.features = config.topology.features.with(Features::ENCRYPT);
        }
        let overlay = weave_overlay::Config {
            own: config.topology.features,
            encryption: config.encryption,
            known: config.ways,
        };
        let universe = config.ipam.universe;
        let seeds = match &config.ipam.mode {
            Mode::Seed(seeds) => seeds.clone(),
            Mode::Consensus { .. } | Mode::Decided(_) | Mode::Observer => BTreeSet::new(),
        };
        let ipam = Ipam::new(config.ipam, config.restored, seed, now)?;
        let mut router = Self {
            me,
            universe,
            seeds,
            topology: Topology::new(config.topology, seed, now),
            ipam,
            expose: Expose::Asked,
            overlay: Overlay::new(overlay, seed),
            relays: BTreeMap::new(),
            distant: Vec::new(),
            graph_changed: true,
            facts_changed: true,
            unpublished: None,
            peers_changed: true,
            terms: BTreeMap::new(),
            view: None,
            outputs: VecDeque::new(),
            news: News::default(),
            own: OwnFacts::default(),
            reachable: BTreeMap::new(),
            removed: BTreeSet::new(),
            ends: false,
            refused: BTreeMap::new(),
            terminations: 0,
        };
        router.ask_for_own_address(now);
        router.settle(now);
        Ok(router)
    }

    /// A link came up, both ends having said hello.
    pub fn handle_link_up(&mut self, up: LinkUp, now: Instant) {
        self.topology.handle_link_up(up, now);
        self.settle(now);
    }

    /// A link is gone.
    pub fn handle_link_down(&mut self, link: LinkId, reason: Reason, now: Instant) {
        self.terminations += u64::from(self.topology.peer_of(link).is_some());
        self.topology.handle_link_down(link, reason, now);
        self.news.drop_link(link);
        self.settle(now);
    }

    /// An attempt to reach an address failed.
    pub fn handle_dial_failed(&mut self, dial: DialId, reason: Reason, now: Instant) {
        self.topology.handle_dial_failed(dial, reason, now);
        self.settle(now);
    }

    /// Somebody dialled this peer and was not let in.
    pub fn handle_caller_refused(&mut self, addr: SocketAddr, text: &str, now: Instant) {
        self.topology.handle_caller_refused(addr, text, now);
        self.settle(now);
    }

    /// A name was looked up, or could not be.
    pub fn handle_resolved(&mut self, target: &Target, found: Result<Vec<SocketAddr>, String>, now: Instant) {
        self.topology.handle_resolved(target, found, now);
        self.settle(now);
    }

    /// A peer said something.
    pub fn handle_message(&mut self, link: LinkId, message: Message, now: Instant) {
        if let Message::Ipam(state) = message {
            self.on_ipam_state(link, *state, now);
        } else {
            let taken = self.topology.handle_message(link, message, now);
            self.count_refused(taken.map_err(|error| error.to_string()));
        }
        self.settle(now);
    }

    /// A carrier to a peer exists, or does not.
    pub fn handle_way(&mut self, news: WayNews, now: Instant) {
        self.overlay.handle_way(news, now);
        self.unpublished = Some(now);
    }

    /// A probe has come back.
    pub fn handle_probe_answer(&mut self, answer: ProbeAnswer, now: Instant) {
        self.overlay.handle_answer(answer, now);
        self.unpublished = Some(now);
    }

    /// Packets of pods have been sent to these peers since this was last said.
    pub fn handle_traffic(&mut self, peers: &[PeerName], now: Instant) {
        self.overlay.handle_traffic(peers, now);
        self.unpublished = Some(now);
    }

    /// A peer fears for packets of its pods to this node's.
    pub fn handle_haste(&mut self, peer: PeerName, now: Instant) {
        self.overlay.handle_haste(peer, now);
        self.unpublished = Some(now);
    }

    /// Packets of others have been sent on to these peers since this was last said.
    pub fn handle_relayed(&mut self, peers: &[PeerName], now: Instant) {
        self.overlay.handle_relayed(peers, now);
        self.unpublished = Some(now);
    }

    /// The data plane tells a neighbour how to send sealed records to it with the keys of this link.
    pub fn send_offer(&mut self, link: LinkId, offer: Offer) {
        if self.topology.peer_of(link).is_some() {
            self.outputs.push_back(Output::Send { link, message: Message::Offer(offer) });
        }
    }

    /// The data plane says something to another peer's, through the mesh. Lost like any datagram if there is no path.
    pub fn send_routed(&mut self, to: PeerName, body: Vec<u8>, now: Instant) {
        let routed = Routed { src: self.me, dst: to, hops_left: Directed::MAX_HOPS, body };
        let _ = self.topology.route_tunnel(routed);
        self.settle(now);
    }

    /// Somebody wants an address, or no longer.
    pub fn handle_request(&mut self, id: RequestId, request: Request, now: Instant) {
        if matches!(request, Request::Allocate { .. } | Request::Claim { .. })
            && let Some(twin) = self.topology.twin(now)
        {
            // The other holder gives out the same ranges.
            let result = Err(RequestError::IdentityHeldTwice(twin.to_owned()));
            self.outputs.push_back(Output::Reply { request: id, result });
            return;
        }
        self.ipam.handle_request(id, request, now);
        self.settle(now);
    }

    /// Nobody waits for the answer any more.
    pub fn handle_cancel(&mut self, id: RequestId, now: Instant) {
        self.ipam.handle_cancel(id, now);
        self.settle(now);
    }

    /// People want these peers reached too, or these and no others.
    pub fn connect(&mut self, targets: Vec<Target>, replace: bool, now: Instant) {
        self.topology.connect(targets, replace, now);
        self.settle(now);
    }

    /// People no longer want these peers reached.
    pub fn forget(&mut self, targets: &[Target], now: Instant) {
        self.topology.forget(targets, now);
        self.settle(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        // Probes go out many times a second, and concern nobody else.
        self.overlay.handle_timeout(now);
        if self.poll_slow_timeout().is_none_or(|(at, _)| at > now) {
            self.unpublished = Some(now);
            return;
        }
        if matches!(self.expose, Expose::Again(at) if at <= now) {
            self.ask_for_own_address(now);
        }
        self.topology.handle_timeout(now);
        self.ipam.handle_timeout(now);
        self.facts_changed = true;
        self.settle(now);
    }

    /// The next thing to do. What follows for the kernel from all that was handled comes last, once for all of it.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty()
            && let Some(now) = self.unpublished.take()
        {
            self.publish(now);
        }
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and who wants it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let probes = self.overlay.poll_timeout().map(|at| (at, "probe the ways to a peer"));
        [probes, self.poll_slow_timeout()].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// The timers of all rooms but the overlay.
    fn poll_slow_timeout(&self) -> Option<(Instant, &'static str)> {
        let expose = match self.expose {
            Expose::Again(at) => Some((at, "ask for the node's own address")),
            Expose::Asked | Expose::Held(_) => None,
        };
        let news = self.news.due(self.topology.neighbours()).map(|at| (at, "tell of ownership"));
        let rooms = [self.topology.poll_timeout(), self.ipam.poll_timeout(), expose, news];
        rooms.into_iter().flatten().min_by_key(|&(at, _)| at)
    }
}

impl Router {
    fn ask_for_own_address(&mut self, now: Instant) {
        if self.topology.twin(now).is_some() {
            self.expose = Expose::Again(now + EXPOSE_RETRY);
            return;
        }
        self.expose = Expose::Asked;
        self.ipam.handle_request(EXPOSE, Request::Allocate { key: AttachmentKey::expose(), port: None }, now);
    }

    fn on_expose(&mut self, result: Result<Answer, RequestError>, now: Instant) {
        self.expose = match result {
            Ok(Answer::Allocated { allocation, .. }) => Expose::Held(allocation.address),
            Ok(_) | Err(_) => Expose::Again(now + EXPOSE_RETRY),
        };
        self.facts_changed = true;
    }

    fn on_ipam_state(&mut self, link: LinkId, state: IpamState, now: Instant) {
        let Some(from) = self.topology.peer_of(link) else { return };
        let taken = self.ipam.handle_gossip(from, state, now);
        self.count_refused(taken.map_err(|error| error.to_string()));
    }

    /// What a peer said was not believed: it is counted and shown, and its link stays.
    fn count_refused(&mut self, taken: Result<(), String>) {
        if let Err(reason) = taken {
            tracing::debug!(reason, "a message was not believed");
            if self.refused.len() < MAX_REFUSED_REASONS || self.refused.contains_key(&reason) {
                *self.refused.entry(reason).or_default() += 1;
            }
        }
    }

    /// Takes every room's outputs, which may be news for another room, until all rooms are quiet. The node's view is
    /// published when the outputs are taken.
    fn settle(&mut self, now: Instant) {
        loop {
            // The topology's outputs first: a message that ipam has just asked it to carry stands there, and must
            // leave behind the `Persist` it depends on and ahead of whatever ipam says next.
            if let Some(output) = self.topology.poll_output() {
                self.on_topology(output, now);
            } else if let Some(output) = self.ipam.poll_output() {
                self.on_ipam(output, now);
            } else if !self.exchange(now) {
                break;
            }
        }
        self.tell_news(now);
        self.unpublished = Some(now);
        if self.ipam.removed().is_some() && !self.ends {
            self.ends = true;
            self.outputs.push_back(Output::Rejoin);
        }
    }

    /// Tells each room what has changed in another; whether anything had.
    fn exchange(&mut self, now: Instant) -> bool {
        self.topology.set_ipam_digest(self.ipam.digest());
        let peers_changed = std::mem::take(&mut self.peers_changed);
        self.carry_out_removals(now)
            | self.tell_mesh(now)
            | (peers_changed && self.tell_ipam_who_is_reachable(now))
    }

    fn tell_mesh(&mut self, now: Instant) -> bool {
        let own = OwnFacts {
            overlay: match self.expose {
                Expose::Held(address) => Some(address),
                Expose::Asked | Expose::Again(_) => None,
            },
            free: self.own.free,
            universe: self.ipam.universe_id(),
            founders: self.ipam.expected_founders(),
        };
        let changed = own != self.own;
        if changed {
            self.own = own.clone();
            self.topology.set_own(own, now);
        }
        changed
    }

    fn tell_ipam_who_is_reachable(&mut self, now: Instant) -> bool {
        let peers = self.topology.peers().filter(|peer| peer.reachable && peer.record.name != self.me);
        let reachable: BTreeMap<_, _> =
            peers.map(|peer| (peer.record.name, PeerFacts { free: peer.record.free })).collect();
        let changed = reachable != self.reachable;
        if changed {
            self.reachable.clone_from(&reachable);
            self.ipam.handle_peers(reachable, now);
        }
        changed
    }

    /// Peers that were removed for good are no longer looked for. One that is still linked stays so until it has
    /// learned of its removal and leaves.
    fn carry_out_removals(&mut self, now: Instant) -> bool {
        let gone: Vec<PeerName> = self
            .ipam
            .removed_peers()
            .into_iter()
            .filter(|&peer| peer != self.me && !self.topology.is_reachable(peer))
            .filter(|peer| !self.removed.contains(peer))
            .collect();
        for &peer in &gone {
            self.removed.insert(peer);
            self.topology.remove_peer(peer, "this peer was removed from the mesh for good", now);
        }
        if gone.is_empty() {
            return false;
        }
        self.persist(StoreOp::ForgetKnown(gone));
        self.facts_changed = true;
        true
    }

    fn on_topology(&mut self, output: weave_topology::Output, now: Instant) {
        use weave_topology::Output as From;
        match output {
            From::Hello(hello) => self.outputs.push_back(Output::Hello(hello)),
            From::Send { link, message } => self.outputs.push_back(Output::Send { link, message }),
            From::Dial { dial, addr } => self.outputs.push_back(Output::Dial { dial, addr }),
            From::Resolve(target) => self.outputs.push_back(Output::Resolve(target)),
            From::Close { link, refusal } => self.outputs.push_back(Output::Close { link, refusal }),
            From::PersistTargets(targets) => self.persist(StoreOp::Targets(targets)),
            From::PersistPeers(mut peers) => {
                // A neighbour that has not heard of a removal yet may go on telling of the removed peer.
                peers.retain(|peer| !self.removed.contains(&peer.name));
                self.persist(StoreOp::Known(peers));
            }
            // Who is reachable is told to the allocator when the queues are empty: see `exchange`.
            From::PeersChanged | From::LinksChanged => {
                (self.graph_changed, self.peers_changed) = (true, true)
            }
            From::IpamDiffers { link } => {
                self.tell_ipam(link, Box::new(self.ipam.state()), self.ipam.digest());
            }
            // What one holder of an identity gives away, the other may give to somebody else. Who asked asks elsewhere.
            From::Directed(directed) if self.topology.twin(now).is_some() && is_request(&directed.body) => {}
            From::Directed(directed) => {
                let taken = self.ipam.handle_directed(directed.src, directed.body, now);
                self.count_refused(taken.map_err(|error| error.to_string()));
            }
            From::Routed(routed) => {
                self.outputs.push_back(Output::Routed { from: routed.src, body: routed.body });
            }
            From::Offer { link, from, offer } => {
                self.outputs.push_back(Output::Offer { link, peer: from, offer });
            }
            From::Terms { from, terms } => {
                self.overlay.handle_terms(from, terms, now);
                self.facts_changed = true;
            }
            From::Notify(notice) => self.outputs.push_back(Output::Notify(Notice::Topology(notice))),
        }
    }

    fn on_ipam(&mut self, output: weave_ipam::Output, now: Instant) {
        use weave_ipam::Output as From;
        match output {
            From::Persist(ops) => {
                self.outputs.push_back(Output::Persist(ops.into_iter().map(StoreOp::Ipam).collect()));
            }
            From::Gossip { heard_from, .. } => self.news.add(heard_from),
            From::GossipTo { peer, state, digest } => {
                // A link that is lost with it is followed by one that begins by comparing.
                let link = self.topology.link_to(peer).map(|(link, _)| link);
                if let Some(link) = link.filter(|&link| !self.news.is_told(link, digest)) {
                    self.tell_ipam(link, state, digest);
                }
            }
            From::Directed { to, body } => {
                // Without a path the request is lost like any datagram; ipam asks somebody else in time.
                let directed = Directed { src: self.me, dst: to, hops_left: Directed::MAX_HOPS, body };
                let _ = self.topology.route(directed);
            }
            From::Reply { request: EXPOSE, result } => self.on_expose(result, now),
            From::Reply { request, result } => self.outputs.push_back(Output::Reply { request, result }),
            // The ranges are read when the view is published.
            From::RangesChanged => self.facts_changed = true,
            From::Lost(allocations) => self.outputs.push_back(Output::Lost(allocations)),
            From::FreeHint(free) => {
                self.own.free = free;
                self.topology.set_own(self.own.clone(), now);
            }
            From::Notify(notice) => self.outputs.push_back(Output::Notify(Notice::Ipam(notice))),
        }
    }

    pub(crate) fn persist(&mut self, op: StoreOp) {
        self.outputs.push_back(Output::Persist(vec![op]));
    }
}

const fn is_request(body: &IpamDirected) -> bool {
    matches!(body, IpamDirected::SpaceRequest { .. })
}
