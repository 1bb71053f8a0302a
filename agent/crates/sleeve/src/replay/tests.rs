use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The obvious window: remembers everything.
#[derive(Default)]
struct Reference {
    seen: BTreeSet<u64>,
}

impl Reference {
    fn take(&mut self, counter: u64) -> Result<(), Replayed> {
        let too_old = self.seen.last().is_some_and(|&newest| newest.saturating_sub(counter) >= REPLAY_WINDOW);
        if too_old || !self.seen.insert(counter) { Err(Replayed) } else { Ok(()) }
    }
}

proptest! {
    #[test]
    fn it_answers_as_the_obvious_window_does(steps in proptest::collection::vec((-40_000_i64..40_000, 1_usize..80), 1..200)) {
        let (mut window, mut reference) = (ReplayWindow::default(), Reference::default());
        let mut at = 20_000_i64;
        for (step, run) in steps {
            at = (at + step).max(0);
            for counter in (at as u64)..(at as u64 + run as u64) {
                let fresh = window.is_fresh(counter);
                let taken = window.take(counter);
                prop_assert_eq!(fresh, taken.is_ok());
                prop_assert_eq!(taken, reference.take(counter), "counter {}", counter);
            }
        }
    }
}

#[test]
fn the_window_is_at_least_8192_wide() {
    const { assert!(REPLAY_WINDOW >= 8192) };
    let mut window = ReplayWindow::default();
    window.take(REPLAY_WINDOW).unwrap();
    assert!(window.is_fresh(1));
    assert!(!window.is_fresh(0), "one further back is too old");
}

#[test]
fn a_jump_over_the_whole_ring_forgets_all_of_it() {
    let mut window = ReplayWindow::default();
    (0..20_000).for_each(|counter| window.take(counter).unwrap());
    window.take(1 << 40).unwrap();
    let oldest = (1 << 40) - REPLAY_WINDOW + 1;
    (oldest..1 << 40).for_each(|counter| window.take(counter).unwrap());
    assert_eq!(window.take(oldest), Err(Replayed));
}
