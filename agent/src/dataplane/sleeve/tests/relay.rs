//! Relay frames: A and C reach B alone, and have keys that B has not.

use weave_sleeve::header::{Flags, HEADER_LEN, Header, Kind};
use weave_sleeve::relay::{RELAY_LEN, Relay};

use super::*;

const A_TO_B: u32 = 0x0a0b;
const B_TO_C: u32 = 0x0b0c;
const A_TO_C: u32 = 0x0a0c;

/// The session of two sides: its index, the same at both ends.
fn index(one: Side, other: Side) -> u32 {
    match (one, other) {
        (Side::A, Side::B) | (Side::B, Side::A) => A_TO_B,
        (Side::B, Side::C) | (Side::C, Side::B) => B_TO_C,
        _ => A_TO_C,
    }
}

fn start(lab: &Lab, side: Side, sessions: &[Side], peers: Vec<Peer>) -> End {
    let (tell, events) = mpsc::channel();
    let engine = lab.inside(side, || {
        let tun = Tun::open("weave-tun", 1).unwrap();
        let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
        Engine::start(name(side), tun, listen, Box::new(move |event| drop(tell.send(event)))).unwrap()
    });
    lab.run(side, &format!("ip link set weave-tun mtu {} up", RECORD_LEN - 52));
    lab.run(side, &format!("ip addr add {}/32 dev weave-tun", inner(side)));
    lab.run(side, "ip route add 10.32.0.0/24 dev weave-tun");
    for &other in sessions {
        let index = index(side, other);
        let role = if side.digit() < other.digit() { Role::Initiator } else { Role::Responder };
        let config = Config { role, ..config(side, index, RECORD_LEN) };
        // A session that only relays carry has no address of its own.
        let remote = if index == A_TO_C {
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)
        } else {
            SocketAddr::new(lab.outer_towards(other, side).into(), PORT)
        };
        let settings = SessionSettings { index, peer: name(other), remote, config };
        engine.open_session(settings, &index.to_be_bytes().repeat(8), Instant::now());
    }
    engine.set_peers(peers);
    End { engine, events }
}

fn neighbour(of: Side, side: Side) -> Peer {
    let session = index(of, side);
    let send_with = Some(SendWith { session, carrier: Carrier::Udp });
    let ranges = vec![Cidr::host(inner(side).into())];
    Peer { peer: name(side), ranges, send_with, hop: Some(Hop::Udp { session }), record_len: RECORD_LEN }
}

/// `side` as it is reached by way of B.
fn behind_b(of: Side, side: Side) -> Peer {
    let send_with = Some(SendWith { session: index(of, side), carrier: Carrier::Relay(name(Side::B)) });
    Peer { send_with, hop: Some(Hop::Next(name(Side::B))), ..neighbour(of, side) }
}

fn ends(lab: &Lab) -> [End; 3] {
    [
        start(
            lab,
            Side::A,
            &[Side::B, Side::C],
            vec![neighbour(Side::A, Side::B), behind_b(Side::A, Side::C)],
        ),
        start(
            lab,
            Side::B,
            &[Side::A, Side::C],
            vec![neighbour(Side::B, Side::A), neighbour(Side::B, Side::C)],
        ),
        start(
            lab,
            Side::C,
            &[Side::A, Side::B],
            vec![neighbour(Side::C, Side::B), behind_b(Side::C, Side::A)],
        ),
    ]
}

#[test]
fn a_stream_crosses_a_node_that_cannot_read_it() {
    let Some(lab) = Lab::row("relay") else { return };
    let [a, b, c] = ends(&lab);
    bulk_to(&lab, Side::C, 8 << 20);
    let [sent, passed, got] = [&a, &b, &c].map(|end| end.engine.counters());
    assert_eq!(passed.device_writes + passed.records_opened, 0, "{passed:?}");
    assert_eq!(passed.relay_refused + passed.relay_no_way + passed.relay_loops, 0, "{passed:?}");
    assert!(passed.relayed >= (8 << 20) / RECORD_LEN as u64, "{passed:?}");
    assert!(passed.batches_sent * 4 < passed.relayed, "whole runs go on: {passed:?}");
    let by_session: u64 = [A_TO_B, B_TO_C].iter().filter_map(|&session| b.engine.relayed(session)).sum();
    assert!(by_session >= passed.relayed, "each is counted where it goes: {by_session} and {passed:?}");
    assert_eq!(got.forged + got.replayed + got.unknown_records, 0, "{got:?}");
    assert_eq!(sent.relay_refused, 0, "{sent:?}");
}

