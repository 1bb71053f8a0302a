use proptest::prelude::*;

use super::*;
use crate::header::{Flags, HEADER_LEN, Kind, QUEUE_OFFSET};

fn relay() -> Relay {
    Relay {
        hops_left: 8,
        queue: 3,
        receiver: 0xdead_beef,
        to: PeerName::from_bits([2, 0, 0, 0, 0, 7]),
        from: PeerName::from_bits([0x7a, 1, 2, 3, 4, 5]),
    }
}

fn record(queue: u8, len: usize) -> Vec<u8> {
    let header = Header {
        kind: Kind::Packet,
        flags: Flags::NONE,
        queue,
        epoch: 1,
        receiver: 9,
        confirmed: 0,
        counter: 4,
    };
    let mut record = header.to_bytes().to_vec();
    record.resize(HEADER_LEN + len, 0xee);
    record
}

fn frame(relay: Relay, record: &[u8]) -> Vec<u8> {
    [&relay.to_bytes()[..], record].concat()
}

#[test]
fn the_picture_in_the_documentation_is_what_is_written() {
    let bytes = relay().to_bytes();
    assert_eq!(bytes[..8], [0x13, 8, 3, 0, 0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(bytes[8..], [2, 0, 0, 0, 0, 7, 0x7a, 1, 2, 3, 4, 5]);
    assert_eq!(bytes[QUEUE_OFFSET], 3, "a hop's kernel steers by the same byte as for a record");
}

#[test]
fn a_frame_is_no_record_and_a_record_no_frame() {
    let record = record(3, 40);
    let frame = frame(relay(), &record);
    assert!(Relay::is_one(&frame) && !Relay::is_one(&record));
    assert_eq!(Header::parse(&frame), Err(HeaderError::Unknown));
    assert_eq!(Relay::parse(&record), Err(HeaderError::Version));
}

#[test]
fn a_frame_carries_one_record_and_nothing_else() {
    let good = frame(relay(), &record(3, 16));
    assert_eq!(Relay::parse(&good), Ok(relay()));
    assert_eq!(Relay::parse(&good[..good.len() - 1]), Err(HeaderError::Short), "no room for a tag");
    assert_eq!(Relay::parse(&frame(relay(), &good)), Err(HeaderError::Unknown), "a frame within a frame");
    assert_eq!(Relay::parse(&frame(relay(), &record(4, 16))), Err(HeaderError::Unknown), "another queue");
    assert!(Relay::parse(&relay().to_bytes()).is_err());
}

#[test]
fn names_that_no_peer_can_have_are_refused() {
    for (at, value) in [(8, 3), (8, 0), (14, 1), (3, 1)] {
        let mut bytes = frame(relay(), &record(3, 16));
        bytes[at] = value;
        assert_eq!(Relay::parse(&bytes), Err(HeaderError::Unknown), "byte {at}");
    }
}

#[test]
fn the_last_hop_is_not_exceeded() {
    let mut bytes = frame(Relay { hops_left: 1, ..relay() }, &record(3, 16));
    assert_eq!(Relay::send_on(&mut bytes, 5), Ok(()));
    let before = bytes.clone();
    assert_eq!(Relay::send_on(&mut bytes, 6), Err(NoHopLeft));
    assert_eq!(bytes, before);
}

prop_compose! {
    fn any_relay()(hops_left: u8, queue: u8, receiver: u32, to: [u8; 6], from: [u8; 6]) -> Relay {
        Relay { hops_left, queue, receiver, to: PeerName::from_bits(to), from: PeerName::from_bits(from) }
    }
}

proptest! {
    #[test]
    fn what_is_written_parses_to_the_same(relay in any_relay(), len in 16_usize..100) {
        prop_assert_eq!(Relay::parse(&frame(relay, &record(relay.queue, len))), Ok(relay));
    }

    #[test]
    fn what_parses_is_written_back_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..80), begin: bool) {
        let mut bytes = bytes;
        if begin && bytes.len() > RELAY_LEN {
            bytes[0] = FIRST;
            bytes[3] = 0;
            bytes[RELAY_LEN] = VERSION << 4;
        }
        if let Ok(relay) = Relay::parse(&bytes) {
            prop_assert_eq!(&relay.to_bytes()[..], &bytes[..RELAY_LEN]);
        }
    }

    #[test]
    fn a_hop_changes_the_way_and_nothing_else(relay in any_relay(), receiver: u32, len in 16_usize..100) {
        let before = frame(relay, &record(relay.queue, len));
        let mut after = before.clone();
        let sent = Relay::send_on(&mut after, receiver);
        if relay.hops_left == 0 {
            prop_assert_eq!(sent, Err(NoHopLeft));
            prop_assert_eq!(after, before);
        } else {
            prop_assert_eq!(sent, Ok(()));
            prop_assert_eq!(Relay::parse(&after), Ok(Relay { hops_left: relay.hops_left - 1, receiver, ..relay }));
            prop_assert_eq!(&after[RELAY_LEN..], &before[RELAY_LEN..]);
        }
    }

    #[test]
    fn only_the_queue_may_differ_within_a_run(a in any_relay(), b in any_relay(), queue: u8) {
        let in_another_queue = Relay { queue, ..a };
        prop_assert!(a.goes_with(&in_another_queue));
        prop_assert_eq!(a.goes_with(&b), Relay { queue: b.queue, ..a } == b);
    }
}
