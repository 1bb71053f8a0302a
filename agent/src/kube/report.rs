//! What an operator should know of a Node's network, in Kubernetes' own words: a condition and Events.
//!
//! The condition `WeaveReady` of the Node says whether pods can be attached, and if not, why. An Event is written when
//! a problem begins, and one when the last has ended, so that `kubectl describe node` tells the story. Both are read
//! from the status document, as everything that anybody is told of the agent.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use weave_proto::local::status::Status;

/// The condition.
pub(super) const CONDITION: &str = "WeaveReady";
/// The longest message of an Event (1024 bytes) and a readable one of a condition.
const MAX_MESSAGE: usize = 1000;

/// What can be wrong, as one word that `kubectl get events` can be filtered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Problem {
    /// Peers without which nothing can be given out are missing: a majority for the first split, or all that own what
    /// is free.
    NoQuorum,
    /// There is no address to be had.
    RangeExhausted,
    /// A peer holds another cluster secret.
    SecretMismatch,
    /// This peer was removed for good.
    Removed,
    /// Something in the kernel or on this Node is not as it should be.
    NodeNotReady,
    /// The cluster's objects are not as they should be.
    ClusterObjects,
    /// The agent has been waiting for a while before it can take part in anything.
    NotInCluster,
}

impl Problem {
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::NoQuorum => "WeaveNoQuorum",
            Self::RangeExhausted => "WeaveRangeExhausted",
            Self::SecretMismatch => "WeaveSecretMismatch",
            Self::Removed => "WeavePeerRemoved",
            Self::NodeNotReady => "WeaveNodeNotReady",
            Self::ClusterObjects => "WeaveClusterObjects",
            Self::NotInCluster => "WeaveNotInCluster",
        }
    }
}

/// All that is wrong, each with a sentence and its remedy.
pub(super) fn problems(status: &Status, objects: &BTreeSet<String>) -> BTreeMap<Problem, String> {
    let mut found = BTreeMap::new();
    if let Some(ipam) = status.ipam.as_ref().filter(|ipam| !ipam.ready) {
        let removed = ipam.removed.iter().any(|removed| removed.peer == status.name);
        let missing = ipam.shares.iter().any(|share| share.addresses > 0 && !share.reachable);
        let problem = match (removed, ipam.entries.is_empty() || missing) {
            (true, _) => Problem::Removed,
            (false, true) => Problem::NoQuorum,
            (false, false) => Problem::RangeExhausted,
        };
        found.insert(problem, ipam.state.clone());
    }
    let mismatches: Vec<_> = status
        .router
        .connections
        .iter()
        .filter(|connection| connection.info.contains("another cluster secret"))
        .map(|connection| format!("{}: {}", connection.address.ip(), connection.info))
        .collect();
    if !mismatches.is_empty() {
        found.insert(Problem::SecretMismatch, mismatches.join("; "));
    }
    let ipam_ready = status.ipam.as_ref().is_some_and(|ipam| ipam.ready);
    if ipam_ready && !status.is_ready() {
        found.insert(Problem::NodeNotReady, status.waiting_for.join("; "));
    }
    if !objects.is_empty() {
        found.insert(Problem::ClusterObjects, objects.iter().cloned().collect::<Vec<_>>().join("; "));
    }
    found
}

/// The condition as it is to be written, without its times: status, reason, message.
pub(super) fn condition(
    status: &Status,
    problems: &BTreeMap<Problem, String>,
) -> (bool, &'static str, String) {
    let ready = status.is_ready();
    match problems.iter().next() {
        Some((problem, message)) => (ready, problem.reason(), cut(message)),
        None if ready => (true, "WeaveIsUp", "pods can be attached".to_owned()),
        None => (false, Problem::NodeNotReady.reason(), cut(&status.waiting_for.join("; "))),
    }
}

/// The patch of the Node's status that sets a condition.
pub(super) fn condition_patch(kind: &str, status: bool, reason: &str, message: &str, now: &str) -> Value {
    json!({ "status": { "conditions": [{
        "type": kind,
        "status": if status { "True" } else { "False" },
        "reason": reason,
        "message": cut(message),
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }] } })
}

