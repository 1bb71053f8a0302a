use weave_proto::local::cni::PodPort;
use weave_proto::{Cidr, PeerName};

use super::*;
use crate::firewall::{Digest, Seal};
use crate::net::desired::desired;
use crate::net::observe::ObservedAddress;
use crate::net::sysctl::REVERSE_PATH_OF_ALL;
use crate::net::{HostOptions, NodeState, PeerPath};

fn name(number: u8) -> PeerName {
    PeerName::from_bits([0x7a, 0, 0, 0, 0, number])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn key(text: &str) -> RouteKey {
    RouteKey { destination: cidr(text), metric: 0 }
}

fn peer(number: u8) -> PeerPath {
    PeerPath {
        peer: name(number),
        underlay: ip(&format!("192.168.0.{number}")),
        overlay: ip(&format!("10.{}.0.1", 32 + number)),
        ranges: vec![cidr(&format!("10.{}.0.0/16", 32 + number))],
        mtu: None,
    }
}

fn wanted() -> Desired {
    let state = NodeState {
        name: name(1),
        universe: cidr("10.32.0.0/12"),
        address: Some(ip("10.33.0.1")),
        own: vec![cidr("10.33.0.0/16")],
        peers: vec![peer(2)],
        probed: Vec::new(),
        sealed: Vec::new(),
        has_tun: false,
        pods: vec![PodPort {
            host_interface: "vethweone".to_owned(),
            mac: [2, 0, 0, 0, 0, 9],
            address: ip("10.33.0.2"),
            netns: String::new(),
            pod: None,
        }],
        mtu: 1450,
        options: HostOptions::default(),
    };
    desired(&state).unwrap()
}

/// A kernel in which everything is as `desired` wants it.
fn satisfied(desired: &Desired) -> Observed {
    let kernel = Digest([7; 16]);
    let mut observed = Observed {
        routes: desired.routes.clone(),
        neighbours: desired.neighbours.iter().map(|(&key, &mac)| (key, Some(mac))).collect(),
        tunnels: desired.tunnels.clone(),
        sysctls: desired
            .sysctls
            .iter()
            .map(|(key, wanted)| (key.clone(), wanted.value(Some("0")).to_owned()))
            .chain([(REVERSE_PATH_OF_ALL.to_owned(), "0".to_owned())])
            .collect(),
        ipv6: true,
        firewall: firewall::Observed {
            seal: Some(Seal { text: desired.firewall.text, kernel }),
            kernel: Some(kernel),
            sets: (desired.firewall.sets.iter())
                .map(|(&set, elements)| (set, elements.iter().map(firewall::Element::encode).collect()))
                .collect(),
        },
        ..Observed::default()
    };
    for &(link, address) in &desired.addresses {
        observed.addresses.push(ObservedAddress { link, address, prefix: 32, no_prefix_route: true });
    }
    for (index, (name, link)) in (10..).zip(&desired.links) {
        let shape = match link.kind {
            LinkKind::Bridge => Shape::Bridge { plain: true, filters_vlans: false },
            LinkKind::Vxlan | LinkKind::Vxlan6 => Shape::Vxlan { difference: None },
            LinkKind::Tun => Shape::Tun,
        };
        let found = ObservedLink {
            index,
            mac: Some(link.mac),
            mtu: link.mtu,
            group: link.kind.group(),
            up: true,
            shape,
            ..ObservedLink::default()
        };
        observed.links.insert((*name).to_owned(), found);
    }
    let bridge = observed.links[BRIDGE].index;
    for (index, (port, &Resident { mac, address })) in (20..).zip(&desired.ports) {
        let found = ObservedLink {
            index,
            up: true,
            master: Some(bridge),
            group: PORT_GROUP,
            port_fits: true,
            ..ObservedLink::default()
        };
        observed.links.insert(port.clone(), found);
        observed.port_macs.insert((port.clone(), mac));
        observed.residents.insert((port.clone(), address, mac));
    }
    observed
}

fn steps(desired: &Desired, observed: &Observed) -> Vec<String> {
    plan(desired, observed).steps.iter().map(ToString::to_string).collect()
}

#[test]
fn where_all_is_as_wanted_there_is_nothing_to_do() {
    let desired = wanted();
    assert_eq!(plan(&desired, &satisfied(&desired)), Plan::default());
}

#[test]
fn on_an_empty_kernel_containment_comes_first_the_guard_before_ports_and_neighbours_before_routes() {
    let desired = wanted();
    let mut observed = Observed { ipv6: true, ..Observed::default() };
    observed.links.insert("vethweone".to_owned(), ObservedLink { index: 5, ..ObservedLink::default() });
    let steps = steps(&desired, &observed);
    let position = |text: &str| steps.iter().position(|step| step.starts_with(text)).unwrap();
    let order = [
        "add route 10.32.0.0/12 metric 4278198272 unreachable",
        "replace the nftables tables, which are missing",
        "create the link weave (MTU 1450)",
        "create the link weave-vx",
        "set net/ipv4/conf/weave/rp_filter to 2",
        "add address 10.33.0.1 to weave",
        "set neighbour 10.34.0.1",
        "send frames for 7a:00:00:00:00:02 to 192.168.0.2",
        "add route 10.34.0.0/16 via 10.34.0.1",
        "make vethweone a port of weave",
        "set the port flags of vethweone",
        "bind 02:00:00:00:00:09 to port vethweone",
        "set neighbour 10.33.0.2 to 02:00:00:00:00:09 on vethweone",
        "add route 10.33.0.2/32 dev vethweone src 10.33.0.1",
    ];
    assert!(order.windows(2).all(|pair| position(pair[0]) < position(pair[1])), "{steps:#?}");
    assert_eq!(position(order[0]), 0);
}

#[test]
fn each_missing_or_changed_object_is_put_back_alone() {
    let desired = wanted();
    type Damage = fn(&mut Observed);
    let damage: [(Damage, &str); 16] = [
        (|kernel| drop(kernel.routes.remove(&key("10.34.0.0/16"))), "add route 10.34.0.0/16 via"),
        (
            |kernel| drop(kernel.routes.insert(key("10.34.0.0/16"), Route::Other("x".to_owned()))),
            "change route 10.34.0.0/16 from x to via",
        ),
        (|kernel| kernel.neighbours.retain(|&(link, _), _| link != VXLAN), "set neighbour 10.34.0.1"),
        (
            |kernel| *kernel.neighbours.get_mut(&(BRIDGE, ip("10.33.0.2"))).unwrap() = None,
            "set neighbour 10.33.0.2",
        ),
        (
            |kernel| kernel.tunnels.retain(|&(_, mac), _| mac.0[0] != 0x7a),
            "send frames for 7a:00:00:00:00:02",
        ),
        (
            |kernel| kernel.addresses.retain(|address| address.link != VXLAN),
            "add address 10.33.0.1 to weave-vx",
        ),
        (|kernel| kernel.links.get_mut(BRIDGE).unwrap().up = false, "adjust the link weave (up)"),
        (|kernel| kernel.links.get_mut(VXLAN).unwrap().mtu = 9, "adjust the link weave-vx (up, MTU 1450)"),
        (
            |kernel| kernel.links.get_mut("vethweone").unwrap().port_fits = false,
            "set the port flags of vethweone",
        ),
        (|kernel| kernel.links.get_mut("vethweone").unwrap().group = 0, "make vethweone a port of weave"),
        (|kernel| kernel.residents.clear(), "set neighbour 10.33.0.2 to 02:00:00:00:00:09 on vethweone"),
        (
            |kernel| drop(kernel.routes.remove(&key("10.33.0.2/32"))),
            "add route 10.33.0.2/32 dev vethweone src 10.33.0.1",
        ),
        (|kernel| kernel.port_macs.clear(), "bind 02:00:00:00:00:09 to port vethweone"),
        (
            |kernel| drop(kernel.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned())),
            "set net/ipv4/ip_forward to 1",
        ),
        (
            |kernel| drop(kernel.sysctls.insert("net/ipv4/conf/weave/rp_filter".to_owned(), "1".to_owned())),
            "set net/ipv4/conf/weave/rp_filter to 0",
        ),
        (
            |kernel| kernel.firewall.kernel = Some(Digest([8; 16])),
            "replace the nftables tables, which are changed",
        ),
    ];
    for (damage, remedy) in damage {
        let mut observed = satisfied(&desired);
        damage(&mut observed);
        let steps = steps(&desired, &observed);
        assert!(steps.len() == 1 && steps[0].starts_with(remedy), "{remedy}: {steps:#?}");
    }
}

