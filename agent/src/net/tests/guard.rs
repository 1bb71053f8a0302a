use std::time::{Duration, Instant};

use super::lab::*;
use crate::firewall::Drop::{self, *};
use crate::net::{NetError, Node};

/// What 110 ADDs at once may take, all of them together (the whole ADD has three seconds; this is our part).
const A_NODE_FULL: Duration = Duration::from_secs(2);

/// A host with two pods, 10.33.0.2 (the attacker) and 10.33.0.3.
struct Two {
    host: Host,
    node: Node,
    attacker: Host,
    victim: Host,
}

fn two() -> Two {
    let host = Host::new("a");
    let node = host.node();
    apply(&node, state(1));
    let attacker = pod(&host, &node, &port("vethweone", "10.33.0.2"));
    let victim = pod(&host, &node, &port("vethwetwo", "10.33.0.3"));
    Two { host, node, attacker, victim }
}

fn dropped(node: &Node, reason: Drop) -> u64 {
    block_on(node.counters()).unwrap()[&reason].packets
}

/// Asserts that an attack fails, is counted under its name, and nothing of it reaches the victim, with bridged packets
/// passing the IP hooks and not.
fn assert_stopped(two: &Two, reason: Drop, attack: impl Fn() -> bool) {
    for netfilter in [false, true] {
        bridge_netfilter(&two.host, netfilter);
        let before = dropped(&two.node, reason);
        let seen = Capture::incoming(&two.victim, "eth0");
        assert!(!attack(), "{reason:?} with bridge-nf-call-iptables {netfilter}");
        let seen = seen.stop();
        assert_eq!(seen, "", "{reason:?}");
        assert!(dropped(&two.node, reason) > before, "{reason:?} is not counted");
    }
}

#[test]
fn a_forged_source_address_is_dropped() {
    let Some(_lab) = lab() else { return };
    let two = two();
    two.attacker.run("ip address add 10.33.0.99/32 dev eth0");
    assert_stopped(&two, ForgedAddress, || two.attacker.succeeds("ping -c 1 -W 1 -I 10.33.0.99 10.33.0.3"));
    assert_stopped(&two, ForgedAddress, || two.attacker.succeeds("ping -c 1 -W 1 -I 10.33.0.99 10.33.0.1"));
    assert!(two.attacker.ping("10.33.0.3"));
    // A change of the rules does not forget what was counted.
    let counted = dropped(&two.node, ForgedAddress);
    let mut wanted = state(1);
    wanted.options.masquerade = false;
    apply(&two.node, wanted);
    assert_eq!(dropped(&two.node, ForgedAddress), counted);
}

#[test]
fn a_forged_mac_is_dropped() {
    let Some(_lab) = lab() else { return };
    let two = two();
    two.attacker.run("ip link set eth0 address 5e:00:0a:21:00:03");
    two.attacker.run("ip neigh replace 10.33.0.1 lladdr 7a:00:00:00:00:01 dev eth0 nud permanent");
    assert_stopped(&two, ForgedMac, || two.attacker.ping("10.33.0.3"));
    assert!(two.victim.ping("10.33.0.1"), "the victim's entry is where it was");
}

#[test]
fn arp_in_somebody_elses_name_is_dropped_and_ones_own_is_answered() {
    let Some(_lab) = lab() else { return };
    let two = two();
    two.attacker.run("ip neigh del 10.33.0.1 dev eth0");
    assert!(two.attacker.ping("10.33.0.3"), "the pod's own ARP for its gateway");
    two.attacker.run("ip address add 10.33.0.3/32 dev eth0");
    assert_stopped(&two, ForgedArp, || {
        let _there_or_not = two.attacker.try_run("ip neigh del 10.33.0.1 dev eth0");
        two.attacker.succeeds("ping -c 1 -W 1 -I 10.33.0.3 10.33.0.1")
    });
    let neighbours = two.host.run("ip neigh show dev weave");
    assert!(neighbours.contains("10.33.0.3 lladdr 5e:00:0a:21:00:03 PERMANENT"), "{neighbours}");
}

#[test]
fn frames_to_a_neighbour_are_dropped() {
    let Some(_lab) = lab() else { return };
    let two = two();
    two.attacker.run("ip route add 10.33.0.3 dev eth0");
    two.attacker.run("ip neigh replace 10.33.0.3 lladdr 5e:00:0a:21:00:03 dev eth0 nud permanent");
    assert_stopped(&two, ToNeighbour, || two.attacker.ping("10.33.0.3"));
}

