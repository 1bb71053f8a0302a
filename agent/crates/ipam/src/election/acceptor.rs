//! The acceptor: what a voter binds itself to.
//!
//! Votes are gossiped as states, so there are no prepare and accept messages: a voter that sees a promise to a
//! ballot higher than its own promise promises the same, and one that sees a proposal accepted by somebody else
//! accepts it too, unless it has promised a higher ballot. The proposer reads its answers from the same states.

use std::cmp::Ordering;

use weave_proto::peer::ipam::{Accepted, Vote};

/// Binds `mine` to whatever the votes `seen` ask for and its promise allows; a proposal only if the voter
/// `may_accept` it. Returns whether the promise has changed hands.
pub fn follow<'a, V: Clone + 'a>(
    mine: &mut Vote<V>,
    seen: impl Iterator<Item = &'a Vote<V>> + Clone,
    may_accept: impl Fn(&V) -> bool,
) -> bool {
    let promised = mine.promised;
    mine.promised = mine.promised.max(seen.clone().filter_map(|vote| vote.promised).max());
    let news = |proposal: &&Accepted<V>| {
        Some(proposal.ballot) >= mine.promised
            && mine.accepted.as_ref().is_none_or(|known| known.ballot < proposal.ballot)
            && may_accept(&proposal.value)
    };
    let proposal = seen.filter_map(|vote| vote.accepted.as_ref()).filter(news).max_by(by_ballot).cloned();
    if let Some(proposal) = proposal {
        accept(mine, proposal);
    }
    mine.promised != promised
}

/// Accepts `proposal`, which no promise of this voter forbids.
pub fn accept<V>(mine: &mut Vote<V>, proposal: Accepted<V>) {
    mine.promised = mine.promised.max(Some(proposal.ballot));
    mine.accepted = Some(proposal);
}

/// Orders proposals by their ballots.
pub fn by_ballot<V>(a: &&Accepted<V>, b: &&Accepted<V>) -> Ordering {
    a.ballot.cmp(&b.ballot)
}

#[cfg(test)]
mod tests;
