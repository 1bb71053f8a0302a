//! With firewalls such as Docker and firewalld set up.

use super::lab::*;
use crate::net::{ForwardAccept, Node, NodeState, reset};

/// The same table that firewalld writes, as far as forwarding goes.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname \"lo\" accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
}";

fn host_with_two_pods(prepare: impl FnOnce(&Host), wanted: NodeState) -> (Host, Node, Host, Host) {
    let host = Host::new("a");
    prepare(&host);
    let node = host.node();
    apply(&node, wanted);
    let one = pod(&host, &node, &port("vethweone", "10.33.0.2"));
    let two = pod(&host, &node, &port("vethwetwo", "10.33.0.3"));
    (host, node, one, two)
}

#[test]
fn without_other_firewalls_nothing_is_probed_or_touched() {
    let Some(_lab) = lab() else { return };
    let (host, node, one, _two) = host_with_two_pods(|_| {}, state(1));
    assert!(one.ping("10.33.0.3"));
    assert_eq!(node.health().foreign_firewall, None);
    assert_eq!(host.run("nft list tables"), "table inet weave\ntable bridge weave\n");
}

#[test]
fn where_docker_drops_what_is_forwarded_the_universe_is_accepted_and_reset_takes_it_back() {
    let Some(_lab) = lab() else { return };
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let (host, node, one, _two) =
            host_with_two_pods(|host| drop(host.run(&format!("{iptables} -P FORWARD DROP"))), state(1));
        assert!(one.ping("10.33.0.3"), "{iptables}: {:?}", node.health());
        let rules = host.run(&format!("{iptables} -S FORWARD"));
        assert_eq!(rules.matches("weave-forward-accept").count(), 3, "{rules}");
        assert_eq!(node.health().foreign_firewall, None);
        // What the probe made is gone.
        assert!(!host.run("ip link show").contains("probe"));
        assert!(!host.run("nft list ruleset").contains("probe"));
        assert!(!host.run("ip route show table all").contains("192.0.2."));
        // A second agent adds nothing to the rules.
        drop(node);
        let node = host.node();
        apply(&node, state(1));
        assert_eq!(host.run(&format!("{iptables} -S FORWARD")), rules);
        drop(node);
        eventually("the owner's thread has ended", || !threads().contains("weave-net"));
        let report = host.inside(reset::reset).unwrap();
        assert!(report.errors.is_empty(), "{report:?}");
        assert_eq!(host.run(&format!("{iptables} -S FORWARD")).trim(), "-P FORWARD DROP");
    }
}

#[test]
fn when_told_never_to_touch_others_it_says_who_drops() {
    let Some(_lab) = lab() else { return };
    let mut wanted = state(1);
    wanted.options.forward_accept = ForwardAccept::Never;
    let (host, node, one, _two) =
        host_with_two_pods(|host| drop(host.run("iptables-nft -P FORWARD DROP")), wanted);
    let complaint = node.health().foreign_firewall.unwrap();
    assert!(complaint.contains("ip filter FORWARD (policy drop)"), "{complaint}");
    assert!(!one.ping("10.33.0.3"));
    assert_eq!(host.run("iptables-nft -S FORWARD").trim(), "-P FORWARD DROP");
}

#[test]
fn where_firewalld_rejects_what_is_forwarded_it_says_so_with_the_remedy() {
    let Some(_lab) = lab() else { return };
    let (host, node, one, _two) =
        host_with_two_pods(|host| drop(host.shell(&format!("nft -f - <<'end'\n{FIREWALLD}\nend"))), state(1));
    let complaint = node.health().foreign_firewall.unwrap();
    assert!(complaint.contains("inet firewalld filter_FORWARD"), "{complaint}");
    assert!(
        complaint.contains("firewall-cmd --permanent --zone=trusted --add-source=10.32.0.0/12"),
        "{complaint}"
    );
    assert!(!one.ping("10.33.0.3"));
    // What it calls a remedy is one, and it notices.
    host.run("nft insert rule inet firewalld filter_FORWARD ip saddr 10.32.0.0/12 accept");
    apply(&node, NodeState { mtu: 1400, ..state(1) });
    assert_eq!(node.health().foreign_firewall, None);
    assert!(one.ping("10.33.0.3"));
}

fn threads() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}
