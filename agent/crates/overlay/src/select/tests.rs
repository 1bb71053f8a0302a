//! One node's machine against a network of which each way can be cut, narrowed and made lossy.

mod crowd;
mod hurry;
mod law;
mod restart;
mod said;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weave_proto::peer::{Features, Terms};
use weave_proto::{Cidr, PeerName};

use super::*;
use crate::{ForwardingTable, Way};

const PEER: PeerName = PeerName::from_bits([2, 0, 0, 0, 0, 7]);
const HOP: PeerName = PeerName::from_bits([2, 0, 0, 0, 0, 8]);
const OTHER: PeerName = PeerName::from_bits([2, 0, 0, 0, 0, 9]);
const ALL: Features = Features::FASTDP.with(Features::SLEEVE).with(Features::QUIC).with(Features::RELAY);
const FASTDP: Way = Way::direct(Method::FastDp);
const SLEEVE: Way = Way::direct(Method::Sleeve);
const QUIC: Way = Way::direct(Method::Quic);
const LARGEST: u32 = 1400;
/// A round trip in the lab.
const TRIP: Duration = Duration::from_millis(20);
/// What a probe costs beyond the packet that it stands for.
const ENVELOPE: u32 = 100;
/// How often the data plane tells of traffic.
const LOOK: Duration = secs(1);

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn underlay(peer: PeerName) -> std::net::IpAddr {
    format!("192.0.2.{}", peer.mac()[5]).parse().unwrap()
}

fn facts(peer: PeerName) -> PeerFacts {
    PeerFacts {
        features: ALL,
        underlay: Some(underlay(peer)),
        overlay: Some(format!("10.40.0.{}", peer.mac()[5]).parse().unwrap()),
        ranges: vec!["10.40.0.0/14".parse().unwrap()],
        relays: Vec::new(),
    }
}

fn encrypting(trusted: &[&str]) -> Encryption {
    let trusted: Vec<Cidr> = trusted.iter().map(|net| net.parse().unwrap()).collect();
    Encryption { wanted: true, trusted }
}

/// A node, its clock, and the network around it.
struct Lab {
    overlay: Overlay,
    start: Instant,
    now: Instant,
    facts: BTreeMap<PeerName, PeerFacts>,
    /// What passes on each way: the largest packet. What is not listed is cut.
    open: BTreeMap<(PeerName, Way), u32>,
    /// Of a thousand packets, how many are lost in each direction.
    lost: u64,
    /// How much longer than [`TRIP`] an answer takes.
    delay: Duration,
    /// What the machine, which it shares with all its peers, needs for each probe besides.
    work: Duration,
    /// Until when the machine is at work.
    engaged: Instant,
    chance: u64,
    coming: BTreeMap<(Instant, u64), ProbeAnswer>,
    /// Every probe, and when it was sent.
    sent: Vec<(Instant, Probe)>,
    /// To whom pods send packets.
    busy: Vec<PeerName>,
    /// To whom packets of others are sent on.
    relayed: Vec<PeerName>,
    /// When the data plane says so again.
    look: Instant,
    saved: BTreeMap<PeerName, KnownWay>,
    /// What was told to people.
    said: Vec<String>,
    /// Every way that the peer has had, and since when.
    history: Vec<(Duration, Option<Way>)>,
}

impl Lab {
    #[expect(clippy::disallowed_methods, reason = "time has to begin somewhere")]
    fn new(encryption: Encryption, known: Vec<KnownWay>) -> Self {
        let start = Instant::now();
        let config = Config { own: ALL, encryption, known };
        let mut lab = Self {
            overlay: Overlay::new(config, 1 << 40),
            start,
            now: start,
            facts: BTreeMap::new(),
            open: BTreeMap::new(),
            lost: 0,
            delay: Duration::ZERO,
            work: Duration::ZERO,
            engaged: start,
            chance: 1,
            coming: BTreeMap::new(),
            sent: Vec::new(),
            busy: vec![PEER],
            relayed: Vec::new(),
            look: start,
            saved: BTreeMap::new(),
            said: Vec::new(),
            history: Vec::new(),
        };
        lab.meet(facts(PEER), PEER);
        lab
    }

