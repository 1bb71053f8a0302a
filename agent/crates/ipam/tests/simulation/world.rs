//! The world: machines with disks, a network, a clock, and operators who ask for things.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weave_ipam::{
    Allocation, Answer, Config, Freed, Ipam, Mode, Output, PeerFacts, Request, RequestError, RequestId,
    Restored, StoreOp,
};
use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::IpamDirected;
use weave_proto::peer::ipam::IpamState;
use weave_proto::{Cidr, PeerName};

/// How often machines notice who can be reached, and compare what they know with a neighbour.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// How unkind the network is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Of a hundred messages, how many are lost.
    pub(crate) loss: u32,
    /// Of a hundred messages, how many arrive twice.
    pub(crate) repetition: u32,
    /// How long a message takes at most, in milliseconds.
    pub(crate) delay: u64,
}

impl Weather {
    pub(crate) const CALM: Self = Self { loss: 0, repetition: 0, delay: 20 };
    pub(crate) const BLIZZARD: Self = Self { loss: 70, repetition: 10, delay: 900 };
    pub(crate) const STORM: Self = Self { loss: 25, repetition: 15, delay: 400 };
}

/// What a machine's store holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) state: Option<IpamState>,
    pub(crate) allocations: BTreeMap<AttachmentKey, Allocation>,
    lost: BTreeMap<AttachmentKey, Allocation>,
    freed: BTreeMap<IpAddr, Freed>,
    generation: u64,
}

/// A machine. A wiped machine is another machine: this one is gone for good.
pub(crate) struct Machine {
    pub(crate) name: PeerName,
    pub(crate) ipam: Option<Ipam>,
    pub(crate) disk: Disk,
    pub(crate) gone: bool,
    /// Which machines it can talk to: those with the same number.
    pub(crate) side: u8,
    /// Allocations that somebody was told of and that were not freed since.
    pub(crate) promised: BTreeMap<AttachmentKey, IpAddr>,
    /// Allocations taken back since the address belongs to another peer.
    pub(crate) lost: Vec<Allocation>,
    mode: Mode,
    hint: u64,
    outputs_left: Option<usize>,
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) machines: Vec<Machine>,
    pub(crate) weather: Weather,
    pub(crate) replies: BTreeMap<RequestId, Result<Answer, RequestError>>,
    pub(crate) refused: Vec<String>,
    asked: BTreeMap<RequestId, Asked>,
    universe: Cidr,
    post: BinaryHeap<Reverse<Letter>>,
    heartbeat: Instant,
    counter: u64,
    rng: StdRng,
}

struct Asked {
    machine: usize,
    key: Option<AttachmentKey>,
}

/// A message on its way. The order of letters is the order of arrival.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Letter {
    at: Instant,
    number: u64,
    from: usize,
    to: usize,
    content: Content,
}

#[derive(Clone, PartialEq, Eq)]
enum Content {
    State(Box<IpamState>),
    Directed(IpamDirected),
}

