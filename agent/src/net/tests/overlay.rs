use super::lab::*;
use crate::net::PeerPath;

#[test]
fn pods_and_nodes_of_two_hosts_reach_each_other() {
    let Some(_lab) = lab() else { return };
    let pair = pair();
    for netfilter in [false, true] {
        bridge_netfilter(&pair.one.0, netfilter);
        bridge_netfilter(&pair.two.0, netfilter);
        assert!(pair.one.2.ping("10.34.0.2"), "pod to pod, bridge-nf-call-iptables {netfilter}");
        assert!(pair.two.2.ping("10.33.0.2"), "pod to pod, back");
        assert!(pair.one.2.ping("10.34.0.1"), "pod to the other node");
        assert!(pair.one.0.ping("10.34.0.2"), "node to the other's pod");
        assert!(pair.one.0.ping("10.33.0.2"), "node to its own pod");
        assert!(pair.one.2.ping("10.33.0.1"), "pod to its own node");
        assert!(pair.one.2.ping("192.168.77.2"), "pod to the outside, masqueraded");
    }
    // IPv6 pods introduce themselves to their network; nothing else was dropped.
    let mut counters = block_on(pair.one.1.counters()).unwrap();
    counters.remove(&crate::firewall::Drop::PodIpv6);
    assert!(counters.values().all(|count| count.packets == 0), "{counters:?}");
}

#[test]
fn pods_of_one_host_reach_each_other_without_redirects() {
    let Some(_lab) = lab() else { return };
    let pair = pair();
    let second = pod(&pair.one.0, &pair.one.1, &port("vethwetwo", "10.33.0.3"));
    for netfilter in [false, true] {
        bridge_netfilter(&pair.one.0, netfilter);
        let told = second.run("ping -c 3 -i 0.2 -W 1 10.33.0.2");
        assert!(told.contains(" 0% packet loss") && !told.contains("Redirect"), "{told}");
    }
    assert!(!second.run("ip route show cache").contains("redirect"));
}

#[test]
fn the_agent_may_end_and_start_and_pods_talk_on() {
    let Some(_lab) = lab() else { return };
    let Pair { one: (host, node, inside), two: (other, other_node, _other_inside) } = pair();
    drop(node);
    drop(other_node);
    assert!(inside.ping("10.34.0.2"));
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2)];
    wanted.pods = vec![port("vethweone", "10.33.0.2")];
    apply(&node, wanted);
    assert!(inside.ping("10.34.0.2"));
    drop(other);
}

#[test]
fn with_the_tunnel_or_the_route_gone_nothing_leaves_by_the_uplink() {
    let Some(_lab) = lab() else { return };
    let Pair { one: (host, node, inside), two: (other, _other_node, _) } = pair();
    // Nobody repairs: what is looked for is what the kernel alone does.
    drop(node);
    let listening = Capture::start(&other, "up0", "net 10.32.0.0/12");
    for broken in [
        "ip route del 10.34.0.0/16",
        "ip link del weave-vx",
        "ip route flush proto 87",
        "ip route add 10.34.0.0/16 via 192.168.77.2",
    ] {
        host.run(broken);
        assert!(!inside.ping("10.34.0.2"), "after {broken}");
        assert!(!host.ping("10.34.0.2"), "from the node, after {broken}");
    }
    assert_eq!(listening.stop(), "", "packets of the overlay on the uplink");
    let dropped = host.run("nft list counter inet weave around_overlay");
    assert!(!dropped.contains("packets 0"), "{dropped}");
}

#[test]
fn what_enters_the_tunnel_from_outside_has_the_nodes_overlay_address() {
    let Some(_lab) = lab() else { return };
    let Pair { one: (host, _node, _inside), two: (_other, _other_node, other_inside) } = pair();
    let seen = Capture::start(&other_inside, "eth0", "icmp");
    // A client outside, behind the first host's uplink, sends to a pod of the second host through the first.
    host.run("ip link add out0 type veth peer name out1");
    host.run("ip address add 172.30.0.1/24 dev out0");
    host.run("ip link set out0 up");
    host.run("ip link set out1 up");
    assert!(host.succeeds("ping -c 1 -W 1 -I 172.30.0.1 10.34.0.2"));
    let seen = seen.stop();
    assert!(seen.contains("10.33.0.1 > 10.34.0.2"), "{seen}");
    assert!(!seen.contains("172.30.0.1"), "{seen}");
}

#[test]
fn clients_keep_their_address_towards_local_pods_unless_told_otherwise() {
    let Some(_lab) = lab() else { return };
    for (keep, source) in [(true, "172.30.0.1"), (false, "10.33.0.1")] {
        let host = Host::new("a");
        let node = host.node();
        let mut wanted = state(1);
        wanted.options.keep_client_addresses = keep;
        apply(&node, wanted);
        let inside = pod(&host, &node, &port("vethweone", "10.33.0.2"));
        let seen = Capture::start(&inside, "eth0", "icmp");
        host.run("ip address add 172.30.0.1/32 dev lo");
        assert!(host.succeeds("ping -c 1 -W 1 -I 172.30.0.1 10.33.0.2"));
        let seen = seen.stop();
        assert!(seen.contains(&format!("{source} > 10.33.0.2")), "{seen}");
    }
}

#[test]
fn a_stranger_and_a_peer_with_a_forged_source_are_dropped_and_counted() {
    let Some(_lab) = lab() else { return };
    let Pair { one: (host, node, inside), two: (other, other_node, other_inside) } = pair();
    // The other host claims a third range, which the first does not know to be its.
    let moved = port("vethwetwo", "10.40.0.9");
    let mut wanted = state(2);
    wanted.own.push(cidr("10.40.0.0/16"));
    wanted.peers = vec![path(1)];
    apply(&other_node, wanted);
    let second = pod(&other, &other_node, &moved);
    assert!(!second.ping("10.33.0.2"));
    let counters = block_on(node.counters()).unwrap();
    assert_eq!(counters[&crate::firewall::Drop::ForgedSource].packets, 1);

    // The first host forgets the peer: its tunnel packets are a stranger's.
    let mut wanted = state(1);
    wanted.peers = vec![PeerPath { underlay: ip("192.168.77.9"), ..path(2) }];
    apply(&node, wanted);
    assert!(!other_inside.ping("10.33.0.2"));
    let counters = block_on(node.counters()).unwrap();
    assert_eq!(counters[&crate::firewall::Drop::ForgedVxlan].packets, 1);
    drop(inside);
    drop(host);
}

#[test]
fn large_packets_fit_the_tunnel_without_fragments() {
    let Some(_lab) = lab() else { return };
    let pair = pair();
    let fragments = Capture::start(&pair.two.0, "up0", "ip[6:2] & 0x3fff != 0");
    assert!(pair.one.2.succeeds("ping -c 1 -W 1 -M do -s 1422 10.34.0.2"));
    assert!(!pair.one.2.succeeds("ping -c 1 -W 1 -M do -s 1423 10.34.0.2"));
    assert_eq!(fragments.stop(), "");
}
