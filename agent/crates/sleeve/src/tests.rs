//! The whole way: device, cut, seal, a bad network, open, join, device. Compared with a second implementation that
//! cuts super-packets into the packets which a network card would have sent, and sums them the slow way.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use weave_proto::PeerName;

use crate::cut::Packet as Handed;
use crate::ecn::Ecn;
use crate::header::{HEADER_LEN, Header, OVERHEAD};
use crate::inbox::{Deliver, Inbox, Joins, Opened, Record, Refused};
use crate::keys::{Chain, QueueKey, Role, Suite};
use crate::lane::SealLane;
use crate::outbox::{Batch, MAX_BATCH_LEN, MAX_BATCHES, MAX_RECORDS, Outbox, Road, Transmit};
use crate::relay::{RELAY_LEN, Relay};
use crate::replay::ReplayWindow;
use crate::vnet::{Gso, VNET_LEN, VnetHeader};

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 32, 0, 2);
const RECORD_LEN: usize = 1472;
const JOINS: Joins = Joins { tcp: true, udp: true };

mod reference;

use reference::{Packet, network_packets, random_packet};

struct Wire {
    records: Vec<Vec<u8>>,
}

impl Transmit for Wire {
    fn transmit(&mut self, batches: &[Batch<'_>]) {
        assert!((1..=MAX_BATCHES).contains(&batches.len()), "one call takes no more");
        for Batch { datagrams, segment, .. } in batches {
            let records: Vec<_> = datagrams.chunks(*segment).map(<[u8]>::to_vec).collect();
            assert!((1..=MAX_RECORDS).contains(&records.len()), "the kernel takes no more segments");
            assert!(datagrams.len() <= MAX_BATCH_LEN, "the kernel takes no more bytes");
            let longest =
                if records.iter().all(|record| Relay::is_one(record)) { RELAY_LEN } else { 0 } + RECORD_LEN;
            assert!(records.iter().all(|record| record.len() <= longest), "the path takes no more");
            self.records.extend(records);
        }
    }
}

#[derive(Default)]
struct Device {
    frames: Vec<(VnetHeader, Vec<u8>)>,
    forbidden: bool,
}

impl Deliver for Device {
    fn admits(&mut self, source: IpAddr) -> bool {
        !self.forbidden && (source == IpAddr::V4(SOURCE) || source.is_ipv6())
    }

    fn deliver(&mut self, frame: &mut [u8]) {
        let (vnet, packet) = frame.split_first_chunk::<VNET_LEN>().unwrap();
        self.frames.push((VnetHeader::parse(vnet).unwrap(), packet.to_vec()));
    }
}

impl Device {
    /// What the receiving kernel makes of it: every packet as it would have been on a wire.
    fn network_packets(&self) -> Vec<Vec<u8>> {
        self.frames
            .iter()
            .flat_map(|(vnet, bytes)| network_packets(&Packet { vnet: *vnet, bytes: bytes.clone() }))
            .collect()
    }
}

struct Pair {
    lane: SealLane,
    key: QueueKey,
    window: ReplayWindow,
    outbox: Outbox,
    inbox: Inbox,
    device: Device,
}

impl Pair {
    fn new() -> Self {
        let chain = Chain::first(&[5; 32], Role::Initiator, Suite::Aes128Gcm);
        Self {
            lane: SealLane::new(chain.key(0), 77, 0, 0, 1 << 20),
            key: chain.key(0),
            window: ReplayWindow::default(),
            outbox: Outbox::new(),
            inbox: Inbox::new(JOINS),
            device: Device::default(),
        }
    }

    fn send(&mut self, packets: &[Packet]) -> Vec<Vec<u8>> {
        self.send_in(&[], packets)
    }

    /// On a path that is as much wider as the envelope is long.
    fn send_in(&mut self, envelope: &[u8], packets: &[Packet]) -> Vec<Vec<u8>> {
        let mut wire = Wire { records: Vec::new() };
        let datagram_len = RECORD_LEN + envelope.len();
        let road = Road { lane: &self.lane, confirmed: 0, datagram_len, envelope };
        for packet in packets {
            let mut frame = packet.frame();
            self.outbox.push(Handed::parse(&mut frame).unwrap(), &road, &mut wire).unwrap();
        }
        self.outbox.flush(&road, &mut wire).unwrap();
        assert!(self.outbox.is_empty());
        wire.records
    }

