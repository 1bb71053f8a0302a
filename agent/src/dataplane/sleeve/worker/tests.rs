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
