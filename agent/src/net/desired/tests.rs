use weave_proto::PeerName;

use super::*;
use crate::net::HostOptions;

fn name(number: u8) -> PeerName {
    PeerName::from_bits([0x7a, 0, 0, 0, 0, number])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn state() -> NodeState {
    NodeState {
        name: name(1),
        universe: cidr("10.32.0.0/12"),
        address: Some(ip("10.33.0.1")),
        own: vec![cidr("10.33.0.0/16")],
        peers: vec![PeerPath {
            peer: name(2),
            underlay: ip("192.168.0.2"),
            overlay: ip("10.34.0.1"),
            ranges: vec![cidr("10.34.0.0/16")],
            mtu: None,
        }],
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
    }
}

#[test]
fn a_state_is_turned_into_every_object_that_it_needs() {
    let desired = desired(&state()).unwrap();
    assert_eq!(desired.links.keys().copied().collect::<Vec<_>>(), [BRIDGE, VXLAN]);
    assert_eq!(
        desired.addresses.iter().copied().collect::<Vec<_>>(),
        [(BRIDGE, ip("10.33.0.1")), (VXLAN, ip("10.33.0.1"))]
    );
    let routes: Vec<String> = desired.routes.iter().map(|(key, route)| format!("{key} {route}")).collect();
    assert_eq!(
        routes,
        [
            "10.32.0.0/12 metric 4278198272 unreachable",
            "10.33.0.0/16 dev weave src 10.33.0.1",
            "10.33.0.2/32 dev vethweone src 10.33.0.1",
            "10.34.0.0/16 via 10.34.0.1 dev weave-vx src 10.33.0.1",
        ]
    );
    assert_eq!(desired.neighbours[&(VXLAN, ip("10.34.0.1"))], Mac(name(2).mac()));
    assert_eq!(desired.neighbours[&(BRIDGE, ip("10.33.0.2"))], Mac([2, 0, 0, 0, 0, 9]));
    assert_eq!(desired.tunnels[&(VXLAN, Mac(name(2).mac()))], ip("192.168.0.2"));
    let resident = Resident { mac: Mac([2, 0, 0, 0, 0, 9]), address: ip("10.33.0.2") };
    assert_eq!(desired.ports["vethweone"], resident);
    assert!(desired.left_out.is_empty());
}

#[test]
fn without_an_own_address_only_the_unreachable_route_and_those_to_pods_are_wanted() {
    let desired = desired(&NodeState { address: None, ..state() }).unwrap();
    let routes: Vec<String> = desired.routes.iter().map(|(key, route)| format!("{key} {route}")).collect();
    assert_eq!(routes, ["10.32.0.0/12 metric 4278198272 unreachable", "10.33.0.2/32 dev vethweone"]);
    assert!(desired.addresses.is_empty());
}

#[test]
fn a_pod_with_another_plugin_s_address_is_routed_guarded_and_masqueraded() {
    let mut state = state();
    state.pods.push(PodPort {
        host_interface: "vethweguest".to_owned(),
        address: ip("10.22.0.2"),
        ..state.pods[0].clone()
    });
    let desired = desired(&state).unwrap();
    assert!(desired.left_out.is_empty(), "{:?}", desired.left_out);
    let key = RouteKey { destination: cidr("10.22.0.2/32"), metric: 0 };
    assert_eq!(desired.routes[&key].to_string(), "dev vethweguest src 10.33.0.1");
    assert!(desired.neighbours.contains_key(&(BRIDGE, ip("10.22.0.2"))));
    assert_eq!(desired.firewall.sets[&firewall::Set::Guests].len(), 1, "our own pods are none");
    assert_eq!(desired.firewall.sets[&firewall::Set::Pods].len(), 2);
}

#[test]
fn an_address_that_no_machine_can_have_is_refused_with_its_name() {
    for wrong in ["0.0.0.0", "127.0.0.1", "224.0.0.5", "255.255.255.255", "fd00::5"] {
        let pod = PodPort { address: ip(wrong), ..state().pods[0].clone() };
        assert!(unusable_pod(state().universe, &pod).unwrap().contains(wrong));
    }
}

#[test]
fn a_peer_over_ipv6_is_reached_by_the_ipv6_device() {
    let mut state = state();
    state.peers[0].underlay = ip("fd00::2");
    let desired = desired(&state).unwrap();
    assert_eq!(desired.links[VXLAN6].kind, LinkKind::Vxlan6);
    assert!(desired.tunnels.contains_key(&(VXLAN6, Mac(name(2).mac()))));
    assert_eq!(
        desired.routes[&RouteKey { destination: cidr("10.34.0.0/16"), metric: 0 }].link(),
        Some(VXLAN6)
    );
}

#[test]
fn what_others_got_wrong_is_left_out_by_itself_and_named() {
    let wrong: [fn(&mut PeerPath); 6] = [
        |path| path.peer = name(1),
        |path| path.overlay = ip("10.33.0.1"),
        |path| path.overlay = ip("192.168.9.9"),
        |path| path.underlay = ip("10.40.0.1"),
        |path| path.underlay = ip("0.0.0.0"),
        |path| path.ranges.push(cidr("10.0.0.0/8")),
    ];
    for spoil in wrong {
        let mut state = state();
        let mut good = state.peers[0].clone();
        good.peer = name(3);
        good.overlay = ip("10.35.0.1");
        good.ranges = vec![cidr("10.35.0.0/16")];
        spoil(&mut state.peers[0]);
        state.peers.push(good);
        let desired = desired(&state).unwrap();
        assert_eq!(desired.left_out.len(), 1, "{:?}", desired.left_out);
        assert_eq!(desired.tunnels.len(), 2);
        assert!(desired.routes.contains_key(&RouteKey { destination: cidr("10.35.0.0/16"), metric: 0 }));
    }
}

#[test]
fn what_is_wrong_about_the_node_itself_is_an_error_that_names_it() {
    type Spoil = fn(&mut NodeState);
    let wrong: [(Spoil, &str); 5] = [
        (|state| state.mtu = 500, "500"),
        (|state| state.mtu = 70_000, "70000"),
        (|state| state.address = Some(ip("192.168.0.1")), "192.168.0.1"),
        (|state| state.own.push(cidr("10.0.0.0/24")), "10.0.0.0/24"),
        (|state| state.universe = cidr("fd00::/64"), "fd00::/64"),
    ];
    for (spoil, word) in wrong {
        let mut state = state();
        spoil(&mut state);
        let error = desired(&state).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_port_has_a_name_that_the_guard_knows() {
    for good in ["vethwepl1234567", "vethwe0"] {
        assert!(check_port_name(good).is_ok(), "{good}");
    }
    for bad in ["vethwe", "eth0", "vethwepl12345678", "vethwe/x", "vethwe x", "vethwe\"x", ""] {
        assert!(check_port_name(bad).is_err(), "{bad}");
    }
}
