use super::*;

const UDP_V4: [u8; 30] = [
    0x45, 0, 0, 30, 0, 1, 0, 0, 64, 17, 0, 0, 10, 32, 0, 2, 10, 32, 0, 3, // IPv4
    0, 7, 0, 9, 0, 10, 0, 0, b'h', b'i', // UDP
];

#[test]
fn the_shape_of_a_datagram_is_read() {
    let inner = Inner::parse(&UDP_V4).unwrap();
    assert_eq!(
        inner,
        Inner { v4: true, transport: Transport::Udp, ip_len: 20, header_len: 28, claimed_len: 30 }
    );
    assert_eq!(inner.source(&UDP_V4), "10.32.0.2".parse::<IpAddr>().unwrap());
    assert_eq!(inner.destination(&UDP_V4), "10.32.0.3".parse::<IpAddr>().unwrap());
}

#[test]
fn a_fragment_is_never_taken_for_a_datagram() {
    for (high, low) in [(0x20, 0), (0, 1), (0x1f, 0xff)] {
        let mut packet = UDP_V4;
        (packet[6], packet[7]) = (high, low);
        assert_eq!(Inner::parse(&packet).unwrap().transport, Transport::Other);
    }
    let mut dont_fragment = UDP_V4;
    dont_fragment[6] = 0x40;
    assert_eq!(Inner::parse(&dont_fragment).unwrap().transport, Transport::Udp);
}

#[test]
fn ipv6_extensions_are_walked_and_a_fragment_header_ends_the_walk() {
    let packet = |first: u8, extensions: &[u8]| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, first, 64];
        packet.extend([0xfd; 32]);
        packet.extend_from_slice(extensions);
        packet.extend([0; 20]);
        packet
    };
    let hop_by_hop_then_udp = packet(0, &[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]);
    let inner = Inner::parse(&hop_by_hop_then_udp).unwrap();
    assert_eq!((inner.transport, inner.ip_len, inner.header_len), (Transport::Udp, 56, 64));
    let fragment = packet(44, &[17, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(Inner::parse(&fragment).unwrap().transport, Transport::Other);
    let endless = packet(0, &[0, 255, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Inner::parse(&endless), Err(Malformed));
}

#[test]
fn every_truncation_is_refused_or_has_no_transport() {
    for len in 0..UDP_V4.len() {
        match Inner::parse(&UDP_V4[..len]) {
            Err(Malformed) => assert!(len < 20),
            Ok(inner) => assert_eq!(inner.transport == Transport::Udp, len >= 28, "{len}"),
        }
    }
}

#[test]
fn a_transport_without_a_known_checksum_place_is_summed_here() {
    // The one's complement sum of the whole, checksum included, is all ones.
    let mut packet = UDP_V4;
    finish_checksum(&mut packet, 20, 6).unwrap();
    assert_eq!(fold(sum_words(&packet[20..])), 0xffff);
    assert_eq!(finish_checksum(&mut packet, 31, 0), Err(Malformed));
    assert_eq!(finish_checksum(&mut packet, 20, 9), Err(Malformed));
    assert_eq!(finish_checksum(&mut packet, usize::MAX, 1), Err(Malformed));
}

#[test]
fn a_changed_codepoint_keeps_the_header_checksum_right() {
    let mut packet = UDP_V4;
    let inner = Inner::parse(&packet).unwrap();
    inner.complete(&mut packet);
    for ecn in [Ecn::Ect0, Ecn::Ce, Ecn::NotEct, Ecn::Ect1] {
        inner.set_ecn(&mut packet, ecn);
        assert_eq!(inner.ecn(&packet), ecn);
        assert_eq!(fold(sum_words(&packet[..20])), 0xffff, "{ecn:?}");
    }
}
