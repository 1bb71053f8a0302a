//! QUIC as the carrier: real connections between the peers' own endpoints.

use tokio::runtime::Runtime;
use tokio::sync::{mpsc as later, watch};
use weave_proto::peer::{Features, Hello, SPOKEN};
use weave_proto::{Nickname, PeerUid};

use super::*;
use crate::identity::Identity;
use crate::peer::{DEFAULT_PORT, Data, DataEvent, PeerEvent, PeerNet, Secrets, Settings};

/// An end whose peer is reached by QUIC too.
struct QuicEnd {
    end: End,
    net: PeerNet,
    identity: Identity,
    data: later::UnboundedReceiver<DataEvent>,
    _said: watch::Sender<Hello>,
    _events: later::Receiver<PeerEvent>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl QuicEnd {
    fn start(lab: &Lab, side: Side, runtime: &Runtime) -> Self {
        let identity = Identity::generate(PeerUid(1)).unwrap();
        let (said, hello) = watch::channel(Hello {
            lowest: SPOKEN.0,
            highest: SPOKEN.1,
            name: identity.name(),
            uid: identity.uid(),
            instance: 1,
            nickname: Nickname::lossy("a-host"),
            nonce: 0,
            range: None,
            universe: None,
            founders: None,
            features: Features::default(),
        });
        let (tell, events) = later::channel(8);
        let (tell_data, data) = later::unbounded_channel();
        let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), DEFAULT_PORT);
        let data_settings = Data { tune, max_udp_payload: MAX_UDP_PAYLOAD, events: tell_data };
        let settings = Settings { listen, data: Some(data_settings) };
        let secrets = Secrets::from_lines("a secret for a test", "a test").unwrap();
        let binding = PeerNet::bind(settings, identity.clone(), secrets, hello, tell);
        let net = lab.inside(side, || runtime.block_on(binding)).unwrap();
        let end = End::start(lab, side, 1);
        Self { end, net, identity, data, _said: said, _events: events }
    }

    /// The connection that has come up, as a carrier.
    fn carried(&mut self, runtime: &Runtime, peer: PeerName) -> (QuicLink, Task) {
        let in_time = async { tokio::time::timeout(Duration::from_secs(10), self.data.recv()).await };
        match runtime.block_on(in_time).unwrap() {
            Some(DataEvent::Up { connection, .. }) => {
                let _inside = runtime.enter();
                self.end.engine.carry(peer, connection).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    fn send_by(&self, side: Side, carrier: Carrier) {
        let send_with = Some(SendWith { session: 1, carrier });
        self.end.engine.set_peers(vec![Peer { send_with, ..peer_of(side, 1, RECORD_LEN) }]);
    }
}

/// A and B, joined by QUIC, and the tasks that read.
fn joined(lab: &Lab, runtime: &Runtime) -> ([QuicEnd; 2], [QuicLink; 2], [Task; 2]) {
    let (mut a, mut b) = (QuicEnd::start(lab, Side::A, runtime), QuicEnd::start(lab, Side::B, runtime));
    let addr = SocketAddr::new(lab.outer(Side::B).into(), DEFAULT_PORT);
    a.net.data_door().open(addr, b.identity.key());
    let (at_a, reads_a) = a.carried(runtime, name(Side::B));
    let (at_b, reads_b) = b.carried(runtime, name(Side::A));
    ([a, b], [at_a, at_b], [reads_a, reads_b])
}

/// The first event that is wanted.
fn told<T>(end: &End, wanted: impl Fn(Event) -> Option<T>) -> T {
    let patience = Duration::from_secs(5);
    std::iter::from_fn(|| end.events.recv_timeout(patience).ok()).find_map(wanted).expect("an event in time")
}

fn grown(link: &QuicLink) -> bool {
    link.largest() > 1400
}

#[test]
fn a_stream_crosses_where_only_the_control_port_is_open() {
    let Some(lab) = Lab::new("quic") else { return };
    let runtime = runtime();
    for side in [Side::A, Side::B] {
        lab.run(side, "nft add table ip closed");
        lab.run(side, "nft add chain ip closed in { type filter hook input priority 0 ; }");
        lab.run(side, "nft add rule ip closed in iifname veth0 udp dport != 6783 drop");
    }
    let ([a, b], links, _tasks) = joined(&lab, &runtime);
    for (end, side, link) in [(&a, Side::A, &links[0]), (&b, Side::B, &links[1])] {
        end.send_by(side, Carrier::Quic(link.clone()));
    }
    eventually("the path is searched", || links.iter().all(grown));
    // The device's packets are longer by a little than what a datagram then takes: they are cut once more.
    bulk(&lab, 8 << 20);
    let (sent, got) = (a.end.engine.counters(), b.end.engine.counters());
    assert_eq!(got.forged + got.replayed + got.malformed + got.unknown_records, 0, "{got:?}");
    assert!(got.records_opened >= (8 << 20) / 1400, "{got:?}");
    assert!(got.batches_received * 2 < got.records_opened, "datagrams are gathered: {got:?}");
    assert!(got.device_writes * 2 < got.records_opened, "pieces are joined: {got:?}");
    assert_eq!(sent.send_failures, 0, "{sent:?}");
}

#[test]
fn the_carrier_may_change_while_packets_flow() {
    let Some(lab) = Lab::new("qswitch") else { return };
    let runtime = runtime();
    let ([a, b], [link, _], _tasks) = joined(&lab, &runtime);
    let (from, to) = (udp(&lab, Side::A), udp(&lab, Side::B));
    for round in 0..50_u8 {
        let carrier = if round % 2 == 0 { Carrier::Quic(link.clone()) } else { Carrier::Udp };
        a.send_by(Side::A, carrier);
        assert!(crosses(&from, &to, &[round]));
    }
    let counters = b.end.engine.counters();
    assert_eq!(counters.replayed + counters.forged, 0, "{counters:?}");
}

#[test]
fn a_probe_by_quic_says_so_and_moves_nobody() {
    let Some(lab) = Lab::new("qprobe") else { return };
    let runtime = runtime();
    let ([a, b], [link, _], _tasks) = joined(&lab, &runtime);
    assert!(a.end.engine.probe(1, &Carrier::Quic(link.clone()), b"by quic", 800));
    let from =
        told(
            &b.end,
            |event| {
                if let Event::Probe { from, len, .. } = event { Some((from, len)) } else { None }
            },
        );
    assert_eq!(from, (Source::Quic(name(Side::A)), 800));
    assert!(!a.end.engine.probe(1, &Carrier::Quic(link), b"too long", 3000));
}

#[test]
fn a_path_that_becomes_narrower_is_followed_and_told() {
    let Some(lab) = Lab::new("qmtu") else { return };
    let runtime = runtime();
    let ([a, b], links, _tasks) = joined(&lab, &runtime);
    for (end, side, link) in [(&a, Side::A, &links[0]), (&b, Side::B, &links[1])] {
        end.send_by(side, Carrier::Quic(link.clone()));
    }
    eventually("the path is searched", || links.iter().all(grown));
    lab.run(Side::A, "ip link set veth0 mtu 1340");
    lab.run(Side::B, "ip link set veth0 mtu 1340");
    // Only what does not come through shows that the path has changed.
    let from = udp(&lab, Side::A);
    let patience = Instant::now() + Duration::from_secs(20);
    while links[0].largest() > 1340 {
        assert!(Instant::now() < patience, "{:?}", links[0].stats());
        from.send_to(&[0; 1350], (inner(Side::B), 7000)).unwrap();
        std::thread::yield_now();
    }
    bulk(&lab, 2 << 20);
    let told: Vec<_> = a
        .end
        .events
        .try_iter()
        .filter_map(|event| if let Event::QuicLargest { largest, .. } = event { Some(largest) } else { None })
        .collect();
    assert!(
        told.iter().any(|&largest| largest > 1400) && told.last().is_some_and(|&last| last < 1340),
        "{told:?}"
    );
}

#[test]
fn the_end_of_a_connection_is_told() {
    let Some(lab) = Lab::new("qlost") else { return };
    let runtime = runtime();
    let ([_a, b], [link, _], _tasks) = joined(&lab, &runtime);
    link.close("a test is over");
    let why =
        told(
            &b.end,
            |event| {
                if let Event::QuicLost { link, why } = event { Some((link.peer(), why)) } else { None }
            },
        );
    assert_eq!(why.0, name(Side::A));
    assert!(why.1.contains("a test is over"), "{}", why.1);
}
