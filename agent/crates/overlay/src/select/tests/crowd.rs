//! What probes cost, and how soon they tell, with few peers and many, with traffic and without.

use proptest::prelude::*;

use super::*;

/// By name: peers beyond those of the other tests.
fn crowd(count: usize) -> Vec<PeerName> {
    let count = u16::try_from(count).unwrap();
    (0..count).map(|at| PeerName::from_bits([2, 0, 0, 1, at.to_be_bytes()[0], at.to_be_bytes()[1]])).collect()
}

/// A node with so many peers, to all of whom every method works, and that have settled.
fn mesh(peers: &[PeerName], busy: &[PeerName]) -> Lab {
    let mut lab = Lab::new(Encryption::default(), Vec::new());
    lab.facts = peers.iter().map(|&peer| (peer, facts(peer))).collect();
    lab.overlay.handle_facts(lab.facts.clone(), lab.now);
    lab.settle();
    lab.busy.clear();
    for &peer in peers {
        for method in Method::ALL {
            lab.open.insert((peer, Way::direct(method)), LARGEST);
            lab.up(peer, Carrier::Direct(method));
        }
    }
    lab.run(secs(30));
    (lab.busy, lab.look) = (busy.to_vec(), lab.now);
    lab.run(secs(10));
    lab.sent.clear();
    lab
}

fn chosen(lab: &Lab, peer: PeerName) -> Option<Way> {
    lab.overlay.peers.get(&peer).and_then(|state| state.chosen).map(|chosen| chosen.way)
}

/// The longest time that any way of these peers went without a small probe, since `from`.
fn longest_pause(lab: &Lab, peers: &[PeerName], from: Instant) -> Duration {
    let ways = peers.iter().flat_map(|&peer| Method::ALL.map(|method| (peer, Way::direct(method))));
    let mut pauses: BTreeMap<(PeerName, Way), (Instant, Duration)> =
        ways.map(|way| (way, (from, Duration::ZERO))).collect();
    for &(at, probe) in lab.sent.iter().filter(|(_, probe)| probe.len == 0) {
        if let Some((last, pause)) = pauses.get_mut(&(probe.peer, probe.way)) {
            *pause = (*pause).max(at - *last);
            *last = at;
        }
    }
    pauses.into_values().map(|(last, pause)| pause.max(lab.now - last)).max().unwrap()
}

/// The most that was sent in any time of this length: small probes, and bytes of probes for size.
fn most(lab: &Lab, window: Duration) -> (usize, u32) {
    let (mut first, mut small, mut bytes) = (0, 0, 0);
    let mut most = (0, 0);
    for &(at, probe) in &lab.sent {
        if probe.len == 0 {
            small += 1
        } else {
            bytes += probe.len
        }
        while lab.sent[first].0 + window < at {
            let (_, old) = lab.sent[first];
            if old.len == 0 {
                small -= 1
            } else {
                bytes -= old.len
            }
            first += 1;
        }
        most = (most.0.max(small), most.1.max(bytes));
    }
    most
}

#[test]
fn an_idle_peer_costs_a_tenth_of_one_with_traffic() {
    let peers = crowd(1);
    let cost = |busy: &[PeerName]| {
        let mut lab = mesh(&peers, busy);
        lab.run(secs(600));
        (lab.sent.len(), lab.sent.iter().map(|(_, probe)| probe.len + ENVELOPE).sum::<u32>())
    };
    let (idle, busy) = (cost(&[]), cost(&peers));
    assert!(idle.0 <= 600 * 9 / 20, "{} probes in ten minutes", idle.0);
    assert!(idle.1 <= 600 * 128, "{} bytes in ten minutes", idle.1);
    assert!(idle.0 * 5 < busy.0 && idle.1 * 5 < busy.1, "{idle:?}, {busy:?}");
}

