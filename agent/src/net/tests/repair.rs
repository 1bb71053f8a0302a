use std::time::{Duration, Instant};

use super::lab::*;

/// What deleting anything may cost: two polls of the nftables generation, and a busy machine.
const SOON: Duration = Duration::from_secs(4);

/// Everything that somebody could do to what is ours.
const DAMAGE: [&str; 46] = [
    "ip route del unreachable 10.32.0.0/12 metric 4278198272",
    "ip route del 10.34.0.0/16",
    "ip route del 10.33.0.0/16",
    "ip route flush proto 87",
    "ip route replace 10.34.0.0/16 dev weave proto 87",
    "ip neigh del 10.34.0.1 dev weave-vx",
    "ip neigh replace 10.34.0.1 lladdr 02:00:00:00:00:99 nud permanent dev weave-vx",
    "ip neigh del 10.33.0.2 dev weave",
    "ip neigh del 10.33.0.2 dev vethweone",
    "ip route del 10.33.0.2",
    "ip route replace 10.33.0.2 dev weave proto 87",
    "ip link set vethweone group 0",
    "bridge fdb del 7a:00:00:00:00:02 dev weave-vx",
    "bridge fdb replace 7a:00:00:00:00:02 dst 192.168.77.99 dev weave-vx",
    "bridge fdb del 5e:00:0a:21:00:02 dev vethweone master",
    "ip address del 10.33.0.1/32 dev weave",
    "ip address del 10.33.0.1/32 dev weave-vx",
    "ip address flush dev weave",
    "ip link set weave down",
    "ip link set weave-vx down",
    "ip link set weave mtu 1400",
    "ip link set weave address 02:00:00:00:00:01",
    "ip link set weave-vx address 02:00:00:00:00:01",
    "ip link set weave type bridge stp_state 1",
    "ip link set weave type bridge mcast_snooping 1",
    "ip link set vethweone nomaster",
    "ip link set vethweone down",
    "bridge link set dev vethweone hairpin off",
    "bridge link set dev vethweone learning on",
    "bridge link set dev vethweone flood on",
    "ip link del weave-vx",
    "ip link del weave",
    "nft flush ruleset",
    "nft delete table inet weave",
    "nft delete table bridge weave",
    "nft flush chain bridge weave pod",
    "nft flush set bridge weave pods",
    "nft flush set inet weave sources",
    "nft flush set inet weave peers4",
    "nft add rule inet weave postrouting drop",
    "nft insert rule bridge weave pod accept",
    "nft add element inet weave peers4 { 192.168.77.66 }",
    "nft add table inet weave { flags dormant ; }",
    "sysctl -qw net.ipv4.conf.weave.rp_filter=1",
    "sysctl -qw net.ipv4.conf.weave-vx.forwarding=0",
    "sysctl -qw net.ipv4.ip_forward=0",
];

#[test]
fn flushed_tables_are_back_before_the_next_look_of_the_clock() {
    let Some(_lab) = lab() else { return };
    let (host, _other) = two_hosts();
    let node = host.node();
    apply(&node, state(1));
    let _pod = pod(&host, &node, &port("vethweone", "10.33.0.2"));
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            eventually("the tables rest", || node.health().in_force);
            host.run("nft flush ruleset");
            let start = Instant::now();
            eventually("the guard is back", || host.run("nft list ruleset").contains("vethweone"));
            start.elapsed()
        })
        .collect();
    times.sort();
    // The clock alone would take half a second on average.
    assert!(times[2] < Duration::from_millis(300), "{times:?}");
}

