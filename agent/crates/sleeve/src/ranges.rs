//! Whose is this address? The longest matching prefix, found by one binary search.
//!
//! Nested prefixes are flattened when the table is made: what remains are disjoint intervals in ascending order,
//! each with the owner of the longest prefix that covers it. A hundred peers with ten ranges each are a thousand
//! intervals: ten steps in memory that stays in the first-level cache.

use std::net::IpAddr;

use weave_proto::Cidr;
use weave_proto::addr::position;

/// The owners of address ranges. Immutable; a change is a new table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges<T> {
    v4: Vec<Interval<u32, T>>,
    v6: Vec<Interval<u128, T>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interval<A, T> {
    first: A,
    last: A,
    owner: T,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T: Copy + Eq> Ranges<T> {
    /// The table of these prefixes. Where two are equal, the later one counts.
    #[must_use]
    pub fn new(prefixes: impl IntoIterator<Item = (Cidr, T)>) -> Self {
        let (v4, v6): (Vec<_>, Vec<_>) =
            prefixes.into_iter().partition(|(prefix, _)| prefix.first().is_ipv4());
        #[expect(clippy::cast_possible_truncation, reason = "positions of IPv4 addresses are below 2^32")]
        let narrow = |interval: Interval<u128, T>| Interval {
            first: interval.first as u32,
            last: interval.last as u32,
            owner: interval.owner,
        };
        Self { v4: flatten(v4).into_iter().map(narrow).collect(), v6: flatten(v6) }
    }

    /// The owner of an address.
    #[inline]
    #[must_use]
    pub fn owner(&self, addr: IpAddr) -> Option<T> {
        match addr {
            IpAddr::V4(v4) => find(&self.v4, u32::from(v4)),
            IpAddr::V6(v6) => find(&self.v6, u128::from(v6)),
        }
    }
}

#[inline]
fn find<A: Ord + Copy, T: Copy>(intervals: &[Interval<A, T>], at: A) -> Option<T> {
    let behind = intervals.partition_point(|interval| interval.first <= at);
    let interval = intervals.get(behind.checked_sub(1)?)?;
    (at <= interval.last).then_some(interval.owner)
}

/// Sweeps over the prefixes from the left; prefixes are nested or disjoint, so those that cover the present point
/// form a stack whose top is the longest.
fn flatten<T: Copy + Eq>(mut prefixes: Vec<(Cidr, T)>) -> Vec<Interval<u128, T>> {
    prefixes.sort_by_key(|&(prefix, _)| (position(prefix.first()), prefix.prefix()));
    let mut flat = Vec::with_capacity(prefixes.len());
    let mut open: Vec<Interval<u128, T>> = Vec::new();
    for (prefix, owner) in prefixes {
        let next = Interval { first: position(prefix.first()), last: position(prefix.last()), owner };
        close_before(&mut open, Some(next.first), &mut flat);
        if let Some(outer) = open.last_mut() {
            if outer.first < next.first {
                push(&mut flat, Interval { last: next.first - 1, ..*outer });
            }
            outer.first = next.first;
        }
        open.push(next);
    }
    close_before(&mut open, None, &mut flat);
    flat
}

/// Takes from the stack what ends before `point` (all of it if there is none).
fn close_before<T: Copy + Eq>(
    open: &mut Vec<Interval<u128, T>>,
    point: Option<u128>,
    flat: &mut Vec<Interval<u128, T>>,
) {
    while let Some(&innermost) = open.last() {
        if point.is_some_and(|point| innermost.last >= point) {
            return;
        }
        open.pop();
        if innermost.first <= innermost.last {
            push(flat, innermost);
        }
        if let (Some(outer), Some(after)) = (open.last_mut(), innermost.last.checked_add(1)) {
            outer.first = outer.first.max(after);
        }
    }
}

/// Appends an interval, joining it with its neighbour where they are one run of one owner.
fn push<T: Copy + Eq>(flat: &mut Vec<Interval<u128, T>>, interval: Interval<u128, T>) {
    match flat.last_mut() {
        Some(before)
            if before.owner == interval.owner && before.last.checked_add(1) == Some(interval.first) =>
        {
            before.last = interval.last;
        }
        _ => flat.push(interval),
    }
}

#[cfg(test)]
mod tests;
