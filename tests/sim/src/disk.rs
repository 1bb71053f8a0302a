//! A disk that keeps what was committed, and forgets everything else when its peer loses power.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weave_ipam::{Allocation, Freed, Restored};
use weave_overlay::KnownWay;
use weave_proto::PeerName;
use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::IpamState;
use weave_router::StoreOp;
use weave_topology::{KnownPeer, Target};

/// What one peer's store holds.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// How often the peer has started.
    pub starts: u64,
    state: Option<IpamState>,
    allocations: BTreeMap<AttachmentKey, Allocation>,
    lost: BTreeMap<AttachmentKey, Allocation>,
    freed: BTreeMap<IpAddr, Freed>,
    generation: u64,
    /// The targets given by people, if they were changed.
    pub targets: Option<Vec<Target>>,
    known: BTreeMap<PeerName, KnownPeer>,
    ways: BTreeMap<PeerName, KnownWay>,
}

impl Disk {
    /// Makes all of `ops` durable at once.
    pub fn commit(&mut self, ops: Vec<StoreOp>) {
        for op in ops {
            match op {
                StoreOp::Ipam(op) => self.commit_ipam(op),
                StoreOp::Targets(targets) => self.targets = Some(targets),
                StoreOp::ForgetKnown(names) => {
                    self.known.retain(|name, _| !names.contains(name));
                    self.ways.retain(|name, _| !names.contains(name));
                }
                StoreOp::Way(known) => drop(self.ways.insert(known.peer, known)),
                StoreOp::Known(peers) => self.known.extend(peers.into_iter().map(|peer| (peer.name, peer))),
            }
        }
    }

    fn commit_ipam(&mut self, op: weave_ipam::StoreOp) {
        use weave_ipam::StoreOp as Op;
        match op {
            Op::PutState(state) => self.state = Some(*state),
            Op::PutAllocation(allocation) => {
                self.allocations.insert(allocation.key.clone(), allocation);
            }
            Op::DeleteAllocation(key) => {
                self.allocations.remove(&key);
            }
            Op::PutLost(allocation) => {
                self.lost.insert(allocation.key.clone(), allocation);
            }
            Op::DeleteLost(key) => {
                self.lost.remove(&key);
            }
            Op::PutFreed(freed) => {
                self.freed.insert(freed.address, freed);
            }
            Op::DeleteFreed(address) => {
                self.freed.remove(&address);
            }
            Op::PutGeneration(generation) => self.generation = generation,
        }
    }

    /// What a restart finds of the allocator.
    #[must_use]
    pub fn restored(&self) -> Restored {
        Restored {
            state: self.state.clone(),
            allocations: self.allocations.values().cloned().collect(),
            lost: self.lost.values().cloned().collect(),
            freed: self.freed.values().copied().collect(),
            generation: self.generation,
        }
    }

    /// What a restart finds of other peers.
    #[must_use]
    pub fn known(&self) -> Vec<KnownPeer> {
        self.known.values().cloned().collect()
    }

    /// What a restart finds of the last ways to them.
    #[must_use]
    pub fn ways(&self) -> Vec<KnownWay> {
        self.ways.values().copied().collect()
    }

    /// The address that a key has, durably.
    #[must_use]
    pub fn address_of(&self, key: &AttachmentKey) -> Option<IpAddr> {
        self.allocations.get(key).map(|allocation| allocation.address)
    }
}