#[test]
fn multicast_broadcast_and_ipv6_do_not_reach_neighbours() {
    let Some(_lab) = lab() else { return };
    let two = two();
    two.attacker.run("ip route add multicast 224.0.0.0/4 dev eth0");
    assert_stopped(&two, Multicast, || two.attacker.ping("224.0.0.1"));
    two.attacker.run("ip route add 10.33.255.255 dev eth0");
    two.attacker.run("ip neigh replace 10.33.255.255 lladdr ff:ff:ff:ff:ff:ff dev eth0 nud permanent");
    assert_stopped(&two, Multicast, || two.attacker.ping("10.33.255.255"));
    two.victim.run("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
    assert_stopped(&two, PodIpv6, || two.attacker.succeeds("ping -6 -c 1 -W 1 fe80::1%eth0"));
}

#[test]
fn a_port_that_nobody_attached_passes_nothing() {
    let Some(_lab) = lab() else { return };
    let two = two();
    let stranger = Host::new("s");
    // A foreign device in the bridge, under a name of its own and under one that looks like a pod's.
    for name in ["stray0", "vethwestray"] {
        let inside = &stranger.namespace;
        let mac = "5e:00:0a:21:00:63";
        two.host.run(&format!("ip link add {name} type veth peer name eth0 address {mac} netns {inside}"));
        two.host.run(&format!("ip link set {name} addrgenmode none"));
        two.host.run(&format!("ip link set {name} master weave up"));
        stranger.run("ip link set eth0 up");
        stranger.run("ip address add 10.33.0.99/32 dev eth0");
        stranger.run("ip route add 10.33.0.0/16 dev eth0");
        stranger.run("ip neigh replace 10.33.0.1 lladdr 7a:00:00:00:00:01 dev eth0 nud permanent");
        stranger.run("ip neigh replace 10.33.0.3 lladdr 5e:00:0a:21:00:03 dev eth0 nud permanent");
        two.host.run("ip neigh replace 10.33.0.99 lladdr 5e:00:0a:21:00:63 dev weave nud permanent");
        assert_stopped(&two, UnknownPort, || stranger.ping("10.33.0.1"));
        assert_stopped(&two, UnknownPort, || stranger.ping("10.33.0.3"));
        two.host.run(&format!("ip link del {name}"));
    }
}

#[test]
fn a_broadcast_from_a_foreign_port_does_not_reach_the_node() {
    let Some(_lab) = lab() else { return };
    let two = two();
    let stranger = Host::new("s");
    two.host.run(&format!("ip link add stray0 type veth peer name eth0 netns {}", stranger.namespace));
    two.host.run("ip link set stray0 master weave up");
    stranger.run("ip link set eth0 up");
    stranger.run("ip address add 10.33.0.99/32 dev eth0");
    stranger.run("ip route add 10.33.0.0/16 dev eth0");
    stranger.run("ip neigh replace 10.33.0.1 lladdr ff:ff:ff:ff:ff:ff dev eth0 nud permanent");
    assert!(!stranger.ping("10.33.0.1"));
    assert!(dropped(&two.node, NotUnicast) > 0);
}

#[test]
fn a_detached_pod_is_cut_off_and_nothing_of_it_is_left() {
    let Some(_lab) = lab() else { return };
    let two = two();
    block_on(two.node.detach("vethwetwo".to_owned())).unwrap();
    assert!(!two.victim.ping("10.33.0.1"));
    assert!(!two.host.run("nft list table bridge weave").contains("vethwetwo"));
    assert!(!two.host.run("ip neigh show dev weave").contains("10.33.0.3"));
    assert!(!two.host.run("bridge fdb show").contains("5e:00:0a:21:00:03"));
    block_on(two.node.detach("vethwetwo".to_owned())).unwrap();
    block_on(two.node.detach("vethwenever".to_owned())).unwrap();
    assert!(two.attacker.ping("10.33.0.1"));
}

#[test]
fn a_check_names_what_is_missing_of_a_port() {
    let Some(_lab) = lab() else { return };
    let two = two();
    let one = port("vethweone", "10.33.0.2");
    let check = || block_on(two.node.check(one.clone()));
    check().unwrap();
    for (damage, word) in [
        ("ip neigh del 10.33.0.2 dev weave", "set neighbour 10.33.0.2"),
        ("ip neigh del 10.33.0.2 dev vethweone", "on vethweone"),
        ("ip route del 10.33.0.2", "add route 10.33.0.2/32 dev vethweone"),
        ("bridge fdb del 5e:00:0a:21:00:02 dev vethweone master", "bind 5e:00:0a:21:00:02"),
        ("bridge link set dev vethweone hairpin off", "port flags"),
        ("ip link set vethweone nomaster", "a port of weave"),
        ("nft flush set bridge weave pods", "nftables set elements"),
        ("nft flush ruleset", "nftables tables"),
    ] {
        // Asked before the repair, which may come first on a busy machine: then it is damaged again.
        let mut error = String::new();
        eventually("a check names the damage", || {
            two.host.run(damage);
            error = check().map_or_else(|error| error.to_string(), |()| String::new());
            eventually("it is repaired", || check().is_ok());
            !error.is_empty()
        });
        assert!(error.contains("vethweone") && error.contains(word), "{error}");
    }
    let other = block_on(two.node.check(port("vethwenone", "10.33.0.9"))).unwrap_err().to_string();
    assert!(other.contains("does not exist"), "{other}");
}

#[test]
fn what_is_for_a_pod_goes_to_its_port_and_through_the_bridge_where_the_route_is_missing() {
    let Some(_lab) = lab() else { return };
    let Two { host, node, attacker, victim: _victim } = two();
    let passed = || -> u64 {
        let shown = host.run("cat /sys/class/net/weave/statistics/tx_packets");
        shown.trim().parse().unwrap()
    };
    let before = passed();
    assert!(attacker.ping("10.33.0.3"));
    assert_eq!(passed(), before, "the bridge carries nothing to a pod");
    drop(node);
    host.run("ip route del 10.33.0.3");
    assert!(attacker.ping("10.33.0.3"), "nobody is there to put the route back");
    assert!(passed() > before);
}

#[test]
fn the_connections_of_a_pod_that_left_are_forgotten() {
    let Some(_lab) = lab() else { return };
    let two = two();
    two.host
        .shell("nft add table ip track; nft add chain ip track f '{ type filter hook forward priority 0; }'");
    two.host.run("nft add rule ip track f ct state new accept");
    assert!(two.attacker.ping("10.33.0.3") && two.victim.ping("10.33.0.2") && two.attacker.ping("10.33.0.1"));
    let entries = |address: &str| {
        let table = two.host.run("cat /proc/thread-self/net/nf_conntrack");
        table.lines().filter(|line| line.contains(&format!("={address} "))).count()
    };
    assert!(entries("10.33.0.3") > 0);
    let others = entries("10.33.0.1");
    block_on(two.node.detach("vethwetwo".to_owned())).unwrap();
    eventually("they are forgotten", || entries("10.33.0.3") == 0);
    assert_eq!(entries("10.33.0.1"), others);
}

#[test]
fn an_attach_that_fails_leaves_nothing_and_says_why() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let early = block_on(node.attach(port("vethweone", "10.33.0.2"))).unwrap_err();
    assert!(matches!(early, NetError::NotReady), "{early}");
    apply(&node, state(1));
    let before = host.snapshot();
    for (bad, word) in [
        (port("vethweone", "10.33.0.2"), "vethweone"),
        (port("eth0", "10.33.0.2"), "vethwe"),
        (port("vethweone", "127.0.0.1"), "127.0.0.1"),
    ] {
        let error = block_on(node.attach(bad)).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_same(&before, &host.snapshot());
    }
    assert!(node.health().in_force, "{:?}", node.health());
}