#[test]
fn what_is_on_a_link_that_is_made_anew_is_made_anew_with_it() {
    let desired = wanted();
    let mut observed = satisfied(&desired);
    observed.links.get_mut(VXLAN).unwrap().shape = Shape::Vxlan { difference: Some("it learns".to_owned()) };
    let steps = steps(&desired, &observed);
    assert!(steps[0].starts_with("remove the link weave-vx (it learns)"), "{steps:#?}");
    for again in [
        "create the link weave-vx",
        "add address 10.33.0.1 to weave-vx",
        "set neighbour 10.34.0.1",
        "send frames for 78:00:00:00:00:02",
        "send frames for 7a:00:00:00:00:02",
        "add route 10.34.0.0/16",
    ] {
        assert_eq!(steps.iter().filter(|step| step.starts_with(again)).count(), 1, "{again} in {steps:#?}");
    }
    assert!(!steps.iter().any(|step| step.contains("vethweone") || step.contains("to weave ")), "{steps:#?}");
}

#[test]
fn a_range_that_is_cut_up_gets_its_parts_before_the_whole_goes() {
    let mut desired = wanted();
    let observed = satisfied(&desired);
    let route = desired.routes.remove(&key("10.34.0.0/16")).unwrap();
    desired.routes.insert(key("10.34.0.0/17"), route.clone());
    desired.routes.insert(key("10.34.128.0/17"), route);
    let steps = steps(&desired, &observed);
    assert_eq!(steps.len(), 3);
    assert!(steps[2].starts_with("remove route 10.34.0.0/16"), "{steps:#?}");
}

