use super::*;

const PEER: PeerName = PeerName::from_bits([2, 0, 0, 0, 0, 7]);

fn facts() -> PeerFacts {
    PeerFacts {
        features: Features::FASTDP,
        underlay: Some("192.0.2.7".parse().unwrap()),
        overlay: Some("10.40.0.1".parse().unwrap()),
        ranges: vec!["10.44.0.0/14".parse().unwrap(), "10.40.0.0/14".parse().unwrap()],
    }
}

fn decide(own: Features, facts: PeerFacts) -> Choice {
    choose(own, &BTreeMap::from([(PEER, facts)])).remove(&PEER).unwrap()
}

fn without(missing: impl FnOnce(&mut PeerFacts)) -> Choice {
    let mut facts = facts();
    missing(&mut facts);
    decide(Features::FASTDP, facts)
}

#[test]
fn a_peer_of_which_everything_is_known_is_reached_by_fastdp_with_its_ranges_in_order() {
    let Choice::Path(path) = decide(Features::FASTDP, facts()) else { panic!("no path") };
    assert_eq!(path.way, Way::direct(Method::FastDp));
    assert_eq!(path.underlay, Some("192.0.2.7".parse().unwrap()));
    assert_eq!(path.ranges.iter().map(Cidr::to_string).collect::<Vec<_>>(), ["10.40.0.0/14", "10.44.0.0/14"]);
}

#[test]
fn whatever_is_missing_is_named_and_nothing_is_guessed() {
    assert_eq!(without(|facts| facts.ranges.clear()), Choice::None(NoPath::OwnsNothing));
    assert_eq!(without(|facts| facts.overlay = None), Choice::None(NoPath::NoOverlayAddress));
    assert_eq!(without(|facts| facts.underlay = None), Choice::None(NoPath::NoDirectLink));
    assert_eq!(without(|facts| facts.features = Features::default()), Choice::None(NoPath::NoCommonMethod));
    assert_eq!(decide(Features::default(), facts()), Choice::None(NoPath::NoCommonMethod));
}

#[test]
fn a_table_holds_exactly_the_peers_that_have_a_path() {
    let other = PeerName::from_bits([2, 0, 0, 0, 0, 8]);
    let nothing = PeerFacts { ranges: Vec::new(), ..facts() };
    let choices = choose(Features::FASTDP, &BTreeMap::from([(PEER, facts()), (other, nothing)]));
    let table = ForwardingTable::of(&choices);
    assert_eq!(table.paths.iter().map(|path| path.peer).collect::<Vec<_>>(), [PEER]);
}
