//! Whole routers that choose the ways between their pods, over a network of which methods are cut.

#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeSet;
use std::time::Duration;

use weave_overlay::{Method, Way};
use weave_proto::peer::Features;
use weave_sim::World;
use weave_sim::world::{Place, Step};

const FEATURES: Features = Features::FASTDP.with(Features::SLEEVE).with(Features::QUIC).with(Features::RELAY);

/// So many seconds, in which pods talk.
fn wait(world: &mut World, secs: u64) {
    for _ in 0..secs {
        world.step(Step::Talk);
        world.step(Step::Wait(Duration::from_secs(1)));
    }
}

/// Peers of one mesh that hear each other as `groups` say, with all data planes ready.
fn mesh(count: usize, groups: &[&[Place]]) -> World {
    let mut world = World::of(count, u16::try_from(count).unwrap_or(1), 3);
    world.features = FEATURES;
    if !groups.is_empty() {
        world.step(Step::Partition(groups.iter().map(|group| group.iter().copied().collect()).collect()));
    }
    for place in 0..count {
        world.step(Step::Start(place));
    }
    wait(&mut world, 30);
    world.step(Step::Equip);
    wait(&mut world, 20);
    world
}

/// No frame passes a place twice.
fn no_loops(world: &World) {
    for (from, to) in world.places().flat_map(|from| world.places().map(move |to| (from, to))) {
        if let Some(passed) = (from != to).then(|| world.trace(from, to)).flatten() {
            let places: BTreeSet<_> = passed.iter().collect();
            assert_eq!(places.len(), passed.len(), "{passed:?}");
        }
    }
}

#[test]
fn a_method_cut_in_one_direction_is_left_by_both_ends_and_taken_again() {
    let mut world = mesh(3, &[]);
    let (fastdp, sleeve) = (Way::direct(Method::FastDp), Way::direct(Method::Sleeve));
    assert_eq!((world.way(0, 1), world.way(1, 0)), (Some(fastdp), Some(fastdp)));

    world.step(Step::Cut(0, 1, Method::FastDp));
    wait(&mut world, 4);
    assert_eq!((world.way(0, 1), world.way(1, 0)), (Some(sleeve), Some(sleeve)));
    assert_eq!((world.way(0, 2), world.way(2, 1)), (Some(fastdp), Some(fastdp)), "others are not concerned");

    world.step(Step::Mend(0, 1, Method::FastDp));
    wait(&mut world, 8);
    assert_eq!((world.way(0, 1), world.way(1, 0)), (Some(fastdp), Some(fastdp)));
}

#[test]
fn an_agent_that_dies_and_comes_back_changes_no_way() {
    let mut world = mesh(3, &[]);
    let fastdp = Some(Way::direct(Method::FastDp));
    world.step(Step::CrashAfter(2, 0));
    wait(&mut world, 30);
    assert_eq!((world.way(0, 2), world.way(1, 2)), (fastdp, fastdp));

    world.step(Step::Start(2));
    for _ in 0..30 {
        wait(&mut world, 1);
        assert_eq!((world.way(0, 2), world.way(2, 0)), (fastdp, fastdp));
    }
}

#[test]
fn who_cannot_reach_each_other_relay_without_loops_whatever_comes_and_goes() {
    let mut world = mesh(4, &[&[0, 1], &[0, 2], &[0, 3], &[1, 2], &[1, 3]]);
    assert_eq!(world.trace(2, 3).map(|passed| passed.len()), Some(3), "{:?}", world.way(2, 3));
    assert_eq!(world.trace(3, 2).map(|passed| passed.len()), Some(3), "{:?}", world.way(3, 2));
    let used = world.trace(2, 3).map_or(0, |passed| passed[1]);
    // Each relay in turn loses its way to the end, and gets it back.
    for lost in [used, 1 - used, used] {
        for method in Method::ALL {
            world.step(Step::Cut(lost, 3, method));
        }
        for _ in 0..60 {
            world.step(Step::Talk);
            world.step(Step::Wait(Duration::from_millis(200)));
            no_loops(&world);
        }
        assert_eq!(world.trace(2, 3).map(|passed| passed[1]), Some(1 - lost));
        for method in Method::ALL {
            world.step(Step::Mend(lost, 3, method));
        }
        wait(&mut world, 20);
        no_loops(&world);
    }
}

#[test]
fn who_has_no_link_is_known_as_such_and_can_be_told_something_through_the_mesh_as_long_as_there_is_a_path() {
    let mut world = mesh(4, &[]);
    assert!(world.places().all(|at| world.distant(at).is_empty()));
    world.step(Step::Partition([[0, 1], [1, 2], [2, 3]].map(BTreeSet::from).into()));
    wait(&mut world, 10);
    let sorted = |mut places: Vec<Place>| {
        places.sort_unstable();
        places
    };
    for (at, others) in [(0, vec![2, 3]), (1, vec![3]), (2, vec![0]), (3, vec![0, 1])] {
        assert_eq!(sorted(world.distant(at)), others, "at {at}");
    }
    world.say(0, 3, b"from one end to the other");
    world.say(3, 0, b"and back");
    wait(&mut world, 1);
    assert_eq!(world.told(3), [(0, b"from one end to the other".to_vec())]);
    assert_eq!(world.told(0), [(3, b"and back".to_vec())]);
    assert!(world.told(1).is_empty() && world.told(2).is_empty(), "nobody in between takes it");

    // With the path gone, nobody is within reach; it comes back with the path.
    world.step(Step::CrashAfter(2, 0));
    wait(&mut world, 30);
    assert_eq!(sorted(world.distant(0)), [] as [Place; 0]);
    world.say(0, 3, b"lost");
    world.step(Step::Start(2));
    wait(&mut world, 30);
    assert_eq!(sorted(world.distant(0)), [2, 3]);
    assert!(world.told(3).is_empty());
}
