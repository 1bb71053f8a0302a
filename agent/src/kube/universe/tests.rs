use proptest::prelude::*;

use super::*;

fn peer(number: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, number])
}

fn range() -> Cidr {
    "10.32.0.0/12".parse().unwrap()
}

fn node(name: &str, peer: Option<PeerName>, universe: Option<&str>) -> (String, Node) {
    let mut node = Node::default();
    node.metadata.name = name.to_owned();
    node.metadata.annotations.peer = peer.map(|peer| peer.to_string());
    node.metadata.annotations.universe = universe.map(str::to_owned);
    (name.to_owned(), node)
}

fn decision() -> Decision {
    Decision { range: range(), founders: BTreeSet::from([peer(1), peer(2)]), nonce: u64::MAX }
}

fn written(decision: &Decision, removed: &BTreeMap<PeerName, PeerName>) -> ConfigMap {
    serde_json::from_value(decision.object(removed)).unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    let removed = BTreeMap::from([(peer(3), peer(1))]);
    let object = written(&decision(), &removed);
    assert_eq!(Decision::read(&object, range()), Ok(decision()));
    assert!(is_removed(&object, peer(3)) && !is_removed(&object, peer(1)));
    assert_eq!(missing_tombstones(&object, &removed), None);
    let more = BTreeMap::from([(peer(3), peer(1)), (peer(4), peer(1))]);
    let patch = missing_tombstones(&object, &more).unwrap();
    assert_eq!(patch["data"].as_object().unwrap().len(), 1);
}

#[test]
fn an_object_of_another_range_or_without_sense_is_refused_with_the_remedy() {
    let object = written(&decision(), &BTreeMap::new());
    let error = Decision::read(&object, "10.64.0.0/12".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("10.32.0.0/12") && error.contains("IPALLOC_RANGE"), "{error}");
    for text in ["", "{}", r#"{"range":"10.32.0.0/12","founders":[],"nonce":1}"#] {
        let object =
            ConfigMap { data: BTreeMap::from([("universe".to_owned(), text.to_owned())]), ..object.clone() };
        assert!(Decision::read(&object, range()).unwrap_err().to_string().contains("delete it"));
    }
}

#[test]
fn agents_that_start_together_share_the_range_and_late_ones_are_not_waited_for_long() {
    let start = Instant::now();
    let mut nodes = BTreeMap::from([node("a", Some(peer(1)), None), node("b", None, None)]);
    assert!(matches!(next_move(&nodes, "a", peer(1), start, start), Move::Wait(_)));
    assert_eq!(
        next_move(&nodes, "a", peer(1), start, start + GATHER),
        Move::Found(BTreeSet::from([peer(1)]))
    );
    nodes.extend([node("b", Some(peer(2)), None)]);
    assert_eq!(
        next_move(&nodes, "a", peer(1), start, start),
        Move::Found(BTreeSet::from([peer(1), peer(2)]))
    );
}

#[test]
fn nobody_founds_a_second_universe_while_another_node_is_in_one() {
    let start = Instant::now();
    let nodes = BTreeMap::from([node("a", Some(peer(1)), None), node("b", Some(peer(2)), Some("00ff"))]);
    for later in [0, 1, 60, 86_400] {
        let found = next_move(&nodes, "a", peer(1), start, start + Duration::from_secs(later));
        assert!(matches!(&found, Move::Wait(why) if why.contains('b') && why.contains("kubectl annotate")));
    }
    // What the own Node said before its disk was wiped holds up nobody.
    let alone = BTreeMap::from([node("a", Some(peer(9)), Some("00ff"))]);
    assert!(matches!(next_move(&alone, "a", peer(1), start, start), Move::Found(_)));
}

proptest! {
    #[test]
    fn whoever_founds_is_a_founder_and_founders_are_few(
        peers in proptest::collection::vec(proptest::option::of(0..=255_u8), 0..600), me: u8, waited in 0..60_u64,
    ) {
        let nodes: BTreeMap<_, _> = peers.iter().enumerate()
            .map(|(index, name)| node(&format!("n{index}"), name.map(peer), None)).collect();
        let start = Instant::now();
        match next_move(&nodes, "me", peer(me), start, start + Duration::from_secs(waited)) {
            Move::Found(founders) => {
                prop_assert!(founders.contains(&peer(me)) && founders.len() <= MAX_FOUNDERS);
                let known: BTreeSet<_> = nodes::registered(&nodes).into_iter().chain([peer(me)]).collect();
                prop_assert!(founders.is_subset(&known));
            }
            Move::Wait(_) => prop_assert!(waited < GATHER.as_secs()),
        }
    }
}
