//! What can be seen of the machine: the table for the kernel, and the reasons for people.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_proto::peer::Features;

use super::Overlay;
use super::peer::{Chosen, Ground, PeerState, Sight, Slot};
use crate::{
    Choice, Forward, ForwardingTable, Method, Moved, NoPath, PeerPath, PlainFrom, QuicWanted, Via, Vtep, Way,
};

/// How a peer is reached, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The way in use; none if its pods cannot be reached.
    pub way: Option<Way>,
    /// Why this one, or why none.
    pub reason: String,
    /// Whether packets are encrypted.
    pub encrypted: bool,
    /// The largest pod packet that is sent this way; none if only the devices limit it.
    pub mtu: Option<u32>,
    /// The smoothed round trip of its probes.
    pub round_trip: Option<Duration>,
    /// The other ways, best first, and why they are not used.
    pub rejected: Vec<(String, String)>,
}

impl Overlay {
    /// How every peer is reached. Equal knowledge gives equal tables.
    #[must_use]
    pub fn table(&self) -> ForwardingTable {
        let paths = self.peers.iter().filter_map(|(&peer, state)| match self.choice(peer, state) {
            Choice::Path(path) => Some(path),
            Choice::None(_) => None,
        });
        let vteps = self.peers.iter().filter_map(|(&peer, state)| {
            let takes = self.own.has(Features::FASTDP) && state.facts.features.has(Features::FASTDP);
            let (underlay, overlay) = (state.facts.underlay?, state.facts.overlay?);
            (takes && !self.is_due(state)).then_some(Vtep { peer, underlay, overlay })
        });
        ForwardingTable {
            paths: paths.collect(),
            vteps: vteps.collect(),
            plain_from: self.plain_from(),
            forwards: self.forwards(),
            quic: self
                .peers
                .iter()
                .filter_map(|(&peer, state)| Some(QuicWanted { peer, soon: state.wants_quic? }))
                .collect(),
        }
    }

    fn plain_from(&self) -> PlainFrom {
        let of = |due: bool| {
            let peers = self.peers.values().filter(|state| self.is_due(state) == due);
            let mut addresses: Vec<IpAddr> = peers.filter_map(|state| state.facts.underlay).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        };
        if self.encryption.wanted { PlainFrom::Only(of(false)) } else { PlainFrom::AnybodyBut(of(true)) }
    }

    fn forwards(&self) -> Vec<Forward> {
        let way = |state: &PeerState| {
            let direct = state.sealed().map(Way::direct);
            direct.or_else(|| {
                let chosen = state.chosen.filter(|chosen| chosen.way.via != Via::Direct)?;
                state.ways.get(&chosen.slot)?.health.answers().then_some(chosen.way)
            })
        };
        let forward = |(&peer, state)| Some(Forward { peer, way: way(state)? });
        self.peers.iter().filter_map(forward).collect()
    }

    fn choice(&self, peer: PeerName, state: &PeerState) -> Choice {
        if state.facts.ranges.is_empty() {
            return Choice::None(NoPath::OwnsNothing);
        }
        let Some(overlay) = state.facts.overlay else { return Choice::None(NoPath::NoOverlayAddress) };
        let Some(chosen) = state.chosen else {
            return Choice::None(state.no_path(&self.sight(state)));
        };
        let underlay = state.facts.underlay;
        // The kernel's way needs an address; a sealed one is sent where the peer was last heard.
        if underlay.is_none() && chosen.way == Way::direct(Method::FastDp) {
            return Choice::None(NoPath::NoDirectLink);
        }
        let mut ranges = state.facts.ranges.clone();
        ranges.sort_unstable();
        Choice::Path(PeerPath { peer, way: chosen.way, underlay, overlay, ranges, mtu: chosen.mtu })
    }

