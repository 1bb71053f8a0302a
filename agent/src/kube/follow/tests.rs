use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::kube::backoff::{FIRST, LONGEST};
use crate::kube::objects::{Metadata, Node};

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

#[test]
fn after_the_list_it_watches_from_there_and_after_each_event_from_later() {
    let (mut course, mut rng) = (Course::default(), rng());
    assert_eq!(course.step(), Step::List);
    assert_eq!(course.on(Outcome::Listed("10".to_owned()), &mut rng), Duration::ZERO);
    assert_eq!(course.step(), Step::Watch("10".to_owned()));
    course.on(Outcome::Told("12".to_owned()), &mut rng);
    assert_eq!(course.on(Outcome::Ended, &mut rng), Duration::ZERO);
    assert_eq!(course.step(), Step::Watch("12".to_owned()));
}

#[test]
fn a_lost_connection_goes_on_where_it_was_after_a_pause() {
    let (mut course, mut rng) = (Course::default(), rng());
    course.on(Outcome::Listed("10".to_owned()), &mut rng);
    let pause = course.on(Outcome::Failed(Kind::Unreachable), &mut rng);
    assert!(pause >= FIRST / 2, "{pause:?}");
    assert_eq!(course.step(), Step::Watch("10".to_owned()));
}

#[test]
fn a_forgotten_version_makes_it_list_again_at_a_time_of_its_own() {
    let (mut course, mut rng) = (Course::default(), rng());
    course.on(Outcome::Listed("10".to_owned()), &mut rng);
    course.on(Outcome::Told("11".to_owned()), &mut rng);
    let pause = course.on(Outcome::Failed(Kind::Gone), &mut rng);
    assert!(pause <= SPREAD);
    assert_eq!(course.step(), Step::List);
}

#[test]
fn a_server_that_forgets_every_version_at_once_is_not_asked_in_a_circle() {
    let (mut course, mut rng) = (Course::default(), rng());
    let mut waited = Duration::ZERO;
    for _ in 0..20 {
        course.on(Outcome::Listed("10".to_owned()), &mut rng);
        waited += course.on(Outcome::Failed(Kind::Gone), &mut rng);
    }
    assert!(waited > LONGEST * 5, "{waited:?}");
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let (mut course, mut rng) = (Course::default(), rng());
    let asked = Duration::from_secs(20);
    assert!(course.on(Outcome::Failed(Kind::Busy(Some(asked))), &mut rng) >= asked);
}

fn node(name: &str, address: &str, version: &str) -> Node {
    let mut node = Node {
        metadata: Metadata {
            name: name.to_owned(),
            resource_version: version.to_owned(),
            ..Metadata::default()
        },
        ..Node::default()
    };
    node.status.addresses.push(crate::kube::objects::NodeAddress {
        kind: "InternalIP".to_owned(),
        address: address.to_owned(),
    });
    node
}

#[test]
fn a_heartbeat_wakes_nobody() {
    let view = watch::Sender::new(View::default());
    let mut reader = view.subscribe();
    take(WatchEvent::Added(node("a", "10.0.0.1", "1")), &view).unwrap();
    assert!(reader.has_changed().unwrap());
    reader.mark_unchanged();
    assert_eq!(take(WatchEvent::Modified(node("a", "10.0.0.1", "2")), &view).unwrap(), "2");
    assert!(!reader.has_changed().unwrap());
    take(WatchEvent::Modified(node("a", "10.0.0.2", "3")), &view).unwrap();
    assert!(reader.has_changed().unwrap());
    take(WatchEvent::Deleted(node("a", "10.0.0.2", "4")), &view).unwrap();
    assert!(reader.borrow().objects.as_ref().unwrap().is_empty());
}

#[test]
fn what_is_known_stays_known_but_is_not_current_while_the_server_is_away() {
    let view = watch::Sender::new(View::default());
    take(WatchEvent::Added(node("a", "10.0.0.1", "1")), &view).unwrap();
    assert!(view.borrow().current().is_some());
    failed(&view, ApiError::new(Kind::Unreachable, "watch".to_owned(), "refused".to_owned()));
    assert!(view.borrow().current().is_none() && view.borrow().objects.is_some());
}

proptest! {
    #[test]
    fn whatever_happens_failures_in_a_row_are_paced(kinds in proptest::collection::vec(0..4_u8, 1..60), seed: u64) {
        let (mut course, mut rng) = (Course::default(), StdRng::seed_from_u64(seed));
        let mut waited = Duration::ZERO;
        for kind in &kinds {
            let kind = [Kind::Unreachable, Kind::Gone, Kind::Busy(None), Kind::Forbidden][usize::from(*kind)];
            if course.step() == Step::List && kind == Kind::Gone {
                course.on(Outcome::Listed("1".to_owned()), &mut rng);
            }
            waited += course.on(Outcome::Failed(kind), &mut rng);
        }
        prop_assert!(waited >= FIRST / 2 * u32::try_from(kinds.len()).unwrap());
    }
}
