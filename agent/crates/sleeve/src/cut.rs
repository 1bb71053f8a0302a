//! A super-packet, cut into pieces without touching its checksums.
//!
//! Every piece is an inner packet in itself: the headers of the super-packet (the *template*), then one segment of
//! the payload. So a lost record costs its own segment and nothing else, and the pieces that did arrive need no
//! flow table to be joined again. What would take time (lengths, IPv4 checksum, transport checksum) is left to the
//! receiving end, which does it once for all the pieces that it joins. Only what distinguishes one piece from
//! another is written here: the TCP sequence number, the IPv4 identification, and the flags that belong to the
//! first (CWR) or the last piece (PSH, FIN).
//!
//! The template of piece *k* is written right before its payload, *over the end of piece k−1*, which has been
//! sealed by then: sealing copies into the send buffer, so each payload byte is moved exactly once.
//!
//! ```text
//! super-packet   | template | payload 0      | payload 1      | payload 2   |
//! piece 0        | template | payload 0      |
//! piece 1                        | template' | payload 1      |
//! piece 2                                         | template" | payload 2   |
//! ```

use crate::header::Flags;
use crate::inner::{Inner, MAX_TEMPLATE, Malformed, Transport, finish_checksum};
use crate::vnet::{Gso, VNET_LEN, VnetHeader};

const SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
/// Congestion window reduced: said once, so only the first piece may say it.
const CWR: u8 = 0x80;

/// Why a packet cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// No well-formed packet.
    #[error("no well-formed IP packet")]
    Malformed,
    /// Longer than a record to this peer can be, and not of a kind that may be cut smaller.
    #[error("longer than the path to the peer allows")]
    TooLong,
}

impl From<Malformed> for CutError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// A packet as the device hands it out.
pub struct Packet<'p> {
    /// What the kernel has left to do.
    pub vnet: VnetHeader,
    /// The packet's shape.
    pub inner: Inner,
    /// The packet.
    pub bytes: &'p mut [u8],
}

impl<'p> Packet<'p> {
    /// The packet in what was read from the device.
    ///
    /// # Errors
    /// There is no well-formed packet, or one of a kind that was not asked for.
    #[inline]
    pub fn parse(frame: &'p mut [u8]) -> Result<Self, Malformed> {
        let (vnet, bytes) = frame.split_first_chunk_mut::<VNET_LEN>().ok_or(Malformed)?;
        let vnet = VnetHeader::parse(vnet).map_err(|_| Malformed)?;
        let inner = Inner::parse(bytes)?;
        Ok(Self { vnet, inner, bytes })
    }
}

/// A single TCP packet whose checksum is still open, as a super-packet of one segment: it may be cut like one.
fn as_super_packet(vnet: VnetHeader, inner: &Inner) -> VnetHeader {
    let open = vnet.gso == Gso::None && vnet.needs_csum && usize::from(vnet.csum_start) == inner.ip_len;
    if !open || inner.transport != Transport::Tcp {
        return vnet;
    }
    let gso = if inner.v4 { Gso::TcpV4 } else { Gso::TcpV6 };
    VnetHeader { gso, gso_size: u16::MAX, ..vnet }
}

/// A packet on its way into records. An ordinary packet is a cut of one piece.
pub struct Cut<'p> {
    packet: &'p mut [u8],
    inner: Inner,
    template: [u8; MAX_TEMPLATE],
    /// Payload bytes of each piece but the last.
    stride: usize,
    pieces: usize,
    partial: bool,
    at: usize,
}

impl<'p> Cut<'p> {
    /// Plans the cut of `packet`, so that no piece is longer than `capacity`. TCP is cut finer than the kernel asked
    /// for where the path has become narrower, be it a super-packet or a single one.
    ///
    /// # Errors
    /// The packet is malformed, or too long for the path.
    #[inline]
    pub fn new(packet: Packet<'p>, capacity: usize) -> Result<Self, CutError> {
        let Packet { vnet, inner, bytes: packet } = packet;
        if inner.claimed_len != packet.len() {
            return Err(CutError::Malformed);
        }
        let vnet = if packet.len() > capacity { as_super_packet(vnet, &inner) } else { vnet };
        let whole =
            Self { packet, inner, template: [0; MAX_TEMPLATE], stride: 0, pieces: 1, partial: false, at: 0 };
        if vnet.gso == Gso::None { whole.uncut(&vnet, capacity) } else { whole.cut(&vnet, capacity) }
    }