#[test]
fn neighbours_are_reached_beside_those_behind_them() {
    let Some(lab) = Lab::row("beside") else { return };
    let _ends = ends(&lab);
    let [at_a, at_b, at_c] = [Side::A, Side::B, Side::C].map(|side| udp(&lab, side));
    for (from, to, side) in
        [(&at_a, &at_b, Side::B), (&at_a, &at_c, Side::C), (&at_c, &at_a, Side::A), (&at_b, &at_a, Side::A)]
    {
        from.send_to(b"hello", (inner(side), 7000)).unwrap();
        let mut buffer = [0; 100];
        assert_eq!(to.recv(&mut buffer).unwrap(), 5);
    }
}

#[test]
fn a_probe_through_a_relay_says_by_whom_it_has_come() {
    let Some(lab) = Lab::row("rprobe") else { return };
    let [a, _b, c] = ends(&lab);
    assert!(a.engine.probe(A_TO_C, &Carrier::Relay(name(Side::B)), b"far away", 1400));
    let Ok(Event::Probe { peer, from, len, .. }) = c.events.recv_timeout(Duration::from_secs(5)) else {
        panic!("no probe came")
    };
    assert_eq!((peer, from, len), (name(Side::A), Source::Relay(name(Side::B)), 1400));
    assert!(c.events.try_recv().is_err(), "the far end is not taken to have moved");
    assert!(!a.engine.probe(A_TO_C, &Carrier::Relay(name(Side::C)), b"no such way", 100));
}

fn frame(relay: Relay) -> Vec<u8> {
    let Relay { queue, .. } = relay;
    let record = Header {
        kind: Kind::Packet,
        flags: Flags::NONE,
        queue,
        epoch: 0,
        receiver: A_TO_C,
        confirmed: 0,
        counter: 7,
    };
    [&relay.to_bytes()[..], &record.to_bytes(), &[0xaa; 60]].concat()
}

fn from_a_to(to: PeerName) -> Relay {
    Relay { hops_left: 3, queue: 0, receiver: A_TO_B, to, from: name(Side::A) }
}

/// B alone, and sockets where the engines of A and C would be.
fn b_among_sockets(lab: &Lab) -> (End, UdpSocket, UdpSocket) {
    let beyond = PeerName::from_bits([2, 0, 0, 0, 0, 9]);
    let mut behind_c = neighbour(Side::B, Side::C);
    behind_c.peer = beyond;
    behind_c.ranges.clear();
    behind_c.send_with = None;
    behind_c.hop = Some(Hop::Next(name(Side::C)));
    let peers = vec![neighbour(Side::B, Side::A), neighbour(Side::B, Side::C), behind_c];
    let b = start(lab, Side::B, &[Side::A, Side::C], peers);
    let at = |side| {
        let socket = lab.inside(side, || UdpSocket::bind((lab.outer(side), PORT)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    };
    (b, at(Side::A), at(Side::C))
}

#[test]
fn a_frame_goes_on_with_one_hop_less_and_the_next_nodes_index() {
    let Some(lab) = Lab::row("frame") else { return };
    let (_b, at_a, at_c) = b_among_sockets(&lab);
    let beyond = PeerName::from_bits([2, 0, 0, 0, 0, 9]);
    for to in [name(Side::C), beyond] {
        let before = from_a_to(to);
        at_a.send_to(&frame(before), (lab.outer(Side::B), PORT)).unwrap();
        let mut buffer = [0; 200];
        let len = at_c.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], frame(Relay { hops_left: 2, receiver: B_TO_C, ..before }), "to {to}");
    }
}

