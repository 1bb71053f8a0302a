//! The machine that joins the parts: news in, outputs out.

mod peers;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use weave_proto::peer::UniverseId;
use weave_proto::peer::ipam::{Founded, Founding, IpamPhase, IpamState, Removal};
use weave_proto::{Cidr, PeerName, Span};

use crate::allocator::{Queue, Waiting};
use crate::api::{Allocation, Config, Mode, Notice, Output, Restored};
use crate::book::Book;
use crate::donation::Seeker;
use crate::election::{Election, Part};
use crate::hash;
use crate::outbox::Outbox;
use crate::reclaim::{Electors, Reclaim};
use crate::refusal::{Refusals, RestoreError};
use crate::ring::{MalformedRing, Ring};
use crate::space::Space;
use crate::split::equal_shares;

/// The fewest addresses that can be shared out: two of them are never given out.
const MIN_ADDRESSES: u128 = 4;
/// The most addresses that can be counted in 64 bits, and one more.
const MAX_ADDRESSES: u128 = 1 << 64;

/// What is known of a peer that can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerFacts {
    /// About how many addresses it could give away, as it says in its topology record.
    pub free: u64,
}

/// One peer's part in sharing out a range.
///
/// Its methods are of three kinds: `handle_*` takes news in, and may be called at any time; `poll_*` gives out
/// what is to be done, to be called until it gives nothing after each `handle_*`; all others are views. See the
/// crate's documentation for the order of things.
#[derive(Debug, Clone)]
pub struct Ipam {
    config: Config,
    phase: Phase,
    book: Book,
    queue: Queue,
    seeker: Seeker,
    served: BTreeMap<PeerName, Served>,
    peers: BTreeMap<PeerName, PeerFacts>,
    refusals: Refusals,
    outbox: Outbox,
    hint: Option<u64>,
    digest: u64,
    deadline: Option<(Instant, &'static str)>,
    rng: StdRng,
}

/// The two ages of a universe.
#[derive(Debug, Clone)]
enum Phase {
    Electing(Election),
    Founded(Realm),
}

/// A universe that exists.
#[derive(Debug, Clone)]
struct Realm {
    founding: Founding,
    ring: Ring,
    reclaim: Reclaim,
}

/// The last question of a peer, and whether it got something: a question that arrives twice is answered twice,
/// but something is given once.
#[derive(Debug, Clone, Copy)]
struct Served {
    token: u64,
    granted: bool,
}

impl Ipam {
    /// A peer as it was when its store was last written. `seed` is for choices that are left to chance.
    ///
    /// # Errors
    /// What was given or stored makes no sense together.
    pub fn new(config: Config, restored: Restored, seed: u64, now: Instant) -> Result<Self, RestoreError> {
        let range = config.universe;
        if range.len() < MIN_ADDRESSES || range.len() > MAX_ADDRESSES {
            return Err(RestoreError::Size(range));
        }
        let named = match &config.mode {
            Mode::Seed(founders) | Mode::Decided(Founding { founders, .. }) => Some(founders),
            Mode::Consensus { .. } | Mode::Observer => None,
        };
        if named.is_some_and(BTreeSet::is_empty) {
            return Err(RestoreError::NoSeeds);
        }
        let mut ipam = Self {
            phase: Phase::restore(&config, restored.state)?,
            book: Book::new(range),
            queue: Queue::default(),
            seeker: Seeker::default(),
            served: BTreeMap::new(),
            peers: BTreeMap::new(),
            refusals: Refusals::default(),
            outbox: Outbox::default(),
            hint: None,
            digest: 0,
            deadline: None,
            rng: StdRng::seed_from_u64(seed),
            config,
        };
        ipam.digest = hash::digest(&ipam.state());
        ipam.book.skip_generations(restored.generation);
        ipam.book.restore_lost(restored.lost);
        ipam.book.restore(ipam.own_ranges(), restored.allocations, restored.freed, now)?;
        let given = match &ipam.config.mode {
            Mode::Seed(founders) => Some(Founding { founders: founders.clone(), nonce: 0 }),
            Mode::Decided(founding) => Some(founding.clone()),
            Mode::Consensus { .. } | Mode::Observer => None,
        };
        if let (Some(founding), Phase::Electing(_)) = (given, &ipam.phase) {
            ipam.found(&founding, now)?;
        }
        ipam.drive(now);
        Ok(ipam)
    }