    /// A node with a peer to which these ways work, all told.
    fn with(ways: &[Way]) -> Self {
        let mut lab = Self::new(Encryption::default(), Vec::new());
        lab.tell_all();
        ways.iter().for_each(|&way| lab.open(way));
        lab
    }

    fn meet(&mut self, facts: PeerFacts, peer: PeerName) {
        self.facts.insert(peer, facts);
        self.overlay.handle_facts(self.facts.clone(), self.now);
        self.settle();
    }

    fn tell_all(&mut self) {
        for method in Method::ALL {
            self.up(PEER, Carrier::Direct(method));
        }
    }

    fn up(&mut self, peer: PeerName, carrier: Carrier) {
        self.overlay.handle_way(WayNews::Up { peer, carrier, largest: LARGEST }, self.now);
        self.settle();
    }

    fn down(&mut self, peer: PeerName, carrier: Carrier) {
        self.overlay.handle_way(WayNews::Down { peer, carrier, why: "no device".to_owned() }, self.now);
        self.settle();
    }

    fn open(&mut self, way: Way) {
        self.open.insert((PEER, way), LARGEST);
    }

    fn cut(&mut self, way: Way) {
        self.open.remove(&(PEER, way));
    }

    fn settle(&mut self) {
        while let Some(output) = self.overlay.poll_output() {
            match output {
                Output::Persist(known) => drop(self.saved.insert(known.peer, known)),
                Output::Probe(probe) => self.carry(probe),
                Output::Tell(moved) => self.said.push(moved.to_string()),
            }
        }
        let way = self.overlay.peers.get(&PEER).and_then(|state| state.chosen).map(|chosen| chosen.way);
        if self.history.last().map(|(_, last)| *last) != Some(way) {
            self.history.push((self.now - self.start, way));
        }
    }

    fn carry(&mut self, probe: Probe) {
        let Probe { peer, way, nonce, len, hasty: _ } = probe;
        self.sent.push((self.now, probe));
        let fits = self.open.get(&(peer, way)).is_some_and(|largest| len <= *largest);
        if fits && !self.loses() && !self.loses() {
            let answer = ProbeAnswer { peer, way, nonce, len };
            self.engaged = self.engaged.max(self.now) + self.work;
            self.coming.insert((self.engaged + TRIP + self.delay, nonce), answer);
        }
    }

    fn loses(&mut self) -> bool {
        self.chance = self.chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.chance >> 33) % 1000 < self.lost
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let answer = self.coming.keys().next().map(|&(at, _)| at);
            let look = (!self.busy.is_empty() || !self.relayed.is_empty()).then_some(self.look);
            let next = [answer, look, self.overlay.poll_timeout()].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if look == Some(next) {
                self.look = self.now + LOOK;
                self.overlay.handle_traffic(&self.busy, self.now);
                self.overlay.handle_relayed(&self.relayed, self.now);
            } else if answer == Some(next) {
                let (_, answer) = self.coming.pop_first().unwrap();
                self.overlay.handle_answer(answer, self.now);
            } else {
                self.overlay.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = end;
    }

    fn table(&self) -> ForwardingTable {
        self.overlay.table()
    }

    fn way(&self) -> Option<Way> {
        self.history.last().and_then(|(_, way)| *way)
    }

    fn mtu(&self) -> Option<u32> {
        self.table().paths.first().and_then(|path| path.mtu)
    }

    /// How long until the peer has this way, at most ten minutes.
    fn until(&mut self, way: Way) -> Duration {
        let from = self.now;
        while self.way() != Some(way) {
            assert!(self.now < from + secs(600), "never {way}: {:?}", self.history);
            self.run(Duration::from_millis(10));
        }
        self.now - from
    }

    fn reason(&self) -> String {
        self.overlay.report(PEER, self.now).unwrap().reason
    }
}

