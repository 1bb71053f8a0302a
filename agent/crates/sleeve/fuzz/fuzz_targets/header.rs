//! Whatever arrives from the network: it parses to something that is written back the same, or is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weave_sleeve::header::{HEADER_LEN, Header};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::parse(bytes) {
        assert_eq!(header.to_bytes(), bytes[..HEADER_LEN]);
    }
});
