//! A run of datagrams → open → device; or, for other peers, → the next node.
//!
//! The runs come from a UDP socket ([`super::inbound`]) or were gathered from a QUIC connection ([`super::quic`]).

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use weave_sleeve::cut::{Cut, Packet};
use weave_sleeve::ecn::Ecn;
use weave_sleeve::header::Header;
use weave_sleeve::inbox::{Deliver, Inbox, Joins, Opened, Record};
use weave_sleeve::outbox::Batch;
use weave_sleeve::relay::{RELAY_LEN, Relay};
use weave_sleeve::replay::Replayed;
use weave_sleeve::vnet::{Gso, VnetHeader};

use super::carrier::Source;
use super::counters::Counters;
use super::published::Reader;
use super::socket::Socket;
use super::table::{OpenSession, Table};
use super::{Event, Shared, Worker};
use crate::dataplane::tun::Queue;

/// What all datagrams of a run have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) source: Source,
    /// Bytes of each datagram but the last, which may be shorter.
    pub(super) segment: usize,
    /// The IPv4 TOS or IPv6 traffic class byte; zero if it cannot be known.
    pub(super) traffic_class: u8,
}

pub(super) struct Intake {
    tun: Arc<Queue>,
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    table: Reader<Table>,
    inbox: Inbox,
    joins: Joins,
    delivered: Delivered,
}

/// What was given to the device since this was last asked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivered {
    /// Packets, joined ones as one.
    pub(super) packets: usize,
    /// Those of them that are many UDP packets, which reach a socket all at once.
    pub(super) bursts: usize,
}

/// Writes packets to the device, for the peer whose records are being opened.
struct ToDevice<'a> {
    tun: &'a Queue,
    count: &'a Counters,
    table: &'a Table,
    slot: u32,
    /// Cleared when the device refuses a kind of super-packet.
    joins: &'a mut Joins,
    delivered: &'a mut Delivered,
}

impl Deliver for ToDevice<'_> {
    #[inline]
    fn admits(&mut self, source: IpAddr) -> bool {
        self.table.ranges.owner(source) == Some(self.slot)
    }

    #[inline]
    fn deliver(&mut self, frame: &mut [u8]) {
        self.delivered.packets += 1;
        self.delivered.bursts += usize::from(is_burst(frame));
        match self.tun.write(frame) {
            Ok(()) => self.count.device_writes.one(),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.deliver_in_pieces(frame),
            Err(_) => self.count.device_write_failures.one(),
        }
    }
}

impl ToDevice<'_> {
    /// The kernel does not know this kind of super-packet: cut it, and join no more of them.
    fn deliver_in_pieces(&mut self, frame: &mut [u8]) {
        let Ok(packet) = Packet::parse(frame) else { return };
        let (vnet, inner) = (packet.vnet, packet.inner);
        match vnet.gso {
            Gso::None => return self.count.device_write_failures.one(),
            Gso::TcpV4 | Gso::TcpV6 => self.joins.tcp = false,
            Gso::Udp => self.joins.udp = false,
        }
        let single = VnetHeader { gso: Gso::None, gso_size: 0, ..vnet };
        let Ok(mut cut) = Cut::new(packet, usize::MAX) else { return };
        self.count.device_splits.one();
        while let Some((_, piece)) = cut.next_piece() {
            inner.complete(piece);
            match self.tun.write_parts(&single.to_bytes(), piece) {
                Ok(()) => self.count.device_writes.one(),
                Err(_) => self.count.device_write_failures.one(),
            }
        }
    }
}

/// Whether the kernel will cut the frame into UDP packets.
#[inline]
pub(super) fn is_burst(frame: &[u8]) -> bool {
    let vnet = frame.first_chunk().and_then(|head| VnetHeader::parse(head).ok());
    vnet.is_some_and(|vnet| vnet.gso == Gso::Udp)
}

/// What happens to a super-packet that the kernel refuses, without a kernel that does.
#[cfg(test)]
pub(super) fn cut_for(tun: &Queue, count: &Counters, frame: &mut [u8]) -> Joins {
    let mut joins = Joins { tcp: true, udp: true };
    let (table, mut delivered) = (Table::default(), Delivered::default());
    ToDevice { tun, count, table: &table, slot: 0, joins: &mut joins, delivered: &mut delivered }
        .deliver_in_pieces(frame);
    joins
}

impl Intake {
    pub(super) fn new(worker: &Worker) -> Self {
        let Worker { tun, socket, shared, .. } = worker.clone();
        let table = Reader::new(&shared.table);
        // Written super-packets need no offload of the device, only a kernel that knows them: the first write tells.
        let joins = Joins { tcp: true, udp: true };
        Self { tun, socket, shared, table, inbox: Inbox::new(joins), joins, delivered: Delivered::default() }
    }

