//! How the founders of a universe are agreed upon.
//!
//! Agreement by majority means nothing without knowing a majority *of whom*. A number of founders alone does not
//! say: two halves of a partition may each find as many peers as they were told to expect, and a peer whose disk
//! was wiped comes back as somebody else. So the electorate is enumerated first, by name, and voted in second:
//!
//! ```text
//!   stand ──▶ lock on N names ──▶ every one of the N has locked on them ──▶ vote (Paxos) ──▶ founded
//!               ▲        │                                                     │
//!               └────────┘ move to another electorate, while                   └─ bound, unless the
//!                          nothing has been accepted in this one                  electorate is dead
//! ```
//!
//! * A candidate *stands* by telling its [`Candidacy`]. Once it knows N candidates that it can reach, itself
//!   included, it *locks* on N of them: [`electorate`].
//! * It votes only in an electorate of which every member has locked on it. From there on a majority is enough:
//!   founders that die after they have locked do not hold up the others.
//! * The vote is single-decree Paxos over gossiped acceptor states: [`acceptor`], [`proposer`], [`ballot`]. The
//!   value is the set of founders: the members that the proposer can reach, so that no share is given to the dead.
//!
//! **Why two electorates with a common member cannot both decide.** Each decided with the lock of that member p.
//! Say p locked on E first and on F later. A lock does not count while p is [leaving](Candidacy::leaving) an
//! electorate that could still decide. E can not decide any more once so many of its members have gone on to a
//! later attempt, never having accepted anything in E, that the rest is no majority; a candidate votes in its
//! current attempt only, and attempts only grow, so that is for good. Hence when F was voted in, E was dead.
//!
//! Every word of a candidacy is durable before it is told, since it stands in the one state that is persisted
//! before any gossip. A peer without its memory has lost its key too and is somebody else.

pub mod acceptor;
pub mod ballot;
pub mod electorate;
pub mod proposer;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use rand::Rng;
use weave_proto::PeerName;
use weave_proto::peer::ipam::{Candidacy, Electorate, Founding, MAX_VOTERS, Vote};

use crate::waiting::WaitingFor;
use ballot::majority;
use electorate::{Field, Move};
use proposer::{Proposer, TURN};

/// How long a member may be out of reach before an unfinished electorate is given up for another. Longer than a
/// restart of the agent takes, shorter than an operator's patience.
pub const RELOCK_AFTER: Duration = Duration::from_secs(5);

/// How long a candidate stays with an electorate at least, so that candidates which see different peers for a
/// moment do not chase each other.
pub const RELOCK_PAUSE: Duration = Duration::from_millis(500);

/// One peer's view of the election, and its part in it.
#[derive(Debug, Clone)]
pub struct Election {
    me: PeerName,
    part: Part,
    candidacies: BTreeMap<PeerName, Candidacy>,
    proposer: Proposer,
    moved_at: Option<Instant>,
    missed_since: Option<Instant>,
}

/// What a peer does in an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Stands and votes, and was told how many founders there are.
    Informed(NonZeroU16),
    /// Stands and votes once it has learned from others how many founders there are.
    Uninformed,
    /// Repeats what others say.
    Observer,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// This peer's candidacy has changed: to be made durable and told.
    pub changed: bool,
    /// This peer has locked on these.
    pub locked: Option<BTreeSet<PeerName>>,
    /// The founders are agreed upon.
    pub decided: Option<Founding>,
}

/// What came of hearing others' candidacies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heard {
    /// Something was new.
    pub learns: bool,
    /// Something is newer here.
    pub teaches: bool,
    /// Peers that expect another number of founders than this one, and theirs.
    pub differing: BTreeMap<PeerName, u16>,
    /// There were more candidacies than one state may hold.
    pub crowded: bool,
    /// Others know a candidacy of this peer that it does not: its store is an old copy.
    pub forgotten: bool,
}

impl Election {
    /// The election as it was when the store was last written; `candidacies` is empty at the first start.
    #[must_use]
    pub const fn new(me: PeerName, part: Part, candidacies: BTreeMap<PeerName, Candidacy>) -> Self {
        Self { me, part, candidacies, proposer: Proposer::new(), moved_at: None, missed_since: None }
    }

    /// What is to be told and to be made durable.
    #[must_use]
    pub const fn candidacies(&self) -> &BTreeMap<PeerName, Candidacy> {
        &self.candidacies
    }

    /// How many founders this peer expects, if it knows.
    #[must_use]
    pub fn expected(&self) -> Option<u16> {
        let mine = self.candidacies.get(&self.me);
        if let Some(lock) =
            mine.filter(|mine| mine.vote.accepted.is_some()).and_then(|mine| mine.lock.as_ref())
        {
            return u16::try_from(lock.members.len()).ok();
        }
        match self.part {
            Part::Informed(founders) => Some(founders.get()),
            Part::Uninformed => match mine {
                Some(mine) if mine.lock.is_some() => Some(mine.founders),
                Some(_) | None => self.unanimous(),
            },
            Part::Observer => None,
        }
    }

