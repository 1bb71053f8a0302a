use proptest::prelude::*;
use weave_proto::local::status::ConnectionState;
use weave_proto::peer::{Features, PeerRecord, UniverseId};
use weave_proto::{Nickname, PeerUid};

use super::*;
use crate::book::{FRESH, MAX_FRESH};
use crate::testing::{addr, key, link_up, name, now, record};
use crate::{Direction, connector};

/// What may happen to a machine, in any order, sensible or not.
#[derive(Debug, Clone)]
enum News {
    Up { link: u64, other: u8, inbound: bool, uid: u64 },
    Down { link: u64, code: Option<u32> },
    Records { link: u64, about: u8, uid: u64, version: u64, links: Vec<u8> },
    Digest { link: u64, about: u8, version: u64 },
    Want { link: u64, about: u8 },
    Directed { link: u64, src: u8, dst: u8, hops_left: u8 },
    DialFailed { dial: u64, code: Option<u32> },
    Resolved { works: bool },
    Connect { target: u8, replace: bool },
    Forget { target: u8 },
    Own { free: u64, universe: bool },
    Remove { peer: u8 },
    Later { millis: u64 },
    Timeout,
}

fn news() -> impl Strategy<Value = News> {
    let (link, peer) = (0_u64..8, 1_u8..7);
    prop_oneof![
        6 => (link.clone(), peer.clone(), any::<bool>(), 0_u64..3)
            .prop_map(|(link, other, inbound, uid)| News::Up { link, other, inbound, uid }),
        2 => (link.clone(), prop::option::of(0_u32..12)).prop_map(|(link, code)| News::Down { link, code }),
        6 => (link.clone(), peer.clone(), 0_u64..3, 0_u64..5, prop::collection::vec(1_u8..7, 0..4))
            .prop_map(|(link, about, uid, version, links)| News::Records { link, about, uid, version, links }),
        2 => (link.clone(), peer.clone(), 0_u64..5)
            .prop_map(|(link, about, version)| News::Digest { link, about, version }),
        1 => (link.clone(), peer.clone()).prop_map(|(link, about)| News::Want { link, about }),
        2 => (link, peer.clone(), peer.clone(), 0_u8..4)
            .prop_map(|(link, src, dst, hops_left)| News::Directed { link, src, dst, hops_left }),
        3 => (0_u64..20, prop::option::of(0_u32..12)).prop_map(|(dial, code)| News::DialFailed { dial, code }),
        1 => any::<bool>().prop_map(|works| News::Resolved { works }),
        1 => (peer.clone(), any::<bool>()).prop_map(|(target, replace)| News::Connect { target, replace }),
        1 => peer.clone().prop_map(|target| News::Forget { target }),
        1 => (0_u64..3, any::<bool>()).prop_map(|(free, universe)| News::Own { free, universe }),
        1 => peer.prop_map(|peer| News::Remove { peer }),
        3 => (0_u64..60_000).prop_map(|millis| News::Later { millis }),
        5 => Just(News::Timeout),
    ]
}

proptest! {
    /// Whatever happens, time that is asked for is used: a machine that is woken when it wants to be wants to be woken
    /// later the next time, and never dials one address faster than the back-off allows.
    #[test]
    fn no_state_leads_to_a_busy_loop(news in prop::collection::vec(news(), 1..80), seed in any::<u64>()) {
        let start = now();
        let mut now = start;
        let mut config = config();
        config.conn_limit = std::num::NonZeroUsize::new(2);
        config.targets = vec![target(2), "node".parse().unwrap()];
        let mut machine = Topology::new(config, seed, now);
        for news in news {
            happen(&mut machine, news, &mut now);
            while machine.poll_output().is_some() {}
            let mut wakes = 0;
            while let Some((_, why)) = machine.poll_timeout().filter(|&(at, _)| at <= now) {
                machine.handle_timeout(now);
                wakes += 1;
                prop_assert!(wakes <= 2, "{why} runs in circles");
            }
            while machine.poll_output().is_some() {}
        }
        let mut dials = std::collections::BTreeMap::new();
        let end = now + Duration::from_secs(600);
        let mut wakes = 0;
        while let Some((at, _)) = machine.poll_timeout().filter(|&(at, _)| at < end) {
            now = now.max(at);
            machine.handle_timeout(now);
            wakes += 1;
            while let Some(output) = machine.poll_output() {
                if let Output::Dial { dial, addr } = output {
                    *dials.entry(addr).or_insert(0) += 1;
                    machine.handle_dial_failed(dial, Reason::from("no answer"), now);
                }
            }
        }
        prop_assert!(wakes < 2_000, "{wakes} wakes in ten minutes");
        prop_assert!(dials.values().all(|&count| count <= 40), "{dials:?}");
    }
}

