//! Ballots: how attempts at agreement are numbered, and how many votes are enough.

use weave_proto::PeerName;
use weave_proto::peer::ipam::Ballot;

/// How many of `voters` have one in common with every other such group: more than half.
#[must_use]
pub const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many of `voters` suffice to keep the rest from being a majority.
#[must_use]
pub const fn blocking(voters: usize) -> usize {
    voters + 1 - majority(voters)
}

/// A ballot of `proposer` above every ballot up to `highest`.
#[must_use]
pub fn above(highest: Option<Ballot>, proposer: PeerName) -> Ballot {
    Ballot { round: highest.map_or(0, |highest| highest.round).saturating_add(1), proposer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_majorities_always_meet_and_a_blocking_minority_prevents_one() {
        for voters in 1..100 {
            assert!(2 * majority(voters) > voters);
            assert!(voters - blocking(voters) < majority(voters));
            assert!(voters - (blocking(voters) - 1) >= majority(voters));
        }
    }

    #[test]
    fn a_new_ballot_is_above_all_others_whoever_made_them() {
        let (low, high) = (PeerName::from_bits([0; 6]), PeerName::from_bits([0xff; 6]));
        let first = above(None, high);
        assert!(above(Some(first), low) > first);
    }
}
