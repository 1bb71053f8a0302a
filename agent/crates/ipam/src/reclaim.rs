//! How the ranges of a peer that is gone for good come to another.
//!
//! `weave rmpeer` marks the peer as gone; the asking peer proposes itself as heir; the other owners acknowledge
//! by voting, durably; once a majority has acknowledged one heir the removal is *decided*, the heir writes itself
//! into the ring in the place of the removed peer and allocates from there. Until then nobody does.
//!
//! * **Two heirs at once** are two proposals in one Paxos instance, one instance a removed peer: one of them is
//!   chosen, and both learn which.
//! * **Who has a say**: the owners of ranges, except those which are removed or which some operator has marked
//!   as gone. So a majority of the peers that are not given up is needed; a minority cut off from the others
//!   cannot take their ranges, and when most peers of a mesh are gone for good, marking them all lets the rest
//!   decide. An owner does not accept a proposal that leaves out an owner it knows of, which keeps a proposer
//!   with an old ring from counting the wrong majority.
//! * **A living peer** is not removed by accident: a mark without force is withdrawn when its peer is seen, and
//!   nobody acknowledges the removal of a peer it can reach.
//! * **A removed peer that returns** finds its tombstone in the first state it hears, gives up its ranges, and
//!   reports the allocations it has lost. It was removed as the peer it was, for ever: its agent starts again as a new
//!   peer, which knows the ring and owns nothing of it.
//! * **What it gave away unseen**, to a peer that no voter could hear either, comes to the heir all the same: the
//!   heir's era overrides it. When the two sides meet, the peer that was given it gives it up and reports what it
//!   has lost. This is what is left of the risk of declaring a peer dead in a mesh that is cut in two; a gift that
//!   any voter knows of is respected.
//! * **An heir that is removed** in turn passes on what it inherited: [`Reclaim::heir_of`] follows the line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::Rng;
use weave_proto::PeerName;
use weave_proto::peer::ipam::{Inheritance, MAX_VOTERS, Opinion, Removal, Stance, Vote};

use crate::election::acceptor;
use crate::election::ballot::majority;
use crate::election::proposer::{self, Proposer};
use crate::waiting::WaitingFor;

/// How long a peer that was asked to remove another listens before it proposes itself as heir. It may have
/// started a moment ago: who is there now tells it by then to whom the removed peer has given space.
pub const HEARING: Duration = Duration::from_secs(2);

/// All removals of a universe, and this peer's part in them.
#[derive(Debug, Clone)]
pub struct Reclaim {
    me: PeerName,
    removals: BTreeMap<PeerName, Removal>,
    proposers: BTreeMap<PeerName, Proposer>,
}

/// Who is there to vote.
#[derive(Debug, Clone, Copy)]
pub struct Electors<'a> {
    /// Everybody who owns something.
    pub owners: &'a BTreeSet<PeerName>,
    /// Everybody who can be reached.
    pub reachable: &'a BTreeSet<PeerName>,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// This peer's opinions or decisions have changed: to be made durable and told.
    pub changed: bool,
    /// Removals decided just now, with their heirs.
    pub decided: Vec<(PeerName, PeerName)>,
    /// Removals that this peer has asked for and does not any more, since the peer was seen.
    pub withdrawn: Vec<PeerName>,
}

impl Reclaim {
    /// As it was when the store was last written, or was heard first.
    #[must_use]
    pub const fn new(me: PeerName, removals: BTreeMap<PeerName, Removal>) -> Self {
        Self { me, removals, proposers: BTreeMap::new() }
    }

    /// What is to be told and to be made durable.
    #[must_use]
    pub const fn removals(&self) -> &BTreeMap<PeerName, Removal> {
        &self.removals
    }

    /// Whether `peer` has been removed for good.
    #[must_use]
    pub fn is_removed(&self, peer: PeerName) -> bool {
        self.next_heir(peer).is_some()
    }

    /// Who has what the removed `peer` had: its heir, or if that was removed too, the heir's heir. None if it was
    /// not removed, or if removed peers name each other, which takes two halves of a mesh that removed each
    /// other by force.
    #[must_use]
    pub fn heir_of(&self, peer: PeerName) -> Option<PeerName> {
        let mut heir = self.next_heir(peer)?;
        for _ in 0..self.removals.len() {
            match self.next_heir(heir) {
                Some(next) => heir = next,
                None => return Some(heir),
            }
        }
        None
    }

    fn next_heir(&self, peer: PeerName) -> Option<PeerName> {
        match self.removals.get(&peer)? {
            Removal::Decided { heir } => Some(*heir),
            Removal::Pending(_) => None,
        }
    }

    /// This peer's operator wants `peer` removed.
    pub fn ask(&mut self, peer: PeerName, stance: Stance) {
        let removal = self.removals.entry(peer).or_insert_with(|| Removal::Pending(BTreeMap::new()));
        if let Removal::Pending(opinions) = removal {
            let mine = opinions.entry(self.me).or_insert_with(silent);
            if mine.stance < stance {
                mine.stance = stance;
                mine.version = mine.version.saturating_add(1);
            }
        }
    }

