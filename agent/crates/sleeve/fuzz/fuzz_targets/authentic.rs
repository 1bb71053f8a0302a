//! Whatever a peer seals that has been taken over: nothing panics, and what is delivered is a packet.
//!
//! The input is a list of records: kind, flags, length (two bytes), content.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use weave_sleeve::ecn::Ecn;
use weave_sleeve::header::{Flags, HEADER_LEN, Header, Kind, OVERHEAD};
use weave_sleeve::inbox::{Deliver, Inbox, Joins, Record};
use weave_sleeve::keys::{Chain, Role, Suite};
use weave_sleeve::vnet::{VNET_LEN, VnetHeader};

struct Checks;

impl Deliver for Checks {
    fn admits(&mut self, _: IpAddr) -> bool {
        true
    }

    fn deliver(&mut self, frame: &mut [u8]) {
        let (vnet, packet) = frame.split_first_chunk::<VNET_LEN>().expect("a header");
        let vnet = VnetHeader::parse(vnet).expect("a known kind");
        assert!(packet.len() <= 65_535);
        if vnet.needs_csum {
            assert!(usize::from(vnet.csum_start + vnet.csum_offset) + 2 <= packet.len());
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let key = Chain::first(&[1; 32], Role::Initiator, Suite::Aes128Gcm).key(0);
    let mut inbox = Inbox::new(Joins { tcp: true, udp: true });
    let (mut rest, mut counter) = (input, 0);
    while let [kind, flags, high, low, content @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(content.len());
        let (plain, following) = content.split_at(len);
        rest = following;
        let kind = [Kind::Packet, Kind::Bundle, Kind::Probe][usize::from(kind % 3)];
        let mut remarks = Flags::NONE;
        for (bit, flag) in [Flags::CONTINUES, Flags::MORE, Flags::PARTIAL].into_iter().enumerate() {
            remarks = remarks.with(flag.when(flags >> bit & 1 == 1));
        }
        // A counter is left out now and then, as if a record had been lost.
        counter += 1 + u64::from(flags >> 7);
        let header =
            Header { kind, flags: remarks, queue: 0, epoch: 0, receiver: 1, confirmed: 0, counter };
        let mut record = vec![0; plain.len() + OVERHEAD];
        record[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        key.seal(counter, &header.to_bytes(), plain, &mut record[HEADER_LEN..]);
        let record = Record { header, bytes: &record, outer: Ecn::of(flags >> 3) };
        inbox.open(&record, &key, &mut Checks).expect("authentic");
        if flags & 0x40 != 0 {
            inbox.pause(&mut Checks);
        }
    }
    inbox.flush(&mut Checks);
});
