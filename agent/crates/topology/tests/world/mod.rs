//! Many topologies, one virtual clock, and a network between them that delays, loses and falls apart.
#![expect(clippy::unwrap_used, reason = "in a test, what cannot be is a failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weave_proto::peer::{Directed, Features, Hello, IpamDirected, Message, PeerRecord, Refusal};
use weave_proto::{Nickname, PeerKey, PeerName, PeerUid};
use weave_topology::{
    Config, DialId, Direction, KnownPeer, LinkId, LinkUp, Notice, Output, Reason, Target, Topology,
};

/// How long a dead link goes unnoticed.
const SILENCE: Duration = Duration::from_secs(3);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often a machine may be woken without the clock moving on. More is a busy loop.
const MAX_WAKES: usize = 20;

pub(crate) struct Node {
    pub topology: Option<Topology>,
    pub addr: SocketAddr,
    pub uid: u64,
    pub key: u8,
    hello: Option<Hello>,
    pub options: Options,
    /// What its store holds of other peers.
    known: BTreeMap<PeerName, KnownPeer>,
    pub dials: Vec<(Instant, SocketAddr)>,
    pub refusals: Vec<Refusal>,
    pub notices: Vec<Notice>,
    pub arrived: Vec<Directed>,
    pub sent: usize,
    /// When it wants to be woken.
    wake: Option<Instant>,
    wakes: (Option<Instant>, usize),
}

