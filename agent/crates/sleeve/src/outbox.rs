//! Packets in, datagrams for `UDP_SEGMENT` sends out.
//!
//! A segmented send wants records of one length, of which only the last may be shorter. Super-packets give that by
//! themselves. Two more habits make it the rule for the rest:
//!
//! * **Bundles.** Small packets (acknowledgements, requests) are put together into one record until it is full, and
//!   a full bundle is padded to the length of a full record. One seal instead of twenty, and no short record that
//!   ends the batch. A bundle never waits: it is closed when the device has nothing more to read. An acknowledgement
//!   that says all that the packet before it in the bundle says takes its place ([`crate::overtaken`]).
//! * **Runs.** A UDP packet that continues the flow of the record before it, in the same size, is marked as its
//!   continuation, so that the other end hands the kernel one super-packet instead of sixty. Comparing with the
//!   one packet before is enough; there is no table of flows.
//!
//! What is full is not sent at once: as long as the device has more to read, up to [`MAX_BATCHES`] gather, which one
//! system call sends. A super-packet seldom fits one batch, so two would be the rule.
//!
//! An outbox belongs to one peer at a time. Order is kept: whatever comes behind an open bundle closes it first.

use crate::cut::{Cut, CutError, Packet};
use crate::ecn::Ecn;
use crate::header::{Flags, Kind, OVERHEAD};
use crate::inner::{Inner, Transport};
use crate::lane::{Exhausted, Mark, SealLane};
use crate::overtaken::overtakes;
use crate::relay::RELAYED_OVERHEAD;

/// Records in one segmented send: what every kernel with `UDP_SEGMENT` takes.
pub const MAX_RECORDS: usize = 64;

/// Bytes in one segmented send: the UDP payload that fits an IPv6 packet's length field, so either family's.
pub const MAX_BATCH_LEN: usize = 65_535 - 40 - 8;

/// Segmented sends that gather for one call: some 500 KB, which stay in the processor's cache until they are sent.
pub const MAX_BATCHES: usize = 8;

/// A packet of at most this many bytes goes into a bundle. Above it, the copy costs more than the seal it saves.
pub const SMALL: usize = 400;

/// Two bytes before each packet in a bundle: PARTIAL and CONTINUES in the upper bits, then its length.
pub(crate) const CHUNK_HEADER_LEN: usize = 2;
pub(crate) const CHUNK_PARTIAL: u16 = 1 << 15;
pub(crate) const CHUNK_CONTINUES: u16 = 1 << 14;
pub(crate) const CHUNK_LEN_MASK: u16 = CHUNK_CONTINUES - 1;

/// Segments of one UDP super-packet: the kernel's limit before Linux 6.9, and payload that keeps it below 64 KiB.
const MAX_UDP_RUN: usize = 64;
const MAX_UDP_RUN_LEN: usize = 64_000;

/// What one segmented send takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'b> {
    /// Datagrams, one behind the other.
    pub datagrams: &'b [u8],
    /// Bytes of each datagram but the last, which may be shorter.
    pub segment: usize,
    /// The codepoint that each of them is sent with.
    pub ecn: Ecn,
}

/// Where finished batches go.
pub trait Transmit {
    /// Sends batches, of which there are at most [`MAX_BATCHES`], in their order.
    fn transmit(&mut self, batches: &[Batch<'_>]);
}

/// Why a packet was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It cannot be cut.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The key is used up.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

/// The road to one peer: its lane and what may pass on it.
#[derive(Clone, Copy)]
pub struct Road<'l> {
    /// Seals.
    pub lane: &'l SealLane,
    /// The low byte of the newest epoch opened from the peer.
    pub confirmed: u8,
    /// Bytes of the longest datagram on the path: of a record, and of what stands in front of it.
    pub datagram_len: usize,
    /// What stands in front of each record: nothing, or the header of a relayed one ([`crate::relay`]).
    pub envelope: &'l [u8],
}

impl Road<'_> {
    const fn capacity(&self) -> usize {
        self.datagram_len.saturating_sub(self.overhead())
    }

    /// What a datagram costs over what it carries.
    const fn overhead(&self) -> usize {
        OVERHEAD + self.envelope.len()
    }

    const fn mark(&self, counter: u64, kind: Kind, flags: Flags) -> Mark {
        Mark { counter, kind, flags, confirmed: self.confirmed }
    }
}

