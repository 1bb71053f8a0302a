//! Settings of an operator, and nodes that lack something, on a cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weave_k8s::Cluster;
use weave_k8s::asking::{HTTP, from_node};
use weave_k8s::cluster::PATIENCE;
use weave_k8s::control_plane::{API_SERVICE, PORT};
use weave_netns::capture::Capture;
use weave_netns::host::UPLINK;
use weave_netns::run_in_lab;
use weave_netns::wait::eventually;

const NODES: [&str; 2] = ["node1", "node2"];
/// What must not be seen between nodes: the kernel's tunnel, and packets of pods that are in no tunnel.
const IN_CLEAR: &str = "udp port 6784 or net 10.32.0.0/12";
/// A node that has no device `tun`: its module is not loaded.
const ABSENT: &str = "mount -t tmpfs tmpfs /dev/net";
/// A node whose device `tun` containers may not open.
const FORBIDDEN: &str = "mount -t tmpfs -o nodev tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200";
/// Strong enough that nothing is warned of.
const PASSWORD: &str = "Ndq0zJk1fR2uQmTg7xVwYb4cHs8eLpAo";

#[test]
fn a_password_from_a_secret_seals_packets_and_what_a_node_lacks_is_told_with_the_remedy() {
    run_in_lab(|lab| {
        let cluster = Cluster::bare(lab, &NODES)?;
        cluster.node("node2")?.run("rm", &["/opt/cni/bin/portmap"])?;
        let literal = format!("--from-literal=weave-passwd={PASSWORD}");
        cluster.kubectl().run(&[
            "-n",
            "kube-system",
            "create",
            "secret",
            "generic",
            "weave-passwd",
            &literal,
        ])?;
        let from = json!({"secretKeyRef": {"name": "weave-passwd", "key": "weave-passwd"}});
        cluster.install_with_documents(&[
            json!({"name": "WEAVE_PASSWORD", "valueFrom": from}),
            json!({"name": "WEAVE_NO_FASTPATH", "value": "1"}),
        ])?;
        cluster.wait_ready()?;
        packets_of_pods_are_sealed(&cluster)?;
        logs_name_what_is_missing_and_what_is_unknown(&cluster)
    });
}

#[test]
fn without_the_device_tun_and_without_kube_proxy_pods_talk_by_fastdp_alone_and_the_remedy_is_told() {
    run_in_lab(|lab| {
        let cluster = Cluster::bare(lab, &NODES)?;
        for (name, folder) in NODES.iter().zip([ABSENT, FORBIDDEN]) {
            let node = cluster.node(name)?;
            node.run("bash", &["-c", folder]).context("in the place of /dev/net")?;
            node.stop_proxy()?;
            let answered = from_node(node.host(), API_SERVICE, 443, "version");
            ensure!(answered.is_err(), "without kube-proxy the API server's Service answers {answered:?}");
        }
        let (address, port) = (cluster.plane().host().address().to_string(), PORT.to_string());
        cluster.install_with(&[("KUBERNETES_SERVICE_HOST", &address), ("KUBERNETES_SERVICE_PORT", &port)])?;
        cluster.wait_ready()?;
        let (one, two) = (cluster.pod("one", NODES[0])?, cluster.pod("two", NODES[1])?);
        talk(&cluster, &one, &two)?;
        for (node, remedy) in NODES.iter().zip(["modprobe tun", "runc"]) {
            let connections = cluster.weave(node, &["status", "connections"])?;
            ensure!(connections.contains("fastdp"), "{connections}");
            let status = cluster.weave(node, &["status"])?;
            let told = status.lines().find(|line| line.contains("methods sleeve and quic"));
            let told = told.with_context(|| format!("nothing of the missing device: {status}"))?;
            ensure!(told.contains("/dev/net/tun") && told.contains(remedy), "no remedy: {told}");
        }
        Ok(())
    });
}

fn packets_of_pods_are_sealed(cluster: &Cluster) -> Result<()> {
    let node = cluster.node("node1")?.host().ns()?;
    let clear = Capture::start(&node, UPLINK, IN_CLEAR)?;
    let sealed = Capture::start(&node, UPLINK, "udp port 6785")?;
    let (one, two) = (cluster.pod("one", "node1")?, cluster.pod("two", "node2")?);
    talk(cluster, &one, &two)?;
    sealed.wait(Duration::from_secs(10))?;
    let seen = clear.finish()?;
    ensure!(seen.is_empty(), "seen in clear: {seen:?}");
    let connections = cluster.weave("node1", &["status", "connections"])?;
    ensure!(connections.contains(" encrypted ") && connections.contains("sleeve"), "{connections}");
    let given = cluster.kubectl().run(&[
        "-n",
        "kube-system",
        "logs",
        "-l",
        "name=weave-net",
        "-c",
        "weave",
        "--tail=-1",
    ])?;
    ensure!(!given.contains(PASSWORD), "the password is in the log");
    Ok(())
}

fn logs_name_what_is_missing_and_what_is_unknown(cluster: &Cluster) -> Result<()> {
    let agents = cluster.agents()?;
    for agent in &agents {
        let log = |container: &str| {
            let name = weave_k8s::cluster::name(agent);
            cluster.kubectl().run(&["-n", "kube-system", "logs", name, "-c", container])
        };
        let without_portmap = agent["spec"]["nodeName"] == "node2";
        let said = log("weave-init")?;
        ensure!(said.contains("portmap is not in") == without_portmap, "{said}");
        ensure!(!without_portmap || said.contains("containernetworking-plugins"), "no remedy: {said}");
        let said = log("weave")?;
        ensure!(said.contains("WEAVE_NO_FASTPATH"), "an unknown variable is not named: {said}");
        ensure!(said.contains("[ipalloc]"), "no log of the allocator: {said}");
    }
    Ok(())
}

fn talk(cluster: &Cluster, one: &str, two: &str) -> Result<()> {
    eventually(PATIENCE, "the pods talk", || {
        cluster.who("one", two, HTTP)?;
        cluster.who("two", one, HTTP)
    })
    .map(drop)
    .with_context(|| cluster.diagnosis())
}
