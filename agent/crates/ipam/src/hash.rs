//! A hash that is the same on every machine and in every version: FNV-1a with 64 bits.
//!
//! It names universes and compares states. Both are repaired or refused when they differ by accident, and peers
//! have proven that they hold the cluster secret before they are listened to, so nothing here has to withstand
//! somebody who searches for collisions.

use std::net::IpAddr;

use weave_proto::peer::UniverseId;
use weave_proto::peer::ipam::{
    Ballot, Candidacy, Electorate, Era, Founding, IpamPhase, IpamState, Opinion, Removal, Vote,
};
use weave_proto::{Cidr, PeerName};

/// The name of the universe that `founding` made of `range`.
#[must_use]
pub fn universe_id(range: Cidr, founding: &Founding) -> UniverseId {
    let mut hash = Fnv::new();
    hash.cidr(range);
    hash.founding(founding);
    UniverseId(hash.0)
}

/// Equal for equal states, and for no others short of an accident.
#[must_use]
pub fn digest(state: &IpamState) -> u64 {
    let mut hash = Fnv::new();
    hash.cidr(state.universe);
    match &state.phase {
        IpamPhase::Electing(candidacies) => {
            hash.number(1);
            for (peer, candidacy) in candidacies {
                hash.peer(*peer);
                hash.candidacy(candidacy);
            }
        }
        IpamPhase::Founded(founded) => {
            hash.number(2);
            hash.founding(&founded.founding);
            for entry in &founded.ring {
                hash.addr(entry.token);
                hash.peer(entry.owner);
                hash.number(u64::from(entry.version));
                hash.era(entry.era);
            }
            for (peer, removal) in &founded.removals {
                hash.peer(*peer);
                hash.removal(removal);
            }
        }
    }
    hash.0
}

struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    fn peer(&mut self, peer: PeerName) {
        self.bytes(&peer.mac());
    }

    fn peers<'a>(&mut self, peers: impl ExactSizeIterator<Item = &'a PeerName>) {
        self.number(peers.len() as u64);
        peers.for_each(|peer| self.peer(*peer));
    }

    fn addr(&mut self, addr: IpAddr) {
        match addr {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    fn cidr(&mut self, cidr: Cidr) {
        self.addr(cidr.first());
        self.bytes(&[cidr.prefix()]);
    }

    fn founding(&mut self, founding: &Founding) {
        self.peers(founding.founders.iter());
        self.number(founding.nonce);
    }

    fn era(&mut self, era: Era) {
        self.number(u64::from(era.takeovers));
        self.peers(era.heir.iter());
    }

    fn ballot(&mut self, ballot: Ballot) {
        self.number(u64::from(ballot.round));
        self.peer(ballot.proposer);
    }

    fn vote<V>(&mut self, vote: &Vote<V>, value: impl FnOnce(&mut Self, &V)) {
        self.bytes(&[u8::from(vote.promised.is_some()), u8::from(vote.accepted.is_some())]);
        if let Some(promised) = vote.promised {
            self.ballot(promised);
        }
        if let Some(accepted) = &vote.accepted {
            self.ballot(accepted.ballot);
            value(self, &accepted.value);
        }
    }

    fn electorate(&mut self, electorate: &Electorate) {
        self.number(u64::from(electorate.attempt));
        self.peers(electorate.members.iter());
    }

    fn candidacy(&mut self, candidacy: &Candidacy) {
        self.number(candidacy.version);
        self.number(u64::from(candidacy.founders));
        self.number(u64::from(candidacy.attempt));
        self.number(u64::from(candidacy.lock.is_some()));
        candidacy.lock.iter().for_each(|lock| self.electorate(lock));
        self.number(candidacy.leaving.len() as u64);
        candidacy.leaving.iter().for_each(|left| self.electorate(left));
        self.vote(&candidacy.vote, Self::founding);
    }

    fn removal(&mut self, removal: &Removal) {
        match removal {
            Removal::Pending(opinions) => {
                self.number(opinions.len() as u64);
                for (peer, opinion) in opinions {
                    self.peer(*peer);
                    self.opinion(opinion);
                }
            }
            Removal::Decided { heir } => self.peers([heir].into_iter()),
        }
    }

    fn opinion(&mut self, opinion: &Opinion) {
        self.number(opinion.version);
        self.number(opinion.stance as u64);
        self.vote(&opinion.vote, |hash, inheritance| {
            hash.peer(inheritance.heir);
            hash.peers(inheritance.electors.iter());
        });
    }
}

#[cfg(test)]
mod tests;
