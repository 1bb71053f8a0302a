//! How the ranges of peers that are gone come to others.

use std::num::NonZeroU16;
use std::time::Duration;

use proptest::prelude::*;
use weave_ipam::{Answer, Mode, Request, RequestError};

use crate::invariants::{
    agreed, always, everybody_is_served, heal, nobody_reachable_shares, nothing_is_lost, rest,
};
use crate::transition::{Transition, cases, with_rash_removals, with_removals};
use crate::world::World;

#[test]
fn a_peer_that_is_gone_is_inherited_from() {
    let mut world = mesh(3, 1);
    world.wipe(2);
    world.pass(Duration::from_secs(1));
    let gone = world.machines[2].name;

    let request = world.ask(0, Request::RemovePeer { peer: gone, force: false });
    world.pass(Duration::from_secs(4));

    let Ok(Answer::Removed { heir, addresses }) = &world.replies[&request] else {
        panic!("{:?}", world.replies[&request]);
    };
    assert_eq!(*heir, world.machines[0].name);
    assert!(*addresses >= 300, "{addresses}");
    nothing_is_lost(&mut world);
}

#[test]
fn a_living_peer_is_not_removed_by_accident() {
    let mut world = mesh(3, 2);
    let alive = world.machines[2].name;

    let request = world.ask(0, Request::RemovePeer { peer: alive, force: false });

    assert_eq!(world.replies[&request], Err(RequestError::StillAlive(alive)));
}

#[test]
fn a_peer_that_is_removed_while_it_waits_for_a_donor_waits_no_more() {
    use Transition::{Pass, RemoveUnseen, Split};
    // Found by the property below: the peer went on waiting, and was woken without end.
    let mut world = mesh(3, 340_602_884_186_711_451);
    let life = [
        Split(53),
        Pass(500),
        RemoveUnseen(17_581_905_846_266_799_652),
        Pass(2023),
        Split(163),
        Pass(676),
        RemoveUnseen(9_703_991_720_087_784_500),
        Pass(2047),
    ];
    life.into_iter().for_each(|transition| transition.happen(&mut world, &Mode::Observer));
    rest(&mut world);
    agreed(&world);
}

