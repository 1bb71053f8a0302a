//! What is still to be said on one link: bounded, and always the newest.
//!
//! The brain never waits for a peer. It puts messages here and goes on; the link takes them out as fast as the
//! other side reads. What piles up in between is not a queue of messages but *what the other side does not know
//! yet*: everything a peer says is state (see [`weave_proto::peer`]), so a newer word on the same matter takes
//! the place of the older one.
//!
//! | message | kept | bound |
//! |---|---|---|
//! | `Terms`, `Offer` | the last | one of each |
//! | `Directed` | each one, in order; the oldest goes when full | [`MAX_DIRECTED`] |
//! | `Warning` | the last | one |
//! | `Routed` | each one, in order; the oldest goes when full | [`MAX_ROUTED`] |
//! | `Ipam` | the last | one |
//! | `Topology` | the newest record of each peer | one a peer |
//! | `Want` | the union | one name a peer |
//! | `Digest` | the last | one |
//!
//! They are taken in this order, urgent first: a request that somebody waits for, then ownership, then the map.
//! `Directed` cannot starve the others, because there are at most [`MAX_DIRECTED`] of them and each one answers
//! or retries something on a timer of seconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weave_proto::peer::topology::MAX_RECORDS;
use weave_proto::peer::{Digest, Directed, IpamState, Message, Offer, PeerRecord, Refusal, Routed, Terms};
use weave_proto::{PeerKey, PeerName};

/// How many `Directed` messages wait for one link. An allocator asks one peer at a time and repeats itself, so
/// more than this is the backlog of a peer that does not read; dropping the oldest is what its sender expects.
pub(super) const MAX_DIRECTED: usize = 128;

/// How many `Routed` messages wait for one link: a handshake takes four, and one that stalls is begun anew.
pub(super) const MAX_ROUTED: usize = 128;

/// About how many links of records go into one `Topology` message: at 27 bytes each, a quarter of a megabyte,
/// well below the frame's maximum and small enough to let something urgent pass between two of them.
const LINKS_PER_MESSAGE: usize = 8 * 1024;

/// Names in one `Want`: 6 bytes each, and one answer is as long as a `Topology` message anyway.
const NAMES_PER_MESSAGE: usize = 4 * MAX_RECORDS;

/// See the module's docs. Knows no clock and no lock.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    terms: Option<Terms>,
    offer: Option<Offer>,
    routed: VecDeque<Routed>,
    directed: VecDeque<Directed>,
    warning: Option<Refusal>,
    ipam: Option<Box<IpamState>>,
    /// By name and key: two peers that collide in their names must both be heard of.
    records: BTreeMap<(PeerName, PeerKey), PeerRecord>,
    wanted: BTreeSet<PeerName>,
    digest: Option<Digest>,
    dropped: u64,
}

impl Outbox {
    /// Puts a message in, in place of what it makes superfluous. `Hello` and `Refusal` have their own moments in
    /// a link's life and never wait here, and `Handshake` travels inside `Routed`: they are passed over.
    pub(super) fn push(&mut self, message: Message) {
        match message {
            Message::Directed(directed) => {
                if self.directed.len() == MAX_DIRECTED {
                    self.directed.pop_front();
                    self.dropped += 1;
                }
                self.directed.push_back(directed);
            }
            Message::Warning(warning) => self.warning = Some(warning),
            Message::Routed(routed) => {
                if self.routed.len() == MAX_ROUTED {
                    self.routed.pop_front();
                    self.dropped += 1;
                }
                self.routed.push_back(routed);
            }
            Message::Terms(terms) => self.terms = Some(terms),
            Message::Offer(offer) => self.offer = Some(offer),
            Message::Ipam(state) => self.ipam = Some(state),
            Message::Topology(records) => records.into_iter().for_each(|record| self.push_record(record)),
            Message::Want(names) => self.wanted.extend(names),
            Message::Digest(digest) => self.digest = Some(digest),
            Message::Hello(_) | Message::Refusal(_) | Message::Handshake(_) => {}
        }
    }

    /// Takes the next message out; none if all is said.
    pub(super) fn pop(&mut self) -> Option<Message> {
        if let Some(terms) = self.terms.take() {
            return Some(Message::Terms(terms));
        }
        if let Some(offer) = self.offer.take() {
            return Some(Message::Offer(offer));
        }
        if let Some(directed) = self.directed.pop_front() {
            return Some(Message::Directed(directed));
        }
        if let Some(warning) = self.warning.take() {
            return Some(Message::Warning(warning));
        }
        if let Some(routed) = self.routed.pop_front() {
            return Some(Message::Routed(routed));
        }
        if let Some(state) = self.ipam.take() {
            return Some(Message::Ipam(state));
        }
        if !self.records.is_empty() {
            return Some(Message::Topology(self.pop_records()));
        }
        if !self.wanted.is_empty() {
            let names: Vec<PeerName> = self.wanted.iter().copied().take(NAMES_PER_MESSAGE).collect();
            names.iter().for_each(|name| {
                self.wanted.remove(name);
            });
            return Some(Message::Want(names));
        }
        self.digest.take().map(Message::Digest)
    }

    /// How many messages had to be dropped so far.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn push_record(&mut self, record: PeerRecord) {
        let place = (record.name, record.key);
        let is_newer = |known: &PeerRecord| (known.uid, known.version) <= (record.uid, record.version);
        if self.records.get(&place).is_none_or(is_newer) {
            self.records.insert(place, record);
        }
    }

    /// The first records, as many as fit in one message; always at least one.
    fn pop_records(&mut self) -> Vec<PeerRecord> {
        let mut records: Vec<PeerRecord> = Vec::new();
        let mut links = 0;
        while let Some(next) = self.records.first_entry() {
            links += next.get().links.len();
            if !records.is_empty() && (records.len() == MAX_RECORDS || links > LINKS_PER_MESSAGE) {
                break;
            }
            records.push(next.remove());
        }
        records
    }
}

#[cfg(test)]
mod tests;