/// Collects records for one peer until they are sent. Allocates once, when made.
pub struct Outbox {
    datagrams: Box<[u8]>,
    /// The batches that are complete, of which there are `finished`.
    batches: [Finished; MAX_BATCHES],
    finished: usize,
    /// The batch behind them, which is being filled: where it begins, its length, and so on.
    start: usize,
    len: usize,
    segment: usize,
    records: usize,
    max_records: usize,
    ecn: Ecn,
    bundle: Bundle,
    tail: Option<Tail>,
}

/// A batch that nothing is added to: it lies behind the one before.
#[derive(Clone, Copy)]
struct Finished {
    len: usize,
    segment: usize,
    ecn: Ecn,
}

struct Bundle {
    bytes: Box<[u8]>,
    len: usize,
    chunks: usize,
    first: Flags,
    /// Where the last packet begins, with its two bytes.
    last: usize,
    last_flags: Flags,
}

/// A packet for a bundle.
#[derive(Clone, Copy)]
struct Small<'p> {
    inner: Inner,
    flags: Flags,
    plain: &'p [u8],
}

/// The end of a UDP run.
#[derive(Clone, Copy)]
struct Tail {
    head: [u8; Self::HEAD],
    payload: usize,
    pieces: usize,
    /// The counter that the next record must have, or none while the run's end is in the open bundle.
    counter: Option<u64>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// An empty outbox.
    #[must_use]
    pub fn new() -> Self {
        let zeros = |len| vec![0; len].into_boxed_slice();
        let bundle = Bundle { bytes: zeros(usize::from(CHUNK_LEN_MASK)), ..Bundle::empty() };
        Self {
            datagrams: zeros(MAX_BATCHES * MAX_BATCH_LEN + RELAYED_OVERHEAD),
            batches: [Finished { len: 0, segment: 0, ecn: Ecn::NotEct }; MAX_BATCHES],
            finished: 0,
            start: 0,
            len: 0,
            segment: 0,
            records: 0,
            max_records: MAX_RECORDS,
            ecn: Ecn::NotEct,
            bundle,
            tail: None,
        }
    }

