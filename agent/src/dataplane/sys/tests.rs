use std::net::UdpSocket;
use std::os::fd::AsFd;

use super::*;

fn pair(on: &str) -> (UdpSocket, UdpSocket) {
    let (a, b) = (UdpSocket::bind(on).unwrap(), UdpSocket::bind(on).unwrap());
    b.set_nonblocking(true).unwrap();
    for (level, name) in [
        (libc::SOL_UDP, libc::UDP_GRO),
        (libc::IPPROTO_IP, libc::IP_RECVTOS),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    ] {
        // The option of the other family is refused, which is fine.
        let _: io::Result<()> = set_option(b.as_fd(), level, name, 1);
    }
    (a, b)
}

/// Everything that has arrived: sending over loopback delivers before it returns.
fn all(socket: &UdpSocket) -> (Vec<Vec<u8>>, Vec<Received>) {
    let (mut datagrams, mut calls) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 65_536];
    while let Ok(received) = receive(socket.as_fd(), &mut buffer) {
        datagrams.extend(buffer[..received.len].chunks(received.segment.max(1)).map(<[u8]>::to_vec));
        calls.push(received);
    }
    (datagrams, calls)
}

#[test]
fn a_segmented_send_arrives_as_its_segments_with_sender_and_traffic_class() {
    for on in ["127.0.0.1:0", "[::1]:0"] {
        let (a, b) = pair(on);
        let bytes: Vec<u8> = (0..4500_u32).map(|byte| byte as u8).collect();
        send_segmented(a.as_fd(), &b.local_addr().unwrap(), &bytes, 1000, 0b10).unwrap();
        let (datagrams, calls) = all(&b);
        assert_eq!(datagrams, bytes.chunks(1000).map(<[u8]>::to_vec).collect::<Vec<_>>(), "{on}");
        assert!(calls.iter().all(|call| call.from == a.local_addr().unwrap()));
        assert!(calls.iter().all(|call| call.traffic_class == 0b10), "{on}: {calls:?}");
    }
}

#[test]
fn one_datagram_needs_no_segmentation() {
    let (a, b) = pair("127.0.0.1:0");
    send_segmented(a.as_fd(), &b.local_addr().unwrap(), b"hello", 5, 0).unwrap();
    assert_eq!(all(&b).0, [b"hello"]);
}

#[test]
fn a_datagram_longer_than_the_buffer_is_reported_as_cut_off() {
    let (a, b) = pair("127.0.0.1:0");
    send_segmented(a.as_fd(), &b.local_addr().unwrap(), &[7; 300], 300, 0).unwrap();
    let received = receive(b.as_fd(), &mut [0; 100]).unwrap();
    assert!(received.truncated);
}

#[test]
fn an_empty_queue_would_block() {
    let (_, b) = pair("127.0.0.1:0");
    let error = receive(b.as_fd(), &mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_device_name_that_the_kernel_could_not_hold_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    for name in ["", "a-name-of-sixteen"] {
        assert_eq!(tun_attach(file.as_fd(), name, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
