//! What happens to meshes, from the first start to the last crash.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weave_ipam::{Answer, Mode};
use weave_sim::world::Place;
use weave_sim::{Step, World, invariants};

const SETTLE: Duration = Duration::from_secs(20);

fn started(count: usize, founders: u16, seed: u64) -> World {
    let mut world = World::of(count, founders, seed);
    for place in 0..count {
        world.step(Step::Start(place));
    }
    world.step(Step::Wait(SETTLE));
    world
}

/// The addresses that were given out, with their places.
fn given(world: &World) -> Vec<(Place, String)> {
    let allocated = world.answers.iter().filter_map(|(at, _, result)| match result {
        Ok(Answer::Allocated { allocation, .. }) => Some((*at, allocation.address.to_string())),
        Ok(_) | Err(_) => None,
    });
    allocated.collect()
}

fn owns(world: &World, place: Place) -> u128 {
    let router = world.router(place).expect("it runs");
    let ranges = router.ipam().ranges();
    let me = router.topology().peers_status()[0].name;
    ranges.get(&me).into_iter().flatten().map(|span| span.len()).sum()
}

#[test]
fn three_founders_share_the_range_equally_and_give_out_addresses() {
    let mut world = started(3, 3, 1);
    invariants::rings_agree(&world);
    for place in 0..3 {
        let share = owns(&world, place);
        assert!((320..=352).contains(&share), "node{place} owns {share} of 1024");
        world.step(Step::Allocate(place, format!("c{place}")));
    }
    world.step(Step::Wait(Duration::from_secs(1)));
    assert_eq!(given(&world).len(), 3);
}

#[test]
fn nothing_is_given_out_before_all_founders_have_been_seen() {
    let mut world = World::of(3, 3, 2);
    world.step(Step::Start(0));
    world.step(Step::Start(1));
    world.step(Step::Allocate(0, "early".to_owned()));
    world.step(Step::Wait(SETTLE));
    assert!(given(&world).is_empty());
    assert!(world.answers.iter().any(|(_, _, result)| result.is_err()), "the request ends with a reason");
    world.step(Step::Start(2));
    world.step(Step::Wait(SETTLE));
    world.step(Step::Allocate(0, "later".to_owned()));
    world.step(Step::Wait(Duration::from_secs(1)));
    assert_eq!(given(&world).len(), 1);
}

#[test]
fn a_peer_without_targets_founds_alone_and_others_join_it() {
    let mut world = World::of(1, 1, 3);
    for _ in 1..8 {
        let first = world.machine(0).addr.to_string().parse().expect("a target");
        world.add(Mode::Consensus { founders: None }, vec![first]);
    }
    for place in 0..8 {
        world.step(Step::Start(place));
        world.step(Step::Wait(SETTLE));
    }
    invariants::rings_agree(&world);
    let shares: Vec<u128> = (0..8).map(|place| owns(&world, place)).collect();
    let (least, most) = (shares.iter().min().expect("eight"), shares.iter().max().expect("eight"));
    assert!(
        *least > 0 && *most <= 2 * least,
        "after idle joins nobody owns more than twice another: {shares:?}"
    );
}

#[test]
fn both_sides_of_a_partition_go_on_and_heal_without_a_conflict() {
    let mut world = started(5, 5, 4);
    let groups = vec![BTreeSet::from([0, 1]), BTreeSet::from([2, 3, 4])];
    world.step(Step::Partition(groups));
    for round in 0..30 {
        for place in 0..5 {
            world.step(Step::Allocate(place, format!("c{place}-{round}")));
        }
        world.step(Step::Wait(Duration::from_millis(300)));
    }
    assert_eq!(given(&world).len(), 150);
    world.step(Step::Heal);
    world.step(Step::Wait(Duration::from_secs(60)));
    invariants::rings_agree(&world);
    let addresses: BTreeSet<String> = given(&world).into_iter().map(|(_, address)| address).collect();
    assert_eq!(addresses.len(), 150, "an address was given out twice");
}

