use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::testing::{name, now, record};

proptest! {
    #[test]
    fn one_digest_makes_two_peers_equal(
        here in prop::collection::btree_map(1_u8..20, (0_u64..3, 0_u64..3), 0..20),
        there in prop::collection::btree_map(1_u8..20, (0_u64..3, 0_u64..3), 0..20),
    ) {
        let [mut here, mut there] = [here, there].map(|side| -> BTreeMap<PeerName, PeerRecord> {
            side.into_iter().map(|(peer, (uid, version))| (name(peer), record(peer, uid, version, &[]))).collect()
        });
        let digest = digest(here.values(), 0);
        let difference = compare(&digest.records, there.values(), |name| there.get(&name));
        let (wanted, offered) = (difference.wanted.clone(), difference.offered);
        for name in offered {
            here.insert(name, there[&name].clone());
        }
        for name in wanted {
            there.insert(name, here[&name].clone());
        }
        prop_assert_eq!(&here, &there);
        let digest = super::digest(here.values(), 0);
        prop_assert_eq!(
            compare(&digest.records, there.values(), |name| there.get(&name)),
            Difference::default()
        );
    }
}

#[test]
fn a_peer_that_has_departed_here_is_not_asked_for_again() {
    let departed = record(3, 1, 4, &[]);
    let theirs = digest([&departed].into_iter(), 0);
    let none = std::iter::empty();
    assert_eq!(compare(&theirs.records, none, |_| Some(&departed)), Difference::default());
}

#[test]
fn what_is_told_in_one_go_is_one_message_and_a_long_one_is_split() {
    let records: BTreeMap<PeerName, PeerRecord> =
        (0..=u16::try_from(MAX_RECORDS).unwrap()).map(numbered).collect();
    let mut gossip = Gossip::new(&mut StdRng::seed_from_u64(1), now());
    for &name in records.keys().chain(records.keys()) {
        gossip.tell(LinkId(1), name);
    }
    gossip.tell(LinkId(2), name(200));
    gossip.tell(LinkId(3), *records.keys().next().unwrap());
    gossip.drop_link(LinkId(3));
    gossip.compare_with(LinkId(4));
    let outputs = gossip.flush(|name| records.get(&name), || digest(records.values(), 9));
    let mut lengths = Vec::new();
    for output in outputs {
        let Output::Send { link, message } = output else { panic!("{output:?}") };
        if let Message::Topology(records) = message {
            assert_eq!(link, LinkId(1));
            lengths.push(records.len());
        } else {
            assert_eq!((link, message), (LinkId(4), Message::Digest(digest(records.values(), 9))));
        }
    }
    assert_eq!(lengths, [MAX_RECORDS, 1]);
    assert!(gossip.flush(|name| records.get(&name), || digest(records.values(), 9)).is_empty());
}

#[test]
fn rounds_are_apart_and_reach_pending_links_always() {
    let mut rng = StdRng::seed_from_u64(1);
    let start = now();
    let mut gossip = Gossip::new(&mut rng, start);
    let links: Vec<LinkId> = (0..100).map(LinkId).collect();
    gossip.on_timeout((&links, &[LinkId(500)]), &mut rng, start);
    assert!(gossip.digests.is_empty(), "not due yet");
    let due = gossip.next_round();
    gossip.on_timeout((&links, &[LinkId(500)]), &mut rng, due);
    assert_eq!(gossip.digests.len(), fan_out(100) + 1);
    assert!(gossip.digests.contains(&LinkId(500)));
    assert!(gossip.next_round() > due);
    assert_eq!([fan_out(0), fan_out(1), fan_out(4), fan_out(200)], [0, 1, 2, 4]);
}

fn numbered(number: u16) -> (PeerName, PeerRecord) {
    let [high, low] = number.to_be_bytes();
    let name = PeerName::from_bits([2, 1, 0, 0, high, low]);
    (name, PeerRecord { name, ..record(1, 1, 1, &[]) })
}