    /// Whether nothing waits to be sent.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.finished == 0 && self.records == 0 && self.bundle.chunks == 0
    }

    /// Takes a packet as it came from the device, and sends what becomes full.
    ///
    /// # Errors
    /// The packet cannot be sent on this road. Nothing of it was.
    #[inline]
    pub fn push(
        &mut self,
        packet: Packet<'_>,
        road: &Road<'_>,
        out: &mut impl Transmit,
    ) -> Result<(), NotTaken> {
        let inner = packet.inner;
        let ecn = inner.ecn(packet.bytes);
        if ecn != self.ecn {
            self.close_bundle(false, road, out)?;
            self.finish(out);
            self.tail = None;
            self.ecn = ecn;
        }
        let mut cut = Cut::new(packet, road.capacity())?;
        if cut.pieces() > 1 {
            self.close_bundle(false, road, out)?;
            self.tail = None;
            return self.push_pieces(&mut cut, road, out);
        }
        let Some((flags, plain)) = cut.next_piece() else { return Ok(()) };
        let plain = &*plain;
        if plain.len() <= SMALL && plain.len() + 2 * CHUNK_HEADER_LEN <= road.capacity() {
            return self.push_small(Small { inner, flags, plain }, road, out);
        }
        self.close_bundle(false, road, out)?;
        let counter = road.lane.reserve(1)?;
        let flags = flags.with(self.continue_run(inner, flags, plain, Some(counter)));
        self.seal(road.mark(counter, Kind::Packet, flags), plain, road, out);
        Ok(())
    }

    /// Takes a probe whose datagram has `len` bytes in all (at least what `plain` needs), and sends it by itself.
    ///
    /// # Errors
    /// The key is used up.
    pub fn push_probe(
        &mut self,
        plain: &[u8],
        len: usize,
        road: &Road<'_>,
        out: &mut impl Transmit,
    ) -> Result<(), NotTaken> {
        self.flush(road, out)?;
        let padded = len.saturating_sub(road.overhead()).clamp(plain.len(), self.bundle.bytes.len());
        let counter = road.lane.reserve(1)?;
        self.bundle.bytes[..plain.len()].copy_from_slice(plain);
        self.bundle.bytes[plain.len()..padded].fill(0);
        let datagram = &mut self.datagrams[..padded + road.overhead()];
        let (envelope, record) = datagram.split_at_mut(road.envelope.len());
        envelope.copy_from_slice(road.envelope);
        road.lane.seal(road.mark(counter, Kind::Probe, Flags::NONE), &self.bundle.bytes[..padded], record);
        out.transmit(&[Batch { datagrams: datagram, segment: datagram.len(), ecn: Ecn::NotEct }]);
        Ok(())
    }

    /// Sends all that waits. To be called when the device has nothing more to read, and before another peer's
    /// packet.
    ///
    /// # Errors
    /// The key is used up; the open bundle is lost.
    #[inline]
    pub fn flush(&mut self, road: &Road<'_>, out: &mut impl Transmit) -> Result<(), NotTaken> {
        let closed = self.close_bundle(false, road, out);
        self.finish(out);
        self.send(out);
        self.tail = None;
        closed
    }

    /// Sends each record by itself from now on, or up to [`MAX_RECORDS`] at once again.
    pub const fn set_segmentation(&mut self, works: bool) {
        self.max_records = if works { MAX_RECORDS } else { 1 };
    }

    fn push_pieces(
        &mut self,
        cut: &mut Cut<'_>,
        road: &Road<'_>,
        out: &mut impl Transmit,
    ) -> Result<(), NotTaken> {
        let mut counter = road.lane.reserve(cut.pieces())?;
        while let Some((flags, plain)) = cut.next_piece() {
            self.seal(road.mark(counter, Kind::Packet, flags), plain, road, out);
            counter += 1;
        }
        Ok(())
    }

    fn push_small(
        &mut self,
        small: Small<'_>,
        road: &Road<'_>,
        out: &mut impl Transmit,
    ) -> Result<(), NotTaken> {
        let Small { inner, flags, plain } = small;
        self.bundle.leave_out_overtaken(&small);
        let needed = plain.len() + CHUNK_HEADER_LEN;
        if self.bundle.chunks > 0 && self.bundle.len + needed + CHUNK_HEADER_LEN > self.bundle.room(road) {
            self.close_bundle(true, road, out)?;
        }
        // Whether this packet's record follows the run's record directly is known only when the bundle is sealed;
        // a bundle is sealed before anything else is, so its counter is the next one.
        let counter = (self.bundle.chunks == 0).then(|| road.lane.used());
        let flags = flags.with(self.continue_run(inner, flags, plain, counter));
        self.bundle.push(plain, flags);
        if let Some(tail) = &mut self.tail {
            tail.counter = None;
        }
        Ok(())
    }

    /// Whether `plain` continues the run at whose end the outbox is; in any case it becomes the new end. `counter`
    /// is that of its record, or none if it follows in the same bundle.
    fn continue_run(&mut self, inner: Inner, flags: Flags, plain: &[u8], counter: Option<u64>) -> Flags {
        let before = self.tail.take();
        let joinable = inner.v4 && inner.ip_len == Tail::IPV4 && inner.transport == Transport::Udp;
        if !joinable || !flags.has(Flags::PARTIAL) {
            return Flags::NONE;
        }
        let Some(head) = plain.first_chunk::<{ Tail::HEAD }>() else { return Flags::NONE };
        let payload = plain.len() - Tail::HEAD;
        let now = Tail { head: *head, payload, pieces: 1, counter: counter.map(|counter| counter + 1) };
        let Some(before) = before.filter(|before| before.is_continued_by(&now, counter)) else {
            self.tail = Some(now);
            return Flags::NONE;
        };
        // A shorter packet ends the run, as a shorter segment ends a super-packet.
        if payload == before.payload {
            self.tail = Some(Tail { pieces: before.pieces + 1, ..now });
        }
        Flags::CONTINUES
    }

    fn close_bundle(&mut self, full: bool, road: &Road<'_>, out: &mut impl Transmit) -> Result<(), NotTaken> {
        if self.bundle.chunks == 0 {
            return Ok(());
        }
        let bundle = std::mem::replace(&mut self.bundle, Bundle::empty());
        let reserved = road.lane.reserve(1);
        if let Ok(counter) = reserved {
            let (mark, plain) = bundle.finished(counter, full, road);
            self.seal(mark, plain, road, out);
            if let Some(tail) = &mut self.tail {
                tail.counter = Some(counter + 1);
            }
        }
        self.bundle = Bundle { len: 0, chunks: 0, ..bundle };
        reserved.map(|_| ()).map_err(NotTaken::from)
    }

    #[inline]
    fn seal(&mut self, mark: Mark, plain: &[u8], road: &Road<'_>, out: &mut impl Transmit) {
        let datagram_len = plain.len() + road.overhead();
        let fits = self.records < self.max_records
            && self.len + datagram_len <= MAX_BATCH_LEN
            && datagram_len <= self.segment;
        if self.records > 0 && !fits {
            self.finish(out);
        }
        if self.records == 0 {
            self.segment = datagram_len;
        }
        let end = self.start + self.len;
        let datagram = &mut self.datagrams[end..end + datagram_len];
        let (envelope, record) = datagram.split_at_mut(road.envelope.len());
        envelope.copy_from_slice(road.envelope);
        road.lane.seal(mark, plain, record);
        self.len += datagram_len;
        self.records += 1;
        // A shorter record can only be the last one; a full batch need not wait for the next packet.
        if datagram_len < self.segment
            || self.records == self.max_records
            || self.len + self.segment > MAX_BATCH_LEN
        {
            self.finish(out);
        }
    }

    /// Adds nothing more to the batch.
    #[inline]
    fn finish(&mut self, out: &mut impl Transmit) {
        if self.records == 0 {
            return;
        }
        let Self { len, segment, ecn, .. } = *self;
        self.batches[self.finished] = Finished { len, segment, ecn };
        self.finished += 1;
        self.start += len;
        self.len = 0;
        self.records = 0;
        if self.finished == MAX_BATCHES {
            self.send(out);
        }
    }

    /// Sends the finished batches.
    #[inline]
    fn send(&mut self, out: &mut impl Transmit) {
        let mut rest = &self.datagrams[..self.start];
        let batches = self.batches.map(|Finished { len, segment, ecn }| {
            let (datagrams, behind) = rest.split_at(len.min(rest.len()));
            rest = behind;
            Batch { datagrams, segment, ecn }
        });
        if self.finished > 0 {
            out.transmit(&batches[..self.finished]);
        }
        self.finished = 0;
        self.start = 0;
    }
}

