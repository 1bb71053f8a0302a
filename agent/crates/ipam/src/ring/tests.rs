use proptest::prelude::*;

use super::*;

#[test]
fn what_is_granted_belongs_to_the_taker_and_the_rest_stays() {
    let mut ring = ring_of(&[("10.0.0.0", 1)]);

    ring.grant(cidr("10.0.0.64/26"), name(1), name(2)).unwrap();

    assert_eq!(owners(&ring), ["10.0.0.0-10.0.0.63 1", "10.0.0.64-10.0.0.127 2", "10.0.0.128-10.0.0.255 1"]);
    ring.check_invariants();
}

#[test]
fn a_grant_may_span_several_entries_of_the_giver() {
    let mut ring = ring_of(&[("10.0.0.0", 1), ("10.0.0.32", 1), ("10.0.0.96", 1)]);

    ring.grant(cidr("10.0.0.0/25"), name(1), name(2)).unwrap();

    assert_eq!(ring.ranges_of(name(2)), [span("10.0.0.0", "10.0.0.127")]);
    assert_eq!(ring.ranges_of(name(1)), [span("10.0.0.128", "10.0.0.255")]);
}

#[test]
fn the_end_of_the_range_can_be_granted_too() {
    let mut ring = ring_of(&[("10.0.0.0", 1)]);

    ring.grant(cidr("10.0.0.255/32"), name(1), name(2)).unwrap();

    assert_eq!(ring.entry_count(), 2);
    ring.check_invariants();
}

#[test]
fn nobody_grants_what_is_not_his() {
    let mut ring = ring_of(&[("10.0.0.0", 1), ("10.0.0.128", 2)]);
    let before = ring.clone();

    for block in ["10.0.0.128/25", "10.0.0.0/24", "10.0.1.0/24"] {
        assert!(
            matches!(ring.grant(cidr(block), name(1), name(3)), Err(GrantError::NotMine { .. })),
            "{block}"
        );
    }
    assert_eq!(ring, before);
}

#[test]
fn entries_that_are_no_ring_are_told_apart_by_what_is_wrong() {
    let malformed =
        |entries: &[(&str, u8)]| Ring::from_entries(universe(), &entries_of(entries)).unwrap_err();

    assert_eq!(malformed(&[]), MalformedRing::Start { first: None });
    assert_eq!(malformed(&[("10.0.0.1", 1)]), MalformedRing::Start { first: Some(addr("10.0.0.1")) });
    assert_eq!(malformed(&[("10.0.0.0", 1), ("10.0.1.0", 1)]), MalformedRing::Outside(addr("10.0.1.0")));
    assert_eq!(malformed(&[("10.0.0.0", 1), ("fd00::", 1)]), MalformedRing::Outside(addr("fd00::")));
    assert_eq!(
        malformed(&[("10.0.0.0", 1), ("10.0.0.9", 1), ("10.0.0.9", 2)]),
        MalformedRing::Order(addr("10.0.0.9"))
    );
    let many = vec![entries_of(&[("10.0.0.0", 1)])[0]; MAX_RING_ENTRIES + 1];
    assert!(matches!(Ring::from_entries(universe(), &many), Err(MalformedRing::Large(_))));
}

#[test]
fn a_merge_learns_what_is_later_and_says_what_was_new() {
    let mine = ring_of(&[("10.0.0.0", 1), ("10.0.0.128", 2)]);
    let mut theirs = mine.clone();
    theirs.grant(cidr("10.0.0.192/26"), name(2), name(3)).unwrap();

    let merged = mine.merge(&theirs, name(1)).unwrap();

    assert_eq!(merged.ring, theirs);
    assert_eq!(merged.news.iter().map(|entry| entry.token).collect::<Vec<_>>(), [addr("10.0.0.192")]);
    assert!(merged.learns && !merged.teaches);
    let back = theirs.merge(&mine, name(3)).unwrap();
    assert!(!back.learns && back.teaches && back.news.is_empty());
}

#[test]
fn a_change_of_mine_that_i_did_not_make_is_refused() {
    let mine = ring_of(&[("10.0.0.0", 1)]);
    let mut theirs = mine.clone();
    theirs.grant(cidr("10.0.0.0/25"), name(1), name(2)).unwrap();

    assert!(matches!(mine.merge(&theirs, name(1)), Err(Conflict::NewerThanMine { ours: 1, theirs: 2, .. })));
}

#[test]
fn a_cut_into_my_range_that_i_did_not_make_is_refused() {
    let mine = ring_of(&[("10.0.0.0", 1)]);
    let theirs = ring_of(&[("10.0.0.0", 1), ("10.0.0.128", 2)]);

    let conflict = mine.merge(&theirs, name(1)).unwrap_err();

    assert_eq!(conflict, Conflict::CutsMine { token: addr("10.0.0.128"), owner: name(2) });
}

#[test]
fn two_owners_in_one_version_are_refused() {
    let (mine, theirs) = (ring_of(&[("10.0.0.0", 1)]), ring_of(&[("10.0.0.0", 2)]));

    assert!(matches!(mine.merge(&theirs, name(3)), Err(Conflict::TwoOwners { .. })));
}

#[test]
fn an_heir_overrides_what_the_removed_peer_did_unseen() {
    let start = ring_of(&[("10.0.0.0", 1), ("10.0.0.128", 2)]);
    // Peer 2 gives a part to peer 3, which nobody else hears of, ...
    let mut unseen = start.clone();
    unseen.grant(cidr("10.0.0.192/26"), name(2), name(3)).unwrap();
    unseen.grant(cidr("10.0.0.128/26"), name(2), name(3)).unwrap();
    // ... and peer 1 inherits from it.
    let mut inherited = start;
    assert_eq!(inherited.take_over(name(2), name(1)), 128);

    for (mine, theirs, me) in [(&inherited, &unseen, 1), (&unseen, &inherited, 3)] {
        let merged = mine.merge(theirs, name(me)).unwrap();
        assert_eq!(owners(&merged.ring), ["10.0.0.0-10.0.0.127 1", "10.0.0.128-10.0.0.255 1"]);
    }
}

