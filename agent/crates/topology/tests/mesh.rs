//! Whole meshes of topologies: that they come together, stay together and fall silent.

mod world;

use std::time::Duration;

use weave_proto::local::status::ConnectionState;
use weave_proto::peer::{Message, RefusalCode};
use weave_topology::Notice;
use world::{Options, World, letter, name};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_chain_of_targets_becomes_a_full_mesh() {
    for seed in 0..10 {
        let mut world = World::new(seed);
        world.add_many(8, chain);
        let took = world.run_until(10 * SECOND, is_full_mesh);
        assert!(took < 8 * SECOND, "{took:?}");
        world.run_for(5 * SECOND);
        assert!(is_full_mesh(&world));
        world.assert_ends_agree();
        for at in world.all() {
            assert!(
                world
                    .topology(at)
                    .connections(world.now)
                    .iter()
                    .all(|c| c.state == ConnectionState::Established)
            );
        }
    }
}

#[test]
fn a_star_of_targets_becomes_a_full_mesh() {
    let mut world = World::new(1);
    world.add_many(12, |at| to(if at == 0 { &[] } else { &[0] }));
    world.run_until(15 * SECOND, is_full_mesh);
    world.run_for(5 * SECOND);
    world.assert_ends_agree();
}

#[test]
fn without_discovery_only_targets_are_dialled_and_messages_are_passed_on() {
    let mut world = World::new(2);
    world.add_many(6, |at| Options { no_discovery: true, ..chain(at) });
    world.run_until(10 * SECOND, |world| world.agree(&world.all()));
    world.run_for(60 * SECOND);
    assert_eq!((0..6).map(|at| world.links(at)).collect::<Vec<_>>(), [1, 2, 2, 2, 2, 1]);
    assert_eq!(world.hops(0, 5), Some(5));
    let directed = letter(name(world.nodes[0].key), name(world.nodes[5].key));
    world.with(0, |topology, _| topology.route(directed.clone())).expect("there is a path");
    world.run_for(SECOND);
    assert_eq!(world.nodes[5].arrived.len(), 1);
    assert_eq!(world.nodes[5].arrived[0].hops_left, directed.hops_left - 4);
}

#[test]
fn peers_that_dial_each_other_at_once_keep_one_link_and_the_same() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        world.add_many(5, |at| to(&(0..5).filter(|&other| other != at).collect::<Vec<_>>()));
        world.run_until(10 * SECOND, is_full_mesh);
        world.run_for(5 * SECOND);
        world.assert_ends_agree();
        let dials: usize = world.nodes.iter().map(|node| node.dials.len()).sum();
        world.run_for(600 * SECOND);
        assert_eq!(
            dials,
            world.nodes.iter().map(|node| node.dials.len()).sum(),
            "duplicates are not dialled again"
        );
        world.assert_ends_agree();
    }
}

#[test]
fn a_partition_is_noticed_and_heals() {
    for seed in 0..5 {
        let mut world = World::new(seed);
        world.add_many(8, chain);
        world.run_until(10 * SECOND, is_full_mesh);
        world.partition(|at| at % 2);
        world.run_for(4 * SECOND);
        world.run_until(10 * SECOND, |world| world.agree(&[0, 2, 4, 6]) && world.agree(&[1, 3, 5, 7]));
        assert!(!world.topology(0).is_reachable(name(world.nodes[1].key)));
        world.run_for(600 * SECOND);
        assert_eq!(world.topology(0).peers().count(), 4, "those on the other side have departed");
        world.heal();
        world.run_until(60 * SECOND, is_full_mesh);
        world.run_for(5 * SECOND);
        world.assert_ends_agree();
    }
}

#[test]
fn a_partition_heals_where_the_far_side_has_not_changed() {
    // 0 - 1 - 2 in a chain without discovery: while 0 is cut off from 1, nothing changes for 2.
    let mut world = World::new(3);
    world.add_many(3, |at| Options { no_discovery: true, ..chain(at) });
    world.run_until(10 * SECOND, |world| world.agree(&world.all()));
    let before = world.topology(2).own_record().version;
    world.partition(|at| usize::from(at > 0));
    world.run_for(200 * SECOND);
    assert_eq!(world.topology(0).peers().count(), 1);
    assert_eq!(world.topology(2).own_record().version, before);
    world.heal();
    world.run_until(60 * SECOND, |world| world.agree(&world.all()));
}

