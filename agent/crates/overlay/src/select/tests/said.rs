//! What people are told of changes.

use super::*;

#[test]
fn each_change_of_a_way_is_told_once_with_its_reason() {
    let mut lab = Lab::with(&[FASTDP, SLEEVE]);
    lab.run(secs(20));
    assert_eq!(lab.said, [] as [&str; 0], "the first way is no change");
    lab.cut(FASTDP);
    lab.run(secs(20));
    lab.open(FASTDP);
    lab.run(secs(20));
    let [left, taken] = &lab.said[..] else { panic!("{:?}", lab.said) };
    assert!(left.starts_with("packets take sleeve instead of fastdp: fastdp: no answer for "), "{left}");
    assert_eq!(taken, "packets take fastdp instead of sleeve: direct, no encryption wanted");
    lab.meet(PeerFacts { features: Features::default(), ..facts(PEER) }, PEER);
    assert!(lab.said[2].starts_with("packets cannot be sent by fastdp any more: "), "{:?}", lab.said);
}

#[test]
fn of_many_changes_at_once_a_few_are_told_and_how_many_others_there_were() {
    let peers: Vec<PeerName> = (1..=100).map(|at| PeerName::from_bits([2, 0, 0, 0, 1, at])).collect();
    let mut lab = Lab::new(Encryption::default(), Vec::new());
    for &peer in &peers {
        lab.meet(facts(peer), peer);
        for way in [FASTDP, SLEEVE] {
            lab.open.insert((peer, way), LARGEST);
            lab.up(peer, Carrier::Direct(way.method));
        }
    }
    lab.busy.clone_from(&peers);
    lab.run(secs(20));
    lab.open.retain(|(_, way), _| *way != FASTDP);
    lab.run(secs(4));
    assert!((20..=25).contains(&lab.said.len()), "{} lines", lab.said.len());
    lab.run(secs(30));
    let said = lab.said.len();
    lab.open.extend(peers.iter().map(|&peer| ((peer, FASTDP), LARGEST)));
    lab.run(secs(20));
    assert!(
        lab.said[said].contains(" changes before this one were too many to be told)"),
        "{}",
        lab.said[said]
    );
}
