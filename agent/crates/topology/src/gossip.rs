//! What is told to whom.
//!
//! * **Push.** A new version of our own record goes to all neighbours at once.
//! * **Forward.** A record that is news goes on to the neighbours that cannot have it yet. Its origin sends it to all
//!   its own neighbours, and whoever passed it on does too; so those two peers and their neighbours are left out. In a
//!   full mesh nothing is forwarded at all, in a chain everything is. Should a record have been lost where it was thus
//!   taken for told, digests find it.
//! * **Compare.** Now and then, and on each new link, a peer sends a [`Digest`]: which versions it knows. The other one
//!   sends what is larger on its side and asks for what is smaller. So both are equal after one exchange, whoever began
//!   it, and two peers that agree exchange a few kilobytes.
//!
//! What is to be sent is collected for each link while one piece of news is handled and sent at its end, so a burst of
//! changes makes one message.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::IteratorRandom;
use weave_proto::PeerName;
use weave_proto::peer::topology::MAX_RECORDS;
use weave_proto::peer::{Digest, Message, PeerRecord, RecordDigest};

use crate::backoff::vary;
use crate::{LinkId, Output};

/// The time between two rounds of digests. Loss is rare (links are reliable while they live), so this is about the
/// bytes: 22 a peer, which for 200 peers and four neighbours a round is 2 KB/s.
pub(crate) const DIGEST_INTERVAL: Duration = Duration::from_secs(10);

/// How many neighbours get a digest in each round: with the logarithm of their number, a difference between any two
/// peers is found in a few rounds however large the mesh is.
pub(crate) const fn fan_out(neighbours: usize) -> usize {
    if neighbours == 0 { 0 } else { 1 + neighbours.ilog2() as usize / 2 }
}

/// What two peers have to tell each other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Larger on the other side, or known there alone.
    pub(crate) wanted: Vec<PeerName>,
    /// Larger on this side, or known here alone.
    pub(crate) offered: Vec<PeerName>,
}

/// Compares a digest with the records that we tell about (`ours`, by name) and with all that we know of (`record`).
pub(crate) fn compare<'a>(
    theirs: &[RecordDigest],
    ours: impl Iterator<Item = &'a PeerRecord>,
    record: impl Fn(PeerName) -> Option<&'a PeerRecord>,
) -> Difference {
    let mut difference = Difference::default();
    let listed: BTreeSet<PeerName> = theirs.iter().map(|digest| digest.name).collect();
    for digest in theirs {
        let order =
            record(digest.name).map(|record| (digest.uid, digest.version).cmp(&(record.uid, record.version)));
        match order {
            None | Some(std::cmp::Ordering::Greater) => difference.wanted.push(digest.name),
            Some(std::cmp::Ordering::Equal) => {}
            Some(std::cmp::Ordering::Less) => difference.offered.push(digest.name),
        }
    }
    difference.offered.extend(ours.map(|record| record.name).filter(|name| !listed.contains(name)));
    difference
}

/// The versions of these records.
pub(crate) fn digest<'a>(records: impl Iterator<Item = &'a PeerRecord>, ipam: u64) -> Digest {
    let brief =
        |record: &PeerRecord| RecordDigest { name: record.name, uid: record.uid, version: record.version };
    let mut records: Vec<RecordDigest> = records.map(brief).collect();
    records.sort_by_key(|record| record.name);
    Digest { records, ipam }
}

/// What is to be sent once the news at hand has been handled, and when to compare next.
#[derive(Debug)]
pub(crate) struct Gossip {
    records: BTreeMap<LinkId, BTreeSet<PeerName>>,
    digests: BTreeSet<LinkId>,
    next_round: Instant,
}

impl Gossip {
    pub(crate) fn new(rng: &mut impl Rng, now: Instant) -> Self {
        let next_round = now + vary(DIGEST_INTERVAL, rng);
        Self { records: BTreeMap::new(), digests: BTreeSet::new(), next_round }
    }

    /// The record of this peer goes to that link.
    pub(crate) fn tell(&mut self, link: LinkId, about: PeerName) {
        self.records.entry(link).or_default().insert(about);
    }

    /// A digest goes to that link.
    pub(crate) fn compare_with(&mut self, link: LinkId) {
        self.digests.insert(link);
    }

    /// Nothing goes to that link any more.
    pub(crate) fn drop_link(&mut self, link: LinkId) {
        self.records.remove(&link);
        self.digests.remove(&link);
    }

    /// When the next round of digests is due.
    pub(crate) const fn next_round(&self) -> Instant {
        self.next_round
    }

    /// Starts a round if it is due: some of the links in use, and all that the other end has not answered on yet.
    pub(crate) fn on_timeout(
        &mut self,
        (links, pending): (&[LinkId], &[LinkId]),
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if now < self.next_round {
            return;
        }
        self.next_round = now + vary(DIGEST_INTERVAL, rng);
        let chosen = links.iter().copied().choose_multiple(rng, fan_out(links.len()));
        self.digests.extend(chosen.into_iter().chain(pending.iter().copied()));
    }

    /// What is to be sent now.
    pub(crate) fn flush<'a>(
        &mut self,
        record: impl Fn(PeerName) -> Option<&'a PeerRecord>,
        digest: impl Fn() -> Digest,
    ) -> Vec<Output> {
        let mut outputs = Vec::new();
        for (link, names) in std::mem::take(&mut self.records) {
            let records: Vec<PeerRecord> = names.into_iter().filter_map(&record).cloned().collect();
            let messages = records.chunks(MAX_RECORDS).map(|chunk| Message::Topology(chunk.to_vec()));
            outputs.extend(messages.map(|message| Output::Send { link, message }));
        }
        for link in std::mem::take(&mut self.digests) {
            outputs.push(Output::Send { link, message: Message::Digest(digest()) });
        }
        outputs
    }
}

#[cfg(test)]
mod tests;
