use proptest::prelude::*;

use super::*;
use crate::testing::{hello, link_up, name, now};

proptest! {
    /// Peers 1 and 2 make any number of connections at once; each end hears of them and of the other's greetings in an
    /// order of its own.
    #[test]
    fn both_ends_keep_the_same_link(
        dialled_by_first in prop::collection::vec(any::<bool>(), 1..6),
        nonces in prop::collection::vec(any::<u64>(), 12),
        orders in prop::collection::vec(any::<prop::sample::Index>(), 24),
    ) {
        let start = now();
        let count = dialled_by_first.len();
        let kept: Vec<u64> = [1, 2].map(|me| {
            let other = 3 - me;
            let mut links = Links::default();
            let ups = (0..count).map(|at| {
                let direction =
                    if dialled_by_first[at] == (me == 1) { Direction::Outbound } else { Direction::Inbound };
                let (mine, theirs) = if me == 1 { (at, at + 6) } else { (at + 6, at) };
                link_up(at as u64, direction, other, (nonces[mine], nonces[theirs]))
            });
            for up in shuffled(ups.collect(), &orders[usize::from(me - 1) * 6..]) {
                links.add(Link::new(name(me), up, WireVersion(1), start), start);
            }
            for id in shuffled((0..count as u64).collect(), &orders[12 + usize::from(me - 1) * 6..]) {
                links.confirm(LinkId(id), start);
            }
            links.take_lingered(start + LINGER);
            assert_eq!(links.by_peer[&name(other)].len(), 1);
            links.to(name(other)).unwrap().id.0
        }).to_vec();
        prop_assert_eq!(kept[0], kept[1]);
    }
}

#[test]
fn a_link_counts_once_the_other_end_has_answered() {
    let start = now();
    let mut links = Links::default();
    links.add(link(1, Direction::Outbound, 5), start);
    assert!(links.to(name(2)).is_none() && links.records().is_empty() && links.has(name(2)));
    assert_eq!(links.pending().count(), 1);
    assert!(links.confirm(LinkId(1), start));
    assert!(!links.confirm(LinkId(1), start), "only once");
    assert!(links.to(name(2)).is_some());
    assert_eq!(links.pending().count(), 0);
}

#[test]
fn the_loser_lingers_and_takes_over_if_the_winner_dies_meanwhile() {
    let start = now();
    let mut links = Links::default();
    for (id, nonce) in [(1, 5), (2, 9)] {
        links.add(link(id, Direction::Outbound, nonce), start);
        links.confirm(LinkId(id), start);
    }
    assert_eq!(links.to(name(2)).unwrap().id, LinkId(1));
    assert_eq!(links.next_lingered(), Some(start + LINGER));
    assert!(links.take_lingered(start).is_empty());
    links.remove(LinkId(1), start);
    assert_eq!(links.to(name(2)).unwrap().id, LinkId(2));
    assert_eq!(links.next_lingered(), None, "what is in use does not linger");
    assert!(links.take_lingered(start + LINGER).is_empty());
}

#[test]
fn a_better_link_that_is_pending_does_not_displace_one_in_use() {
    let start = now();
    let mut links = Links::default();
    links.add(link(1, Direction::Outbound, 9), start);
    links.confirm(LinkId(1), start);
    links.add(link(2, Direction::Outbound, 5), start);
    assert_eq!(links.to(name(2)).unwrap().id, LinkId(1));
    links.confirm(LinkId(2), start);
    assert_eq!(links.to(name(2)).unwrap().id, LinkId(2));
}

#[test]
fn a_later_start_replaces_and_an_earlier_one_clashes() {
    let start = now();
    let mut links = Links::default();
    assert!(matches!(links.incarnation(&hello(2, 1, 0)), Incarnation::Same));
    links.add(link(1, Direction::Inbound, 5), start);
    assert!(matches!(links.incarnation(&hello(2, 1, 7)), Incarnation::Same));
    assert!(matches!(links.incarnation(&hello(2, 2, 7)), Incarnation::Later));
    assert!(matches!(links.incarnation(&hello(2, 0, 7)), Incarnation::Clash(_)));
    let twin = Hello { instance: 99, ..hello(2, 1, 7) };
    assert!(matches!(links.incarnation(&twin), Incarnation::Clash(_)), "one start cannot be two agents");
    assert_eq!(links.remove_all(name(2)).len(), 1);
    assert!(links.by_id(LinkId(1)).is_none() && links.count() == 0);
}

fn link(id: u64, direction: Direction, nonce: u64) -> Link {
    Link::new(name(1), link_up(id, direction, 2, (nonce, nonce)), WireVersion(1), now())
}

fn shuffled<T>(mut items: Vec<T>, order: &[prop::sample::Index]) -> Vec<T> {
    let mut result = Vec::new();
    for at in order {
        if !items.is_empty() {
            result.push(items.swap_remove(at.index(items.len())));
        }
    }
    result.extend(items);
    result
}