    /// Whether the record was taken.
    fn receive(&mut self, record: &[u8]) -> bool {
        let Ok(record) = Record::parse(record, Ecn::NotEct) else { return false };
        let header = record.header;
        if header.receiver != 77
            || header.queue != 0
            || header.epoch != 0
            || !self.window.is_fresh(header.counter)
        {
            return false;
        }
        let opened = self.inbox.open(&record, &self.key, &mut self.device);
        let authentic = opened == Ok(Opened::Packets);
        if authentic {
            self.window.take(header.counter).unwrap();
        }
        authentic
    }

    fn finish(&mut self) -> Vec<Vec<u8>> {
        self.inbox.flush(&mut self.device);
        self.device.network_packets()
    }
}

fn expected(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().flat_map(network_packets).collect()
}

/// Whether `part` is what is left of `whole` after some elements were taken out. Order counts.
fn is_subsequence(part: &[Vec<u8>], whole: &[Vec<u8>]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|wanted| rest.any(|packet| packet == wanted))
}

fn traffic() -> impl Strategy<Value = Vec<Packet>> {
    proptest::collection::vec(random_packet(), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_goes_in_comes_out(packets in traffic()) {
        let mut pair = Pair::new();
        for record in pair.send(&packets) {
            prop_assert!(pair.receive(&record));
        }
        prop_assert_eq!(pair.finish(), expected(&packets));
        prop_assert_eq!(pair.inbox.take_refused(), Refused::default());
    }

    #[test]
    fn what_goes_in_comes_out_behind_other_nodes(packets in traffic(), hops in 1_u8..8) {
        let mut pair = Pair::new();
        let names = [PeerName::from_bits([2, 0, 0, 0, 0, 1]), PeerName::from_bits([2, 0, 0, 0, 0, 2])];
        let relay = Relay { hops_left: hops, queue: 0, receiver: 5, to: names[1], from: names[0] };
        for mut frame in pair.send_in(&relay.to_bytes(), &packets) {
            for hop in 1..=hops {
                prop_assert!(Relay::parse(&frame).is_ok_and(|parsed| parsed.to == names[1]));
                prop_assert!(Relay::send_on(&mut frame, u32::from(hop)).is_ok());
            }
            prop_assert!(Relay::send_on(&mut frame, 0).is_err());
            prop_assert!(!pair.receive(&frame), "the frame itself is no record");
            prop_assert!(pair.receive(&frame[RELAY_LEN..]));
        }
        prop_assert_eq!(pair.finish(), expected(&packets));
    }

    #[test]
    fn pauses_between_receive_calls_change_nothing(packets in traffic(), pauses: u64) {
        let mut pair = Pair::new();
        for (index, record) in pair.send(&packets).iter().enumerate() {
            prop_assert!(pair.receive(record));
            if pauses >> (index % 64) & 1 == 1 {
                pair.inbox.pause(&mut pair.device);
            }
        }
        prop_assert_eq!(pair.finish(), expected(&packets));
    }

    #[test]
    fn a_lost_record_costs_what_it_carried(packets in traffic(), lost: proptest::sample::Index) {
        let mut pair = Pair::new();
        let records = pair.send(&packets);
        let lost = lost.index(records.len());
        for (index, record) in records.iter().enumerate() {
            prop_assert!(index == lost || pair.receive(record));
        }
        let mut alone = Pair::new();
        alone.send(&packets);
        alone.receive(&records[lost]);
        let carried = alone.finish();
        let (got, whole) = (pair.finish(), expected(&packets));
        prop_assert!(is_subsequence(&got, &whole));
        prop_assert_eq!(got.len() + carried.len(), whole.len());
    }

    #[test]
    fn a_bad_network_delivers_only_true_packets_and_each_once(
        packets in traffic(),
        fate in proptest::collection::vec((any::<u16>(), 0_u8..4), 600),
    ) {
        let mut pair = Pair::new();
        let records = pair.send(&packets);
        // Each record comes 0 to 3 times, at random places.
        let mut arriving: Vec<(u16, &Vec<u8>)> = Vec::new();
        for (index, record) in records.iter().enumerate() {
            let (place, times) = fate[index % fate.len()];
            (0..times).for_each(|time| arriving.push((place.rotate_left(u32::from(time) * 5), record)));
        }
        arriving.sort();
        for (_, record) in &arriving {
            pair.receive(record);
        }
        let (mut got, mut whole) = (pair.finish(), expected(&packets));
        got.sort();
        whole.sort();
        prop_assert!(is_subsequence(&got, &whole));
        // What arrived at least once is there.
        if records.iter().enumerate().all(|(index, _)| fate[index % fate.len()].1 > 0) {
            prop_assert_eq!(got, whole);
        }
    }

    #[test]
    fn a_changed_record_is_dropped_and_harms_no_other(packets in traffic(), flips: [(proptest::sample::Index, u8); 3]) {
        let mut pair = Pair::new();
        let records = pair.send(&packets);
        let mut bit = flips.iter();
        for record in &records {
            if let Some((at, which)) = bit.next() {
                let mut changed = record.clone();
                let at = at.index(changed.len());
                changed[at] ^= 1 << (which % 8);
                prop_assert!(!pair.receive(&changed));
                prop_assert!(!pair.receive(&record[..at]), "a truncated record");
            }
            prop_assert!(pair.receive(record));
        }
        prop_assert_eq!(pair.finish(), expected(&packets));
    }

    #[test]
    fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut pair = Pair::new();
        prop_assert!(!pair.receive(&noise));
        let mut record = Header { kind: crate::header::Kind::Bundle, flags: crate::header::Flags::NONE, queue: 0, epoch: 0,
            receiver: 77, confirmed: 0, counter: 0 }.to_bytes().to_vec();
        record.extend_from_slice(&noise);
        prop_assert!(!pair.receive(&record));
    }

    #[test]
    fn whatever_an_authentic_peer_sends_is_survived(
        records in proptest::collection::vec((0_u8..3, 0_u8..8, proptest::collection::vec(any::<u8>(), 0..300)), 1..20),
        good in traffic(),
    ) {
        let mut pair = Pair::new();
        let first = pair.send(&good);
        first.iter().take(3).for_each(|record| { pair.receive(record); });
        for (kind, flags, mut plain) in records {
            // Make it look like an IP packet often enough to get further than the first check.
            if let Some(first) = plain.first_mut() && *first & 1 == 0 {
                *first = if *first & 2 == 0 { 0x45 } else { 0x60 };
            }
            let counter = pair.lane.reserve(1).unwrap();
            let kind = [crate::header::Kind::Packet, crate::header::Kind::Bundle, crate::header::Kind::Probe][usize::from(kind)];
            let mut record = vec![0; plain.len() + OVERHEAD];
            pair.lane.seal(crate::lane::Mark { counter, kind, flags: crate::header::Flags::NONE, confirmed: 0 }, &plain, &mut record);
            // Flags are authenticated, so seal again with those wanted.
            let mut header: [u8; HEADER_LEN] = record[..HEADER_LEN].try_into().unwrap();
            header[1] = flags;
            record[..HEADER_LEN].copy_from_slice(&header);
            pair.key.seal(counter, &header, &plain, &mut record[HEADER_LEN..]);
            pair.receive(&record);
        }
        pair.inbox.flush(&mut pair.device);
        prop_assert!(pair.device.frames.iter().all(|(_, packet)| packet.len() <= 65_535));
    }
}