    /// Takes a run. Frames that are not for this node are changed in place and sent on.
    pub(super) fn batch(&mut self, datagrams: &mut [u8], arrival: &Arrival) {
        if self.table.is_stale() {
            self.flush();
            self.table.refresh();
        }
        let count = &self.shared.count;
        count.batches_received.one();
        count.bytes_received.add(datagrams.len() as u64);
        let table = Arc::clone(self.table.value());
        let mut rest = datagrams;
        while !rest.is_empty() {
            let framed = Relay::is_one(rest);
            let len = prefix(rest, arrival.segment, |datagram| Relay::is_one(datagram) == framed);
            let (alike, behind) = rest.split_at_mut(len);
            rest = behind;
            if framed {
                self.frames(&table, alike, arrival);
            } else {
                self.records(&table, alike.chunks(arrival.segment), 0, arrival);
            }
        }
    }

    /// Hands out what waits for a continuation. To be called when there is nothing more to receive.
    pub(super) fn flush(&mut self) {
        let table = Arc::clone(self.table.value());
        // Only a begun packet is flushed; its source was admitted when it began.
        let (count, joins, delivered) = (&self.shared.count, &mut self.joins, &mut self.delivered);
        let mut device = ToDevice { tun: &self.tun, count, table: &table, slot: u32::MAX, joins, delivered };
        self.inbox.flush(&mut device);
    }

    /// What the device was given since this was last asked.
    #[inline]
    pub(super) fn take_delivered(&mut self) -> Delivered {
        std::mem::take(&mut self.delivered)
    }

    /// Takes relay frames, as many at once as go the same way.
    fn frames(&mut self, table: &Table, frames: &mut [u8], arrival: &Arrival) {
        let mut rest = frames;
        while !rest.is_empty() {
            let segment = arrival.segment;
            let first = Relay::parse(rest.get(..segment).unwrap_or(rest));
            let same = |frame: &[u8]| match (first, Relay::parse(frame)) {
                (Ok(first), Ok(this)) => first.goes_with(&this),
                _ => false,
            };
            // The first goes with itself, or with nothing.
            let len = prefix(rest, segment, same).max(segment.min(rest.len()));
            let (run, behind) = rest.split_at_mut(len);
            rest = behind;
            let frames = len.div_ceil(segment) as u64;
            let hop = first.ok().and_then(|relay| Some((relay, came_from(table, &relay, &arrival.source)?)));
            match hop {
                None => self.shared.count.relay_refused.add(frames),
                Some((relay, hop)) if relay.to == self.shared.name => {
                    let arrival = Arrival { source: Source::Relay(hop), ..*arrival };
                    let records = run.chunks(segment).filter_map(|frame| frame.get(RELAY_LEN..));
                    self.records(table, records, RELAY_LEN, &arrival);
                }
                Some((relay, hop)) => self.forward(table, run, (&relay, hop), arrival),
            }
        }
    }

    /// Sends frames on, all of which go the same way.
    fn forward(
        &self,
        table: &Table,
        run: &mut [u8],
        (relay, came_from): (&Relay, weave_proto::PeerName),
        arrival: &Arrival,
    ) {
        let count = &self.shared.count;
        let frames = run.len().div_ceil(arrival.segment) as u64;
        let Some(forward) = table.forward(relay.to) else { return count.relay_no_way.add(frames) };
        let back = forward.next == came_from || forward.next == relay.from;
        let sent_on = |frame: &mut [u8]| Relay::send_on(frame, forward.receiver).is_ok();
        if back || !run.chunks_mut(arrival.segment).all(sent_on) {
            return count.relay_loops.add(frames);
        }
        count.relayed.add(frames);
        forward.live.relayed.fetch_add(frames, Ordering::Relaxed);
        let ecn = Ecn::of(arrival.traffic_class);
        let batch = Batch { datagrams: run, segment: arrival.segment, ecn };
        forward.outlet.send(&self.socket, &[batch], count);
    }

