//! How large a packet a way carries: a search by probes, in the manner of RFC 8899, of which ICMP is no part.
//!
//! ```text
//!            ┌──────────── answered ───────────┐
//!            v                                 │
//!   Trusting(largest) ── verify now and then ──┴── TRIES lost, small probes answered ──> Searching
//!        ^                                                                                  │
//!        │ largest grew, or it is time to hope again                             proven ≤ size < refused
//!        └───────────────────────────── Settled(proven) <──────── nothing left between ─────┘
//! ```
//!
//! It begins with trust: what the devices promise holds until probes of that size are lost while small ones are
//! answered. From that moment the size in force is one that was proven, or [`BASE`], which fits every path that
//! may carry IPv6 or QUIC; so a black hole costs a flow a second or two, and the search then only makes things better.
//! A size in force is verified again and again, since a path may change under it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::health::{Health, drawn};

/// What fits through any tunnel of ours over a path of 1280 bytes, the least that IPv6 and QUIC ask for.
pub(crate) const BASE: u32 = 1100;

/// The least size that is searched for: what every IPv4 host accepts.
pub(crate) const FLOOR: u32 = 552;

/// What fits over Ethernet through any tunnel of ours: tried early, since it is the likeliest answer.
const LIKELY: u32 = 1380;

/// When two sizes are so near that looking between them is not worth the packets.
const FINE: u32 = 4;

/// How many probes of one size must be lost before it counts as too large: where one packet in ten is lost each way,
/// chance does that to a good size once in 4,000 times.
const TRIES: usize = 5;

/// The least time between two probes.
const PAUSE: Duration = Duration::from_millis(150);

/// How often the size in force is verified on a way with traffic, and on others.
const VERIFY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// After how long the largest size is tried again, at first and at most (RFC 8899 says ten minutes).
const HOPE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// Bytes a second that probes of one way's size may take; a large one is followed by a pause accordingly.
const RATE: u32 = 16 * 1024;

/// A size under test.
#[derive(Debug, Clone)]
struct Test {
    size: u32,
    sent: BTreeMap<u64, Instant>,
}

/// See the module's docs.
#[derive(Debug, Clone)]
pub(crate) struct Pmtu {
    /// What the devices promise.
    largest: u32,
    /// What is in force.
    force: u32,
    /// The largest that has arrived since the path last shrank; none if nothing has.
    proven: Option<u32>,
    /// The smallest known to be lost.
    refused: Option<u32>,
    test: Option<Test>,
    next: Instant,
    /// When to try the largest again though it is refused, and the pause after that.
    hope: Option<Instant>,
    patience: Duration,
}

impl Pmtu {
    /// A path of which the devices promise `largest`, and from before it may be known that less passes.
    pub(crate) fn new(largest: u32, known: Option<u32>, now: Instant) -> Self {
        let known = known.filter(|known| (FLOOR..largest).contains(known));
        Self {
            largest,
            force: known.unwrap_or(largest),
            proven: known,
            refused: known.map(|known| known + 1),
            test: None,
            next: now,
            hope: known.map(|_| now + HOPE.0),
            patience: HOPE.0,
        }
    }

    /// The largest packet to be sent this way.
    pub(crate) const fn force(&self) -> u32 {
        self.force
    }

    /// The devices promise something else now.
    pub(crate) fn promise(&mut self, largest: u32, now: Instant) {
        if largest == self.largest {
            return;
        }
        let trusted = self.refused.is_none();
        self.largest = largest;
        self.proven = self.proven.map(|proven| proven.min(largest));
        self.refused = self.refused.filter(|refused| *refused <= largest);
        self.force = if trusted { largest } else { self.force.min(largest) };
        self.hope = self.refused.map(|_| now);
        (self.test, self.next, self.patience) = (None, now, HOPE.0);
    }

    /// Packets begin to be sent: the size in force is verified now, unless a search goes on anyway.
    pub(crate) fn verify(&mut self, now: Instant) {
        if self.test.is_none() {
            self.next = self.next.min(now);
        }
    }

    /// What the devices promise.
    pub(crate) const fn largest(&self) -> u32 {
        self.largest
    }