#[test]
fn without_a_word_from_the_data_plane_the_kernels_way_is_taken() {
    let lab = Lab::new(Encryption::default(), Vec::new());

    let table = lab.table();
    assert_eq!(table.paths.len(), 1);
    assert_eq!((table.paths[0].way, table.paths[0].mtu), (FASTDP, None));
    assert_eq!(table.vteps[0].underlay, underlay(PEER));
    assert_eq!(lab.reason(), "direct, no encryption wanted");
}

#[test]
fn why_nothing_carries_to_a_peer_is_remembered_until_the_mesh_tells_of_it() {
    let mut lab = Lab::new(Encryption::default(), Vec::new());
    lab.down(OTHER, Carrier::Direct(Method::Quic));
    lab.meet(facts(OTHER), OTHER);
    let report = lab.overlay.report(OTHER, lab.now).unwrap();
    assert!(report.rejected.contains(&("quic".to_owned(), "no device".to_owned())), "{report:?}");
}

#[test]
fn what_is_said_of_a_peer_before_the_mesh_tells_of_it_counts_when_it_does() {
    let mut lab = Lab::new(encrypting(&["192.0.2.0/24"]), Vec::new());
    let features = ALL.with(Features::ENCRYPT);
    let sleeve = Way::direct(Method::Sleeve);
    lab.up(OTHER, Carrier::Direct(Method::Sleeve));
    lab.overlay.handle_terms(OTHER, Terms { plain: true }, lab.now);
    lab.open.insert((OTHER, sleeve), LARGEST);
    lab.meet(PeerFacts { features, ..facts(OTHER) }, OTHER);
    lab.run(secs(3));
    let report = lab.overlay.report(OTHER, lab.now).unwrap();
    assert_eq!(report.way, Some(FASTDP), "{report:?}");
    lab.cut(FASTDP);
    lab.down(OTHER, Carrier::Direct(Method::FastDp));
    lab.run(secs(3));
    assert_eq!(lab.overlay.report(OTHER, lab.now).unwrap().way, Some(sleeve));

    // The mesh forgets it for a while, and its session stays.
    let known = lab.facts.remove(&OTHER).unwrap();
    lab.overlay.handle_facts(lab.facts.clone(), lab.now);
    lab.settle();
    assert!(lab.overlay.report(OTHER, lab.now).is_none());
    lab.meet(known, OTHER);
    lab.run(secs(3));
    let report = lab.overlay.report(OTHER, lab.now).unwrap();
    assert_eq!(report.way, Some(sleeve), "{report:?}");
}

#[test]
fn a_quic_connection_is_wanted_while_it_is_used_or_nothing_better_answers_and_else_never() {
    let mut lab = Lab::with(&[FASTDP, SLEEVE]);
    let wanted = |lab: &Lab| lab.table().quic.first().map(|wanted| wanted.soon);
    lab.run(secs(2));
    assert_eq!(wanted(&lab), None);
    lab.cut(FASTDP);
    lab.run(secs(20));
    assert_eq!((lab.way(), wanted(&lab)), (Some(SLEEVE), None));
    lab.cut(SLEEVE);
    lab.run(secs(2));
    // What has answered before is lost, and not just slow to begin.
    assert_eq!(wanted(&lab), Some(true));
    lab.open(QUIC);
    lab.until(QUIC);
    assert_eq!(wanted(&lab), Some(true));
    lab.open(FASTDP);
    lab.until(FASTDP);
    lab.run(secs(1));
    assert_eq!(wanted(&lab), None);

    // Where there is nothing else, nothing is waited for.
    let features = Features::QUIC;
    lab.meet(PeerFacts { features, ..facts(OTHER) }, OTHER);
    assert_eq!(wanted(&lab), Some(true));
}

#[test]
fn no_quic_connection_is_wanted_with_a_peer_to_which_nothing_can_be_sent() {
    let mut lab = Lab::with(&[]);
    let wanted =
        |lab: &Lab| lab.table().quic.iter().map(|wanted| (wanted.peer, wanted.soon)).collect::<Vec<_>>();
    assert_eq!(wanted(&lab), [(PEER, false)]);
    lab.meet(PeerFacts { ranges: Vec::new(), ..facts(PEER) }, PEER);
    assert_eq!(wanted(&lab), []);
    // What might relay to somebody who owns something is needed for that.
    lab.meet(PeerFacts { ranges: Vec::new(), ..facts(HOP) }, HOP);
    lab.meet(PeerFacts { relays: vec![HOP], ..facts(PEER) }, PEER);
    lab.run(secs(2));
    assert_eq!(wanted(&lab), [(PEER, false), (HOP, false)]);
}

