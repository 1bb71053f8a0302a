//! Which pods the node has: what the newest state lists, and what was attached and detached since.
//!
//! Two roads bring this knowledge, and neither may undo the other. The state is complete but comes when the brain
//! gets to it; attaching and detaching happen at once. So an attached pod stays although no state lists it yet, and
//! a detached one stays away although the newest state still lists it, or the next one does, which the brain may have
//! made before it heard; as soon as a state agrees, the state rules.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use weave_proto::local::cni::PodPort;

/// How long the brain may take to hear that a pod is gone.
const LAG: Duration = Duration::from_secs(60);

/// The pods, by host interface.
#[derive(Debug, Default)]
pub(super) struct Pods {
    listed: BTreeMap<String, PodPort>,
    attached: BTreeMap<String, PodPort>,
    /// When each that was detached was.
    withdrawn: BTreeMap<String, Instant>,
}

impl Pods {
    /// A newer state lists these.
    pub(super) fn list(&mut self, pods: &[PodPort], now: Instant) {
        let listed = pods.iter().map(|pod| (pod.host_interface.clone(), pod.clone())).collect();
        let before = std::mem::replace(&mut self.listed, listed);
        // A state that lists it no more, where the one before did, agrees.
        self.withdrawn.retain(|port, _| self.listed.contains_key(port) || !before.contains_key(port));
        self.attached.retain(|port, _| !self.listed.contains_key(port));
        self.forget(now);
    }

    /// What no state has listed for long, none will.
    fn forget(&mut self, now: Instant) {
        self.withdrawn.retain(|port, at| self.listed.contains_key(port) || now < *at + LAG);
    }

    /// This one was attached.
    pub(super) fn attach(&mut self, pod: &PodPort) {
        self.withdrawn.remove(&pod.host_interface);
        self.attached.insert(pod.host_interface.clone(), pod.clone());
    }

    /// This one was detached; returns what was known of it.
    pub(super) fn detach(&mut self, port: &str, now: Instant) -> Option<PodPort> {
        let was_there = self.withdrawn.insert(port.to_owned(), now).is_none();
        self.forget(now);
        let listed = self.listed.get(port).filter(|_| was_there).cloned();
        self.attached.remove(port).or(listed)
    }

    /// The pods that there are.
    pub(super) fn current(&self) -> Vec<PodPort> {
        let listed = self.listed.iter().filter(|(port, _)| !self.withdrawn.contains_key(*port));
        let mut pods: BTreeMap<_, _> = listed.collect();
        pods.extend(&self.attached);
        pods.into_values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