#[test]
fn a_new_machine_says_hello_and_dials_its_targets() {
    let mut machine = Topology::new(Config { targets: vec![target(2)], ..config() }, 1, now());
    assert!(matches!(machine.poll_output(), Some(Output::Hello(hello)) if hello.name == name(1)));
    assert!(matches!(machine.poll_output(), Some(Output::Dial { addr: to, .. }) if to == addr(2)));
    assert_eq!(machine.poll_output(), None);
}

#[test]
fn of_many_targets_a_few_are_dialled_at_once_in_an_order_of_ones_own_and_the_rest_soon_answered_or_not() {
    let dialled = |machine: &mut Topology| -> Vec<(DialId, SocketAddr)> {
        let dial = |output| {
            if let Output::Dial { dial, addr } = output { Some((dial, addr)) } else { None }
        };
        std::iter::from_fn(|| machine.poll_output()).filter_map(dial).collect()
    };
    let targets: Vec<Target> = (2..22).map(target).collect();
    let (start, mut orders) = (now(), BTreeSet::new());
    for seed in 0..8 {
        let mut machine = Topology::new(Config { targets: targets.clone(), ..config() }, seed, start);
        let first = dialled(&mut machine);
        assert_eq!(first.len(), MAX_FRESH);
        orders.insert(first.iter().map(|(_, addr)| *addr).collect::<Vec<_>>());
        // One that has ended, whichever way, makes room for another.
        machine.handle_dial_failed(first[0].0, Reason::from("no"), start);
        assert_eq!(dialled(&mut machine).len(), 1);
        let (mut count, mut at) = (MAX_FRESH + 1, start);
        while count < targets.len() {
            at += FRESH;
            assert!(machine.poll_timeout().is_some_and(|(due, _)| due <= at));
            machine.handle_timeout(at);
            count += dialled(&mut machine).len();
        }
        assert!(at <= start + FRESH * 5, "it took {:?}", at - start);
    }
    assert!(orders.len() > 4, "{orders:?}");
}

#[test]
fn a_peer_that_came_by_itself_while_it_was_dialled_is_shown_once() {
    let start = now();
    let mut machine = Topology::new(Config { targets: vec![target(2)], ..config() }, 1, start);
    drain(&mut machine);
    let states = |machine: &Topology| -> Vec<_> {
        machine.connections(start).into_iter().map(|connection| connection.state).collect()
    };
    assert_eq!(states(&machine), [ConnectionState::Connecting]);
    machine.handle_link_up(link_up(1, Direction::Inbound, 2, (3, 4)), start);
    machine.handle_message(LinkId(1), Message::Topology(vec![record(2, 1, 1, &[])]), start).unwrap();
    drain(&mut machine);
    assert_eq!(states(&machine).len(), 1, "{:?}", machine.connections(start));
    assert_ne!(states(&machine), [ConnectionState::Connecting]);
}

