//! Who may knock how often.
//!
//! A handshake costs the listener about a millisecond and some memory before it knows whether the other side
//! holds the secret. Three steps keep a stranger from making that expensive for the mesh:
//!
//! 1. **Each source has a budget** ([`BURST`], [`REFILL_PER_SECOND`]), so that one host cannot use up the CPU.
//!    What is over budget is dropped without an answer; a peer's dial is repeated by QUIC within the second and
//!    by the topology after that.
//! 2. **Under load the address must be real.** When the budget is used up or more than [`RETRY_ABOVE`]
//!    handshakes are under way, a source must first repeat a token that was sent to its address (QUIC's Retry,
//!    stateless, smaller than what asked for it). With that it has a second budget of its own, so a stranger who
//!    forges a peer's address cannot use up what the peer needs.
//! 3. **There is an end.** Above [`MAX_HANDSHAKES`] newcomers are dropped.
//!
//! Established links are not counted and never disturbed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

/// Attempts that a source may make at once. Many peers may share one address behind NAT: a rack that comes back
/// after a power cut is let in without delay.
pub(super) const BURST: f64 = 64.0;
/// Attempts a second that a source may make for ever. At about a millisecond each this is under 2 % of a core;
/// a peer's own dialling backs off to one in 30 s.
const REFILL_PER_SECOND: f64 = 16.0;
/// Handshakes under way from which on an address must prove itself. Four dozen peers starting within one
/// handshake's few milliseconds is a large mesh after a power cut; for them a Retry costs one round trip.
pub(super) const RETRY_ABOVE: usize = 48;
/// Handshakes under way at most. Each takes up to about 50 KiB until it is done or timed out.
pub(super) const MAX_HANDSHAKES: usize = 256;
/// Sources remembered at most. Only sources that have used up part of their budget need remembering.
const MAX_SOURCES: usize = 1024;

/// What to do with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Do the handshake.
    Admit,
    /// Ask for proof of the address.
    Retry,
    /// Drop it without an answer.
    Ignore,
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn refilled(self, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * REFILL_PER_SECOND;
        Self { tokens: (self.tokens + gained).min(BURST), at: now }
    }
}

/// The door's memory. Knows no clock and no socket.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// By address, and whether it was proven.
    sources: BTreeMap<(IpAddr, bool), Budget>,
}

impl Admission {
    /// Decides about an attempt from `source` while `under_way` handshakes are.
    pub(super) fn judge(
        &mut self,
        source: IpAddr,
        validated: bool,
        under_way: usize,
        now: Instant,
    ) -> Verdict {
        if under_way >= MAX_HANDSHAKES {
            return Verdict::Ignore;
        }
        if under_way >= RETRY_ABOVE && !validated {
            return Verdict::Retry;
        }
        let fresh = Budget { tokens: BURST, at: now };
        let place = (source, validated);
        let mut budget = self.sources.get(&place).copied().unwrap_or(fresh).refilled(now);
        if budget.tokens < 1.0 {
            return if validated { Verdict::Ignore } else { Verdict::Retry };
        }
        budget.tokens -= 1.0;
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&place) {
            self.forget_full(now);
        }
        if self.sources.len() < MAX_SOURCES || self.sources.contains_key(&place) {
            self.sources.insert(place, budget);
        }
        Verdict::Admit
    }

    /// Forgets the sources whose budget is whole again: a new entry would say the same.
    fn forget_full(&mut self, now: Instant) {
        self.sources.retain(|_, budget| budget.refilled(now).tokens < BURST);
    }
}

#[cfg(test)]
mod tests;
