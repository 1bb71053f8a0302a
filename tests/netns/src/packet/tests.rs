use super::*;

#[test]
fn an_ipv4_header_sums_to_zero_as_a_receiver_checks_it() {
    let header = ipv4_header(Ipv4Addr::new(10, 32, 0, 1), Ipv4Addr::new(10, 44, 0, 7), 100);
    assert_eq!(internet_checksum(&header), 0);
    assert_eq!(header.len(), 20);
}

#[test]
fn a_datagram_is_as_long_as_its_headers_say() {
    let from = SocketAddrV4::new(Ipv4Addr::new(10, 32, 0, 1), 1000);
    let to = SocketAddrV4::new(Ipv4Addr::new(10, 32, 0, 2), 2000);
    let frame = udp_frame((BROADCAST, [2, 0, 0, 0, 0, 1]), from, to, b"hello");
    assert_eq!(frame.len(), 14 + 20 + 8 + 5);
    assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), 33);
    assert_eq!(u16::from_be_bytes([frame[38], frame[39]]), 13);
}

#[test]
fn an_arp_frame_has_the_fields_where_rfc_826_wants_them() {
    let sender = Station { mac: [2, 0, 0, 0, 0, 1], ip: Ipv4Addr::new(10, 32, 0, 1) };
    let target = Station { mac: [0; 6], ip: Ipv4Addr::new(10, 32, 0, 2) };
    let frame = arp(Arp::Request, sender, target, BROADCAST);
    assert_eq!(frame.len(), 42);
    assert_eq!(&frame[12..22], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    assert_eq!(&frame[28..32], &[10, 32, 0, 1]);
    assert_eq!(&frame[38..42], &[10, 32, 0, 2]);
}