#[test]
fn a_new_link_is_greeted_and_counts_with_the_first_answer() {
    let start = now();
    let mut machine = Topology::new(config(), 1, start);
    drain(&mut machine);
    machine.handle_link_up(link_up(1, Direction::Inbound, 2, (3, 4)), start);
    let outputs = drain(&mut machine);
    assert!(
        outputs.iter().any(|output| matches!(output, Output::Send { message: Message::Topology(_), .. }))
    );
    assert!(outputs.iter().any(|output| matches!(output, Output::Send { message: Message::Digest(_), .. })));
    assert!(!outputs.contains(&Output::LinksChanged) && machine.link_to(name(2)).is_none());
    let greeting = Message::Topology(vec![record(2, 1, 1, &[])]);
    machine.handle_message(LinkId(1), greeting, start).unwrap();
    let outputs = drain(&mut machine);
    assert!(outputs.contains(&Output::LinksChanged) && outputs.contains(&Output::PeersChanged));
    assert_eq!(machine.link_to(name(2)), Some((LinkId(1), addr(2))));
    assert!(machine.is_reachable(name(2)));
    assert_eq!(machine.own_record().links.len(), 1);
}

#[test]
fn a_link_that_the_other_end_refuses_leaves_no_trace_in_the_mesh() {
    let start = now();
    let mut machine = Topology::new(Config { targets: vec![target(2)], ..config() }, 1, start);
    let before = machine.own_record().clone();
    drain(&mut machine);
    machine.handle_link_up(
        LinkUp { dial: Some(DialId(1)), ..link_up(1, Direction::Outbound, 2, (3, 4)) },
        start,
    );
    let reason = Reason { text: "the limit is reached".to_owned(), refused: Some(RefusalCode::Limit) };
    machine.handle_link_down(LinkId(1), reason, start);
    let outputs = drain(&mut machine);
    assert!(!outputs.contains(&Output::LinksChanged), "{outputs:?}");
    assert_eq!(machine.own_record(), &before);
    let connections = machine.connections(start);
    assert!(
        connections[0].info.contains("limit") && connections[0].retry_in_seconds.is_some(),
        "{connections:?}"
    );
}

#[test]
fn targets_are_kept_as_people_change_them() {
    let start = now();
    let mut machine = Topology::new(Config { targets: vec![target(2)], ..config() }, 1, start);
    drain(&mut machine);
    machine.connect(vec![target(3)], false, start);
    assert!(drain(&mut machine).contains(&Output::PersistTargets(vec![target(2), target(3)])));
    machine.connect(vec![target(4)], true, start);
    assert!(drain(&mut machine).contains(&Output::PersistTargets(vec![target(4)])));
    machine.forget(&[target(4)], start);
    assert!(drain(&mut machine).contains(&Output::PersistTargets(Vec::new())));
    assert!(machine.targets().is_empty());
}

#[test]
fn connect_tries_at_once_what_was_resting() {
    let start = now();
    let mut machine = Topology::new(Config { targets: vec![target(2)], ..config() }, 1, start);
    drain(&mut machine);
    machine.handle_dial_failed(DialId(1), Reason::from("no answer"), start);
    assert!(!drain(&mut machine).iter().any(|output| matches!(output, Output::Dial { .. })));
    machine.connect(vec![target(2)], false, start);
    assert!(drain(&mut machine).iter().any(|output| matches!(output, Output::Dial { .. })));
}

#[test]
fn a_discovered_peer_is_dialled_by_the_smaller_name_first() {
    for (me, waits) in [(1, false), (9, true)] {
        let start = now();
        let mut machine = Topology::new(Config { name: name(me), key: key(me), ..config() }, 1, start);
        linked(&mut machine, 2, start);
        drain(&mut machine);
        let third = Message::Topology(vec![record(2, 1, 2, &[me, 5]), record(5, 1, 1, &[2])]);
        machine.handle_message(LinkId(2), third, start).unwrap();
        machine.handle_timeout(start + crate::survey::PAUSE);
        let dials = |machine: &mut Topology| {
            drain(machine)
                .iter()
                .filter(|output| matches!(output, Output::Dial { addr: to, .. } if *to == addr(5)))
                .count()
        };
        assert_eq!(dials(&mut machine), usize::from(!waits));
        if waits {
            machine.handle_timeout(start + crate::survey::PAUSE + connector::YIELD);
            assert_eq!(dials(&mut machine), 1);
        }
    }
}

