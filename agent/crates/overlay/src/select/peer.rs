//! One peer: the ways that lead to it, and which of them carries its packets.
//!
//! ```text
//!                       a better way has answered for its hold
//!             ┌──────────────────────────────────────────────────────┐
//!             v                                                      │
//!   none ── something answers, or fastdp may be assumed ──> chosen ──┘
//!                                                             │ silent or gone, and another one answers
//!                                                             │ in proof of the agent at the other end
//!                                                             └──────────> that one; its hold has doubled
//! ```
//!
//! * **Only answers move packets.** A way is left for one that answers, never for a hope. If nothing answers, the way in
//!   use stays: an agent that is down leaves its kernel's forwarding behind, and where that is gone too, nothing is lost
//!   by keeping the route. The one exception is `fastdp` where no way has been chosen: the kernel at the other end needs
//!   no agent, so it is assumed to work until something shows otherwise.
//! * **Whose silence?** When an agent dies, all its ways fall silent within moments of each other. So silence demotes a
//!   way only if another one has answered a probe that was sent [`PROOF`] after the silent one was last heard, and goes
//!   on answering for [`RETURN`]: the first answers after an agent's return may come by any way.
//! * **A restart changes nothing.** The last way is *held* when this agent starts. It is given up by the same rule.
//! * **Back to the better one**, once it has answered for its *hold*: a second at first, twice as long each time that it
//!   has failed in use, so that a way which comes and goes is used ever less often ([`LONGEST_HOLD`]).
//! * **Haste where there is traffic.** A way that nobody sends on is probed rarely. When packets begin to be sent it is
//!   asked at once, and again and again until it answers, so that from then on its silence is noticed within 3 s.
//! * **Encryption is no preference.** Where it is due, `fastdp` is not a candidate and is left at once, for nothing if
//!   need be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_proto::peer::Features;

use super::budget::{Counts, Pace};
use super::health::{Health, SILENCE};
use super::pmtu::Pmtu;
use crate::{Carrier, KnownWay, Method, NoPath, PeerFacts, Via, Way};

/// How long after a way was last heard another one must have been asked whose answer proves that the agent lives: two
/// probes of the way in use and a little, so that chance does not look like the end of an agent.
const PROOF: Duration = Duration::from_millis(1000);

/// How many probes of the silent way must be overdue besides, that were sent while another one answered.
const ASKED: usize = 3;

/// For how long another way must have proved so: an agent that has come back, however soon, answers on the way in use
/// within this. What is left of 3 s when [`PROOF`] and the probe's trip are taken off, and a little less. Where nobody
/// sends, ways are asked less often, and there is twice the time.
const RETURN: Duration = Duration::from_millis(1500);

/// The longest that an answer is waited for before its way is in doubt, however slow it is: where packets depend on it,
/// which leaves enough of the 3 s to lose as many probes as it takes, and where none do.
const LONGEST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How long a better way must have answered before it is used, if it has never failed.
const HOLD: Duration = Duration::from_secs(1);

/// The longest hold: a way that fails again and again is tried once a minute or so.
const LONGEST_HOLD: Duration = Duration::from_secs(64);

/// A way that has answered for so long without falling silent has made up for its failures.
const FORGIVEN: Duration = Duration::from_secs(300);

/// A way that has not answered for so long is probed as rarely as one that is not needed.
const PATIENCE: Duration = Duration::from_secs(30);

/// For how long a way is new.
const NEW: Duration = Duration::from_secs(5);

/// For how long after the last packet a peer counts as one with traffic.
const TRAFFIC: Duration = Duration::from_secs(10);

/// Which way, whatever carries it to a relay at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// A method straight to the peer.
    Direct(Method),
    /// By way of this peer.
    Relay(PeerName),
}

impl Slot {
    /// The slot of a way.
    pub(crate) const fn of(way: Way) -> Self {
        match way.via {
            Via::Direct => Self::Direct(way.method),
            Via::Relay(hop) => Self::Relay(hop),
        }
    }

    pub(crate) const fn carrier(self) -> Carrier {
        match self {
            Self::Direct(method) => Carrier::Direct(method),
            Self::Relay(_) => Carrier::Relay,
        }
    }

