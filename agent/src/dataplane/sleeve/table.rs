//! The tables by which the threads move packets: immutable, replaced whole.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex};

use weave_proto::PeerName;
use weave_sleeve::keys::QueueKey;
use weave_sleeve::ranges::Ranges;
use weave_sleeve::relay::RELAY_LEN;
use weave_sleeve::replay::ReplayWindow;
use weave_sleeve::session::{OpenEpoch, SealEpoch};

use super::carrier::Outlet;

/// All that a thread needs to know.
#[derive(Default)]
pub(super) struct Table {
    /// Whose an inner address is: an index into `peers`.
    pub(super) ranges: Ranges<u32>,
    /// In the order of names.
    pub(super) peers: Vec<PeerRoute>,
    /// In the order of their indexes.
    pub(super) sessions: Vec<OpenSession>,
    /// How to send relay frames on, in the order of names.
    pub(super) forwards: Vec<(PeerName, Forward)>,
}

/// How relay frames get to a peer.
pub(super) struct Forward {
    /// The node that they are sent to: the peer itself, or one on the way.
    pub(super) next: PeerName,
    /// That node's index of its session with this one.
    pub(super) receiver: u32,
    pub(super) outlet: Outlet,
    pub(super) live: Arc<Live>,
}

/// How to send to a peer.
pub(super) struct PeerRoute {
    /// None while the peer has no session: its packets are dropped and counted.
    pub(super) road: Option<Arc<SendRoad>>,
}

/// Where to send, and with what keys.
pub(super) struct SendRoad {
    pub(super) outlet: Outlet,
    /// Bytes of the longest datagram.
    pub(super) datagram_len: usize,
    /// What stands in front of each record, one a lane; none for a direct way.
    pub(super) envelopes: Vec<[u8; RELAY_LEN]>,
    pub(super) seal: Arc<SealEpoch>,
    pub(super) live: Arc<Live>,
}

/// How to open what comes for one session.
pub(super) struct OpenSession {
    /// The number that stands in its records.
    pub(super) index: u32,
    pub(super) peer: PeerName,
    /// The peer's index in [`Table::peers`], for comparison with the owner of a source address.
    pub(super) slot: u32,
    /// Where its records came from so far.
    pub(super) remote: SocketAddr,
    pub(super) epochs: Vec<Arc<OpenKeys>>,
    pub(super) live: Arc<Live>,
}

/// The keys of one epoch, and what has been seen of it.
pub(super) struct OpenKeys {
    pub(super) epoch: u64,
    pub(super) queues: Vec<OpenQueue>,
}

/// One queue of one epoch. The window is locked once a batch, and by nobody else: steering gives a queue to one
/// thread. Should it fail, two threads wait for each other and no record is taken twice.
pub(super) struct OpenQueue {
    pub(super) key: QueueKey,
    pub(super) window: Mutex<ReplayWindow>,
}

/// What the threads tell each other about a session, without a table.
#[derive(Default)]
pub(super) struct Live {
    /// The low byte of the newest epoch opened: what sent records confirm.
    pub(super) opened: AtomicU8,
    /// The low byte of the newest epoch that the other end confirmed.
    pub(super) confirmed: AtomicU8,
    /// Whether it confirmed any.
    pub(super) ever_confirmed: AtomicBool,
    /// Authentic records received.
    pub(super) received: AtomicU64,
    /// Relay frames of others sent on to the peer.
    pub(super) relayed: AtomicU64,
}

impl OpenKeys {
    pub(super) fn new(epoch: OpenEpoch) -> Self {
        let queue = |key| OpenQueue { key, window: Mutex::default() };
        Self { epoch: epoch.epoch, queues: epoch.keys.into_iter().map(queue).collect() }
    }
}

impl Table {
    pub(super) fn session(&self, index: u32) -> Option<&OpenSession> {
        let at = self.sessions.binary_search_by_key(&index, |session| session.index).ok()?;
        self.sessions.get(at)
    }

    pub(super) fn forward(&self, to: PeerName) -> Option<&Forward> {
        let at = self.forwards.binary_search_by_key(&to, |(name, _)| *name).ok()?;
        self.forwards.get(at).map(|(_, forward)| forward)
    }
}

impl OpenSession {
    #[expect(clippy::cast_possible_truncation, reason = "the wire carries the low byte")]
    pub(super) fn keys(&self, epoch: u8) -> Option<&OpenKeys> {
        self.epochs.iter().find(|keys| keys.epoch as u8 == epoch).map(AsRef::as_ref)
    }
}
