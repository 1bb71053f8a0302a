//! docs/migrating-from-weave-net.md, done on a cluster. Weave Net's image cannot be had on a machine without a registry:
//! its place is taken by the reference plugin `bridge` under Weave Net's names, with its devices, chains and files as it
//! leaves them, and a DaemonSet of its name that only sleeps.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weave_k8s::asking::HTTP;
use weave_k8s::cluster::{self, PATIENCE, container, manifest};
use weave_k8s::{Cluster, Node, image};
use weave_netns::run_in_lab;
use weave_netns::wait::eventually;

const NODES: [&str; 2] = ["node1", "node2"];

/// The old network on a node, whose pods are in $1: what its init container installs, and what its agent makes.
const OLD_NETWORK: &str = r#"set -eu
cp /opt/cni/bin/bridge /opt/cni/bin/weave-plugin-2.8.1
ln -sf weave-plugin-2.8.1 /opt/cni/bin/weave-net
ln -sf weave-plugin-2.8.1 /opt/cni/bin/weave-ipam
mkdir -p /var/lib/weave && touch /var/lib/weave/weave-netdata.db
ip link add weave type bridge
ip link set weave up
ip link add vethwe-bridge type veth peer name vethwe-datapath
ip link set vethwe-bridge master weave up
ip link set vethwe-datapath up
ip link add vxlan-6784 type vxlan external dstport 6784
ip link set vxlan-6784 up
iptables -t nat -N WEAVE
iptables -t nat -A POSTROUTING -j WEAVE
iptables -t nat -A WEAVE -s 10.32.0.0/12 ! -d 10.32.0.0/12 -j MASQUERADE
iptables -N WEAVE-NPC
iptables -A WEAVE-NPC -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A WEAVE-NPC -m set --match-set weave-all dst -j ACCEPT
iptables -I FORWARD -o weave -j DROP
iptables -I FORWARD -o weave -j WEAVE-NPC
cat > /etc/cni/net.d/10-weave.conflist.new <<END
{"cniVersion": "0.3.0", "name": "weave", "plugins": [
  {"name": "weave", "type": "weave-net", "hairpinMode": true, "bridge": "weave", "isGateway": true,
   "ipam": {"type": "host-local", "subnet": "$1", "dataDir": "/run/old-network"}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
END
mv /etc/cni/net.d/10-weave.conflist.new /etc/cni/net.d/10-weave.conflist"#;

#[test]
fn a_cluster_moves_from_weave_net_node_by_node_and_one_node_back() {
    run_in_lab(|lab| {
        let cluster = Cluster::bare(lab, &NODES)?;
        for (node, range) in cluster.nodes().iter().zip(["10.32.0.0/16", "10.33.0.0/16"]) {
            node.host().ns()?.run("ipset create weave-all hash:net")?;
            node.run("bash", &["-c", OLD_NETWORK, "old", range])?;
        }
        cluster.kubectl().apply(&old_daemon_set().to_string())?;
        cluster.wait_ready().context("with the old network")?;
        cluster.kubectl().apply(&web().to_string())?;
        web_is_whole(&cluster)?;
        let by_hand = r#"{"spec":{"updateStrategy":{"type":"OnDelete"}}}"#;
        cluster.kubectl().run(&["-n", "kube-system", "patch", "daemonset", "weave-net", "-p", by_hand])?;
        cluster.kubectl().apply(&waiting_for_a_hand(&manifest()?)?)?;

        for name in NODES {
            cluster.kubectl().run(&["cordon", name])?;
            drain(&cluster, name)?;
            replace_agent(&cluster, name)?;
            // The agent runs and may be asked, whatever stands in its way.
            let said = eventually(PATIENCE, "leftovers are removed", || {
                cluster.weave(name, &["reset", "--weave-net"])
            })
            .with_context(|| cluster.diagnosis())?;
            for word in
                ["vethwe-bridge", "vxlan-6784", "chain WEAVE-NPC", "ipset weave-all", "weave-netdata.db"]
            {
                ensure!(said.contains(word), "{word} was not removed on {name}: {said}");
            }
            let said = cluster.weave(name, &["reset", "--weave-net"])?;
            ensure!(said.contains("nothing to remove"), "{said}");
            is_switched(&cluster, cluster.node(name)?)?;
            cluster.kubectl().run(&["uncordon", name])?;
            web_is_whole(&cluster)?;
        }
        every_pod_reaches_every_pod(&cluster)?;
        // After the last node nothing waits for a hand any more.
        cluster.install()?;
        cluster.wait_ready()?;
        back(&cluster, "node2")
    });
}

fn old_daemon_set() -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "weave-net", "namespace": "kube-system", "labels": {"name": "weave-net"}},
        "spec": {
            "minReadySeconds": 5,
            "selector": {"matchLabels": {"name": "weave-net"}},
            "template": {
                "metadata": {"labels": {"name": "weave-net"}},
                "spec": {
                    "hostNetwork": true,
                    "tolerations": [{"operator": "Exists"}],
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {"name": "weave", "image": image::TOOLS, "imagePullPolicy": "Never", "command": ["/bin/sleep", "1000000"]},
                        {"name": "weave-npc", "image": image::TOOLS, "imagePullPolicy": "Never", "command": ["/bin/sleep", "1000000"]},
                    ],
                },
            },
            "updateStrategy": {"type": "RollingUpdate"},
        },
    })
}

