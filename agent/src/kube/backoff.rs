//! How long to wait before the API server is asked again. With chance in it: all agents of a cluster lose a restarted
//! API server at the same moment, and must not come back at the same moment.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The first pause is drawn from up to this: a hiccup is over by then.
pub(super) const FIRST: Duration = Duration::from_secs(1);
/// No pause is longer than this: an operator who has repaired the API server watches the nodes for about as long.
pub(super) const LONGEST: Duration = Duration::from_secs(60);
/// A server that asks for patience gets no more than this, lest a mistaken header switches the agent off.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Chance for pauses. Should the system have no random numbers, the agents come back together, and nothing worse.
pub(super) fn chance() -> StdRng {
    let mut seed = [0; 32];
    let _ = aws_lc_rs::rand::fill(&mut seed);
    StdRng::from_seed(seed)
}

/// Pauses that grow with each failure in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked.
    pub(super) const fn succeed(&mut self) {
        self.failures = 0;
    }

    /// It failed; how long to wait now. `asked` is what the server itself asked for (Retry-After). The pause lies
    /// between half of its step and the whole, so that it is never next to nothing.
    pub(super) fn fail(&mut self, asked: Option<Duration>, rng: &mut impl Rng) -> Duration {
        let step = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1).min(16);
        let pause = step.mul_f64(rng.random_range(0.5..=1.0));
        match asked {
            Some(asked) => asked.min(LONGEST_ASKED) + pause,
            None => pause,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_success_brings_the_short_pause_back() {
        let (mut backoff, mut rng) = (Backoff::default(), StdRng::seed_from_u64(1));
        for _ in 0..10 {
            backoff.fail(None, &mut rng);
        }
        assert!(backoff.fail(None, &mut rng) >= LONGEST / 2);
        backoff.succeed();
        assert!(backoff.fail(None, &mut rng) <= FIRST);
    }

    #[test]
    fn agents_that_fail_together_come_back_apart() {
        let pauses: std::collections::BTreeSet<_> =
            (0..100).map(|seed| Backoff::default().fail(None, &mut StdRng::seed_from_u64(seed))).collect();
        assert!(pauses.len() > 90);
    }

    proptest! {
        #[test]
        fn a_pause_is_bounded_and_never_shorter_than_the_server_asked(
            failures in 0..200_u32, asked in proptest::option::of(0..10_000_u64), seed: u64,
        ) {
            let (mut backoff, mut rng) = (Backoff::default(), StdRng::seed_from_u64(seed));
            for _ in 0..failures {
                backoff.fail(None, &mut rng);
            }
            let asked = asked.map(Duration::from_secs);
            let pause = backoff.fail(asked, &mut rng);
            prop_assert!(pause >= FIRST / 2 && pause <= LONGEST + LONGEST_ASKED);
            prop_assert!(pause >= asked.unwrap_or_default().min(LONGEST_ASKED));
        }
    }
}