#[test]
fn a_super_packet_comes_out_as_one() {
    let mut pair = Pair::new();
    let packet = reference::tcp_v4(65_000, 1388, 0x18);
    let records = pair.send(std::slice::from_ref(&packet));
    assert_eq!(records.len(), 47);
    records.iter().for_each(|record| assert!(pair.receive(record)));
    assert_eq!(pair.finish(), network_packets(&packet));
    assert_eq!(pair.device.frames.len(), 1, "one write to the device");
    assert_eq!(pair.device.frames[0].0.gso, Gso::TcpV4);
    assert_eq!(pair.device.frames[0].0.gso_size, 1388);
}

#[test]
fn a_gap_splits_a_super_packet_in_two() {
    let mut pair = Pair::new();
    let packet = reference::tcp_v4(65_000, 1388, 0x18);
    let records = pair.send(std::slice::from_ref(&packet));
    records
        .iter()
        .enumerate()
        .filter(|&(index, _)| index != 20)
        .for_each(|(_, record)| assert!(pair.receive(record)));
    assert_eq!(pair.finish().len(), 46);
    assert_eq!(pair.device.frames.len(), 2);
}

#[test]
fn a_flood_of_equal_datagrams_is_handed_over_in_super_packets() {
    let mut pair = Pair::new();
    let flood: Vec<Packet> = (0..100).map(|id| reference::udp_v4(1200, id)).collect();
    let records = pair.send(&flood);
    records.iter().for_each(|record| assert!(pair.receive(record)));
    assert_eq!(pair.finish(), expected(&flood));
    assert!(pair.device.frames.len() <= 3, "{}", pair.device.frames.len());
}

