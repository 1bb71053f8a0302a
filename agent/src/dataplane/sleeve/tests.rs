//! The engine in real namespaces. Needs root; skipped without, except where CI says that it must run.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU8;
use std::os::fd::AsFd as _;
use std::sync::mpsc;
use std::time::Duration;

use weave_proto::Cidr;
use weave_sleeve::inner::Inner;
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::session::{Config, REKEY_AFTER};
use weave_sleeve::vnet::{Gso, VnetHeader};

use super::*;

pub(super) mod allocations;
mod lab;
mod quic;
mod relay;

use lab::{Lab, Side, eventually};

const RECORD_LEN: usize = 1472;

fn inner(side: Side) -> Ipv4Addr {
    Ipv4Addr::new(10, 32, 0, side.digit())
}

struct End {
    engine: Engine,
    events: mpsc::Receiver<Event>,
}

fn name(side: Side) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, side.digit()])
}

fn config(side: Side, remote_index: u32, record_len: usize) -> Config {
    let role = if side == Side::A { Role::Initiator } else { Role::Responder };
    let one = NonZeroU8::MIN;
    Config { role, suite: Suite::Aes128Gcm, send_queues: one, receive_queues: one, remote_index, record_len }
}

fn peer_of(side: Side, session: u32, record_len: usize) -> Peer {
    let ranges = vec![Cidr::host(inner(side.other()).into())];
    let send_with = Some(SendWith { session, carrier: Carrier::Udp });
    Peer { peer: name(side.other()), ranges, send_with, hop: None, record_len }
}

impl End {
    fn start(lab: &Lab, side: Side, queues: u8) -> Self {
        let (tell, events) = mpsc::channel();
        let engine = lab.inside(side, || {
            let tun = Tun::open("weave-tun", queues).unwrap();
            let listen = SocketAddr::new(lab.outer(side).into(), PORT);
            Engine::start(name(side), tun, listen, Box::new(move |event| drop(tell.send(event)))).unwrap()
        });
        lab.run(side, &format!("ip link set weave-tun mtu {} up", RECORD_LEN - 32));
        lab.run(side, &format!("ip addr add {}/32 dev weave-tun", inner(side)));
        lab.run(side, &format!("ip route add {} dev weave-tun", inner(side.other())));
        let end = Self { engine, events };
        end.open(lab, side, 1, &[9; 32]);
        end.engine.set_peers(vec![peer_of(side, 1, RECORD_LEN)]);
        end
    }

    fn open(&self, lab: &Lab, side: Side, index: u32, secret: &[u8]) {
        let remote = SocketAddr::new(lab.outer(side.other()).into(), PORT);
        let config = config(side, index, RECORD_LEN);
        let settings = SessionSettings { index, peer: name(side.other()), remote, config };
        self.engine.open_session(settings, secret, Instant::now());
    }
}

fn two_ends(lab: &Lab) -> (End, End) {
    (End::start(lab, Side::A, 1), End::start(lab, Side::B, 1))
}

