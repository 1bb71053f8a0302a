use proptest::prelude::*;
use weave_proto::Span;

use super::*;
use crate::ring::Ring;

#[test]
fn three_founders_of_weaves_range_get_twenty_one_or_twenty_two_blocks_each() {
    let shares = equal_shares(range("10.32.0.0/12"), &founders(3));

    let tokens: Vec<String> = shares.iter().map(|(token, _)| token.to_string()).collect();
    assert_eq!(tokens, ["10.32.0.0", "10.37.128.0", "10.42.192.0"]);
}

#[test]
fn one_founder_gets_everything_as_one_block() {
    assert_eq!(equal_shares(range("10.32.0.0/12"), &founders(1)).len(), 1);
}

#[test]
fn a_tiny_range_is_shared_out_address_by_address() {
    let shares = equal_shares(range("10.0.0.0/30"), &founders(3));

    let tokens: Vec<String> = shares.iter().map(|(token, _)| token.to_string()).collect();
    assert_eq!(tokens, ["10.0.0.0", "10.0.0.2", "10.0.0.3"]);
}

#[test]
fn founders_beyond_the_number_of_addresses_get_none() {
    assert_eq!(equal_shares(range("10.0.0.0/30"), &founders(9)).len(), 4);
}

proptest! {
    #[test]
    fn shares_cover_the_range_differ_by_one_block_and_are_a_few_routes_each(count in 1_u16..300, prefix in 8_u8..24) {
        let range = Cidr::containing("10.0.0.0".parse().unwrap(), prefix).unwrap();
        let shares = equal_shares(range, &founders(count));
        let ring = Ring::of_shares(range, &shares).unwrap();
        ring.check_invariants();

        let spans: Vec<Span> = ring.spans().map(|(span, _)| span).collect();
        let block = range.len() / u128::from(u32::from(count) * 16).next_power_of_two().min(range.len());
        let (least, most) = (spans.iter().map(|s| s.len()).min().unwrap(), spans.iter().map(|s| s.len()).max().unwrap());
        prop_assert_eq!(spans.len(), usize::from(count).min(usize::try_from(range.len()).unwrap()));
        prop_assert!(most - least <= block);
        prop_assert!(spans.iter().all(|span| span.cidrs().len() <= 10));
    }
}

fn founders(count: u16) -> BTreeSet<PeerName> {
    (0..count)
        .map(|index| {
            let [high, low] = index.to_be_bytes();
            PeerName::from_bits([2, 0, 0, 0, high, low])
        })
        .collect()
}

fn range(text: &str) -> Cidr {
    text.parse().unwrap()
}
