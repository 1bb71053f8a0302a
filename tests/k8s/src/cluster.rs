//! A whole cluster, with weave from its manifest.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use weave_netns::Lab;
use weave_netns::wait::eventually;

use crate::control_plane::ControlPlane;
use crate::image::{Images, TOOLS};
use crate::kubectl::Kubectl;
use crate::node::Node;

/// The manifest under test.
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/weave-daemonset.yaml");
/// How long the cluster may take for what takes seconds on a quiet machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A control plane and nodes. It ends when dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    kubectl: Kubectl,
    plane: ControlPlane,
}

impl Cluster {
    /// Control plane and kubelets, without a network for pods yet.
    ///
    /// # Errors
    /// A part does not start.
    pub fn bare(lab: &Lab, names: &[&str]) -> Result<Self> {
        let plane = ControlPlane::start(lab, names)?;
        plane.start_controllers()?;
        let kubectl = plane.kubectl()?;
        let images = Images::make(lab)?;
        let nodes =
            names.iter().map(|name| Node::start(lab, &plane, &images, name)).collect::<Result<_>>()?;
        let cluster = Self { nodes, kubectl, plane };
        eventually(PATIENCE, "the kubelets have registered", || {
            let found = cluster.kubectl.list(&["nodes"])?.len();
            ensure!(found == names.len(), "{found} nodes");
            // Pods need it, and the controller makes it a moment after the namespace.
            cluster.kubectl.run(&["get", "serviceaccount", "default"]).map(drop)
        })
        .with_context(|| cluster.diagnosis())?;
        Ok(cluster)
    }

    /// Three nodes with weave, all Ready.
    ///
    /// # Errors
    /// They do not become Ready.
    pub fn start(lab: &Lab) -> Result<Self> {
        let cluster = Self::bare(lab, &["node1", "node2", "node3"])?;
        cluster.install()?;
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Applies the manifest.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn install(&self) -> Result<()> {
        self.install_with(&[])
    }

    /// Applies the manifest with further variables for the agent.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn install_with(&self, variables: &[(&str, &str)]) -> Result<()> {
        let documents: Vec<_> =
            variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        self.install_with_documents(&documents)
    }

    /// Applies the manifest with further variables for the agent, as the API knows them.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn install_with_documents(&self, variables: &[Value]) -> Result<()> {
        let before = "            - name: NODE_NAME\n";
        let added: String = variables.iter().map(|it| format!("            - {it}\n")).collect();
        self.kubectl.apply(&manifest()?.replace(before, &(added + before))).map(drop)
    }

    /// Deletes the manifest, and waits until the agents have ended.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn uninstall(&self) -> Result<()> {
        self.kubectl.delete(&manifest()?)?;
        eventually(PATIENCE, "the agents have ended", || {
            let pods = self.kubectl.list(&["pods", "-n", "kube-system", "-l", "name=weave-net"])?;
            ensure!(pods.is_empty(), "{} are left", pods.len());
            Ok(())
        })
    }

    /// Waits until every agent and every node is Ready.
    ///
    /// # Errors
    /// They do not become so; the message says what they say.
    pub fn wait_ready(&self) -> Result<()> {
        eventually(PATIENCE, "all nodes and agents are ready", || {
            let nodes = self.kubectl.list(&["nodes"])?;
            for node in &nodes {
                ensure!(
                    condition(node, "Ready") == Some("True"),
                    "{}: {}",
                    name(node),
                    node["status"]["conditions"]
                );
            }
            let agents = self.agents()?;
            ensure!(agents.len() == nodes.len(), "{} agents", agents.len());
            for agent in &agents {
                ensure!(condition(agent, "Ready") == Some("True"), "{}: {}", name(agent), agent["status"]);
            }
            self.nodes.iter().try_for_each(Node::ensure_running)
        })
        .with_context(|| self.diagnosis())
    }

    /// The pods of the agents that run.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn agents(&self) -> Result<Vec<Value>> {
        let mut pods = self.kubectl.list(&["pods", "-n", "kube-system", "-l", "name=weave-net"])?;
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(pods)
    }

    /// `weave` with arguments, in the agent's pod on a node.
    ///
    /// # Errors
    /// There is no agent, or it fails.
    pub fn weave(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let agents = self.agents()?;
        let agent = agents.iter().find(|pod| pod["spec"]["nodeName"] == node).context("no agent there")?;
        self.kubectl.run(
            &[&["exec", "-n", "kube-system", name(agent), "-c", "weave", "--", "weave"], arguments].concat(),
        )
    }

    /// Makes a pod of the tests' image on a node, serving HTTP on port 8080, and waits for its address.
    ///
    /// # Errors
    /// It does not run.
    pub fn pod(&self, name: &str, node: &str) -> Result<String> {
        self.kubectl.apply(&pod(name, node).to_string())?;
        self.address(name)
    }

    /// Waits until a pod is ready, and returns its address.
    ///
    /// # Errors
    /// It does not run; the message says why.
    pub fn address(&self, pod: &str) -> Result<String> {
        eventually(PATIENCE, &format!("{pod} is ready"), || {
            let pod = self.kubectl.get(&["pod", pod])?;
            ensure!(condition(&pod, "Ready") == Some("True"), "{}", pod["status"]);
            pod["status"]["podIP"].as_str().map(str::to_owned).context("no address")
        })
        .with_context(|| self.diagnosis())
    }

    /// What a shell inside a pod prints.
    ///
    /// # Errors
    /// It fails.
    pub fn shell(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl.run(&["exec", pod, "--", "sh", "-c", script])
    }

    /// kubectl as administrator.
    #[must_use]
    pub const fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The control plane.
    #[must_use]
    pub const fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        match self.nodes.iter().find(|node| node.name() == name) {
            Some(node) => Ok(node),
            None => bail!("no node {name}"),
        }
    }

    /// What a person would look at after a failure.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let ask = |arguments: &[&str]| {
            self.kubectl
                .finish(arguments)
                .map_or_else(|error| format!("{error:#}"), |it| it.stdout + &it.stderr)
        };
        let mut parts = vec![
            ask(&["get", "nodes,pods", "-A", "-o", "wide"]),
            ask(&["get", "events", "-A", "--sort-by=.lastTimestamp"]),
            ask(&[
                "logs",
                "-n",
                "kube-system",
                "-l",
                "name=weave-net",
                "--all-containers",
                "--prefix",
                "--tail=30",
            ]),
            self.plane.diagnosis(),
        ];
        parts.extend(self.nodes.iter().map(Node::diagnosis));
        parts.join("\n")
    }
}

/// The manifest under test.
///
/// # Errors
/// It cannot be read.
pub fn manifest() -> Result<String> {
    fs::read_to_string(MANIFEST).with_context(|| format!("reading {MANIFEST}"))
}

/// A pod of the tests' image on a node.
#[must_use]
pub fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [container()],
        },
    })
}

/// A container of the tests' image, ready when it answers.
#[must_use]
pub fn container() -> Value {
    json!({
        "name": "web",
        "image": TOOLS,
        "imagePullPolicy": "Never",
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
    })
}

/// The status of a condition.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

/// An object's name.
#[must_use]
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
