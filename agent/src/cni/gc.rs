//! GC, and the sweep at start: what no container holds is taken back.
//!
//! GC brings a list of what the runtime still has *of one network*. A node may have several networks on this
//! mesh, each with its own runtime, so that whatever belongs to another one, or to none that we can tell, is left
//! alone: a link says in its label whose network it is, and an address without a link has a record.
//!
//! The sweep has no list. It takes back the addresses of pods whose links are gone: after a reboot that is all
//! of them. A pod whose link is there keeps it, whatever became of the path of its namespace, since the agent may
//! not see the path from where it runs.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use weave_proto::local::cni::{AttachmentKey, Gc, Moment, Refusal};

use super::del::Undo;
use super::pod::{Seen, tagged_links};
use super::records::Record;
use super::{Addresses, Allocation, Cni, Ports};

/// How many attachments are taken back at once.
const AT_ONCE: usize = 16;

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// Takes back what no container of the network holds. Goes on over errors.
    ///
    /// # Errors
    /// The first of them.
    pub async fn gc(&self, gc: &Gc) -> Result<(), Refusal> {
        let valid: BTreeSet<_> = gc.valid.iter().cloned().collect();
        let stale = self.pods(|key, link| match link {
            _ if valid.contains(key) => false,
            Some(link) => link.tag.as_ref().is_some_and(|tag| tag.is_of(&gc.network)),
            None => true,
        });
        let mut stale = stale.await?;
        stale.extend(self.unrecorded_links(gc).await?);
        self.take_back_all(stale, &gc.begun).await
    }

    /// Takes back addresses that `weave-ipam` gave out in this network and no container holds.
    ///
    /// # Errors
    /// The first of them.
    pub async fn prune(&self, gc: &Gc) -> Result<(), Refusal> {
        let valid: BTreeSet<_> = gc.valid.iter().cloned().collect();
        let is_stale = |record: &Record| {
            let later = record.begun.is_after(&gc.begun);
            record.port.is_none() && record.network == gc.network && !valid.contains(&record.key) && !later
        };
        let records = self.records.list().into_iter();
        self.take_back_all(records.filter(is_stale).map(|record| record.key), &gc.begun).await
    }

    /// The sweep before the socket opens: the addresses of pods whose links are gone, and of other plugins'
    /// interfaces that a reboot has taken. Goes on over errors.
    pub async fn sweep(&self) {
        let gone = match self.pods(|_, link| link.is_none()).await {
            Ok(gone) => gone,
            Err(error) => {
                tracing::warn!(%error, "ipalloc: could not look for addresses that no container holds");
                return;
            }
        };
        let records = self.records.list().into_iter();
        let rebooted = records.filter(|record| record.port.is_none() && record.begun.boot != self.boot);
        let stale: BTreeSet<_> = gone.into_iter().chain(rebooted.map(|record| record.key)).collect();
        if stale.is_empty() {
            return;
        }
        let count = stale.len();
        match self.take_back_all(stale, &self.now()).await {
            Ok(()) => tracing::info!(count, "ipalloc: freed addresses that no container holds"),
            Err(error) => {
                tracing::warn!(count, %error, "ipalloc: could not free all addresses that no container holds")
            }
        }
    }

    /// The attachments with a port that `choose` chooses by their key and link.
    async fn pods(
        &self,
        choose: impl Fn(&AttachmentKey, Option<&Seen>) -> bool,
    ) -> Result<BTreeSet<AttachmentKey>, Refusal> {
        // First what is recorded, then the links: what is being added meanwhile is not in the first list.
        let allocations = self.addresses.list().await?;
        let has_port = |allocation: &Allocation| allocation.port.is_some() && !allocation.key.is_reserved();
        let keys = allocations.into_iter().filter(has_port).map(|allocation| allocation.key);
        let records = self.records.list().into_iter().filter(|record| record.port.is_some());
        let keys: BTreeSet<_> = keys.chain(records.map(|record| record.key)).collect();
        let links = self.kernel(tagged_links).await.map_err(Refusal::from)?;
        Ok(keys
            .into_iter()
            .filter(|key| choose(key, links.iter().find(|link| link.is_host_end_of(key))))
            .collect())
    }

    /// Links of the network that are neither in the list nor in any record: of an ADD that was cut short by a
    /// crash, or from before the store was lost.
    async fn unrecorded_links(&self, gc: &Gc) -> Result<Vec<AttachmentKey>, Refusal> {
        let links = self.kernel(tagged_links).await.map_err(Refusal::from)?;
        let labels: BTreeSet<_> = gc.valid.iter().map(AttachmentKey::label).collect();
        let tags = links.iter().filter_map(|link| link.tag.as_ref());
        let stale = tags.filter(|tag| tag.is_of(&gc.network) && !tag.is_among(&labels));
        Ok(stale.filter_map(super::pod::Tag::key).collect())
    }

    async fn take_back_all(
        &self,
        keys: impl IntoIterator<Item = AttachmentKey>,
        begun: &Moment,
    ) -> Result<(), Refusal> {
        let keys: Vec<_> = keys.into_iter().collect();
        let mut failures = Vec::new();
        for some in keys.chunks(AT_ONCE) {
            let all = some.iter().map(|key| self.detach(Undo { key, begun, hint: None }, None));
            failures.extend(join_all(all).await.into_iter().filter_map(Result::err));
        }
        let others = failures.len().saturating_sub(1);
        match failures.into_iter().next() {
            None => Ok(()),
            Some(first) if others == 0 => Err(first),
            Some(first) => {
                let details = format!("{} and {others} others could not be taken back", first.details);
                Err(first.with_details(details.trim_start()))
            }
        }
    }
}
