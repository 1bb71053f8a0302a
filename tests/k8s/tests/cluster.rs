//! What an operator sees of weave on a cluster of three nodes. Starting one takes a minute, so each test looks at
//! several things.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weave_k8s::Cluster;
use weave_k8s::asking::{HTTP, from_node};
use weave_k8s::cluster::{self, PATIENCE, container};
use weave_netns::fingerprint::difference;
use weave_netns::run_in_lab;
use weave_netns::wait::eventually;

/// The port of every node that leads to its own web pod.
const HOST_PORT: u16 = 8888;
/// Nodes of the cluster.
const NODES: [&str; 3] = ["node1", "node2", "node3"];

#[test]
fn one_apply_makes_all_nodes_ready_and_pods_services_host_ports_exec_and_logs_work() {
    run_in_lab(|lab| {
        let cluster = Cluster::start(lab)?;
        says_what_it_did(&cluster)?;
        let pods = web(&cluster)?;
        every_pod_reaches_every_pod(&cluster, &pods)?;
        the_service_is_reached_from_pods_and_nodes(&cluster, &pods)?;
        a_pod_reaches_itself_through_its_service(&cluster)?;
        host_ports_are_reached_from_other_nodes(&cluster)?;
        exec_and_logs_work(&cluster, &pods)
    });
}

#[test]
fn a_rolling_update_of_the_agent_loses_no_connection_and_no_ping() {
    run_in_lab(|lab| {
        let cluster = Cluster::start(lab)?;
        let server = cluster.pod("server", "node2")?;
        cluster.pod("client", "node1")?;
        std::thread::scope(|scope| {
            let echo = scope.spawn(|| echo_through_an_update(&cluster, &server));
            let ping = scope.spawn(|| ping_through_an_update(&cluster, &server));
            cluster.kubectl().run(&["-n", "kube-system", "rollout", "restart", "daemonset/weave-net"])?;
            let wait = ["-n", "kube-system", "rollout", "status", "daemonset/weave-net", "--timeout=180s"];
            cluster.kubectl().run(&wait).with_context(|| cluster.diagnosis())?;
            joined(ping).and_then(|()| joined(echo)).with_context(|| cluster.diagnosis())
        })?;
        cluster.wait_ready()
    });
}

#[test]
fn the_range_of_a_deleted_node_is_reclaimed_by_the_others() {
    run_in_lab(|lab| {
        let cluster = Cluster::bare(lab, &NODES)?;
        // An operator waits ten minutes.
        cluster.install_with(&[("WEAVE_RECLAIM_AFTER", "10")])?;
        cluster.wait_ready()?;
        ensure!(cluster.weave("node1", &["status", "ipam"])?.contains("(node3)"), "node3 owns nothing");
        cluster.node("node3")?.power_off()?;
        cluster.kubectl().run(&["delete", "node", "node3"])?;
        eventually(PATIENCE, "the others own everything", || {
            let shares = cluster.weave("node1", &["status", "ipam"])?;
            ensure!(!shares.contains("(node3)") && !shares.contains("unreachable"), "{shares}");
            Ok(())
        })
        .with_context(|| cluster.diagnosis())?;
        let (_, two) = (cluster.pod("one", "node1")?, cluster.pod("two", "node2")?);
        cluster.who("one", &two, HTTP).map(drop)
    });
}

#[test]
fn a_restarted_kubelet_and_a_restarted_node_find_their_pods_a_network() {
    run_in_lab(|lab| {
        let cluster = Cluster::start(lab)?;
        let (one, two) = (cluster.pod("one", "node1")?, cluster.pod("two", "node2")?);
        cluster.node("node2")?.restart_kubelet()?;
        cluster.wait_ready()?;
        ensure!(cluster.address("two")? == two, "a restart of the kubelet changed a pod's address");
        cluster.who("one", &two, HTTP)?;

        let node = cluster.node("node2")?;
        node.power_off()?;
        node.power_on()?;
        cluster.wait_ready()?;
        eventually(PATIENCE, "the restarted node's pod answers again", || {
            let two = cluster.address("two")?;
            cluster.who("one", &two, HTTP)?;
            cluster.who("two", &one, HTTP).map(drop)
        })
        .with_context(|| cluster.diagnosis())
    });
}

#[test]
fn storms_of_pods_with_agents_killed_leave_nothing_and_the_manifest_can_be_deleted_and_applied_again() {
    run_in_lab(|lab| {
        let cluster = Cluster::bare(lab, &NODES)?;
        let bare = fingerprints(&cluster)?;
        cluster.install()?;
        cluster.wait_ready()?;
        storm(&cluster)?;
        let (_, two) = (cluster.pod("one", "node1")?, cluster.pod("two", "node2")?);
        cluster.uninstall()?;
        cluster.who("one", &two, HTTP).context("pods talk on without an agent")?;
        cluster.install()?;
        cluster.wait_ready()?;
        cluster.who("one", &two, HTTP)?;
        let three = cluster.pod("three", "node2")?;
        ensure!(three != two, "an address was given out twice");
        cluster.who("one", &three, HTTP)?;
        removed_for_good(&cluster, &bare)
    });
}