    /// These peers, and no others, can be reached now.
    pub fn handle_peers(&mut self, peers: BTreeMap<PeerName, PeerFacts>, now: Instant) {
        self.peers = peers;
        self.peers.remove(&self.config.me);
        self.drive(now);
    }

    /// It is as late as [`poll_timeout`](Self::poll_timeout) said, or later.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.drive(now);
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outbox.poll()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) if nothing happens until then, and what for.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.deadline
    }

    /// Everything this peer knows, as it tells others.
    #[must_use]
    pub fn state(&self) -> IpamState {
        let phase = match &self.phase {
            Phase::Electing(election) => IpamPhase::Electing(election.candidacies().clone()),
            Phase::Founded(realm) => IpamPhase::Founded(Box::new(Founded {
                founding: realm.founding.clone(),
                ring: realm.ring.to_entries(),
                removals: realm.reclaim.removals().clone(),
            })),
        };
        IpamState { universe: self.config.universe, phase }
    }

    /// Equal on two peers that know the same.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// What each peer owns, in the fewest runs; empty before the first split.
    #[must_use]
    pub fn ranges(&self) -> BTreeMap<PeerName, Vec<Span>> {
        self.realm().map(|realm| realm.ring.ranges()).unwrap_or_default()
    }

    /// Every address this peer has given out, in the order of keys.
    pub fn allocations(&self) -> impl ExactSizeIterator<Item = &Allocation> {
        self.book.allocations()
    }

    /// Every container of this node that still holds an address which is another peer's now: to be kept off the network.
    pub fn lost(&self) -> impl Iterator<Item = &Allocation> {
        self.book.lost()
    }

    /// The name of the universe, once there is one.
    #[must_use]
    pub fn universe_id(&self) -> Option<UniverseId> {
        self.realm().map(|realm| realm.id(self.config.universe))
    }

    /// How many founders this peer expects, while there is no universe.
    #[must_use]
    pub fn expected_founders(&self) -> Option<u16> {
        match &self.phase {
            Phase::Electing(election) => election.expected(),
            Phase::Founded(_) => None,
        }
    }

    /// Who has what belonged to this peer, if it was removed for good.
    #[must_use]
    pub fn removed(&self) -> Option<PeerName> {
        let realm = self.realm()?;
        realm
            .reclaim
            .is_removed(self.config.me)
            .then(|| realm.reclaim.heir_of(self.config.me).unwrap_or(self.config.me))
    }

    /// The peers that were removed for good: nobody should talk to them but to tell them.
    #[must_use]
    pub fn removed_peers(&self) -> BTreeSet<PeerName> {
        let Some(realm) = self.realm() else { return BTreeSet::new() };
        let decided = realm.reclaim.removals().iter().filter(|(_, r)| matches!(r, Removal::Decided { .. }));
        decided.map(|(peer, _)| *peer).collect()
    }

    /// Panics where this peer contradicts itself; for tests.
    ///
    /// # Panics
    /// See above.
    pub fn check_invariants(&self) {
        self.book.check_invariants();
        assert_eq!(self.digest, hash::digest(&self.state()), "whatever others should know is told");
        if let Some(realm) = self.realm() {
            realm.ring.check_invariants();
        }
    }

    /// Does everything that can be done now, and lets the outcome leave.
    fn drive(&mut self, now: Instant) {
        self.step_election(now);
        self.step_reclaim(now);
        self.serve(now);
        self.expire(now);
        self.tell_hint();
        self.deadline = self.next_deadline(now);
        if self.outbox.has_new_state() {
            self.digest = hash::digest(&self.state());
        }
        let changes = self.book.take_changes();
        let mut outbox = std::mem::take(&mut self.outbox);
        outbox.flush(changes, self.digest, || self.state());
        self.outbox = outbox;
        #[cfg(test)]
        self.check_invariants();
    }

    fn step_election(&mut self, now: Instant) {
        let Phase::Electing(election) = &mut self.phase else { return };
        let reachable = self.peers.keys().copied().collect();
        let step = election.step(&reachable, &mut self.rng, now);
        if step.changed {
            self.outbox.state_changed();
        }
        if let Some(members) = step.locked {
            self.outbox.say(Output::Notify(Notice::Locked(members)));
        }
        if let Some(founding) = step.decided
            && let Err(malformed) = self.found(&founding, now)
        {
            self.refuse(self.config.me, malformed.into());
        }
    }

    /// The universe begins.
    fn found(&mut self, founding: &Founding, now: Instant) -> Result<(), MalformedRing> {
        let range = self.config.universe;
        let ring = Ring::of_shares(range, &equal_shares(range, &founding.founders))?;
        let reclaim = Reclaim::new(self.config.me, BTreeMap::new());
        self.outbox.state_changed();
        self.enter(Realm { founding: founding.clone(), ring, reclaim }, now);
        Ok(())
    }

    /// This peer is in a universe now.
    fn enter(&mut self, realm: Realm, now: Instant) {
        let universe = self.config.universe;
        let founders = realm.founding.founders.clone();
        self.outbox.say(Output::Notify(Notice::Founded { universe, id: realm.id(universe), founders }));
        self.phase = Phase::Founded(realm);
        self.on_ring_changed(Vec::new(), now);
    }

    fn step_reclaim(&mut self, now: Instant) {
        let me = self.config.me;
        let before = self.own_ranges();
        let Phase::Founded(realm) = &mut self.phase else { return };
        let (owners, reachable) = (realm.ring.owners(), self.peers.keys().copied().collect());
        let electors = Electors { owners: &owners, reachable: &reachable };
        let step = realm.reclaim.step(electors, &mut self.rng, now);
        if step.changed {
            self.outbox.state_changed();
        }
        let gained = self.inherit(me);
        if !gained.is_empty() || !step.decided.is_empty() {
            self.on_ring_changed(before, now);
        }
        for (peer, heir) in step.decided {
            self.outbox.say(Output::Notify(Notice::Removed { peer, heir }));
        }
        for peer in step.withdrawn {
            self.outbox.say(Output::Notify(Notice::RemovalWithdrawn(peer)));
            self.answer_still_alive(peer);
        }
        self.answer_removals(&gained);
    }

    /// Takes over what removed peers own whose heir this peer is. Returns how many addresses each had.
    fn inherit(&mut self, me: PeerName) -> BTreeMap<PeerName, u128> {
        let Phase::Founded(realm) = &mut self.phase else { return BTreeMap::new() };
        let mut gained = BTreeMap::new();
        for owner in realm.ring.owners() {
            if realm.reclaim.heir_of(owner) == Some(me) {
                gained.insert(owner, realm.ring.take_over(owner, me));
                self.outbox.state_changed();
            }
        }
        gained
    }

    /// Follows up on a ring that may give this peer other ranges than those it had before.
    fn on_ring_changed(&mut self, before: Vec<Span>, now: Instant) {
        self.outbox.ranges_changed();
        let own = self.own_ranges();
        if own == before {
            return;
        }
        let owned = |spans: &[Span]| spans.iter().map(|span| span.len()).sum::<u128>();
        if owned(&own) > owned(&before) {
            self.seeker.on_gain();
        }
        let lost = self.book.set_own(own.clone(), now);
        self.outbox.lost(lost);
        self.outbox.say(Output::Notify(Notice::OwnRanges(own)));
    }

    /// Tells others about how much this peer could give, when that has changed by more than an eighth, or to or
    /// from nothing: a hint is no reason for a message an allocation.
    fn tell_hint(&mut self) {
        let free = u64::try_from(self.book.space().free()).unwrap_or(u64::MAX);
        let told = self.hint.unwrap_or(0);
        let close = free.abs_diff(told) <= told / 8 && (free == 0) == (told == 0);
        if !close || self.hint.is_none() {
            self.hint = Some(free);
            self.outbox.say(Output::FreeHint(free));
        }
    }

    fn next_deadline(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let (election, reclaim) = match &self.phase {
            Phase::Electing(election) => (election.deadline(now), None),
            Phase::Founded(realm) => (None, realm.reclaim.deadline(now)),
        };
        let rested = self.book.space().next_release(now).filter(|_| self.queue.wants_address());
        let reasons = [
            (self.queue.deadline(), "a request runs out of patience"),
            (election, "the election goes on"),
            (reclaim, "a removal goes on"),
            (self.seeker.deadline(), "a donor is to be asked"),
            (rested, "an address leaves its quarantine"),
        ];
        reasons.into_iter().filter_map(|(deadline, reason)| Some((deadline?, reason))).min()
    }

    /// What this peer owns and may give out: nothing any more if it was removed.
    fn own_ranges(&self) -> Vec<Span> {
        let realm = self.realm().filter(|realm| !realm.reclaim.is_removed(self.config.me));
        realm.map(|realm| realm.ring.ranges_of(self.config.me)).unwrap_or_default()
    }

    const fn realm(&self) -> Option<&Realm> {
        match &self.phase {
            Phase::Founded(realm) => Some(realm),
            Phase::Electing(_) => None,
        }
    }

    /// Who can be reached.
    pub(crate) fn reachable(&self) -> BTreeSet<PeerName> {
        self.peers.keys().copied().collect()
    }

    /// Whether `peer` can be reached, as this peer itself always can.
    pub(crate) fn reaches(&self, peer: PeerName) -> bool {
        peer == self.config.me || self.peers.contains_key(&peer)
    }
}

