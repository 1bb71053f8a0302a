//! The book of this peer's addresses: who has which, in memory and as changes for the store.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use weave_proto::local::cni::AttachmentKey;
use weave_proto::{Cidr, Span};

use crate::api::{Allocation, Freed, PortPlan, StoreOp};
use crate::space::Space;

/// Container ids of this form are the agent's own: a CNI container id cannot hold a colon.
const RESERVED: &str = "weave:";

/// Who has which address.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    space: Space,
    by_key: BTreeMap<AttachmentKey, Allocation>,
    by_address: BTreeMap<IpAddr, AttachmentKey>,
    /// Who holds an address that is another peer's now, until the container is gone.
    lost: BTreeMap<AttachmentKey, Allocation>,
    generation: u64,
    changes: Vec<StoreOp>,
}

impl Book {
    /// Empty.
    #[must_use]
    pub(crate) const fn new(universe: Cidr) -> Self {
        Self {
            space: Space::new(universe),
            by_key: BTreeMap::new(),
            by_address: BTreeMap::new(),
            lost: BTreeMap::new(),
            generation: 0,
            changes: Vec::new(),
        }
    }

    /// What the store held, for a peer that owns `own`. Freed addresses begin to rest anew, since nobody knows
    /// how long ago it was.
    ///
    /// # Errors
    /// Two allocations have one address, or one is not this peer's to give: then the offending one.
    pub(crate) fn restore(
        &mut self,
        own: Vec<Span>,
        allocations: Vec<Allocation>,
        mut freed: Vec<Freed>,
        now: Instant,
    ) -> Result<(), Box<Allocation>> {
        self.space.set_own(own);
        for allocation in allocations {
            if self.space.available(allocation.address).is_err() || self.by_key.contains_key(&allocation.key)
            {
                return Err(Box::new(allocation));
            }
            self.generation = self.generation.max(allocation.generation);
            self.enter(allocation);
        }
        freed.sort_by_key(|freed| freed.order);
        for Freed { address, order } in freed {
            self.generation = self.generation.max(order);
            if self.space.available(address).is_ok() && !self.space.rests(address) {
                self.space.release(address, order, now);
            }
        }
        Ok(())
    }

    /// Containers that held lost addresses when the store was last written.
    pub(crate) fn restore_lost(&mut self, lost: Vec<Allocation>) {
        self.lost.extend(lost.into_iter().map(|allocation| (allocation.key.clone(), allocation)));
    }

    /// The containers that hold lost addresses.
    pub(crate) fn lost(&self) -> impl Iterator<Item = &Allocation> {
        self.lost.values()
    }

    /// Numbers given so far are not given again.
    pub(crate) fn skip_generations(&mut self, up_to: u64) {
        self.generation = self.generation.max(up_to);
    }

    /// The addresses behind the book.
    #[must_use]
    pub(crate) const fn space(&self) -> &Space {
        &self.space
    }

    /// The key's allocation.
    #[must_use]
    pub(crate) fn find(&self, key: &AttachmentKey) -> Option<&Allocation> {
        self.by_key.get(key)
    }

    /// Who has the address.
    #[must_use]
    pub(crate) fn holder(&self, address: IpAddr) -> Option<&AttachmentKey> {
        self.by_address.get(&address)
    }

    /// Every allocation, in the order of keys.
    pub(crate) fn allocations(&self) -> impl ExactSizeIterator<Item = &Allocation> {
        self.by_key.values()
    }

    /// Gives `address`, which is available, to `key`.
    pub(crate) fn allocate(
        &mut self,
        key: AttachmentKey,
        address: IpAddr,
        port: Option<PortPlan>,
    ) -> Allocation {
        let port = port.map(|plan| plan.at(address));
        let allocation = Allocation { key, address, port, generation: self.next_generation() };
        if self.space.rests(address) {
            self.changes.push(StoreOp::DeleteFreed(address));
        }
        let holds_lost = |lost: &Allocation| lost.key == allocation.key;
        self.forget_lost(holds_lost);
        self.changes.push(StoreOp::PutAllocation(allocation.clone()));
        self.enter(allocation.clone());
        allocation
    }

