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
    /// The agent does not answer, or has never heard of that peer.
    pub fn method_to(&self, peer: &Self) -> Result<String> {
        Ok(self.way_to(peer)?["name"].as_str().unwrap_or_default().to_owned())
    }

    /// What the agent says of the way to the pods of `peer`, whether there is a connection to it or not.
    ///
    /// # Errors
    /// The agent does not answer, or has never heard of that peer.
    pub fn way_to(&self, peer: &Self) -> Result<Value> {
        let peers = self.status(&["peers"])?;
        let found = peers.as_array().into_iter().flatten().find(|one| one["nickname"] == peer.name());
        Ok(found.with_context(|| format!("no {} in {peers}", peer.name()))?["method"].clone())
    }

    /// Waits until the agent reaches the pods of `peer` by this method.
    ///
    /// # Errors
    /// It does not in time; the message holds the connection.
    pub fn wait_method(&self, peer: &Self, method: &str, deadline: Duration) -> Result<()> {
        eventually(deadline, &format!("{} reaches {} by {method}", self.name(), peer.name()), || {
            let way = self.way_to(peer)?;
            ensure!(way["name"] == method, "{way}");
            Ok(())
        })
    }

    /// Waits until the agent reaches the pods of `peer` by this method and has had an answer to a probe of it: the kernel's
    /// way is used before anything has answered, and may be left again.
    ///
    /// # Errors
    /// It does not in time; the message holds the connection.
    pub fn wait_proven(&self, peer: &Self, method: &str, deadline: Duration) -> Result<()> {
        eventually(deadline, &format!("{} answers {} by {method}", peer.name(), self.name()), || {
            let used = self.way_to(peer)?;
            ensure!(used["name"] == method && !used["round_trip_us"].is_null(), "{used}");
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