/// What the status is made of.
impl Ipam {
    pub(crate) const fn name(&self) -> PeerName {
        self.config.me
    }

    pub(crate) const fn universe(&self) -> Cidr {
        self.config.universe
    }

    pub(crate) const fn space(&self) -> &Space {
        self.book.space()
    }

    pub(crate) const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.queue.iter()
    }

    pub(crate) fn ring(&self) -> Option<&Ring> {
        self.realm().map(|realm| &realm.ring)
    }

    pub(crate) fn reclaim(&self) -> Option<&Reclaim> {
        self.realm().map(|realm| &realm.reclaim)
    }
}

impl Realm {
    fn id(&self, universe: Cidr) -> UniverseId {
        hash::universe_id(universe, &self.founding)
    }

    /// What another peer says about this universe.
    fn of_founded(me: PeerName, universe: Cidr, founded: Founded) -> Result<Self, MalformedRing> {
        let ring = Ring::from_entries(universe, &founded.ring)?;
        Ok(Self { founding: founded.founding, ring, reclaim: Reclaim::new(me, founded.removals) })
    }
}

impl Phase {
    /// The phase that the store is in.
    fn restore(config: &Config, state: Option<IpamState>) -> Result<Self, RestoreError> {
        let stored = state.as_ref().map_or(config.universe, |state| state.universe);
        if stored != config.universe {
            return Err(RestoreError::Range { stored, given: config.universe });
        }
        let part = match config.mode {
            Mode::Consensus { founders: Some(founders) } => Part::Informed(founders),
            Mode::Consensus { founders: None } if config.alone => Part::Informed(std::num::NonZeroU16::MIN),
            Mode::Consensus { founders: None } => Part::Uninformed,
            Mode::Seed(_) | Mode::Decided(_) | Mode::Observer => Part::Observer,
        };
        let election = |candidacies| Self::Electing(Election::new(config.me, part, candidacies));
        match state.map(|state| state.phase) {
            None => Ok(election(BTreeMap::new())),
            Some(IpamPhase::Electing(candidacies)) => Ok(election(candidacies)),
            Some(IpamPhase::Founded(founded)) => {
                Ok(Self::Founded(Realm::of_founded(config.me, config.universe, *founded)?))
            }
        }
    }
}

#[cfg(test)]
mod tests;
