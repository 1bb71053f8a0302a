//! Whatever a hop is sent: what parses is written back the same, and is sent on changed in five bytes at most.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weave_sleeve::relay::{RELAY_LEN, Relay};

fuzz_target!(|bytes: &[u8]| {
    let Ok(relay) = Relay::parse(bytes) else { return };
    assert!(Relay::is_one(bytes));
    assert_eq!(relay.to_bytes(), bytes[..RELAY_LEN]);
    let mut sent = bytes.to_vec();
    match Relay::send_on(&mut sent, 7) {
        Ok(()) => {
            let expected = Relay { hops_left: relay.hops_left - 1, receiver: 7, ..relay };
            assert_eq!(Relay::parse(&sent), Ok(expected));
            assert_eq!(sent[RELAY_LEN..], bytes[RELAY_LEN..]);
        }
        Err(_) => assert!(relay.hops_left == 0 && sent == bytes),
    }
});