#[test]
fn a_peer_removed_for_good_leaves_its_range_to_the_others() {
    let mut world = started(4, 4, 5);
    world.step(Step::CrashAfter(3, 0));
    world.step(Step::Wait(Duration::from_secs(5)));
    world.step(Step::Remove(0, 3));
    world.step(Step::Remove(1, 3));
    world.step(Step::Wait(SETTLE));
    invariants::rings_agree(&world);
    let left: u128 = (0..3).map(|place| owns(&world, place)).sum();
    assert_eq!(left, 1024, "the removed peer still owns something");
    // It comes back with its old disk: it learns, and gives out nothing.
    world.step(Step::Start(3));
    world.step(Step::Wait(SETTLE));
    world.step(Step::Allocate(3, "ghost".to_owned()));
    world.step(Step::Wait(SETTLE));
    assert!(!given(&world).iter().any(|(at, _)| *at == 3));
}

#[test]
fn a_founder_wiped_before_the_split_does_not_vote_twice() {
    let mut world = World::of(3, 3, 6);
    world.step(Step::Start(0));
    world.step(Step::Start(1));
    world.step(Step::Wait(SETTLE));
    world.step(Step::Wipe(1));
    world.step(Step::Start(1));
    world.step(Step::Start(2));
    world.step(Step::Wait(Duration::from_secs(120)));
    for place in 0..3 {
        world.step(Step::Allocate(place, format!("c{place}")));
    }
    world.step(Step::Wait(SETTLE));
    invariants::rings_agree(&world);
    assert_eq!(given(&world).len(), 3, "{:?}", world.answers);
}

/// One life of a mesh, drawn from a seed: everything happens, at any time.
fn life(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let count = rng.random_range(2..=5);
    let mut world = World::of(count, u16::try_from(count).expect("small"), seed);
    let mut freed = Vec::new();
    for place in 0..count {
        world.step(Step::Start(place));
        world.step(Step::Wait(Duration::from_millis(rng.random_range(0..4000))));
    }
    for round in 0..60 {
        let at = rng.random_range(0..count);
        match rng.random_range(0..12) {
            0..=4 => world.step(Step::Allocate(at, format!("c{round}"))),
            5 => {
                let container = format!("c{}", rng.random_range(0..=round));
                let key = weave_proto::local::cni::AttachmentKey {
                    container: container.clone(),
                    interface: "eth0".to_owned(),
                };
                freed.push((at, key));
                world.step(Step::Free(at, container));
            }
            6 => world.step(Step::CrashAfter(at, rng.random_range(0..12))),
            7 | 8 => world.step(Step::Start(at)),
            9 => {
                let cut = rng.random_range(1..count.max(2));
                world.step(Step::Partition(vec![(0..cut).collect(), (cut..count).collect()]));
            }
            10 => world.step(Step::Heal),
            _ => {}
        }
        world.step(Step::Wait(Duration::from_millis(rng.random_range(0..3000))));
    }
    world.step(Step::Heal);
    for place in 0..count {
        // A fuse that has not burnt down would go off while the mesh is looked at.
        world.step(Step::CrashAfter(place, 0));
        world.step(Step::Start(place));
    }
    world.step(Step::Wait(Duration::from_secs(120)));
    invariants::rings_agree(&world);
    invariants::answered_addresses_are_durable(&world, &freed);
}

#[test]
fn whatever_happens_no_address_is_held_twice_and_all_agree_in_the_end() {
    for seed in 0..60 {
        life(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = started(4, 4, seed);
        for place in 0..4 {
            world.step(Step::Allocate(place, "c".to_owned()));
        }
        world.step(Step::Wait(SETTLE));
        given(&world)
    };
    assert_eq!(run(7), run(7));
}

#[test]
fn an_observer_gets_a_share_without_ever_voting() {
    let mut world = World::of(2, 2, 8);
    let first = world.machine(0).addr.to_string().parse().expect("a target");
    let observer = world.add(Mode::Observer, vec![first]);
    world.step(Step::Start(observer));
    world.step(Step::Start(0));
    world.step(Step::Wait(SETTLE));
    assert_eq!(owns(&world, observer), 0);
    world.step(Step::Start(1));
    world.step(Step::Wait(SETTLE));
    world.step(Step::Allocate(observer, "c".to_owned()));
    world.step(Step::Wait(SETTLE));
    assert!(given(&world).iter().any(|(at, _)| *at == observer), "{:?}", world.answers);
}