#[test]
fn two_operators_who_remove_one_peer_at_once_get_one_heir() {
    for seed in 0..20 {
        let mut world = mesh(4, seed);
        world.wipe(3);
        world.pass(Duration::from_secs(1));
        let gone = world.machines[3].name;

        let requests =
            [0, 1, 2].map(|index| world.ask(index, Request::RemovePeer { peer: gone, force: false }));
        world.pass(Duration::from_secs(9));

        let heirs: Vec<_> = requests
            .iter()
            .map(|request| match &world.replies[request] {
                Ok(Answer::Removed { heir, .. }) => *heir,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(heirs.iter().all(|heir| *heir == heirs[0]), "{heirs:?}");
        always(&world);
        nothing_is_lost(&mut world);
    }
}

#[test]
fn a_minority_cannot_take_what_belongs_to_the_majority() {
    let mut world = mesh(5, 3);
    (0..2).for_each(|index| world.machines[index].side = 1);
    world.pass(Duration::from_secs(1));
    let other = world.machines[4].name;

    let request = world.ask(0, Request::RemovePeer { peer: other, force: false });
    world.pass(Duration::from_secs(11));

    let Err(error) = &world.replies[&request] else { panic!("{:?}", world.replies[&request]) };
    assert!(error.to_string().contains(&world.machines[3].name.to_string()), "{error}");
    heal(&mut world);
    assert!(world.up().all(|(_, ipam)| ipam.removed_peers().is_empty()), "it was seen again in time");
    everybody_is_served(&mut world);
}

#[test]
fn when_most_peers_are_gone_the_rest_can_remove_them_all() {
    let mut world = mesh(7, 4);
    (2..7).for_each(|index| world.wipe(index));
    world.pass(Duration::from_secs(1));

    nothing_is_lost(&mut world);
    everybody_is_served(&mut world);
}

#[test]
fn a_removed_peer_that_returns_gives_up_its_addresses_and_reports_them() {
    let mut world = mesh(3, 5);
    let pod = world.allocate(2);
    world.pass(Duration::from_secs(1));
    let Ok(Answer::Allocated { allocation, .. }) = world.replies[&pod].clone() else { panic!("no address") };
    world.crash(2);
    world.pass(Duration::from_secs(1));
    let peer = world.machines[2].name;
    world.ask(0, Request::RemovePeer { peer, force: false });
    world.pass(Duration::from_secs(5));

    world.start(2);
    world.pass(Duration::from_secs(5));

    assert_eq!(world.machines[2].lost, [allocation]);
    let request = world.allocate(2);
    assert!(
        matches!(world.replies[&request], Err(RequestError::Removed { .. })),
        "{:?}",
        world.replies[&request]
    );
    let returned = world.machines[2].ipam.as_ref().unwrap();
    assert_eq!(returned.removed(), Some(world.machines[0].name));
    nobody_reachable_shares(&world);
    agreed(&world);
}

#[test]
fn what_a_removed_peer_gave_away_unseen_goes_to_its_heir() {
    let mut world = mesh(5, 6);
    // Behind a wall, one peer takes all it can get of another; then that one is removed on this side.
    world.machines[3].side = 1;
    world.machines[4].side = 1;
    world.pass(Duration::from_secs(1));
    (0..450).for_each(|_| {
        world.allocate(4);
        world.pass(Duration::from_millis(100));
    });
    assert!(world.machines[4].held().len() > 250, "it was given some");
    let peer = world.machines[3].name;
    let request = world.ask(0, Request::RemovePeer { peer, force: false });
    world.pass(Duration::from_secs(9));
    assert!(matches!(world.replies[&request], Ok(Answer::Removed { .. })), "{:?}", world.replies[&request]);
    (0..400).for_each(|_| {
        world.allocate(0);
        world.pass(Duration::from_millis(100));
    });

    world.machines.iter_mut().for_each(|machine| machine.side = 0);
    world.pass(Duration::from_secs(10));

    agreed(&world);
    assert!(!world.machines[4].lost.is_empty(), "who had it has lost it");
}

#[test]
fn an_heir_that_is_removed_passes_on_what_it_inherited() {
    let mut world = mesh(4, 7);
    world.wipe(3);
    world.pass(Duration::from_secs(1));
    let first = world.machines[3].name;
    world.ask(2, Request::RemovePeer { peer: first, force: false });
    world.pass(Duration::from_secs(4));
    world.wipe(2);
    world.pass(Duration::from_secs(1));

    nothing_is_lost(&mut world);
    everybody_is_served(&mut world);
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn whatever_happens_the_dead_are_inherited_from_once_and_nothing_is_lost(
        seed: u64,
        count in 2_u16..6,
        life in prop::collection::vec(with_removals(), 1..60),
    ) {
        let mut world = mesh(count, seed);
        for transition in life {
            if world.machines.iter().filter(|machine| !machine.gone).count() <= 1
                && matches!(transition, Transition::Replace(_))
            {
                continue;
            }
            transition.happen(&mut world, &Mode::Observer);
            always(&world);
        }
        heal(&mut world);
        if world.up().any(|(_, ipam)| ipam.universe_id().is_some()) {
            nothing_is_lost(&mut world);
            everybody_is_served(&mut world);
            nothing_is_lost(&mut world);
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn peers_that_are_removed_alive_give_up_what_they_have_as_soon_as_they_hear_of_it(
        seed: u64,
        count in 3_u16..6,
        life in prop::collection::vec(with_rash_removals(), 1..60),
    ) {
        let mut world = mesh(count, seed);
        for transition in life {
            transition.happen(&mut world, &Mode::Observer);
        }
        rest(&mut world);
        agreed(&world);
        let first = world.machines[0].ipam.as_ref().unwrap();
        prop_assert_eq!(first.removed(), None, "nobody asked for that");
        let removed = first.removed_peers();
        for (machine, ipam) in world.up() {
            prop_assert_eq!(ipam.removed().is_some(), removed.contains(&machine.name));
            prop_assert!(ipam.removed().is_none() || machine.held().is_empty());
        }
        let request = world.allocate(0);
        world.pass(Duration::from_secs(15));
        prop_assert!(world.replies[&request].is_ok(), "{:?}", world.replies[&request]);
        nobody_reachable_shares(&world);
    }
}

/// A mesh that has been founded.
fn mesh(count: u16, seed: u64) -> World {
    let mut world = World::new("10.32.0.0/22", seed);
    (0..count).for_each(|_| {
        world.add(Mode::Consensus { founders: NonZeroU16::new(count) });
    });
    (0..usize::from(count)).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(5));
    agreed(&world);
    world
}