impl Bundle {
    /// A place holder that owns nothing, while the bundle is being sealed.
    fn empty() -> Self {
        Self {
            bytes: Box::default(),
            len: 0,
            chunks: 0,
            first: Flags::NONE,
            last: 0,
            last_flags: Flags::NONE,
        }
    }

    /// Takes the last packet out if the next one says all that it does.
    #[inline]
    fn leave_out_overtaken(&mut self, next: &Small<'_>) {
        if self.chunks > 0
            && self.last_flags == next.flags
            && overtakes((next.inner, next.plain), &self.bytes[self.last + CHUNK_HEADER_LEN..self.len])
        {
            self.len = self.last;
            self.chunks -= 1;
        }
    }

    fn room(&self, road: &Road<'_>) -> usize {
        road.capacity().min(self.bytes.len())
    }

    #[expect(clippy::cast_possible_truncation, reason = "a small packet is shorter than SMALL")]
    fn push(&mut self, plain: &[u8], flags: Flags) {
        let mut head = plain.len() as u16;
        if flags.has(Flags::PARTIAL) {
            head |= CHUNK_PARTIAL;
        }
        if flags.has(Flags::CONTINUES) {
            head |= CHUNK_CONTINUES;
        }
        if self.chunks == 0 {
            self.first = flags;
        }
        (self.last, self.last_flags) = (self.len, flags);
        let body = self.len + CHUNK_HEADER_LEN;
        self.bytes[self.len..body].copy_from_slice(&head.to_be_bytes());
        self.bytes[body..body + plain.len()].copy_from_slice(plain);
        self.len = body + plain.len();
        self.chunks += 1;
    }

    /// The record's kind and content. A bundle of one is an ordinary record; a full one is padded.
    fn finished(&self, counter: u64, full: bool, road: &Road<'_>) -> (Mark, &[u8]) {
        if self.chunks == 1 {
            (road.mark(counter, Kind::Packet, self.first), &self.bytes[CHUNK_HEADER_LEN..self.len])
        } else if full {
            (road.mark(counter, Kind::Bundle, Flags::NONE), &self.bytes[..self.room(road)])
        } else {
            (road.mark(counter, Kind::Bundle, Flags::NONE), &self.bytes[..self.len])
        }
    }
}

impl Tail {
    const IPV4: usize = 20;
    const HEAD: usize = Self::IPV4 + 8;

    fn is_continued_by(&self, next: &Self, counter: Option<u64>) -> bool {
        let (a, b) = (&self.head, &next.head);
        // Not compared: the lengths, the identification and the checksums.
        let same_flow = a[..2] == b[..2] && a[6..10] == b[6..10] && a[12..24] == b[12..24];
        let dont_fragment = b[6] & 0x40 != 0;
        let id = |head: &[u8; Self::HEAD]| u16::from_be_bytes([head[4], head[5]]);
        same_flow
            && self.counter == counter
            && next.payload <= self.payload
            && next.payload > 0
            && self.pieces < MAX_UDP_RUN
            && (self.pieces + 1) * self.payload <= MAX_UDP_RUN_LEN
            && (dont_fragment || id(b) == id(a).wrapping_add(1))
    }
}
