//! What a running agent does for the cluster, and takes from it: one future an errand, all in one task.
//!
//! Each errand waits for news, does what the news asks for, and tries again later what the API server refuses. None
//! waits for another, and each may be dropped at any `await`: what was not done is found undone at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;
use weave_proto::local::status::Status;
use weave_proto::peer::ipam::Founding;

use super::api::{ApiError, Change, Place};
use super::backoff::{Backoff, chance};
use super::keep::Followed;
use super::objects::{Anything, ConfigMap, Node};
use super::report::condition_patch;
use super::{Cluster, Target, nodes, universe};
use crate::brain::{BrainHandle, StatusReceiver};
use crate::cni::conflist::Conflist;

/// How often the conflist is looked at. A node without it takes no new pods, so it is missed soon.
const CONFLIST_PACE: Duration = Duration::from_secs(10);
/// After a refused errand whose news may have changed meanwhile.
const RETRY: Duration = Duration::from_secs(2);

/// The topic of notes about the API server itself.
pub(super) const SERVER: &str = "API server";
/// An API server that is back by then was restarted, and is nobody's concern.
const ABSENCE: Duration = Duration::from_secs(15);

/// This peer was removed for good: it must begin anew, as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this peer was removed from the mesh for good while it was away")]
pub struct RemovedForGood;

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
    /// How the range was split at first, if this agent knows.
    pub founding: Option<Founding>,
    /// What the status is to say of the cluster, by topic.
    pub notes: watch::Sender<BTreeMap<&'static str, String>>,
}

impl Cluster {
    /// Does everything that a running agent has to do with its cluster. Ends when this peer has been removed for good.
    pub async fn attend(self, around: Surroundings) -> RemovedForGood {
        let place = Place::config_maps(&self.namespace);
        let followed = Followed::<ConfigMap>::start(&self.api, place, universe::NAME);
        let errands = async {
            tokio::join!(
                self.keep_targets(&around),
                self.keep_registered(around.status.clone()),
                keep_network(&around),
                self.declare_available(around.status.clone()),
                self.note_server(&around),
                self.keep_secret(&around),
                self.keep_universe(&around, &followed),
                self.watch_over_peers(&around),
                self.report(&around),
            );
            // The agent ends, and with it this.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = errands => {}
            () = self.notice_removal(&around, &followed) => {}
        }
        RemovedForGood
    }

    /// Where the Nodes' agents are, if they are to be looked for.
    pub(super) fn targets(&self, nodes: &BTreeMap<String, Node>) -> BTreeSet<Target> {
        if self.follows_nodes { nodes::targets(nodes, &self.node) } else { BTreeSet::new() }
    }

    /// Has the agents of all Nodes looked for, and those of vanished Nodes no longer.
    async fn keep_targets(&self, around: &Surroundings) {
        let mut view = self.nodes.clone();
        let mut told: Option<BTreeSet<Target>> = None;
        loop {
            let wanted = view.borrow_and_update().objects.as_ref().map(|all| self.targets(all));
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
        let patch =
            condition_patch("NetworkUnavailable", false, "WeaveIsUp", "Weave pod has set this", &now());
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

    /// Notes when the API server is away and back. Nobody needs to act on a short absence.
    async fn note_server(&self, around: &Surroundings) {
        let mut view = self.nodes.clone();
        loop {
            let trouble = view.borrow_and_update().trouble.as_ref().map(ToString::to_string);
            if trouble.is_some() {
                sleep(ABSENCE).await;
                let still = view.borrow().trouble.is_some();
                around.note(SERVER, trouble.filter(|_| still).map(|trouble| {
                    format!("the Kubernetes API cannot be asked, so changes of Nodes are not seen; pods go on: {trouble}")
                }));
            } else {
                around.note(SERVER, None);
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Surroundings {
    /// Has the status say this about a topic, or nothing any more.
    pub(super) fn note(&self, topic: &'static str, note: Option<String>) {
        let changed = self.notes.send_if_modified(|notes| match &note {
            Some(note) => notes.insert(topic, note.clone()).as_ref() != Some(note),
            None => notes.remove(topic).is_some(),
        });
        if changed {
            if let Some(note) = note {
                tracing::warn!("{note}");
            } else {
                tracing::info!("What was noted about the {topic} is over");
            }
            self.brain.refresh();
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
pub(super) fn now() -> String {
    Timestamp::from_second(Timestamp::now().as_second()).map_or_else(|_| String::new(), |now| now.to_string())
}
