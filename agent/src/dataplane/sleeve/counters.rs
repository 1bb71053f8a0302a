//! What the engine counts. Each thread adds up in plain numbers and publishes after each batch.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// The engine's counters, all since it was started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])+ pub(super) $name: Counter,)+
        }

        /// The counters at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct CountersSnapshot {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// The counters now.
            #[must_use]
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.now(),)+ }
            }
        }
    };
}

counters! {
    /// Packets and super-packets read from the device.
    device_reads,
    /// Packets and super-packets written to the device.
    device_writes,
    /// The device refused a packet.
    device_write_failures,
    /// Super-packets that the kernel did not know and that were cut for it.
    device_splits,
    /// Segmented sends.
    batches_sent,
    /// Bytes of UDP payload sent.
    bytes_sent,
    /// Sends that failed for good.
    send_failures,
    /// Batches repeated record by record, because the kernel or the device could not segment them.
    unsegmented_batches,
    /// Records longer than the path takes.
    too_long_sent,
    /// Receive calls that brought something.
    batches_received,
    /// Authentic records.
    records_opened,
    /// Bytes of UDP payload received.
    bytes_received,
    /// Packets to an address that no peer owns, or whose owner has no session.
    no_route,
    /// Packets from the device that cannot be sent: malformed, or too long for the path.
    not_taken,
    /// Packets not sent because a key was used up.
    exhausted,
    /// Datagrams that are no records, or of no known session or epoch.
    unknown_records,
    /// Records whose counter was seen or is too old.
    replayed,
    /// Records that were not authentic.
    forged,
    /// Authentic packets from an address that is not their peer's.
    foreign_source,
    /// Authentic records without a well-formed packet.
    malformed,
    /// Frames sent on for other peers.
    relayed,
    /// Frames that are none, or were not let in: of no session, or from elsewhere than the session's peer.
    relay_refused,
    /// Frames to a peer that there is no way to.
    relay_no_way,
    /// Frames that had no hop left, or whose way led back.
    relay_loops,
    /// Batches for which a QUIC connection's queue had no room.
    quic_queue_full,
    /// Congestion marks on packets that could not carry them on (RFC 6040): dropped.
    congestion_drops,
}

/// One counter.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(super) fn add(&self, count: u64) {
        let Self(value) = self;
        value.fetch_add(count, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn now(&self) -> u64 {
        let Self(value) = self;
        value.load(Ordering::Relaxed)
    }
}
