use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::testing::{addr, name, now};

#[test]
fn a_failure_backs_off_as_its_reason_deserves() {
    let start = now();
    for (refused, least, most) in [
        (None, 300, 700),
        (Some(RefusalCode::Goodbye), 300, 700),
        (Some(RefusalCode::Range), 22_000, 38_000),
        (Some(RefusalCode::Version), 22_000, 38_000),
        (Some(RefusalCode::Universe), 22_000, 38_000),
        (Some(RefusalCode::Electorate), 22_000, 38_000),
        (Some(RefusalCode::NameCollision), 22_000, 38_000),
        (Some(RefusalCode::Removed), 22_000, 38_000),
        (Some(RefusalCode::Limit), 300_000, 300_000),
    ] {
        let mut book = book(Urgency::May);
        book.on_failure(addr(1), because(refused), &mut rng(), start);
        let pause = book.place(addr(1)).unwrap().due().unwrap() - start;
        let range = Duration::from_millis(least)..=Duration::from_millis(most);
        assert!(range.contains(&pause), "{refused:?}: {pause:?}");
    }
}

#[test]
fn a_full_peer_that_must_be_reached_is_tried_sooner() {
    let mut book = book(Urgency::Must);
    let start = now();
    book.on_failure(addr(1), because(Some(RefusalCode::Limit)), &mut rng(), start);
    let place = book.place(addr(1)).unwrap();
    assert!(place.found_full());
    assert!(place.due().unwrap() < start + LIMIT_PAUSE / 2);
}

#[test]
fn our_own_address_is_not_tried_again_unless_asked_for() {
    let mut book = book(Urgency::Must);
    let start = now();
    book.on_failure(addr(1), because(Some(RefusalCode::Myself)), &mut rng(), start);
    assert_eq!(book.place(addr(1)).unwrap().due(), None);
    book.renew(addr(1), start);
    assert_eq!(book.place(addr(1)).unwrap().due(), Some(start));
}

#[test]
fn an_attempt_that_nobody_answers_is_overdue_and_a_late_answer_is_harmless() {
    let mut book = book(Urgency::Must);
    let start = now();
    let dial = book.dial(addr(1), start).unwrap();
    assert_eq!(book.place(addr(1)).unwrap().due(), None, "one attempt at a time");
    assert!(book.overdue(start).is_empty());
    assert_eq!(book.overdue(start + DIAL_PATIENCE), [dial]);
    assert_eq!(book.take_dial(dial), Some(addr(1)));
    assert!(book.on_failure(addr(1), because(None), &mut rng(), start + DIAL_PATIENCE));
    assert_eq!(book.take_dial(dial), None);
    assert!(!book.on_failure(addr(1), because(None), &mut rng(), start + DIAL_PATIENCE), "no news");
    assert_eq!(book.next_overdue(), None);
}

#[test]
fn an_address_that_matters_no_more_is_dropped_once_its_attempt_is_over() {
    let mut book = book(Urgency::Must);
    let start = now();
    let dial = book.dial(addr(1), start).unwrap();
    book.set_interests(&BTreeMap::new(), start);
    assert_eq!(book.places().count(), 1);
    book.take_dial(dial);
    book.on_failure(addr(1), because(None), &mut rng(), start);
    book.set_interests(&BTreeMap::new(), start);
    assert_eq!(book.places().count(), 0);
}

#[test]
fn a_peer_that_answered_is_remembered_with_the_address() {
    let mut book = book(Urgency::Must);
    book.on_link(addr(1), name(7), now());
    assert_eq!(book.place(addr(1)).unwrap().peer, Some(name(7)));
}

fn book(urgency: Urgency) -> Book {
    let mut book = Book::default();
    let interest = Interest { urgency, target: true, peer: None, delay: Duration::ZERO };
    book.set_interests(&BTreeMap::from([(addr(1), interest)]), now());
    book
}

fn because(refused: Option<RefusalCode>) -> Reason {
    Reason { text: "because".to_owned(), refused }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}