#[test]
fn small_packets_share_records_and_are_joined_too() {
    let mut pair = Pair::new();
    let flood: Vec<Packet> = (0..100).map(|id| reference::udp_v4(64, id)).collect();
    let records = pair.send(&flood);
    assert!(records.len() <= 8, "{}", records.len());
    records.iter().for_each(|record| assert!(pair.receive(record)));
    assert_eq!(pair.finish(), expected(&flood));
    assert!(pair.device.frames.len() <= 3, "{}", pair.device.frames.len());
}

#[test]
fn an_acknowledgement_takes_the_place_of_the_one_that_waits() {
    let mut pair = Pair::new();
    let mut waiting: Vec<Packet> = (1..=8).map(reference::acknowledgement).collect();
    waiting.insert(3, reference::udp_v4(64, 1));
    waiting.push(reference::acknowledgement(8));
    for record in pair.send(&waiting) {
        assert!(pair.receive(&record));
    }
    let left = [2, 3, 8, 9].map(|at| waiting[at].clone());
    assert_eq!(
        pair.finish(),
        expected(&left),
        "the last before another packet, it, the last, and a duplicate"
    );
}

#[test]
fn an_acknowledgement_that_was_sent_is_not_overtaken() {
    let mut pair = Pair::new();
    let each: Vec<Packet> = (1..=4).map(reference::acknowledgement).collect();
    for packet in &each {
        for record in pair.send(std::slice::from_ref(packet)) {
            assert!(pair.receive(&record));
        }
    }
    assert_eq!(pair.finish(), expected(&each));
}

#[test]
fn another_flow_in_between_keeps_the_order() {
    let mut pair = Pair::new();
    let mut mixed: Vec<Packet> =
        (0..50).map(|id| reference::udp_v4(if id % 7 == 0 { 90 } else { 800 }, id)).collect();
    mixed.insert(20, reference::tcp_v4(9000, 1388, 0x10));
    for record in pair.send(&mixed) {
        assert!(pair.receive(&record));
    }
    assert_eq!(pair.finish(), expected(&mixed));
}

#[test]
fn a_foreign_source_is_refused_and_counted() {
    let mut pair = Pair::new();
    pair.device.forbidden = true;
    let records = pair.send(&[reference::udp_v4(300, 1), reference::udp_v4(1000, 2)]);
    records.iter().for_each(|record| assert!(pair.receive(record)));
    assert!(pair.finish().is_empty());
    assert_eq!(pair.inbox.take_refused(), Refused { source: 2, ..Refused::default() });
}

#[test]
fn a_congestion_mark_reaches_the_inner_packet() {
    let mut pair = Pair::new();
    let mut packet = reference::tcp_v4(9000, 1388, 0x10);
    packet.bytes[1] = Ecn::Ect0 as u8;
    reference::fix_ip_sum(&mut packet.bytes);
    for record in pair.send(std::slice::from_ref(&packet)) {
        let record = Record::parse(&record, Ecn::Ce).unwrap();
        let opened = pair.inbox.open(&record, &pair.key, &mut pair.device);
        assert_eq!(opened, Ok(Opened::Packets));
    }
    packet.bytes[1] = Ecn::Ce as u8;
    reference::fix_ip_sum(&mut packet.bytes);
    assert_eq!(pair.finish(), network_packets(&packet));
}

