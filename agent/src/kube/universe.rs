//! The object that decides, once and for all agents, who shares the range at first.
//!
//! A ConfigMap is created if it is absent, and etcd lets one creation win. So there is one decision, however many
//! agents start at once, one by one, or cut off from each other; whoever comes later reads it. Its value is what the
//! agents of a standalone mesh vote for (docs/adr/0006): the founders, and a random number that tells this universe
//! from any other. The founders are the peers that are registered ([`super::nodes`]) when somebody finds no object;
//! who that is waits a moment first, so that agents which start together share the range equally.
//!
//! An object that somebody deletes is put back by any agent that is in the universe. A Node whose agent is in one says
//! so in its annotation, and while any other Node does, nobody founds a second universe.
//!
//! The object also tells who was removed for good, so that a returner learns it before it has met anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weave_proto::peer::ipam::Founding;
use weave_proto::{Cidr, PeerName};

use super::nodes;
use super::objects::{ConfigMap, Node};

/// The ConfigMap's name. Weave Net's own is called `weave-net`, and is left alone.
pub(super) const NAME: &str = "weave-net-universe";
/// The key of the decision.
const DECISION: &str = "universe";
/// How the keys of removed peers begin.
const REMOVED: &str = "removed.";

/// How long whoever finds no object waits for the agents of other Nodes to register: a DaemonSet's pods start within
/// a few seconds of each other. A Node that has no agent yet is not waited for any longer; it gets space by donation.
pub(super) const GATHER: Duration = Duration::from_secs(10);
/// The most founders. A cluster of thousands need not write all of them down: the others get space by donation.
const MAX_FOUNDERS: usize = 256;

/// The decision as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Decision {
    pub(super) range: Cidr,
    pub(super) founders: BTreeSet<PeerName>,
    pub(super) nonce: u64,
}

/// What whoever finds no object does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Move {
    /// Waits, for this reason.
    Wait(String),
    /// Proposes these founders.
    Found(BTreeSet<PeerName>),
}

/// Why an object is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecisionError {
    #[error(
        "the ConfigMap {NAME} cannot be understood ({0}): delete it, and the agents that have addresses put it back"
    )]
    Malformed(String),
    #[error(
        "the ConfigMap {NAME} shares out {theirs} and this agent was given {ours}: give every agent the same \
         IPALLOC_RANGE"
    )]
    Range { theirs: Cidr, ours: Cidr },
}

impl Decision {
    pub(super) fn new(range: Cidr, founding: Founding) -> Self {
        Self { range, founders: founding.founders, nonce: founding.nonce }
    }

    /// What the object says; it must be about `range`.
    pub(super) fn read(object: &ConfigMap, range: Cidr) -> Result<Self, DecisionError> {
        let text = object.data.get(DECISION).map_or("", String::as_str);
        let decision: Self =
            serde_json::from_str(text).map_err(|error| DecisionError::Malformed(error.to_string()))?;
        if decision.founders.is_empty() {
            return Err(DecisionError::Malformed("it names no founder".to_owned()));
        }
        if decision.range != range {
            return Err(DecisionError::Range { theirs: decision.range, ours: range });
        }
        Ok(decision)
    }

    pub(super) fn founding(self) -> Founding {
        Founding { founders: self.founders, nonce: self.nonce }
    }

    /// The object to create.
    pub(super) fn object(&self, removed: &BTreeMap<PeerName, PeerName>) -> Value {
        let mut data = tombstones(removed);
        data.insert(DECISION.to_owned(), json!(self).to_string());
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": NAME, "labels": { "name": "weave-net" } },
            "data": data,
        })
    }
}

fn tombstones(removed: &BTreeMap<PeerName, PeerName>) -> BTreeMap<String, String> {
    removed.iter().map(|(peer, heir)| (key(*peer), heir.to_string())).collect()
}

/// A key of a ConfigMap holds no colons.
fn key(peer: PeerName) -> String {
    format!("{REMOVED}{}", peer.to_string().replace(':', "-"))
}

/// Whether the object says that `peer` was removed for good.
pub(super) fn is_removed(object: &ConfigMap, peer: PeerName) -> bool {
    object.data.contains_key(&key(peer))
}

/// What must be added to the object so that it names all that were removed; none if it does.
pub(super) fn missing_tombstones(
    object: &ConfigMap,
    removed: &BTreeMap<PeerName, PeerName>,
) -> Option<Value> {
    let mut missing = tombstones(removed);
    missing.retain(|key, _| !object.data.contains_key(key));
    (!missing.is_empty()).then(|| json!({ "data": missing }))
}

/// What to do without an object. `since` is when it was first found missing.
pub(super) fn next_move(
    nodes: &BTreeMap<String, Node>,
    own: &str,
    me: PeerName,
    since: Instant,
    now: Instant,
) -> Move {
    let elsewhere = nodes::in_a_universe(nodes, own);
    if !elsewhere.is_empty() {
        return Move::Wait(format!(
            "waiting for the agent of {} to put the ConfigMap {NAME} back, which somebody has deleted; if the agents \
             there are gone for good, run `kubectl annotate node NODE {}-` for each",
            some_of(&elsewhere),
            nodes::UNIVERSE,
        ));
    }
    let silent = nodes::silent(nodes, own);
    if !silent.is_empty() && now < since + GATHER {
        return Move::Wait(format!("waiting a moment for the agents of {} to start", some_of(&silent)));
    }
    let others = nodes::registered(nodes).into_iter().filter(|peer| *peer != me);
    Move::Found(others.take(MAX_FOUNDERS - 1).chain([me]).collect())
}

/// A few names, and how many more there are.
pub(super) fn some_of(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests;
