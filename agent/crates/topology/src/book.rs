//! The addresses that are worth dialling, and how each attempt went.
//!
//! ```text
//!                    due and wanted                      a link
//!        Resting ----------------------> Dialing ------------------> Resting (not wanted while it lives)
//!           ^                               |
//!           +----- failed: back off --------+----- reached itself --> Never
//! ```
//!
//! How long an address rests after a failure depends on whether time heals it. What an operator must change (another
//! range, no common version, …) is tried at the slowest pace, so that the change is noticed. A peer that has reached its
//! connection limit is left alone for longer, unless it is cut off from us. An address that turned out to be our own is
//! not tried again for as long as somebody wants it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use weave_proto::PeerName;
use weave_proto::peer::RefusalCode;

use crate::backoff::{Backoff, SLOWEST};
use crate::links::Link;
use crate::{DialId, Reason};

/// How long a link must have lived for the next failure to count as the first one. An agent that crashes soon after its
/// start does not hold its neighbours busy.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(20);
/// How long to wait for the doer to say how an attempt went. It has time limits of its own, which are shorter; this one
/// only makes sure that nothing waits for ever.
pub(crate) const DIAL_PATIENCE: Duration = Duration::from_secs(30);
/// How long to leave a peer alone that has links enough.
pub(crate) const LIMIT_PAUSE: Duration = Duration::from_secs(300);
/// How many attempts may be under way: a handshake takes a millisecond of CPU, and the answers of this many can be
/// taken in before the first of them times out.
pub(crate) const MAX_DIALING: usize = 32;
/// How many attempts may be *fresh*. Peers that start together and were told of each other all dial each other at once
/// otherwise, and nearly every link is made twice. So each begins with a few, and by the time that these have been
/// answered many of the others have called by themselves.
pub(crate) const MAX_FRESH: usize = 4;
/// For how long an attempt that nobody has answered is fresh. Where nobody is, many addresses are to be tried.
pub(crate) const FRESH: Duration = Duration::from_millis(250);

/// Whether an address is to be dialled, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// The mesh might fall apart without it: whatever the connection limit says.
    Must,
    /// As far as the connection limit allows.
    May,
    /// Not now: there is a link with that peer.
    No,
}

/// Why an address is in the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) urgency: Urgency,
    /// Whether people named it.
    pub(crate) target: bool,
    /// Who is said to be there.
    pub(crate) peer: Option<PeerName>,
    /// How long to wait before the first attempt.
    pub(crate) delay: Duration,
}

/// How far an address has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not tried before `until`; a peer at its limit that must be reached all the same, not before `must`.
    Resting { until: Instant, must: Instant },
    /// Being tried; given up at `until`.
    Dialing { dial: DialId, until: Instant },
    /// It is our own.
    Never,
}

/// One address.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) phase: Phase,
    pub(crate) interest: Interest,
    backoff: Backoff,
    /// Who answered there last.
    pub(crate) peer: Option<PeerName>,
    /// Why it did not work the last time.
    pub(crate) trouble: Option<Reason>,
}

impl Place {
    fn new(interest: Interest, now: Instant) -> Self {
        let first = now + interest.delay;
        let phase = Phase::Resting { until: first, must: first };
        Self { phase, interest, backoff: Backoff::default(), peer: interest.peer, trouble: None }
    }

    /// When it may be tried; none if it is not to be.
    pub(crate) const fn due(&self) -> Option<Instant> {
        match (self.phase, self.interest.urgency) {
            (Phase::Resting { must, .. }, Urgency::Must) => Some(must),
            (Phase::Resting { until, .. }, Urgency::May) => Some(until),
            (Phase::Resting { .. }, Urgency::No) | (Phase::Dialing { .. } | Phase::Never, _) => None,
        }
    }

    /// Whether the peer there had links enough.
    pub(crate) fn found_full(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.refused == Some(RefusalCode::Limit))
    }

    fn rest(&mut self, pause: Duration, now: Instant) {
        self.phase = Phase::Resting { until: now + pause, must: now + pause };
    }

    fn fail(&mut self, reason: Reason, rng: &mut impl Rng, now: Instant) {
        match reason.refused {
            Some(RefusalCode::Myself) => self.phase = Phase::Never,
            Some(RefusalCode::Limit) => {
                let must = now + self.backoff.slowest(rng);
                self.phase = Phase::Resting { until: now + LIMIT_PAUSE.max(SLOWEST), must };
            }
            Some(
                RefusalCode::Version
                | RefusalCode::NameCollision
                | RefusalCode::Range
                | RefusalCode::Universe
                | RefusalCode::Electorate
                | RefusalCode::Removed,
            ) => {
                let pause = self.backoff.slowest(rng);
                self.rest(pause, now);
            }
            Some(
                RefusalCode::Goodbye | RefusalCode::Duplicate | RefusalCode::Garbage | RefusalCode::Other(_),
            )
            | None => {
                let pause = self.backoff.next(rng);
                self.rest(pause, now);
            }
        }
        self.trouble = Some(reason);
    }
}

