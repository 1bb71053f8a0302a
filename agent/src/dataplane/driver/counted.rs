//! What the engine has counted, for the status document and the metrics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_proto::local::status::{SessionStatus, TunnelStatus};

use crate::dataplane::sleeve::CountersSnapshot;

/// How often counts are told. They are shown to people and scraped by Prometheus, which asks every 15 s or so.
const PACE: Duration = Duration::from_secs(10);

/// The same if something was refused since: that is what an operator looks for.
const PACE_OF_DROPS: Duration = Duration::from_secs(1);

/// What was counted, of the tunnels and of the session that is sent with to each peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// All tunnels together.
    pub tunnels: TunnelStatus,
    /// By peer.
    pub sessions: BTreeMap<PeerName, SessionStatus>,
}

/// When what was told.
#[derive(Default)]
pub(super) struct Teller {
    last: Option<(Instant, Counted)>,
}

impl Teller {
    /// Whether to look now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.last.as_ref().is_none_or(|(at, _)| now >= *at + PACE_OF_DROPS)
    }

    /// `counted`, if it is time to tell it.
    pub(super) fn news(&mut self, counted: Counted, now: Instant) -> Option<Counted> {
        let is_news = match &self.last {
            None => true,
            Some((_, last)) if last.tunnels.drops != counted.tunnels.drops => true,
            Some((at, last)) => now >= *at + PACE && *last != counted,
        };
        is_news.then(|| {
            self.last = Some((now, counted.clone()));
            counted
        })
    }
}

/// The engine's counters under the names that people see.
pub(super) fn named(count: &CountersSnapshot) -> TunnelStatus {
    let by_name =
        |counts: &[(&str, u64)]| counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
    TunnelStatus {
        sent_bytes: count.bytes_sent,
        received_bytes: count.bytes_received,
        opened_records: count.records_opened,
        relayed_frames: count.relayed,
        drops: by_name(&[
            ("forged", count.forged),
            ("replayed", count.replayed),
            ("unknown session", count.unknown_records),
            ("malformed", count.malformed),
            ("foreign source", count.foreign_source),
            ("congestion", count.congestion_drops),
            ("no session", count.no_route),
            ("not sendable", count.not_taken),
            ("too long", count.too_long_sent),
            ("key used up", count.exhausted),
            ("send failed", count.send_failures),
            ("quic queue full", count.quic_queue_full),
            ("device refused", count.device_write_failures),
            ("relay refused", count.relay_refused),
            ("relay without a way", count.relay_no_way),
            ("relay loop", count.relay_loops),
        ]),
        fallbacks: by_name(&[
            ("sent one by one", count.unsegmented_batches),
            ("cut for the device", count.device_splits),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_told_soon_and_everything_else_in_time() {
        let (mut teller, start) = (Teller::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let mut count = CountersSnapshot::default();
        let counted = |count: &CountersSnapshot| Counted { tunnels: named(count), ..Counted::default() };
        assert!(teller.news(counted(&count), at(0)).is_some());
        count.bytes_sent = 7;
        assert!(!teller.is_due(at(500)) && teller.is_due(at(1000)));
        assert_eq!(teller.news(counted(&count), at(1000)), None);
        count.forged = 1;
        let told = teller.news(counted(&count), at(2000)).unwrap();
        assert_eq!((told.tunnels.drops["forged"], told.tunnels.sent_bytes), (1, 7));
        count.bytes_sent = 8;
        assert_eq!(teller.news(counted(&count), at(11_000)), None);
        assert!(teller.news(counted(&count), at(12_000)).is_some());
        assert_eq!(teller.news(counted(&count), at(60_000)), None, "nothing new");
    }
}
