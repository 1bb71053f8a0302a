//! Device → seal → socket.
//!
//! Reads until the device has nothing more, then sends what waits. So nothing is ever held back for a timer, and
//! under load a wake-up brings many packets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use weave_sleeve::cut::Packet;
use weave_sleeve::outbox::{NotTaken, Outbox, Road};
use weave_sleeve::vnet::VNET_LEN;

use super::carrier::Exit;
use super::counters::Counters;
use super::published::Reader;
use super::socket::Socket;
use super::table::{SendRoad, Table};
use super::{Shared, Worker};
use crate::dataplane::tun::Queue;

/// A virtio header and the longest packet, with room for the IPv6 header that its length does not count.
const BUFFER_LEN: usize = VNET_LEN + 65_535 + 40;

/// Reads before the queue is looked at again for something else to do: more than a batch takes.
pub(super) const READS_A_TURN: usize = 256;

pub(super) struct Outbound {
    queue: usize,
    tun: Arc<Queue>,
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    table: Reader<Table>,
    outbox: Outbox,
    buffer: Box<[u8]>,
    /// Whose packets the outbox holds.
    road: Option<Arc<SendRoad>>,
}

impl Outbound {
    pub(super) fn new(worker: Worker) -> Self {
        let Worker { queue, tun, socket, shared } = worker;
        let table = Reader::new(&shared.table);
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice();
        Self { queue, tun, socket, shared, table, outbox: Outbox::new(), buffer, road: None }
    }

    /// One turn: reads what the device has, up to `most` packets, and sends it. Whether the device had nothing more.
    pub(super) fn turn(&mut self, most: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let drained = self.read(&mut buffer, most);
        self.buffer = buffer;
        self.flush();
        drained
    }

    /// Whether the device has nothing more.
    fn read(&mut self, buffer: &mut [u8], most: usize) -> bool {
        for _ in 0..most {
            match self.tun.read(buffer) {
                Ok(len) => {
                    self.shared.count.device_reads.one();
                    self.packet(&mut buffer[..len]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // Nothing to read, or the device is down; either way poll tells when that changes.
                Err(_) => return true,
            }
        }
        false
    }

    fn packet(&mut self, frame: &mut [u8]) {
        if self.table.is_stale() {
            self.flush();
            self.table.refresh();
        }
        let count = &self.shared.count;
        let Ok(packet) = Packet::parse(frame) else { return count.not_taken.one() };
        let table = Arc::clone(self.table.value());
        let owner = table.ranges.owner(packet.inner.destination(packet.bytes));
        let route = owner.and_then(|slot| table.peers.get(slot as usize));
        let Some(road) = route.and_then(|route| route.road.as_ref()) else { return count.no_route.one() };
        if !self.road.as_ref().is_some_and(|current| Arc::ptr_eq(current, road)) {
            self.flush();
            self.road = Some(Arc::clone(road));
        }
        let Some((lane_road, mut out)) = on(road, self.queue, &self.socket, &self.shared.count) else {
            return;
        };
        match self.outbox.push(packet, &lane_road, &mut out) {
            Ok(()) => {}
            Err(NotTaken::Cut(_)) => self.shared.count.not_taken.one(),
            Err(NotTaken::Exhausted(_)) => self.shared.count.exhausted.one(),
        }
    }

    fn flush(&mut self) {
        let Some(road) = &self.road else { return };
        if self.outbox.is_empty() {
            return;
        }
        let Some((lane_road, mut out)) = on(road, self.queue, &self.socket, &self.shared.count) else {
            return;
        };
        if self.outbox.flush(&lane_road, &mut out).is_err() {
            self.shared.count.exhausted.one();
        }
    }
}

/// The road of this queue's lane, and where its batches go. None only if the session has no queue at all.
#[inline]
fn on<'a>(
    road: &'a SendRoad,
    queue: usize,
    socket: &'a Socket,
    count: &'a Counters,
) -> Option<(Road<'a>, Exit<'a>)> {
    let lanes = &road.seal.lanes;
    let at = queue % lanes.len().max(1);
    let lane = lanes.get(at)?;
    let confirmed = road.live.opened.load(Ordering::Relaxed);
    let envelope = road.envelopes.get(at).map_or(&[][..], |envelope| envelope);
    let out = Exit { socket, outlet: &road.outlet, count };
    Some((Road { lane, confirmed, datagram_len: road.outlet.fitting(road.datagram_len), envelope }, out))
}