#[test]
fn a_marked_packet_of_a_transport_without_ecn_is_dropped() {
    let mut pair = Pair::new();
    let records = pair.send(&[reference::udp_v4(1000, 2)]);
    let record = Record::parse(&records[0], Ecn::Ce).unwrap();
    pair.inbox.open(&record, &pair.key, &mut pair.device).unwrap();
    assert!(pair.finish().is_empty());
    assert_eq!(pair.inbox.take_refused().congested, 1);
}

#[test]
fn a_narrower_path_cuts_tcp_finer_and_refuses_what_may_not_be_cut() {
    let mut pair = Pair::new();
    let road = Road { lane: &pair.lane, confirmed: 0, datagram_len: 1000, envelope: &[] };
    let mut wire = Wire { records: Vec::new() };
    let packet = reference::tcp_v4(9000, 1388, 0x18);
    pair.outbox.push(Handed::parse(&mut packet.frame()).unwrap(), &road, &mut wire).unwrap();
    let mut big = reference::udp_v4(1200, 1).frame();
    assert!(pair.outbox.push(Handed::parse(&mut big).unwrap(), &road, &mut wire).is_err());
    pair.outbox.flush(&road, &mut wire).unwrap();
    assert!(wire.records.iter().all(|record| record.len() <= 1000));
    wire.records.iter().for_each(|record| assert!(pair.receive(record)));
    let mut finer = packet;
    finer.vnet.gso_size = u16::try_from(1000 - OVERHEAD - 52).unwrap();
    assert!(pair.finish() == network_packets(&finer));
}

#[test]
fn a_single_tcp_packet_is_cut_where_the_path_has_become_narrower() {
    let mut pair = Pair::new();
    let road = Road { lane: &pair.lane, confirmed: 0, datagram_len: 1000, envelope: &[] };
    let mut wire = Wire { records: Vec::new() };
    let whole = reference::tcp_v4(1300, 1388, 0x18);
    let mut single = whole.clone();
    single.vnet = VnetHeader { gso: Gso::None, gso_size: 0, ..whole.vnet };
    pair.outbox.push(Handed::parse(&mut single.frame()).unwrap(), &road, &mut wire).unwrap();
    pair.outbox.flush(&road, &mut wire).unwrap();
    assert_eq!(wire.records.len(), 2);
    wire.records.iter().for_each(|record| assert!(pair.receive(record)));
    let mut finer = whole;
    finer.vnet.gso_size = u16::try_from(1000 - OVERHEAD - 52).unwrap();
    assert!(pair.finish() == network_packets(&finer));
}

#[test]
fn a_device_without_udp_super_packets_gets_single_ones() {
    let mut pair = Pair::new();
    pair.inbox.set_joins(Joins { tcp: true, udp: false });
    let flood: Vec<Packet> = (0..20).map(|id| reference::udp_v4(1200, id)).collect();
    for record in pair.send(&flood) {
        assert!(pair.receive(&record));
    }
    assert_eq!(pair.finish(), expected(&flood));
    assert_eq!(pair.device.frames.len(), 20);
}

#[test]
fn a_probe_is_padded_to_the_length_asked_for() {
    let mut pair = Pair::new();
    let road = Road { lane: &pair.lane, confirmed: 0, datagram_len: RECORD_LEN, envelope: &[] };
    let mut wire = Wire { records: Vec::new() };
    pair.outbox.push_probe(b"are you there", 1400, &road, &mut wire).unwrap();
    assert_eq!(wire.records[0].len(), 1400);
    let record = Record::parse(&wire.records[0], Ecn::NotEct).unwrap();
    let opened = pair.inbox.open(&record, &pair.key, &mut pair.device);
    let Ok(Opened::Probe(plain)) = opened else { panic!("{opened:?}") };
    assert!(plain.starts_with(b"are you there"));
    assert_eq!(plain.len(), 1400 - OVERHEAD);
}
