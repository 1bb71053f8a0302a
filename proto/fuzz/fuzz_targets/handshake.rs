#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_proto_fuzz::targets::handshake(data));
