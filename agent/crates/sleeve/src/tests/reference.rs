//! Packets as a device hands them out, and what a network card would make of them: written plainly, sharing no code
//! with what is tested.

use proptest::prelude::*;

use crate::vnet::{Gso, VnetHeader};

/// What is read from a device.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) vnet: VnetHeader,
    pub(super) bytes: Vec<u8>,
}

impl Packet {
    /// As it is read from the device.
    pub(super) fn frame(&self) -> Vec<u8> {
        [&self.vnet.to_bytes()[..], &self.bytes].concat()
    }
}

fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        sum += u64::from(byte) << if index % 2 == 0 { 8 } else { 0 };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo_header(packet: &[u8], ip_len: usize, protocol: u8) -> Vec<u8> {
    let len = (packet.len() - ip_len) as u32;
    let mut pseudo = if packet[0] >> 4 == 4 { packet[12..20].to_vec() } else { packet[8..40].to_vec() };
    pseudo.extend_from_slice(&len.to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, protocol]);
    pseudo
}

/// Makes the IPv4 header checksum right.
pub(super) fn fix_ip_sum(packet: &mut [u8]) {
    let ip_len = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = !ones_sum(&packet[..ip_len]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn set_lengths(packet: &mut [u8], ip_len: usize, udp: bool) {
    let len = packet.len() as u16;
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        fix_ip_sum(packet);
    } else {
        packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
    }
    if udp {
        packet[ip_len + 4..ip_len + 6].copy_from_slice(&(len - ip_len as u16).to_be_bytes());
    }
}

/// The packets that a network card with every offload would send for this one.
pub(super) fn network_packets(packet: &Packet) -> Vec<Vec<u8>> {
    let Packet { vnet, bytes } = packet;
    if !vnet.needs_csum {
        return vec![bytes.clone()];
    }
    let start = usize::from(vnet.csum_start);
    let at = start + usize::from(vnet.csum_offset);
    let udp = vnet.csum_offset == 6;
    let header_len = if udp { start + 8 } else { start + usize::from(bytes[start + 12] >> 4) * 4 };
    let protocol = if udp { 17 } else { 6 };
    let (head, payload) = bytes.split_at(header_len);
    let chunks: Vec<&[u8]> = match vnet.gso {
        Gso::None => vec![payload],
        Gso::TcpV4 | Gso::TcpV6 | Gso::Udp => payload.chunks(usize::from(vnet.gso_size)).collect(),
    };
    let last = chunks.len() - 1;
    let mut sequence =
        if udp { 0 } else { u32::from_be_bytes(bytes[start + 4..start + 8].try_into().unwrap()) };
    let mut out = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let mut one = [head, chunk].concat();
        if one[0] >> 4 == 4 {
            let id = u16::from_be_bytes([one[4], one[5]]).wrapping_add(index as u16);
            one[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if !udp {
            one[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            sequence = sequence.wrapping_add(chunk.len() as u32);
            if index > 0 {
                one[start + 13] &= !0x80;
            }
            if index < last {
                one[start + 13] &= !0x09;
            }
        }
        set_lengths(&mut one, start, udp);
        one[at..at + 2].fill(0);
        let summed = [pseudo_header(&one, start, protocol), one[start..].to_vec()].concat();
        let sum = !ones_sum(&summed);
        let sum = if udp && sum == 0 { 0xffff } else { sum };
        one[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        out.push(one);
    }
    out
}

/// Puts the pseudo header's sum where the kernel puts it in a packet that is still to be summed.
fn offloaded(mut bytes: Vec<u8>, ip_len: usize, udp: bool, gso: Gso, gso_size: u16) -> Packet {
    set_lengths(&mut bytes, ip_len, udp);
    let (protocol, offset) = if udp { (17, 6) } else { (6, 16) };
    let sum = ones_sum(&pseudo_header(&bytes, ip_len, protocol));
    bytes[ip_len + offset..ip_len + offset + 2].copy_from_slice(&sum.to_be_bytes());
    let vnet = VnetHeader {
        needs_csum: true,
        gso,
        header_len: 0,
        gso_size,
        csum_start: ip_len as u16,
        csum_offset: offset as u16,
    };
    Packet { vnet, bytes }
}

fn payload(len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(|index| (index * 31 + index / 251) as u8)
}

fn ipv4(protocol: u8, id: u16, dont_fragment: bool) -> Vec<u8> {
    let mut head = vec![0x45, 0, 0, 0, 0, 0, if dont_fragment { 0x40 } else { 0 }, 0, 64, protocol, 0, 0];
    head[4..6].copy_from_slice(&id.to_be_bytes());
    head.extend_from_slice(&[10, 32, 0, 2, 10, 32, 0, 3]);
    head
}

fn ipv6(protocol: u8, extended: bool) -> Vec<u8> {
    let mut head = vec![0x60, 0, 0, 0, 0, 0, if extended { 60 } else { protocol }, 64];
    head.extend([0xfd; 16]);
    head.extend([0xfe; 16]);
    if extended {
        head.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
    }
    head
}

fn tcp(flags: u8, sequence: u32, timestamps: bool) -> Vec<u8> {
    let mut head = vec![0x12, 0x34, 0, 80];
    head.extend_from_slice(&sequence.to_be_bytes());
    head.extend_from_slice(&[0, 0, 0, 9, if timestamps { 0x80 } else { 0x50 }, flags, 1, 0, 0, 0, 0, 0]);
    if timestamps {
        head.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    head
}

/// A TCP super-packet of so many payload bytes.
pub(super) fn tcp_v4(len: usize, gso_size: u16, flags: u8) -> Packet {
    let bytes = [ipv4(6, 7, true), tcp(flags, u32::MAX - 20_000, true), payload(len).collect()].concat();
    offloaded(bytes, 20, false, Gso::TcpV4, gso_size)
}

/// An acknowledgement of one stream, up to this byte.
pub(super) fn acknowledgement(up_to: u32) -> Packet {
    let mut head = tcp(0x10, 77, true);
    head[8..12].copy_from_slice(&up_to.to_be_bytes());
    offloaded([ipv4(6, up_to as u16, true), head].concat(), 20, false, Gso::None, 0)
}

/// One UDP datagram.
pub(super) fn udp_v4(len: usize, id: u16) -> Packet {
    let bytes = [ipv4(17, id, false), vec![0x30, 0x39, 0, 53, 0, 0, 0, 0], payload(len).collect()].concat();
    offloaded(bytes, 20, true, Gso::None, 0)
}

fn plain(bytes: Vec<u8>) -> Packet {
    Packet { vnet: VnetHeader::default(), bytes }
}

/// Any packet that a device may hand out.
pub(super) fn random_packet() -> impl Strategy<Value = Packet> {
    let tcp_super = (1_usize..60_000, 40_u16..1388, any::<u8>(), any::<(bool, bool, u32)>()).prop_map(
        |(len, gso_size, flags, (v6, extended, sequence))| {
            // Few enough pieces for a test, and at least two.
            let gso_size = usize::from(gso_size).max(len / 60 + 1).min(1388 - 40);
            let gso = if v6 { Gso::TcpV6 } else { Gso::TcpV4 };
            let ip = if v6 { ipv6(6, extended) } else { ipv4(6, sequence as u16, false) };
            let ip_len = ip.len();
            // The kernel hands out no super-packet with CWR, since that offload is not asked for.
            let head = tcp(flags & !0x80, sequence, extended);
            let bytes = [ip, head, payload(len).collect()].concat();
            if len > gso_size {
                offloaded(bytes, ip_len, false, gso, gso_size as u16)
            } else if bytes.len() <= 1440 {
                offloaded(bytes, ip_len, false, Gso::None, 0)
            } else {
                offloaded(bytes, ip_len, false, gso, gso_size as u16)
            }
        },
    );
    let udp_super = (200_usize..20_000, 100_u16..1300, any::<bool>()).prop_map(|(len, gso_size, v6)| {
        let gso_size = gso_size.max((len / 60) as u16 + 1);
        let ip = if v6 { ipv6(17, false) } else { ipv4(17, 100, true) };
        let ip_len = ip.len();
        let bytes = [ip, vec![1, 2, 3, 4, 0, 0, 0, 0], payload(len).collect()].concat();
        offloaded(bytes, ip_len, true, Gso::Udp, gso_size)
    });
    let summed = (0_usize..1300, any::<u16>())
        .prop_map(|(len, id)| plain(network_packets(&udp_v4(len, id)).remove(0)));
    let other = (0_usize..1300, any::<bool>()).prop_map(|(len, v6)| {
        let ip = if v6 { ipv6(132, false) } else { ipv4(132, 3, false) };
        let ip_len = ip.len();
        let mut bytes = [ip, payload(len).collect()].concat();
        set_lengths(&mut bytes, ip_len, false);
        plain(bytes)
    });
    let datagram = (0_usize..1400, any::<u16>()).prop_map(|(len, id)| udp_v4(len, id));
    let flow = (0_usize..3, 0_u16..5).prop_map(|(size, id)| udp_v4([50, 300, 1200][size], id));
    prop_oneof![2 => tcp_super, 1 => udp_super, 1 => summed, 1 => other, 2 => datagram, 4 => flow]
}
