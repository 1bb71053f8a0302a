//! What a record costs, step by step: `cargo bench -p weave-sleeve`. No framework: each step is repeated, the best of
//! several rounds is shown (the others were disturbed), and only figures of one run are to be compared.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints, and stops at the first surprise"
)]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

use std::hint::black_box;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Instant;

use weave_proto::Cidr;
use weave_sleeve::cut::Packet;
use weave_sleeve::ecn::Ecn;
use weave_sleeve::inbox::{Deliver, Inbox, Joins, Record};
use weave_sleeve::inner::Inner;
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::outbox::{Outbox, Road, Transmit};
use weave_sleeve::ranges::Ranges;
use weave_sleeve::replay::ReplayWindow;
use weave_sleeve::session::{Config, Output, SealEpoch, Session};
use weave_sleeve::vnet::{Gso, VnetHeader};

const ROUNDS: usize = 9;
const SUPER_PAYLOAD: usize = 44 * 1388;

struct Keep(Vec<(Vec<u8>, usize)>);

impl Transmit for Keep {
    fn transmit(&mut self, datagrams: &[u8], segment: usize, _: Ecn) {
        self.0.push((datagrams.to_vec(), segment));
    }
}

struct Nowhere;

impl Transmit for Nowhere {
    fn transmit(&mut self, datagrams: &[u8], _: usize, _: Ecn) {
        black_box(datagrams);
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

fn measure(name: &str, times: usize, bytes: usize, mut step: impl FnMut()) {
    let round = |step: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..times).for_each(|_| step());
        start.elapsed().as_secs_f64() / times as f64
    };
    let best = (0..ROUNDS).map(|_| round(&mut step)).fold(f64::MAX, f64::min);
    let rate = if bytes == 0 { String::new() } else { format!("{:7.2} GB/s", bytes as f64 / best / 1e9) };
    println!("{name:44} {:10.1} ns {rate}", best * 1e9);
}

fn config(role: Role, suite: Suite) -> Config {
    let one = NonZeroU8::MIN;
    Config { role, suite, send_queues: one, receive_queues: one, remote_index: 1, record_len: 1472 }
}

fn sealing(suite: Suite) -> SealEpoch {
    let mut session = Session::new(config(Role::Initiator, suite), &[1; 32], Instant::now());
    std::iter::from_fn(|| session.poll_output())
        .find_map(|output| if let Output::Seal(epoch) = output { Some(epoch) } else { None })
        .unwrap()
}

fn super_packet() -> (VnetHeader, Vec<u8>) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 32, 0, 2, 10, 32, 0, 3];
    packet.extend_from_slice(&[0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 1, 0, 0, 0, 0, 0]);
    packet.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.resize(52 + SUPER_PAYLOAD, 0x5a);
    let len = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    Inner::parse(&packet).unwrap().complete(&mut packet);
    let vnet = VnetHeader {
        needs_csum: true,
        gso: Gso::TcpV4,
        header_len: 52,
        gso_size: 1388,
        csum_start: 20,
        csum_offset: 16,
    };
    (vnet, packet)
}

fn super_packets(suite: Suite) {
    let epoch = sealing(suite);
    let road = Road { lane: &epoch.lanes[0], confirmed: 0, datagram_len: 1472, envelope: &[] };
    let (vnet, packet) = super_packet();
    let mut outbox = Outbox::new();
    let frame = [&vnet.to_bytes()[..], &packet].concat();
    let mut work = frame.clone();
    measure(&format!("{suite:?}: cut and seal 61 KB"), 400, packet.len(), || {
        work[..62].copy_from_slice(&frame[..62]);
        outbox.push(Packet::parse(&mut work).unwrap(), &road, &mut Nowhere).unwrap();
        outbox.flush(&road, &mut Nowhere).unwrap();
    });

    let mut sent = Keep(Vec::new());
    work.copy_from_slice(&frame);
    outbox.push(Packet::parse(&mut work).unwrap(), &road, &mut sent).unwrap();
    outbox.flush(&road, &mut sent).unwrap();
    let mut receiver = Session::new(config(Role::Responder, suite), &[1; 32], Instant::now());
    let Some(Output::Open(keys)) = receiver.poll_output() else { return };
    let mut inbox = Inbox::new(Joins { tcp: true, udp: true });
    measure(&format!("{suite:?}: open and join 61 KB"), 400, packet.len(), || {
        for (datagrams, segment) in &sent.0 {
            for record in datagrams.chunks(*segment) {
                let record = Record::parse(record, Ecn::NotEct).unwrap();
                inbox.open(&record, &keys.keys[0], &mut Nowhere).unwrap();
            }
        }
        inbox.flush(&mut Nowhere);
    });
}

fn small_packets() {
    let epoch = sealing(Suite::Aes128Gcm);
    let road = Road { lane: &epoch.lanes[0], confirmed: 0, datagram_len: 1472, envelope: &[] };
    let (_, mut packet) = super_packet();
    packet.truncate(52);
    packet[2..4].copy_from_slice(&[0, 52]);
    let vnet = VnetHeader { needs_csum: true, csum_start: 20, csum_offset: 16, ..VnetHeader::default() };
    let mut outbox = Outbox::new();
    let mut frame = [&vnet.to_bytes()[..], &packet].concat();
    measure("an acknowledgement, sealed alone", 20_000, 0, || {
        outbox.push(Packet::parse(&mut frame).unwrap(), &road, &mut Nowhere).unwrap();
        outbox.flush(&road, &mut Nowhere).unwrap();
    });
    measure("an acknowledgement, in a bundle", 20_000, 0, || {
        outbox.push(Packet::parse(&mut frame).unwrap(), &road, &mut Nowhere).unwrap();
    });
}

fn tables() {
    let mut window = ReplayWindow::default();
    let mut counter = 0;
    measure("replay window, ask and take", 100_000, 0, || {
        black_box(window.is_fresh(counter));
        black_box(window.take(counter)).unwrap();
        counter += 1;
    });
    let blocks = (0_u32..1024).map(|block| {
        let first = IpAddr::from((0x0a20_0000 + block * 1024).to_be_bytes());
        (Cidr::new(first, 22).unwrap(), block % 100)
    });
    let ranges = Ranges::new(blocks);
    let mut at = 0_u32;
    measure("owner of an address among 1024 ranges", 100_000, 0, || {
        at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        black_box(ranges.owner(IpAddr::from((0x0a20_0000 | at >> 12).to_be_bytes())));
    });
    measure("a session's three epochs of keys", 200, 0, || {
        black_box(Session::new(config(Role::Initiator, Suite::Aes128Gcm), &[1; 32], Instant::now()));
    });
}

fn main() {
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        super_packets(suite);
    }
    small_packets();
    tables();
}
