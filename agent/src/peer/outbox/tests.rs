use weave_proto::peer::ipam::{IpamPhase, Want};
use weave_proto::peer::topology::RecordVersion;
use weave_proto::peer::{
    Features, Hello, IpamDirected, LinkRecord, Refusal, RefusalCode, UniverseId, WireVersion,
};
use weave_proto::{Nickname, PeerUid};

use super::*;

#[test]
fn of_each_peer_the_newest_record_is_kept() {
    let mut outbox = Outbox::default();
    outbox.push(Message::Topology(vec![record(1, 5, 0), record(2, 1, 0)]));
    outbox.push(Message::Topology(vec![record(1, 7, 0), record(2, 0, 0)]));

    assert_eq!(outbox.pop(), Some(Message::Topology(vec![record(1, 7, 0), record(2, 1, 0)])));
    assert_eq!(outbox.pop(), None);
}

#[test]
fn a_later_incarnation_is_newer_than_any_version_of_an_earlier_one() {
    let mut outbox = Outbox::default();
    let reborn = PeerRecord { uid: PeerUid(2), ..record(1, 1, 0) };
    outbox.push(Message::Topology(vec![record(1, 900, 0), reborn.clone(), record(1, 901, 0)]));

    assert_eq!(outbox.pop(), Some(Message::Topology(vec![reborn])));
}

#[test]
fn peers_that_collide_in_their_names_are_both_heard_of() {
    let mut outbox = Outbox::default();
    let twin = PeerRecord { key: PeerKey([9; 32]), ..record(1, 1, 0) };
    outbox.push(Message::Topology(vec![record(1, 5, 0), twin.clone()]));

    let Some(Message::Topology(records)) = outbox.pop() else { panic!("a topology was pushed") };
    assert!(records.contains(&twin) && records.len() == 2);
}

#[test]
fn a_large_topology_is_said_in_several_messages() {
    let mut outbox = Outbox::default();
    let many: Vec<PeerRecord> = (0..1000).map(|number| record(number, 1, 1)).collect();
    outbox.push(Message::Topology(many));
    let wide: Vec<PeerRecord> = (2000..2020).map(|number| record(number, 1, 1000)).collect();
    outbox.push(Message::Topology(wide));

    let mut heard = 0;
    while let Some(Message::Topology(records)) = outbox.pop() {
        let links: usize = records.iter().map(|record| record.links.len()).sum();
        assert!(!records.is_empty() && records.len() <= MAX_RECORDS && links <= LINKS_PER_MESSAGE);
        heard += records.len();
    }
    assert_eq!(heard, 1020);
}

#[test]
fn state_and_digest_are_said_once_and_names_are_gathered() {
    let mut outbox = Outbox::default();
    for number in 1..=3 {
        outbox.push(Message::Ipam(Box::new(state(number))));
        outbox.push(Message::Digest(Digest { records: vec![], ipam: number.into() }));
        outbox.push(Message::Want(vec![name(number.into()), name(1)]));
    }

    assert_eq!(outbox.pop(), Some(Message::Ipam(Box::new(state(3)))));
    assert_eq!(outbox.pop(), Some(Message::Want(vec![name(1), name(2), name(3)])));
    assert_eq!(outbox.pop(), Some(Message::Digest(Digest { records: vec![], ipam: 3 })));
    assert_eq!(outbox.pop(), None);
}

#[test]
fn requests_keep_their_order_go_first_and_are_bounded() {
    let mut outbox = Outbox::default();
    outbox.push(Message::Digest(Digest { records: vec![], ipam: 1 }));
    let count = MAX_DIRECTED as u64 + 10;
    (0..count).for_each(|token| outbox.push(Message::Directed(request(token))));

    for token in 10..count {
        assert_eq!(outbox.pop(), Some(Message::Directed(request(token))));
    }
    assert!(matches!(outbox.pop(), Some(Message::Digest(_))));
    assert_eq!(outbox.dropped(), 10);
}

#[test]
fn hellos_and_refusals_do_not_wait_here() {
    let mut outbox = Outbox::default();
    outbox.push(Message::Refusal(Refusal { code: RefusalCode::Goodbye, text: String::new() }));
    outbox.push(Message::Hello(Hello {
        lowest: WireVersion(1),
        highest: WireVersion(1),
        name: name(1),
        uid: PeerUid(1),
        instance: 1,
        nickname: Nickname::lossy("a-host"),
        nonce: 0,
        range: None,
        universe: None,
        founders: None,
        features: Features::default(),
    }));

    assert_eq!(outbox.pop(), None);
}

fn name(number: u16) -> PeerName {
    let [high, low] = number.to_be_bytes();
    PeerName::from_bits([2, 0, 0, 0, high, low])
}

fn record(number: u16, version: u64, links: u16) -> PeerRecord {
    let link = |other| LinkRecord { peer: name(other), addr: ([10, 0, 0, 1], 6783).into(), outbound: true };
    PeerRecord {
        name: name(number),
        key: PeerKey([1; 32]),
        uid: PeerUid(1),
        version: RecordVersion(version),
        nickname: Nickname::lossy("a-host"),
        overlay: None,
        free: 0,
        features: Features::default(),
        links: (0..links).map(link).collect(),
    }
}

fn state(number: u8) -> IpamState {
    let universe = weave_proto::Cidr::host(std::net::Ipv4Addr::new(10, 32, 0, number).into());
    IpamState { universe, phase: IpamPhase::Electing(BTreeMap::new()) }
}

fn request(token: u64) -> Directed {
    let body = IpamDirected::SpaceRequest { token, universe: UniverseId(1), want: Want::Share };
    Directed { src: name(1), dst: name(2), hops_left: 1, body }
}
