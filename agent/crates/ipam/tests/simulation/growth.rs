//! How space moves to those who need it.

use std::num::NonZeroU16;
use std::time::Duration;

use proptest::prelude::*;
use weave_ipam::{Answer, Mode, RequestError};

use crate::invariants::{agreed, always, everybody_is_served, heal};
use crate::transition::{cases, daily_life};
use crate::world::World;

#[test]
fn after_idle_joins_no_peer_owns_more_than_twice_another() {
    for (range, seed) in [("10.32.0.0/12", 1), ("10.32.0.0/24", 2), ("10.32.0.0/27", 3), ("fd00:10::/64", 4)]
    {
        let mut world = World::new(range, seed);
        for joiners in 0..8 {
            let new = world.add(if joiners == 0 { founder(1) } else { joiner() });
            world.start(new);
            world.pass(Duration::from_secs(40));
            agreed(&world);
            let sizes = sizes(&world);
            assert_eq!(sizes.len(), joiners + 1, "everybody owns something: {sizes:?}");
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            assert!(*most <= 2 * least, "{range} with {joiners} joiners: {sizes:?}");
        }
    }
}

#[test]
fn eight_peers_that_start_at_once_share_evenly() {
    let mut world = World::new("10.32.0.0/12", 1);
    (0..3).for_each(|_| {
        world.add(founder(3));
    });
    (0..5).for_each(|_| {
        world.add(joiner());
    });
    (0..8).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(60));

    agreed(&world);
    let sizes = sizes(&world);
    assert_eq!(sizes.len(), 8);
    assert!(sizes.iter().max().unwrap() <= &(2 * sizes.iter().min().unwrap()), "{sizes:?}");
    let (_, ipam) = world.up().next().unwrap();
    assert!(ipam.status(world.now).entries.len() <= 24, "the ring stays small");
}

#[test]
fn one_peer_can_use_the_whole_range_and_no_address_more() {
    let mut world = World::new("10.32.0.0/26", 7);
    (0..3).for_each(|_| {
        world.add(founder(3));
    });
    (0..3).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(3));

    let requests: Vec<_> = (0..63)
        .map(|_| {
            let request = world.allocate(0);
            world.pass(Duration::from_millis(500));
            request
        })
        .collect();
    world.pass(Duration::from_secs(20));

    let (served, refused): (Vec<_>, Vec<_>) =
        requests.iter().map(|request| &world.replies[request]).partition(|reply| reply.is_ok());
    // The two other peers never had an address, and the first and last of the range are never given out; the
    // peer that owns the range's first address cannot give that away.
    assert_eq!(served.len(), 62, "{refused:?}");
    assert!(refused.iter().all(|reply| matches!(reply, Err(RequestError::NoSpace { .. }))), "{refused:?}");
    agreed(&world);
}

#[test]
fn two_peers_that_both_ran_out_do_not_wait_for_each_other() {
    let mut world = World::new("10.32.0.0/29", 8);
    (0..2).for_each(|_| {
        world.add(founder(2));
    });
    (0..2).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(3));
    let requests: Vec<_> = (0..16).map(|number| world.allocate(number % 2)).collect();
    world.pass(Duration::from_secs(15));

    assert_eq!(requests.iter().filter(|request| world.replies[request].is_ok()).count(), 6);
    agreed(&world);
}

#[test]
fn an_allocation_that_nobody_can_serve_fails_with_the_peers_to_reconnect() {
    let mut world = World::new("10.32.0.0/28", 9);
    (0..2).for_each(|_| {
        world.add(founder(2));
    });
    (0..2).for_each(|index| world.start(index));
    world.pass(Duration::from_secs(3));
    world.machines[1].side = 1;
    let other = world.machines[1].name.to_string();
    let requests: Vec<_> = (0..16).map(|_| world.allocate(0)).collect();
    world.pass(Duration::from_secs(15));

    let error = requests.iter().find_map(|request| world.replies[request].as_ref().err()).unwrap();
    assert!(matches!(error, RequestError::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains(&other), "{error}");
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn whatever_happens_no_address_is_given_out_twice_and_everybody_agrees_in_the_end(
        seed: u64,
        range in prop_oneof![Just("10.32.0.0/26"), Just("10.32.0.0/20"), Just("fd00:10::/120")],
        joiners in 0_usize..6,
        life in prop::collection::vec(daily_life(), 1..60),
    ) {
        let mut world = World::new(range, seed);
        (0..2).for_each(|_| { world.add(founder(2)); });
        (0..joiners).for_each(|_| { world.add(joiner()); });
        (0..world.machines.len()).for_each(|index| world.start(index));
        world.pass(Duration::from_secs(5));
        for transition in life {
            transition.happen(&mut world, &joiner());
            always(&world);
        }
        heal(&mut world);
        agreed(&world);
        for index in 0..world.machines.len() {
            let pods: Vec<_> = world.machines[index].promised.keys().cloned().collect();
            for key in pods {
                world.ask(index, weave_ipam::Request::Free { key, generation: None });
            }
        }
        everybody_is_served(&mut world);
        agreed(&world);
    }

    #[test]
    fn under_pressure_addresses_are_neither_lost_nor_doubled(
        seed: u64,
        life in prop::collection::vec((0_usize..4, any::<bool>(), 1_u64..3000), 1..120),
    ) {
        let mut world = World::new("10.32.0.0/28", seed);
        (0..2).for_each(|_| { world.add(founder(2)); });
        (0..2).for_each(|_| { world.add(joiner()); });
        (0..4).for_each(|index| world.start(index));
        world.pass(Duration::from_secs(5));
        for (index, born, millis) in life {
            if born {
                world.allocate(index);
            } else if let Some(key) = world.machines[index].promised.keys().next().cloned() {
                world.ask(index, weave_ipam::Request::Free { key, generation: None });
            }
            world.pass(Duration::from_millis(millis));
            always(&world);
        }
        world.pass(Duration::from_secs(30));
        let taken: usize = world.machines.iter().map(|machine| machine.promised.len()).sum();
        let free = 14 - taken;
        let requests: Vec<_> = (0..free).map(|number| {
            let request = world.allocate(number % 4);
            world.pass(Duration::from_secs(20));
            request
        }).collect();
        for request in requests {
            prop_assert!(matches!(world.replies[&request], Ok(Answer::Allocated { .. })), "{:?}", world.replies[&request]);
        }
        always(&world);
    }
}

fn sizes(world: &World) -> Vec<u128> {
    let (_, ipam) = world.up().next().unwrap();
    ipam.ranges().values().map(|spans| spans.iter().map(|span| span.len()).sum()).collect()
}

fn founder(count: u16) -> Mode {
    Mode::Consensus { founders: NonZeroU16::new(count) }
}

fn joiner() -> Mode {
    Mode::Observer
}