#[test]
fn a_record_whose_name_does_not_follow_from_its_key_is_refused_and_the_rest_of_the_message_taken() {
    let start = now();
    let mut machine = Topology::new(config(), 1, start);
    linked(&mut machine, 2, start);
    let made_up = PeerRecord { key: key(7), ..record(5, 1, 1, &[2]) };
    let of_us = PeerRecord { key: key(7), ..record(1, 9, 9, &[2]) };
    let message = Message::Topology(vec![made_up, of_us, record(6, 1, 1, &[2])]);
    let refused = machine.handle_message(LinkId(2), message, start).unwrap_err().to_string();
    assert!(refused.contains("does not follow from its key"), "{refused}");
    assert!(machine.peer(name(5)).is_none() && machine.peer(name(6)).is_some());
    assert_eq!(machine.twin(start), None);
}

#[test]
fn a_digest_is_answered_with_what_differs() {
    let start = now();
    let mut machine = Topology::new(config(), 1, start);
    linked(&mut machine, 2, start);
    machine.set_ipam_digest(7);
    drain(&mut machine);
    let theirs = [record(2, 1, 9, &[]), record(6, 1, 1, &[])];
    let digest = gossip::digest(theirs.iter(), 8);
    machine.handle_message(LinkId(2), Message::Digest(digest), start).unwrap();
    let outputs = drain(&mut machine);
    let wanted = Message::Want(vec![name(2), name(6)]);
    assert!(outputs.contains(&Output::Send { link: LinkId(2), message: wanted }), "{outputs:?}");
    assert!(outputs.contains(&Output::IpamDiffers { link: LinkId(2) }));
    let tells_of_us = |output: &Output| matches!(output, Output::Send { message: Message::Topology(records), .. } if records[0].name == name(1));
    assert!(outputs.iter().any(tells_of_us), "it does not know of us");
}

#[test]
fn what_others_shall_know_of_the_first_split_is_in_the_hello() {
    let start = now();
    let mut machine = Topology::new(config(), 1, start);
    drain(&mut machine);
    let facts = OwnFacts { universe: Some(UniverseId(5)), ..OwnFacts::default() };
    machine.set_own(facts.clone(), start);
    let said =
        |output: &Output| matches!(output, Output::Hello(hello) if hello.universe == Some(UniverseId(5)));
    assert!(drain(&mut machine).iter().any(said));
    machine.set_own(facts, start);
    assert!(drain(&mut machine).is_empty(), "nothing new");
}

#[test]
fn a_message_in_transit_loses_a_hop_and_ends_with_the_last() {
    let start = now();
    let mut machine = Topology::new(config(), 1, start);
    for other in [2, 3] {
        linked(&mut machine, other, start);
    }
    drain(&mut machine);
    let mut pass = |src: u8, dst: u8, hops_left: u8| {
        let body = weave_proto::peer::IpamDirected::SpaceDenied { token: 0 };
        let directed = Directed { src: name(src), dst: name(dst), hops_left, body };
        machine.handle_message(LinkId(2), Message::Directed(directed), start).unwrap();
        drain(&mut machine)
    };
    let passed = pass(2, 3, 1);
    assert!(
        matches!(&passed[..], [Output::Send { link: LinkId(3), message: Message::Directed(d) }] if d.hops_left == 0)
    );
    assert!(pass(2, 3, 0).is_empty());
    assert!(pass(1, 3, 5).is_empty(), "our own message has come back in a circle");
    assert!(pass(2, 9, 5).is_empty(), "there is no path");
    assert!(matches!(&pass(3, 1, 0)[..], [Output::Directed(_)]), "it has arrived");
}

