use proptest::prelude::*;

use super::*;

fn header(kind: Kind) -> Header {
    Header {
        kind,
        flags: Flags::MORE,
        queue: 3,
        epoch: 9,
        receiver: 0xdead_beef,
        confirmed: 8,
        counter: 0x1_0203,
    }
}

#[test]
fn the_picture_in_the_documentation_is_what_is_written() {
    let bytes = header(Kind::Bundle).to_bytes();
    assert_eq!(bytes, [0x11, 2, 3, 9, 0xde, 0xad, 0xbe, 0xef, 8, 0, 0, 0, 0, 1, 2, 3]);
    assert_eq!(bytes[QUEUE_OFFSET], 3);
}

#[test]
fn a_record_without_room_for_a_tag_is_refused() {
    let mut record = header(Kind::Packet).to_bytes().to_vec();
    record.resize(OVERHEAD - 1, 0);
    assert_eq!(Header::parse(&record), Err(HeaderError::Short));
    record.push(0);
    assert_eq!(Header::parse(&record), Ok(header(Kind::Packet)));
}

#[test]
fn other_protocols_are_refused_by_their_first_byte() {
    for first in [0x00, 0x08, 0x40, 0xc0, 0x80] {
        assert_eq!(Header::parse(&[first; OVERHEAD]), Err(HeaderError::Version), "{first:#x}");
    }
}

proptest! {
    #[test]
    fn what_parses_is_written_back_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert_eq!(&header.to_bytes()[..], &bytes[..HEADER_LEN]);
        }
    }

    #[test]
    fn what_is_written_parses_to_the_same(queue: u8, epoch: u8, receiver: u32, confirmed: u8, counter in 0..=MAX_COUNTER) {
        let header = Header { kind: Kind::Probe, flags: Flags::NONE, queue, epoch, receiver, confirmed, counter };
        let mut record = header.to_bytes().to_vec();
        record.resize(OVERHEAD, 0);
        prop_assert_eq!(Header::parse(&record), Ok(header));
    }
}
