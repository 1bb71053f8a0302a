//! The machine that chooses: for each peer, which way carries its packets.
//!
//! ```text
//!   facts of the mesh ──┐                              ┌──> Probe    (the doer sends, the other end answers)
//!   carriers up, down ──┼──> [peer](mod@peer): ways ───┼──> Persist  (the last way, for a restart)
//!   answers to probes ──┤     health, pmtu, choice     └──> table() (routes, neighbours, firewall)
//!   terms, traffic, time┘     [budget] of all probes
//! ```
//!
//! Each peer is decided on by itself, with one exception: a relay is a candidate only while *it* answers in a sealed
//! way, so what is learned of one peer may concern others.
//!
//! **Relays and loops.** Candidates are the neighbours that the mesh's graph puts nearest to the peer. None is used
//! before a probe has come back through it, and a relay forwards only on a way that answers *it*. A circle never
//! answers: a frame that comes back to where it was is dropped. So a new choice has no loop, and one that becomes part
//! of a loop while others change theirs falls silent and is left within 3 s; the hop limit bounds what it carries
//! until then.

pub(crate) mod budget;
pub(crate) mod health;
pub(crate) mod peer;
pub(crate) mod pmtu;
mod probing;
mod report;

pub use report::Report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use weave_proto::PeerName;
use weave_proto::peer::{Features, Terms};

use self::budget::{Budget, Counts};
use self::peer::{PeerState, Sight, Slot, Standing};
use self::probing::Due;
use crate::{Carrier, Encryption, KnownWay, Method, Moved, PeerFacts, Probe, ProbeAnswer, Via, Way, WayNews};

/// Of how many peers that are in no facts it is remembered, too, why nothing carries to them.
const MANY_ASIDE: usize = 256;

/// What is told at the start.
#[derive(Debug, Clone)]
pub struct Config {
    /// What this node's data plane can do.
    pub own: Features,
    /// What it demands of packets on their way.
    pub encryption: Encryption,
    /// The last ways of an earlier start.
    pub known: Vec<KnownWay>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this, and tell the answer.
    Probe(Probe),
    /// Keep this in the place of what was kept of the same peer, before the table is published.
    Persist(KnownWay),
    /// Let people know.
    Tell(Moved),
}

/// What was said of a peer that is in no facts. A link and its session are there before the first gossip on it, and what
/// is said of them is said once.
#[derive(Debug, Default)]
struct Aside {
    plain: Option<bool>,
    carriers: BTreeMap<Carrier, Standing>,
}

/// See the module's docs.
#[derive(Debug)]
pub struct Overlay {
    pub(crate) own: Features,
    pub(crate) encryption: Encryption,
    pub(crate) peers: BTreeMap<PeerName, PeerState>,
    /// What was said of those whom the mesh does not tell of yet, or no more.
    aside: BTreeMap<PeerName, Aside>,
    /// The best sealed way that answers to each peer that relays.
    pub(crate) relays: BTreeMap<PeerName, Method>,
    /// When each peer has something due.
    due: BTreeMap<PeerName, Due>,
    budget: Budget,
    saved: BTreeMap<PeerName, KnownWay>,
    /// Through whom others are reached at present, and who they are.
    hops: BTreeMap<PeerName, BTreeSet<PeerName>>,
    nonce: u64,
    /// How many changes of ways nobody was told of since the last one that somebody was.
    untold: u32,
    changed: bool,
    outputs: VecDeque<Output>,
}

