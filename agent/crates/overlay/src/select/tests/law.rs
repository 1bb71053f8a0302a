//! What holds for any order of events.

use proptest::prelude::*;

use super::*;
use crate::PlainFrom;

#[derive(Debug, Clone)]
enum Event {
    Open(usize),
    Cut(usize),
    Up(usize),
    Down(usize),
    Terms(bool),
    Moved(bool),
    Features(bool),
    Restart,
    Wait(u64),
}

const CARRIERS: [Carrier; 4] = [
    Carrier::Direct(Method::FastDp),
    Carrier::Direct(Method::Sleeve),
    Carrier::Direct(Method::Quic),
    Carrier::Relay,
];

fn ways() -> [Way; 4] {
    [FASTDP, SLEEVE, QUIC, Way::relay(Method::Sleeve, HOP)]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0_usize..4).prop_map(Event::Open),
        2 => (0_usize..4).prop_map(Event::Cut),
        2 => (0_usize..4).prop_map(Event::Up),
        1 => (0_usize..4).prop_map(Event::Down),
        1 => any::<bool>().prop_map(Event::Terms),
        1 => any::<bool>().prop_map(Event::Moved),
        1 => any::<bool>().prop_map(Event::Features),
        1 => Just(Event::Restart),
        4 => (0_u64..6000).prop_map(Event::Wait),
    ]
}

/// A node with a peer that may be relayed to.
fn lab(encryption: &Encryption, known: Vec<KnownWay>, facts_now: PeerFacts) -> Lab {
    let mut lab = Lab::new(encryption.clone(), known);
    lab.meet(facts(HOP), HOP);
    lab.up(HOP, Carrier::Direct(Method::Sleeve));
    lab.open.insert((HOP, SLEEVE), LARGEST);
    lab.meet(facts_now, PEER);
    lab
}

fn play(lab: &mut Lab, event: &Event, encryption: &Encryption) {
    match *event {
        Event::Open(way) => lab.open(ways()[way]),
        Event::Cut(way) => lab.cut(ways()[way]),
        Event::Up(carrier) => lab.up(PEER, CARRIERS[carrier]),
        Event::Down(carrier) => lab.down(PEER, CARRIERS[carrier]),
        Event::Terms(plain) => {
            lab.overlay.handle_terms(PEER, Terms { plain }, lab.now);
            lab.settle();
        }
        Event::Moved(trusted) => {
            let underlay = if trusted { "10.9.0.7" } else { "192.0.2.7" }.parse().ok();
            lab.meet(PeerFacts { underlay, ..lab.facts[&PEER].clone() }, PEER);
        }
        Event::Features(encrypt) => {
            let features = if encrypt { ALL.with(Features::ENCRYPT) } else { ALL };
            lab.meet(PeerFacts { features, ..lab.facts[&PEER].clone() }, PEER);
        }
        Event::Restart => {
            let known = lab.saved.values().copied().collect();
            let mut fresh = self::lab(encryption, known, lab.facts[&PEER].clone());
            fresh.open.clone_from(&lab.open);
            fresh.saved.clone_from(&lab.saved);
            *lab = fresh;
        }
        Event::Wait(millis) => lab.run(Duration::from_millis(millis)),
    }
}

/// Whether encryption is due, from what was said and not from the machine's own idea.
fn is_due(encryption: &Encryption, facts: &PeerFacts, told: Option<bool>) -> bool {
    let trusted = facts.underlay.is_some_and(|addr| encryption.trusts(addr));
    (encryption.wanted && !trusted)
        || told.map_or_else(|| facts.features.has(Features::ENCRYPT), |plain| !plain)
}

fn starting_facts() -> PeerFacts {
    PeerFacts { relays: vec![HOP], ..facts(PEER) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn where_encryption_is_due_nothing_ever_goes_in_clear(
        events in prop::collection::vec(any_event(), 0..60),
        wanted in any::<bool>(),
    ) {
        let encryption = Encryption { wanted, ..encrypting(&["10.9.0.0/16"]) };
        let mut lab = lab(&encryption, Vec::new(), starting_facts());
        let mut told = None;
        for event in events {
            if let Event::Terms(plain) = event {
                told = Some(plain);
            } else if matches!(event, Event::Restart) {
                // Only a permission is kept over a restart.
                told = told.filter(|plain| *plain && lab.saved.get(&PEER).is_some_and(|saved| saved.plain));
            }
            play(&mut lab, &event, &encryption);
            let table = lab.table();
            if is_due(&encryption, &lab.facts[&PEER], told) {
                let address = lab.facts[&PEER].underlay.unwrap();
                prop_assert!(table.paths.iter().all(|path| path.peer != PEER || path.way.is_sealed()));
                prop_assert!(table.vteps.iter().all(|vtep| vtep.peer != PEER));
                let shut = match &table.plain_from {
                    PlainFrom::AnybodyBut(barred) => barred.contains(&address),
                    PlainFrom::Only(let_in) => !let_in.contains(&address),
                };
                prop_assert!(shut);
            }
        }
    }

    #[test]
    fn in_the_end_it_is_always_the_best_way_that_answers(
        events in prop::collection::vec(any_event(), 0..60),
        left in 1_u8..16,
    ) {
        let encryption = Encryption::default();
        let mut lab = lab(&encryption, Vec::new(), starting_facts());
        for event in &events {
            play(&mut lab, event, &encryption);
        }
        lab.overlay.handle_terms(PEER, Terms { plain: true }, lab.now);
        for (at, way) in ways().into_iter().enumerate() {
            lab.up(PEER, CARRIERS[at]);
            if left & (1 << at) == 0 { lab.cut(way) } else { lab.open(way) }
        }
        lab.run(secs(150));
        let best = ways()[usize::try_from(left.trailing_zeros()).unwrap()];
        prop_assert_eq!(lab.way(), Some(best), "{:?}", lab.history);
        lab.history.drain(..lab.history.len() - 1);
        lab.run(secs(300));
        prop_assert_eq!(lab.history.len(), 1, "and there it stays: {:?}", lab.history);
    }

    #[test]
    fn no_answer_that_was_not_asked_for_changes_anything(
        nonces in prop::collection::vec(any::<u64>(), 1..20),
        len in any::<u32>(),
    ) {
        let mut lab = Lab::with(&[]);
        lab.run(secs(3));
        let before = lab.table();
        for nonce in nonces.into_iter().filter(|nonce| !(1 << 40..1 << 41).contains(nonce)) {
            for way in ways() {
                lab.overlay.handle_answer(ProbeAnswer { peer: PEER, way, nonce, len }, lab.now);
            }
        }
        prop_assert!(!lab.overlay.take_changed() || lab.table() == before);
        prop_assert!(lab.overlay.peers[&PEER].sealed().is_none());
    }
}