    /// Takes records, each of which had `before` bytes in front of it.
    fn records<'r>(
        &mut self,
        table: &Table,
        records: impl Iterator<Item = &'r [u8]>,
        before: usize,
        arrival: &Arrival,
    ) {
        let mut rest = records.peekable();
        while let Some(record) = rest.peek() {
            let session = Header::parse(record).ok().and_then(|header| table.session(header.receiver));
            let Some(session) = session else {
                self.shared.count.unknown_records.one();
                rest.next();
                continue;
            };
            self.of_session(table, session, (arrival, before), &mut rest);
        }
    }

    /// Opens records as long as they are of one session, queue and epoch: usually all of the batch.
    fn of_session<'r>(
        &mut self,
        table: &Table,
        session: &OpenSession,
        (arrival, before): (&Arrival, usize),
        records: &mut std::iter::Peekable<impl Iterator<Item = &'r [u8]>>,
    ) {
        let count = &self.shared.count;
        let Some(Ok(first)) = records.peek().map(|record| Header::parse(record)) else { return };
        let queue = session.keys(first.epoch).and_then(|keys| keys.queues.get(usize::from(first.queue)));
        let Some(queue) = queue else {
            count.unknown_records.one();
            records.next();
            return;
        };
        let (joins, delivered) = (&mut self.joins, &mut self.delivered);
        let mut device = ToDevice { tun: &self.tun, count, table, slot: session.slot, joins, delivered };
        let mut window = queue.window.lock().unwrap_or_else(PoisonError::into_inner);
        let newest_before = window.next();
        let outer = Ecn::of(arrival.traffic_class);
        let (mut opened, mut confirmed, mut newest) = (0, None, None);
        while let Some(record) = records.peek() {
            let Ok(record) = Record::parse(record, outer) else { break };
            let header = record.header;
            let same = (header.receiver, header.queue, header.epoch);
            if same != (first.receiver, first.queue, first.epoch) {
                break;
            }
            records.next();
            if !window.is_fresh(header.counter) {
                count.replayed.one();
                continue;
            }
            match self.inbox.open(&record, &queue.key, &mut device) {
                Ok(Opened::Packets) => {}
                Ok(Opened::Probe(plain)) => self.shared.tell(Event::Probe {
                    peer: session.peer,
                    session: session.index,
                    from: arrival.source,
                    len: record.bytes.len() + before,
                    content: plain.into(),
                }),
                Err(_) => {
                    count.forged.one();
                    continue;
                }
            }
            // It was fresh a moment ago, and the lock is still held; a refusal would only leave it unmarked.
            let _: Result<(), Replayed> = window.take(header.counter);
            opened += 1;
            confirmed = Some(header.confirmed);
            newest = newest.max(Some(header.counter));
        }
        self.inbox.pause(&mut device);
        drop(window);
        count.records_opened.add(opened);
        self.inbox.set_joins(self.joins);
        let leads = newest.is_some_and(|newest| newest >= newest_before);
        if let Some(confirmed) = confirmed {
            session.live.received.fetch_add(opened, Ordering::Relaxed);
            self.news(session, &first, confirmed, leads.then_some(arrival.source));
        }
        publish_refusals(&mut self.inbox, &self.shared.count);
    }

    /// What a batch of authentic records says besides its packets. Almost always nothing new.
    #[inline]
    fn news(&self, session: &OpenSession, header: &Header, confirmed: u8, source: Option<Source>) {
        let live = &session.live;
        if header.epoch != live.opened.load(Ordering::Relaxed) {
            self.shared.on_opened(session.index, header.epoch);
        }
        let known = live.ever_confirmed.load(Ordering::Relaxed)
            && live.confirmed.load(Ordering::Relaxed) == confirmed;
        if !known {
            self.shared.on_confirmed(session.index, confirmed);
        }
        if let Some(Source::Udp(from)) = source {
            self.shared.on_source(session, from);
        }
    }
}

/// The peer that a frame has come from, if it was let in: it names a session of this node and has come from where
/// that session's peer is.
fn came_from(table: &Table, relay: &Relay, source: &Source) -> Option<weave_proto::PeerName> {
    let session = table.session(relay.receiver)?;
    let there = match source {
        Source::Udp(from) => session.remote == *from,
        Source::Quic(peer) => session.peer == *peer,
        Source::Relay(_) => false,
    };
    there.then_some(session.peer)
}

/// Bytes of the datagrams at the beginning of a run for which `holds`.
#[inline]
fn prefix(run: &[u8], segment: usize, holds: impl Fn(&[u8]) -> bool) -> usize {
    run.chunks(segment).take_while(|datagram| holds(datagram)).map(<[u8]>::len).sum()
}

fn publish_refusals(inbox: &mut Inbox, count: &Counters) {
    let refused = inbox.take_refused();
    for (counter, number) in [
        (&count.malformed, refused.malformed),
        (&count.foreign_source, refused.source),
        (&count.congestion_drops, refused.congested),
    ] {
        if number > 0 {
            counter.add(number);
        }
    }
}
