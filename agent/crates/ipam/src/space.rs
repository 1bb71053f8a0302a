//! The addresses of this peer's own ranges: which are taken, which rest, which are free.
//!
//! **Which address next.** The lowest that is neither taken nor remembered as freed; so a node's addresses stay
//! close together and large aligned blocks stay free for peers that need space. When there is none, the one that
//! has been free the longest.
//!
//! **Quarantine.** A freed address rests for [`QUARANTINE`]: caches, connections and packets that still mean its
//! former holder die out. While it rests it is given out only if nobody, neither this peer nor one that can be
//! asked, has any other address. The last [`REMEMBERED`] freed addresses are remembered for longer than that,
//! which makes reuse least recently freed first without a record of every address there ever was.
//!
//! **Never given out.** In IPv4 the first and the last address of the whole range, which are its network and its
//! broadcast address; in IPv6 the first, the subnet routers' anycast address (RFC 4291 section 2.6.1). The ring
//! counts them in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use weave_proto::addr::{address_at, family_bits, position};
use weave_proto::{Cidr, Span};

/// How long a freed address rests. Longer than a TCP connection lingers (TIME_WAIT, 60 s on Linux) and than a
/// neighbour or DNS entry usually lives.
pub const QUARANTINE: Duration = Duration::from_secs(60);

/// How many freed addresses are remembered at least. A few times the pods of a large node, so that an address
/// comes back only after some generations of pods.
pub const REMEMBERED: usize = 1024;

/// This peer's addresses.
#[derive(Debug, Clone)]
pub struct Space {
    universe: Cidr,
    own: Vec<Span>,
    taken: BTreeSet<IpAddr>,
    resting: BTreeMap<IpAddr, Rest>,
    oldest: BTreeMap<u64, IpAddr>,
}

/// Since when an address is free.
#[derive(Debug, Clone, Copy)]
struct Rest {
    order: u64,
    since: Instant,
}

/// Why an address that was named cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// Not in this peer's ranges.
    Foreign,
    /// Never given out.
    Reserved,
    /// Somebody has it.
    Taken,
}

impl Space {
    /// Owns nothing yet.
    #[must_use]
    pub const fn new(universe: Cidr) -> Self {
        Self {
            universe,
            own: Vec::new(),
            taken: BTreeSet::new(),
            resting: BTreeMap::new(),
            oldest: BTreeMap::new(),
        }
    }

    /// From now on, `own` is owned: runs in ascending order that do not touch. Returns the addresses which were
    /// resting and are not owned any more; what is taken stays taken until it is released.
    pub fn set_own(&mut self, own: Vec<Span>) -> Vec<IpAddr> {
        self.own = own;
        let lost: Vec<IpAddr> = self.resting.keys().copied().filter(|address| !self.owns(*address)).collect();
        lost.iter().for_each(|address| self.wake(*address));
        lost
    }

