//! How long to wait before the next attempt.

use std::time::Duration;

use rand::Rng;

/// The first pause: long enough for an agent to restart, short enough that nobody notices.
pub(crate) const FASTEST: Duration = Duration::from_millis(500);
/// The longest pause: a node that was repaired is back within half a minute, and a thousand absent ones cost about
/// thirty handshakes a second.
pub(crate) const SLOWEST: Duration = Duration::from_secs(30);
/// Each pause is varied by up to this part of itself, so that peers which lost each other at once do not return at once.
const JITTER: f64 = 0.25;

/// Doubling pauses from [`FASTEST`] to [`SLOWEST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub(crate) fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let doubled = FASTEST.saturating_mul(1_u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        vary(doubled.min(SLOWEST), rng)
    }

    /// The pause after a failure that will not go away by itself.
    pub(crate) fn slowest(&mut self, rng: &mut impl Rng) -> Duration {
        self.failures = self.failures.saturating_add(16);
        vary(SLOWEST, rng)
    }

    /// All is well: the next failure is the first one.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// `pause`, made up to [`JITTER`] shorter or longer.
pub(crate) fn vary(pause: Duration, rng: &mut impl Rng) -> Duration {
    pause.mul_f64(rng.random_range(1.0 - JITTER..1.0 + JITTER))
}

#[cfg(test)]
mod tests;