#[test]
fn what_is_missing_is_named_and_nothing_is_guessed() {
    type Change = fn(&mut PeerFacts);
    let changes: [(Change, crate::NoPath); 4] = [
        (|facts| facts.ranges.clear(), crate::NoPath::OwnsNothing),
        (|facts| facts.overlay = None, crate::NoPath::NoOverlayAddress),
        (|facts| facts.underlay = None, crate::NoPath::NoDirectLink),
        (|facts| facts.features = Features::default(), crate::NoPath::NoCommonMethod),
    ];
    for (change, why) in changes {
        let mut lab = Lab::new(Encryption::default(), Vec::new());
        lab.facts.clear();
        lab.overlay.handle_facts(BTreeMap::new(), lab.now);
        let mut facts = facts(PEER);
        change(&mut facts);
        lab.meet(facts, PEER);
        assert_eq!(lab.table().paths, [], "{why}");
        assert_eq!(lab.reason(), why.to_string());
    }
}

#[test]
fn the_best_way_that_answers_is_used() {
    for (open, best) in
        [(&[FASTDP, SLEEVE, QUIC][..], FASTDP), (&[SLEEVE, QUIC][..], SLEEVE), (&[QUIC][..], QUIC)]
    {
        let mut lab = Lab::with(open);
        lab.run(secs(10));
        assert_eq!(lab.way(), Some(best), "{:?}", lab.history);
    }
}

#[test]
fn a_way_that_falls_silent_is_left_within_three_seconds_and_taken_again_when_it_answers() {
    for phase in 0..20 {
        let mut lab = Lab::with(&[FASTDP, SLEEVE, QUIC]);
        lab.run(secs(20) + Duration::from_millis(53 * phase));
        lab.cut(FASTDP);
        assert!(lab.until(SLEEVE) <= secs(3), "{phase}: {:?}", lab.history);
        assert!(lab.reason().starts_with("fastdp: no answer for "), "{}", lab.reason());
        lab.cut(SLEEVE);
        assert!(lab.until(QUIC) <= secs(3), "{phase}: {:?}", lab.history);
        lab.open(SLEEVE);
        assert!(lab.until(SLEEVE) <= secs(5), "{phase}: {:?}", lab.history);
        lab.open(FASTDP);
        assert!(lab.until(FASTDP) <= secs(5), "{phase}: {:?}", lab.history);
    }
}

#[test]
fn a_peer_whose_agent_is_away_for_any_time_keeps_its_way_with_and_without_traffic() {
    let mut moved = Vec::new();
    for (absence, late) in (1..15).flat_map(|steps| [0, 500, 1000].map(|late| (steps * 350, late))) {
        for (phase, busy) in (0..4).flat_map(|phase| [(phase, true), (phase, false)]) {
            let mut lab = Lab::with(&[FASTDP, SLEEVE]);
            lab.run(secs(20) + Duration::from_millis(171 * phase));
            if !busy {
                lab.busy.clear();
                lab.run(secs(60));
            }
            lab.open.clear();
            lab.run(Duration::from_millis(absence));
            lab.open(SLEEVE);
            lab.run(Duration::from_millis(late));
            lab.open(FASTDP);
            lab.run(secs(10));
            if lab.history.len() > 1 {
                moved.push((absence, late, phase, busy));
            }
        }
    }
    assert!(moved.is_empty(), "moved after an absence of ms, late by ms, phase, traffic: {moved:?}");
}

