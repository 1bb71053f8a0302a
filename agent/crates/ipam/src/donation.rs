//! How space moves from peers that have more to peers that have less.
//!
//! A peer that has nothing left to give out *asks*; the donor *answers at once*, with a part of its free space or
//! with a denial, and never asks somebody else first. So no two peers can wait for each other in a circle, and a
//! request waits for one answer at a time, each for at most [`ANSWER_PATIENCE`].
//!
//! Asking goes in rounds. In the first everybody whose hint says that it has free space is asked once, most free
//! first. After that the asking peer uses up its own addresses in quarantine, and then asks every owner, hint or
//! not, for anything at all: an address in quarantine too. When that is denied everywhere, it pauses for
//! [`ROUND_PAUSE`] and begins anew, until the request runs out of patience.
//!
//! A gift is one aligned block: one route, and two ring entries at most. A donor gives about half of its free
//! space ([`gift`]), so that it needs not ask back soon.
//!
//! **Balance.** A peer that has no need asks too, at leisure, while some reachable peer owns more than twice what
//! it owns. The donor gives at most half the difference, which can never turn the tables, and nothing while it
//! uses more than half of what it owns. So joiners end up with space of their own before they need any, and idle
//! peers own the same within a factor of two.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::Rng;
use weave_proto::peer::ipam::Want;
use weave_proto::{Cidr, PeerName};

use crate::space::Space;

/// How long a donor may take to answer. An answer needs one round trip and one write to a disk; a few lost
/// packets on the way are repaired by then.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// How long to pause when everybody has denied.
pub const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// How long shares may be uneven before anybody asks for balance; up to twice as long, by chance. A joiner with
/// pods asks out of need long before.
pub const BALANCE_DELAY: Duration = Duration::from_secs(2);

/// How long a donor that denied is not asked for balance again.
pub const BALANCE_RETRY: Duration = Duration::from_secs(60);

/// Of two peers, the larger may own this many times what the smaller owns.
const BALANCED_RATIO: u128 = 2;

/// What the donor makes of a request: the block to give; none to deny.
#[must_use]
pub fn gift(space: &Space, want: Want, now: Instant) -> Option<Cidr> {
    let half = space.free().div_ceil(2);
    match want {
        Want::Share => space.spare_block(half, now),
        Want::Leftover => space.spare_block(half, now).or_else(|| space.oldest().map(Cidr::host)),
        Want::Balance { owned } => {
            let busy = space.taken() * 2 > space.owned();
            let excess = space.owned().saturating_sub(u128::from(owned)) / 2;
            if busy { None } else { space.spare_block(excess.min(half), now) }
        }
    }
}

/// A peer that could be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Donor {
    /// How many addresses it owns.
    pub owned: u128,
    /// About how many of them it says are free.
    pub free: u64,
}

/// What the seeker knows about the mesh.
pub struct Market<'a> {
    /// Reachable owners, this peer and removed ones excepted.
    pub donors: &'a BTreeMap<PeerName, Donor>,
    /// How many addresses this peer owns.
    pub owned: u128,
    /// Whether a request waits for an address.
    pub need: bool,
    /// Whether this peer has addresses in quarantine.
    pub has_resting: bool,
}

/// What the seeker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quest {
    /// Nothing, or wait.
    Wait,
    /// Ask this peer.
    Ask {
        /// Whom.
        donor: PeerName,
        /// Proves that an answer is one to this question.
        token: u64,
        /// For what.
        want: Want,
    },
    /// Give out an own address that rests.
    CutQuarantine,
}

/// The asking side: whom to ask, and when.
#[derive(Debug, Clone, Default)]
pub struct Seeker {
    state: State,
    tried: BTreeSet<PeerName>,
    leftovers: bool,
    balance_at: Option<Instant>,
    balance_denied: BTreeMap<PeerName, Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Idle,
    Asked {
        donor: PeerName,
        token: u64,
        want: Want,
        until: Instant,
    },
    Pausing {
        until: Instant,
    },
}

impl Seeker {
    /// What to do now.
    pub fn next(&mut self, market: &Market<'_>, rng: &mut impl Rng, now: Instant) -> Quest {
        self.expire(now);
        if market.need {
            self.balance_at = None;
            return self.next_in_need(market, rng, now);
        }
        self.tried.clear();
        self.leftovers = false;
        if !matches!(self.state, State::Asked { want: Want::Balance { .. }, .. }) {
            self.state = State::Idle;
        }
        self.next_at_leisure(market, rng, now)
    }

