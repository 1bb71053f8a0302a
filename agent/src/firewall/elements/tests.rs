use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn keys_are_laid_out_as_nft_lays_them_out() {
    // Seen with `nft --debug=netlink list set` (which prints words in machine order).
    let pod = Element::Pod {
        port: "vethwepl1234567".to_owned(),
        mac: Mac([0x5e, 0, 0, 0, 0, 1]),
        address: Ipv4Addr::new(10, 32, 0, 2),
    };
    assert_eq!(
        hex(&pod.encode().key),
        "7665746877 65706c3132333435363700 5e0000000001 0000 0a200002".replace(' ', "")
    );
    let frame = Element::Frame {
        port: "vethweone".to_owned(),
        gateway: Mac([0x7a, 0, 0, 0, 0, 1]),
        mac: Mac([0x5e, 0, 0, 0, 0, 9]),
        address: Ipv4Addr::new(10, 33, 0, 2),
    };
    assert_eq!(
        hex(&frame.encode().key),
        "7665746877656f6e6500000000000000 7a0000000001 5e0000000009 0800 0000 0a210002".replace(' ', "")
    );
    assert_eq!(frame.to_string(), "\"vethweone\" . 0x7a00000000015e00000000090800 . 0x0a210002");
    let block = Element::Block { mac: Mac([0x7a, 0, 0, 0, 0, 2]), first: Ipv4Addr::new(10, 34, 16, 0) };
    assert_eq!(hex(&block.encode().key), "7a0000000002 0800 0a221000".replace(' ', ""));
    assert_eq!(block.to_string(), "0x7a00000000020800 . 0x0a221000");
    let source = Element::Source {
        mac: Mac([0x7a, 0, 0, 0, 0, 2]),
        first: Ipv4Addr::new(10, 33, 0, 0),
        last: Ipv4Addr::new(10, 33, 255, 255),
    };
    assert_eq!(hex(&source.encode().key), "7a00000000020000".to_owned() + "0a210000");
    assert_eq!(hex(&source.encode().end), "7a00000000020000".to_owned() + "0a21ffff");
}

#[test]
fn elements_overlap_where_they_share_an_address_of_one_peer() {
    let source = |mac: u8, first: [u8; 4], last: [u8; 4]| {
        Element::Source { mac: Mac([2, 0, 0, 0, 0, mac]), first: first.into(), last: last.into() }.encode()
    };
    let whole = source(1, [10, 33, 0, 0], [10, 33, 255, 255]);
    assert!(whole.overlaps(&source(1, [10, 33, 9, 0], [10, 34, 0, 0])));
    assert!(!whole.overlaps(&source(1, [10, 34, 0, 0], [10, 34, 0, 0])));
    assert!(!whole.overlaps(&source(2, [10, 33, 9, 0], [10, 33, 9, 9])));
}

#[test]
fn an_ipv4_underlay_in_ipv6_clothes_is_an_ipv4_one() {
    let peer = Element::peer("::ffff:192.0.2.1".parse().unwrap());
    assert_eq!(peer, Element::Peer4(Ipv4Addr::new(192, 0, 2, 1)));
}

#[test]
fn a_transaction_has_two_edges_and_one_question() {
    let element = |text: &str| {
        let element = Element::Port { port: text.to_owned() };
        (element.set(), element.encode())
    };
    let (added, removed) = ([element("vethwea"), element("vethweb")], [element("vethwec")]);
    let messages = transaction(&added, &removed);
    let kinds: Vec<u16> =
        messages.iter().map(|message| u16::from_ne_bytes([message[4], message[5]])).collect();
    assert_eq!(kinds, [BATCH_BEGIN, DELSETELEM, NEWSETELEM, BATCH_END]);
    let asking =
        messages.iter().filter(|message| u16::from_ne_bytes([message[6], message[7]]) & NLM_F_ACK != 0);
    assert_eq!(asking.count(), 1);
    for message in &messages {
        assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
        assert_eq!(message.len() % 4, 0);
    }
}

#[test]
fn many_elements_are_cut_into_messages_whose_lengths_fit() {
    let elements: Vec<_> = (0..2000_u32)
        .map(|number| Element::Peer4(Ipv4Addr::from(number)))
        .map(|element| (element.set(), element.encode()))
        .collect();
    let messages = transaction(&elements, []);
    assert_eq!(messages.len(), 2 + 2000_usize.div_ceil(ELEMENTS_A_MESSAGE));
    assert!(messages.iter().all(|message| message.len() < usize::from(u16::MAX)));
}
