use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

#[test]
fn the_longest_prefix_owns_the_address() {
    let ranges = Ranges::new([
        (cidr("10.32.0.0/12"), 'u'),
        (cidr("10.32.0.0/16"), 'a'),
        (cidr("10.32.1.0/24"), 'b'),
        (cidr("10.32.1.7/32"), 'c'),
        (cidr("fd00::/64"), '6'),
    ]);
    let owner = |addr: &str| ranges.owner(addr.parse().unwrap());
    assert_eq!(owner("10.32.0.1"), Some('a'));
    assert_eq!(owner("10.32.1.6"), Some('b'));
    assert_eq!(owner("10.32.1.7"), Some('c'));
    assert_eq!(owner("10.32.1.8"), Some('b'));
    assert_eq!(owner("10.32.2.0"), Some('a'));
    assert_eq!(owner("10.47.255.255"), Some('u'));
    assert_eq!(owner("10.48.0.0"), None);
    assert_eq!(owner("10.31.255.255"), None);
    assert_eq!(owner("fd00::1"), Some('6'));
    assert_eq!(owner("fd01::1"), None);
}

proptest! {
    #[test]
    fn it_answers_as_the_obvious_search_does(
        prefixes in proptest::collection::vec((any::<u8>(), 24_u8..=32, 0_u8..4), 0..24),
        whole in proptest::option::of(0_u8..4),
    ) {
        let block = |low: u8, bits| Cidr::containing(IpAddr::V4(Ipv4Addr::new(10, 0, 0, low)), bits).unwrap();
        let mut list: Vec<(Cidr, u8)> = prefixes.iter().map(|&(low, bits, owner)| (block(low, bits), owner)).collect();
        list.extend(whole.map(|owner| (cidr("0.0.0.0/0"), owner)));
        let ranges = Ranges::new(list.clone());
        for low in 0..=255 {
            let addr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, low));
            let longest = list.iter().filter(|(prefix, _)| prefix.contains(addr)).map(|(prefix, _)| prefix.prefix()).max();
            let expected = list.iter().rev().find(|(prefix, _)| prefix.contains(addr) && Some(prefix.prefix()) == longest);
            prop_assert_eq!(ranges.owner(addr), expected.map(|&(_, owner)| owner), "{}", addr);
        }
    }
}