#[test]
fn a_peer_whose_agent_is_down_keeps_its_way_and_its_return_changes_nothing() {
    for phase in 0..20 {
        let mut lab = Lab::with(&[FASTDP, SLEEVE, QUIC]);
        lab.run(secs(20) + Duration::from_millis(31 * phase));
        let before = lab.table();
        lab.open.clear();
        lab.run(secs(100));
        assert!(lab.reason().ends_with("kept since no other way answers"), "{}", lab.reason());
        // Its sessions are ready before its probes of the kernel's way are answered.
        lab.open(SLEEVE);
        lab.open(QUIC);
        lab.run(Duration::from_millis(1500));
        lab.open(FASTDP);
        lab.run(secs(60));
        assert_eq!(lab.history.len(), 1, "{phase}: {:?}", lab.history);
        assert_eq!(lab.table(), before);
    }
}

#[test]
fn loss_of_one_packet_in_ten_moves_nothing() {
    let mut lab = Lab::with(&[FASTDP, SLEEVE, QUIC]);
    lab.lost = 100;
    lab.run(secs(3600));

    assert_eq!(lab.history.len(), 1, "{:?}", lab.history);
}

#[test]
fn a_way_that_comes_and_goes_is_used_ever_less_often() {
    for period in [3, 5, 8, 15] {
        let mut lab = Lab::with(&[FASTDP, SLEEVE]);
        for _ in 0..1800 / (2 * period) {
            lab.cut(FASTDP);
            lab.run(secs(period));
            lab.open(FASTDP);
            lab.run(secs(period));
        }
        assert!(lab.history.len() <= 13, "{period}: {:?}", lab.history);
        lab.run(secs(80));
        assert_eq!(lab.way(), Some(FASTDP), "and it is used again when it has come to stay");
    }
}

#[test]
fn probes_of_a_peer_with_traffic_cost_less_than_a_kilobyte_a_second() {
    for open in [&[FASTDP, SLEEVE, QUIC][..], &[SLEEVE, QUIC], &[QUIC], &[]] {
        let mut lab = Lab::with(open);
        lab.run(secs(60));
        lab.sent.clear();
        lab.run(secs(60));
        let bytes: u32 = lab.sent.iter().map(|(_, probe)| probe.len + ENVELOPE).sum();
        assert!(bytes < 60 * 1024, "{open:?}: {bytes} bytes in a minute");
    }
}

#[test]
fn a_path_that_takes_less_than_its_devices_promise_is_measured() {
    for size in [560, 1099, 1179, 1380, 1399] {
        let mut lab = Lab::with(&[]);
        lab.open.insert((PEER, FASTDP), size);
        lab.run(secs(3));
        assert!(lab.mtu() <= Some(size.max(1100)), "a black hole is left soon: {:?} of {size}", lab.mtu());
        lab.run(secs(22));
        let found = lab.mtu().unwrap();
        assert!((size - 4..=size).contains(&found), "{found} of {size}");
    }
}

#[test]
fn a_path_that_shrinks_and_grows_is_followed() {
    let mut lab = Lab::with(&[FASTDP]);
    lab.run(secs(10));
    assert_eq!(lab.mtu(), Some(LARGEST));
    lab.open.insert((PEER, FASTDP), 1250);
    lab.run(secs(8));
    assert!(lab.mtu() <= Some(1250), "{:?}", lab.mtu());
    lab.run(secs(30));
    assert!(lab.mtu() >= Some(1246), "{:?}", lab.mtu());
    lab.open(FASTDP);
    lab.run(secs(60));
    assert_eq!(lab.mtu(), Some(LARGEST));
    lab.overlay.handle_way(
        WayNews::Up { peer: PEER, carrier: Carrier::Direct(Method::FastDp), largest: 8900 },
        lab.now,
    );
    lab.open.insert((PEER, FASTDP), 8900);
    lab.run(secs(10));
    assert_eq!(lab.mtu(), Some(8900), "a larger device is believed");
}

#[test]
fn a_lossy_path_keeps_its_size() {
    let mut lab = Lab::with(&[FASTDP]);
    lab.lost = 50;
    let mut sizes = Vec::new();
    for _ in 0..600 {
        lab.run(secs(1));
        sizes.extend(lab.mtu());
    }
    assert!(sizes.iter().filter(|size| **size < LARGEST).count() <= 30, "{sizes:?}");
}

