//! Frames as an attacker would write them: every field is the attacker's choice, only checksums are right.
//!
//! ```text
//!   Ethernet  | destination 6 | source 6 | type 2 |
//!   ARP       | 0001 0800 06 04 | operation 2 | sender MAC 6, IP 4 | target MAC 6, IP 4 |
//!   IPv4      | 45 00 | length 2 | id 2, flags 2 | ttl, protocol | checksum 2 | source 4 | destination 4 |
//!   UDP       | source 2 | destination 2 | length 2 | checksum 2 (0: none) |
//!   VXLAN     | 08 00 00 00 | network 3 | 00 |  and then a whole Ethernet frame
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

/// The address that every station of a link listens to.
pub const BROADCAST: [u8; 6] = [0xff; 6];

const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const PROTOCOL_UDP: u8 = 17;

/// What an ARP packet claims or asks.
#[derive(Debug, Clone, Copy)]
pub enum Arp {
    /// Who has this address?
    Request,
    /// It is I.
    Reply,
}

/// One station of a link.
#[derive(Debug, Clone, Copy)]
pub struct Station {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its IP address.
    pub ip: Ipv4Addr,
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind, payload].concat()
}

/// An ARP packet in a frame from `frame_source` to `frame_target`, which need not be the stations it speaks of.
#[must_use]
pub fn arp(operation: Arp, sender: Station, target: Station, frame_target: [u8; 6]) -> Vec<u8> {
    let code = match operation {
        Arp::Request => 1,
        Arp::Reply => 2,
    };
    let head = [0, 1, 8, 0, 6, 4, 0, code];
    let body = [&head[..], &sender.mac, &sender.ip.octets(), &target.mac, &target.ip.octets()].concat();
    ethernet(frame_target, sender.mac, TYPE_ARP, &body)
}

/// A UDP datagram in an IPv4 packet in a frame.
#[must_use]
pub fn udp_frame(macs: ([u8; 6], [u8; 6]), from: SocketAddrV4, to: SocketAddrV4, content: &[u8]) -> Vec<u8> {
    let (frame_target, frame_source) = macs;
    ethernet(frame_target, frame_source, TYPE_IPV4, &udp_packet(from, to, content))
}

/// A UDP datagram in an IPv4 packet.
#[must_use]
pub fn udp_packet(from: SocketAddrV4, to: SocketAddrV4, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + content.len()).unwrap_or(u16::MAX);
    let udp =
        [&from.port().to_be_bytes()[..], &to.port().to_be_bytes(), &length.to_be_bytes(), &[0, 0], content]
            .concat();
    [&ipv4_header(*from.ip(), *to.ip(), length)[..], &udp].concat()
}

/// What a VXLAN tunnel carries in its UDP datagrams.
#[must_use]
pub fn vxlan(network: u32, frame: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = network.to_be_bytes();
    [&[0x08, 0, 0, 0, high, middle, low, 0][..], frame].concat()
}

fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, payload: u16) -> Vec<u8> {
    let length = payload.saturating_add(20).to_be_bytes();
    let mut header = [
        &[0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, PROTOCOL_UDP, 0, 0][..],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let checksum = internet_checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    header
}

/// RFC 1071: the one's complement of the one's complement sum of 16-bit words. `bytes` is of even length.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