#[test]
fn when_traffic_begins_on_a_way_that_died_in_silence_it_is_left_in_time() {
    for phase in 0..40 {
        let peers = crowd(1);
        let mut lab = mesh(&peers, &[]);
        lab.run(Duration::from_millis(131 * phase));
        lab.open.remove(&(peers[0], FASTDP));
        lab.run(Duration::from_millis(977 * (phase % 7)));
        let from = lab.now;
        lab.busy.clone_from(&peers);
        lab.look = lab.now + LOOK * u32::try_from(phase % 5).unwrap() / 4;
        while chosen(&lab, peers[0]) == Some(FASTDP) {
            lab.run(Duration::from_millis(10));
            assert!(lab.now - from <= secs(3), "{phase}: still there after {:?}", lab.now - from);
        }
    }
}

#[test]
fn an_idle_way_that_dies_is_left_and_taken_again_all_the_same() {
    for phase in 0..10 {
        let peers = crowd(3);
        let mut lab = mesh(&peers, &[]);
        lab.run(Duration::from_millis(531 * phase));
        lab.open.remove(&(peers[1], FASTDP));
        lab.run(secs(10));
        assert_eq!(chosen(&lab, peers[1]), Some(SLEEVE), "{phase}");
        lab.run(secs(60));
        lab.open.insert((peers[1], FASTDP), LARGEST);
        lab.run(secs(18));
        assert_eq!(chosen(&lab, peers[1]), Some(FASTDP), "{phase}");
    }
}

#[test]
fn every_way_is_probed_again_within_a_bound_that_only_their_number_sets() {
    for (count, busy, bound) in
        [(1, 0, 15), (24, 24, 5), (24, 3, 15), (100, 20, 15), (200, 200, 16), (300, 0, 20)]
    {
        let peers = crowd(count);
        let mut lab = mesh(&peers, &peers[..busy]);
        let from = lab.now;
        lab.run(secs(bound + 6));
        let pause = longest_pause(&lab, &peers, from);
        assert!(pause <= secs(bound) + secs(1), "{count} peers, {busy} busy: {pause:?}");
        let used = lab.sent.iter().filter(|(_, probe)| probe.len == 0 && probe.way == FASTDP);
        let mut last: BTreeMap<PeerName, Instant> = peers[..busy].iter().map(|&peer| (peer, from)).collect();
        for (at, probe) in used {
            if let Some(last) = last.get_mut(&probe.peer) {
                assert!(
                    *at - *last <= Duration::from_millis(850),
                    "{count} peers, {busy} busy: {:?}",
                    *at - *last
                );
                *last = *at;
            }
        }
    }
}

#[test]
fn a_hundred_peers_with_traffic_whose_ways_die_together_all_leave_them_within_three_seconds() {
    let peers = crowd(100);
    let mut lab = mesh(&peers, &peers);
    lab.open.retain(|(_, way), _| *way != FASTDP);
    lab.run(secs(3));
    let left = peers.iter().filter(|&&peer| chosen(&lab, peer) == Some(SLEEVE)).count();
    assert_eq!(left, peers.len());
}

#[test]
fn the_price_of_a_node_at_rest_is_within_a_few_kilobytes_a_second() {
    for (count, probes, bytes) in [(3, 2, 400), (24, 10, 3_000), (100, 40, 12_000), (200, 80, 24_000)] {
        let mut lab = mesh(&crowd(count), &[]);
        lab.run(secs(60));
        let small = lab.sent.iter().filter(|(_, probe)| probe.len == 0).count();
        let sum: u32 = lab.sent.iter().map(|(_, probe)| probe.len + ENVELOPE).sum();
        assert!(small <= probes * 60, "{count} peers: {small} probes in a minute");
        assert!(sum <= bytes * 60, "{count} peers: {sum} bytes in a minute");
    }
}

/// How many small probes go out in a second, over the next half minute.
fn rate(lab: &mut Lab) -> usize {
    lab.sent.clear();
    lab.run(secs(30));
    lab.sent.iter().filter(|(_, probe)| probe.len == 0).count() / 30
}