    /// When there is something to do, as long as the way answers.
    pub(crate) const fn due(&self) -> Instant {
        self.next
    }

    /// The size to probe for now, if one is due. `way` is how the small probes fare, `used` whether it carries packets at
    /// present.
    pub(crate) fn poll(&mut self, nonce: u64, used: bool, way: &Health, now: Instant) -> Option<u32> {
        if now < self.next {
            return None;
        }
        if self.test.as_ref().is_some_and(|test| test.sent.len() >= TRIES) {
            self.conclude(way, (used, nonce), now);
            return None;
        }
        if self.test.is_none() && self.hope.is_some_and(|at| at <= now) {
            (self.refused, self.hope) = (None, None);
        }
        let size = self.test.as_ref().map_or_else(|| self.candidate(), |test| test.size);
        let test = self.test.get_or_insert_with(|| Test { size, sent: BTreeMap::new() });
        test.sent.insert(nonce, now);
        let last = test.sent.len() >= TRIES;
        let pause = (Duration::from_secs(1) * size / RATE).max(PAUSE);
        // The next one is needed only if this one is lost, which where nothing is sent may take its time to show.
        let in_haste = used && !last;
        self.next =
            now + if in_haste { pause.max(way.round_trip().unwrap_or_default()) } else { way.patience() };
        Some(size)
    }

    /// When the probe with this nonce was sent, if it was one for a size. With `len` bytes of it there, that much is
    /// proven.
    pub(crate) fn answered(&mut self, nonce: u64, len: u32, used: bool, now: Instant) -> Option<Instant> {
        let test = self.test.as_ref()?;
        let (size, sent) = (test.size, *test.sent.get(&nonce)?);
        if len >= size {
            self.test = None;
            self.proven = self.proven.max(Some(size));
            self.refused = self.refused.filter(|refused| *refused > size);
            self.force = self.proven.unwrap_or(size).min(self.largest);
            self.rest(used, nonce, now);
        }
        Some(sent)
    }

    /// Every probe of a size is lost: it is too large, if anything that was asked meanwhile has been answered.
    fn conclude(&mut self, way: &Health, (used, nonce): (bool, u64), now: Instant) {
        let Some(test) = self.test.take() else { return };
        let began = test.sent.values().min().copied().unwrap_or(now);
        if way.proof() < Some(began) {
            self.next = now + way.patience();
            return;
        }
        self.refused = Some(self.refused.map_or(test.size, |old| old.min(test.size)));
        // What is refused now but has passed before shows that the path has shrunk, by an unknown amount.
        self.proven = self.proven.filter(|proven| *proven < test.size);
        self.force = self.proven.unwrap_or(if test.size > BASE { BASE } else { FLOOR }).min(self.largest);
        self.rest(used, nonce, now);
    }

    /// When to go on: at once while there is something to find out, else later.
    fn rest(&mut self, used: bool, nonce: u64, now: Instant) {
        if self.is_searching() {
            self.next = now + PAUSE;
            return;
        }
        // Ways that began in one moment do not stay together.
        self.next = now + if used { VERIFY.0 } else { spread(VERIFY.1, nonce) };
        if self.refused.is_none() {
            self.patience = HOPE.0;
        } else if self.hope.is_none() {
            self.hope = Some(now + self.patience);
            self.patience = (self.patience * 2).min(HOPE.1);
        }
    }

    fn is_searching(&self) -> bool {
        let low = self.proven.unwrap_or(0);
        self.refused.is_some_and(|refused| refused > low + FINE && refused > FLOOR)
    }

    /// The size whose fate would tell most.
    fn candidate(&self) -> u32 {
        let low = self.proven.unwrap_or(0);
        match self.refused {
            None => self.largest,
            Some(_) if !self.is_searching() => self.force,
            Some(refused) => [BASE, LIKELY, FLOOR]
                .into_iter()
                .find(|&likely| low < likely && likely < refused && (likely != FLOOR || refused <= BASE))
                .unwrap_or_else(|| u32::midpoint(low, refused)),
        }
    }
}

/// A duration around `mean`, differently each time.
fn spread(mean: Duration, nonce: u64) -> Duration {
    mean * (48 + drawn(nonce)) / 64
}