    /// Merges what somebody else knows. Returns whether something was new, and whether something is newer here.
    pub fn hear(&mut self, theirs: BTreeMap<PeerName, Removal>) -> (bool, bool) {
        let mut learns = false;
        let mut teaches = self.removals.keys().any(|peer| !theirs.contains_key(peer));
        for (peer, removal) in theirs {
            let crowded = self.removals.len() >= MAX_VOTERS;
            if let Some(known) = self.removals.get_mut(&peer) {
                let (learned, taught) = merge(known, removal);
                learns |= learned;
                teaches |= taught;
            } else if !crowded {
                self.removals.insert(peer, removal);
                learns = true;
            }
        }
        (learns, teaches)
    }

    /// Does whatever can be done now.
    pub fn step(&mut self, electors: Electors<'_>, rng: &mut impl Rng, now: Instant) -> Step {
        let mut step = Step::default();
        for peer in self.pending() {
            let outcome = self.step_one(peer, electors, rng, now);
            step.changed |= outcome.changed;
            step.decided.extend(outcome.decided);
            step.withdrawn.extend(outcome.withdrawn);
        }
        step
    }

    fn step_one(&mut self, peer: PeerName, electors: Electors<'_>, rng: &mut impl Rng, now: Instant) -> Step {
        let mut step = Step::default();
        let voters = self.voters(peer, electors.owners);
        let me = self.me;
        let stays_out = peer == me || self.is_removed(me);
        let Some(Removal::Pending(opinions)) = self.removals.get_mut(&peer) else { return step };
        let alive = electors.reachable.contains(&peer);
        let mut mine = opinions.get(&me).cloned().unwrap_or_else(silent);
        if alive && mine.stance == Stance::Asks {
            mine.stance = Stance::Silent;
            step.withdrawn.push(peer);
        }
        let wanted = opinions.iter().filter(|(voter, _)| **voter != me).map(|(_, opinion)| opinion.stance);
        let wanted =
            wanted.chain([mine.stance]).max() >= Some(if alive { Stance::Insists } else { Stance::Asks });
        if !stays_out && wanted {
            let proposer = self.proposers.entry(peer).or_default();
            let ballot = Ballot { me, voters: &voters, opinions, reachable: electors.reachable };
            ballot.vote(&mut mine, proposer, rng, now);
        }
        let unheard = silent();
        if *opinions.get(&me).unwrap_or(&unheard) != mine {
            mine.version = mine.version.saturating_add(1);
            opinions.insert(me, mine);
            step.changed = true;
        }
        let votes = opinions.iter().map(|(voter, opinion)| (*voter, &opinion.vote)).collect();
        if let Some(Inheritance { heir, .. }) = proposer::chosen(&votes, |value| &value.electors) {
            self.removals.insert(peer, Removal::Decided { heir });
            self.proposers.remove(&peer);
            step.changed = true;
            step.decided.push((peer, heir));
        }
        step
    }

    /// The removals that are not decided.
    fn pending(&self) -> Vec<PeerName> {
        let pending = self.removals.iter().filter(|(_, removal)| matches!(removal, Removal::Pending(_)));
        pending.map(|(peer, _)| *peer).collect()
    }

    /// Who decides about `peer`: the owners that nobody has given up, or this peer if there are none.
    fn voters(&self, peer: PeerName, owners: &BTreeSet<PeerName>) -> BTreeSet<PeerName> {
        let given_up = |owner: &PeerName| match self.removals.get(owner) {
            Some(Removal::Decided { .. }) => true,
            Some(Removal::Pending(opinions)) => {
                opinions.values().any(|opinion| opinion.stance != Stance::Silent)
            }
            None => false,
        };
        let voters: BTreeSet<PeerName> =
            owners.iter().copied().filter(|owner| *owner != peer && !given_up(owner)).collect();
        if voters.is_empty() { BTreeSet::from([self.me]) } else { voters }
    }