    const FASTDP: Self = Self::Direct(Method::FastDp);

    fn is_sealed(self) -> bool {
        self != Self::FASTDP
    }
}

/// What the doer said of a carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    Up { largest: u32 },
    Down { why: String },
}

/// Why a way is no candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// This node does not do it.
    NotHere,
    /// The peer does not do it.
    NotThere,
    /// It is not encrypted, and encryption is due.
    InClear,
    /// Nobody knows where the peer is.
    NoAddress,
    /// The relay cannot be reached in a sealed way.
    NoRelay,
    /// Nothing has been said of what carries it.
    Untold,
    /// What carries it does not work.
    Down(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHere => "switched off on this node, or its kernel cannot do it",
            Self::NotThere => "switched off at the peer, or its kernel cannot do it",
            Self::InClear => "not encrypted, and encryption is due with this peer",
            Self::NoAddress => "no direct link yet: open UDP 6783 and 6784 between the two nodes",
            Self::NoRelay => "the relay itself cannot be reached by sleeve or quic",
            Self::Untold => "not ready yet: no session with the peer",
            Self::Down(why) => why,
        })
    }
}

/// One way that can be probed.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) way: Way,
    pub(crate) health: Health,
    pub(crate) pmtu: Pmtu,
}

/// Why the present way carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// It did before this agent started.
    Held,
    /// Nothing is known against it.
    Assumed,
    /// It was the best that answered.
    Answered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) slot: Slot,
    pub(crate) way: Way,
    pub(crate) ground: Ground,
    /// The size in force when it could last be probed.
    pub(crate) mtu: Option<u32>,
}

/// What of the rest of the world concerns one peer.
pub(crate) struct Sight<'a> {
    pub(crate) own: Features,
    pub(crate) due: bool,
    /// The best sealed way that answers, for each peer that would relay.
    pub(crate) relays: &'a BTreeMap<PeerName, Method>,
}

/// See the module's docs.
#[derive(Debug, Default)]
pub(crate) struct PeerState {
    pub(crate) facts: PeerFacts,
    /// What the peer has said about packets in clear.
    pub(crate) plain: Option<bool>,
    pub(crate) carriers: BTreeMap<Carrier, Standing>,
    pub(crate) ways: BTreeMap<Slot, Live>,
    pub(crate) chosen: Option<Chosen>,
    /// Whether this node reaches others through the peer, to whom packets are sent, or sends packets of others on to it.
    pub(crate) relaying: bool,
    /// When packets of others were last sent on to it.
    relayed: Option<Instant>,
    /// How many ways were counted, by kind.
    pub(crate) counted: Counts,
    /// When packets of pods were last sent to it, or from it in haste, and since when they are.
    traffic: Option<(Instant, Instant)>,
    /// When this node itself was last seen to send packets of pods to it.
    sent: Option<Instant>,
    /// Whether there should be a QUIC connection; if so, whether there is nothing better to wait for.
    pub(crate) wants_quic: Option<bool>,
    /// How often each has been left for its silence.
    failures: BTreeMap<Slot, u32>,
    /// Since when each other way proves that the agent at the other end lives, which is not heard on the way in use.
    proofs: BTreeMap<Slot, Instant>,
    known_mtu: Option<(Slot, u32)>,
}

impl PeerState {
    /// A peer of which the last way is known from before.
    pub(crate) fn restored(known: KnownWay) -> Self {
        Self {
            plain: known.plain.then_some(true),
            chosen: known.way.map(|way| Chosen {
                slot: Slot::of(way),
                way,
                ground: Ground::Held,
                mtu: known.mtu,
            }),
            known_mtu: known.way.map(Slot::of).zip(known.mtu),
            ..Self::default()
        }
    }

