use std::collections::BTreeSet;

use proptest::prelude::*;
use weave_proto::peer::WireVersion;

use super::*;
use crate::peers::Peers;
use crate::testing::{link_up, name, now, record};
use crate::{Direction, LinkId};

const PEERS: u8 = 16;

proptest! {
    /// All peers shed at the same moment, by what they knew before: the worst case.
    #[test]
    fn shedding_at_once_leaves_one_mesh(
        extra in prop::collection::btree_set((0..PEERS, 0..PEERS), 0..80),
        missing in prop::option::of(0..PEERS),
        salt in any::<u64>(),
    ) {
        let mut edges: BTreeSet<(u8, u8)> = extra.into_iter().filter(|(a, b)| a < b).collect();
        edges.extend((0..PEERS).map(|at| ordered(at, (at + 1) % PEERS)));
        if let Some(missing) = missing {
            // One link of the ring cannot be had; the rest of the ring is a chain then.
            edges.remove(&ordered(missing, (missing + 1) % PEERS));
        }
        let limit = NonZeroUsize::new(2).unwrap();
        let mut left = edges.clone();
        for me in 0..PEERS {
            let (links, survey, later) = seen_from(me, &edges);
            let gone = surplus(name(me), limit, (&links, &survey), |peer| luck(salt, peer), later);
            for peer in gone {
                left.remove(&ordered(me, peer.mac()[5]));
            }
        }
        prop_assert!(is_connected(&left), "{left:?}");
    }
}

#[test]
fn the_ring_closes_and_knows_where_a_newcomer_belongs() {
    let ring = Ring::new([5, 1, 9].into_iter().map(name));
    assert_eq!(ring.neighbours(name(5)), [name(1), name(9)]);
    assert_eq!(ring.neighbours(name(1)), [name(9), name(5)]);
    assert_eq!(ring.neighbours(name(7)), [name(5), name(9)]);
    assert!(ring.are_neighbours(name(7), name(9)) && !ring.are_neighbours(name(7), name(1)));
    assert_eq!(Ring::new([1, 2].into_iter().map(name)).neighbours(name(1)), [name(2)]);
    assert!(Ring::new([1].into_iter().map(name)).neighbours(name(1)).is_empty());
}

#[test]
fn who_is_cut_off_or_next_in_the_ring_is_let_in_and_others_are_not() {
    let edges: BTreeSet<(u8, u8)> = (0..PEERS).map(|at| ordered(at, (at + 1) % PEERS)).collect();
    let (_, survey, _) = seen_from(3, &edges);
    assert!(is_needed(name(3), name(4), &survey));
    assert!(is_needed(name(3), name(99), &survey), "nobody knows the way to it");
    assert!(!is_needed(name(3), name(9), &survey));
}

#[test]
fn a_young_link_and_a_mesh_below_the_limit_are_left_alone() {
    let mut edges: BTreeSet<(u8, u8)> = (0..PEERS).map(|at| ordered(at, (at + 1) % PEERS)).collect();
    edges.insert(ordered(0, 8));
    let (links, survey, later) = seen_from(0, &edges);
    let shed = |limit: usize, now: Instant| {
        surplus(name(0), NonZeroUsize::new(limit).unwrap(), (&links, &survey), |_| 0, now)
    };
    assert_eq!(shed(2, later), [name(8)]);
    assert!(shed(3, later).is_empty());
    assert!(shed(2, later - SETTLING).is_empty());
    assert_eq!(allowance(NonZeroUsize::new(3), 5), 0);
    assert_eq!(allowance(None, 5), usize::MAX);
}

fn ordered(one: u8, other: u8) -> (u8, u8) {
    (one.min(other), one.max(other))
}

/// The links and the survey of one peer, and a time at which its links are old.
fn seen_from(me: u8, edges: &BTreeSet<(u8, u8)>) -> (Links, Survey, Instant) {
    let start = now();
    let neighbours =
        |of: u8| -> Vec<u8> { (0..PEERS).filter(|&other| edges.contains(&ordered(of, other))).collect() };
    let mut links = Links::default();
    for other in neighbours(me) {
        let up = link_up(u64::from(other), Direction::Outbound, other, (0, 0));
        links.add(Link::new(name(me), up, WireVersion(1), start), start);
        links.confirm(LinkId(u64::from(other)), start);
    }
    let mut peers = Peers::default();
    for other in (0..PEERS).filter(|&other| other != me) {
        peers.merge(record(other, 1, 1, &neighbours(other)), start);
    }
    let survey = Survey::draw(name(me), &links, &peers, start);
    (links, survey, start + SETTLING)
}

fn is_connected(edges: &BTreeSet<(u8, u8)>) -> bool {
    let mut joined = BTreeSet::from([0]);
    for _ in 0..PEERS {
        let reached: Vec<u8> = edges
            .iter()
            .filter(|(a, b)| joined.contains(a) || joined.contains(b))
            .flat_map(|&(a, b)| [a, b])
            .collect();
        joined.extend(reached);
    }
    joined.len() == usize::from(PEERS)
}
