//! With rules such as kube-proxy writes: destination translation at priority -100, marks and masquerading at 100.

use super::lab::*;

/// Cluster IP 10.96.0.1:80 and node port 30080 of both hosts lead to `backend`.
fn services(host: &Host, backend: &str) {
    let rules = format!(
        "table ip proxy {{
            chain prerouting {{ type nat hook prerouting priority -100; jump services; }}
            chain output {{ type nat hook output priority -100; jump services; }}
            chain services {{
                ip daddr 10.96.0.1 tcp dport 80 jump endpoint
                fib daddr type local tcp dport 30080 meta mark set meta mark | 0x4000 jump endpoint
            }}
            chain endpoint {{
                ip saddr {backend} meta mark set meta mark | 0x4000
                tcp dport {{ 80, 30080 }} dnat to {backend}:8080
            }}
            chain postrouting {{
                type nat hook postrouting priority 100;
                meta mark & 0x4000 == 0 return
                meta mark set meta mark ^ 0x4000
                masquerade fully-random
            }}
        }}"
    );
    host.shell(&format!("nft -f - <<'end'\n{rules}\nend"));
    // kube-proxy allows node ports on the loopback address.
    host.run("sysctl -qw net.ipv4.conf.all.route_localnet=1");
}

#[test]
fn services_work_to_the_same_node_to_oneself_and_across_with_bridge_netfilter_on_off_and_flipped() {
    let Some(_lab) = lab() else { return };
    let Pair { one: (host, node, inside), two: (other, _other_node, other_inside) } = pair();
    let neighbour = pod(&host, &node, &port("vethwetwo", "10.33.0.3"));
    services(&host, "10.33.0.2");
    services(&other, "10.33.0.2");
    let server = Server::start(&inside, 8080, "hello");
    for netfilter in [false, true, false] {
        bridge_netfilter(&host, netfilter);
        bridge_netfilter(&other, netfilter);
        let told = |from: &Host, to: &str, as_whom: &str| {
            let answer = ask(from, to);
            assert_eq!(answer, Some(format!("hello {as_whom}")), "{to}, bridge-nf-call-iptables {netfilter}");
        };
        told(&neighbour, "10.33.0.2:8080", "10.33.0.3");
        told(&neighbour, "10.96.0.1:80", "10.33.0.3");
        told(&inside, "10.96.0.1:80", "10.33.0.1");
        told(&other_inside, "10.96.0.1:80", "10.34.0.2");
        // Towards a pod of its own the node is a client that keeps the address it chose.
        told(&host, "10.96.0.1:80", "192.168.77.1");
        // The other host's own packet is for the Service at first, so it has its underlay address, and gets the fixed
        // overlay address on its way into the tunnel.
        told(&other, "10.96.0.1:80", "10.34.0.1");
        told(&other, "127.0.0.1:30080", "10.34.0.1");
        told(&other, "192.168.77.1:30080", "10.33.0.1");
        told(&host, "192.168.77.2:30080", "10.34.0.1");
        // A pod to its own node's port, towards a pod of the other node, where kube-proxy wants it masqueraded.
        told(&other_inside, "192.168.77.2:30080", "10.34.0.1");
        told(&neighbour, "192.168.77.1:30080", "10.33.0.1");
    }
    server.stop(&inside);
}

#[test]
fn a_pods_connection_to_the_outside_has_the_nodes_address() {
    let Some(_lab) = lab() else { return };
    let Pair { one: (host, node, inside), two: (other, _other_node, _other_inside) } = pair();
    let server = Server::start(&other, 8081, "from");
    assert_eq!(ask(&inside, "192.168.77.2:8081"), Some("from 192.168.77.1".to_owned()));
    let mut wanted = state(1);
    wanted.peers = vec![path(2)];
    wanted.options.masquerade = false;
    apply(&node, wanted);
    assert!(!host.run("nft list ruleset").contains("masquerade"));
    server.stop(&other);
}