#[derive(Clone, Default)]
pub(crate) struct Options {
    pub targets: Vec<usize>,
    pub no_discovery: bool,
    pub conn_limit: Option<usize>,
    pub founders: Option<u16>,
    pub range: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct End {
    node: usize,
    uid: u64,
    link: LinkId,
}

struct Wire {
    ends: [End; 2],
    open: bool,
    /// When the last thing sent in each direction arrives: a stream keeps its order.
    last: [Instant; 2],
}

enum Event {
    Up { node: usize, uid: u64, up: Box<LinkUp>, wire: usize },
    Failed { node: usize, uid: u64, dial: DialId, reason: Reason },
    Deliver { wire: usize, to: usize, message: Message },
    Down { wire: usize, at: usize, reason: Reason },
}

pub(crate) struct World {
    pub now: Instant,
    pub nodes: Vec<Node>,
    /// Nodes in different groups cannot hear each other.
    groups: Vec<usize>,
    /// Pairs that never can.
    pub walls: BTreeSet<(usize, usize)>,
    wires: Vec<Wire>,
    ends: BTreeMap<(usize, u64, LinkId), (usize, usize)>,
    events: BTreeMap<(Instant, u64), Event>,
    next_event: u64,
    next_link: u64,
    /// One in so many messages is lost; none at 0.
    pub loss: u32,
    rng: StdRng,
}

pub(crate) fn name(number: u8) -> PeerName {
    // Scattered, as the first bits of a hash are.
    PeerName::from_bits([2, number.wrapping_mul(167).wrapping_add(91), 0, 0, 0, number])
}

#[expect(clippy::disallowed_methods, reason = "a virtual clock must begin somewhere")]
fn beginning() -> Instant {
    Instant::now()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: beginning(),
            nodes: Vec::new(),
            groups: Vec::new(),
            walls: BTreeSet::new(),
            wires: Vec::new(),
            ends: BTreeMap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            next_link: 0,
            loss: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Adds a node and starts it.
    pub(crate) fn add(&mut self, options: Options) -> usize {
        let at = self.nodes.len();
        let key = u8::try_from(at + 1).unwrap();
        self.nodes.push(Node {
            topology: None,
            addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, key)), 6783),
            uid: 0,
            key,
            hello: None,
            options,
            known: BTreeMap::new(),
            dials: Vec::new(),
            refusals: Vec::new(),
            notices: Vec::new(),
            arrived: Vec::new(),
            sent: 0,
            wake: None,
            wakes: (None, 0),
        });
        self.groups.push(0);
        self.start(at);
        at
    }

    pub(crate) fn add_many(&mut self, count: usize, options: impl Fn(usize) -> Options) {
        for at in 0..count {
            self.add(options(at));
        }
    }

    pub(crate) fn start(&mut self, at: usize) {
        let seed = self.rng.random();
        let targets: Vec<Target> = self.nodes[at]
            .options
            .targets
            .iter()
            .map(|&target| self.nodes.get(target).map_or_else(|| addr_of(target), |node| node.addr))
            .map(|addr| addr.to_string().parse().unwrap())
            .collect();
        let node = &mut self.nodes[at];
        node.uid += 1;
        let config = Config {
            name: name(node.key),
            key: PeerKey([node.key; 32]),
            name_of: |key| name(key.0[0]),
            uid: PeerUid(node.uid),
            nickname: Nickname::lossy(&format!("host{}", node.key)),
            features: Features::FASTDP,
            targets,
            discovery: !node.options.no_discovery,
            conn_limit: node.options.conn_limit.and_then(NonZeroUsize::new),
            port: 6783,
            range: Some(node.options.range.unwrap_or("10.32.0.0/12").parse().unwrap()),
            founders: node.options.founders,
            known: node.known.values().cloned().collect(),
        };
        node.topology = Some(Topology::new(config, seed, self.now));
        node.wakes = (None, 0);
        self.perform(at);
    }

    /// The process ends without a word.
    pub(crate) fn kill(&mut self, at: usize) {
        self.nodes[at].topology = None;
        for wire in 0..self.wires.len() {
            if self.wires[wire].open && self.wires[wire].ends.iter().any(|end| end.node == at) {
                self.break_wire(wire);
            }
        }
    }

    /// Splits the network: each node hears only those of its own group.
    pub(crate) fn partition(&mut self, group_of: impl Fn(usize) -> usize) {
        self.groups = (0..self.nodes.len()).map(group_of).collect();
        for wire in 0..self.wires.len() {
            let [a, b] = self.wires[wire].ends;
            if self.wires[wire].open && !self.hears(a.node, b.node) {
                self.break_wire(wire);
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.partition(|_| 0);
    }

    pub(crate) fn hears(&self, one: usize, other: usize) -> bool {
        self.groups[one] == self.groups[other] && !self.walls.contains(&(one.min(other), one.max(other)))
    }

    pub(crate) fn topology(&self, at: usize) -> &Topology {
        self.nodes[at].topology.as_ref().unwrap()
    }

    /// Calls something on one machine and performs what follows.
    pub(crate) fn with<T>(&mut self, at: usize, call: impl FnOnce(&mut Topology, Instant) -> T) -> T {
        let result = call(self.nodes[at].topology.as_mut().unwrap(), self.now);
        self.perform(at);
        result
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until a condition holds, which is looked at every [`LOOK`]; fails if it does not within `limit`. Returns
    /// how long it took.
    pub(crate) fn run_until(&mut self, limit: Duration, condition: impl Fn(&Self) -> bool) -> Duration {
        let (start, end) = (self.now, self.now + limit);
        while !condition(self) {
            assert!(self.now < end, "the condition does not hold after {limit:?}");
            self.run_for(LOOK);
        }
        self.now - start
    }

    /// Performs what comes next, unless that is after `end`.
    fn step(&mut self, end: Instant) -> bool {
        let wakes = self.nodes.iter().enumerate().filter(|(_, node)| node.topology.is_some());
        let wake = wakes.filter_map(|(at, node)| Some((node.wake?, at))).min();
        let event = self.events.first_key_value().map(|(&(time, _), _)| time);
        let wakes_first = match (wake, event) {
            (Some((wake, _)), Some(event)) => wake < event,
            (wake, _) => wake.is_some(),
        };
        let next = if wakes_first { wake.map(|(time, _)| time) } else { event };
        match next {
            Some(time) if time <= end => self.now = self.now.max(time),
            Some(_) | None => return false,
        }
        if let (true, Some((_, at))) = (wakes_first, wake) {
            self.wake(at);
        } else if let Some((_, event)) = self.events.pop_first() {
            self.happen(event);
        }
        true
    }

    fn wake(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let why = node.topology.as_ref().unwrap().poll_timeout().unwrap().1;
        node.wakes = if node.wakes.0 == Some(now) { (Some(now), node.wakes.1 + 1) } else { (Some(now), 1) };
        assert!(node.wakes.1 <= MAX_WAKES, "node {at} runs in circles: {why}");
        node.topology.as_mut().unwrap().handle_timeout(now);
        self.perform(at);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Up { node, uid, up, wire } => {
                if !self.is_running(node, uid) || !self.wires[wire].open {
                    return;
                }
                self.with(node, |topology, now| topology.handle_link_up(*up, now));
            }
            Event::Failed { node, uid, dial, reason } => {
                if self.is_running(node, uid) {
                    self.with(node, |topology, now| topology.handle_dial_failed(dial, reason, now));
                }
            }
            Event::Deliver { wire, to, message } => {
                let end = self.wires[wire].ends[to];
                if self.wires[wire].open && self.is_running(end.node, end.uid) {
                    // A message may overtake our own closing; that is no fault of the sender.
                    let _known =
                        self.with(end.node, |topology, now| topology.handle_message(end.link, message, now));
                }
            }
            Event::Down { wire, at, reason } => {
                let end = self.wires[wire].ends[at];
                if self.is_running(end.node, end.uid) {
                    self.with(end.node, |topology, now| topology.handle_link_down(end.link, reason, now));
                }
            }
        }
    }

    fn is_running(&self, node: usize, uid: u64) -> bool {
        self.nodes[node].uid == uid && self.nodes[node].topology.is_some()
    }

    fn perform(&mut self, at: usize) {
        while let Some(output) = self.nodes[at].topology.as_mut().and_then(Topology::poll_output) {
            let node = &mut self.nodes[at];
            match output {
                Output::Hello(hello) => node.hello = Some(hello),
                Output::Send { link, message } => {
                    node.sent += 1;
                    self.send(at, link, message);
                }
                Output::Dial { dial, addr } => {
                    node.dials.push((self.now, addr));
                    self.dial(at, dial, addr);
                }
                Output::Close { link, refusal } => {
                    node.refusals.push(refusal.clone());
                    self.close(at, link, &refusal);
                }
                Output::PersistPeers(known) => {
                    node.known.extend(known.into_iter().map(|peer| (peer.name, peer)))
                }
                Output::Notify(notice) => node.notices.push(notice),
                Output::Directed(directed) => node.arrived.push(directed),
                Output::Resolve(_)
                | Output::PersistTargets(_)
                | Output::PeersChanged
                | Output::LinksChanged
                | Output::IpamDiffers { .. }
                | Output::Routed(_)
                | Output::Terms { .. }
                | Output::Offer { .. } => {}
            }
        }
        self.nodes[at].wake = self.topology(at).poll_timeout().map(|(wake, _)| wake);
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(200..5_000))
    }

    fn at(&mut self, time: Instant, event: Event) {
        self.next_event += 1;
        self.events.insert((time, self.next_event), event);
    }

    fn dial(&mut self, from: usize, dial: DialId, addr: SocketAddr) {
        let uid = self.nodes[from].uid;
        let to = self.nodes.iter().position(|node| node.addr == addr && node.topology.is_some());
        let Some(to) = to.filter(|&to| self.hears(from, to)) else {
            let reason = Reason::from("no answer: is an agent running there?");
            return self.at(self.now + SILENCE, Event::Failed { node: from, uid, dial, reason });
        };
        let nonces: [u64; 2] = self.rng.random();
        let nodes = [from, to];
        let links = [LinkId(self.next_link + 1), LinkId(self.next_link + 2)];
        self.next_link += 2;
        let wire = self.wires.len();
        let ends =
            [0, 1].map(|end| End { node: nodes[end], uid: self.nodes[nodes[end]].uid, link: links[end] });
        self.wires.push(Wire { ends, open: true, last: [self.now; 2] });
        for end in [0, 1] {
            let (me, other) = (nodes[end], nodes[1 - end]);
            let hello = self.nodes[other].hello.clone().unwrap();
            let up = Box::new(LinkUp {
                link: links[end],
                dial: (end == 0).then_some(dial),
                direction: if end == 0 { Direction::Outbound } else { Direction::Inbound },
                addr: self.nodes[other].addr,
                key: PeerKey([self.nodes[other].key; 32]),
                nonce: nonces[end],
                hello: Hello { nonce: nonces[1 - end], ..hello },
            });
            self.ends.insert((me, ends[end].uid, links[end]), (wire, end));
            let time = self.now + self.latency() + self.latency();
            self.wires[wire].last[end] = time;
            self.at(time, Event::Up { node: me, uid: ends[end].uid, up, wire });
        }
    }

    fn send(&mut self, from: usize, link: LinkId, message: Message) {
        if self.loss > 0 && self.rng.random_ratio(1, self.loss) {
            return;
        }
        let Some(&(wire, end)) = self.ends.get(&(from, self.nodes[from].uid, link)) else {
            panic!("node {from} sends on a link that it was never given")
        };
        let to = 1 - end;
        let time = (self.now + self.latency()).max(self.wires[wire].last[to]);
        self.wires[wire].last[to] = time;
        self.at(time, Event::Deliver { wire, to, message });
    }

    fn close(&mut self, from: usize, link: LinkId, refusal: &Refusal) {
        let Some(&(wire, end)) = self.ends.get(&(from, self.nodes[from].uid, link)) else {
            panic!("node {from} closes a link that it was never given")
        };
        let to = 1 - end;
        let reason =
            Reason { text: format!("the other side refused: {}", refusal.text), refused: Some(refusal.code) };
        let time = (self.now + self.latency()).max(self.wires[wire].last[to]);
        self.wires[wire].last[to] = time;
        self.at(time, Event::Down { wire, at: to, reason });
    }

    fn break_wire(&mut self, wire: usize) {
        self.wires[wire].open = false;
        for at in [0, 1] {
            let reason = Reason::from("the other side has gone silent");
            self.at(self.now + SILENCE, Event::Down { wire, at, reason });
        }
    }

    /// Whether these nodes are in one mesh: each reaches all others of them and knows their newest records.
    pub(crate) fn agree(&self, among: &[usize]) -> bool {
        let newest: BTreeMap<PeerName, &PeerRecord> = among
            .iter()
            .map(|&at| self.topology(at).own_record())
            .map(|record| (record.name, record))
            .collect();
        among.iter().all(|&at| {
            newest.iter().all(|(&name, &record)| {
                self.topology(at).is_reachable(name)
                    && self.topology(at).peer(name).is_some_and(|view| view.record == record)
            })
        })
    }

    pub(crate) fn all(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&at| self.nodes[at].topology.is_some()).collect()
    }

    pub(crate) fn links(&self, at: usize) -> usize {
        self.topology(at).own_record().links.len()
    }

    /// The links of all nodes, by what both ends have in use: panics if the ends of a pair use different ones.
    pub(crate) fn assert_ends_agree(&self) {
        for &at in &self.all() {
            for other in self.all() {
                let link = self.topology(at).link_to(name(self.nodes[other].key));
                let back = self.topology(other).link_to(name(self.nodes[at].key));
                let wire = |node: usize, link: Option<(LinkId, SocketAddr)>| {
                    link.map(|(link, _)| self.ends[&(node, self.nodes[node].uid, link)].0)
                };
                assert_eq!(wire(at, link), wire(other, back), "nodes {at} and {other}");
            }
        }
    }

    /// Whether the links that are up join all nodes.
    pub(crate) fn is_connected(&self) -> bool {
        let all = self.all();
        let mut joined: Vec<usize> = all.iter().copied().take(1).collect();
        let mut at = 0;
        while let Some(&one) = joined.get(at) {
            let others = all.iter().filter(|&&other| {
                let (mine, theirs) = (name(self.nodes[one].key), name(self.nodes[other].key));
                self.topology(one).link_to(theirs).is_some() && self.topology(other).link_to(mine).is_some()
            });
            let new: Vec<usize> = others.copied().filter(|other| !joined.contains(other)).collect();
            joined.extend(new);
            at += 1;
        }
        joined.len() == all.len()
    }

    /// Follows next hops from one node to another and says how many there are; none if they end or run in a circle.
    pub(crate) fn hops(&self, from: usize, to: usize) -> Option<usize> {
        let (mut at, mut hops, end) = (from, 0, name(self.nodes[to].key));
        while at != to {
            let next = self.topology(at).next_hop(end)?;
            at = self.nodes.iter().position(|node| name(node.key) == next)?;
            hops += 1;
            if hops > self.nodes.len() {
                return None;
            }
        }
        Some(hops)
    }
}

pub(crate) fn addr_of(number: usize) -> SocketAddr {
    let last = u8::try_from(number + 1).unwrap();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)), 6783)
}

pub(crate) fn letter(src: PeerName, dst: PeerName) -> Directed {
    Directed { src, dst, hops_left: Directed::MAX_HOPS, body: IpamDirected::SpaceDenied { token: 0 } }
}
