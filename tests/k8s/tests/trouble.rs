//! What an operator is told, and what goes on, when something is wrong: agents on a real API server without kubelets.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weave_k8s::agents::{Agents, PATIENCE, condition};
use weave_netns::run_in_lab;
use weave_netns::wait::eventually;

/// How long an agent may take to tell that an API server does not answer: 20 s for the request, 15 s of grace.
const NOTICE: Duration = Duration::from_secs(90);

/// Waits until the Node's condition gives this reason, and an Event of it was written.
fn is_told(agents: &Agents, node: &str, reason: &str, ready: &str) -> Result<()> {
    let kubectl = agents.plane.kubectl()?;
    eventually(PATIENCE, &format!("{node} says {reason}"), || {
        let node = kubectl.get(&["node", node])?;
        let found = condition(&node, "WeaveReady").context("no WeaveReady")?;
        ensure!(found == (ready.to_owned(), reason.to_owned()), "{found:?}");
        let events = kubectl.list(&["-n", "default", "events"])?;
        ensure!(events.iter().any(|event| event["reason"] == reason), "{} events", events.len());
        Ok(())
    })
}

#[test]
fn no_quorum_is_told_by_the_node_s_condition_and_an_event() {
    run_in_lab(|lab| {
        let agents = Agents::start(lab, &["node1"])?;
        agents.make_node(0)?;
        // A split that was decided among peers of whom none is there, although their Nodes are.
        let founders = ["02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"];
        let decision = json!({"range": "10.32.0.0/12", "founders": founders, "nonce": 7});
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "weave-net-universe", "namespace": "kube-system"},
            "data": {"universe": decision.to_string()},
        });
        let kubectl = agents.plane.kubectl()?;
        kubectl.apply(&object.to_string())?;
        for (number, peer) in founders.iter().enumerate() {
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": format!("absent{number}"), "annotations": {"weave-net/peer": peer}},
            });
            kubectl.apply(&node.to_string())?;
        }
        agents.launch(0)?;
        is_told(&agents, "node1", "WeaveNoQuorum", "False")
    });
}

#[test]
fn an_exhausted_range_and_its_end_are_told_by_the_node_s_condition_and_events() {
    run_in_lab(|lab| {
        let agents = Agents::start(lab, &["node1"])?;
        agents.make_node(0)?;
        let host = &agents.hosts[0];
        host.launch(&agents.options(0)?.range("10.32.0.0/29"))?;
        agents.is_ready_with(host, 1)?;
        let mut pods = Vec::new();
        let full = loop {
            match host.pod(&format!("pod{}", pods.len())) {
                Ok(pod) => pods.push(pod),
                Err(error) => break format!("{error:#}"),
            }
            ensure!(pods.len() < 8, "more pods than addresses");
        };
        ensure!(full.contains("address"), "{full}");
        is_told(&agents, "node1", "WeaveRangeExhausted", "False")?;
        pods.pop().context("no pod had an address")?.detach(host)?;
        is_told(&agents, "node1", "WeaveIsUp", "True")
    });
}

#[test]
fn a_node_with_another_secret_is_told_by_the_condition_of_the_others_and_an_event() {
    run_in_lab(|lab| {
        let agents = Agents::start(lab, &["node1", "node2"])?;
        agents.make_node(0)?;
        agents.launch(0)?;
        agents.is_ready_with(&agents.hosts[0], 1)?;
        agents.make_node(1)?;
        let other = agents.options(1)?.secret("not the cluster's, but of a good length: 4f1c");
        agents.hosts[1].launch(&other)?;
        is_told(&agents, "node1", "WeaveSecretMismatch", "True")
    });
}

#[test]
fn an_api_server_that_answers_nobody_holds_up_neither_pods_nor_a_restart() {
    run_in_lab(|lab| {
        let agents = Agents::start(lab, &["node1", "node2"])?;
        agents.launch_all()?;
        let hung = agents.plane.hang_api()?;
        let host = &agents.hosts[0];
        host.pod("while-it-hangs").context("a pod needs the API server")?;
        host.kill_agent()?;
        host.relaunch()?;
        agents.is_ready_with(host, 2)?;
        host.pod("after-a-restart").context("a pod after a restart")?;
        let warned = |wanted: bool| {
            let warnings = host.status(&[])?["warnings"].to_string();
            ensure!(warnings.contains("the Kubernetes API cannot be asked") == wanted, "{warnings}");
            Ok(())
        };
        eventually(NOTICE, "the silence is told", || warned(true))?;
        drop(hung);
        eventually(NOTICE, "and no longer when it is over", || warned(false))?;
        agents.plane.kubectl()?.run(&["delete", "node", "node2"])?;
        eventually(PATIENCE, "Nodes are followed again", || follows(&agents, 1, false))
    });
}

#[test]
fn what_happened_after_a_version_that_the_api_server_has_forgotten_is_learnt_from_a_new_list() {
    run_in_lab(|lab| {
        let agents = Agents::start(lab, &["node1", "node2", "node3"])?;
        agents.make_node(0)?;
        agents.make_node(1)?;
        agents.launch(0)?;
        agents.is_ready_with(&agents.hosts[0], 1)?;
        eventually(PATIENCE, "node2 is looked for", || follows(&agents, 1, true))?;
        let kubectl = agents.plane.kubectl()?;
        let list: Value = serde_json::from_str(&kubectl.run(&["get", "--raw", "/api/v1/nodes"])?)?;
        let known =
            list["metadata"]["resourceVersion"].as_str().context("a list without a version")?.to_owned();

        agents.plane.stop_api("KILL")?;
        lab.cut(&[&agents.hosts[0]], &[agents.plane.host()])?;
        agents.plane.start_api()?;
        kubectl.run(&["delete", "node", "node2"])?;
        agents.make_node(2)?;
        // Its memory of changes begins with its start.
        agents.plane.stop_api("KILL")?;
        agents.plane.start_api()?;
        ensure!(is_gone(&agents, &known)?, "the API server remembers version {known}");
        lab.heal()?;
        eventually(NOTICE, "a Node that came meanwhile is looked for", || follows(&agents, 2, true))?;
        eventually(NOTICE, "one that went is not", || follows(&agents, 1, false))
    });
}

/// Whether the first agent looks for the peer of another host.
fn follows(agents: &Agents, other: usize, wanted: bool) -> Result<()> {
    let targets = agents.hosts[0].status(&[])?["router"]["targets"].clone();
    let address = agents.hosts[other].address().to_string();
    ensure!(targets.to_string().contains(&address) == wanted, "{targets}");
    Ok(())
}

/// Whether a watch from this version is answered with 410.
fn is_gone(agents: &Agents, version: &str) -> Result<bool> {
    let path = format!("/api/v1/nodes?watch=true&timeoutSeconds=5&resourceVersion={version}");
    let finished = agents.plane.kubectl()?.finish(&["get", "--raw", &path])?;
    let told: Vec<Value> =
        finished.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(told.iter().any(|event| event["object"]["code"] == 410) || finished.stderr.contains("too old"))
}