#[test]
fn a_dead_peer_departs_for_good_and_its_addresses_stay_known() {
    let mut world = World::new(4);
    world.add_many(6, chain);
    world.run_until(10 * SECOND, is_full_mesh);
    let (dead, addr) = (name(world.nodes[3].key), world.nodes[3].addr);
    world.kill(3);
    world.run_for(10 * SECOND);
    assert!(world.topology(0).peer(dead).is_some_and(|view| !view.reachable));
    world.run_for(80 * SECOND);
    for _ in 0..60 {
        for at in world.all() {
            assert!(world.topology(at).peer(dead).is_none(), "the dead do not walk");
            let known =
                world.topology(at).known_peers().find(|known| known.name == dead).expect("it is remembered");
            assert_eq!(known.underlay, Some(addr));
        }
        world.run_for(5 * SECOND);
    }
    let told = |notice: &&Notice| matches!(notice, Notice::PeerDeparted { peer, .. } if *peer == dead);
    assert_eq!(world.nodes[0].notices.iter().filter(told).count(), 1);
}

#[test]
fn a_peer_that_restarts_replaces_its_old_links_and_record() {
    for seed in 0..10 {
        let mut world = World::new(seed);
        world.add_many(5, chain);
        world.run_until(10 * SECOND, is_full_mesh);
        world.kill(2);
        world.run_for(Duration::from_millis(100 * (seed + 1)));
        world.start(2);
        world.run_until(10 * SECOND, is_full_mesh);
        world.run_for(5 * SECOND);
        world.assert_ends_agree();
        let record = world.topology(0).peer(name(world.nodes[2].key)).expect("it is back").record;
        assert_eq!(record.uid.0, 2);
    }
}

#[test]
fn a_founder_without_targets_finds_its_mesh_again_by_what_it_remembers() {
    let mut world = World::new(6);
    // Node 1 was told of node 0, and lives without discovery: it will not come looking if 0's address changes hands.
    world.add_many(3, |at| to(if at == 0 { &[] } else { &[0] }));
    world.run_until(10 * SECOND, is_full_mesh);
    world.kill(1);
    world.kill(2);
    for at in [1, 2] {
        world.nodes[at].options = to(&[]);
    }
    world.kill(0);
    for at in [0, 1, 2] {
        world.start(at);
    }
    world.run_until(10 * SECOND, is_full_mesh);
}

#[test]
fn thirty_peers_with_three_links_each_stay_in_one_mesh() {
    for seed in 0..3 {
        let mut world = World::new(seed);
        world.add_many(30, |at| Options { conn_limit: Some(3), ..to(if at == 0 { &[] } else { &[0] }) });
        world.run_until(30 * SECOND, |world| world.agree(&world.all()));
        for round in 0..60 {
            world.run_for(5 * SECOND);
            assert!(world.is_connected(), "one mesh, {round} with seed {seed}");
        }
        assert!(world.agree(&world.all()));
        world.assert_ends_agree();
        let links: Vec<usize> = (0..30).map(|at| world.links(at)).collect();
        assert!(links.iter().all(|&links| (2..=5).contains(&links)), "{links:?}");
        assert!(links.iter().sum::<usize>() <= 30 * 4, "{links:?}");
        let dials = |world: &World| world.nodes.iter().map(|node| node.dials.len()).sum::<usize>();
        let before = dials(&world);
        world.run_for(600 * SECOND);
        assert!(dials(&world) - before <= 30 * 20, "{} attempts in ten minutes", dials(&world) - before);
    }
}

#[test]
fn a_limited_mesh_survives_the_loss_of_a_third_of_its_peers() {
    let mut world = World::new(9);
    world.add_many(30, |at| Options { conn_limit: Some(3), ..to(if at == 0 { &[] } else { &[0] }) });
    world.run_for(200 * SECOND);
    for at in (0..30).step_by(3) {
        world.kill(at);
    }
    world.run_until(60 * SECOND, |world| world.agree(&world.all()));
    world.run_for(120 * SECOND);
    assert!(world.agree(&world.all()));
}

