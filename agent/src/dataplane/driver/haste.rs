//! Who is in haste: a peer whose probes come faster than any regular pace has packets for this node and doubts its way.
//!
//! Its packets may be lost on a way that is dead in both directions, so that nothing else tells this node that answers will
//! be sent soon. What is in haste counts as traffic: this node's own way is asked at the same time, not one after the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weave_proto::PeerName;

use crate::dataplane::sleeve::Source;

/// Between two small probes on one way: less than the pace of a way with traffic, more than that of one in doubt.
const HASTE: Duration = Duration::from_millis(350);

/// When each peer has last probed each way.
#[derive(Default)]
pub(super) struct Haste {
    last: BTreeMap<(PeerName, Road), Instant>,
}

/// What a probe came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Road {
    Kernel,
    Udp,
    Quic,
    Relay(PeerName),
}

impl From<Source> for Road {
    fn from(source: Source) -> Self {
        match source {
            Source::Udp(_) => Self::Udp,
            Source::Quic(_) => Self::Quic,
            Source::Relay(hop) => Self::Relay(hop),
        }
    }
}

impl Haste {
    /// A small probe has come; whether the peer is in haste.
    pub(super) fn heard(&mut self, peer: PeerName, road: Road, now: Instant) -> bool {
        self.last.retain(|_, at| now < *at + HASTE);
        self.last.insert((peer, road), now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_that_follow_each_other_closely_on_one_way_show_haste() {
        let (mut haste, start) = (Haste::default(), Instant::now());
        let [one, other] = [7, 8].map(|last| PeerName::from_bits([2, 0, 0, 0, 0, last]));
        let at = |millis| start + Duration::from_millis(millis);
        assert!(!haste.heard(one, Road::Udp, at(0)));
        assert!(!haste.heard(one, Road::Relay(other), at(10)) && !haste.heard(other, Road::Udp, at(20)));
        assert!(haste.heard(one, Road::Udp, at(250)));
        assert!(!haste.heard(one, Road::Udp, at(700)), "the pace of a way with traffic");
        assert!(haste.heard(one, Road::Udp, at(850)));
    }
}