    /// The number that all other candidates agree on.
    fn unanimous(&self) -> Option<u16> {
        let others = self.candidacies.iter().filter(|(peer, _)| **peer != self.me);
        let mut numbers = others.map(|(_, candidacy)| candidacy.founders);
        numbers.next().filter(|first| numbers.all(|other| other == *first))
    }

    /// Merges what somebody else knows: of each candidacy the later version.
    pub fn hear(&mut self, theirs: BTreeMap<PeerName, Candidacy>) -> Heard {
        let mut heard = Heard {
            teaches: self.candidacies.keys().any(|peer| !theirs.contains_key(peer)),
            ..Heard::default()
        };
        let expected = self.expected();
        for (peer, candidacy) in theirs {
            if expected.is_some_and(|expected| expected != candidacy.founders) {
                heard.differing.insert(peer, candidacy.founders);
            }
            let known = self.candidacies.get(&peer).map_or(0, |known| known.version);
            heard.teaches |= known > candidacy.version;
            if known >= candidacy.version {
                continue;
            }
            if peer == self.me {
                heard.forgotten = true;
                self.part = Part::Observer;
            }
            if self.candidacies.len() >= MAX_VOTERS && known == 0 {
                heard.crowded = true;
                continue;
            }
            heard.learns = true;
            self.candidacies.insert(peer, candidacy);
        }
        heard
    }

    /// Does whatever can be done now that these peers can be reached.
    pub fn step(&mut self, reachable: &BTreeSet<PeerName>, rng: &mut impl Rng, now: Instant) -> Step {
        let mut step = Step::default();
        let Some(expected) = self.expected().filter(|_| self.part != Part::Observer) else {
            return step;
        };
        let before = self.candidacies.get(&self.me).cloned();
        let mine = self.candidacies.entry(self.me).or_insert_with(|| newcomer(expected));
        mine.founders = expected;
        self.enumerate(expected, reachable, now);
        if let Some(lock) = self.complete_lock() {
            step.decided = self.vote(&lock, reachable, rng, now);
        }
        if let Some(mine) = self.candidacies.get_mut(&self.me)
            && before.as_ref() != Some(mine)
        {
            mine.version = mine.version.saturating_add(1);
            step.changed = true;
            let lock = mine
                .lock
                .as_ref()
                .filter(|lock| before.and_then(|before| before.lock).as_ref() != Some(*lock));
            step.locked = lock.map(|lock| lock.members.clone());
        }
        step
    }

    /// Locks, moves to another electorate or stands aside, as the field asks for.
    fn enumerate(&mut self, expected: u16, reachable: &BTreeSet<PeerName>, now: Instant) {
        let candidates = self.candidates(expected, reachable);
        let mine_lock = self.candidacies.get(&self.me).and_then(|mine| mine.lock.as_ref());
        let missed = mine_lock.is_some_and(|lock| !lock.members.is_subset(&candidates));
        self.missed_since = if missed { self.missed_since.or(Some(now)) } else { None };
        let field = Field {
            me: self.me,
            expected,
            candidacies: &self.candidacies,
            candidates: &candidates,
            given_up: self.missed_since.is_some_and(|since| since + RELOCK_AFTER <= now),
        };
        let next = match self.moved_at {
            Some(moved_at) if now < moved_at + RELOCK_PAUSE => Move::Stay,
            _ => field.next_move(),
        };
        if let Some(mine) = self.candidacies.get_mut(&self.me) {
            match next {
                Move::Stay => {}
                Move::Lock(lock) => {
                    leave(mine, lock.attempt, Some(lock));
                    self.moved_at = Some(now);
                    self.proposer = Proposer::new();
                }
                Move::StandAside { attempt } => {
                    leave(mine, attempt, None);
                    self.moved_at = Some(now);
                }
            }
        }
        self.forget_dead();
    }

    /// Electorates that cannot decide any more need not be shown.
    fn forget_dead(&mut self) {
        let Some(mine) = self.candidacies.get(&self.me) else { return };
        let dead: Vec<_> = mine
            .leaving
            .iter()
            .filter(|left| electorate::is_dead(left, &self.candidacies))
            .cloned()
            .collect();
        if let Some(mine) = self.candidacies.get_mut(&self.me) {
            mine.leaving.retain(|left| !dead.contains(left));
        }
    }

    /// My lock, if every member has locked on it.
    fn complete_lock(&self) -> Option<Electorate> {
        let lock = self.candidacies.get(&self.me)?.lock.clone()?;
        electorate::missing_locks(&lock, &self.candidacies).is_empty().then_some(lock)
    }

