use super::lab::*;

#[test]
fn an_empty_host_becomes_a_node() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers.push(path(2));
    apply(&node, wanted);

    let links = host.json("ip -j -d link show");
    let link =
        |name: &str| links.as_array().unwrap().iter().find(|link| link["ifname"] == name).unwrap().clone();
    let (bridge, vxlan) = (link("weave"), link("weave-vx"));
    assert_eq!(bridge["address"], "7a:00:00:00:00:01");
    assert_eq!(bridge["mtu"], 1450);
    assert_eq!(bridge["linkinfo"]["info_data"]["stp_state"], 0);
    assert_eq!(bridge["linkinfo"]["info_data"]["mcast_snooping"], 0);
    assert_eq!(vxlan["address"], "7a:00:00:00:00:01");
    assert_eq!(vxlan["linkinfo"]["info_data"]["id"], 6784);
    assert_eq!(vxlan["linkinfo"]["info_data"]["port"], 6784);
    assert_eq!(vxlan["linkinfo"]["info_data"]["learning"], false);
    assert!(vxlan["flags"].as_array().unwrap().iter().any(|flag| flag == "UP"));

    let routes = host.run("ip route show proto 87");
    let routes: Vec<&str> = routes.lines().map(str::trim_end).collect();
    assert_eq!(
        routes,
        [
            "unreachable 10.32.0.0/12 metric 4278198272",
            "10.33.0.0/16 dev weave scope link src 10.33.0.1 linkdown",
            "10.34.0.0/16 via 10.34.0.1 dev weave-vx src 10.33.0.1 onlink",
        ]
    );
    for device in ["weave", "weave-vx"] {
        assert!(
            host.run(&format!("ip -o address show dev {device}"))
                .contains("10.33.0.1/32 scope global noprefixroute")
        );
        let asked = host.shell(&format!("cd /proc/sys/net/ipv4/conf; cat all/rp_filter {device}/rp_filter"));
        assert!(["0\n0", "1\n2", "2\n2"].contains(&asked.trim()), "{asked}");
        assert_eq!(host.run(&format!("cat /proc/sys/net/ipv6/conf/{device}/disable_ipv6")).trim(), "1");
    }
    assert_eq!(host.run("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    assert!(host.run("ip neigh show dev weave-vx").contains("10.34.0.1 lladdr 7a:00:00:00:00:02 PERMANENT"));
    assert!(
        host.run("bridge fdb show dev weave-vx")
            .contains("7a:00:00:00:00:02 dst 192.168.77.2 self permanent")
    );
    let tables = host.json("nft -j list tables");
    let tables: Vec<_> =
        tables["nftables"].as_array().unwrap().iter().filter_map(|entry| entry.get("table")).collect();
    assert!(tables.iter().all(|table| table["name"] == "weave"));
    assert_eq!(tables.len(), 2);
    assert!(node.health().in_force, "{:?}", node.health());
}

#[test]
fn a_node_without_an_address_has_everything_that_needs_none() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.address = None;
    wanted.own.clear();
    apply(&node, wanted);
    assert_eq!(host.run("ip route show proto 87").trim_end(), "unreachable 10.32.0.0/12 metric 4278198272");
    assert!(host.succeeds("ip link show weave"));
    apply(&node, state(1));
    assert!(host.run("ip route show proto 87").contains("10.33.0.0/16 dev weave"));
}

#[test]
fn a_restart_with_the_same_state_changes_nothing_in_the_kernel() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers.push(path(2));
    let one = port("vethweone", "10.33.0.2");
    apply(&node, wanted.clone());
    let _pod = pod(&host, &node, &one);
    wanted.pods.push(one);
    apply(&node, wanted.clone());
    drop(node);

    let before = host.snapshot();
    let monitor = Monitor::start(&host);
    let node = host.node();
    apply(&node, wanted);
    assert!(node.health().in_force);
    let heard = monitor.stop(&host);
    assert_eq!(heard, "", "notifications at a restart");
    assert_same(&before, &host.snapshot());
}