/// All addresses.
#[derive(Debug, Default)]
pub(crate) struct Book {
    places: BTreeMap<SocketAddr, Place>,
    dials: BTreeMap<DialId, SocketAddr>,
    last_dial: u64,
}

impl Book {
    pub(crate) fn places(&self) -> impl Iterator<Item = (SocketAddr, &Place)> {
        self.places.iter().map(|(&addr, place)| (addr, place))
    }

    pub(crate) fn place(&self, addr: SocketAddr) -> Option<&Place> {
        self.places.get(&addr)
    }

    pub(crate) fn dialing(&self) -> usize {
        self.dials.len()
    }

    /// When each attempt that is fresh now will no longer be so, the first one first.
    pub(crate) fn fresh(&self, now: Instant) -> Vec<Instant> {
        let ends = self.places.values().filter_map(|place| match place.phase {
            Phase::Dialing { dial, until } if self.dials.contains_key(&dial) => {
                Some(until - DIAL_PATIENCE + FRESH)
            }
            Phase::Dialing { .. } | Phase::Resting { .. } | Phase::Never => None,
        });
        let mut ends: Vec<Instant> = ends.filter(|&end| end > now).collect();
        ends.sort_unstable();
        ends
    }

    /// These addresses matter and no others. Attempts that are under way are waited for.
    pub(crate) fn set_interests(&mut self, interests: &BTreeMap<SocketAddr, Interest>, now: Instant) {
        self.places.retain(|addr, place| {
            interests.contains_key(addr) || matches!(place.phase, Phase::Dialing { .. })
        });
        for place in self.places.values_mut() {
            place.interest.urgency = Urgency::No;
            place.interest.target = false;
        }
        for (&addr, &interest) in interests {
            self.places.entry(addr).or_insert_with(|| Place::new(interest, now)).interest = interest;
        }
    }

    /// Somebody asked for this address just now: what went wrong before does not count.
    pub(crate) fn renew(&mut self, addr: SocketAddr, now: Instant) {
        if let Some(place) = self.places.get_mut(&addr) {
            place.backoff.reset();
            place.trouble = None;
            if !matches!(place.phase, Phase::Dialing { .. }) {
                place.rest(Duration::ZERO, now);
            }
        }
    }

    /// Tries an address.
    pub(crate) fn dial(&mut self, addr: SocketAddr, now: Instant) -> Option<DialId> {
        let place = self.places.get_mut(&addr)?;
        self.last_dial += 1;
        let dial = DialId(self.last_dial);
        place.phase = Phase::Dialing { dial, until: now + DIAL_PATIENCE };
        self.dials.insert(dial, addr);
        Some(dial)
    }

    /// The address that an attempt went to; the attempt is over. None if it does not matter any more.
    pub(crate) fn take_dial(&mut self, dial: DialId) -> Option<SocketAddr> {
        self.dials.remove(&dial)
    }

    /// A peer has answered at this address and the link is good.
    pub(crate) fn on_link(&mut self, addr: SocketAddr, peer: PeerName, now: Instant) {
        let interest =
            Interest { urgency: Urgency::No, target: false, peer: Some(peer), delay: Duration::ZERO };
        let place = self.places.entry(addr).or_insert_with(|| Place::new(interest, now));
        place.peer = Some(peer);
        place.trouble = None;
        if !matches!(place.phase, Phase::Dialing { dial, .. } if self.dials.contains_key(&dial)) {
            place.rest(Duration::ZERO, now);
        }
    }

    /// The last link with a peer is gone: its addresses rest for a moment.
    pub(crate) fn on_link_lost(&mut self, link: &Link, reason: &Reason, rng: &mut impl Rng, now: Instant) {
        let (peer, lived) = (link.peer(), now.saturating_duration_since(link.since));
        for place in self.places.values_mut().filter(|place| place.peer == Some(peer)) {
            if lived >= STABLE_AFTER {
                place.backoff.reset();
            }
            if matches!(place.phase, Phase::Resting { .. }) {
                place.fail(reason.clone(), rng, now);
            }
        }
    }

    /// An attempt at this address failed, or what was found there is not to be talked to. Whether that is news: a reason
    /// other than the last one.
    pub(crate) fn on_failure(
        &mut self,
        addr: SocketAddr,
        reason: Reason,
        rng: &mut impl Rng,
        now: Instant,
    ) -> bool {
        let Some(place) = self.places.get_mut(&addr) else { return false };
        let is_news = place.trouble.as_ref().map(|trouble| &trouble.text) != Some(&reason.text);
        place.fail(reason, rng, now);
        is_news
    }

    /// The attempts that nobody has answered in time.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<DialId> {
        let dials = self.places.values().filter_map(|place| match place.phase {
            Phase::Dialing { dial, until } if until <= now => Some(dial),
            Phase::Dialing { .. } | Phase::Resting { .. } | Phase::Never => None,
        });
        dials.collect()
    }

    /// When the next attempt is overdue.
    pub(crate) fn next_overdue(&self) -> Option<Instant> {
        let times = self.places.values().filter_map(|place| match place.phase {
            Phase::Dialing { until, .. } => Some(until),
            Phase::Resting { .. } | Phase::Never => None,
        });
        times.min()
    }
}

#[cfg(test)]
mod tests;