    /// The donor has denied. Returns whether that was the answer to the open question.
    pub fn on_denied(&mut self, from: PeerName, answered: u64, now: Instant) -> bool {
        match self.state {
            State::Asked { donor, token, want, .. } if donor == from && token == answered => {
                self.give_up(donor, want, now);
                true
            }
            State::Asked { .. } | State::Idle | State::Pausing { .. } => false,
        }
    }

    /// This peer owns more than before: whatever was denied may be worth another try.
    pub fn on_gain(&mut self) {
        *self = Self { balance_denied: std::mem::take(&mut self.balance_denied), ..Self::default() };
    }

    /// The donor that is being waited for.
    #[must_use]
    pub const fn asked(&self) -> Option<PeerName> {
        match self.state {
            State::Asked { donor, want: Want::Share | Want::Leftover, .. } => Some(donor),
            State::Asked { .. } | State::Idle | State::Pausing { .. } => None,
        }
    }

    /// When [`next`](Self::next) is to be called again without news.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = match self.state {
            State::Asked { until, .. } | State::Pausing { until } => Some(until),
            State::Idle => None,
        };
        waiting.into_iter().chain(self.balance_at).min()
    }

    fn next_in_need(&mut self, market: &Market<'_>, rng: &mut impl Rng, now: Instant) -> Quest {
        match self.state {
            State::Asked { want: Want::Share | Want::Leftover, .. } | State::Pausing { .. } => {
                return Quest::Wait;
            }
            State::Asked { want: Want::Balance { .. }, .. } | State::Idle => {}
        }
        if !self.leftovers {
            let generous =
                market.donors.iter().filter(|(peer, donor)| donor.free > 0 && !self.tried.contains(peer));
            if let Some((donor, _)) = generous.max_by_key(|(_, donor)| donor.free) {
                return self.ask(*donor, Want::Share, rng, now);
            }
            if market.has_resting {
                return Quest::CutQuarantine;
            }
            self.leftovers = true;
            self.tried.clear();
        }
        match market.donors.keys().find(|peer| !self.tried.contains(peer)) {
            Some(donor) => self.ask(*donor, Want::Leftover, rng, now),
            None => {
                self.tried.clear();
                self.leftovers = false;
                self.state = State::Pausing { until: now + ROUND_PAUSE };
                Quest::Wait
            }
        }
    }

    fn next_at_leisure(&mut self, market: &Market<'_>, rng: &mut impl Rng, now: Instant) -> Quest {
        if matches!(self.state, State::Asked { .. }) {
            return Quest::Wait;
        }
        self.balance_denied.retain(|_, until| *until > now);
        let larger = |donor: &Donor| donor.owned > market.owned.saturating_mul(BALANCED_RATIO);
        let (denied, willing): (Vec<_>, Vec<_>) = market
            .donors
            .iter()
            .filter(|(_, donor)| larger(donor))
            .partition(|(peer, _)| self.balance_denied.contains_key(peer));
        let Some((donor, _)) = willing.into_iter().max_by_key(|(_, donor)| donor.owned) else {
            self.balance_at =
                denied.iter().filter_map(|(peer, _)| self.balance_denied.get(peer)).min().copied();
            return Quest::Wait;
        };
        let delay = BALANCE_DELAY.mul_f64(1.0 + rng.random::<f64>());
        if *self.balance_at.get_or_insert(now + delay) > now {
            return Quest::Wait;
        }
        self.balance_at = None;
        let owned = u64::try_from(market.owned).unwrap_or(u64::MAX);
        self.ask(*donor, Want::Balance { owned }, rng, now)
    }

    fn ask(&mut self, donor: PeerName, want: Want, rng: &mut impl Rng, now: Instant) -> Quest {
        let token = rng.random();
        self.state = State::Asked { donor, token, want, until: now + ANSWER_PATIENCE };
        Quest::Ask { donor, token, want }
    }

    fn expire(&mut self, now: Instant) {
        match self.state {
            State::Asked { donor, want, until, .. } if until <= now => self.give_up(donor, want, now),
            State::Pausing { until } if until <= now => self.state = State::Idle,
            State::Asked { .. } | State::Pausing { .. } | State::Idle => {}
        }
    }

    fn give_up(&mut self, donor: PeerName, want: Want, now: Instant) {
        self.state = State::Idle;
        match want {
            Want::Share | Want::Leftover => {
                self.tried.insert(donor);
            }
            Want::Balance { .. } => {
                self.balance_denied.insert(donor, now + BALANCE_RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests;