#[test]
fn peers_whose_answers_take_long_are_asked_no_more_often_for_that() {
    for busy in [0, 24] {
        let peers = crowd(24);
        let mut lab = mesh(&peers, &peers[..busy]);
        let before = rate(&mut lab);
        lab.delay = Duration::from_millis(900);
        lab.run(secs(10));
        let after = rate(&mut lab);
        assert!(after <= before + before / 4, "{busy} busy: {before} probes a second, then {after}");
    }
}

#[test]
fn a_machine_that_was_too_slow_for_a_while_comes_to_rest_again() {
    for (stalled, busy) in (1..=10).flat_map(|stalled| [(stalled, 0), (stalled, 6)]) {
        let peers = crowd(24);
        let mut lab = mesh(&peers, &peers[..busy]);
        let before = rate(&mut lab);
        // It does four times what it is asked for.
        lab.work = secs(1) / u32::try_from(before * 4).unwrap();
        lab.engaged = lab.now + secs(stalled);
        lab.run(secs(30));
        let after = rate(&mut lab);
        assert!(
            after <= before + before / 4,
            "{stalled} s, {busy} busy: {before} probes a second, then {after}"
        );
    }
}

#[test]
fn a_way_that_dies_while_answers_take_long_is_left_within_three_seconds() {
    for phase in 0..20 {
        let peers = crowd(24);
        let mut lab = mesh(&peers, &peers);
        lab.delay = Duration::from_millis(900);
        lab.run(secs(10) + Duration::from_millis(53 * phase));
        lab.open.remove(&(peers[3], FASTDP));
        // What was on its way still comes, and that another way answers takes as long.
        let from = lab.now + 2 * (TRIP + lab.delay);
        while chosen(&lab, peers[3]) == Some(FASTDP) {
            lab.run(Duration::from_millis(10));
            assert!(lab.now <= from + secs(3), "{phase}: still there after {:?}", lab.now - from);
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Cut(usize, usize),
    Open(usize, usize),
    Busy(usize),
    Idle,
    Wait(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_usize..300, 0_usize..3).prop_map(|(peer, way)| Event::Cut(peer, way)),
        3 => (0_usize..300, 0_usize..3).prop_map(|(peer, way)| Event::Open(peer, way)),
        1 => (1_usize..300).prop_map(Event::Busy),
        1 => Just(Event::Idle),
        2 => (0_u64..3000).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn the_budget_is_never_exceeded_and_everybody_is_served(
        count in 1_usize..200,
        events in prop::collection::vec(any_event(), 0..20),
    ) {
        let peers = crowd(count);
        let mut lab = mesh(&peers, &[]);
        let step = |at: usize| (at..at + 40).map(|at| peers[at % count]);
        for event in events {
            match event {
                Event::Cut(at, way) => {
                    let cut: Vec<_> = step(at).map(|peer| (peer, Way::direct(Method::ALL[way]))).collect();
                    lab.open.retain(|way, _| !cut.contains(way));
                }
                Event::Open(at, way) => step(at).for_each(|peer| {
                    lab.open.insert((peer, Way::direct(Method::ALL[way])), LARGEST);
                }),
                Event::Busy(most) => lab.busy = peers[..most.min(count)].to_vec(),
                Event::Idle => lab.busy.clear(),
                Event::Wait(millis) => lab.run(Duration::from_millis(millis)),
            }
        }
        lab.run(secs(5));
        for window in [1, 10] {
            let (small, bytes) = most(&lab, secs(window));
            let allowed = usize::try_from(412 * window).unwrap() + 1024;
            prop_assert!(small <= allowed, "{small} probes in {window} s");
            let allowed = (u32::try_from(window).unwrap() + 1) * 64 * 1024;
            prop_assert!(bytes <= allowed, "{bytes} bytes in {window} s");
        }
        // Whatever has happened: in quiet times each way has its turn.
        lab.busy.clear();
        lab.run(secs(45));
        lab.sent.clear();
        lab.run(secs(40));
        let pause = longest_pause(&lab, &peers, lab.now - secs(40));
        prop_assert!(pause <= secs(30), "a way was left alone for {pause:?}");
    }
}
