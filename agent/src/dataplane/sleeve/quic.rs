//! Records as the datagrams of a QUIC connection, for paths that let nothing else through.
//!
//! The connection is one of its own beside the control connection, so that a flood of pods' packets can hold up
//! neither gossip nor its acknowledgements (docs/adr/0007). Whoever owns the connection hands it over
//! ([`super::Engine::carry`]) and gets two things: a [`QuicLink`], by which tables name it as a
//! [`Carrier`](super::Carrier), and a task that reads it.
//!
//! **Sending** is done by the packet threads: they seal a batch as for UDP, and put its records one by one into the
//! connection's queue, which is short; what does not fit is dropped and counted, as a device with a full queue does,
//! and the flows inside notice. The connection's driver wakes once for the batch.
//!
//! **Receiving** drains the connection into a run as the kernel would have given it for UDP, so that everything
//! behind (opening, joining, forwarding) is the same code and works on runs.
//!
//! **Cancelling.** The reading task may be cancelled at any `await`: what it had received by then has been written.

mod valve;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use quinn::{AckFrequencyConfig, Connection, MtuDiscoveryConfig, SendDatagramError, TransportConfig, VarInt};
use weave_proto::PeerName;
use weave_sleeve::outbox::Batch;

use super::carrier::Source;
use super::counters::Counters;
use super::intake::{Arrival, Intake};
use super::{Event, Shared};

/// What may wait to be sent on one connection: 2 ms at 2 Gb/s, a dozen super-packets. A queue beyond that adds delay and
/// nothing else.
const SEND_BUFFER: usize = 1 << 20;

/// What may wait to be read: as much as a burst of several senders' flows brings while the reader is not running.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The longest UDP payload that is searched for: that of a jumbo frame of 9000 bytes over IPv4.
pub const MAX_UDP_PAYLOAD: u16 = 9000 - 28;

/// How soon after a path turned out to take less than before it is searched again. Loss by a flood looks the same, and
/// shall not leave the path narrow for a minute.
const SEARCH_AGAIN: Duration = Duration::from_secs(5);

/// How often a path that is wide as far as known is searched for more.
const SEARCH: Duration = Duration::from_secs(60);

/// Packets that the other end may leave without an acknowledgement: as many as one call sends. By default every second
/// one is acknowledged, and the way back carries half as many packets as the way there.
const ACKNOWLEDGE_EVERY: u32 = 20;

/// Bytes of a gathered run: as many as a UDP run has at most.
const RUN_LEN: usize = 65_536;

/// Datagrams taken before other tasks have their turn: a few runs.
const DATAGRAMS_A_TURN: usize = 256;

/// How often the path is asked how long a datagram may be, beside at each wake-up by a packet.
const LOOK: Duration = Duration::from_secs(1);

/// Makes a connection fit to be a carrier. Times of silence are left as they are.
pub fn tune(config: &mut TransportConfig) {
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(MAX_UDP_PAYLOAD).interval(SEARCH).black_hole_cooldown(SEARCH_AGAIN);
    let mut acknowledge = AckFrequencyConfig::default();
    acknowledge.ack_eliciting_threshold(VarInt::from_u32(ACKNOWLEDGE_EVERY));
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER))
        .datagram_send_buffer_size(SEND_BUFFER)
        .mtu_discovery_config(Some(search))
        .ack_frequency_config(Some(acknowledge))
        .congestion_controller_factory(Arc::new(valve::Valves));
}

/// A QUIC connection with a peer, as a carrier of records. Equal to its clones only.
#[derive(Clone)]
pub struct QuicLink(Arc<Link>);

struct Link {
    connection: Connection,
    peer: PeerName,
    largest: AtomicUsize,
}

