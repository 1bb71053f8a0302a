#![expect(clippy::disallowed_methods, reason = "a virtual clock must begin somewhere")]

use weave_ipam::Mode;
use weave_overlay::Encryption;
use weave_proto::peer::Features;
use weave_proto::{PeerKey, PeerUid};
use weave_topology::KnownPeer;

use super::*;
use crate::Config;

#[test]
fn a_list_of_seeds_without_this_peer_or_with_one_that_nobody_knows_is_complained_about() {
    assert_eq!(seeded(&[1], &[]).warnings(), Vec::<String>::new());
    assert_eq!(seeded(&[1, 2], &[2]).warnings(), Vec::<String>::new(), "a peer that is known and away");

    let warnings = seeded(&[1, 2, 3], &[2]).warnings();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains(&name(3).to_string()) && warnings[0].contains("weave rmpeer"),
        "{warnings:?}"
    );

    let warnings = seeded(&[2], &[2]).warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains(&name(1).to_string()) && warnings[0].contains("observer"), "{warnings:?}");
}

fn seeded(seeds: &[u8], known: &[u8]) -> Router {
    let universe: Cidr = "10.32.0.0/16".parse().unwrap();
    let remembered = |&number: &u8| KnownPeer {
        name: name(number),
        key: PeerKey([number; 32]),
        nickname: Nickname::lossy("node"),
        features: Features::FASTDP,
        overlay: None,
        underlay: None,
    };
    let topology = weave_topology::Config {
        name: name(1),
        key: PeerKey([1; 32]),
        name_of: |key| name(key.0[0]),
        uid: PeerUid(1),
        nickname: Nickname::lossy("node"),
        features: Features::FASTDP,
        targets: Vec::new(),
        discovery: true,
        conn_limit: None,
        port: 6783,
        range: Some(universe),
        founders: None,
        known: known.iter().map(remembered).collect(),
    };
    let mode = Mode::Seed(seeds.iter().map(|&number| name(number)).collect());
    let ipam = weave_ipam::Config { me: name(1), universe, mode, alone: true };
    let config = Config {
        topology,
        ipam,
        restored: weave_ipam::Restored::default(),
        ways: Vec::new(),
        encryption: Encryption::default(),
    };
    Router::new(config, 1, Instant::now()).unwrap()
}

fn name(number: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, number])
}
