use super::*;
use proptest::prelude::*;

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn host_bits_are_refused_with_the_block_that_was_meant() {
    let refused = "10.32.0.1/12".parse::<Cidr>().unwrap_err();
    assert_eq!(refused.to_string(), "10.32.0.1/12 has host bits set: did you mean 10.32.0.0/12?");
}

#[test]
fn a_prefix_longer_than_the_address_is_refused() {
    assert!("10.0.0.0/33".parse::<Cidr>().is_err());
    assert!("fd00::/129".parse::<Cidr>().is_err());
}

#[test]
fn the_universe_of_weave_has_a_million_addresses() {
    let universe: Cidr = "10.32.0.0/12".parse().unwrap();
    assert_eq!(universe.len(), 1 << 20);
    assert_eq!(universe.last(), addr("10.47.255.255"));
    assert!(universe.contains(addr("10.40.1.2")) && !universe.contains(addr("10.48.0.0")));
    assert!(!universe.contains(addr("fd00::1")));
}

#[test]
fn a_span_falls_into_the_fewest_blocks() {
    let span = Span::new(addr("10.0.0.1"), addr("10.0.0.8")).unwrap();
    let blocks: Vec<String> = span.cidrs().iter().map(Cidr::to_string).collect();
    assert_eq!(blocks, ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/30", "10.0.0.8/32"]);
    assert_eq!(Span::from("::/0".parse::<Cidr>().unwrap()).cidrs().len(), 1);
    assert_eq!(Span::from("0.0.0.0/0".parse::<Cidr>().unwrap()).cidrs().len(), 1);
}

proptest! {
    #[test]
    fn the_blocks_of_a_span_cover_it_without_overlap(a: u32, b: u32) {
        let span = Span::new(Ipv4Addr::from(a.min(b)).into(), Ipv4Addr::from(a.max(b)).into()).unwrap();
        let blocks = span.cidrs();
        prop_assert_eq!(blocks[0].first(), span.first());
        prop_assert_eq!(blocks.iter().map(|block| block.len()).sum::<u128>(), span.len());
        for pair in blocks.windows(2) {
            prop_assert_eq!(position(pair[0].last()) + 1, position(pair[1].first()));
        }
    }

    #[test]
    fn text_and_back(bits: u128, prefix in 0_u8..=128) {
        let cidr = Cidr::containing(Ipv6Addr::from(bits).into(), prefix).unwrap();
        prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
    }
}
