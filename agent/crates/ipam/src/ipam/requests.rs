//! What the node asks, and how it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use weave_proto::PeerName;
use weave_proto::local::cni::AttachmentKey;
use weave_proto::peer::IpamDirected;
use weave_proto::peer::ipam::Stance;

use super::{Ipam, Phase};
use crate::allocator::{Pending, Waiting};
use crate::api::{
    Allocation, Answer, ClaimConflict, Notice, Output, PortPlan, Request, RequestError, RequestId,
};
use crate::book;
use crate::donation::{Market, Quest, Seeker};
use crate::reclaim::Electors;
use crate::space::Unavailable;
use crate::waiting::WaitingFor;

impl Ipam {
    /// The node asks for something. The answer comes as [`Output::Reply`], at once or later.
    pub fn handle_request(&mut self, request: RequestId, asked: Request, now: Instant) {
        match asked {
            Request::Allocate { key, port } => self.queue.push(request, Pending::Allocate { key, port }, now),
            Request::Claim { key, address } => self.queue.push(request, Pending::Claim { key, address }, now),
            Request::Free { key, generation } => {
                let meant = |allocation: &Allocation| {
                    allocation.key == key && generation.is_none_or(|last| allocation.generation <= last)
                };
                if generation.is_none() {
                    self.give_up(|waiting| *waiting == key);
                }
                let freed = self.book.free(meant, now);
                self.reply(request, Ok(Answer::Freed(freed)));
            }
            Request::FreeContainer { container } => {
                self.give_up(|waiting| waiting.container == container);
                let freed = self.book.free(|allocation| allocation.key.container == container, now);
                self.reply(request, Ok(Answer::Freed(freed)));
            }
            Request::KeepOnly { valid } => {
                let kept = |key: &AttachmentKey| valid.contains(key) || book::is_reserved(key);
                let freed = self.book.free(|allocation| !kept(&allocation.key), now);
                self.reply(request, Ok(Answer::Freed(freed)));
            }
            Request::Lookup { key } => {
                let found = self.book.find(&key).cloned();
                self.reply(request, Ok(Answer::Found(found)));
            }
            Request::RemovePeer { peer, force } => self.remove_peer(request, peer, force, now),
        }
        self.drive(now);
    }

    /// The node does not wait for the answer any more. What was answered already stays as it is.
    pub fn handle_cancel(&mut self, request: RequestId, now: Instant) {
        self.queue.take(|waiting| waiting.request == request);
        self.drive(now);
    }

    pub(super) fn reply(&mut self, request: RequestId, result: Result<Answer, RequestError>) {
        self.outbox.say(Output::Reply { request, result });
    }

    /// Nobody needs an address for these keys any more.
    fn give_up(&mut self, meant: impl Fn(&AttachmentKey) -> bool) {
        for waiting in self.queue.take(|waiting| waiting.pending.key().is_some_and(&meant)) {
            if let Some(key) = waiting.pending.key().cloned() {
                self.reply(waiting.request, Err(RequestError::GivenUp(key)));
            }
        }
    }

    /// Answers every request that can be answered now, and asks others for what is missing.
    pub(super) fn serve(&mut self, now: Instant) {
        if let Some(heir) = self.removed() {
            for waiting in self.queue.take(|_| true) {
                self.reply(waiting.request, Err(RequestError::Removed { heir }));
            }
        }
        self.serve_known();
        if self.realm().is_none() {
            return;
        }
        for waiting in self.queue.take(|waiting| matches!(waiting.pending, Pending::Claim { .. })) {
            if let Pending::Claim { key, address } = waiting.pending {
                let result = self.claim(key, address);
                self.reply(waiting.request, result);
            }
        }
        while self.queue.wants_address()
            && let Some(address) = self.book.space().next_free(now)
        {
            self.allocate_first(address);
        }
        self.seek(now);
    }