#[test]
fn peers_that_cannot_reach_each_other_talk_through_a_third() {
    let mut world = World::new(10);
    world.walls.insert((0, 1));
    world.add_many(3, |at| to(if at == 2 { &[] } else { &[2] }));
    world.run_until(10 * SECOND, |world| world.agree(&world.all()));
    assert_eq!(world.hops(0, 1), Some(2));
    world.run_for(600 * SECOND);
    assert_eq!(world.hops(0, 1), Some(2));
    let attempts = world.nodes[0].dials.len() + world.nodes[1].dials.len();
    assert!(attempts <= 2 * 30 + 20, "the wall is knocked at slowly: {attempts} times in ten minutes");
}

#[test]
fn records_converge_although_messages_are_lost() {
    for seed in 0..5 {
        let mut world = World::new(seed);
        world.loss = 3;
        world.add_many(10, chain);
        world.run_for(60 * SECOND);
        world.kill(4);
        world.run_for(60 * SECOND);
        world.start(4);
        world.run_until(300 * SECOND, |world| world.agree(&world.all()));
    }
}

#[test]
fn a_peer_that_reaches_itself_does_not_try_again() {
    let mut world = World::new(11);
    world.add(to(&[0]));
    world.run_for(600 * SECOND);
    assert_eq!(world.nodes[0].dials.len(), 1);
    let connections = world.topology(0).connections(world.now);
    assert_eq!(connections.len(), 1, "{connections:?}");
    assert_eq!(connections[0].state, ConnectionState::Failed);
    assert!(connections[0].info.contains("reached itself"), "{}", connections[0].info);
}

#[test]
fn what_an_operator_must_change_is_said_on_both_sides_and_tried_slowly() {
    let mut world = World::new(12);
    world.add(Options { range: Some("10.40.0.0/13"), ..to(&[]) });
    world.add(to(&[0]));
    world.run_for(600 * SECOND);
    for at in [0, 1] {
        let connections = world.topology(at).connections(world.now);
        assert_eq!(connections.len(), 1, "{connections:?}");
        let info = &connections[0].info;
        assert!(info.contains("10.40.0.0/13") && info.contains("10.32.0.0/12"), "{info}");
        assert!(info.contains("--ipalloc-range"), "{info}");
    }
    let attempts = world.nodes[1].dials.len();
    assert!((15..=30).contains(&attempts), "{attempts} attempts in ten minutes");
    assert!(world.nodes[1].refusals.iter().all(|refusal| refusal.code == RefusalCode::Range));
}

#[test]
fn an_address_that_does_not_answer_is_tried_less_and_less_often() {
    let mut world = World::new(13);
    world.add(to(&[77]));
    world.run_for(1200 * SECOND);
    let dials = &world.nodes[0].dials;
    assert!((36..=60).contains(&dials.len()), "{} attempts in twenty minutes", dials.len());
    let told =
        world.nodes[0].notices.iter().filter(|notice| matches!(notice, Notice::DialFailed { .. })).count();
    assert_eq!(told, 1, "one reason is told once");
}

#[test]
fn a_clone_is_refused_and_both_holders_know_until_one_of_them_ends() {
    // The clone of an old disk, of the present one, and of one that has started more often since; and either ends.
    for (seed, (uid, original_ends)) in
        (14..).zip([(0, false), (0, true), (1, false), (1, true), (5, false), (5, true)])
    {
        clone_and_original(seed, uid, original_ends);
    }
}

fn clone_and_original(seed: u64, uid: u64, original_ends: bool) {
    let mut world = World::new(seed);
    world.add_many(3, |at| to(if at == 0 { &[] } else { &[0] }));
    world.run_until(10 * SECOND, is_full_mesh);
    // Another machine with node 2's disk.
    let clone = world.add(to(&[0]));
    world.kill(clone);
    world.nodes[clone].key = world.nodes[2].key;
    world.nodes[clone].uid = uid;
    let ended = if original_ends { 2 } else { clone };
    world.start(clone);
    world.run_for(120 * SECOND);
    let both_know = |world: &World| {
        for holder in [2, clone] {
            let twin = world.topology(holder).twin(world.now).unwrap_or_default();
            assert!(
                twin.contains("two running agents hold one identity"),
                "node {holder} does not know: {twin:?}"
            );
            let other = world.nodes[if holder == 2 { clone } else { 2 }].addr.ip().to_string();
            assert!(twin.contains(&other), "node {holder} does not say where the other one is: {twin}");
        }
    };
    both_know(&world);
    let sent: usize = world.nodes.iter().map(|node| node.sent).sum();
    world.run_for(600 * SECOND);
    let sent = world.nodes.iter().map(|node| node.sent).sum::<usize>() - sent;
    assert!(
        sent < 4 * 600,
        "two holders of one identity do not flood the mesh: {sent} messages in ten minutes"
    );
    both_know(&world);
    world.kill(ended);
    world.run_for(180 * SECOND);
    let left = if ended == 2 { clone } else { 2 };
    assert_eq!(world.topology(left).twin(world.now), None, "it recovers once it is alone");
}

