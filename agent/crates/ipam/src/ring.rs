//! The ring: which peer owns which addresses.
//!
//! ```text
//!   10.32.0.0        10.37.64.0       10.42.128.0        10.47.255.255
//!   |a v1 ···········|b v3 ···········|c v1 ··············|
//!   token            token            token               end of the range
//! ```
//!
//! An entry owns every address from its token up to the next token; the first token is the first address of the
//! range. So a ring covers the range exactly, without gap or overlap, *by its form*: there is no way to write
//! down a ring in which an address has two owners or none. What could go wrong is that two peers hold different
//! rings, both well formed. Three rules prevent it:
//!
//! * **Owner only.** An entry is changed, and a token inserted, by nobody but the peer that owns the addresses
//!   concerned. Each change raises the entry's version, so of two versions the higher is the later: one writer
//!   at a time makes the history of an entry a line. Tokens are never removed.
//! * **Whole rings travel.** Whoever knows a change knows everything it was built on.
//! * **Eras.** The one exception to the first rule is a removed peer, whose heir writes in its place. The heir
//!   begins a new [`Era`] for these addresses, and a later era overrides, address by address, whatever an
//!   earlier one says, be it a version that the heir never saw or a token it did not know.
//!
//! What breaks the rules (a new version of an entry of mine that I did not make, say, because somebody restored
//! an old store) is refused as a value, whole, and changes nothing. See [`merge`](Ring::merge).

mod merge;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weave_proto::addr::{address_at, position};
use weave_proto::peer::ipam::{Era, MAX_RING_ENTRIES, RingEntry};
use weave_proto::{Cidr, PeerName, Span};

pub use merge::{Conflict, Merged};

/// Who owns which address of one range. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    universe: Cidr,
    entries: BTreeMap<IpAddr, Entry>,
}

/// What is known about one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Who owns the addresses from the token up to the next.
    pub owner: PeerName,
    /// Counts the changes within the era.
    pub version: u32,
    /// The takeover that the entry descends from.
    pub era: Era,
}

/// Why a list of entries is no ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedRing {
    /// The range would not be covered from its first address.
    #[error("its first entry is {first:?} and not the first address of the range")]
    Start {
        /// The first token, if there is one.
        first: Option<IpAddr>,
    },
    /// An entry stands behind one with the same or a higher token.
    #[error("its entry {0} is out of order")]
    Order(IpAddr),
    /// A token outside the range.
    #[error("its entry {0} is outside the range")]
    Outside(IpAddr),
    /// More entries than [`MAX_RING_ENTRIES`].
    #[error("it has {0} entries, more than {MAX_RING_ENTRIES}")]
    Large(usize),
}

/// Why a part of a range cannot be given to another peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The giver does not own all of it.
    #[error("{block} is not wholly {giver}'s to give")]
    NotMine {
        /// What was to be given.
        block: Cidr,
        /// Who was to give it.
        giver: PeerName,
    },
    /// The ring has as many entries as it may have.
    #[error("the ring is full: {MAX_RING_ENTRIES} entries")]
    Full,
}

impl Ring {
    /// The first ring of a universe: every share belongs to its founder, in version 1 of the first era. The first
    /// share must begin where the range does.
    ///
    /// # Errors
    /// The shares do not begin with the range or are not in order.
    pub fn of_shares(universe: Cidr, shares: &[(IpAddr, PeerName)]) -> Result<Self, MalformedRing> {
        let entry = |&(token, owner)| RingEntry { token, owner, version: 1, era: Era::default() };
        Self::from_entries(universe, &shares.iter().map(entry).collect::<Vec<_>>())
    }

    /// The ring that these entries describe.
    ///
    /// # Errors
    /// They describe none of `universe`.
    pub fn from_entries(universe: Cidr, list: &[RingEntry]) -> Result<Self, MalformedRing> {
        if list.len() > MAX_RING_ENTRIES {
            return Err(MalformedRing::Large(list.len()));
        }
        let first = list.first().map(|entry| entry.token);
        if first != Some(universe.first()) {
            return Err(MalformedRing::Start { first });
        }
        if let Some(pair) = list.windows(2).find(|pair| pair[0].token >= pair[1].token) {
            return Err(MalformedRing::Order(pair[1].token));
        }
        if let Some(entry) = list.iter().find(|entry| !universe.contains(entry.token)) {
            return Err(MalformedRing::Outside(entry.token));
        }
        let entry = |e: &RingEntry| (e.token, Entry { owner: e.owner, version: e.version, era: e.era });
        Ok(Self { universe, entries: list.iter().map(entry).collect() })
    }

    /// The entries as peers tell them to each other.
    #[must_use]
    pub fn to_entries(&self) -> Vec<RingEntry> {
        let entry = |(&token, e): (&IpAddr, &Entry)| RingEntry {
            token,
            owner: e.owner,
            version: e.version,
            era: e.era,
        };
        self.entries.iter().map(entry).collect()
    }

    /// The entry that rules over `address`.
    #[must_use]
    pub fn entry_of(&self, address: IpAddr) -> Option<&Entry> {
        self.entries.range(..=address).next_back().map(|(_, entry)| entry)
    }

