//! Whatever a kernel hands out: nothing panics, and every record fits the path.

#![no_main]

use std::num::NonZeroU8;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use weave_sleeve::cut::Packet;
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::outbox::{Batch, MAX_BATCHES, Outbox, Road, Transmit};
use weave_sleeve::session::{Config, Output, Session};

struct Checks(usize);

impl Transmit for Checks {
    fn transmit(&mut self, batches: &[Batch<'_>]) {
        assert!((1..=MAX_BATCHES).contains(&batches.len()));
        assert!(batches.iter().all(|batch| batch.segment <= self.0 && !batch.datagrams.is_empty()));
    }
}

fuzz_target!(|input: (u16, &[u8])| {
    let (record_len, mut rest) = input;
    let record_len = usize::from(record_len).clamp(64, 9000);
    let one = NonZeroU8::MIN;
    let config = Config {
        role: Role::Initiator,
        suite: Suite::Aes128Gcm,
        send_queues: one,
        receive_queues: one,
        remote_index: 1,
        record_len,
    };
    let mut session = Session::new(config, &[1; 32], Instant::now());
    let seal = std::iter::from_fn(|| session.poll_output())
        .find_map(|output| if let Output::Seal(epoch) = output { Some(epoch) } else { None })
        .expect("a first epoch");
    let road = Road { lane: &seal.lanes[0], confirmed: 0, datagram_len: record_len, envelope: &[] };
    let (mut outbox, mut out) = (Outbox::new(), Checks(record_len));
    while let [high, low, content @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(content.len());
        let (frame, following) = content.split_at(len);
        rest = following;
        if let Ok(packet) = Packet::parse(&mut frame.to_vec()) {
            let _ = outbox.push(packet, &road, &mut out);
        }
    }
    let _ = outbox.flush(&road, &mut out);
});
