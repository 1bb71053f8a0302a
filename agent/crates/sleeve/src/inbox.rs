//! Records in, packets for the device out: joined where they came from one super-packet.
//!
//! The run that is being joined lies in one arena. The next piece is opened right behind it, its template falling
//! onto the last bytes of the piece before, which are put aside meanwhile and put back: so each payload byte is
//! written once, by the cipher, and the arena needs no moving together.
//!
//! A piece is appended if its record says so, carries the next counter of the same key, and fits in size. In every
//! other case (a record was lost, overtook another, or came twice) it starts a packet of its own, which its
//! template makes complete. Nothing here waits: what is open is handed out when the receive queue is empty, and
//! earlier if the last record said that nothing follows.

use std::net::IpAddr;

use crate::ecn::Ecn;
use crate::header::{Flags, HEADER_LEN, Header, HeaderError, Kind, OVERHEAD};
use crate::inner::{Inner, MAX_TEMPLATE, Transport};
use crate::keys::{Forged, QueueKey};
use crate::outbox::{CHUNK_CONTINUES, CHUNK_HEADER_LEN, CHUNK_LEN_MASK, CHUNK_PARTIAL, MAX_BATCH_LEN};
use crate::vnet::{Gso, VNET_LEN, VnetHeader};

/// Where the packet starts in the arena: room for the device's header before it, on a cache line.
const START: usize = 64;
const MAX_PACKET: usize = 65_535;
const MAX_UDP_RUN: usize = 64;
const TCP_FLAGS: usize = 13;
const FIN_PSH: u8 = 0x09;

/// Where finished packets go.
pub trait Deliver {
    /// Whether the peer whose record is being opened may send from this inner address.
    fn admits(&mut self, source: IpAddr) -> bool;

    /// Hands a packet, with the device's header before it, to the device.
    fn deliver(&mut self, frame: &mut [u8]);
}

/// A record as it arrived.
#[derive(Clone, Copy)]
pub struct Record<'r> {
    /// Its header.
    pub header: Header,
    /// All of it.
    pub bytes: &'r [u8],
    /// The ECN codepoint that it came with.
    pub outer: Ecn,
}

impl<'r> Record<'r> {
    /// The record that these bytes are.
    ///
    /// # Errors
    /// They are none.
    #[inline]
    pub fn parse(bytes: &'r [u8], outer: Ecn) -> Result<Self, HeaderError> {
        Ok(Self { header: Header::parse(bytes)?, bytes, outer })
    }
}

/// What an authentic record was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'i> {
    /// Packets; they have been or will be delivered, or are counted in [`Refused`].
    Packets,
    /// A probe, for the agent.
    Probe(&'i [u8]),
}

/// Authentic packets that were not delivered, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    /// No well-formed packet.
    pub malformed: u64,
    /// The source address is not the peer's.
    pub source: u64,
    /// Marked as congested on the way, and the inner transport does not know ECN (RFC 6040).
    pub congested: u64,
}

/// Which runs the device takes as one super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joins {
    /// TCP.
    pub tcp: bool,
    /// UDP.
    pub udp: bool,
}

/// Opens records and joins runs. Allocates once, when made.
pub struct Inbox {
    arena: Box<[u8]>,
    scratch: Box<[u8]>,
    run: Option<Run>,
    joins: Joins,
    refused: Refused,
}

/// Which key's records these are: a run never spans two.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Source {
    receiver: u32,
    queue: u8,
    epoch: u8,
    outer: Ecn,
}

/// A piece that lies at [`START`] and may begin a run.
struct Piece {
    source: Source,
    next: u64,
    flags: Flags,
    len: usize,
}

struct Run {
    source: Source,
    /// The counter of the record that may continue the run.
    next: u64,
    /// Whether the last record said that another follows.
    more: bool,
    inner: Inner,
    end: usize,
    /// Payload bytes of the first piece, and of every other but the last.
    stride: usize,
    pieces: usize,
    closed: bool,
    last_tcp_flags: u8,
}

impl Inbox {
    /// An empty inbox.
    #[must_use]
    pub fn new(joins: Joins) -> Self {
        let zeros = |len| vec![0; len].into_boxed_slice();
        let (arena, scratch) = (zeros(START + MAX_PACKET + MAX_BATCH_LEN), zeros(MAX_BATCH_LEN));
        Self { arena, scratch, run: None, joins, refused: Refused::default() }
    }

