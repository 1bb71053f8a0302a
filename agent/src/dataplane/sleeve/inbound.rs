//! Socket → open → device.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use weave_sleeve::cut::{Cut, Packet};
use weave_sleeve::ecn::Ecn;
use weave_sleeve::header::Header;
use weave_sleeve::inbox::{Deliver, Inbox, Joins, Opened, Record};
use weave_sleeve::replay::Replayed;
use weave_sleeve::vnet::{Gso, VnetHeader};

use super::counters::Counters;
use super::published::Reader;
use super::socket::Socket;
use super::table::{OpenSession, Table};
use super::{Event, Shared, Worker};
use crate::dataplane::sys::Received;
use crate::dataplane::tun::Queue;

/// The longest run that `UDP_GRO` gives.
const BUFFER_LEN: usize = 65_536;

/// Receive calls before the other direction has its turn.
const RECEIVES_A_TURN: usize = 8;

pub(super) struct Inbound {
    tun: Arc<Queue>,
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    table: Reader<Table>,
    inbox: Inbox,
    buffer: Box<[u8]>,
    joins: Joins,
}

/// Writes packets to the device, for the peer whose records are being opened.
struct ToDevice<'a> {
    tun: &'a Queue,
    count: &'a Counters,
    table: &'a Table,
    slot: u32,
    /// Cleared when the device refuses a kind of super-packet.
    joins: &'a mut Joins,
}

impl Deliver for ToDevice<'_> {
    #[inline]
    fn admits(&mut self, source: IpAddr) -> bool {
        self.table.ranges.owner(source) == Some(self.slot)
    }

    #[inline]
    fn deliver(&mut self, frame: &mut [u8]) {
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

/// What happens to a super-packet that the kernel refuses, without a kernel that does.
#[cfg(test)]
pub(super) fn cut_for(tun: &Queue, count: &Counters, frame: &mut [u8]) -> Joins {
    let mut joins = Joins { tcp: true, udp: true };
    let table = Table::default();
    ToDevice { tun, count, table: &table, slot: 0, joins: &mut joins }.deliver_in_pieces(frame);
    joins
}

impl Inbound {
    pub(super) fn new(worker: Worker) -> Self {
        let Worker { tun, socket, shared, .. } = worker;
        let table = Reader::new(&shared.table);
        // Written super-packets need no offload of the device, only a kernel that knows them: the first write tells.
        let joins = Joins { tcp: true, udp: true };
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice();
        Self { tun, socket, shared, table, inbox: Inbox::new(joins), buffer, joins }
    }

    /// One turn: receives what the socket has, up to a limit, and writes it to the device. Whether the socket had
    /// nothing more.
    pub(super) fn turn(&mut self) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let drained = self.receive(&mut buffer);
        self.buffer = buffer;
        if drained {
            self.flush();
        }
        drained
    }

    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..RECEIVES_A_TURN {
            match self.socket.receive(buffer) {
                Ok(received) => self.batch(&buffer[..received.len], &received),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
                // What an earlier send ran into (ICMP) is reported here, too. It says nothing about receiving.
                Err(_) => {}
            }
        }
        false
    }

    fn batch(&mut self, datagrams: &[u8], received: &Received) {
        if self.table.is_stale() {
            self.flush();
            self.table.refresh();
        }
        let count = &self.shared.count;
        count.batches_received.one();
        count.bytes_received.add(datagrams.len() as u64);
        if received.truncated || datagrams.is_empty() {
            return count.unknown_records.one();
        }
        let table = Arc::clone(self.table.value());
        let mut rest = datagrams.chunks(received.segment).peekable();
        while let Some(record) = rest.peek() {
            let session = Header::parse(record).ok().and_then(|header| table.session(header.receiver));
            let Some(session) = session else {
                self.shared.count.unknown_records.one();
                rest.next();
                continue;
            };
            self.of_session(&table, session, received, &mut rest);
        }
    }

    /// Opens records as long as they are of one session, queue and epoch: usually all of the batch.
    fn of_session<'r>(
        &mut self,
        table: &Table,
        session: &OpenSession,
        received: &Received,
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
        let joins = &mut self.joins;
        let mut device = ToDevice { tun: &self.tun, count, table, slot: session.slot, joins };
        let mut window = queue.window.lock().unwrap_or_else(PoisonError::into_inner);
        let newest_before = window.next();
        let outer = Ecn::of(received.traffic_class);
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
                    from: received.from,
                    len: record.bytes.len(),
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
            self.news(session, &first, confirmed, leads.then_some(received.from));
        }
        publish_refusals(&mut self.inbox, &self.shared.count);
    }

    /// What a batch of authentic records says besides its packets. Almost always nothing new.
    #[inline]
    fn news(&self, session: &OpenSession, header: &Header, confirmed: u8, from: Option<SocketAddr>) {
        let live = &session.live;
        live.received.fetch_add(1, Ordering::Relaxed);
        if header.epoch != live.opened.load(Ordering::Relaxed) {
            self.shared.on_opened(session.index, header.epoch);
        }
        let known = live.ever_confirmed.load(Ordering::Relaxed)
            && live.confirmed.load(Ordering::Relaxed) == confirmed;
        if !known {
            self.shared.on_confirmed(session.index, confirmed);
        }
        if let Some(from) = from {
            self.shared.on_source(session, from);
        }
    }

    fn flush(&mut self) {
        let table = Arc::clone(self.table.value());
        // Only a begun packet is flushed; its source was admitted when it began.
        let (count, joins) = (&self.shared.count, &mut self.joins);
        let mut device = ToDevice { tun: &self.tun, count, table: &table, slot: u32::MAX, joins };
        self.inbox.flush(&mut device);
    }
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