fn web() -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 4,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container()]},
            },
        },
    })
}

/// The manifest with the update strategy that the procedure asks for.
fn waiting_for_a_hand(manifest: &str) -> Result<String> {
    let strategy = "    type: RollingUpdate\n    rollingUpdate:\n      maxUnavailable: 10%\n";
    ensure!(manifest.contains(strategy), "the manifest has another update strategy");
    Ok(manifest.replace(strategy, "    type: OnDelete\n"))
}

fn web_is_whole(cluster: &Cluster) -> Result<()> {
    let wait = ["rollout", "status", "deployment/web", "--timeout=180s"];
    cluster.kubectl().run(&wait).map(drop).with_context(|| cluster.diagnosis())
}

fn drain(cluster: &Cluster, node: &str) -> Result<()> {
    let drain = ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"];
    cluster.kubectl().run(&drain).map(drop).with_context(|| cluster.diagnosis())
}

/// Deletes the pod of the DaemonSet on a node; another takes its place.
fn replace_agent(cluster: &Cluster, node: &str) -> Result<()> {
    let on_node = format!("spec.nodeName={node}");
    let delete = ["-n", "kube-system", "delete", "pod", "--field-selector", &on_node, "-l", "name=weave-net"];
    cluster.kubectl().run(&delete).map(drop)
}

/// The new agent is Ready, nothing of the old network is left, and the node's network is the new one.
fn is_switched(cluster: &Cluster, node: &Node) -> Result<()> {
    eventually(PATIENCE, "the node's new agent is Ready", || {
        let agents = cluster.agents()?;
        let agent = agents.iter().find(|pod| pod["spec"]["nodeName"] == node.name()).context("no agent")?;
        ensure!(cluster::condition(agent, "Ready") == Some("True"), "{}", agent["status"]);
        let network = node.run("cat", &["/etc/cni/net.d/10-weave.conflist"])?;
        ensure!(network.contains("cniVersions"), "{network}");
        Ok(())
    })
    .with_context(|| cluster.diagnosis())?;
    let left =
        node.run("bash", &["-c", "iptables-save | grep WEAVE || true; ls /opt/cni/bin /var/lib/weave"])?;
    let words = ["WEAVE", "weave-plugin", "netdata"];
    ensure!(!words.iter().any(|word| left.contains(word)), "something is left: {left}");
    Ok(())
}

fn every_pod_reaches_every_pod(cluster: &Cluster) -> Result<()> {
    let pods = cluster.kubectl().list(&["pods", "-l", "app=web"])?;
    let nodes: std::collections::BTreeSet<_> =
        pods.iter().map(|pod| pod["spec"]["nodeName"].to_string()).collect();
    ensure!(pods.len() == 4 && !nodes.is_empty(), "{} pods", pods.len());
    // A drained node stays empty until somebody makes pods; so one is made on each.
    let addresses = [cluster.pod("on-node1", "node1")?, cluster.pod("on-node2", "node2")?];
    for from in ["on-node1", "on-node2"] {
        for to in pods
            .iter()
            .filter_map(|pod| pod["status"]["podIP"].as_str())
            .chain(addresses.iter().map(String::as_str))
        {
            cluster.who(from, to, HTTP)?;
        }
    }
    cluster.kubectl().run(&["delete", "pod", "on-node1", "on-node2", "--wait"]).map(drop)
}

/// One node returns to the old network, as the procedure's last part says.
fn back(cluster: &Cluster, name: &str) -> Result<()> {
    let (kubectl, mut old) = (cluster.kubectl(), old_daemon_set());
    old["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    kubectl.apply(&old.to_string())?;
    kubectl.run(&["cordon", name])?;
    drain(cluster, name)?;
    replace_agent(cluster, name)?;
    let node = cluster.node(name)?;
    let said = node.reset()?;
    ensure!(said.contains("removed bridge weave") && said.contains("10-weave.conflist"), "{said}");
    // What the old agent and its init container would do.
    node.host().ns()?.run("ipset create weave-all hash:net")?;
    node.run("bash", &["-c", OLD_NETWORK, "old", "10.33.0.0/16"])?;
    kubectl.run(&["uncordon", name])?;
    let address = cluster.pod("back", name)?;
    ensure!(address.starts_with("10.33."), "the pod has {address}");
    cluster.pod("stayed", "node1").map(drop)
}
