//! How a universe begins.

use std::num::NonZeroU16;
use std::time::Duration;

use proptest::prelude::*;
use weave_ipam::{Answer, Mode};

use crate::invariants::{agreed, always, everybody_is_served, heal, states};
use crate::transition::{Transition, cases, daily_life, glimpses, with_replacements};
use crate::world::{Weather, World};

const RANGE: &str = "10.32.0.0/22";

#[test]
fn founders_that_start_one_after_the_other_agree_as_soon_as_the_last_is_there() {
    let mut world = founders(3, 3, 1);
    world.start(0);
    let early = world.allocate(0);
    world.pass(Duration::from_secs(3));
    world.start(1);
    world.pass(Duration::from_secs(3));
    world.start(2);
    world.pass(Duration::from_secs(3));

    assert!(matches!(world.replies[&early], Ok(Answer::Allocated { .. })), "{:?}", world.replies[&early]);
    agreed(&world);
}

#[test]
fn a_founder_wiped_before_it_voted_is_replaced_by_its_successor() {
    let mut world = founders(3, 3, 2);
    world.start(0);
    world.start(1);
    // The third is seen, and locked upon, but gone before it could lock itself.
    world.crash_after(2, 4);
    world.start(2);
    world.pass(Duration::from_millis(700));
    world.wipe(2);
    world.pass(Duration::from_secs(8));
    let new = world.add(mode(3));
    world.start(new);
    world.pass(Duration::from_secs(15));

    agreed(&world);
    everybody_is_served(&mut world);
}

#[test]
fn more_candidates_than_founders_found_one_universe() {
    for seed in 0..10 {
        let mut world = founders(7, 4, seed);
        (0..7).for_each(|index| {
            world.start(index);
            world.pass(Duration::from_millis(333));
        });
        world.pass(Duration::from_secs(10));
        agreed(&world);
        everybody_is_served(&mut world);
    }
}

#[test]
fn peers_with_different_numbers_of_founders_say_so_and_found_nothing() {
    let mut world = World::new(RANGE, 3);
    world.add(mode(2));
    world.add(mode(3));
    (0..2).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(5));

    assert!(world.up().all(|(_, ipam)| ipam.universe_id().is_none()));
    assert!(states(&world).contains("expects 2 founders"), "{}", states(&world));
    assert!(states(&world).contains("expects 3"), "{}", states(&world));
}

#[test]
fn a_peer_without_a_number_adopts_it_from_one_that_was_told() {
    let mut world = founders(1, 2, 4);
    world.add(Mode::Consensus { founders: None });
    (0..2).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(5));

    agreed(&world);
    everybody_is_served(&mut world);
}

#[test]
fn observers_wait_for_the_ring_and_are_served_then() {
    let mut world = World::new(RANGE, 5);
    world.add(Mode::Observer);
    world.add(Mode::Observer);
    (0..2).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(5));
    assert!(world.up().all(|(_, ipam)| ipam.universe_id().is_none()));
    let founder = world.add(mode(1));
    world.start(founder);
    world.pass(Duration::from_secs(5));

    agreed(&world);
    everybody_is_served(&mut world);
}

#[test]
fn seeds_agree_without_a_word() {
    let mut world = World::new(RANGE, 6);
    (0..3).for_each(|_| {
        world.add(Mode::Observer);
    });
    let seeds = world.machines.iter().map(|machine| machine.name).collect();
    let seeds = Mode::Seed(seeds);
    world.machines.iter_mut().enumerate().for_each(|(index, machine)| {
        machine.side = u8::try_from(index).unwrap();
        machine.set_mode(seeds.clone());
    });
    (0..3).for_each(|index| world.start(index));
    let ids: std::collections::BTreeSet<_> = world.up().map(|(_, ipam)| ipam.universe_id()).collect();
    assert_eq!(ids.len(), 1);
    everybody_is_served(&mut world);
    heal(&mut world);
    agreed(&world);
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn whatever_happens_there_is_one_universe_and_it_begins_when_the_founders_meet(
        seed: u64,
        (count, expected) in prop_oneof![Just((3, 3)), Just((3, 2)), Just((5, 3)), Just((5, 5))],
        life in prop::collection::vec(daily_life(), 1..40),
    ) {
        let mut world = founders(count, expected, seed);
        live(&mut world, life, &mode(expected));
        heal(&mut world);
        agreed(&world);
        everybody_is_served(&mut world);
    }

    #[test]
    fn electorates_that_share_a_member_never_both_decide(
        seed: u64,
        // Any two electorates share a member: more than half of the machines are founders.
        (count, expected) in prop_oneof![Just((3, 2)), Just((4, 3)), Just((5, 3)), Just((7, 4))],
        life in prop::collection::vec(glimpses(), 10..60),
    ) {
        let mut world = founders(count, expected, seed);
        world.weather = Weather::BLIZZARD;
        (0..count).for_each(|index| world.start(index));
        live(&mut world, life, &mode(expected));
        heal(&mut world);
        agreed(&world);
    }

    #[test]
    fn founders_that_are_wiped_do_not_vote_twice(
        seed: u64,
        expected in prop_oneof![Just(2_u16), Just(3), Just(5)],
        life in prop::collection::vec(with_replacements(), 1..40),
    ) {
        // As many machines as founders, and never all of them wiped: so there is at most one universe.
        let mut world = founders(usize::from(expected), expected, seed);
        let mut left = expected;
        let life = life.into_iter().filter(|transition| {
            let replaces = matches!(transition, Transition::Replace(_));
            left = left.saturating_sub(u16::from(replaces));
            !replaces || left > 0
        }).collect();
        live(&mut world, life, &mode(expected));
        heal(&mut world);
    }
}

fn live(world: &mut World, life: Vec<Transition>, mode: &Mode) {
    for transition in life {
        transition.happen(world, mode);
        always(world);
    }
}

/// Machines that are not started yet.
fn founders(count: usize, expected: u16, seed: u64) -> World {
    let mut world = World::new(RANGE, seed);
    (0..count).for_each(|_| {
        world.add(mode(expected));
    });
    world
}

fn mode(expected: u16) -> Mode {
    Mode::Consensus { founders: NonZeroU16::new(expected) }
}