#[test]
fn a_range_that_moves_to_another_device_is_replaced_in_one_step() {
    let mut desired = wanted();
    let observed = satisfied(&desired);
    let route = Route::Direct { link: BRIDGE.to_owned(), source: Some(ip("10.33.0.1")), mtu: None };
    desired.routes.insert(key("10.34.0.0/16"), route);
    let steps = plan(&desired, &observed).steps;
    assert!(matches!(&steps[..], [Step::ReplaceRoute { .. }]), "{steps:?}");
}

#[test]
fn peers_are_admitted_before_and_expelled_after_everything_else() {
    let before = wanted();
    let observed = satisfied(&before);
    let mut after = before;
    for elements in after.firewall.sets.values_mut() {
        elements.clear();
    }
    after
        .firewall
        .sets
        .get_mut(&firewall::Set::Peers4)
        .unwrap()
        .insert(firewall::Element::peer(ip("192.168.0.9")));
    after.tunnels.clear();
    let steps = plan(&after, &observed).steps;
    assert!(
        matches!(&steps[0], Step::Firewall(firewall::Change::Elements { add, remove }) if add.len() == 1 && remove.is_empty())
    );
    assert!(
        matches!(steps.last(), Some(Step::Firewall(firewall::Change::Elements { add, .. })) if add.is_empty())
    );
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let desired = wanted();
    let mut observed = satisfied(&desired);
    observed.addresses.push(ObservedAddress {
        link: BRIDGE,
        address: ip("172.16.0.1"),
        prefix: 24,
        no_prefix_route: false,
    });
    observed.neighbours.insert((BRIDGE, ip("10.33.0.77")), None);
    observed.neighbours.insert((BRIDGE, ip("224.0.0.22")), Some(Mac([1, 0, 0x5e, 0, 0, 0x16])));
    observed.port_macs.insert(("eth7".to_owned(), Mac([4; 6])));
    observed.links.insert("eth7".to_owned(), ObservedLink { master: Some(10), ..ObservedLink::default() });
    assert_eq!(plan(&desired, &observed), Plan::default());
}

