//! Reset, the check for overlaps, and the MTU.

use super::lab::*;
use crate::net::{mtu, overlap, reset};

#[test]
fn reset_leaves_nothing() {
    let Some(_lab) = lab() else { return };
    let (host, _other) = two_hosts();
    let before = without_settings(&host.snapshot());
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2), path(3)];
    wanted.peers[1].underlay = ip("fd00::3");
    apply(&node, wanted);
    let inside = pod(&host, &node, &port("vethweone", "10.33.0.2"));
    // The owner would put everything back.
    drop(node);
    eventually("the owner's thread has ended", || !threads().contains("weave-net"));
    let report = host.inside(reset::reset).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.removed.iter().any(|removed| removed.contains("vethweone")), "{:?}", report.removed);
    assert_same(&before, &without_settings(&host.snapshot()));
    assert!(!inside.succeeds("ip link show eth0"));

    let again = host.inside(reset::reset).unwrap();
    assert!(again.errors.is_empty() && again.removed.is_empty(), "{again:?}");
}

fn threads() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}

/// Settings stay after a reset.
fn without_settings(snapshot: &str) -> String {
    snapshot.lines().filter(|line| !line.contains("ip_forward")).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_overlapping_route_is_named_with_its_device() {
    let Some(_lab) = lab() else { return };
    let (host, _other) = two_hosts();
    let find = || host.inside(|| overlap::find(cidr(UNIVERSE))).unwrap();
    assert_eq!(find(), None, "the default route is none");
    for (route, name) in [
        ("10.40.0.0/16 dev up0", "10.40.0.0/16 on device up0"),
        ("10.0.0.0/8 via 192.168.77.2", "10.0.0.0/8 on device up0"),
        ("blackhole 10.47.255.255", "10.47.255.255/32"),
        ("10.33.0.0/24 dev up0 table 77", "10.33.0.0/24 on device up0 in table 77"),
    ] {
        host.run(&format!("ip route add {route}"));
        let found = find().unwrap().to_string();
        assert!(found.contains(name) && found.contains("--ipalloc-range"), "{found}");
        host.run(&format!("ip route del {route}"));
    }
    for harmless in ["10.48.0.0/16 dev up0", "0.0.0.0/1 via 192.168.77.2", "192.168.0.0/16 dev up0"] {
        host.run(&format!("ip route add {harmless}"));
        assert_eq!(find(), None, "{harmless}");
    }
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2)];
    apply(&node, wanted);
    assert_eq!(find(), None, "our own routes");
    // An address inside the universe on a foreign device brings its network's route.
    host.run("ip address add 10.44.0.1/24 dev up0");
    assert!(find().unwrap().to_string().contains("10.44.0.0/24 on device up0"));
}

#[test]
fn the_mtu_comes_from_the_narrowest_way_to_a_peer() {
    let Some(_lab) = lab() else { return };
    let (host, _other) = two_hosts();
    let ask = |peers: Vec<&str>| {
        let peers: Vec<_> = peers.into_iter().map(ip).collect();
        host.inside(move || mtu::underlay(&peers)).unwrap()
    };
    let found = ask(vec![]);
    assert_eq!((found.device.as_deref(), found.overlay_mtu), (Some("up0"), 1450));
    host.run("ip link set up0 mtu 9000");
    assert_eq!(ask(vec!["192.168.77.2"]).overlay_mtu, 8950);
    host.run("ip link add narrow0 type veth peer name narrow1");
    host.run("ip link set narrow0 mtu 1280 up");
    host.run("ip link set narrow1 up");
    host.run("ip route add 172.31.0.0/16 dev narrow0");
    let found = ask(vec!["192.168.77.2", "172.31.0.9", "::ffff:192.168.77.3"]);
    assert_eq!((found.device.as_deref(), found.overlay_mtu), (Some("narrow0"), 1230));
    host.run("ip -6 route add fd00::/64 dev narrow0");
    assert_eq!(ask(vec!["fd00::5"]).overlay_mtu, 1210);
    host.run("ip route del default");
    let found = ask(vec![]);
    assert_eq!((found.device, found.overlay_mtu), (None, 1450));
    assert_eq!(ask(vec!["127.0.0.1"]).overlay_mtu, 1450);
}
