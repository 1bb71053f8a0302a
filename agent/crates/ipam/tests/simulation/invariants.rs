//! What is true at every moment, and what becomes true when the world comes to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use weave_ipam::ring::Ring;
use weave_ipam::{Answer, Ipam, Request, universe_id};
use weave_proto::PeerName;
use weave_proto::peer::UniverseId;
use weave_proto::peer::ipam::{IpamPhase, IpamState, Removal};

use crate::world::{Machine, Weather, World};

/// At every moment: no address has two holders or two owners, and there is one universe.
///
/// What a majority has decided counts from that moment, even if those concerned cannot hear it yet: a removed
/// machine does not count, nor does what it gave away unseen. See [`nobody_reachable_shares`] for the time after.
pub(crate) fn always(world: &World) {
    let removed = removed(world);
    let present =
        || world.machines.iter().filter(|machine| !machine.gone && !removed.contains(&machine.name));
    let rings: Vec<Ring> =
        world.machines.iter().filter_map(Machine::knows).filter_map(|s| ring_of(&s)).collect();
    let mut holders = BTreeMap::<IpAddr, PeerName>::new();
    let mut owned = Vec::new();
    for machine in present() {
        let Some(ring) = machine.knows().and_then(|state| ring_of(&state)) else { continue };
        for address in machine.held().into_iter().filter(|address| is_latest(&ring, *address, &rings)) {
            let other = holders.insert(address, machine.name);
            assert_eq!(other, None, "{address} has two holders, {} is one", machine.name);
        }
        let mine = ring.spans().filter(|(_, entry)| entry.owner == machine.name).map(|(span, _)| span);
        owned.extend(
            mine.filter(|span| is_latest(&ring, span.first(), &rings)).map(|span| (span, machine.name)),
        );
    }
    owned.sort();
    for pair in owned.windows(2) {
        assert!(pair[0].0.last() < pair[1].0.first(), "owned twice: {:?} and {:?}", pair[0], pair[1]);
    }
    let universes: BTreeSet<UniverseId> =
        present().filter_map(Machine::knows).filter_map(|state| universe_of(&state)).collect();
    assert!(universes.len() <= 1, "more than one universe: {universes:?}");
}

/// Whoever can be reached and has heard what everybody has to say holds nothing that somebody else holds.
pub(crate) fn nobody_reachable_shares(world: &World) {
    let mut holders = BTreeMap::<IpAddr, PeerName>::new();
    for (machine, ipam) in world.up() {
        for allocation in ipam.allocations() {
            let other = holders.insert(allocation.address, machine.name);
            assert_eq!(other, None, "{} has two holders, {} is one", allocation.address, machine.name);
        }
    }
}

/// The weather clears, the walls fall, everybody who can starts.
pub(crate) fn heal(world: &mut World) {
    rest(world);
    always(world);
}

/// As [`heal`], of a world in which living machines were removed: they may have held what others were given.
pub(crate) fn rest(world: &mut World) {
    world.weather = Weather::CALM;
    for index in 0..world.machines.len() {
        world.machines[index].side = 0;
        world.keep_power(index);
        world.start(index);
    }
    world.pass(Duration::from_secs(60));
}

/// After healing: everybody knows the same, and has heard nothing it had to refuse.
pub(crate) fn agreed(world: &World) {
    let digests: BTreeSet<u64> = world.up().map(|(_, ipam)| ipam.digest()).collect();
    assert!(digests.len() <= 1, "rings differ after healing: {:?}", world.refused);
    assert!(world.up().all(|(_, ipam)| ipam.universe_id().is_some()), "no universe: {}", states(world));
    assert!(world.refused.is_empty(), "{:?}", world.refused);
    nobody_reachable_shares(world);
}

/// Everybody gets an address.
pub(crate) fn everybody_is_served(world: &mut World) {
    let up: Vec<usize> =
        (0..world.machines.len()).filter(|index| world.machines[*index].ipam.is_some()).collect();
    let requests: Vec<_> = up.iter().map(|index| world.allocate(*index)).collect();
    world.pass(Duration::from_secs(30));
    for request in requests {
        let reply = world.replies.get(&request).expect("every request is answered in time");
        assert!(matches!(reply, Ok(Answer::Allocated { .. })), "not served: {reply:?}; {}", states(world));
    }
    always(world);
}

/// When all that is gone has been removed, all of the range belongs to somebody who is there.
pub(crate) fn nothing_is_lost(world: &mut World) {
    let gone: Vec<PeerName> = world.machines.iter().filter(|m| m.gone).map(|machine| machine.name).collect();
    let Some(one) = world.machines.iter().position(|machine| machine.ipam.is_some()) else { return };
    for peer in gone {
        world.ask(one, Request::RemovePeer { peer, force: false });
    }
    world.pass(Duration::from_secs(60));
    agreed(world);
    let here: BTreeSet<PeerName> = world.up().map(|(machine, _)| machine.name).collect();
    let (_, ipam) = world.up().next().unwrap();
    let owners: BTreeSet<PeerName> = ipam.ranges().into_keys().collect();
    assert!(owners.is_subset(&here), "{owners:?} own, {here:?} are here; {}", states(world));
}

/// Everybody's status line.
pub(crate) fn states(world: &World) -> String {
    let line = |(machine, ipam): (&Machine, &Ipam)| {
        let status = ipam.status(world.now);
        format!("{}: {} {:?} {:?}; ", machine.name, status.state, status.removed, status.refused)
    };
    world.up().map(line).collect()
}

/// Whether no ring anywhere knows a later era for the address.
fn is_latest(ring: &Ring, address: IpAddr, rings: &[Ring]) -> bool {
    let era = ring.entry_of(address).map(|entry| entry.era);
    rings.iter().all(|other| other.entry_of(address).map(|entry| entry.era) <= era)
}

fn removed(world: &World) -> BTreeSet<PeerName> {
    let mut removed = BTreeSet::new();
    for state in world.machines.iter().filter_map(Machine::knows) {
        if let IpamPhase::Founded(founded) = &state.phase {
            let decided = founded.removals.iter().filter(|(_, r)| matches!(r, Removal::Decided { .. }));
            removed.extend(decided.map(|(peer, _)| *peer));
        }
    }
    removed
}

fn ring_of(state: &IpamState) -> Option<Ring> {
    match &state.phase {
        IpamPhase::Electing(_) => None,
        IpamPhase::Founded(founded) => {
            Some(Ring::from_entries(state.universe, &founded.ring).expect("what is known is a ring"))
        }
    }
}

fn universe_of(state: &IpamState) -> Option<UniverseId> {
    match &state.phase {
        IpamPhase::Electing(_) => None,
        IpamPhase::Founded(founded) => Some(universe_id(state.universe, &founded.founding)),
    }
}