    /// Which runs are joined from now on: called when the device refused a super-packet.
    pub const fn set_joins(&mut self, joins: Joins) {
        self.joins = joins;
    }

    /// What was refused since this was last asked.
    #[inline]
    pub fn take_refused(&mut self) -> Refused {
        std::mem::take(&mut self.refused)
    }

    /// Opens a record whose counter is fresh.
    ///
    /// # Errors
    /// The record is not authentic. Nothing happened.
    #[inline]
    pub fn open(
        &mut self,
        record: &Record<'_>,
        key: &QueueKey,
        device: &mut impl Deliver,
    ) -> Result<Opened<'_>, Forged> {
        let Record { header, bytes, outer } = *record;
        let (Some(head), Some(plain_len)) =
            (bytes.first_chunk::<HEADER_LEN>(), bytes.len().checked_sub(OVERHEAD))
        else {
            return Err(Forged);
        };
        let Header { receiver, queue, epoch, counter, flags, .. } = header;
        let source = Source { receiver, queue, epoch, outer };
        let sealed = &bytes[HEADER_LEN..];
        match header.kind {
            Kind::Packet => {
                if let Some(run) = &mut self.run
                    && run.is_continued_by(source, counter, flags, plain_len)
                {
                    run.append_sealed(&mut self.arena, plain_len, |plain| {
                        key.open(counter, head, sealed, plain)
                    })?;
                    run.more = flags.has(Flags::MORE);
                    run.next = counter + 1;
                } else {
                    self.flush(device);
                    key.open(
                        counter,
                        head,
                        sealed,
                        self.arena.get_mut(START..START + plain_len).ok_or(Forged)?,
                    )?;
                    self.begin(Piece { source, next: counter + 1, flags, len: plain_len }, device);
                }
                Ok(Opened::Packets)
            }
            Kind::Bundle => {
                let plain = self.scratch.get_mut(..plain_len).ok_or(Forged)?;
                key.open(counter, head, sealed, plain)?;
                self.unbundle(source, counter, plain_len, device);
                Ok(Opened::Packets)
            }
            Kind::Probe => {
                let plain = self.scratch.get_mut(..plain_len).ok_or(Forged)?;
                key.open(counter, head, sealed, plain)?;
                Ok(Opened::Probe(plain))
            }
        }
    }

    /// To be called behind the last record of one receive call: hands out the open packet, unless its sender has
    /// said that the next record continues it.
    #[inline]
    pub fn pause(&mut self, device: &mut impl Deliver) {
        if self.run.as_ref().is_some_and(|run| !run.more) {
            self.flush(device);
        }
    }

    /// Hands out the open packet. To be called when there is nothing more to receive.
    #[inline]
    pub fn flush(&mut self, device: &mut impl Deliver) {
        let Some(run) = self.run.take() else { return };
        let frame = &mut self.arena[START - VNET_LEN..run.end];
        let (vnet, packet) = frame.split_at_mut(VNET_LEN);
        vnet.copy_from_slice(&run.finish(packet).to_bytes());
        device.deliver(frame);
    }

    fn unbundle(&mut self, source: Source, counter: u64, plain_len: usize, device: &mut impl Deliver) {
        let mut at = 0;
        while let Some(&[high, low]) = self.scratch[..plain_len].get(at..at + CHUNK_HEADER_LEN) {
            let head = u16::from_be_bytes([high, low]);
            let len = usize::from(head & CHUNK_LEN_MASK);
            let start = at + CHUNK_HEADER_LEN;
            if len == 0 {
                return;
            }
            if start + len > plain_len {
                self.refused.malformed += 1;
                return;
            }
            let flags = Flags::PARTIAL
                .when(head & CHUNK_PARTIAL != 0)
                .with(Flags::CONTINUES.when(head & CHUNK_CONTINUES != 0));
            // Within a bundle, the run's next counter is this record's own.
            let expected = if at == 0 { counter } else { counter + 1 };
            let chunk = &self.scratch[start..start + len];
            if let Some(run) = &mut self.run
                && run.is_continued_by(source, expected, flags, len)
            {
                let opened = run.append_sealed(&mut self.arena, len, |plain| {
                    plain.copy_from_slice(chunk);
                    Ok::<(), Forged>(())
                });
                debug_assert!(opened.is_ok(), "copying never fails");
                run.next = counter + 1;
                run.more = false;
            } else {
                self.flush(device);
                self.arena[START..START + len].copy_from_slice(&self.scratch[start..start + len]);
                self.begin(Piece { source, next: counter + 1, flags, len }, device);
            }
            at = start + len;
        }
    }

    /// Starts a packet with the piece at [`START`]. What can have no continuation is handed out at once.
    fn begin(&mut self, piece: Piece, device: &mut impl Deliver) {
        let Piece { source, next, flags, len } = piece;
        let packet = &mut self.arena[START..START + len];
        let partial = flags.has(Flags::PARTIAL);
        let Ok(inner) = Inner::parse(packet) else {
            self.refused.malformed += 1;
            return;
        };
        let whole = inner.claimed_len == len;
        let completable = inner.transport != Transport::Other && inner.header_len <= MAX_TEMPLATE;
        if len > MAX_PACKET || !(if partial { completable } else { whole }) {
            self.refused.malformed += 1;
            return;
        }
        if !device.admits(inner.source(packet)) {
            self.refused.source += 1;
            return;
        }
        let before = inner.ecn(packet);
        let Some(after) = before.decapsulated(source.outer) else {
            self.refused.congested += 1;
            return;
        };
        if after != before {
            inner.set_ecn(packet, after);
        }
        let joined = match inner.transport {
            Transport::Tcp => self.joins.tcp,
            Transport::Udp => self.joins.udp,
            Transport::Other => false,
        };
        let last_tcp_flags =
            if inner.transport == Transport::Tcp { packet[inner.ip_len + TCP_FLAGS] } else { 0 };
        self.run = Some(Run {
            source,
            next,
            more: flags.has(Flags::MORE),
            inner,
            end: START + len,
            stride: len - inner.header_len,
            pieces: if partial { 1 } else { 0 },
            closed: !partial || !joined || len == inner.header_len,
            last_tcp_flags,
        });
        if !partial || !joined {
            self.flush(device);
        }
    }
}