    /// When [`step`](Self::step) is to be called again without news.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        self.proposers.values().filter_map(Proposer::deadline).filter(|deadline| *deadline > now).min()
    }

    /// What stands between `peer` and its removal; none if it is decided, or if nobody asks for it.
    #[must_use]
    pub fn waiting_for(&self, peer: PeerName, electors: Electors<'_>) -> Option<WaitingFor> {
        let Removal::Pending(opinions) = self.removals.get(&peer)? else { return None };
        if opinions.values().all(|opinion| opinion.stance == Stance::Silent) {
            return None;
        }
        let voters = self.voters(peer, electors.owners);
        // This peer acknowledges as soon as enough others have promised to listen.
        let acknowledged = |voter: &PeerName| {
            *voter == self.me || opinions.get(voter).is_some_and(|o| o.vote.accepted.is_some())
        };
        let missing =
            majority(voters.len()).saturating_sub(voters.iter().filter(|v| acknowledged(v)).count());
        let out_of_reach = |voter: &PeerName| !electors.reachable.contains(voter);
        let unreachable = voters.iter().copied().filter(|v| out_of_reach(v) && !acknowledged(v)).collect();
        Some(WaitingFor::Acknowledgements { missing: missing.max(1), unreachable })
    }

    /// Who would inherit if the pending removal of `peer` went through now.
    #[must_use]
    pub fn likely_heir(&self, peer: PeerName) -> Option<PeerName> {
        let Removal::Pending(opinions) = self.removals.get(&peer)? else { return None };
        let accepted = opinions.values().filter_map(|opinion| opinion.vote.accepted.as_ref());
        let proposed = accepted.max_by(acceptor::by_ballot).map(|accepted| accepted.value.heir);
        let asking = opinions.iter().find(|(_, opinion)| opinion.stance != Stance::Silent);
        proposed.or_else(|| asking.map(|(voter, _)| *voter))
    }
}

/// One removal as seen by a voter that takes part.
struct Ballot<'a> {
    me: PeerName,
    voters: &'a BTreeSet<PeerName>,
    opinions: &'a BTreeMap<PeerName, Opinion>,
    reachable: &'a BTreeSet<PeerName>,
}

impl Ballot<'_> {
    /// Promises and accepts; proposes itself if it was asked to have the peer removed.
    fn vote(&self, mine: &mut Opinion, proposer: &mut Proposer, rng: &mut impl Rng, now: Instant) {
        let others = || self.opinions.iter().filter(|(voter, _)| **voter != self.me);
        let votes = others().map(|(_, opinion)| &opinion.vote);
        let counts_all = |value: &Inheritance| value.electors.is_superset(self.voters);
        if acceptor::follow(&mut mine.vote, votes.clone(), counts_all) {
            proposer.yield_to_others(rng, now);
        }
        if mine.stance == Stance::Silent {
            return;
        }
        let quorum = majority(self.voters.len());
        let present = self.voters.iter().filter(|v| **v == self.me || self.reachable.contains(v)).count();
        if present >= quorum
            && (proposer.is_due(self.me, &mine.vote, HEARING, now) || self.is_outdated(&mine.vote))
        {
            proposer::open_ballot(&mut mine.vote, self.me);
        }
        let voting =
            others().filter(|(voter, _)| self.voters.contains(voter)).map(|(_, opinion)| &opinion.vote);
        let needed = quorum - usize::from(self.voters.contains(&self.me));
        if proposer::has_quorum(&mine.vote, self.me, voting, needed) {
            proposer::propose(&mut mine.vote, votes, |earlier| Inheritance {
                heir: earlier.map_or(self.me, |earlier| earlier.heir),
                electors: self.voters.clone(),
            });
        }
    }

    /// Whether my own proposal counts other voters than there are now, so that it may never be decided.
    fn is_outdated(&self, vote: &Vote<Inheritance>) -> bool {
        vote.accepted.as_ref().is_some_and(|accepted| {
            vote.promised == Some(accepted.ballot)
                && accepted.ballot.proposer == self.me
                && accepted.value.electors != *self.voters
        })
    }
}

fn silent() -> Opinion {
    Opinion { version: 0, stance: Stance::Silent, vote: Vote::default() }
}

/// Two views of one removal become one. Returns whether something was new, and whether something is newer here.
fn merge(known: &mut Removal, theirs: Removal) -> (bool, bool) {
    match (&mut *known, theirs) {
        (Removal::Decided { heir: ours }, Removal::Decided { heir: theirs }) => {
            // Two decisions take two halves of a mesh that each gave up the other by force. The ring's eras are
            // ordered by heir too, so that both agree on the winner.
            let (learns, teaches) = (*ours < theirs, *ours > theirs);
            *ours = theirs.max(*ours);
            (learns, teaches)
        }
        (Removal::Decided { .. }, Removal::Pending(_)) => (false, true),
        (Removal::Pending(_), Removal::Decided { heir }) => {
            *known = Removal::Decided { heir };
            (true, false)
        }
        (Removal::Pending(ours), Removal::Pending(theirs)) => merge_opinions(ours, theirs),
    }
}

fn merge_opinions(
    ours: &mut BTreeMap<PeerName, Opinion>,
    theirs: BTreeMap<PeerName, Opinion>,
) -> (bool, bool) {
    let mut learns = false;
    let mut teaches = ours.keys().any(|voter| !theirs.contains_key(voter));
    for (voter, opinion) in theirs {
        let known = ours.get(&voter).map_or(0, |known| known.version);
        teaches |= known > opinion.version;
        if known < opinion.version && (ours.len() < MAX_VOTERS || known > 0) {
            ours.insert(voter, opinion);
            learns = true;
        }
    }
    (learns, teaches)
}

#[cfg(test)]
mod tests;
