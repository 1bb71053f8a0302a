//! The electorate: who locks on whom, and when a lock may be left.
//!
//! Candidates that see the same peers choose the same electorate without a word: the lowest names. Those that
//! see different ones meet by rule: the lock with the highest attempt attracts, of two with one attempt the one
//! with the lower names, and nobody starts a new attempt while it knows a lock that could still be completed.

use std::collections::{BTreeMap, BTreeSet};

use weave_proto::PeerName;
use weave_proto::peer::ipam::{Candidacy, Electorate};

use super::ballot::{blocking, majority};

/// How many electorates a candidate may be leaving at a time. It takes that many different views of the mesh,
/// one after the other, with a majority of each electorate out of reach: then nothing is gained by one more.
pub const MAX_LEAVING: usize = 16;

/// What a candidate sees when it looks around.
pub struct Field<'a> {
    /// Who looks.
    pub me: PeerName,
    /// How many members an electorate has.
    pub expected: u16,
    /// Everybody's candidacy, mine included.
    pub candidacies: &'a BTreeMap<PeerName, Candidacy>,
    /// Who can be reached and could be a member, me included.
    pub candidates: &'a BTreeSet<PeerName>,
    /// Whether a member of my electorate has been out of reach for too long.
    pub given_up: bool,
}

/// What the candidate does then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    Stay,
    /// Locks on this electorate, of which it is a member.
    Lock(Electorate),
    /// Leaves its electorate, if it has one, to one of which it is no member.
    StandAside {
        /// The attempt of the other electorate.
        attempt: u32,
    },
}

impl Field<'_> {
    /// What to do.
    #[must_use]
    pub fn next_move(&self) -> Move {
        let Some(mine) = self.candidacies.get(&self.me) else {
            return Move::Stay;
        };
        let leaves = match &mine.lock {
            None => true,
            Some(lock) => self.may_leave(mine, lock) && self.should_leave(lock),
        };
        if !leaves || mine.leaving.len() >= MAX_LEAVING {
            return Move::Stay;
        }
        match self.destination() {
            Some(lock) if Some(&lock) == mine.lock.as_ref() => Move::Stay,
            Some(lock) if lock.members.contains(&self.me) => Move::Lock(lock),
            // Also without a lock of its own: somebody may be waiting to hear that it will not lock on an earlier one.
            Some(lock) if mine.lock.is_some() || self.is_held(&lock) => {
                Move::StandAside { attempt: lock.attempt }
            }
            Some(_) | None => Move::Stay,
        }
    }

    /// Whether somebody has locked on `lock` already, and it is later than all I have taken part in.
    fn is_held(&self, lock: &Electorate) -> bool {
        let mine = self.candidacies.get(&self.me).map_or(0, |mine| mine.attempt);
        lock.attempt > mine && self.viable().as_ref() == Some(lock)
    }

    /// Whether leaving breaks no promise.
    fn may_leave(&self, mine: &Candidacy, lock: &Electorate) -> bool {
        mine.vote.accepted.is_none() || is_dead(lock, self.candidacies)
    }

    /// Whether the electorate will not decide if everything stays as it is.
    fn should_leave(&self, lock: &Electorate) -> bool {
        if missing_locks(lock, self.candidacies).is_empty() {
            let gone_on =
                |peer: &PeerName| self.candidacies.get(peer).is_some_and(|c| c.attempt > lock.attempt);
            let present = lock.members.intersection(self.candidates).filter(|peer| !gone_on(peer)).count();
            let hopeless = present < majority(lock.members.len());
            return is_dead(lock, self.candidacies) || (self.given_up && hopeless);
        }
        let attracted = self.viable().is_some_and(|other| attraction(&other) > attraction(lock));
        let hopeless = !self.could_complete(lock);
        self.given_up || attracted || hopeless
    }

    /// Where to go: to the most attractive lock there is, or to a new one; nowhere while there are too few.
    fn destination(&self) -> Option<Electorate> {
        let mine = self.candidacies.get(&self.me)?;
        let highest = self.candidacies.values().map(|candidacy| candidacy.attempt).max().unwrap_or(0);
        let next = highest.saturating_add(1);
        match self.viable() {
            Some(lock) if lock.attempt > mine.attempt || Some(&lock) == mine.lock.as_ref() => Some(lock),
            Some(lock) => Some(Electorate { attempt: next, members: lock.members }),
            None => {
                let wanted = usize::from(self.expected);
                let bound =
                    |peer: &PeerName| self.candidacies.get(peer).is_some_and(|c| c.vote.accepted.is_some());
                let free = self.candidates.iter().copied().filter(|peer| *peer == self.me || !bound(peer));
                let members: BTreeSet<PeerName> = free.take(wanted).collect();
                (members.len() == wanted).then_some(Electorate { attempt: next, members })
            }
        }
    }

    /// The most attractive electorate that a reachable member has locked on and that could be completed.
    fn viable(&self) -> Option<Electorate> {
        let locks = self.candidates.iter().filter_map(|peer| {
            let lock = self.candidacies.get(peer)?.lock.as_ref()?;
            lock.members.contains(peer).then_some(lock)
        });
        let could_complete =
            |lock: &&Electorate| lock.members.is_subset(self.candidates) && self.could_complete(lock);
        locks.filter(could_complete).max_by_key(|lock| attraction(lock)).cloned()
    }

    /// Whether `lock` has the right size, and every member has locked on it or may still do so.
    fn could_complete(&self, lock: &Electorate) -> bool {
        let fits = lock.members.len() == usize::from(self.expected);
        fits && lock.members.iter().all(|peer| self.could_lock(*peer, lock))
    }

    /// Whether `peer` has locked on `lock` or may still do so.
    fn could_lock(&self, peer: PeerName, lock: &Electorate) -> bool {
        self.candidacies.get(&peer).is_some_and(|candidacy| {
            candidacy.lock.as_ref() == Some(lock)
                || (candidacy.attempt < lock.attempt && candidacy.vote.accepted.is_none())
                // Two locks of one attempt meet in a later attempt of the more attractive one.
                || (candidacy.attempt == lock.attempt && candidacy.lock.is_some() && candidacy.vote.accepted.is_none())
        })
    }
}