impl Run {
    #[inline]
    fn is_continued_by(&self, source: Source, counter: u64, flags: Flags, len: usize) -> bool {
        let payload = len.saturating_sub(self.inner.header_len);
        flags.has(Flags::CONTINUES.with(Flags::PARTIAL))
            && counter == self.next
            && source == self.source
            && !self.closed
            && payload > 0
            && payload <= self.stride
            && self.end - START + payload <= MAX_PACKET
            && (self.inner.transport == Transport::Tcp || self.pieces < MAX_UDP_RUN)
    }

    /// Lets `open` write the next piece so that its payload follows on the run's last byte.
    ///
    /// # Errors
    /// Those of `open`; the run is then as it was.
    #[inline]
    fn append_sealed<E>(
        &mut self,
        arena: &mut [u8],
        len: usize,
        open: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let header_len = self.inner.header_len;
        let at = self.end - header_len;
        let mut aside = [0; MAX_TEMPLATE];
        aside[..header_len].copy_from_slice(&arena[at..self.end]);
        let opened = open(&mut arena[at..at + len]);
        if opened.is_ok() {
            if self.inner.transport == Transport::Tcp {
                self.last_tcp_flags = arena[at + self.inner.ip_len + TCP_FLAGS];
            }
            self.pieces += 1;
            self.closed = len - header_len < self.stride;
        }
        arena[at..self.end].copy_from_slice(&aside[..header_len]);
        if opened.is_ok() {
            self.end = at + len;
        }
        opened
    }

    /// Writes what was left open in the packet's headers, and says what the device is to know.
    fn finish(&self, packet: &mut [u8]) -> VnetHeader {
        let Some(offset) = self.inner.transport.checksum_offset().filter(|_| self.pieces > 0) else {
            return VnetHeader::default();
        };
        if self.inner.transport == Transport::Tcp {
            packet[self.inner.ip_len + TCP_FLAGS] |= self.last_tcp_flags & FIN_PSH;
        }
        self.inner.complete(packet);
        let gso = match (self.pieces, self.inner.transport, self.inner.v4) {
            (0 | 1, ..) | (_, Transport::Other, _) => Gso::None,
            (_, Transport::Tcp, true) => Gso::TcpV4,
            (_, Transport::Tcp, false) => Gso::TcpV6,
            (_, Transport::Udp, _) => Gso::Udp,
        };
        let size = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        VnetHeader {
            needs_csum: true,
            gso,
            header_len: size(self.inner.header_len),
            gso_size: if gso == Gso::None { 0 } else { size(self.stride) },
            csum_start: size(self.inner.ip_len),
            csum_offset: size(offset),
        }
    }
}
