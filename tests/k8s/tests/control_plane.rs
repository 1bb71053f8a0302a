//! The control plane alone.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weave_k8s::ControlPlane;
use weave_netns::run_in_lab;

#[test]
fn an_api_server_answers_from_every_node_and_can_be_restarted() {
    run_in_lab(|lab| {
        let plane = ControlPlane::start(lab, &["node1"])?;
        let kubectl = plane.kubectl()?;
        kubectl
            .apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}).to_string())?;
        kubectl.run(&["create", "serviceaccount", "-n", "kube-system", "somebody"])?;
        plane.stop_api("TERM")?;
        ensure!(!kubectl.finish(&["get", "nodes"])?.success(), "an API server answers after its end");
        plane.start_api()?;
        ensure!(kubectl.list(&["nodes"])?.len() == 1, "the node is gone");
        token_is_good(&plane, lab)
    });
}

fn token_is_good(plane: &ControlPlane, lab: &weave_netns::Lab) -> Result<()> {
    let token = plane.account_token("kube-system", "somebody")?;
    let node = lab.host("node1")?;
    let authority = plane.authority();
    let url = format!("{}/api/v1/nodes", plane.url());
    let header = format!("Authorization: Bearer {token}");
    let arguments = ["-s", "--cacert", authority.to_str().context("a path")?, "-H", &header, &url];
    let answer = node.ns()?.succeed(weave_netns::command::words("curl", arguments), "")?;
    ensure!(answer.contains("\"Forbidden\""), "an account without rights was answered {answer}");
    Ok(())
}
