use std::collections::{BTreeMap, BTreeSet};

use weave_proto::peer::ipam::{Founded, RingEntry};

use super::*;

#[test]
fn a_universe_keeps_its_name_in_every_version_of_the_program() {
    let founding = Founding { founders: BTreeSet::from([name(1), name(2)]), nonce: 7 };

    // Written down once: peers of different versions must agree on it.
    assert_eq!(universe_id(range("10.32.0.0/12"), &founding), UniverseId(0xe74a_81ed_19e0_2d35));
}

#[test]
fn the_range_the_founders_and_the_nonce_each_tell_universes_apart() {
    let founding = Founding { founders: BTreeSet::from([name(1), name(2)]), nonce: 7 };
    let ids = BTreeSet::from([
        universe_id(range("10.32.0.0/12"), &founding),
        universe_id(range("10.32.0.0/13"), &founding),
        universe_id(range("10.32.0.0/12"), &Founding { nonce: 8, ..founding.clone() }),
        universe_id(range("10.32.0.0/12"), &Founding { founders: BTreeSet::from([name(1)]), ..founding }),
    ]);

    assert_eq!(ids.len(), 4);
}

#[test]
fn states_that_differ_in_one_entry_have_different_digests() {
    let entry =
        RingEntry { token: "10.32.0.0".parse().unwrap(), owner: name(1), version: 1, era: Era::default() };
    let later = RingEntry { version: 2, ..entry };
    let heir = RingEntry { era: Era { takeovers: 1, heir: Some(name(2)) }, ..entry };

    let digests = [entry, later, heir].map(|entry| digest(&founded(entry)));

    assert_eq!(BTreeSet::from(digests).len(), 3);
    assert_eq!(digest(&founded(entry)), digests[0]);
}

fn founded(entry: RingEntry) -> IpamState {
    let founding = Founding { founders: BTreeSet::from([name(1)]), nonce: 1 };
    let founded = Founded { founding, ring: vec![entry], removals: BTreeMap::new() };
    IpamState { universe: range("10.32.0.0/12"), phase: IpamPhase::Founded(Box::new(founded)) }
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}

fn range(text: &str) -> Cidr {
    text.parse().unwrap()
}