#[test]
fn an_idle_mesh_says_little() {
    let mut world = World::new(15);
    world.add_many(10, chain);
    world.run_until(20 * SECOND, is_full_mesh);
    world.run_for(30 * SECOND);
    let sent = |world: &World| world.nodes.iter().map(|node| node.sent).sum::<usize>();
    let before = sent(&world);
    world.run_for(100 * SECOND);
    let rounds = 10 * 10 * 3;
    assert!(sent(&world) - before <= rounds, "{} messages in 100 s", sent(&world) - before);
}

#[test]
fn a_start_of_forty_peers_costs_a_bounded_number_of_messages() {
    let mut world = World::new(16);
    world.add_many(40, |at| to(if at == 0 { &[] } else { &[0] }));
    let took = world.run_until(30 * SECOND, is_full_mesh);
    world.run_for(5 * SECOND);
    let sent: usize = world.nodes.iter().map(|node| node.sent).sum();
    // Each of 780 links takes a few messages; each peer tells each other one of a few versions of its record.
    assert!(sent < 40 * 40 * 40, "{sent} messages in {took:?}");
}

#[test]
fn forgetting_a_target_keeps_the_link_and_ends_the_attempts() {
    let mut world = World::new(17);
    world.add_many(2, |at| Options { no_discovery: true, ..to(if at == 0 { &[] } else { &[0] }) });
    world.run_until(5 * SECOND, is_full_mesh);
    let targets = world.topology(1).targets();
    world.with(1, |topology, now| topology.forget(&targets, now));
    world.run_for(60 * SECOND);
    assert!(is_full_mesh(&world), "a link that is up stays up");
    world.kill(0);
    let dials = world.nodes[1].dials.len();
    world.run_for(60 * SECOND);
    assert_eq!(world.nodes[1].dials.len(), dials, "nobody wants it dialled any more");
    world.start(0);
    world.with(1, |topology, now| topology.connect(targets, true, now));
    world.run_until(SECOND, is_full_mesh);
}

#[test]
fn a_broken_message_is_refused_by_name_and_its_good_part_is_taken() {
    let mut world = World::new(18);
    world.add_many(2, chain);
    world.run_until(5 * SECOND, is_full_mesh);
    let stranger = name(99);
    let (link, _) = world.topology(0).link_to(name(world.nodes[1].key)).expect("there is a link");
    let mut good = world.topology(0).own_record().clone();
    good.name = stranger;
    good.key = weave_proto::PeerKey([99; 32]);
    good.links.clear();
    let mut bad = world.topology(0).own_record().clone();
    bad.name = name(98);
    bad.links = vec![bad.links[0].clone(), bad.links[0].clone()];
    let message = Message::Topology(vec![bad, good]);
    let error =
        world.with(0, |topology, now| topology.handle_message(link, message, now)).expect_err("it is broken");
    assert!(error.to_string().contains(&name(98).to_string()), "{error}");
    assert!(world.topology(0).peer(stranger).is_some());
    assert!(world.topology(0).peer(name(98)).is_none());
}

fn chain(at: usize) -> Options {
    to(&at.checked_sub(1).map_or(vec![], |before| vec![before]))
}

fn to(targets: &[usize]) -> Options {
    Options { targets: targets.to_vec(), ..Options::default() }
}

fn is_full_mesh(world: &World) -> bool {
    let all = world.all();
    all.iter().all(|&at| world.links(at) == all.len() - 1) && world.agree(&all)
}
