mod golden;
mod samples;

use proptest::prelude::*;
use samples::{any_message, directed, founded, hello, record, refusal, state};

use super::*;
use crate::peer::RefusalCode;
use crate::peer::ipam::RingEntry;

const V1: WireVersion = WireVersion(1);

proptest! {
    #[test]
    fn every_message_comes_back_as_it_was(message in any_message()) {
        let frame = encode(&message, V1).unwrap();

        prop_assert_eq!(decode(Kind::of(&message), V1, &frame[HEADER_LEN..]), Ok(message));
    }

    #[test]
    fn a_stream_of_messages_comes_back_however_it_is_cut(
        messages in prop::collection::vec(any_message(), 0..6),
        cuts in prop::collection::vec(1_usize..200, 1..60),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message, V1).unwrap()).collect();
        let mut framer = speaking();
        let (mut found, mut rest, mut cuts) = (Vec::new(), stream.as_slice(), cuts.iter().cycle());

        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            framer.feed(piece);
            while let Some(message) = framer.poll().unwrap() {
                found.push(message);
            }
            rest = after;
        }

        prop_assert_eq!(found, messages);
        prop_assert_eq!(framer.buffered(), 0);
    }

    #[test]
    fn no_bytes_make_a_decoder_fail_in_any_other_way_than_an_error(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Ok(message) = decode(kind, V1, &payload) {
            // What was read can be said again; the bytes may differ, since a varint may be written too long.
            let frame = encode(&message, V1).unwrap();
            prop_assert_eq!(decode(kind, V1, &frame[HEADER_LEN..]), Ok(message));
        }
    }

    #[test]
    fn a_message_cut_short_or_drawn_out_is_an_error(message in any_message(), cut in any::<prop::sample::Index>()) {
        let frame = encode(&message, V1).unwrap();
        let (kind, payload) = (Kind::of(&message), &frame[HEADER_LEN..]);

        prop_assert!(decode(kind, V1, &payload[..cut.index(payload.len())]).is_err());
        let longer = [payload, &[0]].concat();
        prop_assert_eq!(decode(kind, V1, &longer), Err(DecodeError::TrailingBytes { kind, extra: 1 }));
    }
}

#[test]
fn a_frame_above_the_maximum_of_its_kind_is_refused_on_sight_of_its_header() {
    for kind in Kind::ALL {
        let mut framer = speaking();
        framer.feed(&header(kind.max_payload() + 1, kind.number()));

        let len = kind.max_payload() + 1;
        let refused = DecodeError::TooLong { kind: kind.number(), len, max: kind.max_payload() };
        assert_eq!(framer.poll(), Err(refused));
    }
}

#[test]
fn a_length_that_announces_everything_reserves_nothing() {
    let mut framer = speaking();
    framer.feed(&header(u32::MAX as usize, Kind::Ipam.number()));
    assert!(framer.poll().is_err());

    // A list that claims 2^60 entries, in a payload of a few bytes.
    let claim = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0x10];
    for kind in [Kind::Topology, Kind::Want, Kind::Digest] {
        assert!(decode(kind, V1, &claim).is_err());
    }
}

#[test]
fn unknown_kinds_are_skipped_without_being_kept_and_counted() {
    let mut framer = speaking();
    let len = 100_000;
    framer.feed(&header(len, 999));
    assert_eq!(framer.poll(), Ok(None));
    for _ in 0..100 {
        framer.feed(&vec![0xaa; len / 100]);
        assert_eq!(framer.poll(), Ok(None));
        assert_eq!(framer.buffered(), 0, "nothing of it is kept");
    }
    framer.feed(&header(0, 1000));
    framer.feed(&encode(&Message::Want(Vec::new()), V1).unwrap());

    assert_eq!(framer.poll(), Ok(Some(Message::Want(Vec::new()))));
    assert_eq!(framer.skipped(), 2);
}

#[test]
fn an_unknown_kind_may_not_keep_the_stream_busy_for_ever() {
    let mut framer = speaking();
    framer.feed(&header(MAX_UNKNOWN_PAYLOAD + 1, 999));

    let len = MAX_UNKNOWN_PAYLOAD + 1;
    assert_eq!(framer.poll(), Err(DecodeError::TooLong { kind: 999, len, max: MAX_UNKNOWN_PAYLOAD }));
}

#[test]
fn before_a_version_is_agreed_on_only_what_never_changes_is_read() {
    for message in [Message::Hello(hello()), Message::Refusal(refusal())] {
        let mut framer = Framer::new();
        framer.feed(&encode(&message, V1).unwrap());
        assert_eq!(framer.poll(), Ok(Some(message)));
    }
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_frozen()) {
        let mut framer = Framer::new();
        framer.feed(&header(0, kind.number()));
        assert_eq!(framer.poll(), Err(DecodeError::BeforeHello(kind)));
    }
}