    /// Promises, accepts, proposes and counts in a complete electorate.
    fn vote(
        &mut self,
        lock: &Electorate,
        reachable: &BTreeSet<PeerName>,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Founding> {
        let others = || self.candidacies.iter().filter(|(peer, _)| **peer != self.me);
        let others: BTreeMap<PeerName, &Vote<Founding>> = others()
            .filter(|(peer, candidacy)| lock.members.contains(peer) && candidacy.lock.as_ref() == Some(lock))
            .map(|(peer, candidacy)| (*peer, &candidacy.vote))
            .collect();
        let mut mine = self.candidacies.get(&self.me)?.vote.clone();
        let before_me = lock.members.iter().take_while(|peer| **peer != self.me).count();
        let wait = TURN.saturating_mul(u32::try_from(before_me).unwrap_or(u32::MAX));
        if acceptor::follow(&mut mine, others.values().copied(), |_| true) {
            self.proposer.yield_to_others(rng, now);
        }
        let quorum = majority(lock.members.len());
        let present =
            lock.members.iter().filter(|peer| **peer == self.me || reachable.contains(peer)).count();
        if present >= quorum && self.proposer.is_due(self.me, &mine, wait, now) {
            proposer::open_ballot(&mut mine, self.me);
        }
        if proposer::has_quorum(&mine, self.me, others.values().copied(), quorum - 1) {
            let founders: BTreeSet<PeerName> = lock
                .members
                .iter()
                .copied()
                .filter(|peer| *peer == self.me || reachable.contains(peer))
                .collect();
            let nonce = rng.random();
            proposer::propose(&mut mine, others.values().copied(), |earlier| {
                earlier.cloned().unwrap_or(Founding { founders, nonce })
            });
        }
        let votes = others.into_iter().chain([(self.me, &mine)]).collect();
        let decided = proposer::chosen(&votes, |_| &lock.members);
        self.candidacies.get_mut(&self.me)?.vote = mine;
        decided
    }

    /// Whom this peer counts as a founder to be: who stands, expects the same, and can be reached.
    fn candidates(&self, expected: u16, reachable: &BTreeSet<PeerName>) -> BTreeSet<PeerName> {
        let stands = |(peer, candidacy): (&PeerName, &Candidacy)| {
            (candidacy.founders == expected && (*peer == self.me || reachable.contains(peer)))
                .then_some(*peer)
        };
        self.candidacies.iter().filter_map(stands).collect()
    }

    /// When [`step`](Self::step) is to be called again without news.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let given_up = self.missed_since.map(|since| since + RELOCK_AFTER);
        let pause = self.moved_at.map(|moved_at| moved_at + RELOCK_PAUSE);
        let ballot = self.complete_lock().and_then(|_| self.proposer.deadline());
        [given_up, pause, ballot].into_iter().flatten().filter(|deadline| *deadline > now).min()
    }

    /// What stands between this peer and a ring.
    #[must_use]
    pub fn waiting_for(&self, reachable: &BTreeSet<PeerName>) -> WaitingFor {
        if self.part == Part::Observer {
            return WaitingFor::Ring;
        }
        let Some(expected) = self.expected() else {
            return WaitingFor::FounderCount;
        };
        let present = |peer: &PeerName| *peer == self.me || reachable.contains(peer);
        if let Some(lock) = self.complete_lock() {
            let (here, missing): (BTreeSet<_>, BTreeSet<_>) =
                lock.members.iter().partition(|peer| present(peer));
            return WaitingFor::Votes {
                present: here.len(),
                majority: majority(lock.members.len()),
                missing,
            };
        }
        if let Some(left) = self.candidacies.get(&self.me).and_then(|mine| mine.leaving.first()) {
            let (here, missing): (BTreeSet<_>, BTreeSet<_>) =
                left.members.iter().partition(|peer| present(peer));
            return WaitingFor::Votes {
                present: here.len(),
                majority: majority(left.members.len()),
                missing,
            };
        }
        let differing =
            self.candidacies.iter().find(|(peer, other)| present(peer) && other.founders != expected);
        if let Some((peer, other)) = differing {
            return WaitingFor::FounderCountsDiffer { ours: expected, peer: *peer, theirs: other.founders };
        }
        match self.candidacies.get(&self.me).and_then(|mine| mine.lock.as_ref()) {
            Some(lock) => WaitingFor::Locks { missing: electorate::missing_locks(lock, &self.candidacies) },
            None => WaitingFor::Founders { present: self.candidates(expected, reachable).len(), expected },
        }
    }
}

/// A candidacy that has not begun.
fn newcomer(founders: u16) -> Candidacy {
    Candidacy {
        version: 0,
        founders,
        attempt: 0,
        lock: None,
        leaving: BTreeSet::new(),
        vote: Vote::default(),
    }
}

/// Goes on to a later attempt; what was locked before is left.
fn leave(mine: &mut Candidacy, attempt: u32, lock: Option<Electorate>) {
    mine.attempt = attempt;
    mine.leaving.extend(mine.lock.take());
    mine.lock = lock;
    mine.vote = Vote::default();
}

#[cfg(test)]
mod tests;
