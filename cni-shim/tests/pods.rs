//! Real pods on a real bridge: the real shim, the agent's real server, the kernel.

mod support;

use serde_json::json;
use support::lab::{GATEWAY, Netns, Node, reaches};
use support::{VERSIONS, is_root};

#[test]
fn two_pods_of_a_node_reach_each_other_and_leave_nothing_behind() {
    if !is_root("two_pods") {
        return;
    }
    let node = Node::new();
    let (one, two) = (Netns::new(), Netns::new());
    let conf = node.conf("1.0.0");
    let first = node.cni("ADD", "one", &one.path(), &conf).result();
    let second = node.cni("ADD", "two", &two.path(), &conf).result();
    assert_eq!(first["ips"][0]["address"], "10.32.0.2/32");
    assert_eq!(second["ips"][0]["address"], "10.32.0.3/32");
    eprintln!("{first:#}\n{}", node.host.ip("-d link show"));
    eprintln!("{}\n{}\n{}", one.ip("addr"), one.ip("route"), one.ip("neigh"));
    assert!(reaches(&one, "10.32.0.3") && reaches(&two, "10.32.0.2") && reaches(&one, GATEWAY));
    node.cni("DEL", "one", &one.path(), &conf).silent_success();
    node.cni("DEL", "two", &two.path(), &conf).silent_success();
    node.assert_clean();
    let _ = (VERSIONS, json!({}));
}