    /// Whether `address` is in this peer's ranges.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.own.iter().any(|span| span.contains(address))
    }

    /// How many addresses this peer owns.
    #[must_use]
    pub fn owned(&self) -> u128 {
        self.own.iter().map(|span| span.len()).sum()
    }

    /// How many addresses are taken.
    #[must_use]
    pub fn taken(&self) -> u128 {
        self.taken.len() as u128
    }

    /// How many addresses this peer could give out or away, the resting ones included.
    #[must_use]
    pub fn free(&self) -> u128 {
        let reserved = self.reserved().filter(|address| self.owns(*address)).count() as u128;
        self.owned().saturating_sub(reserved + self.taken())
    }

    /// How many addresses are in quarantine.
    #[must_use]
    pub fn quarantined(&self, now: Instant) -> usize {
        self.resting.values().filter(|rest| rest.in_quarantine(now)).count()
    }

    /// When the next address leaves its quarantine.
    #[must_use]
    pub fn next_release(&self, now: Instant) -> Option<Instant> {
        self.resting.values().filter(|rest| rest.in_quarantine(now)).map(|rest| rest.since + QUARANTINE).min()
    }

    /// The address to give out next, outside quarantine.
    #[must_use]
    pub fn next_free(&self, now: Instant) -> Option<IpAddr> {
        let never_used = self.free_runs(|_| true).next().map(Span::first);
        never_used.or_else(|| self.oldest().filter(|address| !self.resting[address].in_quarantine(now)))
    }

    /// The address that has been free the longest, be it in quarantine.
    #[must_use]
    pub fn oldest(&self) -> Option<IpAddr> {
        self.oldest.values().next().copied()
    }

    /// Whether `address` can be given out if somebody asks for just that one; its quarantine does not matter.
    ///
    /// # Errors
    /// Why not.
    pub fn available(&self, address: IpAddr) -> Result<(), Unavailable> {
        if self.taken.contains(&address) {
            Err(Unavailable::Taken)
        } else if self.reserved().any(|reserved| reserved == address) {
            Err(Unavailable::Reserved)
        } else if !self.owns(address) {
            Err(Unavailable::Foreign)
        } else {
            Ok(())
        }
    }

    /// Gives `address` out. Returns whether it was remembered as freed.
    pub fn take(&mut self, address: IpAddr) -> bool {
        self.taken.insert(address);
        let resting = self.resting.contains_key(&address);
        self.wake(address);
        resting
    }

    /// `address` is given back and begins to rest, if it is still owned; `order` is larger than that of any
    /// address freed before. Returns which addresses are forgotten in its place.
    pub fn release(&mut self, address: IpAddr, order: u64, now: Instant) -> Vec<IpAddr> {
        self.taken.remove(&address);
        if self.owns(address) {
            self.resting.insert(address, Rest { order, since: now });
            self.oldest.insert(order, address);
        }
        let mut forgotten = Vec::new();
        while self.resting.len() > REMEMBERED {
            match self.oldest() {
                Some(oldest) if !self.resting[&oldest].in_quarantine(now) => {
                    self.wake(oldest);
                    forgotten.push(oldest);
                }
                _ => break,
            }
        }
        forgotten
    }

    /// Whether `address` is remembered as freed.
    #[must_use]
    pub fn rests(&self, address: IpAddr) -> bool {
        self.resting.contains_key(&address)
    }

    /// A block to give away: the largest aligned one of at most `limit` addresses in which nothing is taken or in
    /// quarantine; of equal ones the last, since addresses are given out from the front.
    #[must_use]
    pub fn spare_block(&self, limit: u128, now: Instant) -> Option<Cidr> {
        let blocks = self.free_runs(|rest| rest.in_quarantine(now)).flat_map(Span::cidrs);
        let largest = blocks.filter(|_| limit > 0).max_by_key(|block| block.len())?;
        let host_bits = limit.min(largest.len()).ilog2();
        #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a u128 is below 128")]
        let prefix = family_bits(largest.first()) - host_bits as u8;
        Cidr::containing(largest.last(), prefix)
    }

    /// `block` is given away: what rested in it is forgotten. Returns these addresses.
    pub fn forget_within(&mut self, block: Cidr) -> Vec<IpAddr> {
        let within: Vec<IpAddr> = self.resting.range(block.first()..=block.last()).map(|(a, _)| *a).collect();
        within.iter().for_each(|address| self.wake(*address));
        within
    }

    /// The runs of owned addresses that are not reserved, taken, or resting in a way that `counts`.
    fn free_runs(&self, counts: impl Fn(&Rest) -> bool) -> impl Iterator<Item = Span> {
        let resting = self.resting.iter().filter(|(_, rest)| counts(rest)).map(|(address, _)| *address);
        let busy: BTreeSet<IpAddr> =
            self.taken.iter().copied().chain(resting).chain(self.reserved()).collect();
        self.own.iter().flat_map(move |span| gaps(*span, busy.range(span.first()..=span.last()).copied()))
    }

    /// What is never given out.
    fn reserved(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (first, last) = (self.universe.first(), self.universe.last());
        [first].into_iter().chain(last.is_ipv4().then_some(last))
    }

    fn wake(&mut self, address: IpAddr) {
        if let Some(rest) = self.resting.remove(&address) {
            self.oldest.remove(&rest.order);
        }
    }
}

impl Rest {
    fn in_quarantine(&self, now: Instant) -> bool {
        now < self.since + QUARANTINE
    }
}

/// What is left of `span` without the addresses `busy`, which are ascending and inside it.
fn gaps(span: Span, busy: impl Iterator<Item = IpAddr>) -> Vec<Span> {
    let (mut at, end) = (position(span.first()), position(span.last()));
    let mut gaps = Vec::new();
    let mut push = |from: u128, to: u128| {
        let (from, to) = (address_at(from, span.first()), address_at(to, span.first()));
        gaps.extend(Span::new(from, to));
    };
    for address in busy.map(position) {
        if at < address {
            push(at, address - 1);
        }
        match address.checked_add(1) {
            Some(next) => at = next,
            None => return gaps,
        }
    }
    if at <= end {
        push(at, end);
    }
    gaps
}

#[cfg(test)]
mod tests;