#[test]
fn frames_that_may_not_go_on_are_dropped_and_counted() {
    let Some(lab) = Lab::row("noframe") else { return };
    let (b, at_a, at_c) = b_among_sockets(&lab);
    let to_c = from_a_to(name(Side::C));
    let stranger = lab.inside(Side::A, || UdpSocket::bind((lab.outer(Side::A), 0)).unwrap());
    let count = || b.engine.counters();
    let sends = |socket: &UdpSocket, frame: &[u8]| {
        socket.send_to(frame, (lab.outer(Side::B), PORT)).unwrap();
    };
    sends(&stranger, &frame(to_c));
    eventually("one from elsewhere is refused", || count().relay_refused == 1);
    sends(&at_a, &frame(Relay { receiver: 0x7777, ..to_c }));
    eventually("one of no session is refused", || count().relay_refused == 2);
    sends(&at_a, &frame(Relay { receiver: B_TO_C, ..to_c }));
    eventually("one of another's session is refused", || count().relay_refused == 3);
    sends(&at_a, &frame(to_c)[..RELAY_LEN + HEADER_LEN]);
    eventually("one without a record is refused", || count().relay_refused == 4);
    sends(&at_a, &frame(Relay { hops_left: 0, ..to_c }));
    eventually("one without a hop left is dropped", || count().relay_loops == 1);
    sends(&at_a, &frame(from_a_to(name(Side::A))));
    eventually("one that would go back is dropped", || count().relay_loops == 2);
    sends(&at_a, &frame(Relay { from: name(Side::C), ..to_c }));
    eventually("one to who has sealed it is dropped", || count().relay_loops == 3);
    sends(&at_a, &frame(from_a_to(PeerName::from_bits([2, 0, 0, 0, 0, 8]))));
    eventually("one to nobody known is dropped", || count().relay_no_way == 1);
    sends(&at_a, &frame(from_a_to(name(Side::B))));
    eventually("one for this node is opened, and not believed", || count().unknown_records == 1);
    assert_eq!(count().relayed, 0);
    at_c.set_nonblocking(true).unwrap();
    assert!(at_c.recv(&mut [0; 200]).is_err(), "nothing has gone on");
}

#[test]
fn what_the_node_in_between_reads_says_nothing_and_what_it_changes_or_repeats_is_dropped_and_counted() {
    let Some(lab) = Lab::row("meddle") else { return };
    let behind = |of, side| vec![neighbour(of, Side::B), behind_b(of, side)];
    let _a = start(&lab, Side::A, &[Side::B, Side::C], behind(Side::A, Side::C));
    let c = start(&lab, Side::C, &[Side::A, Side::B], behind(Side::C, Side::A));
    let meddler = lab.inside(Side::B, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
    meddler.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let [at_a, at_c] = [Side::A, Side::C].map(|side| udp(&lab, side));
    at_a.send_to(b"a secret of the pods", (inner(Side::C), 7000)).unwrap();

    let mut frame = [0; 2000];
    let len = meddler.recv(&mut frame).unwrap();
    let frame = &mut frame[..len];
    assert_eq!(Relay::parse(frame).unwrap().to, name(Side::C));
    assert!(!frame.windows(6).any(|window| window == b"secret"), "it can be read");
    Relay::send_on(frame, B_TO_C).unwrap();
    let on = (lab.outer(Side::C), PORT);
    let count = || c.engine.counters();
    for (number, place) in [(1, RELAY_LEN + HEADER_LEN), (2, len - 1)] {
        let mut changed = frame.to_vec();
        changed[place] ^= 1;
        meddler.send_to(&changed, on).unwrap();
        eventually("what was changed is dropped and counted", || count().forged == number);
    }
    assert_eq!(count().records_opened, 0);
    meddler.send_to(frame, on).unwrap();
    let mut got = [0; 100];
    let len = at_c.recv(&mut got).unwrap();
    assert_eq!(&got[..len], b"a secret of the pods");
    meddler.send_to(frame, on).unwrap();
    eventually("what is repeated is dropped and counted", || count().replayed == 1);
    assert_eq!(count().records_opened, 1);
}