/// What docs/kubernetes.md says of removing everything: nothing of weave is left in the cluster or on a node.
fn removed_for_good(cluster: &Cluster, bare: &[BTreeSet<String>]) -> Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.run(&["delete", "pods", "--all", "--wait"])?;
    cluster.uninstall()?;
    kubectl.run(&[
        "-n",
        "kube-system",
        "delete",
        "secret/weave-net-secret",
        "configmap/weave-net-universe",
    ])?;
    kubectl.run(&["annotate", "node", "--all", "weave-net/peer-", "weave-net/universe-"])?;
    for (node, bare) in cluster.nodes().iter().zip(bare) {
        let said = node.reset()?;
        ensure!(said.contains("removed bridge weave"), "{said}");
        let after = node.host().fingerprint()?;
        let left: Vec<_> = after.difference(bare).filter(|line| line.contains("weave")).collect();
        ensure!(left.is_empty(), "left on {}: {left:?}", node.name());
        let files =
            node.run("bash", &["-c", "ls -d /var/lib/weave/* /etc/cni/net.d/* /opt/cni/bin/weave* || true"])?;
        ensure!(files.is_empty(), "left on {}: {files}", node.name());
    }
    const KINDS: &str = "daemonsets,pods,secrets,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings";
    // The token of an account goes a moment after the account.
    eventually(PATIENCE, "nothing of weave is left in the cluster", || {
        let all = kubectl.run(&["get", KINDS, "--all-namespaces", "--output=name"])?;
        let left: Vec<_> = all.lines().filter(|line| line.contains("weave")).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// A web server on every node, with a port of the node, and a Service in front; returns the pods' names and addresses.
fn web(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let mut container = container();
    container["ports"][0]["hostPort"] = json!(HOST_PORT);
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            },
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": HTTP, "nodePort": 30080}]},
    });
    cluster.kubectl().apply(&set.to_string())?;
    cluster.kubectl().apply(&service.to_string())?;
    cluster
        .kubectl()
        .run(&["rollout", "status", "daemonset/web", "--timeout=180s"])
        .with_context(|| cluster.diagnosis())?;
    let pods = cluster.kubectl().list(&["pods", "-l", "app=web"])?;
    ensure!(pods.len() == NODES.len(), "{} web pods", pods.len());
    let shown = |pod: &serde_json::Value| {
        (cluster::name(pod).to_owned(), pod["status"]["podIP"].as_str().unwrap_or_default().to_owned())
    };
    Ok(pods.iter().map(shown).collect())
}

fn says_what_it_did(cluster: &Cluster) -> Result<()> {
    let logs = ["logs", "-n", "kube-system", "-l", "name=weave-net", "-c", "weave", "--tail=-1"];
    let log = cluster.kubectl().run(&logs)?;
    ensure!(log.contains("[ipalloc]"), "no log of the allocator in {log}");
    for node in cluster.kubectl().list(&["nodes"])? {
        let unavailable = cluster::condition(&node, "NetworkUnavailable");
        ensure!(
            unavailable == Some("False"),
            "{}: NetworkUnavailable is {unavailable:?}",
            cluster::name(&node)
        );
    }
    ensure!(cluster.weave("node1", &["status", "ipam"])?.contains("of total"), "no shares");
    Ok(())
}

fn every_pod_reaches_every_pod(cluster: &Cluster, pods: &[(String, String)]) -> Result<()> {
    for (from, _) in pods {
        for (to, address) in pods {
            let shown = cluster.who(from, address, HTTP)?;
            ensure!(&shown == to, "{address} is {to}, and {shown} answered {from}");
            let seen = cluster.seen(from, address, HTTP)?;
            let own = pods.iter().find(|(name, _)| name == from).map(|(_, address)| address.as_str());
            ensure!(Some(seen.as_str()) == own, "{to} saw {from} as {seen}");
        }
    }
    Ok(())
}

fn the_service_is_reached_from_pods_and_nodes(cluster: &Cluster, pods: &[(String, String)]) -> Result<()> {
    let address = cluster.service("web")?;
    for (from, _) in pods {
        eventually(PATIENCE, "the Service answers a pod", || cluster.who(from, &address, 80))?;
    }
    for node in cluster.nodes() {
        for (_, pod) in pods {
            eventually(PATIENCE, "a pod answers a node", || from_node(node.host(), pod, HTTP, "hostname"))?;
        }
        eventually(PATIENCE, "the Service answers a node", || {
            from_node(node.host(), &address, 80, "hostname")
        })?;
        let own = node.host().address().to_string();
        eventually(PATIENCE, "the node port answers", || {
            from_node(cluster.plane().host(), &own, 30080, "hostname")
        })?;
    }
    Ok(())
}

fn a_pod_reaches_itself_through_its_service(cluster: &Cluster) -> Result<()> {
    cluster.pod("alone", "node1")?;
    cluster.kubectl().run(&["expose", "pod", "alone", "--port=80", &format!("--target-port={HTTP}")])?;
    let address = cluster.service("alone")?;
    eventually(PATIENCE, "a pod reaches itself through its Service", || {
        let shown = cluster.who("alone", &address, 80)?;
        ensure!(shown == "alone", "{shown} answered");
        Ok(())
    })
}