#[test]
fn whatever_is_deleted_or_changed_comes_back() {
    let Some(_lab) = lab() else { return };
    let (host, other) = two_hosts();
    let node = host.node();
    let mut wanted = state(1);
    wanted.peers = vec![path(2)];
    apply(&node, wanted);
    let other_node = other.node();
    let mut theirs = state(2);
    theirs.peers = vec![path(1)];
    apply(&other_node, theirs);
    let inside = pod(&host, &node, &port("vethweone", "10.33.0.2"));
    let there = pod(&other, &other_node, &port("vethweone", "10.34.0.2"));
    assert!(inside.ping("10.34.0.2"));

    for broken in DAMAGE {
        // The kernel's numbers and handles change with a repair; what is not ours must not.
        let before = unnumbered(&host.snapshot());
        let started = Instant::now();
        host.run(broken);
        while unnumbered(&host.snapshot()) != before {
            if started.elapsed() > SOON {
                println!("{broken} is not repaired: {:?}", node.health());
                assert_same(&before, &unnumbered(&host.snapshot()));
            }
        }
        println!("{broken}: {:?}", started.elapsed());
        assert!(inside.ping("10.34.0.2"), "after {broken}");
    }
    assert!(node.health().repairs > 0);
    drop(there);
}

/// A snapshot without what is new whenever an object is made anew.
fn unnumbered(snapshot: &str) -> String {
    let mut kept: Vec<String> = snapshot
        .lines()
        .map(|line| {
            let line = line.split("# handle").next().unwrap_or_default();
            let line = match line.split_once(": ") {
                Some((number, rest)) if number.chars().all(|digit| digit.is_ascii_digit()) => rest,
                _ => line,
            };
            line.split_whitespace().filter(|word| !word.starts_with("seal_")).collect::<Vec<_>>().join(" ")
        })
        .collect();
    kept.sort();
    kept.join("\n")
}

#[test]
fn transactions_of_others_are_not_taken_for_damage() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    apply(&node, state(1));
    let monitor = Monitor::start(&host);
    for number in 0..5 {
        host.run(&format!("nft add table ip other{number}"));
    }
    host.run("ip link add up0 type veth peer name up1");
    host.run("ip link set up0 up");
    block_on(node.settled()).unwrap();
    let heard = monitor.stop(&host);
    assert!(!heard.contains("weave"), "{heard}");
    assert_eq!(node.health().repairs, 0);
}

#[test]
fn a_pods_port_that_is_not_there_yet_is_no_damage() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.pods = vec![port("vethweone", "10.33.0.2")];
    apply(&node, wanted);
    assert!(node.health().in_force, "{:?}", node.health());
    host.run("ip link add vethweone type veth peer name eth0");
    eventually("the port is taken in when it appears", || {
        host.run("bridge -j link show").contains("\"vethweone\"")
            && host.run("bridge fdb show dev vethweone").contains("5e:00:0a:21:00:02 master weave static")
    });
}

#[test]
fn the_trouble_with_a_pod_leaves_with_it() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    let mut wanted = state(1);
    wanted.pods = vec![port("vethwebad", "10.33.0.2")];
    // A bridge cannot be the port of a bridge.
    host.run("ip link add vethwebad type bridge");
    let trouble = try_apply(&node, wanted).unwrap_err().to_string();
    assert!(trouble.contains("vethwebad"), "{trouble}");
    host.run("ip link del vethwebad");
    for _ in 0..2 {
        block_on(node.detach("vethwebad".to_owned())).unwrap();
    }
    eventually("the node is in force again", || node.health().in_force);
}

#[test]
fn a_strict_check_of_the_route_back_for_all_links_is_kept_off_ours_at_once() {
    let Some(_lab) = lab() else { return };
    let host = Host::new("a");
    let node = host.node();
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=0");
    apply(&node, state(1));
    let one = pod(&host, &node, &port("vethweone", "10.33.0.2"));
    let _two = pod(&host, &node, &port("vethwetwo", "10.33.0.3"));
    let bridge = || host.run("cat /proc/sys/net/ipv4/conf/weave/rp_filter").trim().to_owned();
    assert_eq!(bridge(), "0");
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    eventually("loose again", || bridge() == "2");
    assert!(one.ping("10.33.0.3"));
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=0");
    eventually("not asked again", || bridge() == "0");
    assert!(one.ping("10.33.0.3"));
}