#[test]
fn what_is_ours_and_not_wanted_goes() {
    let desired = wanted();
    let mut observed = satisfied(&desired);
    let old =
        Route::Via { link: VXLAN.to_owned(), gateway: ip("10.35.0.1"), source: ip("10.33.0.1"), mtu: None };
    observed.routes.insert(key("10.35.0.0/16"), old);
    observed.neighbours.insert((VXLAN, ip("10.35.0.1")), Some(Mac([6; 6])));
    observed.tunnels.insert((VXLAN, Mac([6; 6])), ip("192.168.0.3"));
    observed.port_macs.insert(("vethwegone".to_owned(), Mac([4; 6])));
    observed.addresses.push(ObservedAddress {
        link: BRIDGE,
        address: ip("10.32.0.1"),
        prefix: 12,
        no_prefix_route: false,
    });
    let spare =
        ObservedLink { index: 30, shape: Shape::Vxlan { difference: None }, ..ObservedLink::default() };
    observed.links.insert(VXLAN6.to_owned(), spare);
    assert_eq!(
        steps(&desired, &observed),
        [
            "remove route 10.35.0.0/16 via 10.35.0.1 dev weave-vx src 10.33.0.1",
            "remove neighbour 10.35.0.1 from weave-vx",
            "forget where 06:06:06:06:06:06 is on weave-vx",
            "unbind 04:04:04:04:04:04 from port vethwegone",
            "remove address 10.32.0.1/12 from weave",
            "remove the link weave-vx6 (no peer needs it)",
        ]
    );
}

#[test]
fn a_foreign_link_under_our_name_is_reported_and_what_depends_on_it_is_not_tried() {
    let desired = wanted();
    let mut observed = satisfied(&desired);
    let foreign = ObservedLink { index: 10, kind: "veth".to_owned(), ..ObservedLink::default() };
    observed.links.insert(BRIDGE.to_owned(), foreign);
    observed.addresses.clear();
    observed.routes.clear();
    let plan = plan(&desired, &observed);
    assert_eq!(plan.conflicts[0].0, "the link weave");
    assert!(plan.conflicts[0].1.contains("veth"));
    let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    assert!(!steps.iter().any(|step| step.contains("weave ") || step.contains("vethweone")), "{steps:#?}");
    assert!(steps.iter().any(|step| step.starts_with("add route 10.34.0.0/16")), "{steps:#?}");
}

#[test]
fn the_route_back_is_not_asked_for_unless_all_links_are_strict_and_then_loosely() {
    let desired = wanted();
    for (of_all, value) in [("1", "2"), ("2", "2"), ("0", "0")] {
        let mut observed = satisfied(&desired);
        observed.sysctls.insert(REVERSE_PATH_OF_ALL.to_owned(), of_all.to_owned());
        let steps = steps(&desired, &observed);
        let expected: Vec<String> = ["weave-vx", "weave"]
            .into_iter()
            .filter(|_| value != "0")
            .map(|link| format!("set net/ipv4/conf/{link}/rp_filter to {value}"))
            .collect();
        assert_eq!(steps, expected, "all {of_all}");
    }
}

#[test]
fn a_kernel_without_ipv6_is_not_asked_for_ipv6_settings() {
    let desired = wanted();
    let mut observed = satisfied(&desired);
    observed.ipv6 = false;
    observed.sysctls.retain(|key, _| !key.starts_with("net/ipv6"));
    assert_eq!(plan(&desired, &observed), Plan::default());
    observed.links.remove(VXLAN);
    assert!(!steps(&desired, &observed).iter().any(|step| step.contains("ipv6")));
}