    /// Every way that there might be, best first.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        Method::ALL.into_iter().map(Slot::Direct).chain(self.facts.relays.iter().copied().map(Slot::Relay))
    }

    /// The way of a slot and its upper bound, if it can be probed.
    pub(crate) fn usable(&self, slot: Slot, sight: &Sight<'_>) -> Result<(Way, u32), Unusable> {
        let way = self.possible(slot, sight)?;
        match self.carriers.get(&slot.carrier()) {
            Some(Standing::Up { largest }) => Ok((way, *largest)),
            Some(Standing::Down { why }) => Err(Unusable::Down(why.clone())),
            None => Err(Unusable::Untold),
        }
    }

    /// The way of a slot, if it may be used at all, told or not.
    fn possible(&self, slot: Slot, sight: &Sight<'_>) -> Result<Way, Unusable> {
        let both = |feature| match (sight.own.has(feature), self.facts.features.has(feature)) {
            (false, _) => Err(Unusable::NotHere),
            (true, false) => Err(Unusable::NotThere),
            (true, true) => Ok(()),
        };
        match slot {
            Slot::Direct(Method::FastDp) => {
                both(Features::FASTDP)?;
                if sight.due {
                    return Err(Unusable::InClear);
                }
                self.facts.underlay.ok_or(Unusable::NoAddress)?;
                Ok(Way::direct(Method::FastDp))
            }
            Slot::Direct(Method::Sleeve) => both(Features::SLEEVE).map(|()| Way::direct(Method::Sleeve)),
            Slot::Direct(Method::Quic) => both(Features::QUIC).map(|()| Way::direct(Method::Quic)),
            Slot::Relay(hop) => {
                both(Features::RELAY)?;
                let method = sight.relays.get(&hop).ok_or(Unusable::NoRelay)?;
                Ok(Way::relay(*method, hop))
            }
        }
    }

    /// Brings the ways in line with what is possible now.
    pub(crate) fn refresh(&mut self, sight: &Sight<'_>, now: Instant) {
        let slots: Vec<Slot> = self.slots().collect();
        let usable: BTreeMap<Slot, (Way, u32)> =
            slots.into_iter().filter_map(|slot| Some((slot, self.usable(slot, sight).ok()?))).collect();
        self.ways.retain(|slot, _| usable.contains_key(slot));
        for (slot, (way, largest)) in usable {
            let known = self.known_mtu.filter(|(known, _)| *known == slot).map(|(_, mtu)| mtu);
            let fresh = || Live { way, health: Health::new(now), pmtu: Pmtu::new(largest, known, now) };
            let live = self.ways.entry(slot).or_insert_with(fresh);
            live.way = way;
            live.pmtu.promise(largest, now);
        }
    }

    /// Decides anew which way carries the packets; whether that or its size has changed.
    pub(crate) fn decide(&mut self, sight: &Sight<'_>, now: Instant) -> bool {
        let before = self.chosen;
        for (slot, live) in &mut self.ways {
            live.health.judge(now);
            if live.health.run().is_some_and(|(since, _)| now >= since + FORGIVEN) {
                self.failures.remove(slot);
            }
        }
        // The law, before any preference.
        if self.chosen.is_some_and(|chosen| !chosen.slot.is_sealed() && sight.due) {
            self.chosen = None;
        }
        // What one side does not have carries nothing, whatever it did before, and a side without any way that is
        // probed answers no probe of the kernel's either.
        let is_missing = |chosen: Chosen| {
            matches!(self.possible(chosen.slot, sight), Err(Unusable::NotHere | Unusable::NotThere))
        };
        if self.chosen.is_some_and(is_missing) {
            self.chosen = None;
        }
        self.note_proofs(now);
        match self.chosen {
            None => self.begin(sight),
            Some(chosen) => {
                if let Some(better) = self.better(chosen.slot, now) {
                    self.choose(better, Ground::Answered);
                } else if let Some(refuge) = self.refuge(chosen, sight, now) {
                    *self.failures.entry(chosen.slot).or_default() += 1;
                    self.choose(refuge, Ground::Answered);
                }
            }
        }
        self.follow();
        self.chosen.map(|chosen| (chosen.way, chosen.mtu)) != before.map(|chosen| (chosen.way, chosen.mtu))
    }

    /// A first way: one that answers, else the kernel's, which may work unseen.
    fn begin(&mut self, sight: &Sight<'_>) {
        let answering = self.answering().next();
        let assumed = || self.possible(Slot::FASTDP, sight).is_ok() && !self.is_refuted(Slot::FASTDP);
        if let Some(slot) = answering {
            self.choose(slot, Ground::Answered);
        } else if assumed() {
            let way = Way::direct(Method::FastDp);
            self.chosen = Some(Chosen { slot: Slot::FASTDP, way, ground: Ground::Assumed, mtu: None });
        }
    }

    /// Whether what carries it is known not to work.
    fn is_refuted(&self, slot: Slot) -> bool {
        matches!(self.carriers.get(&slot.carrier()), Some(Standing::Down { .. }))
    }

    fn answering(&self) -> impl Iterator<Item = Slot> {
        self.ways.iter().filter(|(_, live)| live.health.answers()).map(|(&slot, _)| slot)
    }

    /// A way that is better than the one in use and has answered for its hold.
    fn better(&self, slot: Slot, now: Instant) -> Option<Slot> {
        let rank = |slot: Slot| match slot {
            Slot::Direct(method) => Some(method),
            Slot::Relay(_) => None,
        };
        // Between relays there is no better or worse while both work.
        let is_better = |other: Slot| match (rank(other), rank(slot)) {
            (Some(other), Some(used)) => other < used,
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.answering().find(|&other| is_better(other) && self.held_off(other, now).is_none())
    }

    /// How long a way that answers must still go on answering before it is used; none if it may be used.
    pub(crate) fn held_off(&self, slot: Slot, now: Instant) -> Option<Duration> {
        let (since, count) = self.ways.get(&slot)?.health.run()?;
        let hold = self.hold(slot);
        let left = (since + hold).saturating_duration_since(now);
        if left.is_zero() && count >= 2 { None } else { Some(left.max(Duration::from_millis(1))) }
    }

    fn hold(&self, slot: Slot) -> Duration {
        let count = self.failures_of(slot);
        (HOLD * 2_u32.saturating_pow(count.min(6))).min(LONGEST_HOLD)
    }

    /// How often a way has failed in use of late.
    pub(crate) fn failures_of(&self, slot: Slot) -> u32 {
        self.failures.get(&slot).copied().unwrap_or(0)
    }

    /// When the way in use was last heard, or since when it could have been; none if nobody probes it.
    fn heard(&self, chosen: Chosen) -> Option<Instant> {
        self.ways
            .get(&chosen.slot)
            .map(|live| live.health.last_heard().unwrap_or_else(|| live.health.since()))
    }

    fn note_proofs(&mut self, now: Instant) {
        let due = self.chosen.and_then(|chosen| self.heard(chosen)).map(|heard| heard + PROOF);
        let mut before = std::mem::take(&mut self.proofs);
        for (&slot, live) in &self.ways {
            let proves = live.health.answers() && due.is_some() && live.health.proof() >= due;
            if proves {
                self.proofs.insert(slot, before.remove(&slot).unwrap_or(now));
            }
        }
    }

    /// Where to go from a way that is silent or gone: the best that answers, and so proves that the agent lives.
    fn refuge(&self, chosen: Chosen, sight: &Sight<'_>, now: Instant) -> Option<Slot> {
        let silent_way = self.ways.get(&chosen.slot);
        let silent = match (silent_way, chosen.slot.is_sealed()) {
            (Some(live), _) => live.health.is_silent(),
            // The kernel's way that nobody probes: known not to work, or not known at all.
            (None, false) => self.is_refuted(chosen.slot) || self.possible(chosen.slot, sight).is_err(),
            (None, true) => true,
        };
        if !silent {
            return None;
        }
        let Some(silent_way) = silent_way else {
            return self.answering().find(|other| *other != chosen.slot);
        };
        let patience = if self.is_busy(now) { RETURN } else { 2 * RETURN };
        let is_overdue = |since: Instant| silent_way.health.overdue_since(since, now) >= ASKED;
        let proves = |other: &Slot| {
            let (Some(live), Some(&proved)) = (self.ways.get(other), self.proofs.get(other)) else {
                return false;
            };
            // An agent that has only just come back has not had the time to answer on every way.
            let settled = live.health.run().is_some_and(|(since, _)| {
                now >= since + SILENCE && now >= proved + patience && is_overdue(since.max(proved))
            });
            settled || chosen.slot.is_sealed()
        };
        self.answering().filter(|other| *other != chosen.slot).find(proves)
    }

    fn choose(&mut self, slot: Slot, ground: Ground) {
        let Some(live) = self.ways.get(&slot) else { return };
        self.chosen = Some(Chosen { slot, way: live.way, ground, mtu: Some(live.pmtu.force()) });
    }

    /// What the way in use has learned since.
    fn follow(&mut self) {
        let Some(chosen) = &mut self.chosen else { return };
        let Some(live) = self.ways.get(&chosen.slot) else { return };
        chosen.way = live.way;
        chosen.mtu = Some(live.pmtu.force());
        if live.health.answers() {
            chosen.ground = Ground::Answered;
        }
    }

    /// Whether there should be a QUIC connection: it is in use, or nothing better answers. While something does, there is
    /// none, since it would cost a handshake and a sign of life every second and be of no use; nor for a peer that nothing
    /// can be `sent` to.
    pub(crate) fn look_for_quic(&mut self, sent: bool, sight: &Sight<'_>, now: Instant) -> bool {
        let quic = Slot::Direct(Method::Quic);
        let better: Vec<Slot> = [Method::FastDp, Method::Sleeve]
            .map(Slot::Direct)
            .into_iter()
            .filter(|&slot| self.possible(slot, sight).is_ok())
            // What is relayed goes sealed, whatever the peer's own packets do.
            .filter(|slot| slot.is_sealed() || !self.relaying)
            .collect();
        let is_sound = |slot: &Slot| {
            self.ways.get(slot).is_some_and(|live| {
                live.health.answers() && live.health.doubts(self.longest(now), now) < ASKED
            })
        };
        let in_use = self.chosen.is_some_and(|chosen| chosen.slot == quic);
        let wanted = self.possible(quic, sight).is_ok() && (in_use || (sent && !better.iter().any(is_sound)));
        // What has answered before and does not now is a loss; what has never answered may only be slow to begin.
        let was_heard =
            |slot: &Slot| self.ways.get(slot).is_some_and(|live| live.health.last_heard().is_some());
        let wants = wanted.then(|| in_use || better.is_empty() || better.iter().any(was_heard));
        std::mem::replace(&mut self.wants_quic, wants) != wants
    }

    /// Packets of pods have been sent to the peer, or it is in haste to send some; whether that is news.
    pub(crate) fn note_traffic(&mut self, seen: bool, now: Instant) -> bool {
        if seen {
            self.sent = Some(now);
        }
        let since = self.traffic.filter(|_| self.is_busy(now)).map(|(_, since)| since);
        self.traffic = Some((now, since.unwrap_or(now)));
        if since.is_none()
            && let Some(live) = self.chosen.and_then(|chosen| self.ways.get_mut(&chosen.slot))
        {
            // The path may have shrunk while nobody noticed.
            live.pmtu.verify(now);
        }
        since.is_none()
    }

    /// Packets of others have been sent on to the peer; whether that is news.
    pub(crate) fn note_relayed(&mut self, now: Instant) -> bool {
        let is_news = !self.is_relayed_to(now);
        self.relayed = Some(now);
        is_news
    }

    /// Whether packets of others are sent on to the peer.
    pub(crate) fn is_relayed_to(&self, now: Instant) -> bool {
        self.relayed.is_some_and(|last| now < last + TRAFFIC)
    }

    /// Whether packets of pods or of others are seen to be sent to the peer, and not only said to come from it: two who
    /// took each other's haste for traffic would never come to rest.
    pub(crate) fn is_sending(&self, now: Instant) -> bool {
        self.relaying || self.sent.is_some_and(|last| now < last + TRAFFIC)
    }

    /// Whether packets of pods are sent to the peer, or are about to come from it.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        self.traffic.is_some_and(|(last, _)| now < last + TRAFFIC)
    }

    /// Whether packets depend on the ways to the peer.
    pub(crate) fn is_needed(&self, now: Instant) -> bool {
        self.is_busy(now) || self.relaying
    }

    /// The longest that an answer is waited for before its way is in doubt.
    pub(crate) fn longest(&self, now: Instant) -> Duration {
        if self.is_needed(now) { LONGEST.0 } else { LONGEST.1 }
    }

    /// Whether a way is in use, and packets are sent on it.
    pub(crate) fn carries(&self, slot: Slot, now: Instant) -> bool {
        self.is_busy(now) && self.chosen.is_some_and(|chosen| chosen.slot == slot)
    }

    /// How often each way is to be probed.
    pub(crate) fn paces(&self, now: Instant) -> Vec<(Slot, Pace)> {
        self.ways.iter().map(|(&slot, live)| (slot, self.pace(slot, live, now))).collect()
    }

    fn pace(&self, slot: Slot, live: &Live, now: Instant) -> Pace {
        let spare = if self.is_busy(now) { Pace::Spare } else { Pace::Rare };
        let is_chosen = self.chosen.is_some_and(|chosen| chosen.slot == slot);
        // One that carries what this node relays, or relays to others, is in use too.
        if self.relaying && slot.is_sealed() && matches!(slot, Slot::Direct(_)) {
            return Pace::Used;
        }
        if !live.health.answers() && now < live.health.since() + NEW {
            // Nobody waits for a reserve.
            let direct = |slot| matches!(slot, Slot::Direct(_));
            let in_reserve = !direct(slot) && self.answering().any(direct);
            return if in_reserve { Pace::Wanted } else { Pace::New };
        }
        let long_silent = !live.health.answers()
            && now >= live.health.last_heard().unwrap_or_else(|| live.health.since()) + PATIENCE;
        if long_silent && !(is_chosen && self.is_busy(now) && self.answering().next().is_some()) {
            return spare;
        }
        let Some(chosen) = self.chosen else { return Pace::Wanted };
        if is_chosen {
            return self.pace_of_chosen(live, now);
        }
        // The kernel's way may work though nobody can probe it.
        let doubtful = self.ways.get(&chosen.slot).map_or_else(
            || chosen.slot.is_sealed() || self.is_refuted(chosen.slot),
            |used| {
                let asked = self.pace_of_chosen(used, now) == Pace::Checked;
                asked || !used.health.answers() || used.health.is_suspect(self.longest(now), now)
            },
        );
        // The best that answers is enough to know of.
        let better = || {
            let sound =
                |live: &Live| live.health.answers() && !live.health.is_suspect(self.longest(now), now);
            self.ways.range(..slot).any(|(&other, live)| other != chosen.slot && sound(live))
        };
        match (doubtful, live.health.answers()) {
            (true, true) if better() => spare,
            (true, true) if self.is_busy(now) => Pace::Urgent,
            (true, false) if self.is_busy(now) => Pace::New,
            (true, _) => Pace::Doubted,
            (false, _) if slot < chosen.slot && matches!(slot, Slot::Direct(_)) => Pace::Wanted,
            (false, _) => spare,
        }
    }

    fn pace_of_chosen(&self, live: &Live, now: Instant) -> Pace {
        let Some((_, begun)) = self.traffic.filter(|_| self.is_busy(now)) else {
            // Until it is known to be silent or to answer, there is something to find out.
            let settled = live.health.answers() && !live.health.is_suspect(self.longest(now), now);
            return if settled { Pace::Idle } else { Pace::Doubted };
        };
        let unheard = live.health.last_heard().is_some_and(|heard| heard < begun);
        if unheard && live.health.answers() { Pace::Checked } else { Pace::Used }
    }

    /// Why there is no way.
    pub(crate) fn no_path(&self, sight: &Sight<'_>) -> NoPath {
        if self.facts.underlay.is_none() && self.facts.relays.is_empty() {
            return NoPath::NoDirectLink;
        }
        let possible = |slot: Slot| self.possible(slot, sight).is_ok();
        match (self.ways.is_empty(), self.slots().any(possible), sight.due) {
            (false, ..) => NoPath::NoAnswer,
            (true, true, _) => NoPath::NotReady,
            (true, false, true) => NoPath::NoSealedMethod,
            (true, false, false) => NoPath::NoCommonMethod,
        }
    }

    /// The best sealed way straight to the peer that answers: by it, the peer may relay and be relayed to.
    pub(crate) fn sealed(&self) -> Option<Method> {
        self.answering().find_map(|slot| match slot {
            Slot::Direct(method) if method.is_sealed() => Some(method),
            Slot::Direct(_) | Slot::Relay(_) => None,
        })
    }
}