    /// The key asks again: it keeps its address, with the new port if it brings one, under a new generation.
    pub(crate) fn renew(&mut self, key: &AttachmentKey, port: Option<PortPlan>) -> Option<Allocation> {
        self.by_key.get(key)?;
        let generation = self.next_generation();
        let allocation = self.by_key.get_mut(key)?;
        allocation.generation = generation;
        if let Some(plan) = port {
            allocation.port = Some(plan.at(allocation.address));
        }
        self.changes.push(StoreOp::PutAllocation(allocation.clone()));
        Some(allocation.clone())
    }

    /// Frees every allocation that is `meant`; its address begins to rest.
    pub(crate) fn free(&mut self, meant: impl Fn(&Allocation) -> bool, now: Instant) -> Vec<Allocation> {
        self.forget_lost(&meant);
        let freed: Vec<Allocation> =
            self.by_key.values().filter(|allocation| meant(allocation)).cloned().collect();
        for allocation in &freed {
            self.strike(allocation);
            let order = self.next_generation();
            let forgotten = self.space.release(allocation.address, order, now);
            if self.space.rests(allocation.address) {
                self.changes.push(StoreOp::PutFreed(Freed { address: allocation.address, order }));
            }
            self.changes.extend(forgotten.into_iter().map(StoreOp::DeleteFreed));
        }
        freed
    }

    /// The ranges have changed. Returns the allocations that are void now.
    pub(crate) fn set_own(&mut self, own: Vec<Span>, now: Instant) -> Vec<Allocation> {
        let forgotten = self.space.set_own(own);
        self.changes.extend(forgotten.into_iter().map(StoreOp::DeleteFreed));
        let lost: Vec<IpAddr> =
            self.by_address.keys().copied().filter(|address| !self.space.owns(*address)).collect();
        let gone = self.free(|allocation| lost.contains(&allocation.address), now);
        for allocation in gone.iter().filter(|allocation| !is_reserved(&allocation.key)) {
            self.lost.insert(allocation.key.clone(), allocation.clone());
            self.changes.push(StoreOp::PutLost(allocation.clone()));
        }
        gone
    }

    fn forget_lost(&mut self, meant: impl Fn(&Allocation) -> bool) {
        let gone: Vec<_> =
            self.lost.values().filter(|lost| meant(lost)).map(|lost| lost.key.clone()).collect();
        for key in gone {
            self.lost.remove(&key);
            self.changes.push(StoreOp::DeleteLost(key));
        }
    }

    /// `block` is about to be given away: what rests in it is forgotten.
    pub(crate) fn clear(&mut self, block: Cidr) {
        let forgotten = self.space.forget_within(block);
        self.changes.extend(forgotten.into_iter().map(StoreOp::DeleteFreed));
    }

    /// What has changed since the last call, for the store.
    pub(crate) fn take_changes(&mut self) -> Vec<StoreOp> {
        std::mem::take(&mut self.changes)
    }

    /// Panics where the book contradicts itself; for tests and debug builds.
    ///
    /// # Panics
    /// See above.
    pub(crate) fn check_invariants(&self) {
        assert_eq!(self.by_key.len(), self.by_address.len(), "every address has one holder");
        assert_eq!(self.space.taken(), self.by_address.len() as u128, "what is in the book is taken");
        for allocation in self.by_key.values() {
            assert_eq!(self.by_address.get(&allocation.address), Some(&allocation.key), "both indexes agree");
            assert!(self.space.owns(allocation.address), "{} is this peer's to give", allocation.address);
            assert!(allocation.generation <= self.generation, "generations are not given twice");
        }
    }

    fn enter(&mut self, allocation: Allocation) {
        self.space.take(allocation.address);
        self.by_address.insert(allocation.address, allocation.key.clone());
        self.by_key.insert(allocation.key.clone(), allocation);
    }

    fn strike(&mut self, allocation: &Allocation) {
        self.by_key.remove(&allocation.key);
        self.by_address.remove(&allocation.address);
        self.changes.push(StoreOp::DeleteAllocation(allocation.key.clone()));
    }

    fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.changes.push(StoreOp::PutGeneration(self.generation));
        self.generation
    }
}

/// Whether the key is the agent's own.
#[must_use]
pub(crate) fn is_reserved(key: &AttachmentKey) -> bool {
    key.container.starts_with(RESERVED)
}

#[cfg(test)]
mod tests;
