//! What has to be known of an inner packet, and the few fields of it that are ever written.
//!
//! Offsets by hand, because this runs for each record; the tests check it against an independent parser written
//! the slow way. Every length comes from the other end or from a pod and is believed only after a comparison with
//! the bytes that are there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ecn::Ecn;

const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV4_MIN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_MIN: usize = 20;
const UDP_LEN: usize = 8;
const TCP_CSUM: usize = 16;
const UDP_CSUM: usize = 6;

/// Bytes of the longest headers that are cut from and rejoined: IPv6 with some extensions and a full TCP header.
pub const MAX_TEMPLATE: usize = 160;

/// The transport, as far as cutting and summing go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP with its whole header present.
    Tcp,
    /// UDP with its whole header present.
    Udp,
    /// Anything else, a fragment, or an incomplete header.
    Other,
}

impl Transport {
    /// Where in the transport header the checksum is.
    #[must_use]
    pub const fn checksum_offset(self) -> Option<usize> {
        match self {
            Self::Tcp => Some(TCP_CSUM),
            Self::Udp => Some(UDP_CSUM),
            Self::Other => None,
        }
    }
}

/// The shape of an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Whether it is IPv4; else it is IPv6.
    pub v4: bool,
    /// The transport.
    pub transport: Transport,
    /// Where the transport header starts.
    pub ip_len: usize,
    /// Where the payload starts: behind all headers.
    pub header_len: usize,
    /// The length that the IP header claims.
    pub claimed_len: usize,
}

/// The bytes are no IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no well-formed IP packet")]
pub struct Malformed;