    /// A key that has an address gets it again, in whatever phase the universe is.
    fn serve_known(&mut self) {
        let book = &self.book;
        let known = |waiting: &Waiting| match &waiting.pending {
            Pending::Allocate { key, .. } => book.find(key).is_some(),
            Pending::Claim { key, address } => book.find(key).is_some_and(|found| found.address == *address),
            Pending::Remove { .. } => false,
        };
        for waiting in self.queue.take(known) {
            let (key, port) = match waiting.pending {
                Pending::Allocate { key, port } => (key, port),
                Pending::Claim { key, .. } => (key, None),
                Pending::Remove { .. } => continue,
            };
            if let Some(allocation) = self.book.renew(&key, port) {
                self.reply(waiting.request, Ok(Answer::Allocated { allocation, fresh: false }));
            }
        }
    }

    /// Gives `address`, which is free, to whoever has waited longest.
    fn allocate_first(&mut self, address: IpAddr) {
        if let Some((request, key, port)) = self.queue.take_allocate() {
            let result = self.allocate(key, address, port);
            self.reply(request, Ok(result));
            // The same key may have been asked for twice before there was an address.
            self.serve_known();
        }
    }

    fn allocate(&mut self, key: AttachmentKey, address: IpAddr, port: Option<PortPlan>) -> Answer {
        Answer::Allocated { allocation: self.book.allocate(key, address, port), fresh: true }
    }

    fn claim(&mut self, key: AttachmentKey, address: IpAddr) -> Result<Answer, RequestError> {
        let range = self.config.universe;
        let reason = match self.book.find(&key) {
            Some(found) => ClaimConflict::HasAnother(found.address),
            None if !range.contains(address) => ClaimConflict::Outside(range),
            None => match self.book.space().available(address) {
                Ok(()) => return Ok(self.allocate(key, address, None)),
                Err(Unavailable::Reserved) => ClaimConflict::Reserved(range),
                Err(Unavailable::Taken) => {
                    ClaimConflict::Held(self.book.holder(address).cloned().unwrap_or_else(|| key.clone()))
                }
                Err(Unavailable::Foreign) => {
                    let owner = self.realm().and_then(|realm| realm.ring.owner_of(address));
                    ClaimConflict::Foreign(owner.unwrap_or(self.config.me))
                }
            },
        };
        Err(RequestError::Conflict { key, address, reason })
    }

    /// Sees that this peer comes by the space it needs.
    fn seek(&mut self, now: Instant) {
        let Some(universe) = self.universe_id().filter(|_| self.removed().is_none()) else {
            // Who was removed seeks nothing, and waits for no donor that was asked before.
            self.seeker = Seeker::default();
            return;
        };
        let donors = self.donors();
        loop {
            let market = Market {
                donors: &donors,
                owned: self.book.space().owned(),
                need: self.queue.wants_address(),
                has_resting: self.book.space().oldest().is_some(),
            };
            match self.seeker.next(&market, &mut self.rng, now) {
                Quest::Wait => return,
                Quest::Ask { donor, token, want } => {
                    let body = IpamDirected::SpaceRequest { token, universe, want };
                    self.outbox.say(Output::Directed { to: donor, body });
                    return;
                }
                Quest::CutQuarantine => {
                    let Some(address) = self.book.space().oldest() else { return };
                    self.outbox.say(Output::Notify(Notice::QuarantineCut(address)));
                    self.allocate_first(address);
                }
            }
        }
    }

    /// Fails every request that has run out of patience.
    pub(super) fn expire(&mut self, now: Instant) {
        for waiting in self.queue.take(|waiting| waiting.until <= now) {
            let error = self.expiry(&waiting.pending);
            self.reply(waiting.request, Err(error));
        }
    }

    fn expiry(&self, pending: &Pending) -> RequestError {
        let object = match pending {
            Pending::Allocate { key, .. } | Pending::Claim { key, .. } => key.to_string(),
            Pending::Remove { peer } => format!("the removal of {peer}"),
        };
        let waiting_for = self.waiting_for(pending);
        match (&self.phase, pending) {
            (Phase::Electing(_), _) => RequestError::NotReady { object, waiting_for },
            (Phase::Founded(_), Pending::Remove { .. }) => RequestError::TimedOut { object, waiting_for },
            (Phase::Founded(_), Pending::Allocate { .. } | Pending::Claim { .. }) => {
                if self.seeker.asked().is_some() {
                    RequestError::TimedOut { object: format!("an address for {object}"), waiting_for }
                } else {
                    RequestError::NoSpace { object, waiting_for }
                }
            }
        }
    }

