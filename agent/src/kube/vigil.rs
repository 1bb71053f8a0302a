//! Watching over the peers, and over this one: who is gone is removed, and what is wrong is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, sleep_until, timeout};
use weave_ipam::{Answer, Request};
use weave_proto::PeerName;
use weave_proto::local::status::Status;

use super::api::{ApiError, Change, Place};
use super::attend::{Surroundings, now};
use super::backoff::{Backoff, chance};
use super::keep::{Followed, removed};
use super::objects::{Anything, ConfigMap};
use super::reclaim::{Facts, Vigil};
use super::report::{self, Problem};
use super::{Cluster, nodes, universe};

/// A problem that has gone again within this time is not told: peers that restart lose each other for a moment.
const SETTLE: Duration = Duration::from_secs(3);
/// How long the last words of a removed peer may take.
const LAST_WORDS: Duration = Duration::from_secs(3);

impl Cluster {
    /// Has peers removed that are gone for good.
    pub(super) async fn watch_over_peers(&self, around: &Surroundings) {
        let (mut view, mut status) = (self.nodes.clone(), around.status.clone());
        let mut vigil = Vigil::new(self.grace);
        let mut told = BTreeMap::new();
        loop {
            let owners = owners(&status.borrow_and_update());
            let registered = view.borrow_and_update().current().map(nodes::registered);
            let facts = Facts { me: self.name, owners: &owners, registered: registered.as_ref() };
            for peer in vigil.observe(facts, Instant::now()) {
                self.remove(around, peer).await;
            }
            let deadline = vigil.deadline(facts);
            told.clone_from(&owners);
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = status.wait_for(|status| self::owners(status) != told) => {
                    if changed.is_err() { return }
                }
                () = sleep_until_some(deadline) => {}
            }
        }
    }

    async fn remove(&self, around: &Surroundings, peer: PeerName) {
        let grace = self.grace.as_secs();
        tracing::info!(target: "weave_ipam", "no Node names peer {peer} and nobody has seen it for {grace} s: it is removed");
        match around.brain.ask(Request::RemovePeer { peer, force: false }).await {
            Ok(Answer::Removed { heir, addresses }) => {
                tracing::info!(target: "weave_ipam", "{heir} has inherited from {peer}; {addresses} addresses came to this peer");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(target: "weave_ipam", %error, "{peer} is not removed yet; tried again later");
            }
        }
    }

    /// Ends when this peer has been removed for good, and names the pods that lose their addresses by it.
    pub(super) async fn notice_removal(&self, around: &Surroundings, followed: &Followed<ConfigMap>) {
        let (mut view, mut status) = (followed.view.clone(), around.status.clone());
        let mut pods = BTreeSet::new();
        loop {
            let gone = {
                let status = status.borrow_and_update();
                let gone = removed(&status).contains_key(&self.name);
                if !gone {
                    pods = pods_of(&status);
                }
                gone
            };
            let buried = {
                let view = view.borrow_and_update();
                let found = view.objects.as_ref().and_then(|found| found.get(universe::NAME));
                found.is_some_and(|found| universe::is_removed(found, self.name))
            };
            if gone || buried {
                break;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return std::future::pending().await },
                changed = status.changed() => if changed.is_err() { return std::future::pending().await },
            }
        }
        self.tell_removal(&pods).await;
    }

    /// Says that this peer was removed for good, and which pods lose their addresses by it.
    pub async fn tell_removal(&self, pods: &BTreeSet<String>) {
        let message = removal_message(self.name, pods);
        tracing::warn!("{message}");
        // Whoever does not hear it reads the log.
        let _ = timeout(LAST_WORDS, self.tell(true, Problem::Removed.reason(), &message)).await;
    }

    /// Says what an agent waits for that is not in the cluster yet.
    pub(super) async fn tell_waiting(&self, why: &str) -> Result<(), ApiError> {
        let reason = Problem::NotInCluster.reason();
        let patch = report::condition_patch(report::CONDITION, false, reason, why, &now());
        let _: Anything = self.api.patch(&Place::nodes(), &self.node, Change::Status, &patch).await?;
        self.tell(true, reason, why).await.map(drop)
    }

    async fn tell(&self, warning: bool, reason: &str, message: &str) -> Result<Anything, ApiError> {
        let event = report::event(&self.node, warning, reason, message, &now());
        self.api.create(&Place::events("default"), &event).await
    }

    /// Keeps the Node's condition right, and writes Events when problems begin and end.
    pub(super) async fn report(&self, around: &Surroundings) {
        let (mut status, mut notes) = (around.status.clone(), around.notes.subscribe());
        let (mut backoff, mut rng) = (Backoff::default(), chance());
        let mut told_problems: BTreeMap<Problem, String> = BTreeMap::new();
        let mut told = None;
        let look = |status: &Arc<Status>, notes: &BTreeMap<&'static str, String>| {
            let objects = notes.iter().filter(|(topic, _)| **topic != super::attend::SERVER);
            let problems = report::problems(status, &objects.map(|(_, note)| note.clone()).collect());
            (report::condition(status, &problems), problems)
        };
        loop {
            let (condition, problems) = look(&status.borrow_and_update(), &notes.borrow_and_update());
            if told.as_ref() != Some(&condition) {
                sleep(SETTLE).await;
                let again = look(&status.borrow_and_update(), &notes.borrow_and_update());
                if again != (condition.clone(), problems.clone()) {
                    continue;
                }
                match self.say(&condition, &told_problems, &problems).await {
                    Ok(()) => {
                        backoff.succeed();
                        told = Some(condition);
                        told_problems = problems;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the state of the Node was not told");
                        sleep(backoff.fail(error.kind.asked(), &mut rng)).await;
                        continue;
                    }
                }
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                changed = notes.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn say(
        &self,
        (ready, reason, message): &(bool, &'static str, String),
        before: &BTreeMap<Problem, String>,
        problems: &BTreeMap<Problem, String>,
    ) -> Result<(), ApiError> {
        let patch = report::condition_patch(report::CONDITION, *ready, reason, message, &now());
        let _: Anything = self.api.patch(&Place::nodes(), &self.node, Change::Status, &patch).await?;
        for (problem, message) in problems.iter().filter(|(problem, _)| !before.contains_key(problem)) {
            self.tell(true, problem.reason(), message).await?;
        }
        if problems.is_empty() && !before.is_empty() && *ready {
            self.tell(false, reason, message).await?;
        }
        Ok(())
    }
}

fn removal_message(name: PeerName, pods: &BTreeSet<String>) -> String {
    let pods: Vec<_> = pods.iter().map(String::as_str).collect();
    let lost = if pods.is_empty() {
        "no pod of this Node held an address".to_owned()
    } else {
        format!("these pods are cut off until they are deleted: {}", pods.join(", "))
    };
    format!(
        "this Node's peer {name} was removed for good while it was away, and others have its addresses; it begins anew \
         under another name; {lost}"
    )
}

fn pods_of(status: &Status) -> BTreeSet<String> {
    let allocations = status.ipam.iter().flat_map(|ipam| &ipam.allocations);
    allocations.filter_map(|allocation| allocation.pod.clone()).collect()
}

/// Who owns addresses, and whether there is a path to it.
fn owners(status: &Status) -> BTreeMap<PeerName, bool> {
    let shares = status.ipam.iter().flat_map(|ipam| &ipam.shares);
    shares.filter(|share| share.addresses > 0).map(|share| (share.peer, share.reachable)).collect()
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