#[test]
fn a_removed_peer_is_told_and_forgotten() {
    let start = now();
    let mut machine = Topology::new(config(), 1, start);
    linked(&mut machine, 2, start);
    drain(&mut machine);
    machine.remove_peer(name(2), "it was removed", start);
    let outputs = drain(&mut machine);
    assert!(outputs.iter().any(
        |output| matches!(output, Output::Close { refusal, .. } if refusal.code == RefusalCode::Removed)
    ));
    assert!(machine.peer(name(2)).is_none());
    assert_eq!(machine.known_peers().count(), 0);
}

fn happen(machine: &mut Topology, news: News, now: &mut Instant) {
    let refused = |code: Option<u32>| Reason { text: "so".to_owned(), refused: code.map(RefusalCode::from) };
    match news {
        News::Up { link, other, inbound, uid } => {
            let direction = if inbound { Direction::Inbound } else { Direction::Outbound };
            let mut up = link_up(link, direction, other, (link, link + 1));
            up.hello.uid = PeerUid(uid);
            up.dial = (!inbound).then_some(DialId(link));
            if machine.peer_of(LinkId(link)).is_none() {
                machine.handle_link_up(up, *now);
            }
        }
        News::Down { link, code } => machine.handle_link_down(LinkId(link), refused(code), *now),
        News::Records { link, about, uid, version, links } => {
            let record: PeerRecord = record(about, uid, version, &links);
            let _refused = machine.handle_message(LinkId(link), Message::Topology(vec![record]), *now);
        }
        News::Digest { link, about, version } => {
            let digest = gossip::digest([record(about, 1, version, &[])].iter(), version);
            let _refused = machine.handle_message(LinkId(link), Message::Digest(digest), *now);
        }
        News::Want { link, about } => {
            let _refused = machine.handle_message(LinkId(link), Message::Want(vec![name(about)]), *now);
        }
        News::Directed { link, src, dst, hops_left } => {
            let body = weave_proto::peer::IpamDirected::SpaceDenied { token: 0 };
            let directed = Directed { src: name(src), dst: name(dst), hops_left, body };
            let _refused = machine.handle_message(LinkId(link), Message::Directed(directed), *now);
        }
        News::DialFailed { dial, code } => machine.handle_dial_failed(DialId(dial), refused(code), *now),
        News::Resolved { works } => {
            let found = if works { Ok(vec![addr(6)]) } else { Err("no such host".to_owned()) };
            machine.handle_resolved(&"node".parse().unwrap(), found, *now);
        }
        News::Connect { target: to, replace } => machine.connect(vec![target(to)], replace, *now),
        News::Forget { target: to } => machine.forget(&[target(to)], *now),
        News::Own { free, universe } => {
            let universe = universe.then_some(UniverseId(1));
            machine.set_own(OwnFacts { free, universe, ..OwnFacts::default() }, *now);
        }
        News::Remove { peer } => machine.remove_peer(name(peer), "removed", *now),
        News::Later { millis } => *now += Duration::from_millis(millis),
        News::Timeout => {
            *now = machine.poll_timeout().map_or(*now, |(at, _)| at.max(*now));
            machine.handle_timeout(*now);
        }
    }
}

/// A link with `other`, of that id, confirmed.
fn linked(machine: &mut Topology, other: u8, now: Instant) {
    let id = u64::from(other);
    machine.handle_link_up(link_up(id, Direction::Inbound, other, (1, 2)), now);
    machine.handle_message(LinkId(id), Message::Topology(vec![record(other, 1, 1, &[1])]), now).unwrap();
}

fn drain(machine: &mut Topology) -> Vec<Output> {
    std::iter::from_fn(|| machine.poll_output()).collect()
}

fn target(number: u8) -> Target {
    addr(number).ip().to_string().parse().unwrap()
}

fn config() -> Config {
    Config {
        name: name(1),
        key: key(1),
        name_of: crate::testing::name_of,
        uid: PeerUid(1),
        nickname: Nickname::lossy("host1"),
        features: Features::default(),
        targets: Vec::new(),
        discovery: true,
        conn_limit: None,
        port: 6783,
        range: None,
        founders: None,
        known: Vec::new(),
    }
}