/// The later attempt attracts more; of one attempt, the lower names.
fn attraction(lock: &Electorate) -> (u32, std::cmp::Reverse<&BTreeSet<PeerName>>) {
    (lock.attempt, std::cmp::Reverse(&lock.members))
}

/// Which members have not been seen to lock on `lock` for good. None are needed once a member has promised or
/// accepted anything in it: that member has seen them all.
#[must_use]
pub fn missing_locks(lock: &Electorate, candidacies: &BTreeMap<PeerName, Candidacy>) -> BTreeSet<PeerName> {
    let locked =
        |peer: &PeerName| candidacies.get(peer).filter(|candidacy| candidacy.lock.as_ref() == Some(lock));
    if lock.members.iter().filter_map(locked).any(|candidacy| candidacy.vote.promised.is_some()) {
        return BTreeSet::new();
    }
    let missing = |peer: &&PeerName| !locked(peer).is_some_and(|candidacy| candidacy.leaving.is_empty());
    lock.members.iter().filter(missing).copied().collect()
}

/// Whether `electorate` cannot decide any more, whatever happens: too many members have gone on to a later
/// attempt, and they had accepted nothing, or knew already that it was dead.
#[must_use]
pub fn is_dead(electorate: &Electorate, candidacies: &BTreeMap<PeerName, Candidacy>) -> bool {
    let gone_on = |peer: &&PeerName| candidacies.get(peer).is_some_and(|c| c.attempt > electorate.attempt);
    electorate.members.iter().filter(gone_on).count() >= blocking(electorate.members.len())
}

#[cfg(test)]
mod tests;