impl QuicLink {
    pub(super) fn new(peer: PeerName, connection: Connection) -> Self {
        let largest = AtomicUsize::new(connection.max_datagram_size().unwrap_or(0));
        Self(Arc::new(Link { connection, peer, largest }))
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> PeerName {
        self.0.peer
    }

    /// Bytes of the longest datagram at present; 0 if the other end takes none.
    #[must_use]
    pub fn largest(&self) -> usize {
        self.0.largest.load(Ordering::Relaxed)
    }

    /// What quinn counts.
    #[cfg(test)]
    pub(super) fn stats(&self) -> quinn::ConnectionStats {
        self.0.connection.stats()
    }

    /// Closes the connection and tells the other end why.
    pub fn close(&self, why: &str) {
        self.0.connection.close(VarInt::from_u32(0), why.as_bytes());
    }

    pub(super) fn send(&self, batch: &Batch<'_>, count: &Counters) {
        let Batch { datagrams, segment, .. } = *batch;
        let Self(link) = self;
        if link.connection.datagram_send_buffer_space() < datagrams.len() {
            return count.quic_queue_full.one();
        }
        let whole = Bytes::copy_from_slice(datagrams);
        let mut at = 0;
        while at < whole.len() {
            let end = whole.len().min(at + segment);
            match link.connection.send_datagram(whole.slice(at..end)) {
                Ok(()) => {}
                Err(SendDatagramError::TooLarge) => count.too_long_sent.one(),
                Err(_) => return count.send_failures.one(),
            }
            at = end;
        }
        count.batches_sent.one();
        count.bytes_sent.add(whole.len() as u64);
    }

    /// The new length, if it has changed since this was last asked.
    fn look(&self) -> Option<usize> {
        let Self(link) = self;
        let now = link.connection.max_datagram_size().unwrap_or(0);
        (link.largest.swap(now, Ordering::Relaxed) != now).then_some(now)
    }
}

impl PartialEq for QuicLink {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for QuicLink {}

impl fmt::Debug for QuicLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuicLink({} at {})", self.0.peer, self.0.connection.remote_address())
    }
}

/// Reads the connection until it ends.
pub(super) async fn read(link: QuicLink, shared: Arc<Shared>, mut intake: Intake) {
    let mut run = Run { bytes: Vec::with_capacity(RUN_LEN), segment: 0, source: Source::Quic(link.peer()) };
    let mut look = tokio::time::interval(LOOK);
    shared.tell(Event::QuicLargest { link: link.clone(), largest: link.largest() });
    loop {
        let first = tokio::select! {
            first = link.0.connection.read_datagram() => Some(first),
            _ = look.tick() => None,
        };
        if let Some(largest) = link.look() {
            shared.tell(Event::QuicLargest { link: link.clone(), largest });
        }
        match first {
            None => {}
            Some(Ok(first)) => drain(&link, &mut run, &mut intake, &first).await,
            Some(Err(error)) => {
                return shared.tell(Event::QuicLost { link, why: error.to_string() });
            }
        }
    }
}

/// Takes `first` and whatever else has come.
async fn drain(link: &QuicLink, run: &mut Run, intake: &mut Intake, first: &Bytes) {
    run.take(first, intake);
    for _ in 1..DATAGRAMS_A_TURN {
        match link.0.connection.read_datagram().now_or_never() {
            Some(Ok(datagram)) => run.take(&datagram, intake),
            // An error will be there again when the next one is waited for.
            Some(Err(_)) | None => {
                run.hand_over(intake);
                return intake.flush();
            }
        }
    }
    run.hand_over(intake);
    tokio::task::yield_now().await;
}

/// Datagrams of one length, of which the last may be shorter, one behind the other.
struct Run {
    bytes: Vec<u8>,
    segment: usize,
    source: Source,
}

impl Run {
    fn take(&mut self, datagram: &Bytes, intake: &mut Intake) {
        let open = !self.bytes.is_empty() && self.bytes.len().is_multiple_of(self.segment);
        if !open || datagram.len() > self.segment || self.bytes.len() + datagram.len() > RUN_LEN {
            self.hand_over(intake);
            self.segment = datagram.len().max(1);
        }
        self.bytes.extend_from_slice(datagram);
    }

    fn hand_over(&mut self, intake: &mut Intake) {
        if !self.bytes.is_empty() {
            let arrival = Arrival { source: self.source, segment: self.segment, traffic_class: 0 };
            intake.batch(&mut self.bytes, &arrival);
            self.bytes.clear();
        }
    }
}
