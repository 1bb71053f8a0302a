//! What is shared out: addresses of either family, in aligned blocks ([`Cidr`]) and in runs ([`Span`]).
//!
//! Arithmetic is done on a [`u128`] position, which for IPv4 uses the low 32 bits, so that no code outside this
//! module needs to know how long an address is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// An aligned block of addresses: a network without host bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

/// Why something is no [`Cidr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not of the form address/length.
    #[error("{0:?} is no address range: write it like 10.32.0.0/12")]
    Malformed(String),
    /// The prefix is longer than the address.
    #[error("/{prefix} is too long for {first}")]
    PrefixTooLong {
        /// The address given.
        first: IpAddr,
        /// The prefix length given.
        prefix: u8,
    },
    /// There are bits set behind the prefix.
    #[error("{first}/{prefix} has host bits set: did you mean {meant}?")]
    HostBits {
        /// The address given.
        first: IpAddr,
        /// The prefix length given.
        prefix: u8,
        /// The block that holds the address.
        meant: Cidr,
    },
}

/// Bits of an address of the family of `addr`: 32 or 128.
#[must_use]
pub const fn family_bits(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The position of an address on the number line of its family.
#[must_use]
pub fn position(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address at `position` in the family of `like`. Bits that the family does not have are cut off.
#[must_use]
pub fn address_at(position: u128, like: IpAddr) -> IpAddr {
    match like {
        #[expect(clippy::cast_possible_truncation, reason = "an IPv4 position is below 2^32 by construction")]
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(position as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(position)),
    }
}

impl Cidr {
    /// The block `first/prefix`.
    ///
    /// # Errors
    /// The prefix is longer than the address, or `first` has bits set behind it.
    pub fn new(first: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        let meant = Self::containing(first, prefix).ok_or(CidrError::PrefixTooLong { first, prefix })?;
        if meant.first == first { Ok(meant) } else { Err(CidrError::HostBits { first, prefix, meant }) }
    }

    /// The block of length `prefix` that holds `addr`; none if the prefix is longer than the address.
    #[must_use]
    pub fn containing(addr: IpAddr, prefix: u8) -> Option<Self> {
        let host_bits = family_bits(addr).checked_sub(prefix)?;
        let cleared = if host_bits == 128 { 0 } else { (position(addr) >> host_bits) << host_bits };
        Some(Self { first: address_at(cleared, addr), prefix })
    }

    /// The block of this one address.
    #[must_use]
    pub const fn host(addr: IpAddr) -> Self {
        Self { first: addr, prefix: family_bits(addr) }
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// The prefix length in bits.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The last address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        let host_bits = family_bits(self.first) - self.prefix;
        let host_mask = u128::MAX.checked_shr(128 - u32::from(host_bits)).unwrap_or(0);
        address_at(position(self.first) | host_mask, self.first)
    }

    /// How many addresses the block holds. The whole of IPv6 (`::/0`) is counted one short.
    #[must_use]
    pub const fn len(self) -> u128 {
        match 1_u128.checked_shl((family_bits(self.first) - self.prefix) as u32) {
            Some(len) => len,
            None => u128::MAX,
        }
    }

    /// Never: a block holds at least one address.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether `addr` is one of the block's addresses.
    #[must_use]
    pub fn contains(self, addr: IpAddr) -> bool {
        Self::containing(addr, self.prefix.min(family_bits(addr))) == Some(self)
    }

    /// Whether the two blocks share an address (then one holds the other).
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || CidrError::Malformed(text.to_owned());
        let (first, prefix) = text.split_once('/').ok_or_else(malformed)?;
        Self::new(first.parse().map_err(|_| malformed())?, prefix.parse().map_err(|_| malformed())?)
    }
}

impl From<Cidr> for IpNetwork {
    #[expect(clippy::expect_used, reason = "the prefix was checked when the Cidr was made")]
    fn from(cidr: Cidr) -> Self {
        Self::new(cidr.first, cidr.prefix).expect("a Cidr's prefix fits its family")
    }
}

impl TryFrom<IpNetwork> for Cidr {
    type Error = CidrError;

    fn try_from(network: IpNetwork) -> Result<Self, Self::Error> {
        Self::new(network.ip(), network.prefix())
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.first, self.prefix).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            let (first, prefix) = <(IpAddr, u8)>::deserialize(deserializer)?;
            Self::new(first, prefix).map_err(serde::de::Error::custom)
        }
    }
}

/// A run of addresses, both ends included, of one family, never empty. Where a [`Cidr`] is what a route holds,
/// a span is what a peer owns between two tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    first: IpAddr,
    last: IpAddr,
}

impl Span {
    /// The run from `first` to `last`; none if it would be empty or mix families.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// The last address.
    #[must_use]
    pub const fn last(self) -> IpAddr {
        self.last
    }

    /// How many addresses the run holds. The whole of IPv6 is counted one short.
    #[must_use]
    pub fn len(self) -> u128 {
        (position(self.last) - position(self.first)).saturating_add(1)
    }

    /// Never: a span holds at least one address.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Whether `addr` is in the run.
    #[must_use]
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.first.is_ipv4() && self.first <= addr && addr <= self.last
    }

    /// The fewest aligned blocks that make up the run, in ascending order.
    #[must_use]
    pub fn cidrs(self) -> Vec<Cidr> {
        let bits = family_bits(self.first);
        let (mut at, last) = (position(self.first), position(self.last));
        let mut blocks = Vec::new();
        loop {
            let aligned = if at == 0 { u32::from(bits) } else { at.trailing_zeros().min(u32::from(bits)) };
            let fitting = (0..=aligned).rev().find(|&host_bits| {
                let size_less_one = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
                size_less_one <= last - at
            });
            // A block of one address (zero host bits) always fits, so there is always one to take.
            let host_bits = fitting.unwrap_or(0);
            #[expect(clippy::cast_possible_truncation, reason = "at most 128")]
            let block = Cidr { first: address_at(at, self.first), prefix: bits - host_bits as u8 };
            blocks.push(block);
            if block.last() == self.last {
                return blocks;
            }
            at = position(block.last()) + 1;
        }
    }
}

impl From<Cidr> for Span {
    fn from(cidr: Cidr) -> Self {
        Self { first: cidr.first, last: cidr.last() }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.first, self.last).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (first, last) = <(IpAddr, IpAddr)>::deserialize(deserializer)?;
        Self::new(first, last).ok_or_else(|| serde::de::Error::custom("empty or mixed-family address span"))
    }
}

#[cfg(test)]
mod tests;
