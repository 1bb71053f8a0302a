//! The first split: equal shares for the founders.
//!
//! The range is cut into a power of two of equal blocks, at least [`BLOCKS_PER_FOUNDER`] for each founder, and
//! founder number i of N (in the order of names) gets the blocks from i/N to (i+1)/N of them. So two shares
//! differ by one block at most, and a share is one run of addresses that falls into a few aligned blocks. With
//! three founders of 10.32.0.0/12 the blocks are /18, and the shares hold 21, 21 and 22 of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weave_proto::addr::{address_at, position};
use weave_proto::{Cidr, PeerName};

/// With sixteen blocks or more in a share, the largest share is at most a sixteenth larger than the smallest,
/// while a share is still no more than a handful of routes.
pub const BLOCKS_PER_FOUNDER: u128 = 16;

/// The first address of each founder's share, in the order of names and of addresses. The shares cover the range
/// exactly: each reaches up to the next. A range with fewer addresses than founders leaves the last without.
#[must_use]
pub fn equal_shares(range: Cidr, founders: &BTreeSet<PeerName>) -> Vec<(IpAddr, PeerName)> {
    let count = founders.len() as u128;
    let wanted = count.saturating_mul(BLOCKS_PER_FOUNDER).next_power_of_two();
    let blocks = wanted.min(largest_power_of_two(range.len()));
    let block = largest_power_of_two(range.len()) / blocks;
    let first_block = |index: u128| (index * blocks).div_ceil(count.max(1));
    founders
        .iter()
        .zip(0_u128..)
        .filter(|(_, index)| first_block(*index) < first_block(index + 1))
        .map(|(peer, index)| {
            (address_at(position(range.first()) + first_block(index) * block, range.first()), *peer)
        })
        .collect()
}

/// `len` itself for every block but the whole of IPv6, whose length is counted one short.
const fn largest_power_of_two(len: u128) -> u128 {
    1 << len.ilog2()
}

#[cfg(test)]
mod tests;
