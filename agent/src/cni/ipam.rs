//! `weave-ipam`: an address of the network for an interface that another plugin makes.
//!
//! The address comes from the same allocator as a pod's. Its record here says which network it was for, since
//! there is no link whose label could.

use weave_proto::local::cni::{Address, Allocate, Allocated, ErrorCode, Refusal, Release};

use super::del::Undo;
use super::records::Record;
use super::server::Asker;
use super::{Addresses, Cni, Ports, plan};

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// Gives out an address. Asked again for the same interface it gives the same.
    ///
    /// # Errors
    /// There is no address, or the interface is one of our own pods'. Then nothing is given out.
    pub async fn allocate(&self, allocate: &Allocate, asker: &Asker<'_>) -> Result<Allocated, Refusal> {
        let key = &allocate.key;
        let _lock = self.locks.lock(key).await;
        asker.must_wait_still()?;
        self.carry_out_tombstone_of(key).await?;
        let facts = self.ports.settled_facts().await.map_err(|why| Refusal::new(ErrorCode::TryAgain, why))?;
        plan::agree(&allocate.settings, &facts)?;
        let earlier = self.addresses.lookup(key.clone()).await?;
        if let Some(port) = earlier.as_ref().and_then(|allocation| allocation.port.as_ref()) {
            let msg = format!("{key} is a pod of weave-net, with address {}", port.address);
            return Err(Refusal::new(ErrorCode::AlreadyAttached, msg).with_details("DEL must come first"));
        }
        let (network, begun) = (allocate.network.clone(), allocate.begun.clone());
        let record = Record { key: key.clone(), network, begun, port: None };
        self.records.put(&record).map_err(|error| {
            Refusal::new(ErrorCode::Io, format!("cannot record the address of {key}: {error}"))
        })?;
        let given = match self.addresses.allocate(key.clone(), None).await {
            Ok(given) => asker.must_wait_still().map(|()| given),
            Err(error) => Err(error.into()),
        };
        match given {
            Ok(given) => {
                let (address, pod, netns) = (given.address, allocate.pod.as_deref(), &allocate.netns);
                tracing::info!(container = %key, %address, pod, netns, "ipalloc: gave an address to another plugin");
                let prefix = facts.universe.prefix();
                let address = Address { address: given.address, prefix, gateway: facts.address };
                Ok(Allocated { addresses: vec![address] })
            }
            Err(refusal) if earlier.is_some() => Err(refusal),
            Err(refusal) => {
                let undone = self.release_locked(key).await;
                Err(undone.map_or_else(
                    |second| refusal.clone().with_details(second.to_string()),
                    |()| refusal.clone(),
                ))
            }
        }
    }

    /// Takes an address back. Fine if there is none, and if there is one of a pod of our own, which only DEL frees.
    ///
    /// # Errors
    /// It could not be freed durably.
    pub async fn release(&self, release: &Release, asker: &Asker<'_>) -> Result<(), Refusal> {
        let _lock = self.locks.lock(&release.key).await;
        asker.must_wait_still()?;
        self.release_locked(&release.key).await
    }

    pub(super) async fn release_locked(
        &self,
        key: &weave_proto::local::cni::AttachmentKey,
    ) -> Result<(), Refusal> {
        let allocation = self.addresses.lookup(key.clone()).await?;
        if allocation.is_some_and(|allocation| allocation.port.is_some()) {
            return Ok(());
        }
        self.detach_locked(Undo { key, begun: &self.now(), hint: None }, None).await
    }
}
