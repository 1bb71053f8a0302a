use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::testing::{addr, key, name, now, record};

proptest! {
    #[test]
    fn merging_in_any_order_and_any_number_of_times_ends_the_same(
        heard in prop::collection::vec((1_u8..5, 0_u64..3, 0_u64..4), 1..30),
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
    ) {
        let now = now();
        let records: Vec<PeerRecord> =
            heard.iter().map(|&(peer, uid, version)| record(peer, uid, version, &[])).collect();
        let mut straight = Peers::default();
        for record in &records {
            straight.merge(record.clone(), now);
        }
        let mut shuffled = Peers::default();
        for at in order {
            shuffled.merge(at.get(&records).clone(), now);
        }
        for record in records.iter().rev() {
            shuffled.merge(record.clone(), now);
        }
        prop_assert_eq!(straight.all().collect::<Vec<_>>(), shuffled.all().collect::<Vec<_>>());
        for record in straight.all() {
            let largest = records.iter().filter(|other| other.name == record.name);
            let largest = largest.map(|other| (other.uid, other.version)).max();
            prop_assert_eq!(Some((record.uid, record.version)), largest);
        }
    }
}

#[test]
fn a_later_incarnation_wins_over_any_version_of_an_earlier_one() {
    let old = record(1, 1, 900, &[]);
    assert_eq!(judge(Some(&old), &record(1, 2, 1, &[])), Verdict::News);
    assert_eq!(judge(Some(&record(1, 2, 1, &[])), &old), Verdict::Old);
    assert_eq!(judge(Some(&old), &old), Verdict::Same);
    assert_eq!(judge(None, &old), Verdict::News);
}

#[test]
fn a_name_stays_with_the_key_that_was_known_first() {
    let mut peers = Peers::default();
    peers.merge(record(1, 1, 1, &[]), now());
    let thief = PeerRecord { key: key(9), ..record(1, 5, 5, &[]) };
    assert_eq!(peers.merge(thief, now()), Verdict::Collision(key(1)));
    assert_eq!(peers.key(name(1)), Some(key(1)));
}

#[test]
fn a_record_must_be_sound_in_itself() {
    assert_eq!(flaw(&record(1, 1, 1, &[2, 3])), None);
    assert!(flaw(&record(1, 1, 1, &[1, 2])).is_some(), "a link with itself");
    assert!(flaw(&record(1, 1, 1, &[2, 2])).is_some(), "a peer twice");
    let mut unordered = record(1, 1, 1, &[2, 3]);
    unordered.links.reverse();
    assert!(flaw(&unordered).is_some());
    let mut long = record(1, 1, 1, &[]);
    let link = record(1, 1, 1, &[2]).links[0].clone();
    long.links = (0..=u32::try_from(MAX_LINKS).unwrap())
        .map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            weave_proto::peer::LinkRecord { peer: PeerName::from_bits([2, 0, 1, a, b, c]), ..link.clone() }
        })
        .collect();
    assert_eq!(flaw(&long), Some("lists too many links"));
}

#[test]
fn a_peer_without_a_path_departs_after_the_grace_and_is_dropped_after_the_memory() {
    let start = now();
    let mut peers = Peers::default();
    peers.merge(record(1, 1, 1, &[]), start);
    peers.set_reachable(|_| true, start);
    assert_eq!(peers.next_change(), None);
    peers.set_reachable(|_| false, start);
    assert!(peers.age(start + GRACE / 2).is_empty());
    assert_eq!(peers.present().count(), 1);
    assert_eq!(peers.age(start + GRACE).len(), 1);
    assert_eq!(peers.present().count(), 0);
    assert_eq!(peers.all().count(), 1, "its record stays known");
    peers.age(start + GRACE + MEMORY);
    assert_eq!(peers.all().count(), 0);
    assert_eq!(peers.known().count(), 1, "its addresses stay for the data plane");
    assert_eq!(peers.next_change(), None);
}

#[test]
fn a_path_brings_a_departed_peer_back_with_the_record_it_had() {
    let start = now();
    let mut peers = Peers::default();
    peers.merge(record(1, 1, 7, &[]), start);
    peers.age(start + GRACE);
    assert!(!peers.is_reachable(name(1)));
    assert!(peers.set_reachable(|_| true, start + GRACE));
    assert_eq!(peers.present().count(), 1);
    assert!(peers.is_reachable(name(1)));
}

#[test]
fn what_is_known_is_saved_once_and_keeps_an_address_that_a_restart_leaves_out() {
    let mut peers = Peers::default();
    let overlay = Some(IpAddr::V4(Ipv4Addr::new(10, 32, 0, 1)));
    peers.merge(PeerRecord { overlay, ..record(1, 1, 1, &[]) }, now());
    peers.locate(name(1), addr(1));
    let saved = peers.take_unsaved();
    assert_eq!(saved.len(), 1);
    assert_eq!((saved[0].overlay, saved[0].underlay), (overlay, Some(addr(1))));
    peers.merge(record(1, 2, 1, &[]), now());
    assert!(!peers.has_unsaved(), "a restart that does not know its address yet changes nothing");
    peers.locate(name(1), addr(1));
    assert!(!peers.has_unsaved());
    peers.relocate(name(1), &[addr(2), addr(1)]);
    assert!(!peers.has_unsaved(), "somebody still sees it where it was");
    peers.relocate(name(1), &[addr(2)]);
    assert_eq!(peers.take_unsaved()[0].underlay, Some(addr(2)));
}

#[test]
fn the_way_to_a_peer_s_pods_is_urgent_and_nothing_else_is() {
    let mut peers = Peers::default();
    let overlay = Some(IpAddr::V4(Ipv4Addr::new(10, 32, 0, 1)));
    peers.merge(record(1, 1, 1, &[]), now());
    peers.locate(name(1), addr(1));
    assert!(
        peers.has_unsaved() && !peers.has_unsaved_path(),
        "without an overlay address there is no way yet"
    );
    peers.take_unsaved();
    peers.merge(PeerRecord { overlay, ..record(1, 1, 2, &[]) }, now());
    assert!(peers.has_unsaved_path());
    peers.take_unsaved();
    assert!(!peers.has_unsaved_path());
    peers.locate(name(1), addr(2));
    assert!(peers.has_unsaved_path(), "it is somewhere else");
}

#[test]
fn a_peer_from_the_store_is_looked_for_a_while() {
    let start = now();
    let mut before = Peers::default();
    before.merge(record(1, 1, 1, &[]), start);
    before.locate(name(1), addr(1));
    let mut peers = Peers::new(before.take_unsaved(), start);
    assert_eq!(peers.lost().collect::<Vec<_>>(), [(name(1), addr(1))]);
    assert_eq!(peers.next_change(), Some(start + MEMORY));
    peers.age(start + MEMORY);
    assert_eq!(peers.lost().count(), 0);
    assert_eq!(peers.next_change(), None);
    assert_eq!(peers.known().count(), 1);
}
