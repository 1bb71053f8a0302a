//! What must be true whatever happens.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weave_ipam::Answer;
use weave_proto::Span;
use weave_proto::addr::position;
use weave_proto::local::cni::AttachmentKey;

use crate::World;
use crate::world::Place;

/// Checks everything that must hold after every step.
///
/// # Panics
/// Something does not hold; the message says what.
pub fn check(world: &World) {
    for router in world.places().filter_map(|at| world.router(at)) {
        router.ipam().check_invariants();
    }
    no_address_twice(world);
    the_ring_covers_the_range(world);
}

/// No two running peers that hear each other hold one address.
fn no_address_twice(world: &World) {
    let mut holders: BTreeMap<IpAddr, Vec<(Place, AttachmentKey)>> = BTreeMap::new();
    for at in world.places() {
        let allocations = world.router(at).into_iter().flat_map(|router| router.ipam().allocations());
        for allocation in allocations {
            holders.entry(allocation.address).or_default().push((at, allocation.key.clone()));
        }
    }
    for (address, holders) in holders {
        for (index, (a, key_a)) in holders.iter().enumerate() {
            for (b, key_b) in &holders[index + 1..] {
                assert!(
                    !world.hear(*a, *b),
                    "{address} is held by {key_a} on node{a} and by {key_b} on node{b}"
                );
            }
        }
    }
}

/// Every ring covers the whole range, without gap or overlap.
fn the_ring_covers_the_range(world: &World) {
    for at in world.places() {
        let Some(router) = world.router(at) else { continue };
        let ranges = router.ipam().ranges();
        if ranges.is_empty() {
            continue;
        }
        let mut spans: Vec<Span> = ranges.into_values().flatten().collect();
        spans.sort_unstable();
        let whole = Span::from(world.range());
        assert_eq!(
            spans.first().map(|span| span.first()),
            Some(whole.first()),
            "node{at}: the ring begins late"
        );
        assert_eq!(spans.last().map(|span| span.last()), Some(whole.last()), "node{at}: the ring ends early");
        for pair in spans.windows(2) {
            let gap = position(pair[1].first()) - position(pair[0].last());
            assert_eq!(gap, 1, "node{at}: {} is followed by {}", pair[0], pair[1]);
        }
    }
}

/// All running peers that have a ring have the same.
///
/// # Panics
/// They have not.
pub fn rings_agree(world: &World) {
    let rings = world.places().filter_map(|at| Some((at, world.router(at)?.ipam().ranges())));
    let mut rings = rings.filter(|(_, ring)| !ring.is_empty());
    let Some((first, ring)) = rings.next() else { return };
    for (at, other) in rings {
        assert_eq!(other, ring, "node{at} and node{first} have different rings");
    }
}

/// Every address that was answered is still on its peer's disk, unless the disk was lost or the container freed.
///
/// # Panics
/// One is not.
pub fn answered_addresses_are_durable(world: &World, freed: &[(Place, AttachmentKey)]) {
    for (at, key, result) in &world.answers {
        let Ok(Answer::Allocated { allocation, .. }) = result else { continue };
        if !freed.contains(&(*at, key.clone())) {
            let kept = world.machine(*at).disk.address_of(key);
            assert_eq!(kept, Some(allocation.address), "node{at} has forgotten the address of {key}");
        }
    }
}