    fn uncut(mut self, vnet: &VnetHeader, capacity: usize) -> Result<Self, CutError> {
        if self.packet.len() > capacity {
            return Err(CutError::TooLong);
        }
        if vnet.needs_csum {
            let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
            let plain = start == self.inner.ip_len && self.inner.transport.checksum_offset() == Some(offset);
            if plain {
                self.partial = true;
            } else {
                finish_checksum(self.packet, start, offset)?;
            }
        }
        Ok(self)
    }

    fn cut(mut self, vnet: &VnetHeader, capacity: usize) -> Result<Self, CutError> {
        let expected = match vnet.gso {
            Gso::TcpV4 | Gso::TcpV6 => Transport::Tcp,
            Gso::Udp => Transport::Udp,
            Gso::None => Transport::Other,
        };
        let header_len = self.inner.header_len;
        if self.inner.transport != expected || header_len > MAX_TEMPLATE || vnet.gso_size == 0 {
            return Err(CutError::Malformed);
        }
        let room = capacity.checked_sub(header_len).filter(|&room| room > 0).ok_or(CutError::TooLong)?;
        let asked = usize::from(vnet.gso_size);
        if asked > room && expected == Transport::Udp {
            return Err(CutError::TooLong);
        }
        self.stride = asked.min(room);
        self.pieces = (self.packet.len() - header_len).div_ceil(self.stride).max(1);
        self.partial = true;
        self.template[..header_len].copy_from_slice(&self.packet[..header_len]);
        Ok(self)
    }

    /// The packet's shape.
    #[must_use]
    pub const fn inner(&self) -> &Inner {
        &self.inner
    }

    /// How many pieces there are in all.
    #[must_use]
    pub const fn pieces(&self) -> usize {
        self.pieces
    }

    /// How many pieces have been taken.
    #[must_use]
    pub const fn taken(&self) -> usize {
        self.at
    }

    /// Whether the receiving end completes the packet.
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.partial
    }

    /// Bytes of the next piece; none after the last.
    #[inline]
    #[must_use]
    pub const fn next_len(&self) -> Option<usize> {
        if self.at == self.pieces {
            None
        } else if self.at + 1 < self.pieces {
            Some(self.inner.header_len + self.stride)
        } else {
            Some(self.packet.len() - self.at * self.stride)
        }
    }

    /// The next piece and the remarks that its record carries; none after the last.
    #[inline]
    pub fn next_piece(&mut self) -> Option<(Flags, &mut [u8])> {
        let len = self.next_len()?;
        let index = self.at;
        self.at += 1;
        let last = self.at == self.pieces;
        let start = index * self.stride;
        let flags = Flags::PARTIAL
            .when(self.partial)
            .with(Flags::CONTINUES.when(index > 0))
            .with(Flags::MORE.when(!last));
        if self.pieces > 1 {
            self.write_template(start, index, last);
        }
        Some((flags, &mut self.packet[start..start + len]))
    }

    #[inline]
    fn write_template(&mut self, start: usize, index: usize, last: bool) {
        let header_len = self.inner.header_len;
        let head = &mut self.packet[start..start + header_len];
        head.copy_from_slice(&self.template[..header_len]);
        if self.inner.v4 {
            let id = u16::from_be_bytes([head[4], head[5]]);
            #[expect(clippy::cast_possible_truncation, reason = "the identification wraps around")]
            head[4..6].copy_from_slice(&id.wrapping_add(index as u16).to_be_bytes());
        }
        if self.inner.transport == Transport::Tcp {
            let tcp = &mut head[self.inner.ip_len..];
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            #[expect(clippy::cast_possible_truncation, reason = "a packet has at most 64 KiB")]
            let moved = sequence.wrapping_add((index * self.stride) as u32);
            tcp[SEQUENCE..SEQUENCE + 4].copy_from_slice(&moved.to_be_bytes());
            tcp[TCP_FLAGS] &= !(if index > 0 { CWR } else { 0 } | if last { 0 } else { FIN | PSH });
        }
    }
}