    /// Who owns `address`.
    #[must_use]
    pub fn owner_of(&self, address: IpAddr) -> Option<PeerName> {
        self.universe.contains(address).then(|| self.entry_of(address)).flatten().map(|entry| entry.owner)
    }

    /// Every entry with the addresses it owns, in the order of addresses.
    pub fn spans(&self) -> impl Iterator<Item = (Span, &Entry)> {
        let ends = self.entries.keys().skip(1).map(|next| before(*next)).chain([self.universe.last()]);
        self.entries
            .iter()
            .zip(ends)
            .filter_map(|((token, entry), end)| Some((Span::new(*token, end)?, entry)))
    }

    /// What each peer owns, in the fewest runs.
    #[must_use]
    pub fn ranges(&self) -> BTreeMap<PeerName, Vec<Span>> {
        let mut ranges = BTreeMap::<PeerName, Vec<Span>>::new();
        let mut previous = None;
        for (span, entry) in self.spans() {
            let owned = ranges.entry(entry.owner).or_default();
            match owned.last_mut() {
                Some(last) if previous == Some(entry.owner) => {
                    *last = Span::new(last.first(), span.last()).unwrap_or(span);
                }
                _ => owned.push(span),
            }
            previous = Some(entry.owner);
        }
        ranges
    }

    /// What `peer` owns, in the fewest runs.
    #[must_use]
    pub fn ranges_of(&self, peer: PeerName) -> Vec<Span> {
        self.ranges().remove(&peer).unwrap_or_default()
    }

    /// How many addresses each owner has.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<PeerName, u128> {
        let mut sizes = BTreeMap::new();
        for (span, entry) in self.spans() {
            *sizes.entry(entry.owner).or_default() += span.len();
        }
        sizes
    }

    /// Every peer that owns something.
    #[must_use]
    pub fn owners(&self) -> BTreeSet<PeerName> {
        self.entries.values().map(|entry| entry.owner).collect()
    }

    /// How many entries there are.
    #[must_use]
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// `giver`, who must own all of `block`, makes it `taker`'s.
    ///
    /// # Errors
    /// The giver does not own all of it, or the ring is full; then nothing has changed.
    pub fn grant(&mut self, block: Cidr, giver: PeerName, taker: PeerName) -> Result<(), GrantError> {
        let inside = self.universe.contains(block.first()) && self.universe.contains(block.last());
        let Some(at_start) = self.entry_of(block.first()).copied().filter(|_| inside) else {
            return Err(GrantError::NotMine { block, giver });
        };
        let within = || self.entries.range(block.first()..=block.last());
        if at_start.owner != giver || within().any(|(_, entry)| entry.owner != giver) {
            return Err(GrantError::NotMine { block, giver });
        }
        if self.entries.len() + 2 > MAX_RING_ENTRIES {
            return Err(GrantError::Full);
        }
        self.fence(block);
        for (_, entry) in self.entries.range_mut(block.first()..=block.last()) {
            entry.owner = taker;
            entry.version = entry.version.saturating_add(1);
        }
        Ok(())
    }

    /// Puts tokens where `block` begins and where the address behind it does, so that it can change on its own.
    fn fence(&mut self, block: Cidr) {
        let behind = (block.last() != self.universe.last()).then(|| after(block.last()));
        for token in behind.into_iter().chain([block.first()]) {
            if let Some(ruling) = self.entry_of(token).copied() {
                self.entries.entry(token).or_insert(Entry { version: 1, ..ruling });
            }
        }
    }

    /// `heir` takes everything that `removed` owns, and begins a new era there. Returns how many addresses that
    /// were. To be called only when a majority has acknowledged the removal.
    pub fn take_over(&mut self, removed: PeerName, heir: PeerName) -> u128 {
        let taken = self.sizes().remove(&removed).unwrap_or(0);
        for entry in self.entries.values_mut().filter(|entry| entry.owner == removed) {
            let era = Era { takeovers: entry.era.takeovers.saturating_add(1), heir: Some(heir) };
            *entry = Entry { owner: heir, version: 1, era };
        }
        taken
    }

    /// Panics where the ring is not what its documentation promises; for tests and debug builds.
    ///
    /// # Panics
    /// See above.
    pub fn check_invariants(&self) {
        assert_eq!(
            self.entries.keys().next(),
            Some(&self.universe.first()),
            "the ring begins with the range"
        );
        assert!(
            self.entries.keys().all(|token| self.universe.contains(*token)),
            "every token is in the range"
        );
        assert!(self.entries.len() <= MAX_RING_ENTRIES, "the ring is not too large to be told");
        let covered: u128 = self.spans().map(|(span, _)| span.len()).sum();
        assert_eq!(covered, self.universe.len(), "the ring covers the range exactly");
    }
}

/// The address behind `address`; only asked where there is one in the range.
fn after(address: IpAddr) -> IpAddr {
    address_at(position(address).wrapping_add(1), address)
}

/// The address before `address`; only asked of tokens behind another.
fn before(address: IpAddr) -> IpAddr {
    address_at(position(address).wrapping_sub(1), address)
}

#[cfg(test)]
mod tests;
