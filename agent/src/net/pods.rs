//! Which pods the node has: what the newest state lists, and what was attached and detached since.
//!
//! Two roads bring this knowledge, and neither may undo the other. The state is complete but comes when the brain
//! gets to it; attaching and detaching happen at once. So an attached pod stays although no state lists it yet, and
//! a detached one stays away although the newest state still lists it; as soon as a state agrees, the state rules.

use std::collections::{BTreeMap, BTreeSet};

use weave_proto::local::cni::PodPort;

/// The pods, by host interface.
#[derive(Debug, Default)]
pub(super) struct Pods {
    listed: BTreeMap<String, PodPort>,
    attached: BTreeMap<String, PodPort>,
    withdrawn: BTreeSet<String>,
}

impl Pods {
    /// A newer state lists these.
    pub(super) fn list(&mut self, pods: &[PodPort]) {
        self.listed = pods.iter().map(|pod| (pod.host_interface.clone(), pod.clone())).collect();
        self.attached.retain(|port, _| !self.listed.contains_key(port));
        self.withdrawn.retain(|port| self.listed.contains_key(port));
    }

    /// This one was attached.
    pub(super) fn attach(&mut self, pod: &PodPort) {
        self.withdrawn.remove(&pod.host_interface);
        self.attached.insert(pod.host_interface.clone(), pod.clone());
    }

    /// This one was detached; returns what was known of it.
    pub(super) fn detach(&mut self, port: &str) -> Option<PodPort> {
        let attached = self.attached.remove(port);
        let listed = self.listed.get(port).cloned();
        if listed.is_some() && !self.withdrawn.insert(port.to_owned()) {
            return attached;
        }
        attached.or(listed)
    }

    /// The pods that there are.
    pub(super) fn current(&self) -> Vec<PodPort> {
        let listed = self.listed.iter().filter(|(port, _)| !self.withdrawn.contains(*port));
        let mut pods: BTreeMap<_, _> = listed.collect();
        pods.extend(&self.attached);
        pods.into_values().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