impl Inner {
    /// Reads the shape. [`Inner::claimed_len`] is reported and not compared, because a piece of a super-packet still
    /// carries the length of the whole.
    ///
    /// # Errors
    /// The bytes do not start with a complete IPv4 or IPv6 header.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(Malformed),
        }
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Result<Self, Malformed> {
        let head = packet.first_chunk::<IPV4_MIN>().ok_or(Malformed)?;
        let ip_len = usize::from(head[0] & 0x0f) * 4;
        let claimed_len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if ip_len < IPV4_MIN || ip_len > packet.len() || claimed_len < ip_len {
            return Err(Malformed);
        }
        let is_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
        let protocol = if is_fragment { 0 } else { head[9] };
        let (transport, header_len) = transport_at(packet, ip_len, protocol);
        Ok(Self { v4: true, transport, ip_len, header_len, claimed_len })
    }

    #[inline]
    fn parse_v6(packet: &[u8]) -> Result<Self, Malformed> {
        let head = packet.first_chunk::<IPV6_LEN>().ok_or(Malformed)?;
        let claimed_len = IPV6_LEN + usize::from(u16::from_be_bytes([head[4], head[5]]));
        let (mut ip_len, mut next) = (IPV6_LEN, head[6]);
        // Hop-by-hop options, routing, destination options: a length in eight bytes each, less one.
        while matches!(next, 0 | 43 | 60) {
            let Some(&[following, len]) = packet.get(ip_len..ip_len + 2) else { break };
            next = following;
            ip_len += (usize::from(len) + 1) * 8;
        }
        if ip_len > packet.len() {
            return Err(Malformed);
        }
        let (transport, header_len) = transport_at(packet, ip_len, next);
        Ok(Self { v4: false, transport, ip_len, header_len, claimed_len })
    }

    /// The ECN codepoint.
    #[inline]
    #[must_use]
    pub fn ecn(&self, packet: &[u8]) -> Ecn {
        if self.v4 { Ecn::of(packet[1]) } else { Ecn::of(packet[1] >> 4) }
    }

    /// The source address.
    #[inline]
    #[must_use]
    pub fn source(&self, packet: &[u8]) -> IpAddr {
        self.address(packet, if self.v4 { 12 } else { 8 })
    }

    /// The destination address.
    #[inline]
    #[must_use]
    pub fn destination(&self, packet: &[u8]) -> IpAddr {
        self.address(packet, if self.v4 { 16 } else { 24 })
    }

    #[inline]
    fn address(&self, packet: &[u8], at: usize) -> IpAddr {
        if self.v4 {
            let mut octets = [0; 4];
            octets.copy_from_slice(&packet[at..at + 4]);
            IpAddr::V4(Ipv4Addr::from(octets))
        } else {
            let mut octets = [0; 16];
            octets.copy_from_slice(&packet[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    }

    /// Writes the ECN codepoint, keeping an IPv4 header checksum right (RFC 1624).
    pub fn set_ecn(&self, packet: &mut [u8], ecn: Ecn) {
        if self.v4 {
            let before = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] = packet[1] & !0b11 | ecn as u8;
            let after = u16::from_be_bytes([packet[0], packet[1]]);
            let checksum = u16::from_be_bytes([packet[10], packet[11]]);
            let sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
            packet[10..12].copy_from_slice(&(!fold(sum)).to_be_bytes());
        } else {
            packet[1] = packet[1] & !0b11_0000 | (ecn as u8) << 4;
        }
    }

    /// Completes a packet whose fields were left to the receiving end: the lengths in the IP and UDP headers, the
    /// IPv4 header checksum, and in the transport checksum's place the sum of the pseudo header, which is what a
    /// kernel expects that is asked to finish the sum.
    pub fn complete(&self, packet: &mut [u8]) {
        let transport_len = packet.len() - self.ip_len;
        if self.v4 {
            let packet_len = packet.len();
            packet[2..4].copy_from_slice(&be16(packet_len));
            packet[10..12].copy_from_slice(&[0, 0]);
            let sum = fold(sum_words(&packet[..self.ip_len]));
            packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
        } else {
            let payload_len = packet.len() - IPV6_LEN;
            packet[4..6].copy_from_slice(&be16(payload_len));
        }
        let (protocol, at) = match self.transport {
            Transport::Tcp => (TCP, self.ip_len + TCP_CSUM),
            Transport::Udp => {
                packet[self.ip_len + 4..self.ip_len + 6].copy_from_slice(&be16(transport_len));
                (UDP, self.ip_len + UDP_CSUM)
            }
            Transport::Other => return,
        };
        let addresses = if self.v4 { 12..20 } else { 8..40 };
        let of_len = u32::from(u16::from_be_bytes(be16(transport_len)));
        let sum = fold(sum_words(&packet[addresses]) + of_len + u32::from(protocol));
        packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

#[inline]
fn transport_at(packet: &[u8], ip_len: usize, protocol: u8) -> (Transport, usize) {
    let present = packet.len() - ip_len;
    if protocol == TCP && present >= TCP_MIN {
        let tcp_len = usize::from(packet[ip_len + 12] >> 4) * 4;
        if tcp_len >= TCP_MIN && tcp_len <= present {
            return (Transport::Tcp, ip_len + tcp_len);
        }
    } else if protocol == UDP && present >= UDP_LEN {
        return (Transport::Udp, ip_len + UDP_LEN);
    }
    (Transport::Other, ip_len)
}

/// Computes a checksum that the kernel left open, for the few packets where nobody behind us would: the ones'
/// complement sum from `start` to the end, which includes the pseudo header's sum in the field itself.
pub fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let at = start.checked_add(offset).ok_or(Malformed)?;
    if start > packet.len() || at + 2 > packet.len() {
        return Err(Malformed);
    }
    let sum = !fold(sum_words(&packet[start..]));
    // A UDP checksum of zero would mean "none"; its other form is the same number.
    let sum = if sum == 0 && offset == UDP_CSUM { 0xffff } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// The sum of the 16-bit words of at most 64 KiB; an odd last byte counts as the high half of a word.
fn sum_words(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u32 = words.iter().map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    sum + rest.first().map_or(0, |&last| u32::from(last) << 8)
}

#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits just before")]
const fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A length as the two bytes of a header field. Inner packets are at most 65,535 bytes; a longer one, which no
/// kernel hands out, keeps its low bits and is refused by whoever compares the length.
#[expect(clippy::cast_possible_truncation, reason = "see the comment above")]
const fn be16(len: usize) -> [u8; 2] {
    (len as u16).to_be_bytes()
}

#[cfg(test)]
mod tests;