impl PartialOrd for Content {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Content {
    /// Letters are told apart by their numbers already.
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl World {
    pub(crate) fn new(universe: &str, seed: u64) -> Self {
        let now = beginning();
        Self {
            now,
            machines: Vec::new(),
            weather: Weather::CALM,
            replies: BTreeMap::new(),
            refused: Vec::new(),
            asked: BTreeMap::new(),
            universe: universe.parse().unwrap(),
            post: BinaryHeap::new(),
            heartbeat: now,
            counter: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// A new machine with an empty disk. Its name is drawn, so that the order of names is not that of birth.
    pub(crate) fn add(&mut self, mode: Mode) -> usize {
        let name = PeerName::from_bits(self.rng.random::<[u8; 6]>());
        self.machines.push(Machine {
            name,
            ipam: None,
            disk: Disk::default(),
            gone: false,
            side: 0,
            promised: BTreeMap::new(),
            lost: Vec::new(),
            mode,
            hint: 0,
            outputs_left: None,
        });
        self.machines.len() - 1
    }

    /// The machine starts, with what its disk holds.
    pub(crate) fn start(&mut self, index: usize) {
        let seed = self.rng.random();
        let machine = &mut self.machines[index];
        if machine.ipam.is_some() || machine.gone {
            return;
        }
        let config =
            Config { me: machine.name, universe: self.universe, mode: machine.mode.clone(), alone: false };
        let ipam =
            Ipam::new(config, machine.disk.restore(), seed, self.now).expect("a disk can be read again");
        let held: BTreeMap<_, _> = ipam.allocations().map(|a| (a.key.clone(), a.address)).collect();
        for (key, address) in &machine.promised {
            assert_eq!(held.get(key), Some(address), "{} forgot what it had answered", machine.name);
        }
        machine.ipam = Some(ipam);
        self.perform(index);
    }

    /// The machine loses its power.
    pub(crate) fn crash(&mut self, index: usize) {
        self.machines[index].ipam = None;
        self.machines[index].outputs_left = None;
    }

    /// The machine will lose its power after that many more outputs.
    pub(crate) fn crash_after(&mut self, index: usize, outputs: usize) {
        self.machines[index].outputs_left = Some(outputs);
    }

    /// Nothing is planned for the machine any more.
    pub(crate) fn keep_power(&mut self, index: usize) {
        self.machines[index].outputs_left = None;
    }

    /// The machine is lost with its disk.
    pub(crate) fn wipe(&mut self, index: usize) {
        self.crash(index);
        self.machines[index].gone = true;
        self.machines[index].promised.clear();
    }

    pub(crate) fn ask(&mut self, index: usize, request: Request) -> RequestId {
        self.counter += 1;
        let id = RequestId(self.counter);
        let machine = &mut self.machines[index];
        let Some(ipam) = &mut machine.ipam else { return id };
        let key = match &request {
            Request::Allocate { key, .. } | Request::Claim { key, .. } => Some(key.clone()),
            Request::Free { key, .. } => {
                // From here on the caller relies on nothing.
                machine.promised.remove(key);
                None
            }
            Request::FreeContainer { .. }
            | Request::KeepOnly { .. }
            | Request::Lookup { .. }
            | Request::RemovePeer { .. } => None,
        };
        self.asked.insert(id, Asked { machine: index, key });
        ipam.handle_request(id, request, self.now);
        self.perform(index);
        id
    }

    /// Asks for an address under a key that was never used.
    pub(crate) fn allocate(&mut self, index: usize) -> RequestId {
        self.counter += 1;
        let key = AttachmentKey { container: format!("c{}", self.counter), interface: "eth0".to_owned() };
        self.ask(index, Request::Allocate { key, port: None })
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(next) = self.next_event().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.happen();
        }
        self.now = end;
    }

    /// Machines that are up.
    pub(crate) fn up(&self) -> impl Iterator<Item = (&Machine, &Ipam)> {
        self.machines.iter().filter_map(|machine| Some((machine, machine.ipam.as_ref()?)))
    }

    fn next_event(&self) -> Option<Instant> {
        let timeouts = self.up().filter_map(|(_, ipam)| ipam.poll_timeout()).map(|(at, _)| at);
        let letter = self.post.peek().map(|Reverse(letter)| letter.at);
        timeouts.chain(letter).chain([self.heartbeat]).min()
    }

    fn happen(&mut self) {
        if self.heartbeat <= self.now {
            self.heartbeat = self.now + HEARTBEAT;
            self.beat();
        }
        while let Some(Reverse(letter)) =
            self.post.peek().filter(|Reverse(letter)| letter.at <= self.now).cloned()
        {
            self.post.pop();
            self.deliver(letter);
        }
        for index in 0..self.machines.len() {
            let Some(ipam) = &mut self.machines[index].ipam else { continue };
            if let Some((at, reason)) = ipam.poll_timeout().filter(|(at, _)| *at <= self.now) {
                ipam.handle_timeout(self.now);
                let next = ipam.poll_timeout();
                assert!(next.is_none_or(|(next, _)| next > self.now), "a busy loop at {at:?}: {reason}");
                self.perform(index);
            }
        }
    }

    /// Machines notice who is there, and one of their neighbours compares digests with them.
    fn beat(&mut self) {
        for index in 0..self.machines.len() {
            let peers = self.neighbours(index);
            let facts = peers.iter().map(|peer| {
                let peer = &self.machines[*peer];
                (peer.name, PeerFacts { free: peer.hint })
            });
            let facts: BTreeMap<PeerName, PeerFacts> = facts.collect();
            let Some(ipam) = &mut self.machines[index].ipam else { continue };
            ipam.handle_peers(facts, self.now);
            self.perform(index);
            if !peers.is_empty() {
                let neighbour = peers[self.rng.random_range(0..peers.len())];
                self.compare(index, neighbour);
            }
        }
    }

    fn compare(&mut self, one: usize, other: usize) {
        let state =
            |machine: &Machine| machine.ipam.as_ref().map(|ipam| (ipam.digest(), Box::new(ipam.state())));
        let (Some((a, ours)), Some((b, theirs))) = (state(&self.machines[one]), state(&self.machines[other]))
        else {
            return;
        };
        if a != b {
            self.send(one, other, Content::State(ours));
            self.send(other, one, Content::State(theirs));
        }
    }

    fn neighbours(&self, index: usize) -> Vec<usize> {
        let side = self.machines[index].side;
        let there = |(other, machine): (usize, &Machine)| {
            (other != index && machine.side == side && machine.ipam.is_some()).then_some(other)
        };
        self.machines.iter().enumerate().filter_map(there).collect()
    }

    /// Does what the machine wants done, in order, until it wants nothing more or its power goes.
    fn perform(&mut self, index: usize) {
        self.machines[index].ipam.iter().for_each(Ipam::check_invariants);
        loop {
            let machine = &mut self.machines[index];
            if machine.outputs_left == Some(0) {
                return self.crash(index);
            }
            let Some(output) = machine.ipam.as_mut().and_then(Ipam::poll_output) else { return };
            if let Some(left) = &mut machine.outputs_left {
                *left -= 1;
            }
            self.perform_one(index, output);
        }
    }

    fn perform_one(&mut self, index: usize, output: Output) {
        match output {
            Output::Persist(ops) => ops.into_iter().for_each(|op| self.machines[index].disk.write(op)),
            Output::Gossip { state, .. } => {
                for neighbour in self.neighbours(index) {
                    self.send(index, neighbour, Content::State(state.clone()));
                }
            }
            Output::GossipTo { peer, state, .. } => self.send_to(index, peer, Content::State(state)),
            Output::Directed { to, body } => self.send_to(index, to, Content::Directed(body)),
            Output::Reply { request, result } => self.hear_reply(request, result),
            Output::FreeHint(free) => self.machines[index].hint = free,
            Output::Lost(lost) => {
                let machine = &mut self.machines[index];
                machine.promised.retain(|key, _| lost.iter().all(|allocation| allocation.key != *key));
                machine.lost.extend(lost);
            }
            Output::RangesChanged | Output::Notify(_) => {}
        }
    }

    fn hear_reply(&mut self, request: RequestId, result: Result<Answer, RequestError>) {
        let asked = self.asked.remove(&request).expect("each request is answered once");
        if let (Some(key), Ok(Answer::Allocated { allocation, .. })) = (asked.key, &result) {
            assert_eq!(key, allocation.key);
            self.machines[asked.machine].promised.insert(key, allocation.address);
        }
        self.replies.insert(request, result);
    }

    fn send_to(&mut self, from: usize, to: PeerName, content: Content) {
        if let Some(to) = self.machines.iter().position(|machine| machine.name == to) {
            self.send(from, to, content);
        }
    }

    fn send(&mut self, from: usize, to: usize, content: Content) {
        let Weather { loss, repetition, delay } = self.weather;
        if self.rng.random_range(0..100) < loss {
            return;
        }
        let copies = if self.rng.random_range(0..100) < repetition { 2 } else { 1 };
        for _ in 0..copies {
            self.counter += 1;
            let at = self.now + Duration::from_millis(self.rng.random_range(1..=delay));
            let content = content.clone();
            self.post.push(Reverse(Letter { at, number: self.counter, from, to, content }));
        }
    }

    fn deliver(&mut self, letter: Letter) {
        let Letter { from, to, content, .. } = letter;
        let (name, side) = (self.machines[from].name, self.machines[from].side);
        let machine = &mut self.machines[to];
        let Some(ipam) = machine.ipam.as_mut().filter(|_| machine.side == side) else { return };
        let heard = match content {
            Content::State(state) => ipam.handle_gossip(name, *state, self.now),
            Content::Directed(body) => ipam.handle_directed(name, body, self.now),
        };
        self.refused.extend(heard.err().map(|rejected| rejected.to_string()));
        self.perform(to);
    }
}

impl Disk {
    fn restore(&self) -> Restored {
        Restored {
            state: self.state.clone(),
            allocations: self.allocations.values().cloned().collect(),
            lost: self.lost.values().cloned().collect(),
            freed: self.freed.values().copied().collect(),
            generation: self.generation,
        }
    }

    fn write(&mut self, op: StoreOp) {
        match op {
            StoreOp::PutState(state) => self.state = Some(*state),
            StoreOp::PutAllocation(allocation) => {
                self.allocations.insert(allocation.key.clone(), allocation);
            }
            StoreOp::DeleteAllocation(key) => {
                self.allocations.remove(&key);
            }
            StoreOp::PutLost(allocation) => {
                self.lost.insert(allocation.key.clone(), allocation);
            }
            StoreOp::DeleteLost(key) => {
                self.lost.remove(&key);
            }
            StoreOp::PutFreed(freed) => {
                self.freed.insert(freed.address, freed);
            }
            StoreOp::DeleteFreed(address) => {
                self.freed.remove(&address);
            }
            StoreOp::PutGeneration(generation) => self.generation = generation,
        }
    }
}

impl Machine {
    /// What the machine holds as given out: in memory while it is up, on its disk while it is down.
    pub(crate) fn held(&self) -> BTreeSet<IpAddr> {
        match &self.ipam {
            Some(ipam) => ipam.allocations().map(|allocation| allocation.address).collect(),
            None => self.disk.allocations.values().map(|allocation| allocation.address).collect(),
        }
    }

    /// From the next start on.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// What the machine knows: in memory while it is up, on its disk while it is down.
    pub(crate) fn knows(&self) -> Option<IpamState> {
        self.ipam.as_ref().map(Ipam::state).or_else(|| self.disk.state.clone())
    }
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere; from here on it is moved")]
fn beginning() -> Instant {
    Instant::now()
}