fn host_ports_are_reached_from_other_nodes(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let own = node.host().address().to_string();
        from_node(cluster.plane().host(), &own, HOST_PORT, "hostname").context("hostPort")?;
    }
    Ok(())
}

fn exec_and_logs_work(cluster: &Cluster, pods: &[(String, String)]) -> Result<()> {
    for (pod, _) in pods {
        ensure!(cluster.shell(pod, "hostname")?.trim() == pod, "exec reached another pod");
        ensure!(!cluster.kubectl().run(&["logs", pod])?.is_empty(), "{pod} has no log");
    }
    Ok(())
}

/// Lines sent and echoed on one TCP connection, twenty a second for a minute and a half.
fn echo_through_an_update(cluster: &Cluster, server: &str) -> Result<()> {
    const LINES: u32 = 1800;
    cluster.shell("server", "nc -ll -p 9000 -e cat < /dev/null > /dev/null 2>&1 &")?;
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); sleep 0.05; done | nc {server} 9000 | \
         (n=0; while [ $n -lt {LINES} ] && read -r line; do n=$((n+1)); done; echo $n)"
    );
    let echoed = cluster.shell("client", &script)?;
    ensure!(echoed.trim() == LINES.to_string(), "{} of {LINES} lines came back", echoed.trim());
    Ok(())
}

/// Pings at a spacing of 10 ms for a minute and a half.
fn ping_through_an_update(cluster: &Cluster, server: &str) -> Result<()> {
    let said = cluster.shell("client", &format!("ping -q -i 0.01 -c 9000 {server}"))?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    let counts: Vec<&str> = said.lines().filter(|line| line.contains("packets transmitted")).collect();
    let numbers: Vec<u32> =
        counts.iter().flat_map(|line| line.split_whitespace()).filter_map(|word| word.parse().ok()).collect();
    ensure!(matches!(numbers[..], [sent, received, ..] if sent == received), "{counts:?}");
    Ok(())
}

/// Pods come and go by the dozen while agents are killed; afterwards no node holds anything of them.
fn storm(cluster: &Cluster) -> Result<()> {
    const ROUNDS: u32 = 4;
    const PODS: u32 = 50;
    let kubectl = cluster.kubectl();
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "storm"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "storm"}},
            "template": {
                "metadata": {"labels": {"app": "storm"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
                    "name": "sleep", "image": weave_k8s::image::TOOLS, "imagePullPolicy": "Never",
                    "command": ["/bin/sleep", "1000000"],
                }]},
            },
        },
    });
    kubectl.apply(&set.to_string())?;
    let before = fingerprints(cluster)?;
    for round in 0..ROUNDS {
        kubectl.run(&["scale", "deployment/storm", &format!("--replicas={PODS}")])?;
        let victim = &cluster.nodes()[round as usize % NODES.len()];
        eventually(PATIENCE, "a third of the pods run", || running(cluster, PODS / 3))?;
        victim.run("bash", &["-c", "kill -9 $(pidof weave)"]).context("killing the agent")?;
        eventually(PATIENCE, "all pods run", || running(cluster, PODS))
            .with_context(|| cluster.diagnosis())?;
        kubectl.run(&["scale", "deployment/storm", "--replicas=0"])?;
        eventually(PATIENCE, "no pod is left", || {
            let left = kubectl.list(&["pods", "-l", "app=storm"])?.len();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })?;
    }
    cluster.wait_ready()?;
    for (node, before) in NODES.iter().zip(&before) {
        eventually(Duration::from_secs(60), "nothing of the storm is left", || {
            nothing_is_left(cluster, node, before)
        })?;
    }
    Ok(())
}

/// Links, addresses, routes, forwarding entries and rules of each node.
fn fingerprints(cluster: &Cluster) -> Result<Vec<BTreeSet<String>>> {
    cluster.nodes().iter().map(|node| node.host().fingerprint()).collect()
}

fn running(cluster: &Cluster, wanted: u32) -> Result<()> {
    let pods = cluster.kubectl().list(&["pods", "-l", "app=storm"])?;
    let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running");
    let addresses: BTreeSet<_> = running.clone().map(|pod| pod["status"]["podIP"].to_string()).collect();
    let running = running.count();
    ensure!(running >= wanted as usize, "{running} of {wanted} run");
    ensure!(addresses.len() == running, "{running} pods have {} addresses", addresses.len());
    Ok(())
}

fn nothing_is_left(cluster: &Cluster, node: &str, before: &BTreeSet<String>) -> Result<()> {
    let containers = cluster.weave(node, &["ps"])?;
    let left: Vec<_> = containers.lines().filter(|line| !line.starts_with("weave:expose")).collect();
    ensure!(left.is_empty(), "addresses are left on {node}: {left:?}");
    let after = cluster.node(node)?.host().fingerprint()?;
    ensure!(*before == after, "{node} is not as it was:\n{}", difference(before, &after));
    Ok(())
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}
