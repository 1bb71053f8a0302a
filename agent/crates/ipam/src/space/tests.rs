use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_network_and_the_broadcast_address_are_never_free() {
    let space = owning("10.0.0.0/30");

    assert_eq!(space.free(), 2);
    assert_eq!(space.next_free(start()), Some(addr("10.0.0.1")));
    assert_eq!(space.available(addr("10.0.0.0")), Err(Unavailable::Reserved));
    assert_eq!(space.available(addr("10.0.0.3")), Err(Unavailable::Reserved));
}

#[test]
fn an_ipv6_range_keeps_only_its_anycast_address_back() {
    let space = owning("fd00::/126");

    assert_eq!(space.free(), 3);
    assert_eq!(space.available(addr("fd00::3")), Ok(()));
}

#[test]
fn addresses_are_given_out_from_the_front() {
    let mut space = owning("10.0.0.0/24");

    let taken: Vec<IpAddr> = (0..3).map(|_| take_next(&mut space, start())).collect();

    assert_eq!(taken, ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(addr));
}

#[test]
fn a_freed_address_is_not_used_again_while_there_are_others() {
    let mut space = owning("10.0.0.0/29");
    let first = take_next(&mut space, start());
    space.release(first, 1, start());

    let next: Vec<IpAddr> = (0..5).map(|_| take_next(&mut space, start() + 1000 * SECOND)).collect();

    assert!(!next.contains(&first));
    assert_eq!(space.next_free(start() + 1000 * SECOND), Some(first));
}

#[test]
fn of_freed_addresses_the_one_that_is_free_the_longest_comes_first() {
    let mut space = owning("10.0.0.0/29");
    let all: Vec<IpAddr> = (0..6).map(|_| take_next(&mut space, start())).collect();
    let freed = [all[4], all[1], all[3]];
    (1..).zip(freed).for_each(|(order, address)| {
        space.release(address, order, start());
    });

    let later = start() + QUARANTINE;
    assert_eq!([(); 3].map(|()| take_next(&mut space, later)), freed);
}

#[test]
fn a_freed_address_rests_for_a_minute_even_if_it_is_the_last() {
    let mut space = owning("10.0.0.0/30");
    let all = [(); 2].map(|()| take_next(&mut space, start()));
    space.release(all[0], 1, start());

    assert_eq!(space.next_free(start() + QUARANTINE - SECOND), None);
    assert_eq!(space.next_release(start()), Some(start() + QUARANTINE));
    assert_eq!(space.oldest(), Some(all[0]), "in need it can be had all the same");
    assert_eq!(space.next_free(start() + QUARANTINE), Some(all[0]));
}

#[test]
fn the_oldest_freed_addresses_are_forgotten_once_they_have_rested() {
    let mut space = owning("10.0.0.0/16");
    let all: Vec<IpAddr> = (0..REMEMBERED + 1).map(|_| take_next(&mut space, start())).collect();
    let later = start() + QUARANTINE;
    let mut forgotten = Vec::new();
    (1..).zip(&all).for_each(|(order, address)| {
        let now = if order <= REMEMBERED as u64 { start() } else { later };
        forgotten.extend(space.release(*address, order, now));
    });

    assert_eq!(forgotten, [all[0]]);
    assert_eq!(space.next_free(later), Some(all[0]), "what is forgotten is as good as new");
}

#[test]
fn what_is_given_away_is_free_aligned_and_at_the_end() {
    let mut space = owning("10.0.0.0/24");
    (0..100).for_each(|_| {
        take_next(&mut space, start());
    });

    assert_eq!(space.spare_block(77, start()), Some("10.0.0.128/26".parse().unwrap()));
    assert_eq!(space.spare_block(1, start()).map(|block| block.len()), Some(1));
    assert_eq!(space.spare_block(0, start()), None);
}

#[test]
fn an_address_in_quarantine_is_not_given_away() {
    let mut space = owning("10.0.0.0/30");
    let all = [(); 2].map(|()| take_next(&mut space, start()));
    space.release(all[1], 1, start());

    assert_eq!(space.spare_block(2, start()), None);
    assert_eq!(space.spare_block(2, start() + QUARANTINE), Some(Cidr::host(all[1])));
}

#[test]
fn what_rested_in_a_range_that_is_lost_is_forgotten() {
    let mut space = owning("10.0.0.0/24");
    let address = take_next(&mut space, start());
    space.release(address, 1, start());

    assert_eq!(space.set_own(Vec::new()), [address]);
    assert_eq!((space.owned(), space.free(), space.oldest()), (0, 0, None));
}

proptest! {
    #[test]
    fn a_block_to_give_away_holds_nothing_that_is_used(
        taken in prop::collection::btree_set(1_u8..255, 0..60),
        resting in prop::collection::btree_set(1_u8..255, 0..60),
        limit in 1_u128..300,
    ) {
        let mut space = owning("10.0.0.0/24");
        let addresses = |set: &BTreeSet<u8>| set.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect::<Vec<_>>();
        for address in addresses(&taken) {
            space.take(address);
        }
        for (order, address) in (1..).zip(addresses(&resting).into_iter().filter(|a| !taken_holds(&taken, *a))) {
            space.take(address);
            space.release(address, order, start());
        }
        if let Some(block) = space.spare_block(limit, start()) {
            prop_assert!(block.len() <= limit);
            prop_assert!(addresses(&taken).iter().chain(&addresses(&resting)).all(|address| !block.contains(*address)));
            prop_assert!(!block.contains(addr("10.0.0.0")) && !block.contains(addr("10.0.0.255")));
        } else {
            prop_assert_eq!(taken.union(&resting).count(), 254);
        }
    }
}

fn taken_holds(taken: &BTreeSet<u8>, address: IpAddr) -> bool {
    taken.iter().any(|last| IpAddr::from([10, 0, 0, *last]) == address)
}

fn take_next(space: &mut Space, now: Instant) -> IpAddr {
    let address = space.next_free(now).unwrap();
    space.take(address);
    address
}

/// A peer that owns the whole range.
fn owning(range: &str) -> Space {
    let range: Cidr = range.parse().unwrap();
    let mut space = Space::new(range);
    space.set_own(vec![Span::from(range)]);
    space
}

#[expect(clippy::disallowed_methods, reason = "time has to begin somewhere, once")]
fn start() -> Instant {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *START
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}
