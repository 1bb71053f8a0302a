//! What other peers say.

use std::collections::BTreeMap;
use std::time::Instant;

use weave_proto::PeerName;
use weave_proto::peer::ipam::{Candidacy, Founded, IpamPhase, IpamState, Want};
use weave_proto::peer::{IpamDirected, UniverseId};

use super::{Ipam, Phase, Realm, Served};
use crate::api::{Notice, Output};
use crate::donation::{self, Donor};
use crate::hash;
use crate::refusal::{RejectedUpdate, Rejection};

impl Ipam {
    /// What `from` knows, or repeats.
    ///
    /// # Errors
    /// It cannot be true together with what this peer knows. Then the part of it that cannot is ignored, which
    /// for a ring is all of it. The refusal is counted and shown in the status; it is no reason to close a
    /// connection.
    pub fn handle_gossip(
        &mut self,
        from: PeerName,
        state: IpamState,
        now: Instant,
    ) -> Result<(), RejectedUpdate> {
        let heard = self.hear(from, state, now);
        self.drive(now);
        heard.map_err(|reason| self.refuse(from, reason))
    }

    /// What `from` says to this peer alone.
    ///
    /// # Errors
    /// As [`handle_gossip`](Self::handle_gossip).
    pub fn handle_directed(
        &mut self,
        from: PeerName,
        body: IpamDirected,
        now: Instant,
    ) -> Result<(), RejectedUpdate> {
        let heard = match body {
            IpamDirected::SpaceRequest { token, universe, want } => {
                self.hear_request(from, token, (universe, want), now)
            }
            IpamDirected::SpaceGranted { state, .. } => {
                let heard = self.hear(from, *state, now);
                self.outbox.leave_untaught(from);
                heard
            }
            IpamDirected::SpaceDenied { token } => {
                self.seeker.on_denied(from, token, now);
                Ok(())
            }
        };
        self.drive(now);
        heard.map_err(|reason| self.refuse(from, reason))
    }

    pub(super) fn refuse(&mut self, from: PeerName, reason: Rejection) -> RejectedUpdate {
        let rejected = RejectedUpdate { from, reason };
        self.refusals.count(&rejected);
        rejected
    }

    fn hear(&mut self, from: PeerName, state: IpamState, now: Instant) -> Result<(), Rejection> {
        if state.universe != self.config.universe {
            return Err(Rejection::Range { theirs: state.universe, ours: self.config.universe });
        }
        match (&self.phase, state.phase) {
            (Phase::Electing(_), IpamPhase::Electing(theirs)) => self.hear_candidacies(from, theirs),
            (Phase::Founded(_), IpamPhase::Electing(_)) => {
                self.outbox.teach(from);
                Ok(())
            }
            (Phase::Electing(_), IpamPhase::Founded(founded)) => {
                let realm = Realm::of_founded(self.config.me, self.config.universe, *founded)?;
                self.outbox.learned(from);
                self.enter(realm, now);
                Ok(())
            }
            (Phase::Founded(_), IpamPhase::Founded(founded)) => self.hear_founded(from, *founded, now),
        }
    }

    fn hear_candidacies(
        &mut self,
        from: PeerName,
        theirs: BTreeMap<PeerName, Candidacy>,
    ) -> Result<(), Rejection> {
        let Phase::Electing(election) = &mut self.phase else { return Ok(()) };
        let heard = election.hear(theirs);
        let ours = election.expected();
        if heard.learns {
            self.outbox.learned(from);
        }
        if heard.teaches {
            self.outbox.teach(from);
        }
        if heard.forgotten {
            return Err(Rejection::Forgotten);
        }
        if heard.crowded {
            return Err(Rejection::Crowded);
        }
        match (heard.differing.first_key_value(), ours) {
            (Some((peer, theirs)), Some(ours)) => {
                Err(Rejection::Founders { peer: *peer, theirs: *theirs, ours })
            }
            (Some(_) | None, _) => Ok(()),
        }
    }

    fn hear_founded(&mut self, from: PeerName, founded: Founded, now: Instant) -> Result<(), Rejection> {
        let (me, universe) = (self.config.me, self.config.universe);
        let before = self.own_ranges();
        let Phase::Founded(ours) = &mut self.phase else { return Ok(()) };
        let (our_id, their_id) = (ours.id(universe), hash::universe_id(universe, &founded.founding));
        if our_id != their_id {
            return Err(Rejection::Universe { theirs: their_id, ours: our_id });
        }
        let theirs = Realm::of_founded(me, universe, founded)?;
        let merged = ours.ring.merge(&theirs.ring, me)?;
        let (learns, teaches) = ours.reclaim.hear(theirs.reclaim.removals().clone());
        ours.ring = merged.ring;
        if learns || merged.learns {
            self.outbox.learned(from);
            self.on_ring_changed(before, now);
        }
        if teaches || merged.teaches {
            self.outbox.teach(from);
        }
        Ok(())
    }

    /// Somebody asks for space: it gets some or a denial, at once.
    fn hear_request(
        &mut self,
        from: PeerName,
        token: u64,
        (universe, want): (UniverseId, Want),
        now: Instant,
    ) -> Result<(), Rejection> {
        let denied = Output::Directed { to: from, body: IpamDirected::SpaceDenied { token } };
        let Some(ours) = self.universe_id() else {
            self.outbox.say(denied);
            return Ok(());
        };
        if ours != universe {
            self.outbox.say(denied);
            return Err(Rejection::Universe { theirs: universe, ours });
        }
        let granted = match self.served.get(&from) {
            Some(served) if served.token == token => served.granted,
            Some(_) | None => self.give(from, want, now),
        };
        self.served.insert(from, Served { token, granted });
        let state = Box::new(self.state());
        self.outbox.say(match granted {
            true => Output::Directed { to: from, body: IpamDirected::SpaceGranted { token, state } },
            false => denied,
        });
        Ok(())
    }

    /// Gives `to` part of this peer's space, if it can. Returns whether it did.
    fn give(&mut self, to: PeerName, want: Want, now: Instant) -> bool {
        let me = self.config.me;
        let before = self.own_ranges();
        let needs_itself = self.queue.wants_address();
        let Phase::Founded(realm) = &mut self.phase else { return false };
        if needs_itself || to == me || realm.reclaim.is_removed(to) || realm.reclaim.is_removed(me) {
            return false;
        }
        let Some(block) = donation::gift(self.book.space(), want, now) else { return false };
        if realm.ring.grant(block, me, to).is_err() {
            return false;
        }
        self.book.clear(block);
        self.outbox.state_changed();
        self.outbox.say(Output::Notify(Notice::Gave { block, to }));
        self.on_ring_changed(before, now);
        true
    }

    /// The reachable owners, and what they could give.
    pub(crate) fn donors(&self) -> BTreeMap<PeerName, Donor> {
        let Some(realm) = self.realm() else { return BTreeMap::new() };
        let sizes = realm.ring.sizes();
        let donor = |(peer, facts): (&PeerName, &super::PeerFacts)| {
            let owned = sizes.get(peer).copied().filter(|_| !realm.reclaim.is_removed(*peer))?;
            Some((*peer, Donor { owned, free: facts.free }))
        };
        self.peers.iter().filter_map(donor).collect()
    }
}
