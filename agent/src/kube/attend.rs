//! What a running agent does for the cluster, and takes from it: one future an errand, all in one task.
//!
//! Each errand waits for news, does what the news asks for, and tries again later what the API server refuses. None
//! waits for another, and each may be dropped at any `await`: what was not done is found undone at the next start.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::time::sleep;
use weave_proto::local::status::Status;

use super::api::{ApiError, Change, Place};
use super::backoff::{Backoff, chance};
use super::objects::Anything;
use super::{Cluster, Target, nodes};
use crate::brain::{BrainHandle, StatusReceiver};
use crate::cni::conflist::Conflist;

/// How often the conflist is looked at. A node without it takes no new pods, so it is missed soon.
const CONFLIST_PACE: Duration = Duration::from_secs(10);
/// After a refused errand whose news may have changed meanwhile.
const RETRY: Duration = Duration::from_secs(2);

/// What of the agent the errands need.
pub struct Surroundings {
    /// To have peers looked for.
    pub brain: BrainHandle,
    /// What the agent believes.
    pub status: StatusReceiver,
    /// Peers that the operator named.
    pub given: Vec<Target>,
    /// The network to tell the runtime of, and where.
    pub network: (Conflist, PathBuf),
}

impl Cluster {
    /// Does everything that a running agent has to do with its cluster, until it is dropped.
    pub async fn attend(self, around: Surroundings) {
        tokio::join!(
            self.keep_targets(&around),
            self.keep_registered(around.status.clone()),
            keep_network(&around),
            self.declare_available(around.status.clone()),
        );
    }

    /// Has the agents of all Nodes looked for, and those of vanished Nodes no longer.
    async fn keep_targets(&self, around: &Surroundings) {
        let mut view = self.nodes.clone();
        let mut told: Option<BTreeSet<Target>> = None;
        loop {
            let wanted = view.borrow_and_update().objects.as_ref().map(|all| nodes::targets(all, &self.node));
            if let Some(wanted) = wanted {
                let done = match &told {
                    // What was told at the start may be older than the list.
                    None => {
                        around
                            .brain
                            .connect(wanted.iter().chain(&around.given).cloned().collect(), true)
                            .await
                    }
                    Some(told) => self.tell_difference(around, told, &wanted).await,
                };
                match done {
                    Ok(()) => told = Some(wanted),
                    Err(failure) => tracing::debug!(%failure.message, "the brain took no targets"),
                }
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    async fn tell_difference(
        &self,
        around: &Surroundings,
        told: &BTreeSet<Target>,
        wanted: &BTreeSet<Target>,
    ) -> Result<(), weave_proto::local::control::Failure> {
        let new: Vec<_> = wanted.difference(told).cloned().collect();
        let gone: Vec<_> =
            told.difference(wanted).filter(|target| !around.given.contains(target)).cloned().collect();
        if !new.is_empty() {
            around.brain.connect(new, false).await?;
        }
        if !gone.is_empty() {
            around.brain.forget(gone).await?;
        }
        Ok(())
    }

    /// Keeps the entry in the register right.
    async fn keep_registered(&self, mut status: StatusReceiver) {
        let mut view = self.nodes.clone();
        let (mut backoff, mut rng) = (Backoff::default(), chance());
        loop {
            let universe = universe_of(&status.borrow_and_update());
            let found = {
                let view = view.borrow_and_update();
                let node = view.current().and_then(|nodes| nodes.get(&self.node));
                node.map(|node| node.metadata.annotations.clone())
            };
            let patch = found.and_then(|found| nodes::entry(&found, self.name, universe.as_deref()));
            if let Some(patch) = patch {
                let done: Result<Anything, ApiError> =
                    self.api.patch(&Place::nodes(), &self.node, Change::Status, &patch).await;
                match done {
                    // The change comes back as news of the Node.
                    Ok(_) => backoff.succeed(),
                    Err(error) => {
                        tracing::debug!(%error, "the register was not changed");
                        sleep(backoff.fail(error.kind.asked(), &mut rng)).await;
                        continue;
                    }
                }
                sleep(RETRY).await;
            }
            let in_universe = |status: &std::sync::Arc<Status>| universe_of(status) != universe;
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = status.wait_for(in_universe) => if changed.is_err() { return },
            }
        }
    }

    /// Says that the Node's network can be used, as soon as it can. Cloud providers mark new Nodes otherwise.
    async fn declare_available(&self, mut status: StatusReceiver) {
        let (mut backoff, mut rng) = (Backoff::default(), chance());
        if status.wait_for(|status| status.is_ready()).await.is_err() {
            return;
        }
        let now = now();
        let patch = json!({ "status": { "conditions": [{
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "WeaveIsUp",
            "message": "Weave pod has set this",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }] } });
        loop {
            let done: Result<Anything, ApiError> =
                self.api.patch(&Place::nodes(), &self.node, Change::Status, &patch).await;
            match done {
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%error, "the condition NetworkUnavailable was not cleared");
                    sleep(backoff.fail(error.kind.asked(), &mut rng)).await;
                }
            }
        }
    }
}

/// Tells the runtime of the network once pods can be attached, and again whenever somebody removes the file.
async fn keep_network(around: &Surroundings) {
    let (network, dir) = &around.network;
    let mut status = around.status.clone();
    if status.wait_for(|status| status.is_ready()).await.is_err() {
        return;
    }
    let mut pace = tokio::time::interval(CONFLIST_PACE);
    let mut was_refused = false;
    loop {
        pace.tick().await;
        match network.install(dir) {
            Ok(()) => was_refused = false,
            Err(error) if was_refused => {
                tracing::debug!(%error, "the network's configuration is still not there")
            }
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "cannot write the network's configuration: no pod can start here");
                was_refused = true;
            }
        }
    }
}

/// The universe that the agent is in, as it is written into the register.
fn universe_of(status: &Status) -> Option<String> {
    status.ipam.as_ref()?.universe.map(|universe| format!("{:016x}", universe.0))
}

/// Now, as Kubernetes writes it.
fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).map_or_else(|_| String::new(), |now| now.to_string())
}