#[test]
fn a_path_that_is_slow_keeps_its_size() {
    for millis in [500, 900, 1400, 2000] {
        let mut lab = Lab::with(&[FASTDP]);
        lab.run(secs(10));
        lab.delay = Duration::from_millis(millis);
        for _ in 0..120 {
            lab.run(secs(1));
            assert_eq!(lab.mtu(), Some(LARGEST), "answers take {millis} ms");
        }
    }
}

#[test]
fn a_peer_out_of_reach_is_reached_through_a_relay_that_is_reached_itself() {
    let mut lab = Lab::new(Encryption::default(), Vec::new());
    lab.meet(PeerFacts { underlay: None, relays: vec![HOP], ..facts(PEER) }, PEER);
    lab.meet(facts(HOP), HOP);
    lab.cut(FASTDP);
    let relayed = Way::relay(Method::Sleeve, HOP);
    lab.open(relayed);
    lab.up(PEER, Carrier::Relay);
    lab.run(secs(5));
    assert_ne!(lab.way(), Some(relayed), "the relay has not answered yet");

    lab.up(HOP, Carrier::Direct(Method::Sleeve));
    lab.open.insert((HOP, SLEEVE), LARGEST);
    lab.down(PEER, Carrier::Direct(Method::FastDp));
    assert!(lab.until(relayed) <= secs(6), "{:?}", lab.history);
    assert_eq!(lab.reason(), "no direct way answers");
    assert!(lab.table().forwards.contains(&crate::Forward { peer: HOP, way: SLEEVE }));

    // The relay is lost by sleeve and found by quic: the same relay, another first hop.
    lab.up(HOP, Carrier::Direct(Method::Quic));
    let by_quic = Way::relay(Method::Quic, HOP);
    lab.open.insert((HOP, QUIC), LARGEST);
    lab.open(by_quic);
    lab.open.remove(&(HOP, SLEEVE));
    assert!(lab.until(by_quic) <= secs(6), "{:?}", lab.history);

    // A direct way, as soon as there is one.
    lab.meet(facts(PEER), PEER);
    lab.up(PEER, Carrier::Direct(Method::Quic));
    lab.open(QUIC);
    assert!(lab.until(QUIC) <= secs(3), "{:?}", lab.history);
}

#[test]
fn what_is_relayed_to_a_peer_leaves_a_way_that_falls_silent_within_three_seconds() {
    let mut lab = Lab::with(&[FASTDP, SLEEVE, QUIC]);
    (lab.busy, lab.relayed) = (Vec::new(), vec![PEER]);
    lab.run(secs(21));
    let by = |lab: &Lab, way| lab.table().forwards.contains(&crate::Forward { peer: PEER, way });
    for _ in 0..10 {
        assert!(by(&lab, SLEEVE));
        lab.cut(SLEEVE);
        lab.run(secs(3));
        assert!(by(&lab, QUIC));
        lab.open(SLEEVE);
        // Not a multiple of any pace.
        lab.run(Duration::from_millis(21_700));
    }
}

#[test]
fn of_two_relays_the_one_in_use_stays_while_it_answers() {
    let mut lab = Lab::new(Encryption::default(), Vec::new());
    lab.meet(facts(HOP), HOP);
    lab.meet(facts(OTHER), OTHER);
    lab.meet(PeerFacts { underlay: None, relays: vec![HOP, OTHER], ..facts(PEER) }, PEER);
    lab.down(PEER, Carrier::Direct(Method::FastDp));
    lab.up(PEER, Carrier::Relay);
    let (one, two) = (Way::relay(Method::Sleeve, HOP), Way::relay(Method::Sleeve, OTHER));
    for hop in [HOP, OTHER] {
        lab.up(hop, Carrier::Direct(Method::Sleeve));
        lab.open.insert((hop, SLEEVE), LARGEST);
    }
    lab.open(two);
    lab.until(two);
    lab.open(one);
    lab.run(secs(60));
    assert_eq!(lab.way(), Some(two));
    lab.cut(two);
    assert!(lab.until(one) <= secs(3), "{:?}", lab.history);
    assert!(matches!(one.via, Via::Relay(HOP)));
}