#[test]
fn a_hello_and_a_refusal_can_be_said_and_read_in_any_version() {
    for version in [WireVersion(0), WireVersion(7)] {
        let message = Message::Hello(hello());
        let frame = encode(&message, version).unwrap();
        assert_eq!(frame, encode(&message, V1).unwrap());
        assert_eq!(decode(Kind::Hello, version, &frame[HEADER_LEN..]), Ok(message));

        assert_eq!(encode(&Message::Want(Vec::new()), version), Err(EncodeError::Version(version.0)));
        assert_eq!(decode(Kind::Want, version, &[0]), Err(DecodeError::Version(version.0)));
    }
}

#[test]
fn two_peers_speak_the_highest_version_that_both_know() {
    let range = |lowest, highest| (WireVersion(lowest), WireVersion(highest));

    assert_eq!(negotiate(range(1, 1), range(1, 1)), Some(WireVersion(1)));
    assert_eq!(negotiate(range(1, 2), range(2, 3)), Some(WireVersion(2)));
    assert_eq!(negotiate(range(2, 3), range(1, 2)), Some(WireVersion(2)));
    assert_eq!(negotiate(range(1, 5), range(2, 3)), Some(WireVersion(3)));
    assert_eq!(negotiate(range(1, 1), range(2, 3)), None);
    assert_eq!(negotiate(range(1, 3), range(2, 1)), None, "a range that is none");
}

#[test]
fn lists_beyond_their_stated_maximum_are_refused() {
    let too_many_records = Message::Topology(vec![record(0); MAX_RECORDS + 1]);
    let too_many_links = Message::Topology(vec![record(MAX_LINKS + 1)]);
    let mut founding = founded();
    let entry = RingEntry { version: 1, ..founding.ring[0] };
    founding.ring = vec![entry; MAX_RING_ENTRIES + 1];
    let too_long_ring = state(IpamPhase::Founded(Box::new(founding)));
    let granted = directed(IpamDirected::SpaceGranted { token: 1, state: Box::new(too_long_ring.clone()) });

    for message in
        [too_many_records, too_many_links, Message::Ipam(Box::new(too_long_ring)), Message::Directed(granted)]
    {
        let frame = encode(&message, V1).unwrap();
        let error = decode(Kind::of(&message), V1, &frame[HEADER_LEN..]).unwrap_err();
        assert!(matches!(error, DecodeError::TooMany { .. }), "{error}");
    }
}

#[test]
fn the_largest_messages_that_are_allowed_fit_into_their_frames() {
    let mut founding = founded();
    founding.ring = vec![RingEntry { version: u32::MAX, ..founding.ring[0] }; MAX_RING_ENTRIES];
    let largest = state(IpamPhase::Founded(Box::new(founding)));
    let granted = directed(IpamDirected::SpaceGranted { token: u64::MAX, state: Box::new(largest.clone()) });

    for message in [
        Message::Ipam(Box::new(largest)),
        Message::Directed(granted),
        Message::Topology(vec![record(MAX_LINKS); 30]),
    ] {
        let frame = encode(&message, V1).unwrap();
        assert_eq!(decode(Kind::of(&message), V1, &frame[HEADER_LEN..]), Ok(message));
    }
}

#[test]
fn a_message_that_is_too_long_is_not_sent() {
    let message = Message::Topology(vec![record(MAX_LINKS); MAX_RECORDS]);

    let error = encode(&message, V1).unwrap_err();

    assert!(matches!(error, EncodeError::TooLong { kind: Kind::Topology, .. }), "{error}");
    assert!(error.to_string().contains("at most 1048576 are allowed"), "{error}");
}

#[test]
fn a_refusal_that_says_too_much_is_cut_at_a_letter() {
    let text = "ä".repeat(MAX_REFUSAL_TEXT);
    let frame = encode(&Message::Refusal(Refusal { code: RefusalCode::Other(99), text }), V1).unwrap();

    let Ok(Message::Refusal(read)) = decode(Kind::Refusal, V1, &frame[HEADER_LEN..]) else { panic!() };
    assert_eq!(read.text, "ä".repeat(MAX_REFUSAL_TEXT / 2));
    assert_eq!(read.code, RefusalCode::Other(99));
}

#[test]
fn every_kind_has_its_own_number_and_finds_its_way_back() {
    assert!(Kind::ALL.is_sorted_by(|one, next| one.number() < next.number()));
    for kind in Kind::ALL {
        assert_eq!(Kind::from_number(kind.number()), Some(kind));
    }
    assert_eq!(Kind::from_number(0), None);
    assert_eq!(Kind::from_number(1000), None);
}

#[test]
fn a_large_frame_leaves_no_large_buffer_behind() {
    let mut framer = speaking();
    framer.feed(&encode(&Message::Topology(vec![record(MAX_LINKS); 20]), V1).unwrap());
    assert!(framer.poll().unwrap().is_some());

    assert!(framer.buffer.capacity() <= KEPT_BUFFER);
}

fn speaking() -> Framer {
    let mut framer = Framer::new();
    framer.speak(V1);
    framer
}

fn header(len: usize, kind: u16) -> Vec<u8> {
    [&u32::try_from(len).unwrap().to_be_bytes()[..], &kind.to_be_bytes()].concat()
}
