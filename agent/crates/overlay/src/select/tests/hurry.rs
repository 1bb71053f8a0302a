//! Who tells a peer that its packets may be lost.

use super::*;

/// How soon a probe in haste goes out by this way from now on, if one does within three seconds.
fn haste_by(lab: &mut Lab, way: Way) -> Option<Duration> {
    let from = lab.now;
    lab.sent.clear();
    lab.run(secs(3));
    let hasty = lab.sent.iter().find(|(_, probe)| probe.hasty && probe.way == way);
    hasty.map(|&(at, _)| at - from)
}

fn is_in_haste(lab: &mut Lab, time: Duration) -> bool {
    lab.sent.clear();
    lab.run(time);
    lab.sent.iter().any(|(_, probe)| probe.hasty)
}

#[test]
fn a_peer_is_told_to_hurry_by_another_way_once_the_one_that_packets_take_is_in_doubt() {
    for phase in 0..10 {
        let mut lab = Lab::with(&[FASTDP, SLEEVE, QUIC]);
        lab.run(secs(2));
        assert!(!is_in_haste(&mut lab, secs(30) + Duration::from_millis(71 * phase)), "while all is well");
        lab.cut(FASTDP);
        let told = haste_by(&mut lab, SLEEVE);
        assert!(told.is_some_and(|told| told < Duration::from_millis(1500)), "{told:?}");
        assert!(!is_in_haste(&mut lab, secs(60)), "when the dead way has been left: {:?}", lab.history);
    }
}

#[test]
fn answers_that_come_in_bunches_are_no_reason_to_hurry() {
    let mut lab = Lab::with(&[FASTDP, SLEEVE, QUIC]);
    lab.run(secs(10));
    lab.delay = Duration::from_millis(900);
    lab.run(secs(5));
    assert!(!is_in_haste(&mut lab, secs(120)));
}

#[test]
fn haste_that_is_only_heard_of_makes_a_node_ask_but_not_tell() {
    let mut lab = Lab::with(&[FASTDP, SLEEVE, QUIC]);
    lab.busy.clear();
    lab.run(secs(30));
    lab.cut(FASTDP);
    lab.overlay.handle_haste(PEER, lab.now);
    assert_eq!(haste_by(&mut lab, SLEEVE), None);
    assert_eq!(
        lab.way(),
        Some(SLEEVE),
        "it is left within three seconds as if packets were sent: {:?}",
        lab.history
    );
}
