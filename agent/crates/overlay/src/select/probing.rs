//! Which probes go out now, and when to look again.

use std::time::{Duration, Instant};

use weave_proto::PeerName;

use super::budget::{Counts, Pace};
use super::health::Haste;
use super::peer::{Live, PeerState, Slot};
use super::{Output, Overlay};
use crate::{Probe, Way};

/// When something is due at a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// The moment; in the past if there was no budget for it.
    pub(super) at: Instant,
    /// When to look at it.
    pub(super) wake: Instant,
}

impl Due {
    const fn on_time(at: Instant) -> Self {
        Self { at, wake: at }
    }
}

impl Overlay {
    /// Sends the probes of one peer that are due and that the budget allows, and notes when to go on.
    pub(super) fn probe(&mut self, peer: PeerName, state: &mut PeerState, now: Instant) {
        let paces = state.paces(now);
        let in_doubt = if state.is_needed(now) { Pace::Pressed } else { Pace::Doubted };
        let haste = Haste { longest: state.longest(now), pace: self.budget.interval(in_doubt) };
        let fears = |&(slot, pace): &(Slot, Pace)| {
            state.ways.get(&slot).is_some_and(|live| may_lose(live, pace, haste.longest, now))
        };
        let hasty = state.is_sending(now) && paces.iter().any(fears);
        let mut counts = Counts::default();
        paces.iter().for_each(|(_, pace)| counts[pace.kind() as usize] += 1);
        self.budget.count(std::mem::replace(&mut state.counted, counts), counts);
        let mut all: Vec<Due> = Vec::with_capacity(2 * paces.len());
        for (slot, pace) in paces {
            let used = state.carries(slot, now);
            let Some(live) = state.ways.get_mut(&slot) else { continue };
            all.push(self.probe_life(peer, live, (pace, haste, hasty), now));
            if live.health.answers() {
                all.push(self.probe_size(peer, live, used, now));
            }
        }
        let (at, wake) = (all.iter().map(|due| due.at).min(), all.iter().map(|due| due.wake).min());
        match (at, wake) {
            (Some(at), Some(wake)) => drop(self.due.insert(peer, Due { at, wake })),
            _ => drop(self.due.remove(&peer)),
        }
    }

    /// A small probe, if it is due.
    fn probe_life(
        &mut self,
        peer: PeerName,
        live: &mut Live,
        (pace, haste, hasty): (Pace, Haste, bool),
        now: Instant,
    ) -> Due {
        let interval = self.budget.interval(pace);
        let at = live.health.due(interval, haste);
        if at > now {
            return Due::on_time(at);
        }
        if let Err(wake) = self.budget.take(pace.kind(), now) {
            return Due { at, wake };
        }
        let nonce = self.send(peer, live.way, (0, hasty));
        live.health.sent(nonce, now);
        Due::on_time(live.health.due(interval, haste))
    }

    /// A probe for the size, if it is due.
    fn probe_size(&mut self, peer: PeerName, live: &mut Live, used: bool, now: Instant) -> Due {
        let at = live.pmtu.due();
        if at > now {
            return Due::on_time(at);
        }
        // The largest that it may be is paid for: what it will be is not known before it is drawn.
        if let Err(wake) = self.budget.take_size(live.pmtu.largest(), now) {
            return Due { at, wake };
        }
        if let Some(len) = live.pmtu.poll(self.nonce, used, &live.health, now) {
            self.send(peer, live.way, (len, false));
        }
        Due::on_time(live.pmtu.due())
    }

    /// Has a probe sent, and returns its number.
    fn send(&mut self, peer: PeerName, way: Way, (len, hasty): (u32, bool)) -> u64 {
        let nonce = self.nonce;
        self.nonce = nonce.wrapping_add(1);
        self.outputs.push_back(Output::Probe(Probe { peer, way, nonce, len, hasty }));
        nonce
    }
}

/// Whether what is sent to the peer may be lost, by what is known of one of its ways.
fn may_lose(live: &Live, pace: Pace, longest: Duration, now: Instant) -> bool {
    let is_doubtful = live.health.answers() && live.health.is_suspect(longest, now);
    match pace {
        // There is another way that answers, and the one in use is in doubt or silent.
        Pace::Urgent => true,
        Pace::Checked => is_doubtful || live.health.is_asked(),
        Pace::Used => is_doubtful,
        Pace::Pressed | Pace::New | Pace::Wanted | Pace::Doubted | Pace::Idle | Pace::Spare | Pace::Rare => {
            false
        }
    }
}