    /// What a request waits for.
    pub(crate) fn waiting_for(&self, pending: &Pending) -> WaitingFor {
        match pending {
            Pending::Remove { peer } => self.waiting_for_removal(*peer),
            Pending::Allocate { .. } | Pending::Claim { .. } => self.waiting_for_address(),
        }
    }

    /// What stands between this peer and the next address.
    pub(crate) fn waiting_for_address(&self) -> WaitingFor {
        match (&self.phase, self.seeker.asked()) {
            (Phase::Electing(election), _) => election.waiting_for(&self.reachable()),
            (Phase::Founded(_), Some(donor)) => WaitingFor::Donor(donor),
            (Phase::Founded(_), None) => WaitingFor::Space { unreachable: self.owners_out_of_reach() },
        }
    }

    fn waiting_for_removal(&self, peer: PeerName) -> WaitingFor {
        let (owners, reachable) =
            (self.ring().map(|ring| ring.owners()).unwrap_or_default(), self.reachable());
        let electors = Electors { owners: &owners, reachable: &reachable };
        let waiting_for = self.reclaim().and_then(|reclaim| reclaim.waiting_for(peer, electors));
        waiting_for.unwrap_or(WaitingFor::Ring)
    }

    fn owners_out_of_reach(&self) -> BTreeSet<PeerName> {
        let owners = self.realm().map(|realm| realm.ring.owners()).unwrap_or_default();
        owners.into_iter().filter(|owner| !self.reaches(*owner)).collect()
    }

    fn remove_peer(&mut self, request: RequestId, peer: PeerName, force: bool, now: Instant) {
        let me = self.config.me;
        let alive = self.peers.contains_key(&peer);
        let refused = match &mut self.phase {
            _ if peer == me => Some(RequestError::RemovesItself(peer)),
            Phase::Electing(_) => Some(RequestError::OwnsNothing(peer)),
            Phase::Founded(realm) if realm.reclaim.is_removed(peer) => None,
            Phase::Founded(_) if alive && !force => Some(RequestError::StillAlive(peer)),
            Phase::Founded(realm) if !realm.ring.owners().contains(&peer) => {
                Some(RequestError::OwnsNothing(peer))
            }
            Phase::Founded(realm) => {
                realm.reclaim.ask(peer, if force { Stance::Insists } else { Stance::Asks });
                self.outbox.state_changed();
                None
            }
        };
        match refused {
            Some(error) => self.reply(request, Err(error)),
            None => self.queue.push(request, Pending::Remove { peer }, now),
        }
    }

    /// Answers those who waited for a removal that is decided now.
    pub(super) fn answer_removals(&mut self, gained: &BTreeMap<PeerName, u128>) {
        let Phase::Founded(realm) = &self.phase else { return };
        let reclaim = &realm.reclaim;
        let heir_of = |waiting: &Waiting| match &waiting.pending {
            Pending::Remove { peer } => reclaim.heir_of(*peer).map(|heir| (*peer, heir)),
            Pending::Allocate { .. } | Pending::Claim { .. } => None,
        };
        let decided = self.queue.take(|waiting| heir_of(waiting).is_some());
        let answers: Vec<_> = decided.iter().filter_map(|w| Some((w.request, heir_of(w)?))).collect();
        for (request, (peer, heir)) in answers {
            let addresses = gained.get(&peer).map_or(0, |count| u64::try_from(*count).unwrap_or(u64::MAX));
            self.reply(request, Ok(Answer::Removed { heir, addresses }));
        }
    }

    /// Answers those who wanted a peer removed that was seen again.
    pub(super) fn answer_still_alive(&mut self, peer: PeerName) {
        let meant = |waiting: &Waiting| waiting.pending == Pending::Remove { peer };
        for waiting in self.queue.take(meant) {
            self.reply(waiting.request, Err(RequestError::StillAlive(peer)));
        }
    }
}
