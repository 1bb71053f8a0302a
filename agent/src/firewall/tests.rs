use std::net::Ipv4Addr;

use super::*;

fn span(first: &str, last: &str) -> Span {
    Span::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()
}

fn source(first: [u8; 4], last: [u8; 4]) -> Element {
    Element::Source { mac: Mac([2, 0, 0, 0, 0, 1]), first: first.into(), last: last.into() }
}

fn in_force(sources: &[Element]) -> (Desired, Observed) {
    let facts = Facts {
        mac: Mac([2, 0, 0, 0, 0, 9]),
        universe: "10.32.0.0/12".parse().unwrap(),
        address: None,
        masquerade: true,
        keep_client_addresses: true,
    };
    let (text, kernel) = (Digest([1; 16]), Digest([2; 16]));
    let sets: BTreeMap<Set, BTreeSet<Element>> = [(Set::Sources, sources.iter().cloned().collect())].into();
    let observed = Observed {
        seal: Some(Seal { text, kernel }),
        kernel: Some(kernel),
        sets: sets.iter().map(|(&set, list)| (set, list.iter().map(Element::encode).collect())).collect(),
    };
    (Desired { facts, text, sets }, observed)
}

#[test]
fn a_seal_is_read_back_from_its_name() {
    let seal = Seal { text: Digest([0xab; 16]), kernel: Digest([0; 16]) };
    assert_eq!(Seal::parse(&seal.to_string()), Some(seal));
    for other in ["seal_", "seal_00_11", "forged_mac", "seal_zz_zz", ""] {
        assert_eq!(Seal::parse(other), None, "{other}");
    }
    assert!(seal.to_string().len() < 128, "the kernel's limit for names in old versions");
}

#[test]
fn spans_are_merged_where_they_touch_or_overlap() {
    let merged = merged(vec![
        span("10.34.0.0", "10.34.0.255"),
        span("10.33.0.0", "10.33.255.255"),
        span("10.34.0.7", "10.34.0.7"),
        span("10.40.0.1", "10.40.0.1"),
    ]);
    assert_eq!(merged, [span("10.33.0.0", "10.34.0.255"), span("10.40.0.1", "10.40.0.1")]);
}

#[test]
fn tables_are_replaced_when_missing_unsealed_of_another_text_or_changed() {
    let (desired, good) = in_force(&[]);
    assert_eq!(reason_to_replace(&desired, &good), None);
    let bad: [fn(&mut Observed); 4] = [
        |kernel| kernel.kernel = None,
        |kernel| kernel.seal = None,
        |kernel| kernel.seal.as_mut().unwrap().text = Digest([9; 16]),
        |kernel| kernel.kernel = Some(Digest([9; 16])),
    ];
    for spoil in bad {
        let mut observed = good.clone();
        spoil(&mut observed);
        let changes: Vec<_> = admissions(&desired, &observed).collect();
        assert!(matches!(&changes[..], [Change::Replace { .. }]), "{changes:?}");
        assert_eq!(expulsions(&desired, &observed).count(), 0);
    }
}

#[test]
fn an_element_that_overlaps_a_new_one_goes_in_the_same_transaction() {
    let (old, kept) = (source([10, 33, 0, 0], [10, 33, 255, 255]), source([10, 40, 0, 0], [10, 40, 0, 9]));
    let gone = source([10, 41, 0, 0], [10, 41, 0, 9]);
    let (_, observed) = in_force(&[old.clone(), kept.clone(), gone.clone()]);
    let half = source([10, 33, 0, 0], [10, 33, 127, 255]);
    let (desired, _) = in_force(&[half.clone(), kept]);
    let expected = |add: &[&Element], remove: &[&Element]| {
        let raw = |list: &[&Element]| list.iter().map(|element| (Set::Sources, element.encode())).collect();
        vec![Change::Elements { add: raw(add), remove: raw(remove) }]
    };
    assert_eq!(admissions(&desired, &observed).collect::<Vec<_>>(), expected(&[&half], &[&old]));
    assert_eq!(expulsions(&desired, &observed).collect::<Vec<_>>(), expected(&[], &[&gone]));
}

#[test]
fn a_pod_is_admitted_by_port_mac_and_address_together() {
    let pod = PodPort {
        host_interface: "vethweone".to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
        address: Ipv4Addr::new(10, 33, 0, 2).into(),
        netns: String::new(),
        pod: None,
    };
    let sets: Vec<Set> = pod_elements(&pod, Mac([2, 0, 0, 0, 0, 9])).map(|element| element.set()).collect();
    assert_eq!(sets, [Set::Frames, Set::Pods, Set::PortMacs, Set::Ports]);
}

#[test]
fn a_span_holds_the_whole_blocks_between_its_ends() {
    let universe: Cidr = "10.32.0.0/12".parse().unwrap();
    assert_eq!(block_mask(universe), Ipv4Addr::new(255, 255, 240, 0));
    let blocks = |first, last| whole_blocks(universe, span(first, last));
    let block = |third| Ipv4Addr::new(10, 33, third, 0);
    assert_eq!(blocks("10.33.0.0", "10.33.47.255"), [block(0), block(16), block(32)]);
    assert_eq!(blocks("10.33.0.1", "10.33.47.254"), [block(16)]);
    assert_eq!(blocks("10.33.1.0", "10.33.16.0"), Vec::<Ipv4Addr>::new());
    assert_eq!(blocks("10.33.0.1", "10.33.0.1"), Vec::<Ipv4Addr>::new());
    assert_eq!(blocks("10.32.0.0", "10.47.255.255").len(), 256);
}

#[test]
fn the_blocks_of_a_small_universe_are_single_addresses() {
    let universe: Cidr = "10.32.0.0/24".parse().unwrap();
    assert_eq!(block_mask(universe), Ipv4Addr::new(255, 255, 255, 255));
    assert_eq!(whole_blocks(universe, span("10.32.0.0", "10.32.0.255")).len(), 256);
    assert_eq!(whole_blocks("0.0.0.0/0".parse().unwrap(), span("0.0.0.0", "255.255.255.255")).len(), 256);
}
