//! Asking pods, nodes and Services over HTTP, from anywhere in the cluster.

use anyhow::{Context as _, Result};
use weave_netns::{Host, command};

use crate::cluster::Cluster;

/// The port of the pods' HTTP server.
pub const HTTP: u16 = 8080;

impl Cluster {
    /// What a pod is answered at a URL.
    ///
    /// # Errors
    /// It is not answered within seconds.
    pub fn get(&self, from: &str, url: &str) -> Result<String> {
        self.shell(from, &format!("/usr/bin/curl -sS -m 5 {url}"))
            .with_context(|| format!("{from} asks {url}"))
    }

    /// The name of the pod that answers a pod at an address and port.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn who(&self, from: &str, address: &str, port: u16) -> Result<String> {
        self.get(from, &format!("http://{address}:{port}/hostname"))
    }

    /// The address as which a pod is seen at an address and port.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn seen(&self, from: &str, address: &str, port: u16) -> Result<String> {
        self.get(from, &format!("http://{address}:{port}/clientip")).map(without_port)
    }

    /// The address of a Service.
    ///
    /// # Errors
    /// There is none.
    pub fn service(&self, name: &str) -> Result<String> {
        let service = self.kubectl().get(&["service", name])?;
        service["spec"]["clusterIP"].as_str().map(str::to_owned).context("a Service without address")
    }
}

/// What a node of the lab is answered by a pod's server: `hostname` or `clientip`.
///
/// # Errors
/// It is not answered within seconds.
pub fn from_node(node: &Host, address: &str, port: u16, what: &str) -> Result<String> {
    let url = format!("http://{address}:{port}/{what}");
    let answer = node.ns()?.succeed(command::words("curl", ["-sS", "-m", "5", &url]), "");
    answer.map(without_port).with_context(|| format!("{} asks {url}", node.name()))
}

fn without_port(client: String) -> String {
    match client.rsplit_once(':') {
        Some((address, _)) => address.to_owned(),
        None => client,
    }
}
