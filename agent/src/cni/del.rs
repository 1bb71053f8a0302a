//! DEL: the link, the guard, the record, the address, in this order; from whatever is left of them.
//!
//! The record says which link it was. Where there is no record any more, the link is found by the names that this
//! attachment can have had, and known by its label; and where the shim could pass the pod's namespace, from the
//! pod's side. All of that may be missing: then there is nothing to do, and that is success.

use weave_proto::local::cni::{AttachmentKey, Del, ErrorCode, Moment, PodPort, Refusal};

use super::netlink::{Netlink, NetlinkError};
use super::pod::{PodNetns, Seen, remove, see};
use super::server::Asker;
use super::{Addresses, Cni, Ports};

/// How many of an attachment's possible names are looked at when there is no record.
const NAMES_SEARCHED: u8 = 8;

/// What is to be undone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Undo<'a> {
    pub(super) key: &'a AttachmentKey,
    /// What began later stays.
    pub(super) begun: &'a Moment,
    /// A name that the host's end may have.
    pub(super) hint: Option<&'a str>,
}

/// What became of the link.
enum Unlinked {
    /// It is gone now.
    Gone,
    /// It belongs to a later ADD.
    Newer,
}

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// Detaches a pod.
    ///
    /// # Errors
    /// Something could not be taken away, and is still there: the runtime should come back.
    pub async fn del(&self, del: &Del, pod: Option<PodNetns>, asker: &Asker<'_>) -> Result<(), Refusal> {
        let _lock = self.locks.lock(&del.key).await;
        // Who has stopped waiting has left a tombstone.
        asker.must_wait_still()?;
        self.detach_locked(Undo { key: &del.key, begun: &del.begun, hint: None }, pod).await
    }

    /// Like [`Cni::del`] for nobody in particular.
    pub(super) async fn detach(&self, undo: Undo<'_>, pod: Option<PodNetns>) -> Result<(), Refusal> {
        let _lock = self.locks.lock(undo.key).await;
        self.detach_locked(undo, pod).await
    }

    pub(super) async fn detach_locked(&self, undo: Undo<'_>, pod: Option<PodNetns>) -> Result<(), Refusal> {
        let key = undo.key;
        let allocation = self.addresses.lookup(key.clone()).await?;
        let record = self.records.get(key);
        let recorded = allocation.as_ref().and_then(|allocation| allocation.port.clone());
        let port = recorded.or_else(|| record.as_ref()?.port.clone());
        let search = Search::new(undo, port.as_ref(), &self.boot);
        if let Unlinked::Newer =
            self.kernel(move |host| search.remove(host, pod)).await.map_err(Refusal::from)?
        {
            tracing::info!(container = %key, "a late DEL: the attachment is newer, and stays");
            return Ok(());
        }
        if let Some(port) = port {
            let name = port.host_interface.clone();
            let detached = self.ports.detach(port).await;
            detached
                .map_err(|why| Refusal::new(ErrorCode::Kernel, format!("port {name} of {key}: {why}")))?;
        }
        self.records.remove(key).map_err(|error| {
            Refusal::new(ErrorCode::Io, format!("cannot remove the record of {key}: {error}"))
        })?;
        match allocation {
            // The agent's own addresses are no container's to free.
            _ if key.is_reserved() => {}
            Some(allocation) => {
                self.addresses.free(key.clone(), Some(allocation.generation)).await?;
                tracing::info!(container = %key, address = %allocation.address, "ipalloc: address freed");
            }
            // The container may be known for an address that this node has lost.
            None => self.addresses.free(key.clone(), None).await?,
        }
        Ok(())
    }
}

/// Where a link may be found.
struct Search {
    key: AttachmentKey,
    begun: Moment,
    boot: String,
    names: Vec<String>,
}

impl Search {
    fn new(undo: Undo<'_>, port: Option<&PodPort>, boot: &str) -> Self {
        let key = undo.key.clone();
        let known = port.map(|port| port.host_interface.clone()).into_iter();
        let known = known.chain(undo.hint.map(str::to_owned));
        let mut names: Vec<String> = known.collect();
        if port.is_none() {
            names.extend((0..NAMES_SEARCHED).map(|attempt| key.host_interface(attempt)));
        }
        Self { key, begun: undo.begun.clone(), boot: boot.to_owned(), names }
    }

    fn remove(self, host: &Netlink, pod: Option<PodNetns>) -> Result<Unlinked, NetlinkError> {
        for name in &self.names {
            let Some(link) = see(host, name)?.filter(|link| link.is_host_end_of(&self.key)) else { continue };
            if self.is_newer(&link) {
                return Ok(Unlinked::Newer);
            }
            remove(host, &link)?;
            return Ok(Unlinked::Gone);
        }
        // Not on the node: moved away or renamed by somebody. The pod's end takes it along.
        if let Some(pod) = pod
            && let Some(link) = see(pod.netlink(), &self.key.interface)?
            && link.veth
            && link.mac == Some(self.key.pod_mac())
        {
            remove(pod.netlink(), &link)?;
        }
        Ok(Unlinked::Gone)
    }

    fn is_newer(&self, link: &Seen) -> bool {
        link.tag.as_ref().is_some_and(|tag| tag.is_after(&self.begun, &self.boot))
    }
}