    fn sight(&self, state: &PeerState) -> Sight<'_> {
        Sight { own: self.own, due: self.is_due(state), relays: &self.relays }
    }

    /// How one peer is reached, in words; none if nothing is known of it.
    #[must_use]
    pub fn report(&self, peer: PeerName, now: Instant) -> Option<Report> {
        let state = self.peers.get(&peer)?;
        let sight = self.sight(state);
        let chosen = match self.choice(peer, state) {
            Choice::Path(_) => state.chosen,
            Choice::None(_) => None,
        };
        let reason = match (self.choice(peer, state), chosen) {
            (Choice::None(why), _) => why.to_string(),
            (Choice::Path(_), Some(chosen)) => why(state, chosen, &sight, now),
            (Choice::Path(_), None) => String::new(),
        };
        let others = state.slots().filter(|slot| chosen.is_none_or(|chosen| chosen.slot != *slot));
        Some(Report {
            way: chosen.map(|chosen| chosen.way),
            reason,
            encrypted: chosen.is_some_and(|chosen| chosen.way.is_sealed()),
            mtu: chosen.and_then(|chosen| chosen.mtu),
            round_trip: chosen.and_then(|chosen| state.ways.get(&chosen.slot)?.health.round_trip()),
            rejected: others.map(|slot| (named(slot), rejected(state, slot, &sight, now))).collect(),
        })
    }
}

/// What there is to be said of a peer whose packets went `from` there, if they no longer do.
pub(super) fn moved(
    peer: PeerName,
    from: Way,
    state: &PeerState,
    sight: &Sight<'_>,
    now: Instant,
) -> Option<Moved> {
    let to = state.chosen.map(|chosen| chosen.way);
    let why = match state.chosen {
        Some(chosen) => why(state, chosen, sight, now),
        None => state.no_path(sight).to_string(),
    };
    (to != Some(from)).then_some(Moved { peer, from, to, why, untold: 0 })
}

fn named(slot: Slot) -> String {
    match slot {
        Slot::Direct(method) => method.to_string(),
        Slot::Relay(hop) => format!("relay {hop}"),
    }
}

/// Why the way in use is in use.
fn why(state: &PeerState, chosen: Chosen, sight: &Sight<'_>, now: Instant) -> String {
    let silent = state
        .ways
        .get(&chosen.slot)
        .filter(|live| !live.health.answers() && live.health.is_silent())
        .map(|live| (live.health.last_heard(), live.health.since()));
    if let Some((heard, since)) = silent {
        let quiet = now.saturating_duration_since(heard.unwrap_or(since)).as_secs();
        return format!("no answer for {quiet} s, kept since no other way answers");
    }
    match chosen.ground {
        Ground::Held => {
            return "in use before the agent started, kept until answers say otherwise".to_owned();
        }
        Ground::Assumed if sight.due => return "nothing answers yet".to_owned(),
        Ground::Assumed => return "direct, no encryption wanted".to_owned(),
        Ground::Answered => {}
    }
    let direct = matches!(chosen.slot, Slot::Direct(_));
    match (direct, chosen.way.method, sight.due) {
        (false, ..) => "no direct way answers".to_owned(),
        (true, Method::FastDp, _) => "direct, no encryption wanted".to_owned(),
        (true, Method::Sleeve, true) => "encryption is due".to_owned(),
        (true, Method::Sleeve, false) => worse(state, Method::FastDp, sight, now),
        (true, Method::Quic, _) => worse(state, Method::Sleeve, sight, now),
    }
}

/// Why something worse than `better` is in use.
fn worse(state: &PeerState, better: Method, sight: &Sight<'_>, now: Instant) -> String {
    format!("{better}: {}", rejected(state, Slot::Direct(better), sight, now))
}

/// Why a way is not in use.
fn rejected(state: &PeerState, slot: Slot, sight: &Sight<'_>, now: Instant) -> String {
    let live = match (state.usable(slot, sight), state.ways.get(&slot)) {
        (Err(why), _) => return why.to_string(),
        (Ok(_), None) => return "about to be probed".to_owned(),
        (Ok(_), Some(live)) => live,
    };
    if !live.health.answers() {
        return match live.health.last_heard() {
            Some(heard) => format!("no answer for {} s", now.saturating_duration_since(heard).as_secs()),
            None => {
                let asked = now.saturating_duration_since(live.health.since()).as_secs();
                format!("has not answered, asked for {asked} s")
            }
        };
    }
    let is_better = state.chosen.is_none_or(|chosen| slot < chosen.slot);
    match state.held_off(slot, now).filter(|_| is_better) {
        Some(left) => {
            let times = state.failures_of(slot);
            let again = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            format!("answers; used if it does so for {again} s more, having failed {times} times of late")
        }
        None => "answers, and is not needed".to_owned(),
    }
}