impl Overlay {
    /// A machine that holds on to the ways of an earlier start, but for those that this node can no longer go. Nonces
    /// begin at `seed`.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let saved: BTreeMap<PeerName, KnownWay> =
            config.known.into_iter().map(|known| (known.peer, still_possible(known, config.own))).collect();
        let peers = saved.iter().map(|(&peer, &known)| (peer, PeerState::restored(known))).collect();
        let mut hops: BTreeMap<PeerName, BTreeSet<PeerName>> = BTreeMap::new();
        for known in saved.values() {
            if let Some(Via::Relay(hop)) = known.way.map(|way| way.via) {
                hops.entry(hop).or_default().insert(known.peer);
            }
        }
        Self {
            own: config.own,
            encryption: config.encryption,
            peers,
            aside: BTreeMap::new(),
            relays: BTreeMap::new(),
            due: BTreeMap::new(),
            budget: Budget::new(),
            saved,
            hops,
            nonce: seed,
            untold: 0,
            changed: true,
            outputs: VecDeque::new(),
        }
    }

    /// All that is known of all peers; those of whom nothing is known any more are forgotten.
    pub fn handle_facts(&mut self, facts: BTreeMap<PeerName, PeerFacts>, now: Instant) {
        let gone: Vec<PeerName> =
            self.peers.keys().filter(|peer| !facts.contains_key(peer)).copied().collect();
        for peer in gone {
            let state = self.peers.remove(&peer).unwrap_or_default();
            self.budget.count(state.counted, Counts::default());
            let carriers = state.carriers;
            if carriers.values().any(|standing| matches!(standing, Standing::Up { .. })) {
                self.aside.insert(peer, Aside { plain: None, carriers });
            }
            for through in self.hops.values_mut() {
                through.remove(&peer);
            }
            self.due.remove(&peer);
            self.relays.remove(&peer);
            self.changed = true;
        }
        let mut relays = BTreeSet::new();
        for (name, facts) in facts {
            let peer = self.peers.entry(name).or_default();
            let aside = self.aside.remove(&name);
            if peer.facts != facts || aside.is_some() {
                relays.extend(facts.relays.iter().copied());
                peer.facts = facts;
                if let Some(Aside { plain, carriers }) = aside {
                    peer.plain = plain.or(peer.plain);
                    peer.carriers.extend(carriers);
                }
                self.changed = true;
                self.step(name, now);
            }
        }
        // Who might relay to somebody may be needed for that alone.
        let owns_nothing =
            |name: &PeerName| self.peers.get(name).is_some_and(|peer| peer.facts.ranges.is_empty());
        relays.retain(owns_nothing);
        for name in relays {
            self.step(name, now);
        }
    }

    /// A carrier exists, or does not.
    pub fn handle_way(&mut self, news: WayNews, now: Instant) {
        let (name, carrier, standing) = match news {
            WayNews::Up { peer, carrier, largest } => (peer, carrier, Standing::Up { largest }),
            WayNews::Down { peer, carrier, why } => (peer, carrier, Standing::Down { why }),
        };
        let Some(peer) = self.peers.get_mut(&name) else {
            return self.set_aside(name, carrier, standing);
        };
        if peer.carriers.get(&carrier) != Some(&standing) {
            peer.carriers.insert(carrier, standing);
            self.step(name, now);
        }
    }

    /// Keeps what was said of a peer that is in no facts: of many such peers, as long as something might carry to them.
    fn set_aside(&mut self, name: PeerName, carrier: Carrier, standing: Standing) {
        let aside = self.aside.entry(name).or_default();
        aside.carriers.insert(carrier, standing);
        let is_down =
            |aside: &Aside| aside.carriers.values().all(|standing| matches!(standing, Standing::Down { .. }));
        if self.aside.len() > MANY_ASIDE {
            self.aside.retain(|_, aside| !is_down(aside));
        }
    }

    /// A probe has come back. An answer to nothing that was asked is passed over.
    pub fn handle_answer(&mut self, answer: ProbeAnswer, now: Instant) {
        let Some(peer) = self.peers.get_mut(&answer.peer) else { return };
        let slot = Slot::of(answer.way);
        let used = peer.carries(slot, now);
        let Some(live) = peer.ways.get_mut(&slot) else { return };
        let sent = live
            .health
            .take(answer.nonce)
            .or_else(|| live.pmtu.answered(answer.nonce, answer.len, used, now));
        if let Some(sent) = sent {
            live.health.heard(sent, now);
            self.step(answer.peer, now);
        }
    }

    /// A peer says whether packets between it and this node may travel in clear.
    pub fn handle_terms(&mut self, peer: PeerName, terms: Terms, now: Instant) {
        let Some(state) = self.peers.get_mut(&peer) else {
            self.aside.entry(peer).or_default().plain = Some(terms.plain);
            return;
        };
        if state.plain != Some(terms.plain) {
            state.plain = Some(terms.plain);
            self.changed = true;
            self.step(peer, now);
        }
    }

    /// Packets of pods have been sent to these peers since this was last said.
    pub fn handle_traffic(&mut self, peers: &[PeerName], now: Instant) {
        peers.iter().for_each(|&peer| self.on_traffic(peer, true, now));
    }

    /// A peer fears for packets of its pods to this node's: what these answer needs a way, too.
    pub fn handle_haste(&mut self, peer: PeerName, now: Instant) {
        self.on_traffic(peer, false, now);
    }

    fn on_traffic(&mut self, peer: PeerName, seen: bool, now: Instant) {
        if self.peers.get_mut(&peer).is_some_and(|state| state.note_traffic(seen, now)) {
            self.step(peer, now);
            if let Some(hop) = self.hop_of(peer) {
                self.step(hop, now);
            }
        }
    }

    /// Packets of others have been sent on to these peers since this was last said.
    pub fn handle_relayed(&mut self, peers: &[PeerName], now: Instant) {
        for &peer in peers {
            if self.peers.get_mut(&peer).is_some_and(|state| state.note_relayed(now)) {
                self.step(peer, now);
            }
        }
    }

    /// Time has passed. Who has waited the longest comes first.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due = self.due.iter().filter(|(_, due)| due.wake <= now);
        let mut due: Vec<(Instant, PeerName)> = due.map(|(&peer, due)| (due.at, peer)).collect();
        due.sort_unstable();
        for (_, peer) in due {
            self.step(peer, now);
        }
    }

    /// When to call [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.values().map(|due| due.wake).min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether [`Self::table`] may differ from what it was when this was last asked.
    pub const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// What this node demands of packets between itself and a peer: to be told to it, unless it is nothing.
    #[must_use]
    pub fn terms(&self, peer: PeerName) -> Option<Terms> {
        let underlay = self.peers.get(&peer).and_then(|state| state.facts.underlay);
        self.encryption
            .wanted
            .then(|| Terms { plain: underlay.is_some_and(|addr| self.encryption.trusts(addr)) })
    }

    /// Whether every packet between this node and a peer must be sealed.
    pub(crate) fn is_due(&self, state: &PeerState) -> bool {
        let ours =
            self.encryption.wanted && !state.facts.underlay.is_some_and(|addr| self.encryption.trusts(addr));
        let theirs = match state.plain {
            Some(plain) => !plain,
            None => state.facts.features.has(Features::ENCRYPT),
        };
        ours || theirs
    }

    /// Probes what is due at one peer, decides on it, and on those whom it relays for if that has changed.
    fn step(&mut self, name: PeerName, now: Instant) {
        let mut todo = BTreeSet::from([name]);
        while let Some(name) = todo.pop_first() {
            let before = self.hop_of(name);
            let news = self.step_one(name, now);
            let after = self.hop_of(name);
            if before != after {
                todo.extend(self.rehop(name, (before, after)));
            }
            if news {
                let through = self.peers.iter().filter(|(_, state)| state.facts.relays.contains(&name));
                todo.extend(through.map(|(&peer, _)| peer));
            }
        }
    }

    /// Through whom a peer is reached.
    fn hop_of(&self, name: PeerName) -> Option<PeerName> {
        match self.peers.get(&name)?.chosen?.way.via {
            Via::Relay(hop) => Some(hop),
            Via::Direct => None,
        }
    }

    /// A peer is reached through another relay; those for whom that makes a difference.
    fn rehop(
        &mut self,
        name: PeerName,
        (before, after): (Option<PeerName>, Option<PeerName>),
    ) -> Vec<PeerName> {
        if let Some(hop) = before {
            self.hops.entry(hop).or_default().remove(&name);
        }
        if let Some(hop) = after {
            self.hops.entry(hop).or_default().insert(name);
        }
        self.hops.retain(|_, through| !through.is_empty());
        [before, after].into_iter().flatten().collect()
    }

    /// Whether what the peer can relay by has changed.
    fn step_one(&mut self, name: PeerName, now: Instant) -> bool {
        let Some(mut state) = self.peers.remove(&name) else { return false };
        let is_busy = |peer: &PeerName| self.peers.get(peer).is_some_and(|state| state.is_busy(now));
        let reaches_others = self.hops.get(&name).is_some_and(|through| through.iter().any(is_busy));
        state.relaying = reaches_others || state.is_relayed_to(now);
        let sight = Sight { own: self.own, due: self.is_due(&state), relays: &self.relays };
        state.refresh(&sight, now);
        let before = state.chosen.map(|chosen| chosen.way);
        self.changed |= state.decide(&sight, now);
        let moved = before.and_then(|from| report::moved(name, from, &state, &sight, now));
        self.changed |= state.look_for_quic(self.is_sent_to(name, &state), &sight, now);
        self.probe(name, &mut state, now);
        moved.into_iter().for_each(|moved| self.tell(moved, now));
        self.save(name, &state);
        let sealed = state.sealed().filter(|_| state.facts.features.has(Features::RELAY));
        self.peers.insert(name, state);
        if self.relays.get(&name).copied() == sealed {
            return false;
        }
        match sealed {
            Some(method) => drop(self.relays.insert(name, method)),
            None => drop(self.relays.remove(&name)),
        }
        self.changed = true;
        true
    }

    fn tell(&mut self, moved: Moved, now: Instant) {
        if self.budget.take_line(now) {
            let untold = std::mem::take(&mut self.untold);
            self.outputs.push_back(Output::Tell(Moved { untold, ..moved }));
        } else {
            self.untold = self.untold.saturating_add(1);
        }
    }

    /// Whether packets may be sent to a peer: its own pods', or those of another peer that it might relay to.
    fn is_sent_to(&self, name: PeerName, state: &PeerState) -> bool {
        let owns = |state: &PeerState| !state.facts.ranges.is_empty();
        owns(state) || self.peers.values().any(|other| owns(other) && other.facts.relays.contains(&name))
    }

    fn save(&mut self, name: PeerName, state: &PeerState) {
        let known = KnownWay {
            peer: name,
            way: state.chosen.map(|chosen| chosen.way),
            mtu: state.chosen.and_then(|chosen| chosen.mtu),
            plain: state.plain == Some(true),
        };
        let nothing = KnownWay { peer: name, way: None, mtu: None, plain: false };
        if self.saved.insert(name, known).unwrap_or(nothing) != known {
            self.outputs.push_back(Output::Persist(known));
        }
    }
}

/// What is known of a peer, without a way that takes what this node does not have.
fn still_possible(known: KnownWay, own: Features) -> KnownWay {
    let is_possible = |way: &Way| {
        let feature = match way.method {
            Method::FastDp => Features::FASTDP,
            Method::Sleeve => Features::SLEEVE,
            Method::Quic => Features::QUIC,
        };
        own.has(feature) && (way.via == Via::Direct || own.has(Features::RELAY))
    };
    KnownWay { way: known.way.filter(is_possible), ..known }
}

#[cfg(test)]
mod tests;
