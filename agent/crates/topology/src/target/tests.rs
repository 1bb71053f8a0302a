use super::*;

#[test]
fn what_people_write_is_understood_and_written_back() {
    for (text, literal) in [
        ("192.0.2.1", Some("192.0.2.1:6783")),
        ("192.0.2.1:7000", Some("192.0.2.1:7000")),
        ("2001:db8::1", Some("[2001:db8::1]:6783")),
        ("[2001:db8::1]:7000", Some("[2001:db8::1]:7000")),
        ("node-1.example", None),
        ("node_1:7000", None),
    ] {
        let target: Target = text.parse().unwrap();
        assert_eq!(target.literal(6783), literal.map(|addr| addr.parse().unwrap()), "{text}");
        assert_eq!(target.to_string(), text);
        assert_eq!(target.name().is_none(), literal.is_some());
    }
    assert_eq!("[2001:db8::1]".parse::<Target>().unwrap(), "2001:db8::1".parse().unwrap());
    assert_eq!("Node".parse::<Target>().unwrap(), "node".parse().unwrap(), "names have no case");
}

#[test]
fn what_cannot_be_a_peers_place_is_refused_by_name() {
    for text in [
        "",
        " ",
        "node:0",
        "node:65536",
        "node:",
        ":6783",
        "[::1",
        "[::1]6783",
        "[node]:1",
        "10.0.0",
        "10.0.0.256",
        "a b",
        "-node",
        "0.0.0.0",
        "224.0.0.1",
        "::",
        "node/12",
    ] {
        assert!(text.parse::<Target>().is_err(), "{text:?}");
    }
    assert!("node:x".parse::<Target>().unwrap_err().to_string().contains("node:x"));
}
