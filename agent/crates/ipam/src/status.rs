//! The status document: a view of the state, not a second copy.

use std::time::Instant;

use weave_proto::PeerName;
use weave_proto::local::status::{
    ACKNOWLEDGED, AllocationStatus, CLAIM, IpamStatus, RemovedStatus, RingEntryStatus, ShareStatus,
};
use weave_proto::peer::ipam::{Removal, Stance};

use crate::allocator::{Pending, Waiting};
use crate::api::Allocation;
use crate::ipam::Ipam;
use crate::reclaim::Electors;
use crate::waiting::WaitingFor;

impl Ipam {
    /// What `weave status ipam` prints. Nicknames are left out, since they are not known here.
    #[must_use]
    pub fn status(&self, now: Instant) -> IpamStatus {
        let (ready, state) = match self.obstacle() {
            None => (true, "ready".to_owned()),
            Some(obstacle) => (false, obstacle),
        };
        IpamStatus {
            state,
            ready,
            range: self.universe(),
            universe: self.universe_id(),
            shares: self.share_statuses(),
            entries: self.entry_statuses(),
            allocations: self.allocations().map(allocation_status).collect(),
            lost: self.lost().map(allocation_status).collect(),
            quarantined: self.space().quarantined(now) as u64,
            pending: self.waiting().map(|waiting| self.pending_line(waiting)).collect(),
            refused: self.refusals().lines(),
            removed: self.removed_statuses(),
        }
    }

    /// Why no address could be given out now, for people; none if one could, if need be from another peer.
    fn obstacle(&self) -> Option<String> {
        if let Some(heir) = self.removed() {
            return Some(crate::RequestError::Removed { heir }.to_string());
        }
        let somewhere = self.space().free() > 0 || self.donors().values().any(|donor| donor.free > 0);
        if self.universe_id().is_some() && somewhere {
            return None;
        }
        Some(self.waiting_for_address().to_string())
    }

    /// Own share first, then by name.
    fn share_statuses(&self) -> Vec<ShareStatus> {
        let mut shares: Vec<ShareStatus> = self
            .ranges()
            .into_iter()
            .map(|(peer, spans)| ShareStatus {
                peer,
                nickname: None,
                addresses: count(spans.iter().map(|span| span.len()).sum()),
                active: (peer == self.name()).then(|| self.allocations().len() as u64),
                reachable: self.reaches(peer),
            })
            .collect();
        shares.sort_by_key(|share| (share.peer != self.name(), share.peer));
        shares
    }

    fn entry_statuses(&self) -> Vec<RingEntryStatus> {
        let spans = self.ring().into_iter().flat_map(|ring| ring.spans());
        spans
            .map(|(span, entry)| RingEntryStatus { span, owner: entry.owner, version: entry.version })
            .collect()
    }

    fn pending_line(&self, waiting: &Waiting) -> String {
        let waiting_for = self.waiting_for(&waiting.pending);
        match &waiting.pending {
            Pending::Allocate { key, .. } => format!("address for {key}: {waiting_for}"),
            Pending::Claim { key, address } => format!("{CLAIM}{address} for {key}: {waiting_for}"),
            Pending::Remove { peer } => format!("removal of {peer}: {waiting_for}"),
        }
    }

    fn removed_statuses(&self) -> Vec<RemovedStatus> {
        let Some(reclaim) = self.reclaim() else { return Vec::new() };
        let owners = self.ring().map(|ring| ring.owners()).unwrap_or_default();
        let reachable = self.reachable();
        let electors = Electors { owners: &owners, reachable: &reachable };
        let status = |(&peer, removal): (&PeerName, &Removal)| match removal {
            Removal::Decided { heir } => {
                Some(RemovedStatus { peer, heir: *heir, state: ACKNOWLEDGED.to_owned() })
            }
            Removal::Pending(opinions) if opinions.values().all(|o| o.stance == Stance::Silent) => None,
            Removal::Pending(_) => {
                let heir = reclaim.likely_heir(peer)?;
                let state = reclaim.waiting_for(peer, electors).as_ref().map(WaitingFor::to_string)?;
                Some(RemovedStatus { peer, heir, state })
            }
        };
        reclaim.removals().iter().filter_map(status).collect()
    }
}

fn allocation_status(allocation: &Allocation) -> AllocationStatus {
    let port = allocation.port.as_ref();
    AllocationStatus {
        container: allocation.key.container.clone(),
        interface: allocation.key.interface.clone(),
        address: allocation.address,
        host_interface: port.map(|port| port.host_interface.clone()),
        mac: port.map(|port| mac_text(port.mac)),
        pod: port.and_then(|port| port.pod.clone()),
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A number of addresses as documents have it.
fn count(addresses: u128) -> u64 {
    u64::try_from(addresses).unwrap_or(u64::MAX)
}
