//! The steps that both benches measure.

use std::hint::black_box;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Instant;

use weave_proto::{Cidr, PeerName};
use weave_sleeve::cut::Packet;
use weave_sleeve::ecn::Ecn;
use weave_sleeve::inbox::{Deliver, Inbox, Joins, Record};
use weave_sleeve::inner::Inner;
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::outbox::{Batch, Outbox, Road, Transmit};
use weave_sleeve::ranges::Ranges;
use weave_sleeve::relay::{MAX_HOPS, Relay};
use weave_sleeve::replay::ReplayWindow;
use weave_sleeve::session::{Config, OpenEpoch, Output, SealEpoch, Session};
use weave_sleeve::vnet::{Gso, VNET_LEN, VnetHeader};

/// Segments of the super-packet: as many as one send takes.
const SEGMENTS: usize = 44;
/// Payload bytes of a segment.
const PAYLOAD: u16 = 1388;
/// Bytes of the inner headers: IPv4, and TCP with time stamps.
const HEADERS: u16 = 52;
/// Bytes of a full record.
const RECORD_LEN: usize = 1472;

/// Something that is done often.
pub(crate) struct Step {
    /// What it is, in a few words.
    pub(crate) name: &'static str,
    /// How many of its name one [`Step::act`] does.
    pub(crate) times: usize,
    /// Payload bytes that are moved; 0 if that is not the point.
    pub(crate) bytes: usize,
    /// Does it.
    pub(crate) act: Box<dyn FnMut()>,
}

struct Keep(Vec<(Vec<u8>, usize)>);

impl Transmit for Keep {
    fn transmit(&mut self, batches: &[Batch<'_>]) {
        self.0.extend(batches.iter().map(|batch| (batch.datagrams.to_vec(), batch.segment)));
    }
}

struct Nowhere;

impl Transmit for Nowhere {
    fn transmit(&mut self, batches: &[Batch<'_>]) {
        black_box(batches);
    }
}

impl Deliver for Nowhere {
    fn admits(&mut self, source: IpAddr) -> bool {
        black_box(source).is_ipv4()
    }

    fn deliver(&mut self, frame: &mut [u8]) {
        black_box(frame);
    }
}

fn session(role: Role, suite: Suite) -> Session {
    let one = NonZeroU8::MIN;
    let config = Config {
        role,
        suite,
        send_queues: one,
        receive_queues: one,
        remote_index: 1,
        record_len: RECORD_LEN,
    };
    Session::new(config, &[1; 32], Instant::now())
}

fn sealing(suite: Suite) -> SealEpoch {
    let mut session = session(Role::Initiator, suite);
    std::iter::from_fn(|| session.poll_output())
        .find_map(|output| if let Output::Seal(epoch) = output { Some(epoch) } else { None })
        .unwrap()
}

fn opening(suite: Suite) -> OpenEpoch {
    let mut session = session(Role::Responder, suite);
    std::iter::from_fn(|| session.poll_output())
        .find_map(|output| if let Output::Open(epoch) = output { Some(epoch) } else { None })
        .unwrap()
}

fn road(epoch: &SealEpoch) -> Road<'_> {
    Road { lane: &epoch.lanes[0], confirmed: 0, datagram_len: RECORD_LEN, envelope: &[] }
}

/// A TCP packet of so many segments as the device hands it out, with the virtio header.
fn frame(segments: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, 2, 10, 32, 0, 3];
    packet.extend_from_slice(&[0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 1, 0, 0, 0, 0, 0]);
    packet.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.resize(usize::from(HEADERS) + segments * usize::from(PAYLOAD), 0x5a);
    let len = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    Inner::parse(&packet).unwrap().complete(&mut packet);
    let gso = if segments > 1 { Gso::TcpV4 } else { Gso::None };
    let gso_size = if segments > 1 { PAYLOAD } else { 0 };
    let vnet =
        VnetHeader { needs_csum: true, gso, header_len: HEADERS, gso_size, csum_start: 20, csum_offset: 16 };
    [&vnet.to_bytes()[..], &packet].concat()
}

fn cut_and_seal(name: &'static str, suite: Suite) -> Step {
    let (epoch, original) = (sealing(suite), frame(SEGMENTS));
    let (mut outbox, mut work) = (Outbox::new(), original.clone());
    let act = move || {
        // Cutting writes over the headers.
        let head = VNET_LEN + usize::from(HEADERS);
        work[..head].copy_from_slice(&original[..head]);
        outbox.push(Packet::parse(&mut work).unwrap(), &road(&epoch), &mut Nowhere).unwrap();
        outbox.flush(&road(&epoch), &mut Nowhere).unwrap();
    };
    Step { name, times: SEGMENTS, bytes: SEGMENTS * usize::from(PAYLOAD), act: Box::new(act) }
}

