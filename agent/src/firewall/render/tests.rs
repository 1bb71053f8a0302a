use weave_proto::PeerName;
use weave_proto::local::cni::PodPort;

use super::*;
use crate::firewall::desired;
use crate::net::{HostOptions, NodeState, PeerPath};

fn state() -> NodeState {
    NodeState {
        name: PeerName::from_bits([0x7a, 0, 0, 0, 0, 1]),
        universe: "10.32.0.0/12".parse().unwrap(),
        address: Some(IpAddr::from([10, 33, 0, 1])),
        own: vec!["10.33.0.0/16".parse().unwrap()],
        peers: vec![
            PeerPath {
                peer: PeerName::from_bits([0x7a, 0, 0, 0, 0, 2]),
                underlay: IpAddr::from([192, 168, 0, 2]),
                overlay: IpAddr::from([10, 34, 0, 1]),
                ranges: vec!["10.34.0.0/17".parse().unwrap(), "10.34.128.0/17".parse().unwrap()],
                mtu: None,
            },
            PeerPath {
                peer: PeerName::from_bits([0x7a, 0, 0, 0, 0, 3]),
                underlay: "fd00::3".parse().unwrap(),
                overlay: IpAddr::from([10, 47, 0, 1]),
                ranges: vec!["10.35.0.0/16".parse().unwrap()],
                mtu: None,
            },
        ],
        probed: Vec::new(),
        sealed: Vec::new(),
        has_tun: false,
        pods: vec![PodPort {
            host_interface: "vethweone".to_owned(),
            mac: [0x5e, 0, 0, 0, 0, 9],
            address: IpAddr::from([10, 33, 0, 2]),
            netns: String::new(),
            pod: None,
        }],
        mtu: 1450,
        options: HostOptions::default(),
    }
}

#[test]
fn the_tables_are_as_written_down() {
    let rendered = desired(&state()).render();
    let golden = include_str!("golden.nft");
    for (line, (rendered, golden)) in (1..).zip(rendered.lines().zip(golden.lines())) {
        assert_eq!(rendered, golden, "line {line} of golden.nft");
    }
    assert_eq!(rendered, golden);
}

#[test]
fn the_digest_follows_the_rules_and_not_the_elements() {
    let base = desired(&state()).text;
    let mut fewer = state();
    fewer.peers.clear();
    fewer.pods.clear();
    assert_eq!(desired(&fewer).text, base);
    let changes: [fn(&mut NodeState); 5] = [
        |state| state.address = None,
        |state| state.name = PeerName::from_bits([0x7a, 0, 0, 0, 0, 9]),
        |state| state.universe = "10.32.0.0/11".parse().unwrap(),
        |state| state.options.masquerade = false,
        |state| state.options.keep_client_addresses = false,
    ];
    for change in changes {
        let mut changed = state();
        change(&mut changed);
        assert_ne!(desired(&changed).text, base);
    }
}

#[test]
fn without_an_own_address_nothing_is_translated_to_it() {
    let text = Facts::of(&NodeState { address: None, ..state() }).skeleton();
    assert!(!text.contains("snat") && text.contains("masquerade"), "{text}");
}

#[test]
fn clients_of_local_pods_are_translated_only_where_asked() {
    let mut state = state();
    let local = "oifname \"weave\" ip daddr 10.32.0.0/12 ip saddr != 10.32.0.0/12 snat ip to 10.33.0.1";
    assert!(!Facts::of(&state).skeleton().contains(local));
    state.options.keep_client_addresses = false;
    assert!(Facts::of(&state).skeleton().contains(local));
}