#[test]
fn what_a_state_no_longer_lists_goes() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    apply(&node, wanted.clone());
    let before = host.snapshot();
    wanted.peers = vec![path(2), path(3)];
    apply(&node, wanted.clone());
    assert!(host.run("nft list set inet weave sources").contains("10.35.0.0/16"));
    wanted.peers.clear();
    apply(&node, wanted);
    assert_same(&before, &host.snapshot());
}

#[test]
fn a_range_that_is_cut_up_keeps_a_route_for_every_address() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2), path(3)];
    apply(&node, wanted.clone());
    wanted.peers[0].ranges = vec![cidr("10.34.0.0/17")];
    wanted.peers[1].ranges.push(cidr("10.34.128.0/17"));
    apply(&node, wanted);
    let routes = host.run("ip route show proto 87");
    assert!(routes.contains("10.34.0.0/17 via 10.34.0.1"), "{routes}");
    assert!(routes.contains("10.34.128.0/17 via 10.35.0.1"), "{routes}");
    assert!(!routes.contains("10.34.0.0/16"), "{routes}");
    let sources = host.run("nft list set inet weave sources");
    assert!(sources.contains("7a:00:00:00:00:03 . 10.34.128.0-10.35.255.255"), "{sources}");
    assert!(!sources.contains("10.34.0.0/16"), "{sources}");
}

#[test]
fn a_peer_with_an_ipv6_underlay_gets_a_device_of_its_own() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2)];
    wanted.peers[0].underlay = ip("fd00::2");
    apply(&node, wanted.clone());
    assert!(host.run("ip -d link show weave-vx6").contains("vxlan id 6784"));
    assert!(host.run("bridge fdb show dev weave-vx6").contains("7a:00:00:00:00:02 dst fd00::2"));
    assert!(host.run("ip route show proto 87").contains("10.34.0.0/16 via 10.34.0.1 dev weave-vx6"));
    wanted.peers.clear();
    apply(&node, wanted);
    assert!(!host.succeeds("ip link show weave-vx6"));
}

#[test]
fn foreign_things_in_the_way_are_named_and_left_alone() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    host.run("ip link add up0 type veth peer name up1");
    host.run("ip link set up0 up");
    host.run("ip link set up1 up");
    host.run("ip route add 10.34.0.0/16 dev up0");
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2), path(3)];
    let error = try_apply(&node, wanted).unwrap_err().to_string();
    assert!(error.contains("10.34.0.0/16"), "{error}");
    assert!(host.run("ip route show 10.34.0.0/16").contains("dev up0"));
    // The rest is in force all the same.
    assert!(host.run("ip route show proto 87").contains("10.35.0.0/16 via 10.35.0.1"));

    let other = Host::new("b");
    other.run("ip link add weave type veth peer name weave1");
    let error = try_apply(&other.node(), state(1)).unwrap_err().to_string();
    assert!(error.contains("the link weave is in the way") && error.contains("veth"), "{error}");
    assert!(other.run("ip -d link show weave").contains("veth"));
}

#[test]
fn a_port_that_somebody_holds_is_one_problem_with_its_remedy_and_no_more() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    // As Weave Net left it.
    host.run("ip link add vxlan-6784 type vxlan external dstport 6784");
    host.run("ip link set vxlan-6784 up");
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2), path(3)];
    let error = try_apply(&node, wanted).unwrap_err().to_string();
    assert!(error.contains("UDP 6784") && error.contains("weave reset --weave-net"), "{error}");
    assert_eq!(node.health().problems.len(), 1, "{:?}", node.health().problems);
    assert!(host.run("ip route show proto 87").contains("unreachable 10.32.0.0/12"));
    host.run("ip link delete vxlan-6784");
    eventually("what was in the way is gone", || node.health().in_force);
    assert!(host.run("ip route show proto 87").contains("10.34.0.0/16 via"));
}

#[test]
fn one_bad_peer_does_not_stop_the_others() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2), path(3)];
    wanted.peers[0].ranges.push(cidr("192.168.0.0/16"));
    let error = try_apply(&node, wanted).unwrap_err().to_string();
    assert!(error.contains("192.168.0.0/16") && error.contains("7a:00:00:00:00:02"), "{error}");
    let routes = host.run("ip route show proto 87");
    assert!(routes.contains("10.35.0.0/16 via") && !routes.contains("10.34.0.0/16"), "{routes}");
}
