use super::*;

const OUT: Ready = Ready { tun: true, socket: false };
const IN: Ready = Ready { tun: false, socket: true };
const QUICK: Duration = Duration::from_micros(10);

#[test]
fn a_flood_is_recognised_and_ends_with_a_pause() {
    let mut pace = Pace::default();
    let first = (0..100).position(|_| pace.is_flood(QUICK, OUT));
    assert_eq!(first, Some(FLOOD as usize));
    assert!(pace.is_flood(QUICK, OUT));
    assert!(!pace.is_flood(SHORT, OUT));
    assert!(!pace.is_flood(QUICK, OUT));
}

#[test]
fn what_is_answered_is_never_held_up() {
    let mut pace = Pace::default();
    assert!((0..1000).all(|round| !pace.is_flood(QUICK, if round % 8 == 0 { IN } else { OUT })));
}

#[test]
fn both_directions_at_once_are_no_flood() {
    let mut pace = Pace::default();
    assert!((0..1000).all(|_| !pace.is_flood(QUICK, Ready { tun: true, socket: true })));
}

#[test]
fn the_device_is_asked_for_no_more_answers_than_it_was_given_packets_unless_it_has_some() {
    assert_eq!(IN.reads(5, false), 5);
    assert_eq!(IN.reads(0, false), 0);
    assert_eq!(OUT.reads(0, false), READS_A_TURN);
    assert_eq!(Ready::UNKNOWN.reads(5, true), READS_A_TURN);
}

#[test]
fn while_nobody_sleeps_the_device_is_asked_in_each_turn() {
    assert_eq!(IN.reads(0, true), 1);
    assert_eq!(IN.reads(3, true), 3);
}
