//! What the Nodes say: where the peers are, and which peer is at home on which Node.
//!
//! **The register.** Each agent writes the name of its peer into an annotation of its own Node before it can own
//! anything, and the universe that it is in once it has a ring. So the peers that exist are those that some Node names:
//! a Node that is deleted takes its entry along, and a Node whose disk was wiped names another peer than before. There
//! is no list to keep in step with the Nodes and no object that all agents write to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use weave_proto::PeerName;
use weave_topology::Target;

use super::objects::{Annotations, Node};

/// Where the name of a Node's peer is written down.
pub(super) const PEER: &str = "weave-net/peer";
/// Where the universe of a Node's peer is written down.
pub(super) const UNIVERSE: &str = "weave-net/universe";

/// Where a Node's agent is reached: its first IPv4 InternalIP, or else its first IPv4 ExternalIP.
pub(super) fn address(node: &Node) -> Option<Ipv4Addr> {
    let of_kind = |kind: &str| {
        let mut found = node.status.addresses.iter().filter(move |address| address.kind == kind);
        found.find_map(|address| address.address.parse().ok())
    };
    of_kind("InternalIP").or_else(|| of_kind("ExternalIP"))
}

/// Where the other Nodes' agents are.
pub(super) fn targets(nodes: &BTreeMap<String, Node>, own: &str) -> BTreeSet<Target> {
    let own_address = nodes.get(own).and_then(address);
    let others = nodes.iter().filter(|(name, _)| name.as_str() != own);
    let addresses = others.filter_map(|(_, node)| address(node)).filter(|it| Some(*it) != own_address);
    addresses.filter_map(|address| IpAddr::V4(address).to_string().parse().ok()).collect()
}

/// The peers that are at home on some Node.
pub(super) fn registered(nodes: &BTreeMap<String, Node>) -> BTreeSet<PeerName> {
    nodes.values().filter_map(peer).collect()
}

/// The peer that is at home on the Node.
pub(super) fn peer(node: &Node) -> Option<PeerName> {
    node.metadata.annotations.peer.as_deref()?.parse().ok()
}

/// The Nodes other than `own` whose agents are in a universe.
pub(super) fn in_a_universe(nodes: &BTreeMap<String, Node>, own: &str) -> BTreeSet<String> {
    let others = nodes.iter().filter(|(name, _)| name.as_str() != own);
    others
        .filter(|(_, node)| node.metadata.annotations.universe.is_some())
        .map(|(name, _)| name.clone())
        .collect()
}

/// The Nodes other than `own` that have not said who is at home there.
pub(super) fn silent(nodes: &BTreeMap<String, Node>, own: &str) -> BTreeSet<String> {
    let others = nodes.iter().filter(|(name, _)| name.as_str() != own);
    others.filter(|(_, node)| peer(node).is_none()).map(|(name, _)| name.clone()).collect()
}

/// What must be changed on the own Node so that it says who is at home there; none if it says so already.
pub(super) fn entry(found: &Annotations, name: PeerName, universe: Option<&str>) -> Option<Value> {
    let right =
        found.peer.as_deref() == Some(name.to_string().as_str()) && found.universe.as_deref() == universe;
    (!right).then(|| json!({ "metadata": { "annotations": { PEER: name.to_string(), UNIVERSE: universe } } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(document: Value) -> Node {
        serde_json::from_value(document).unwrap()
    }

    fn node(name: &str, addresses: &[(&str, &str)], peer: Option<&str>) -> (String, Node) {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
        let node = read(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": { "a": "b" }, "annotations": { PEER: peer, "other": "x" } },
            "spec": { "podCIDR": "10.244.0.0/24" },
            "status": { "addresses": addresses, "images": [{ "names": ["x"] }] },
        }));
        (name.to_owned(), node)
    }

    fn texts(targets: BTreeSet<Target>) -> Vec<String> {
        targets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_internal_ipv4_address_counts_before_the_external_and_nothing_else_does() {
        let cases = [
            (
                vec![("Hostname", "n"), ("ExternalIP", "1.2.3.4"), ("InternalIP", "10.0.0.1")],
                Some("10.0.0.1"),
            ),
            (vec![("InternalIP", "fd00::1"), ("InternalIP", "10.0.0.2")], Some("10.0.0.2")),
            (vec![("InternalIP", "fd00::1"), ("ExternalIP", "1.2.3.4")], Some("1.2.3.4")),
            (vec![("Hostname", "10.0.0.9")], None),
            (vec![("InternalIP", "nonsense")], None),
            (vec![], None),
        ];
        for (addresses, wanted) in cases {
            let (_, node) = node("n", &addresses, None);
            assert_eq!(address(&node).map(|it| it.to_string()).as_deref(), wanted, "{addresses:?}");
        }
    }

    #[test]
    fn targets_are_the_other_nodes_and_never_the_own_address() {
        let nodes = BTreeMap::from([
            node("a", &[("InternalIP", "10.0.0.1")], None),
            node("b", &[("InternalIP", "10.0.0.2")], None),
            node("stale", &[("InternalIP", "10.0.0.1")], None),
            node("unknown", &[], None),
        ]);
        assert_eq!(texts(targets(&nodes, "a")), ["10.0.0.2"]);
        assert_eq!(texts(targets(&nodes, "not listed yet")), ["10.0.0.1", "10.0.0.2"]);
    }

    #[test]
    fn the_register_is_read_from_annotations_and_nonsense_registers_nobody() {
        let nodes = BTreeMap::from([
            node("a", &[], Some("7a:3f:00:00:00:01")),
            node("b", &[], Some("nonsense")),
            node("c", &[], None),
        ]);
        let names: Vec<_> = registered(&nodes).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["7a:3f:00:00:00:01"]);
        assert_eq!(silent(&nodes, "c").into_iter().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn an_entry_is_written_until_it_is_there_and_a_universe_that_was_left_is_struck_out() {
        let name: PeerName = "7a:3f:00:00:00:01".parse().unwrap();
        let mut found = Annotations::default();
        let patch = entry(&found, name, None).unwrap();
        assert_eq!(patch["metadata"]["annotations"][PEER], "7a:3f:00:00:00:01");
        assert!(patch["metadata"]["annotations"][UNIVERSE].is_null());
        found.peer = Some("7a:3f:00:00:00:01".to_owned());
        assert_eq!(entry(&found, name, None), None);
        assert!(entry(&found, name, Some("00ff")).is_some());
        found.universe = Some("00ff".to_owned());
        assert_eq!(entry(&found, name, Some("00ff")), None);
        assert!(entry(&found, name, None).is_some());
    }
}
