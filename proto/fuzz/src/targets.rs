//! One function a decoder: it may refuse its input, and nothing else. It must not panic, not run for long, not keep
//! more than it was given, and what it accepts must survive being written and read again.
//!
//! The fuzzer calls these, and so does `proto/tests/replay.rs`, which every `cargo test` runs over the corpus.

use weave_proto::codec::{Framer, HEADER_LEN, Kind, decode, decode_frame, encode};
use weave_proto::local::{cni, control};
use weave_proto::peer::WireVersion;

const V1: WireVersion = WireVersion(1);

/// A whole stream, of which the first byte says in pieces of which size it arrives.
pub fn frames(data: &[u8]) {
    let Some((&size, stream)) = data.split_first() else { return };
    let mut framer = Framer::new();
    framer.speak(V1);
    for piece in stream.chunks(usize::from(size).max(1)) {
        framer.feed(piece);
        loop {
            match framer.poll() {
                Ok(Some(message)) => drop(encode(&message, V1).expect("what was read can be written")),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(framer.buffered() <= stream.len());
    }
}

/// A payload of one kind.
fn message(kind: Kind, payload: &[u8]) {
    if let Ok(message) = decode(kind, V1, payload) {
        let frame = encode(&message, V1).expect("what was read can be written");
        assert_eq!(decode(kind, V1, &frame[HEADER_LEN..]), Ok(message));
    }
}

/// The payload of a hello.
pub fn hello(data: &[u8]) {
    message(Kind::Hello, data);
}

/// The payload of a refusal.
pub fn refusal(data: &[u8]) {
    // The text is cut when it is written, so only the second time round is it the same.
    if let Ok(read) = decode(Kind::Refusal, V1, data) {
        let frame = encode(&read, V1).expect("what was read can be written");
        message(Kind::Refusal, &frame[HEADER_LEN..]);
    }
}

/// The payload of a warning.
pub fn warning(data: &[u8]) {
    // As a refusal.
    if let Ok(read) = decode(Kind::Warning, V1, data) {
        let frame = encode(&read, V1).expect("what was read can be written");
        message(Kind::Warning, &frame[HEADER_LEN..]);
    }
}

/// The payload of a topology message.
pub fn topology(data: &[u8]) {
    message(Kind::Topology, data);
}

/// The payload of a digest.
pub fn digest(data: &[u8]) {
    message(Kind::Digest, data);
}

/// The payload of a want.
pub fn want(data: &[u8]) {
    message(Kind::Want, data);
}

/// The payload of an IPAM state.
pub fn ipam(data: &[u8]) {
    message(Kind::Ipam, data);
}

/// The payload of a directed message.
pub fn directed(data: &[u8]) {
    message(Kind::Directed, data);
}

/// The payload of a peer's terms.
pub fn terms(data: &[u8]) {
    message(Kind::Terms, data);
}

/// The payload of an offer.
pub fn offer(data: &[u8]) {
    message(Kind::Offer, data);
}

/// The payload of a routed message.
pub fn routed(data: &[u8]) {
    message(Kind::Routed, data);
}

/// The payload of a handshake through the mesh, and the same as the frame that a routed message brings.
pub fn handshake(data: &[u8]) {
    message(Kind::Handshake, data);
    if let Ok(Some(message)) = decode_frame(V1, data) {
        encode(&message, V1).expect("what was read can be written");
    }
}

/// A line from the command line tool.
pub fn control_request(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<control::Request>(data) {
        let line = serde_json::to_vec(&request).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<control::Request>(&line).expect("and read again"), request);
    }
}

/// A line from the CNI shim.
pub fn cni_request(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<cni::Request>(data) {
        let line = serde_json::to_vec(&request).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<cni::Request>(&line).expect("and read again"), request);
    }
}
