use super::*;

fn header(kind: u16) -> Header {
    Header { kind, flags: 0, sequence: 0, sender: 0 }
}

fn interest() -> Interest {
    Interest { links: [7].into(), neighbours: [IpAddr::from([10, 32, 0, 2])].into() }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link_event(index: u32, name: &str) -> Vec<u8> {
    let mut payload = vec![0; 16];
    payload[4..8].copy_from_slice(&index.to_ne_bytes());
    payload.extend(attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat()));
    payload
}

fn neighbour_event(family: u8, index: u32, address: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0; 12];
    payload[0] = family;
    payload[4..8].copy_from_slice(&index.to_ne_bytes());
    payload.extend(attribute(NDA_DST, &address));
    payload
}

#[test]
fn a_link_is_ours_by_number_or_by_name() {
    let interest = interest();
    assert!(interest.covers(header(DELLINK), &link_event(7, "renamed")));
    assert!(interest.covers(header(NEWLINK), &link_event(9, "weave")));
    assert!(interest.covers(header(NEWLINK), &link_event(9, "vethwepl1")));
    assert!(!interest.covers(header(NEWLINK), &link_event(9, "eth0")));
}

#[test]
fn neighbours_of_others_and_scans_of_the_range_do_not_wake_the_owner() {
    let interest = interest();
    assert!(interest.covers(header(DELNEIGH), &neighbour_event(2, 7, [10, 32, 0, 2])));
    assert!(!interest.covers(header(NEWNEIGH), &neighbour_event(2, 7, [10, 32, 9, 9])));
    assert!(!interest.covers(header(NEWNEIGH), &neighbour_event(2, 3, [10, 32, 0, 2])));
    assert!(interest.covers(header(DELNEIGH), &neighbour_event(AF_BRIDGE, 7, [1, 2, 3, 4])));
}

#[test]
fn a_route_counts_when_it_is_ours_or_replaces_another() {
    let interest = interest();
    let mut route = vec![0; 12];
    assert!(!interest.covers(header(NEWROUTE), &route));
    assert!(interest.covers(Header { flags: NLM_F_REPLACE, ..header(NEWROUTE) }, &route));
    route[5] = ROUTE_PROTOCOL;
    assert!(interest.covers(header(DELROUTE), &route));
}

#[test]
fn settings_count_for_our_links_and_for_all_links() {
    let interest = interest();
    let event = |index: u32| [vec![2, 0, 0, 0], attribute(NETCONFA_IFINDEX, &index.to_ne_bytes())].concat();
    assert!(interest.covers(header(NEWNETCONF), &event(7)));
    assert!(interest.covers(header(NEWNETCONF), &event(ALL_LINKS)));
    assert!(!interest.covers(header(NEWNETCONF), &event(3)));
}

#[test]
fn a_notification_cut_short_is_nobodys() {
    for kind in [NEWLINK, NEWADDR, NEWROUTE, NEWNEIGH, NEWNETCONF, 999] {
        assert!(!interest().covers(header(kind), &[]));
    }
}

#[test]
fn of_nftables_only_a_change_of_our_tables_by_somebody_else_counts() {
    let own = 77;
    let about = |table: &str, kind: u16, sender: u32| {
        let mut payload = vec![1, 0, 0, 0];
        payload.extend(attribute(1, &[table.as_bytes(), &[0]].concat()));
        foreign_change(own, Header { sender, ..header(SUBSYSTEM | kind) }, &payload)
    };
    // A deleted table, a new rule, a deleted element.
    for kind in [2, 6, 14] {
        assert!(about("weave", kind, 5));
        assert!(!about("weave", kind, own));
        assert!(!about("kube-proxy", kind, 5) && !about("weave_probe", kind, 5));
    }
    assert!(!foreign_change(
        own,
        Header { sender: 5, ..header(SUBSYSTEM | 15) },
        &[0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 9]
    ));
}
