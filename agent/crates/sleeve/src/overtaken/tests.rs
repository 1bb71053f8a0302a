use super::*;

/// An acknowledgement of a stream over IPv4 or IPv6, with what follows on the 20 bytes of TCP.
fn acknowledgement(v4: bool, acknowledged: u32, options: &[u8]) -> Vec<u8> {
    let tcp_len = TCP_MIN + options.len();
    let mut packet = if v4 {
        let mut ip = vec![0x45, 0, 0, 20 + tcp_len as u8, 0, 0, 0x40, 0, 64, 6, 0, 0];
        ip.extend([10, 32, 0, 2, 10, 32, 0, 3]);
        ip
    } else {
        let mut ip = vec![0x60, 0, 0, 0, 0, tcp_len as u8, 6, 64];
        ip.extend([0xfd; 32]);
        ip
    };
    // Different in each packet: identification and checksums.
    if v4 {
        packet[4..6].copy_from_slice(&(acknowledged as u16).to_be_bytes());
    }
    packet.extend([0x12, 0x34, 0, 80, 0, 0, 1, 0]);
    packet.extend(acknowledged.to_be_bytes());
    packet.extend([(tcp_len as u8 / 4) << 4, ACK, 1, 0]);
    packet.extend((acknowledged as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(options);
    packet
}

fn stamped(v4: bool, acknowledged: u32, clock: u32) -> Vec<u8> {
    let options = [&TIMESTAMPS[..], &clock.to_be_bytes(), &[0, 0, 0, 7]].concat();
    acknowledgement(v4, acknowledged, &options)
}

fn says_all(later: &[u8], earlier: &[u8]) -> bool {
    overtakes((Inner::parse(later).unwrap(), later), earlier)
}

#[test]
fn who_acknowledges_more_overtakes() {
    for v4 in [true, false] {
        assert!(says_all(&acknowledgement(v4, 2, &[]), &acknowledgement(v4, 1, &[])));
        assert!(
            says_all(&acknowledgement(v4, 5, &[]), &acknowledgement(v4, u32::MAX - 5, &[])),
            "around the circle"
        );
        assert!(says_all(&stamped(v4, 2000, 9), &stamped(v4, 1000, 9)));
        assert!(says_all(&stamped(v4, 2000, 10), &stamped(v4, 1000, 9)));
    }
}

#[test]
fn the_window_of_the_later_one_counts() {
    let (mut later, earlier) = (stamped(true, 2, 9), stamped(true, 1, 9));
    later[20 + 14..20 + 16].copy_from_slice(&[0, 0]);
    assert!(says_all(&later, &earlier));
}

#[test]
fn duplicates_and_older_ones_pass() {
    let earlier = stamped(true, 1000, 9);
    assert!(!says_all(&stamped(true, 1000, 9), &earlier), "a duplicate is news");
    assert!(!says_all(&stamped(true, 999, 9), &earlier));
    assert!(!says_all(&stamped(true, 2000, 8), &earlier), "its clock has gone back");
}

#[test]
fn a_packet_that_differs_in_more_than_what_it_acknowledges_overtakes_nothing() {
    for v4 in [true, false] {
        let earlier = stamped(v4, 1000, 9);
        let tcp = if v4 { 20 } else { 40 };
        // Ports, sequence number, length of the header with reserved bits, flags; a byte each of the IP header that
        // tells flows or ways apart.
        let ip: &[usize] = if v4 { &[1, 6, 8, 12, 16, 19] } else { &[1, 3, 7, 8, 39] };
        let places = (tcp..tcp + 8).chain(tcp + 12..tcp + 14).chain(ip.iter().copied());
        for place in places {
            for bit in 0..8 {
                let mut later = stamped(v4, 2000, 9);
                later[place] ^= 1 << bit;
                let overtakes = Inner::parse(&later).is_ok_and(|inner| overtakes((inner, &later), &earlier));
                assert!(!overtakes, "bit {bit} of byte {place}");
            }
        }
    }
}

#[test]
fn what_both_say_besides_is_not_lost() {
    // The same flag in both: an echo of congestion, a push, an end, and each of the others.
    for bit in [0, 1, 2, 3, 5, 6, 7] {
        let (mut later, mut earlier) = (stamped(true, 2, 9), stamped(true, 1, 9));
        later[33] |= 1 << bit;
        earlier[33] |= 1 << bit;
        assert!(!says_all(&later, &earlier), "flag {bit}");
    }
    let selective = [1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    assert!(!says_all(&acknowledgement(true, 2, &selective), &acknowledgement(true, 1, &selective)));
    let both = [&TIMESTAMPS[..], &[0; 8], &selective].concat();
    assert!(!says_all(&acknowledgement(true, 2, &both), &acknowledgement(true, 1, &both)));
}

#[test]
fn data_is_no_acknowledgement() {
    let (mut later, mut earlier) = (stamped(true, 2, 9), stamped(true, 1, 9));
    for packet in [&mut later, &mut earlier] {
        packet.extend([1, 2, 3, 4]);
        packet[3] += 4;
    }
    assert!(!says_all(&later, &earlier));
    let udp =
        [&[0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0][..], &[10; 8], &[0, 1, 0, 2, 0, 8, 0, 0]].concat();
    assert!(!says_all(&udp, &udp));
}
