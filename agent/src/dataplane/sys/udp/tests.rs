use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use weave_sleeve::ecn::Ecn;

use super::*;
use crate::dataplane::sys::set_option;

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

const fn batch(datagrams: &[u8], segment: usize, ecn: Ecn) -> Batch<'_> {
    Batch { datagrams, segment, ecn }
}

fn send_all(from: &UdpSocket, to: &UdpSocket, batches: &[Batch<'_>]) {
    let sent = send(from.as_fd(), &to.local_addr().unwrap(), batches).unwrap();
    assert_eq!(sent, batches.len());
}

/// Everything that has arrived, received by calls for `most` runs: sending over loopback delivers before it returns.
fn all(socket: &UdpSocket, most: usize) -> (Vec<Vec<u8>>, Vec<Received>) {
    let (mut datagrams, mut runs) = (Vec::new(), Vec::new());
    let mut tray = Tray::new();
    while let Ok(count) = tray.receive(socket.as_fd(), most) {
        assert!(count <= most);
        for at in 0..count {
            let (received, run) = tray.run(at).unwrap();
            datagrams.extend(run.chunks(received.segment.max(1)).map(<[u8]>::to_vec));
            runs.push(received);
        }
    }
    (datagrams, runs)
}

#[test]
fn a_segmented_send_arrives_as_its_segments_with_sender_and_traffic_class() {
    for on in ["127.0.0.1:0", "[::1]:0"] {
        let (a, b) = pair(on);
        let bytes: Vec<u8> = (0..4500_u32).map(|byte| byte as u8).collect();
        send_all(&a, &b, &[batch(&bytes, 1000, Ecn::Ect0)]);
        let (datagrams, runs) = all(&b, 1);
        assert_eq!(datagrams, bytes.chunks(1000).map(<[u8]>::to_vec).collect::<Vec<_>>(), "{on}");
        assert!(runs.iter().all(|run| run.from == a.local_addr().unwrap()));
        assert!(runs.iter().all(|run| run.traffic_class == 0b10), "{on}: {runs:?}");
    }
}

#[test]
fn several_batches_of_different_kinds_go_by_one_call_and_come_by_one() {
    for on in ["127.0.0.1:0", "[::1]:0"] {
        let (a, b) = pair(on);
        let (long, short) = (vec![1; 2500], vec![2; 40]);
        let batches =
            [batch(&long, 1000, Ecn::NotEct), batch(&short, 40, Ecn::Ect1), batch(&long, 500, Ecn::Ce)];
        send_all(&a, &b, &batches);
        let expected: Vec<_> = batches
            .iter()
            .flat_map(|batch| batch.datagrams.chunks(batch.segment))
            .map(<[u8]>::to_vec)
            .collect();
        let mut tray = Tray::new();
        let count = tray.receive(b.as_fd(), MAX_RUNS).unwrap();
        let mut datagrams = Vec::new();
        for at in 0..count {
            let (received, run) = tray.run(at).unwrap();
            let ecn = if run[0] == 2 {
                0b01
            } else if received.segment == 1000 {
                0
            } else {
                0b11
            };
            assert_eq!(received.traffic_class, ecn, "{on}: {received:?}");
            datagrams.extend(run.chunks(received.segment).map(<[u8]>::to_vec));
        }
        assert_eq!(datagrams, expected, "{on}");
        assert_eq!(tray.run(count).map(|(received, _)| received), None);
    }
}

#[test]
fn no_more_is_received_by_a_call_than_was_asked_for_and_nothing_is_lost_by_asking_for_less() {
    let (a, b) = pair("127.0.0.1:0");
    for number in 0..10_u8 {
        send_all(&a, &b, &[batch(&[number; 5], 5, Ecn::NotEct)]);
    }
    let expected: Vec<_> = (0..10).map(|number| vec![number; 5]).collect();
    assert_eq!(all(&b, 3).0, expected);
}

#[test]
fn a_batch_that_is_refused_does_not_keep_those_before_it_back() {
    let (a, b) = pair("127.0.0.1:0");
    let good = batch(b"good", 4, Ecn::NotEct);
    // More segments than any kernel takes.
    let many = vec![3; 2000];
    let bad = batch(&many, 1, Ecn::NotEct);
    let to = b.local_addr().unwrap();
    assert_eq!(send(a.as_fd(), &to, &[good, bad, good]).unwrap(), 1);
    let error = send(a.as_fd(), &to, &[bad, good]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    assert_eq!(all(&b, 4).0, [b"good"]);
}

#[test]
fn a_datagram_longer_than_the_room_for_it_is_reported_as_cut_off() {
    let (a, b) = pair("127.0.0.1:0");
    send_all(&a, &b, &[batch(&[7; 300], 300, Ecn::NotEct)]);
    let mut tray = Tray::with_room(100);
    assert_eq!(tray.receive(b.as_fd(), 1).unwrap(), 1);
    assert!(tray.run(0).unwrap().0.truncated);
}

#[test]
fn an_empty_queue_would_block() {
    let (_, b) = pair("127.0.0.1:0");
    let error = Tray::new().receive(b.as_fd(), 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}
