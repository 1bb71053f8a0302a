//! Whatever a peer sends, true or not, is taken in or refused, and breaks nothing.

use proptest::prelude::*;
use weave_proto::peer::ipam::{
    Accepted, Ballot, Candidacy, Electorate, Era, Inheritance, Opinion, RingEntry, Stance, Vote,
};

use super::*;

proptest! {
    #[test]
    fn nothing_that_a_peer_sends_breaks_a_machine(
        restored in prop::option::of(states()),
        news in prop::collection::vec((states(), 0_u8..4, any::<bool>()), 1..12),
    ) {
        let now = start();
        let mode = Mode::Consensus { founders: NonZeroU16::new(2) };
        let restored = Restored { state: restored, ..Restored::default() };
        let Ok(mut ipam) = Ipam::new(config(1, mode), restored, 0, now) else { return Ok(()) };
        let peers = (0..4).map(|index| (name(index), PeerFacts { free: 9 })).collect();
        ipam.handle_peers(peers, now);
        for (second, (state, from, directed)) in (0..).zip(news) {
            let now = now + Duration::from_secs(second);
            let universe = ipam.universe_id().unwrap_or(UniverseId(0));
            // Refused or not, what matters is checked by the machine itself after each step.
            let _ = if directed {
                let state = Box::new(state);
                ipam.handle_directed(name(from), IpamDirected::SpaceGranted { token: 1, state }, now)
            } else {
                ipam.handle_gossip(name(from), state, now)
            };
            let _ = ipam.handle_directed(
                name(from),
                IpamDirected::SpaceRequest { token: second, universe, want: Want::Balance { owned: u64::MAX } },
                now,
            );
            ipam.handle_request(RequestId(2 * second), add(&second.to_string()), now);
            let remove = Request::RemovePeer { peer: name(from), force: true };
            ipam.handle_request(RequestId(2 * second + 1), remove, now);
            ipam.handle_timeout(now + Duration::from_millis(500));
            let _ = ipam.status(now);
            drain(&mut ipam);
        }
        ipam.check_invariants();
    }
}

fn states() -> impl Strategy<Value = IpamState> {
    let electing = prop::collection::btree_map(names(), candidacies(), 0..4).prop_map(IpamPhase::Electing);
    let founded = (foundings(), rings(), prop::collection::btree_map(names(), removals(), 0..4)).prop_map(
        |(founding, ring, removals)| IpamPhase::Founded(Box::new(Founded { founding, ring, removals })),
    );
    let universes = prop_oneof![9 => Just(range()), 1 => Just("fd00::/120".parse().unwrap())];
    (universes, prop_oneof![electing, founded]).prop_map(|(universe, phase)| IpamState { universe, phase })
}

fn candidacies() -> impl Strategy<Value = Candidacy> {
    let leaving = prop::collection::btree_set(electorates(), 0..3);
    (extreme(), 0_u16..4, attempts(), prop::option::of(electorates()), leaving, votes(foundings())).prop_map(
        |(version, founders, attempt, lock, leaving, vote)| Candidacy {
            version,
            founders,
            attempt,
            lock,
            leaving,
            vote,
        },
    )
}

fn removals() -> impl Strategy<Value = Removal> {
    let stances = prop_oneof![Just(Stance::Silent), Just(Stance::Asks), Just(Stance::Insists)];
    let inheritances = (names(), sets()).prop_map(|(heir, electors)| Inheritance { heir, electors });
    let opinions = (extreme(), stances, votes(inheritances)).prop_map(|(version, stance, vote)| Opinion {
        version,
        stance,
        vote,
    });
    prop_oneof![
        prop::collection::btree_map(names(), opinions, 0..4).prop_map(Removal::Pending),
        names().prop_map(|heir| Removal::Decided { heir }),
    ]
}

fn rings() -> impl Strategy<Value = Vec<RingEntry>> {
    let eras = (attempts(), prop::option::of(names())).prop_map(|(takeovers, heir)| Era { takeovers, heir });
    let entries = (any::<u8>(), names(), attempts(), eras);
    prop::collection::vec(entries, 1..6).prop_map(|entries| {
        let entry =
            |(last, owner, version, era)| RingEntry { token: [10, 32, 0, last].into(), owner, version, era };
        let mut ring: Vec<_> = entries.into_iter().map(entry).collect();
        ring[0].token = range().first();
        ring.sort_by_key(|entry| entry.token);
        ring
    })
}

fn votes<V: Clone + std::fmt::Debug>(values: impl Strategy<Value = V>) -> impl Strategy<Value = Vote<V>> {
    let accepted = (ballots(), values).prop_map(|(ballot, value)| Accepted { ballot, value });
    (prop::option::of(ballots()), prop::option::of(accepted))
        .prop_map(|(promised, accepted)| Vote { promised, accepted })
}

fn ballots() -> impl Strategy<Value = Ballot> {
    (attempts(), names()).prop_map(|(round, proposer)| Ballot { round, proposer })
}

fn electorates() -> impl Strategy<Value = Electorate> {
    (attempts(), sets()).prop_map(|(attempt, members)| Electorate { attempt, members })
}

fn foundings() -> impl Strategy<Value = Founding> {
    sets().prop_map(|founders| Founding { founders, nonce: 0 })
}

fn sets() -> impl Strategy<Value = BTreeSet<PeerName>> {
    prop::collection::btree_set(names(), 0..4)
}

fn names() -> impl Strategy<Value = PeerName> {
    (0_u8..4).prop_map(name)
}

fn attempts() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0_u32..4, 1 => Just(u32::MAX)]
}

fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0_u64..4, 1 => Just(u64::MAX)]
}