/// An Event about the Node. The kubelet writes its own in the same form, so they stand together.
pub(super) fn event(node: &str, warning: bool, reason: &str, message: &str, now: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "generateName": format!("{node}."), "namespace": "default" },
        "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": node, "uid": node },
        "type": if warning { "Warning" } else { "Normal" },
        "reason": reason,
        "message": cut(message),
        "source": { "component": "weave-net", "host": node },
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}

fn cut(message: &str) -> String {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use weave_proto::local::status::{ConnectionState, ConnectionStatus, IpamStatus, RemovedStatus};
    use weave_proto::{Nickname, PeerName, PeerUid};

    use super::*;

    fn peer(number: u8) -> PeerName {
        PeerName::from_bits([2, 0, 0, 0, 0, number])
    }

    fn status(ready: bool, state: &str) -> Status {
        let mut status = Status::starting(peer(1), Nickname::lossy("n1"), PeerUid(1));
        status.ipam = Some(IpamStatus {
            state: state.to_owned(),
            ready,
            range: "10.32.0.0/12".parse().unwrap(),
            universe: None,
            shares: Vec::new(),
            entries: Vec::new(),
            allocations: Vec::new(),
            lost: Vec::new(),
            quarantined: 0,
            pending: Vec::new(),
            refused: Vec::new(),
            removed: Vec::new(),
        });
        status.waiting_for = if ready { Vec::new() } else { vec![state.to_owned()] };
        status
    }

    fn words(status: &Status) -> Vec<&'static str> {
        problems(status, &BTreeSet::new()).keys().map(|problem| problem.reason()).collect()
    }

    #[test]
    fn a_node_that_is_well_is_ready_and_has_no_problem() {
        let status = status(true, "ready");
        assert!(words(&status).is_empty());
        assert_eq!(
            condition(&status, &BTreeMap::new()),
            (true, "WeaveIsUp", "pods can be attached".to_owned())
        );
    }

    #[test]
    fn each_problem_has_a_word_and_its_remedy() {
        let waiting = status(false, "waiting for a majority of the founders");
        assert_eq!(words(&waiting), ["WeaveNoQuorum"]);
        let mut exhausted = status(false, "every address of the range is taken: free some");
        let span =
            weave_proto::Span::new("10.32.0.0".parse().unwrap(), "10.47.255.255".parse().unwrap()).unwrap();
        exhausted.ipam.as_mut().unwrap().entries =
            vec![weave_proto::local::status::RingEntryStatus { span, owner: peer(1), version: 1 }];
        let found = problems(&exhausted, &BTreeSet::new());
        assert_eq!(condition(&exhausted, &found).1, "WeaveRangeExhausted");
        assert!(condition(&exhausted, &found).2.contains("free some"));
        exhausted.ipam.as_mut().unwrap().removed =
            vec![RemovedStatus { peer: peer(1), heir: peer(2), state: "acknowledged".to_owned() }];
        assert_eq!(words(&exhausted), ["WeavePeerRemoved"]);
    }

    #[test]
    fn a_peer_with_another_secret_is_named_although_the_node_is_ready() {
        let mut status = status(true, "ready");
        status.router.connections = vec![ConnectionStatus {
            address: "10.0.0.7:6783".parse().unwrap(),
            outbound: true,
            state: ConnectionState::Retrying,
            peer: None,
            nickname: None,
            info: "the other side holds another cluster secret".to_owned(),
            retry_in_seconds: None,
            method: None,
        }];
        let found = problems(&status, &BTreeSet::new());
        let (ready, reason, message) = condition(&status, &found);
        assert!(ready && reason == "WeaveSecretMismatch" && message.contains("10.0.0.7"), "{message}");
    }

    #[test]
    fn a_message_is_cut_between_letters() {
        let long = "ä".repeat(MAX_MESSAGE);
        assert!(event("n1", true, "X", &long, "")["message"].as_str().unwrap().len() <= MAX_MESSAGE);
    }
}
