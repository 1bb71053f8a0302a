//! Agents on a real API server, without kubelets: processes of the lab's hosts, with Nodes that the test makes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weave_netns::wait::eventually;
use weave_netns::{AgentOptions, Host, Lab};

use crate::ControlPlane;
use crate::cluster::manifest;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The grace period of the agents under test, in seconds.
pub const GRACE: &str = "5";

/// A control plane without controllers, and hosts for agents.
#[derive(Debug)]
pub struct Agents {
    /// The control plane.
    pub plane: ControlPlane,
    /// The hosts.
    pub hosts: Vec<Arc<Host>>,
}

impl Agents {
    /// With the account of the manifest and its rights. Nothing makes pods of the DaemonSet without controllers.
    ///
    /// # Errors
    /// The control plane does not start.
    pub fn start(lab: &Lab, names: &[&str]) -> Result<Self> {
        let plane = ControlPlane::start(lab, names)?;
        plane.kubectl()?.apply(&manifest()?)?;
        let hosts = names.iter().map(|name| lab.host(name)).collect::<Result<_>>()?;
        Ok(Self { plane, hosts })
    }

    /// The Node of a host, as its kubelet would make it.
    ///
    /// # Errors
    /// The API server refuses, or an agent does not become ready.
    pub fn make_node(&self, index: usize) -> Result<()> {
        let (host, kubectl) = (&self.hosts[index], self.plane.kubectl()?);
        let addresses = json!([{"type": "InternalIP", "address": host.address()}]);
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": host.name()},
            "status": {"addresses": addresses},
        });
        kubectl.post("/api/v1/nodes", &node).map(drop)
    }

    /// How the manifest would start the agent of a host.
    ///
    /// # Errors
    /// The API server gives no token.
    pub fn options(&self, index: usize) -> Result<AgentOptions> {
        let account = self.hosts[index].folder().join("account");
        std::fs::create_dir_all(&account).context("making the folder of the account")?;
        std::fs::copy(self.plane.authority(), account.join("ca.crt")).context("copying the authority")?;
        std::fs::write(account.join("namespace"), "kube-system").context("writing the namespace")?;
        let token = self.plane.account_token("kube-system", "weave-net")?;
        std::fs::write(account.join("token"), token).context("writing the token")?;
        let host = &self.hosts[index];
        Ok(AgentOptions::default()
            .flag("--kubernetes")
            .flag(&format!("--node-name={}", host.name()))
            .flag(&format!("--api-server={}", self.plane.url()))
            .flag(&format!("--service-account={}", account.display()))
            .flag(&format!("--reclaim-after={GRACE}"))
            .flag(&format!("--cni-bin-dir={}", host.cni_bin_dir().display()))
            .flag(&format!("--cni-conf-dir={}", host.cni_conf_dir().display())))
    }

    /// Starts the agent of a host.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(&self, index: usize) -> Result<()> {
        self.hosts[index].launch(&self.options(index)?)
    }

    /// All Nodes, all agents, and everybody ready and linked.
    ///
    /// # Errors
    /// The API server refuses, or an agent does not become ready.
    pub fn launch_all(&self) -> Result<()> {
        for index in 0..self.hosts.len() {
            self.make_node(index)?;
        }
        for index in 0..self.hosts.len() {
            self.launch(index)?;
        }
        for host in &self.hosts {
            self.is_ready_with(host, self.hosts.len())?;
        }
        Ok(())
    }

    /// Waits until an agent is ready and sees so many owners of addresses, all within reach.
    ///
    /// # Errors
    /// It does not become so.
    pub fn is_ready_with(&self, host: &Host, owners: usize) -> Result<()> {
        eventually(PATIENCE, &format!("{} is ready and sees {owners} owners", host.name()), || {
            let status = host.status(&[])?;
            ensure!(status["waiting_for"] == json!([]), "it waits: {}", status["waiting_for"]);
            let shares = status["ipam"]["shares"].as_array().context("no shares")?;
            let reachable = shares.iter().filter(|share| share["reachable"] == json!(true)).count();
            ensure!(shares.len() == owners && reachable == owners, "shares: {shares:?}");
            Ok(())
        })
    }

    /// An annotation of a Node.
    ///
    /// # Errors
    /// There is no such Node.
    pub fn annotation(&self, node: &str, key: &str) -> Result<Option<String>> {
        let found = self.plane.kubectl()?.get(&["node", node])?;
        Ok(found["metadata"]["annotations"][key].as_str().map(str::to_owned))
    }
}

/// The sizes of all shares as a host sees them.
///
/// # Errors
/// It does not answer.
pub fn shares(host: &Host) -> Result<Vec<u64>> {
    let status = host.status(&[])?;
    let shares = status["ipam"]["shares"].as_array().context("no shares")?;
    Ok(shares.iter().filter_map(|share| share["addresses"].as_u64()).collect())
}

/// The name of a host's peer.
///
/// # Errors
/// It does not answer.
pub fn own_name(host: &Host) -> Result<String> {
    host.status(&[])?["name"].as_str().map(str::to_owned).context("a status without a name")
}

/// Status and reason of a Node's condition.
#[must_use]
pub fn condition(node: &Value, kind: &str) -> Option<(String, String)> {
    let found = node["status"]["conditions"].as_array()?.iter().find(|found| found["type"] == kind)?;
    Some((found["status"].as_str()?.to_owned(), found["reason"].as_str()?.to_owned()))
}
