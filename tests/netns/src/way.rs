//! By which way a node's agent reaches its peers, as `weave status` tells it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::host::Host;
use crate::wait::eventually;

impl Host {
    /// What the agent says of its connection to `peer`.
    ///
    /// # Errors
    /// The agent does not answer, or knows of no connection to that peer.
    pub fn connection_to(&self, peer: &Self) -> Result<Value> {
        let connections = self.status(&["connections"])?;
        let all = connections.as_array().into_iter().flatten();
        let found =
            all.filter(|one| one["nickname"] == peer.name()).max_by_key(|one| !one["method"].is_null());
        found.cloned().with_context(|| format!("no connection to {} in {connections}", peer.name()))
    }

    /// The method by which the agent reaches the pods of `peer`; empty if it does not.
    ///
    /// # Errors
    /// The agent does not answer, or knows of no connection to that peer.
    pub fn method_to(&self, peer: &Self) -> Result<String> {
        let connection = self.connection_to(peer)?;
        Ok(connection["method"]["name"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the agent reaches the pods of `peer` by this method.
    ///
    /// # Errors
    /// It does not in time; the message holds the connection.
    pub fn wait_method(&self, peer: &Self, method: &str, deadline: Duration) -> Result<()> {
        eventually(deadline, &format!("{} reaches {} by {method}", self.name(), peer.name()), || {
            let connection = self.connection_to(peer)?;
            ensure!(connection["method"]["name"] == method, "{connection}");
            Ok(())
        })
    }

    /// How many packets the node has dropped for a reason, by the name that `weave status` gives it.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        Ok(self.status(&[])?["node"]["drops"][reason].as_u64().unwrap_or_default())
    }
}