fn udp(lab: &Lab, side: Side) -> UdpSocket {
    let socket = lab.inside(side, || UdpSocket::bind((inner(side), 7000)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// Whether a datagram crosses from A to B.
fn crosses(a: &UdpSocket, b: &UdpSocket, content: &[u8]) -> bool {
    a.send_to(content, (inner(Side::B), 7000)).is_ok() && {
        let mut buffer = [0; 2000];
        matches!(b.recv(&mut buffer), Ok(len) if &buffer[..len] == content)
    }
}

/// Sends `len` bytes by TCP from A to B and compares what arrives.
fn bulk(lab: &Lab, len: usize) {
    bulk_to(lab, Side::B, len);
}

/// Sends `len` bytes by TCP from A to `far` and compares what arrives.
fn bulk_to(lab: &Lab, far: Side, len: usize) {
    let listener = lab.inside(far, || TcpListener::bind((inner(far), 7001)).unwrap());
    let mut to = lab.inside(Side::A, || TcpStream::connect((inner(far), 7001)).unwrap());
    let (mut from, _) = listener.accept().unwrap();
    let sent: Vec<u8> = (0..len).map(|at| (at ^ at >> 9) as u8).collect();
    let expected = sent.clone();
    let sender = std::thread::spawn(move || to.write_all(&sent).unwrap());
    from.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut got = Vec::new();
    from.read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert!(got == expected, "what arrived is not what was sent");
}

#[test]
fn a_stream_crosses_in_super_packets() {
    let Some(lab) = Lab::new("bulk") else { return };
    let (a, b) = two_ends(&lab);
    bulk(&lab, 16 << 20);
    let (sent, got) = (a.engine.counters(), b.engine.counters());
    assert_eq!(got.forged + got.replayed + got.malformed + got.foreign_source, 0, "{got:?}");
    assert!(got.records_opened >= (16 << 20) / RECORD_LEN as u64);
    assert!(sent.batches_sent * 10 < got.records_opened, "sends are segmented: {sent:?}");
    assert!(got.device_writes * 10 < got.records_opened, "pieces are joined: {got:?}");
}

#[test]
fn several_queues_keep_a_stream_whole() {
    let Some(lab) = Lab::new("queues") else { return };
    let (_a, b) = (End::start(&lab, Side::A, 4), End::start(&lab, Side::B, 4));
    bulk(&lab, 4 << 20);
    assert_eq!(b.engine.counters().forged, 0);
}

#[test]
fn a_kernel_that_refuses_to_segment_is_done_without() {
    for (error, for_good) in [(libc::EIO, true), (libc::EINVAL, true), (libc::EMSGSIZE, false)] {
        let Some(lab) = Lab::new(&format!("e{error}")) else { return };
        let (a, b) = two_ends(&lab);
        let socket = &a.engine.workers[0].socket;
        socket.fault.store(error, Ordering::Relaxed);
        bulk(&lab, 1 << 20);
        assert!(a.engine.counters().unsegmented_batches > 0, "error {error}");
        assert_eq!(socket.segments(), !for_good, "error {error}");
        assert_eq!(b.engine.counters().forged, 0);
    }
}

#[test]
fn a_path_that_becomes_narrower_is_noticed_and_obeyed() {
    let Some(lab) = Lab::new("emsgsize") else { return };
    let (a, b) = two_ends(&lab);
    let (from, to) = (udp(&lab, Side::A), udp(&lab, Side::B));
    assert!(crosses(&from, &to, &[1; 1300]));
    lab.run(Side::A, "ip link set veth0 mtu 1300");
    from.send_to(&[2; 1300], (inner(Side::B), 7000)).unwrap();
    eventually("the longer record is refused", || a.engine.counters().too_long_sent > 0);
    assert!(crosses(&from, &to, &[3; 100]), "shorter ones pass");
    a.engine.set_peers(vec![peer_of(Side::A, 1, 1272)]);
    b.engine.set_peers(vec![peer_of(Side::B, 1, 1272)]);
    bulk(&lab, 1 << 20);
}

#[test]
fn a_super_packet_that_the_kernel_does_not_know_is_cut_for_it() {
    let Some(lab) = Lab::new("einval") else { return };
    let tun = lab.inside(Side::A, || Tun::open("weave-tun", 1).unwrap());
    lab.run(Side::A, "ip link set weave-tun up");
    lab.run(Side::A, "ip addr add 10.32.0.1/32 dev weave-tun");
    lab.run(Side::A, "ip route add 10.32.0.2 dev weave-tun");
    let socket = udp(&lab, Side::A);
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 32, 0, 2, 10, 32, 0, 1];
    packet.extend_from_slice(&[0x1b, 0x58, 0x1b, 0x58, 0, 0, 0, 0]);
    packet.extend((0..2500_u32).map(|at| at as u8));
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    Inner::parse(&packet).unwrap().complete(&mut packet);
    let vnet = VnetHeader {
        needs_csum: true,
        gso: Gso::Udp,
        header_len: 28,
        gso_size: 1000,
        csum_start: 20,
        csum_offset: 6,
    };
    let mut frame = [&vnet.to_bytes()[..], &packet].concat();
    let count = Counters::default();
    let joins = intake::cut_for(&tun.queues[0], &count, &mut frame);
    assert!(joins.tcp && !joins.udp, "no more of this kind are joined");
    assert_eq!((count.device_splits.now(), count.device_writes.now()), (1, 3));
    let mut buffer = [0; 2000];
    let lens = [socket.recv(&mut buffer), socket.recv(&mut buffer), socket.recv(&mut buffer)];
    assert_eq!(lens.map(Result::unwrap), [1000, 1000, 500]);
}

#[test]
fn a_peer_whose_address_changes_is_followed() {
    let Some(lab) = Lab::new("roam") else { return };
    let (a, _b) = two_ends(&lab);
    let (from, to) = (udp(&lab, Side::A), udp(&lab, Side::B));
    assert!(crosses(&from, &to, b"before"));
    // B sends from another port from now on, as behind a NAT that was restarted.
    lab.run(Side::B, "nft add table ip nat");
    lab.run(Side::B, "nft add chain ip nat out { type nat hook postrouting priority 100 ; }");
    lab.run(Side::B, "nft add rule ip nat out udp sport 6785 masquerade to :40000");
    lab.run(Side::B, "conntrack -F");
    to.send_to(b"hello", (inner(Side::A), 7000)).unwrap();
    let moved = a.events.recv_timeout(Duration::from_secs(5)).unwrap();
    let expected = SocketAddr::new(lab.outer(Side::B).into(), 40_000);
    assert_eq!(moved, Event::Roamed { peer: name(Side::B), to: expected });
    assert!(crosses(&from, &to, b"after"), "and the answer goes there");
}

#[test]
fn a_second_session_takes_over_without_a_gap() {
    let Some(lab) = Lab::new("sessions") else { return };
    let (a, b) = two_ends(&lab);
    let (from, to) = (udp(&lab, Side::A), udp(&lab, Side::B));
    assert!(crosses(&from, &to, b"first"));
    for (end, side) in [(&a, Side::A), (&b, Side::B)] {
        end.open(&lab, side, 2, &[8; 32]);
    }
    assert!(crosses(&from, &to, b"still the first"));
    a.engine.set_peers(vec![peer_of(Side::A, 2, RECORD_LEN)]);
    assert!(crosses(&from, &to, b"second one way, first the other"));
    b.engine.set_peers(vec![peer_of(Side::B, 2, RECORD_LEN)]);
    a.engine.close_session(1);
    b.engine.close_session(1);
    assert!(crosses(&from, &to, b"second"));
    assert_eq!(b.engine.counters().unknown_records, 0);
}

#[test]
fn epochs_follow_each_other_while_packets_flow() {
    let Some(lab) = Lab::new("epochs") else { return };
    let (a, b) = two_ends(&lab);
    let (from, to) = (udp(&lab, Side::A), udp(&lab, Side::B));
    let mut now = Instant::now();
    for round in 0..5_u8 {
        assert!(crosses(&from, &to, &[round]));
        to.send_to(&[round], (inner(Side::A), 7000)).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(from.recv(&mut buffer).unwrap(), 1);
        assert!(crosses(&from, &to, b"and this confirms the answer"));
        now += REKEY_AFTER;
        for end in [&a, &b] {
            // The confirmation is taken in just after the packet that carried it was delivered.
            let epoch = || end.engine.shared.control().sending_epoch(1).unwrap();
            let before = epoch();
            eventually("the next epoch", || {
                end.engine.maintain(now);
                epoch() > before
            });
        }
    }
    let counters = b.engine.counters();
    assert_eq!(counters.forged + counters.unknown_records, 0, "{counters:?}");
    assert_eq!(a.engine.shared.control().sending_epoch(1), Some(5));
}

#[test]
fn a_source_that_is_not_the_peers_is_refused() {
    let Some(lab) = Lab::new("source") else { return };
    let (_a, b) = two_ends(&lab);
    lab.run(Side::A, "ip addr add 10.99.0.1/32 dev lo");
    let forger = lab.inside(Side::A, || UdpSocket::bind("10.99.0.1:7000").unwrap());
    forger.send_to(b"let me in", (inner(Side::B), 7000)).unwrap();
    eventually("it is counted", || b.engine.counters().foreign_source == 1);
}

#[test]
fn noise_and_replays_are_dropped_and_counted() {
    let Some(lab) = Lab::new("noise") else { return };
    let (_a, b) = two_ends(&lab);
    let stranger = lab.inside(Side::A, || UdpSocket::bind((lab.outer(Side::A), 0)).unwrap());
    stranger.send_to(&[0x10; 100], (lab.outer(Side::B), PORT)).unwrap();
    eventually("noise is counted", || b.engine.counters().unknown_records == 1);
    // A true header of the session in front of noise.
    let mut forged = vec![0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5];
    forged.resize(100, 0xaa);
    stranger.send_to(&forged, (lab.outer(Side::B), PORT)).unwrap();
    eventually("a forgery is counted", || b.engine.counters().forged == 1);
    assert!(b.events.try_recv().is_err(), "and moves nobody's address");
}

#[test]
fn replayed_and_changed_records_are_dropped_and_counted() {
    let Some(lab) = Lab::new("replay") else { return };
    let (a, b) = two_ends(&lab);
    // A sends its records to a socket of the test instead of to B's engine.
    let between = lab.inside(Side::B, || UdpSocket::bind((lab.outer(Side::B), 0)).unwrap());
    between.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let remote = between.local_addr().unwrap();
    let settings =
        SessionSettings { index: 2, peer: name(Side::B), remote, config: config(Side::A, 2, RECORD_LEN) };
    a.engine.open_session(settings, &[5; 32], Instant::now());
    b.open(&lab, Side::B, 2, &[5; 32]);
    a.engine.set_peers(vec![peer_of(Side::A, 2, RECORD_LEN)]);
    let (from, to) = (udp(&lab, Side::A), udp(&lab, Side::B));
    from.send_to(b"once only", (inner(Side::B), 7000)).unwrap();
    let mut record = [0; 2000];
    let len = between.recv(&mut record).unwrap();
    let pass_on = |record: &[u8]| {
        between.send_to(record, (lab.outer(Side::B), PORT)).unwrap();
    };
    for at in 0..len {
        let mut changed = record;
        changed[at] ^= 0x10;
        pass_on(&changed[..len]);
        pass_on(&record[..at]);
    }
    let dropped = || {
        let count = b.engine.counters();
        count.forged + count.unknown_records + count.relay_refused
    };
    eventually("every changed or shortened record is dropped", || dropped() == 2 * len as u64);
    pass_on(&record[..len]);
    let mut buffer = [0; 100];
    assert_eq!(to.recv(&mut buffer).unwrap(), 9, "and none of them stands in the true one's way");
    for replay in 1..=3 {
        pass_on(&record[..len]);
        eventually("a replay is counted", || b.engine.counters().replayed == replay);
    }
    assert_eq!(b.engine.counters().device_writes, 1);
}

#[test]
fn a_kernel_that_does_not_leave_udp_uncut_is_done_without() {
    let Some(lab) = Lab::new("nouso") else { return };
    let (_a, b) = two_ends(&lab);
    // What such a kernel's device is like.
    lab.run(Side::A, "ethtool -K weave-tun tx-udp-segmentation off");
    let (from, to) = (udp(&lab, Side::A), udp(&lab, Side::B));
    crate::dataplane::sys::set_option(from.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1000).unwrap();
    from.send_to(&[7; 9500], (inner(Side::B), 7000)).unwrap();
    let mut buffer = [0; 2000];
    let lens: Vec<_> = (0..10).map(|_| to.recv(&mut buffer).unwrap()).collect();
    assert_eq!(lens, [[1000; 9].as_slice(), &[500]].concat());
    assert_eq!(b.engine.counters().malformed, 0);
}

#[test]
fn a_probe_tells_how_long_it_was() {
    let Some(lab) = Lab::new("probe") else { return };
    let (a, b) = two_ends(&lab);
    assert!(a.engine.probe(1, &Carrier::Udp, b"are you there", 1400));
    let Ok(Event::Probe { peer, len, content, .. }) = b.events.recv_timeout(Duration::from_secs(5)) else {
        panic!("no probe came")
    };
    assert_eq!((peer, len), (name(Side::A), 1400));
    assert!(content.starts_with(b"are you there"));
    assert!(!a.engine.probe(1, &Carrier::Udp, b"too long for the path", 2000));
    assert!(!a.engine.probe(77, &Carrier::Udp, b"no such session", 100));
}

#[test]
fn the_device_outlives_the_engine_and_its_loss_is_told() {
    let Some(lab) = Lab::new("device") else { return };
    let end = End::start(&lab, Side::A, 2);
    lab.run(Side::A, "ip link del weave-tun");
    assert_eq!(end.events.recv_timeout(Duration::from_secs(5)), Ok(Event::DeviceLost));
    end.engine.shutdown();
    let end = End::start(&lab, Side::A, 2);
    end.engine.shutdown();
    lab.run(Side::A, "ip link show weave-tun");
}