#[test]
fn a_pod_is_attached_although_somebody_flushed_the_tables_a_moment_ago() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    apply(&node, state(1));
    host.run("nft flush ruleset");
    let inside = pod(&host, &node, &port("vethweone", "10.33.0.2"));
    assert!(inside.ping("10.33.0.1"));
    host.run("ip link del weave");
    let second = pod(&host, &node, &port("vethwetwo", "10.33.0.3"));
    assert!(second.ping("10.33.0.2"));
}

#[test]
fn a_hundred_and_ten_pods_are_attached_at_once() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    apply(&node, state(1));
    let pods: Vec<_> =
        (0..110).map(|number| port(&format!("vethwe{number:03}"), &format!("10.33.1.{number}"))).collect();
    let batch: String = pods
        .iter()
        .map(|pod| format!("link add {0} type veth peer name p{0}\n", pod.host_interface))
        .collect();
    host.shell(&format!("ip -batch - <<'end'\n{batch}end"));

    let started = Instant::now();
    block_on(async {
        let attaching: Vec<_> = pods.iter().cloned().map(|pod| node.attach(pod)).collect();
        for result in futures_util::future::join_all(attaching).await {
            result.unwrap();
        }
    });
    let took = started.elapsed();
    println!("110 pods: {took:?}");
    assert!(took < A_NODE_FULL, "{took:?}");
    assert_eq!(host.run("bridge fdb show").matches(" master weave static").count(), 110);
    assert_eq!(host.run("ip neigh show dev weave nud permanent").lines().count(), 110);
    let one_by_one = Instant::now();
    for pod in &pods {
        block_on(node.detach(pod.host_interface.clone())).unwrap();
    }
    println!("110 detached one by one: {:?}", one_by_one.elapsed());
    assert!(node.health().in_force);
    assert_eq!(node.health().repairs, 0);
}
