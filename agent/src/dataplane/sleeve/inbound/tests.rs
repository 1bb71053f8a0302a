use weave_sleeve::vnet::{Gso, VnetHeader};

use super::*;
use crate::dataplane::sleeve::intake::is_burst;

#[test]
fn short_runs_are_received_in_great_numbers_long_ones_in_small_and_bursts_one_by_one() {
    assert_eq!(next_most(64, 64 * 100, false), MAX_RUNS);
    assert_eq!(next_most(64, 64 * 100, true), MAX_RUNS);
    assert_eq!(next_most(4, 4 * 63_000, false), LONG_RUNS);
    assert_eq!(next_most(4, 4 * 63_000, true), 1);
}

#[test]
fn a_burst_is_what_the_kernel_cuts_into_udp_packets() {
    let frame = |gso| [&VnetHeader { gso, ..VnetHeader::default() }.to_bytes()[..], &[0x45; 60]].concat();
    assert!(is_burst(&frame(Gso::Udp)));
    assert!(![Gso::None, Gso::TcpV4, Gso::TcpV6].into_iter().any(|gso| is_burst(&frame(gso))));
    assert!(!is_burst(&[]));
}
