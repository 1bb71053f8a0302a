//! Acknowledgements that say nothing any more.
//!
//! The receiver of a TCP stream acknowledges each super-packet, and one turn of a packet thread delivers several: their
//! acknowledgements are read one behind the other and would arrive one behind the other, each for a seal, a write to
//! the device and a way through the kernel. The last one says all that the others do. So one that finds its flow's last
//! one waiting in the open bundle takes its place (as RFC 3449 section 5.2.1 lets a bottleneck do).
//!
//! Only where nothing is lost by it: both must be acknowledgements and nothing else (no payload, no flag, no option but
//! timestamps), from the same point of the stream, and the later one must acknowledge *more*. Duplicates, selective
//! acknowledgements, window updates, echoes of congestion, and probes of an idle connection all pass.

use crate::inner::{Inner, Transport};

/// An IPv4 header without options, and an IPv6 header without extensions.
const PLAIN_IP: [usize; 2] = [20, 40];
const TCP_MIN: usize = 20;
/// Two bytes of padding, then timestamps: kind 8, ten bytes.
const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];
const WITH_TIMESTAMPS: usize = TCP_MIN + 12;
/// All flags that an acknowledgement has which is nothing else.
const ACK: u8 = 0x10;

/// Whether `later` says all that `earlier` does, so that `earlier` need not be sent.
#[inline]
pub(crate) fn overtakes((inner, later): (Inner, &[u8]), earlier: &[u8]) -> bool {
    let candidate = inner.transport == Transport::Tcp
        && inner.header_len == later.len()
        && inner.claimed_len == later.len()
        && later.len() == earlier.len()
        && inner.ip_len == PLAIN_IP[usize::from(!inner.v4)];
    if !candidate {
        return false;
    }
    let ((later_ip, later), (earlier_ip, earlier)) =
        (later.split_at(inner.ip_len), earlier.split_at(inner.ip_len));
    // What is most often not so comes first: a packet that overtakes nothing shall not pay for the rest.
    let plain = later.get(13) == Some(&ACK) && later.get(12).is_some_and(|offset| offset & 0x0f == 0);
    // Ports and place in the stream; length of the header, reserved bits and flags.
    let same_flow =
        |later: &[u8]| later.get(0..8) == earlier.get(0..8) && later.get(12..14) == earlier.get(12..14);
    is_ahead(later, earlier, 8)
        && plain
        && same_flow(later)
        && same_way(&inner, later_ip, earlier_ip)
        && (later.len() == TCP_MIN || same_clock(later, earlier))
}

/// Whether the IP headers differ in nothing but an identification and checksums.
fn same_way(inner: &Inner, later: &[u8], earlier: &[u8]) -> bool {
    let alike = |range: std::ops::Range<usize>| later.get(range.clone()) == earlier.get(range);
    if inner.v4 { alike(0..4) && alike(6..10) && alike(12..20) } else { alike(0..40) }
}

/// Whether timestamps are the only option of both, and the later one's clock has not gone back.
fn same_clock(later: &[u8], earlier: &[u8]) -> bool {
    let stamped = |tcp: &[u8]| tcp.len() == WITH_TIMESTAMPS && tcp[TCP_MIN..].starts_with(&TIMESTAMPS);
    stamped(later)
        && stamped(earlier)
        && (number(later, 24) == number(earlier, 24) || is_ahead(later, earlier, 24))
}

/// Whether the number at this place is greater in `later`, as numbers of TCP go: around a circle.
fn is_ahead(later: &[u8], earlier: &[u8], at: usize) -> bool {
    let ahead = number(later, at).wrapping_sub(number(earlier, at));
    ahead != 0 && ahead < 1 << 31
}

fn number(tcp: &[u8], at: usize) -> u32 {
    tcp.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