#[test]
fn of_two_heirs_in_one_era_both_sides_choose_the_same() {
    let start = ring_of(&[("10.0.0.0", 1), ("10.0.0.64", 3), ("10.0.0.128", 2)]);
    let (mut one, mut other) = (start.clone(), start);
    one.take_over(name(3), name(1));
    other.take_over(name(3), name(2));

    let (a, b) = (one.merge(&other, name(1)).unwrap().ring, other.merge(&one, name(2)).unwrap().ring);

    assert_eq!(a, b);
    assert_eq!(a.owner_of(addr("10.0.0.64")), Some(name(2)));
}

#[test]
fn adjacent_entries_of_one_owner_are_one_range() {
    let ring = ring_of(&[("10.0.0.0", 1), ("10.0.0.64", 1), ("10.0.0.128", 2), ("10.0.0.192", 1)]);

    assert_eq!(ring.ranges_of(name(1)), [span("10.0.0.0", "10.0.0.127"), span("10.0.0.192", "10.0.0.255")]);
    assert_eq!(ring.sizes(), BTreeMap::from([(name(1), 192), (name(2), 64)]));
}

proptest! {
    /// Four peers with a ring each grant, inherit, and hear of each other in any order.
    #[test]
    fn rings_of_peers_that_keep_the_rules_merge_in_any_order_to_one_result(
        deeds in prop::collection::vec((0_u8..4, 0_u8..4, 0_u8..=255, 24_u8..=32, any::<bool>()), 1..60),
    ) {
        let first = ring_of(&[("10.0.0.0", 0), ("10.0.0.64", 1), ("10.0.0.128", 2), ("10.0.0.192", 3)]);
        let mut rings = vec![first; 4];
        for (who, whom, host, prefix, hears) in deeds {
            let (me, other) = (usize::from(who), usize::from(whom));
            if hears {
                let merged = rings[me].merge(&rings[other], name(who)).unwrap();
                rings[me] = merged.ring;
            } else {
                let block = Cidr::containing(IpAddr::from([10, 0, 0, host]), prefix).unwrap();
                let _ = rings[me].grant(block, name(who), name(whom));
            }
            rings[me].check_invariants();
        }
        // Somebody who owns nothing hears them in different orders.
        let hear = |order: [usize; 4]| order.iter().fold(rings[order[0]].clone(), |heard, index| {
            heard.merge(&rings[*index], name(9)).unwrap().ring
        });
        let all = hear([0, 1, 2, 3]);
        all.check_invariants();
        prop_assert_eq!(&hear([3, 1, 0, 2]), &all);
        prop_assert_eq!(&hear([2, 3, 1, 0]), &all);
        prop_assert!(!all.merge(&all, name(9)).unwrap().learns);
        // And nobody owns what another owns, by their own books.
        for (index, ring) in (0..).zip(&rings) {
            for range in ring.ranges_of(name(index)) {
                prop_assert_eq!(all.owner_of(range.first()), Some(name(index)));
            }
        }
    }

    #[test]
    fn whatever_somebody_sends_a_merge_ends_in_a_ring_or_a_refusal(
        mine in arbitrary_entries(),
        theirs in arbitrary_entries(),
        me in 0_u8..4,
    ) {
        let (Ok(mine), Ok(theirs)) = (Ring::from_entries(universe(), &mine), Ring::from_entries(universe(), &theirs))
        else { return Ok(()) };
        if let Ok(merged) = mine.merge(&theirs, name(me)) {
            merged.ring.check_invariants();
            prop_assert_eq!(merged.learns, merged.ring != mine);
        }
    }
}

fn arbitrary_entries() -> impl Strategy<Value = Vec<RingEntry>> {
    let era = (0_u32..3, prop::option::of(0_u8..4));
    let entry = (1_u8..=255, 0_u8..4, 1_u32..4, era).prop_map(|(last, owner, version, (takeovers, heir))| {
        RingEntry {
            token: IpAddr::from([10, 0, 0, last]),
            owner: name(owner),
            version,
            era: Era { takeovers, heir: heir.map(name) },
        }
    });
    prop::collection::vec(entry, 1..8).prop_map(|mut entries| {
        entries[0].token = addr("10.0.0.0");
        entries.sort_by_key(|entry| entry.token);
        entries.dedup_by_key(|entry| entry.token);
        entries
    })
}

fn ring_of(shares: &[(&str, u8)]) -> Ring {
    let shares: Vec<_> = shares.iter().map(|(token, owner)| (addr(token), name(*owner))).collect();
    Ring::of_shares(universe(), &shares).unwrap()
}

fn entries_of(shares: &[(&str, u8)]) -> Vec<RingEntry> {
    let entry = |&(token, owner): &(&str, u8)| RingEntry {
        token: addr(token),
        owner: name(owner),
        version: 1,
        era: Era::default(),
    };
    shares.iter().map(entry).collect()
}

fn owners(ring: &Ring) -> Vec<String> {
    ring.spans().map(|(span, entry)| format!("{span} {}", entry.owner.mac()[5])).collect()
}

fn universe() -> Cidr {
    cidr("10.0.0.0/24")
}

fn span(first: &str, last: &str) -> Span {
    Span::new(addr(first), addr(last)).unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(index: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, index])
}
