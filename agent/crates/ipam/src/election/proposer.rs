//! The proposer: who opens a ballot, when, and what it may propose.
//!
//! One proposer at a time decides at once; two at a time may overbid each other for ever. So proposers take
//! turns: the first by name opens a ballot as soon as it may, each later one waits a little longer, and whoever
//! sees a ballot of somebody else gives it time. A proposer whose own ballot is the highest it knows has nothing
//! to gain from another: what is missing then is an answer, and gossip repairs lost answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::Rng;
use weave_proto::PeerName;
use weave_proto::peer::ipam::{Accepted, Ballot, Vote};

use super::{acceptor, ballot};

/// How much longer each later candidate waits before it opens a ballot: a few round trips over a slow mesh.
pub const TURN: Duration = Duration::from_millis(1000);

/// How long somebody else's first ballot is given, at least; up to twice as long, by chance. Each further one is given
/// twice as long as the one before, up to [`LONGEST_YIELD`]: where a round trip takes seconds, because two dozen peers
/// start on one machine, proposers would otherwise overbid each other before anybody can have answered.
pub const YIELD: Duration = Duration::from_secs(2);

/// The longest that a ballot is given, at least.
pub const LONGEST_YIELD: Duration = Duration::from_secs(16);

/// When to open a ballot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proposer {
    turn: Option<Instant>,
    /// How many ballots of others have been given time.
    yielded: u32,
}

impl Proposer {
    /// Has not had its turn.
    #[must_use]
    pub const fn new() -> Self {
        Self { turn: None, yielded: 0 }
    }

    /// Somebody else has opened a ballot.
    pub fn yield_to_others(&mut self, rng: &mut impl Rng, now: Instant) {
        let pause = YIELD.saturating_mul(2_u32.saturating_pow(self.yielded)).min(LONGEST_YIELD);
        self.yielded = self.yielded.saturating_add(1);
        self.turn = Some(now + pause.mul_f64(1.0 + rng.random::<f64>()));
    }

    /// Whether it is time that `me` opens a ballot, who waits that long for its first turn.
    pub fn is_due<V>(&mut self, me: PeerName, mine: &Vote<V>, wait: Duration, now: Instant) -> bool {
        if mine.promised.is_some_and(|promised| promised.proposer == me) {
            return false;
        }
        *self.turn.get_or_insert(now + wait) <= now
    }

    /// When that may be.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.turn
    }
}

/// Promises `me`, who owns `mine`, a ballot above all it knows.
pub fn open_ballot<V>(mine: &mut Vote<V>, me: PeerName) {
    mine.promised = mine.promised.max(Some(ballot::above(mine.promised, me)));
}

/// Whether `me` has an open ballot without a proposal, and the promises of enough others to make one.
pub fn has_quorum<'a, V: 'a>(
    mine: &Vote<V>,
    me: PeerName,
    others: impl Iterator<Item = &'a Vote<V>>,
    needed: usize,
) -> bool {
    let Some(open) = mine.promised.filter(|promised| promised.proposer == me) else {
        return false;
    };
    let proposed = mine.accepted.as_ref().is_some_and(|accepted| accepted.ballot == open);
    !proposed && others.filter(|vote| vote.promised == Some(open)).count() >= needed
}

/// Proposes in the open ballot, by accepting it oneself. The `value` is made from the latest that any voter has
/// accepted so far, since that may have been chosen; only if there is none, the proposer is free.
pub fn propose<'a, V: Clone + 'a>(
    mine: &mut Vote<V>,
    others: impl Iterator<Item = &'a Vote<V>>,
    value: impl FnOnce(Option<&V>) -> V,
) {
    let Some(ballot) = mine.promised else { return };
    let latest = others.filter_map(|vote| vote.accepted.as_ref()).max_by(acceptor::by_ballot);
    let latest = latest.into_iter().chain(&mine.accepted).max_by(acceptor::by_ballot);
    let value = value(latest.map(|latest| &latest.value));
    acceptor::accept(mine, Accepted { ballot, value });
}

/// The value that a majority of its electors has accepted in one ballot, if there is one.
#[must_use]
pub fn chosen<'a, V: Clone>(
    votes: &BTreeMap<PeerName, &'a Vote<V>>,
    electors: impl Fn(&'a V) -> &'a BTreeSet<PeerName>,
) -> Option<V> {
    let accepted_in = |ballot: Ballot| move |vote: &&Vote<V>| accepted_ballot(vote) == Some(ballot);
    votes.values().filter_map(|vote| vote.accepted.as_ref()).find_map(|proposal| {
        let electors = electors(&proposal.value);
        let voters = electors.iter().filter_map(|elector| votes.get(elector)).copied();
        let agreed = voters.filter(accepted_in(proposal.ballot)).count();
        (agreed >= ballot::majority(electors.len())).then(|| proposal.value.clone())
    })
}

fn accepted_ballot<V>(vote: &Vote<V>) -> Option<Ballot> {
    vote.accepted.as_ref().map(|accepted| accepted.ballot)
}

#[cfg(test)]
mod tests;
