//! Epochs: when a key is replaced, and how nothing is lost by it.
//!
//! A session belongs to one QUIC connection. From the connection's exporter secret both ends derive the same chain
//! of epochs for each direction ([`crate::keys`]), so a new epoch needs no message: the sender starts to use it, and
//! the receiver, which keeps the keys of the epoch it expects ready, sees it arrive.
//!
//! ```text
//! sender      ── 0 ──────── age or count ──▶ 1, as soon as some record of epoch 0 is known to have arrived
//! receiver    opens {0, 1} ── first record of 1 ──▶ opens {0, 1, 2} ── LINGER ──▶ opens {1, 2}
//! ```
//!
//! * **Never more than one ahead.** The receiver has keys for one epoch beyond the newest that it has seen. So the
//!   sender moves on only when the receiver has *confirmed* the present epoch: each record carries the newest epoch
//!   that its sender has opened in the other direction. While nothing is confirmed the sender stays, up to the hard
//!   limit of the key; then it stops rather than weaken it.
//! * **The old epoch opens until the new one has been seen, and a while longer**, for records that were overtaken.
//! * **A new connection is a new session** with receiver indexes of its own. The old session goes on opening until
//!   its owner drops it; sending moves over when the other end has told its index, which it does only after it can
//!   open. Duplicate connections are just several sessions.
//!
//! Feed it with `handle_*`, drain [`Session::poll_output`] after each, call [`Session::handle_timeout`] at
//! [`Session::poll_timeout`].

use std::collections::VecDeque;
use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use crate::keys::{Chain, QueueKey, Role, Suite};
use crate::lane::SealLane;

/// The age at which a key is replaced: WireGuard's, and well within every usage limit at any rate that one
/// processor core can seal.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);

/// How long an epoch still opens after its successor was seen: many times any reordering in a network.
pub const LINGER: Duration = Duration::from_secs(10);

/// What two ends have agreed on. Everything but the role and the indexes' order is equal at both.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Which end this is.
    pub role: Role,
    /// The AEAD.
    pub suite: Suite,
    /// How many queues this end sends on.
    pub send_queues: NonZeroU8,
    /// How many queues the other end sends on.
    pub receive_queues: NonZeroU8,
    /// The number by which the other end knows the session: it stands in what is sent.
    pub remote_index: u32,
    /// The longest record that will be sealed: longer ones use up a key sooner.
    pub record_len: usize,
}

/// What to seal with from now on.
pub struct SealEpoch {
    /// Counted from the session's start; its low byte is on the wire.
    pub epoch: u64,
    /// One a queue.
    pub lanes: Vec<SealLane>,
}

/// Keys that open one epoch.
pub struct OpenEpoch {
    /// Counted from the session's start; its low byte is on the wire.
    pub epoch: u64,
    /// One a queue of the sender.
    pub keys: Vec<QueueKey>,
}

/// What the data plane is to do. In order.
pub enum Output {
    /// Be able to open this epoch too.
    Open(OpenEpoch),
    /// Open this epoch no longer, and forget its keys.
    Forget(u64),
    /// Seal with this epoch from now on.
    Seal(SealEpoch),
}

/// The epochs of one session. See the module's text.
pub struct Session {
    config: Config,
    sending: Chain,
    sending_since: Instant,
    confirmed: bool,
    /// The chain one epoch beyond the newest that was seen.
    expected: Chain,
    forgetting: Option<(u64, Instant)>,
    outputs: VecDeque<Output>,
}

impl Session {
    /// The session of the connection that exported `exported` (at least 32 bytes, the same at both ends).
    #[must_use]
    pub fn new(config: Config, exported: &[u8], now: Instant) -> Self {
        let sending = Chain::first(exported, config.role, config.suite);
        let receiving = Chain::first(exported, config.role.other(), config.suite);
        let expected = receiving.next();
        let mut session = Self {
            config,
            sending,
            sending_since: now,
            confirmed: false,
            expected,
            forgetting: None,
            outputs: VecDeque::new(),
        };
        session.outputs.push_back(session.open_epoch(&receiving));
        session.outputs.push_back(session.open_epoch(&session.expected));
        session.push_seal();
        session
    }

    /// An authentic record of this epoch has come; the low byte of the header is enough.
    pub fn handle_opened(&mut self, epoch: u8, now: Instant) {
        if epoch != low_byte(self.expected.epoch()) {
            return;
        }
        let newest = self.expected.epoch();
        self.forget_now();
        self.forgetting = newest.checked_sub(1).map(|previous| (previous, now + LINGER));
        self.expected = self.expected.next();
        self.outputs.push_back(self.open_epoch(&self.expected));
    }

    /// An authentic record says that this is the newest epoch that the other end has opened.
    pub const fn handle_confirmed(&mut self, epoch: u8) {
        self.confirmed = self.confirmed || epoch == low_byte(self.sending.epoch());
    }

    /// The lanes of the present epoch have sealed this many records, the busiest of them.
    pub fn handle_sealed(&mut self, records: u64, now: Instant) {
        if records >= self.config.suite.record_limit(self.config.record_len) {
            self.advance(now);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.forgetting.is_some_and(|(_, at)| now >= at) {
            self.forget_now();
        }
        if now >= self.sending_since + REKEY_AFTER {
            self.advance(now);
        }
    }

    /// When to call [`Session::handle_timeout`] next, and why. A deadline that is past waits for a confirmation and
    /// is not repeated.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let rekey = self.confirmed.then_some((self.sending_since + REKEY_AFTER, "rekey by age"));
        let forget = self.forgetting.map(|(_, at)| (at, "forget the previous epoch"));
        rekey.into_iter().chain(forget).min()
    }

    /// What the data plane is to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The epoch that is sent with.
    #[must_use]
    pub const fn sending_epoch(&self) -> u64 {
        self.sending.epoch()
    }

    /// The low byte of the newest epoch that was opened: what own records are to confirm.
    #[must_use]
    pub const fn opened_epoch(&self) -> u8 {
        low_byte(self.expected.epoch()).wrapping_sub(1)
    }

    fn advance(&mut self, now: Instant) {
        if !self.confirmed {
            return;
        }
        self.sending = self.sending.next();
        self.sending_since = now;
        self.confirmed = false;
        self.push_seal();
    }

    fn forget_now(&mut self) {
        if let Some((epoch, _)) = self.forgetting.take() {
            self.outputs.push_back(Output::Forget(epoch));
        }
    }

    fn push_seal(&mut self) {
        let epoch = self.sending.epoch();
        let Config { suite, send_queues, remote_index, record_len, .. } = self.config;
        // Twice the number at which the key is to be replaced: where to stop if it could not be.
        let end = suite.record_limit(record_len) * 2;
        let lane = |queue| SealLane::new(self.sending.key(queue), remote_index, queue, low_byte(epoch), end);
        let lanes = (0..send_queues.get()).map(lane).collect();
        self.outputs.push_back(Output::Seal(SealEpoch { epoch, lanes }));
    }

    fn open_epoch(&self, chain: &Chain) -> Output {
        let keys = (0..self.config.receive_queues.get()).map(|queue| chain.key(queue)).collect();
        Output::Open(OpenEpoch { epoch: chain.epoch(), keys })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the wire carries the low byte")]
const fn low_byte(epoch: u64) -> u8 {
    epoch as u8
}

#[cfg(test)]
mod tests;