fn open_and_join(name: &'static str, suite: Suite) -> Step {
    let (epoch, mut sent) = (sealing(suite), Keep(Vec::new()));
    let mut outbox = Outbox::new();
    outbox.push(Packet::parse(&mut frame(SEGMENTS)).unwrap(), &road(&epoch), &mut sent).unwrap();
    outbox.flush(&road(&epoch), &mut sent).unwrap();
    let (keys, mut inbox) = (opening(suite), Inbox::new(Joins { tcp: true, udp: true }));
    let act = move || {
        for (datagrams, segment) in &sent.0 {
            for record in datagrams.chunks(*segment) {
                let record = Record::parse(record, Ecn::NotEct).unwrap();
                inbox.open(&record, &keys.keys[0], &mut Nowhere).unwrap();
            }
        }
        inbox.flush(&mut Nowhere);
    };
    Step { name, times: SEGMENTS, bytes: SEGMENTS * usize::from(PAYLOAD), act: Box::new(act) }
}

fn seal_alone(name: &'static str) -> Step {
    let (plain, mut sealed) = (vec![0x5a; usize::from(HEADERS + PAYLOAD)], vec![0; RECORD_LEN - 16]);
    let keys = opening(Suite::Aes128Gcm);
    let mut counter = 0;
    let act = move || {
        counter += 1;
        keys.keys[0].seal(counter, &[0; 16], black_box(&plain), &mut sealed);
    };
    Step { name, times: 1, bytes: usize::from(PAYLOAD), act: Box::new(act) }
}

fn acknowledgement(name: &'static str, alone: bool) -> Step {
    let (epoch, mut frame, mut outbox) = (sealing(Suite::Aes128Gcm), frame(0), Outbox::new());
    let act = move || {
        outbox.push(Packet::parse(&mut frame).unwrap(), &road(&epoch), &mut Nowhere).unwrap();
        if alone {
            outbox.flush(&road(&epoch), &mut Nowhere).unwrap();
        }
    };
    Step { name, times: 1, bytes: 0, act: Box::new(act) }
}

fn replay(name: &'static str) -> Step {
    let (mut window, mut counter) = (ReplayWindow::default(), 0);
    let act = move || {
        black_box(window.is_fresh(counter));
        black_box(window.take(counter)).unwrap();
        counter += 1;
    };
    Step { name, times: 1, bytes: 0, act: Box::new(act) }
}

fn owner(name: &'static str) -> Step {
    let blocks = (0_u32..1024).map(|block| {
        let first = IpAddr::from((0x0a20_0000 + block * 1024).to_be_bytes());
        (Cidr::new(first, 22).unwrap(), block % 100)
    });
    let (ranges, mut at) = (Ranges::new(blocks), 0_u32);
    let act = move || {
        at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        black_box(ranges.owner(IpAddr::from((0x0a20_0000 | at >> 12).to_be_bytes())));
    };
    Step { name, times: 1, bytes: 0, act: Box::new(act) }
}

fn hop(name: &'static str) -> Step {
    let peer = |number| PeerName::from_bits([2, 0, 0, 0, 0, number]);
    let relay = Relay { hops_left: MAX_HOPS, queue: 0, receiver: 1, to: peer(2), from: peer(1) };
    let (epoch, mut sent) = (sealing(Suite::Aes128Gcm), Keep(Vec::new()));
    let envelope = relay.to_bytes();
    let road = Road { envelope: &envelope, datagram_len: RECORD_LEN, ..road(&epoch) };
    let mut outbox = Outbox::new();
    outbox.push(Packet::parse(&mut frame(1)).unwrap(), &road, &mut sent).unwrap();
    outbox.flush(&road, &mut sent).unwrap();
    let original = sent.0.remove(0).0;
    let mut work = original.clone();
    let act = move || {
        work[..envelope.len()].copy_from_slice(&original[..envelope.len()]);
        black_box(Relay::parse(&work)).unwrap();
        Relay::send_on(&mut work, 7).unwrap();
    };
    Step { name, times: 1, bytes: 0, act: Box::new(act) }
}

fn keys(name: &'static str) -> Step {
    let act = || {
        black_box(session(Role::Initiator, Suite::Aes128Gcm));
    };
    Step { name, times: 1, bytes: 0, act: Box::new(act) }
}

/// All of them.
pub(crate) fn all() -> Vec<Step> {
    vec![
        cut_and_seal("AES-128: cut and seal a full record", Suite::Aes128Gcm),
        open_and_join("AES-128: open and join a full record", Suite::Aes128Gcm),
        seal_alone("AES-128: the cipher alone, full record"),
        cut_and_seal("AES-256: cut and seal a full record", Suite::Aes256Gcm),
        open_and_join("AES-256: open and join a full record", Suite::Aes256Gcm),
        cut_and_seal("ChaCha20: cut and seal a full record", Suite::ChaCha20Poly1305),
        open_and_join("ChaCha20: open and join a full record", Suite::ChaCha20Poly1305),
        acknowledgement("an acknowledgement, sealed alone", true),
        acknowledgement("an acknowledgement, in a bundle", false),
        replay("replay window, ask and take"),
        owner("owner of an address among 1024 ranges"),
        hop("a relay's hop, a frame"),
        keys("a session's three epochs of keys"),
    ]
}
