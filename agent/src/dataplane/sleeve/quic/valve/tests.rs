use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Bytes of one round in flight.
const ROUND: u64 = 1_000_000;

/// Plays a round of which `lost` bytes are lost, or which is marked.
fn bound_after(before: u64, lost: u64, marked: bool) -> u64 {
    Round { acked: ROUND - lost, lost, marked, ..Round::new(Instant::now()) }.bound(before)
}

#[test]
fn the_valve_is_open_below_its_bound_and_shut_above() {
    let now = Instant::now();
    let mut valve = Valve::new(now);
    assert!(valve.window() > u64::from(u32::MAX), "open, and not paced");
    valve.on_sent(now, INITIAL, 1);
    assert_eq!(valve.window(), INITIAL, "shut");
    valve.on_congestion_event(now, now, false, 1500);
    assert!(valve.window() > INITIAL, "what is lost is in flight no longer");
    valve.on_end_acks(now, INITIAL, false, None);
    assert_eq!(valve.window(), INITIAL, "quinn's own count is the truth");
}

#[test]
fn random_loss_changes_nothing_and_a_deaf_sender_is_bounded() {
    assert_eq!(bound_after(CEILING, ROUND / 10, false), CEILING);
    assert_eq!(bound_after(CEILING, ROUND / 2, false), CEILING / 2);
    let mut bound = CEILING;
    for _ in 0..20 {
        bound = bound_after(bound, ROUND / 2, false);
    }
    assert_eq!(bound, FLOOR);
    for _ in 0..20 {
        bound = bound_after(bound, 0, false);
    }
    assert_eq!(bound, CEILING, "and comes back");
}

#[test]
fn a_mark_narrows_by_an_eighth() {
    assert_eq!(bound_after(1 << 20, 0, true), (1 << 20) - (1 << 17));
}

#[test]
fn a_round_ends_when_what_was_sent_in_it_is_acknowledged() {
    let began = Instant::now();
    let later = began + Duration::from_millis(1);
    let mut valve = Valve::new(began);
    valve.on_congestion_event(began, began, false, ROUND);
    valve.handle_ack(later, began, 1500);
    assert_eq!(valve.bound, INITIAL, "sent before the round began");
    valve.handle_ack(later, later, 1500);
    assert_eq!(valve.bound, INITIAL / 2);
    assert_eq!((valve.round.acked, valve.round.lost), (1500, 0), "a new round");
}

proptest! {
    #[test]
    fn the_bound_keeps_its_limits(rounds in proptest::collection::vec((0..=ROUND, any::<bool>()), 0..50)) {
        let mut bound = INITIAL;
        for (lost, marked) in rounds {
            bound = bound_after(bound, lost, marked);
            prop_assert!((FLOOR..=CEILING).contains(&bound));
        }
    }
}
