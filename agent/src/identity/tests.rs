use super::*;

#[test]
fn the_name_comes_from_the_key_and_is_the_same_at_each_start() {
    let first = Identity::generate(PeerUid(1)).unwrap();
    let second = Identity::from_seed(*first.seed(), PeerUid(2)).unwrap();

    assert_eq!(first.key(), second.key());
    assert_eq!(first.name(), second.name());
    assert_eq!(first.name().mac()[0] & 0b11, 0b10, "local and unicast");
    assert_ne!(first.name(), Identity::generate(PeerUid(1)).unwrap().name());
}

#[test]
fn a_known_seed_has_a_known_key_so_that_stores_stay_readable() {
    // RFC 8032, section 7.1, test 1.
    let seed: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44,
        0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    let identity = Identity::from_seed(seed, PeerUid(1)).unwrap();

    assert_eq!(identity.key().to_string(), "d75a980182b10ab7");
    // The first six bytes of SHA-256 over the 32 bytes of the key, as sha256sum has it, made local.
    assert_eq!(identity.name().to_string(), "22:fe:31:df:a1:54");
}

#[test]
fn debug_output_holds_no_secret() {
    let identity = Identity::from_seed([7; 32], PeerUid(1)).unwrap();

    assert!(!format!("{identity:?}").contains("7, 7"));
}

#[test]
fn a_machine_is_another_when_a_part_known_on_both_sides_differs() {
    let known = |product: Option<&str>, installation: Option<&str>| Machine {
        product: product.and_then(fingerprint),
        installation: installation.and_then(fingerprint),
    };
    let here = known(Some("uuid-1"), Some("id-1"));

    assert!(here.may_be(&here));
    assert!(here.may_be(&known(Some("UUID-1\n"), None)), "case and line ends do not matter");
    assert!(here.may_be(&known(None, Some("id-1"))));
    assert!(here.may_be(&Machine::default()), "nothing known says nothing");
    assert!(!here.may_be(&known(Some("uuid-2"), Some("id-1"))), "a cloned machine");
    assert!(!here.may_be(&known(Some("uuid-1"), Some("id-2"))), "a copied disk");
    assert!(!here.may_be(&Machine::named("test")));
}

#[test]
fn numbers_of_no_machine_in_particular_are_not_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (product, installation) = (dir.path().join("uuid"), dir.path().join("id"));
    std::fs::write(&installation, "uninitialized\n").unwrap();

    assert!(Machine::at(&product, &installation).is_unknown());

    std::fs::write(&installation, "b08dfa6083e7567a1921a715000001fb\n").unwrap();
    assert!(!Machine::at(&product, &installation).is_unknown());
}
