//! What was in force before the agent started.

use super::*;

#[test]
fn after_a_restart_the_last_way_holds_until_answers_say_otherwise() {
    let mut lab = Lab::with(&[SLEEVE, QUIC]);
    lab.open.insert((PEER, SLEEVE), 1333);
    lab.run(secs(60));
    let (before, known) = (lab.table(), lab.saved.values().copied().collect::<Vec<_>>());
    assert_eq!((before.paths[0].way, before.paths[0].mtu), (SLEEVE, lab.mtu()));

    let mut again = Lab::new(Encryption::default(), known);
    assert_eq!(again.table().paths, before.paths, "before anything is known");
    again.run(secs(5));
    again.tell_all();
    again.open = lab.open.clone();
    again.run(secs(25));
    assert_eq!(again.table(), before, "{:?}", again.history);

    again.open(FASTDP);
    assert!(again.until(FASTDP) <= secs(7), "{:?}", again.history);
}

#[test]
fn a_way_of_before_that_this_node_can_no_longer_go_is_not_held() {
    let known = KnownWay { peer: PEER, way: Some(SLEEVE), mtu: Some(LARGEST), plain: true };
    let mut lab = Lab::new(Encryption::default(), vec![known]);
    let config = Config { own: Features::FASTDP, encryption: Encryption::default(), known: vec![known] };
    lab.overlay = Overlay::new(config, 1);
    lab.meet(facts(PEER), PEER);
    assert_eq!(lab.way(), Some(FASTDP));
}

#[test]
fn a_way_that_the_peer_no_longer_offers_gives_way_to_the_kernel_s_although_nothing_answers() {
    let known = KnownWay { peer: PEER, way: Some(SLEEVE), mtu: Some(LARGEST), plain: true };
    let mut lab = Lab::new(Encryption::default(), vec![known]);
    lab.meet(facts(PEER), PEER);
    assert_eq!(lab.way(), Some(SLEEVE));
    lab.meet(PeerFacts { features: Features::FASTDP, ..facts(PEER) }, PEER);
    assert_eq!(lab.way(), Some(FASTDP));
}
