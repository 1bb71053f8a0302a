//! Outputs in the making.
//!
//! While a piece of news is handled, changes for the store and things to say are collected apart; when it has been
//! handled, they leave as one [`Output::Persist`] and behind it everything that depends on it. So nothing can be
//! said before it is durable, in whatever order the code came across it, and one piece of news costs at most one
//! write to the disk.
//!
//! One output goes the other way: [`Output::Lost`] leaves before the `Persist` that forgets the lost allocations,
//! so that a crash between the two loses no pod out of sight. It may then be heard twice.

use std::collections::{BTreeSet, VecDeque};

use weave_proto::PeerName;
use weave_proto::peer::ipam::IpamState;

use crate::api::{Allocation, Output, StoreOp};

/// What is to leave, and what has left but was not collected yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox {
    ready: VecDeque<Output>,
    lost: Vec<Allocation>,
    said: Vec<Output>,
    state_changed: bool,
    heard_from: Option<PeerName>,
    ranges_changed: bool,
    teach: BTreeSet<PeerName>,
}

impl Outbox {
    /// What this peer knows has changed: to be made durable and told to all neighbours.
    pub(crate) const fn state_changed(&mut self) {
        self.state_changed = true;
    }

    /// `peer` has said what this one did not know: to be made durable, and told to those whom it does not tell itself.
    pub(crate) const fn learned(&mut self, peer: PeerName) {
        self.heard_from = Some(peer);
    }

    /// Whether what this peer knows has changed.
    pub(crate) const fn has_new_state(&self) -> bool {
        self.state_changed || self.heard_from.is_some()
    }

    /// Somebody's ranges have changed.
    pub(crate) const fn ranges_changed(&mut self) {
        self.ranges_changed = true;
    }

    /// `peer` knows less than this one.
    pub(crate) fn teach(&mut self, peer: PeerName) {
        self.teach.insert(peer);
    }

    /// `peer` is no neighbour, and will hear of it from somebody else.
    pub(crate) fn leave_untaught(&mut self, peer: PeerName) {
        self.teach.remove(&peer);
    }

    /// These allocations are void.
    pub(crate) fn lost(&mut self, allocations: Vec<Allocation>) {
        self.lost.extend(allocations);
    }

    /// To be done once everything that has changed is durable.
    pub(crate) fn say(&mut self, output: Output) {
        self.said.push(output);
    }

    /// Lets everything leave that was collected, behind the changes of the store.
    pub(crate) fn flush(&mut self, mut changes: Vec<StoreOp>, digest: u64, state: impl Fn() -> IpamState) {
        if !self.lost.is_empty() {
            self.ready.push_back(Output::Lost(std::mem::take(&mut self.lost)));
        }
        let is_news = self.has_new_state();
        if is_news {
            changes.push(StoreOp::PutState(Box::new(state())));
        }
        if !changes.is_empty() {
            self.ready.push_back(Output::Persist(changes));
        }
        if std::mem::take(&mut self.ranges_changed) {
            self.ready.push_back(Output::RangesChanged);
        }
        self.ready.extend(self.said.drain(..));
        let heard_from = self.heard_from.take().filter(|_| !self.state_changed);
        self.state_changed = false;
        let mut teach = std::mem::take(&mut self.teach);
        if is_news {
            self.ready.push_back(Output::Gossip { state: Box::new(state()), digest, heard_from });
            teach.retain(|peer| Some(*peer) == heard_from);
        }
        for peer in teach {
            self.ready.push_back(Output::GossipTo { peer, state: Box::new(state()), digest });
        }
    }

    /// The next output.
    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.ready.pop_front()
    }
}
