//! What a request waits for, in words.

use std::collections::BTreeSet;
use std::fmt;

use weave_proto::PeerName;

use crate::api::List;

/// What is missing, and what would help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingFor {
    /// The number of founders is not known.
    FounderCount,
    /// Peers were told different numbers of founders.
    FounderCountsDiffer {
        /// What this peer expects.
        ours: u16,
        /// Which peer expects something else.
        peer: PeerName,
        /// What that expects.
        theirs: u16,
    },
    /// Too few peers have started.
    Founders {
        /// How many candidates can be reached, this peer included.
        present: usize,
        /// How many are needed.
        expected: u16,
    },
    /// The electorate is not agreed upon yet.
    Locks {
        /// Who has not locked on it yet.
        missing: BTreeSet<PeerName>,
    },
    /// Too few of the electorate vote.
    Votes {
        /// Who can be reached.
        present: usize,
        /// How many are needed.
        majority: usize,
        /// Who cannot.
        missing: BTreeSet<PeerName>,
    },
    /// This peer does not vote, and knows no peer with a ring.
    Ring,
    /// A peer was asked for space.
    Donor(PeerName),
    /// Everybody that can be reached has been asked.
    Space {
        /// Owners that cannot be reached.
        unreachable: BTreeSet<PeerName>,
    },
    /// The removal of a peer needs more acknowledgements.
    Acknowledgements {
        /// How many more.
        missing: usize,
        /// Who could give them and cannot be reached.
        unreachable: BTreeSet<PeerName>,
    },
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FounderCount => f.write_str(
                "the number of founders is not known: launch the first peers with --ipalloc-init consensus=N, \
                 or connect to a peer that has addresses",
            ),
            Self::FounderCountsDiffer { ours, peer, theirs } => write!(
                f,
                "this peer expects {ours} founders and {peer} expects {theirs}: give both the same \
                 --ipalloc-init consensus=N"
            ),
            Self::Founders { present, expected } => write!(
                f,
                "waiting for founders: {present} of {expected} are here; start the others, or connect to a peer \
                 that has addresses"
            ),
            Self::Locks { missing } => {
                write!(f, "waiting for {} to agree who decides the first split", List(missing))
            }
            Self::Votes { present, majority, .. } if present >= majority => write!(
                f,
                "the founders vote on the first split: {present} of them are here, {majority} must agree"
            ),
            Self::Votes { present, majority, missing } => write!(
                f,
                "waiting for a majority of the founders: {present} of {majority} are here; bring back {}, or if \
                 they are lost for good, `weave reset` here and start anew",
                List(missing)
            ),
            Self::Ring => f.write_str("waiting for a peer that has addresses: connect to one"),
            Self::Donor(peer) => write!(f, "waiting for {peer}, which was asked for space"),
            Self::Space { unreachable } if unreachable.is_empty() => {
                f.write_str("every address of the range is taken: free some, or use a larger --ipalloc-range")
            }
            Self::Space { unreachable } => write!(
                f,
                "no peer that can be reached has a free address: reconnect {}, or `weave rmpeer` what is gone for \
                 good",
                List(unreachable)
            ),
            Self::Acknowledgements { missing, unreachable } if unreachable.is_empty() => {
                write!(f, "waiting for {missing} more acknowledgements")
            }
            Self::Acknowledgements { missing, unreachable } => write!(
                f,
                "waiting for {missing} more acknowledgements: reconnect {}, or `weave rmpeer` those too if they \
                 are gone for good",
                List(unreachable)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_to_be_brought_back_where_enough_of_the_founders_are_here() {
        let votes = |present, missing: &[u8]| {
            let missing = missing.iter().map(|&name| PeerName::from_bits([2, 0, 0, 0, 0, name])).collect();
            WaitingFor::Votes { present, majority: 2, missing }.to_string()
        };
        assert_eq!(votes(3, &[]), "the founders vote on the first split: 3 of them are here, 2 must agree");
        assert_eq!(votes(2, &[3]), "the founders vote on the first split: 2 of them are here, 2 must agree");
        assert!(votes(1, &[2, 3]).contains("1 of 2 are here; bring back 02:00:00:00:00:02"));
    }
}
