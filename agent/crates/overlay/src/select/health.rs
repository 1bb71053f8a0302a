//! Whether one way answers: the probes that are out, and what their answers prove.
//!
//! ```text
//!              first answer                   an answer takes too long
//!   Unproven ───────────────> Answering ───────────────────────────> In doubt
//!      ^                        ^   └── pace of its rank                 │ probes in [`Haste`]
//!      │                        └────────── any answer ──────────────────┤
//!      └───────── no answer for SILENCE, LOST probes overdue ────────────┘
//! ```
//!
//! Time alone proves nothing, since the agent may have slept; a number of lost probes alone proves little either, since
//! a tenth of all packets may be lost on a path that works. So it takes both. At the pace of a way with traffic, seven
//! probes are overdue when [`SILENCE`] is over: where a path loses one packet in ten each way, that happens by chance
//! once in 10⁵ probes. How often a way is probed, [`super::budget`] says.
//!
//! Doubt costs probes, and on a machine that is too busy for answers to come in time probes make it busier still. So what
//! is slow must not be taken for what is dead: doubt begins when nothing has come for twice the time that answers take on
//! this way, late ones are answers, too, and while many are out few are added.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An answer that takes longer is overdue. Longer than a round trip around the earth.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(700);

/// How long a way must not have answered to count as silent: a switch must be over within 3 s, and this leaves time for
/// the switch itself.
pub(crate) const SILENCE: Duration = Duration::from_millis(2500);

/// How many probes must be overdue besides.
pub(crate) const LOST: u32 = 6;

/// So many unanswered probes are enough to judge by.
const ENOUGH: usize = LOST as usize + 1;

/// The least time between two probes when so many are out.
const CALM: Duration = Duration::from_millis(500);

/// What is done about a way in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Haste {
    /// The longest that an answer is waited for before its way is in doubt, however slow the way is.
    pub(crate) longest: Duration,
    /// The time between two probes from then on.
    pub(crate) pace: Duration,
}

/// For how long an answer to a probe is still understood.
const MEMORY: Duration = Duration::from_secs(8);

/// See the module's docs.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    /// Since when probes can be sent.
    since: Instant,
    /// The small probes that were not answered, by nonce.
    waiting: BTreeMap<u64, Instant>,
    last_sent: Option<(Instant, u64)>,
    /// When the last answer came.
    heard: Option<Instant>,
    /// When the newest probe that was answered had been sent.
    proof: Option<Instant>,
    /// Since when it has answered without falling silent, and how often.
    run: Option<(Instant, u32)>,
    /// Whether it was asked often enough, for long enough, without an answer.
    silent: bool,
    /// Smoothed over eight answers.
    round_trip: Option<Duration>,
    /// How long an answer may take before the way is in doubt.
    patience: Duration,
}

impl Health {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            since: now,
            waiting: BTreeMap::new(),
            last_sent: None,
            heard: None,
            proof: None,
            run: None,
            silent: false,
            round_trip: None,
            patience: TIMEOUT,
        }
    }

    /// A small probe goes out.
    pub(crate) fn sent(&mut self, nonce: u64, now: Instant) {
        self.waiting.retain(|_, at| now < *at + MEMORY);
        self.waiting.insert(nonce, now);
        self.last_sent = Some((now, nonce));
    }

    /// When the small probe with this nonce was sent, if it is one of this way; it counts as answered.
    pub(crate) fn take(&mut self, nonce: u64) -> Option<Instant> {
        self.waiting.remove(&nonce)
    }

    /// Something that was sent then has been answered.
    pub(crate) fn heard(&mut self, sent: Instant, now: Instant) {
        // What was lost before something that arrived is no sign of silence any more.
        self.waiting.retain(|_, at| *at > sent);
        self.heard = Some(now);
        self.silent = false;
        self.proof = self.proof.max(Some(sent));
        let trip = now.saturating_duration_since(sent);
        let round_trip = self.round_trip.map_or(trip, |old| (old * 7 + trip) / 8);
        self.round_trip = Some(round_trip);
        self.patience = (2 * trip.max(round_trip)).max(TIMEOUT);
        let (since, count) = self.run.unwrap_or((now, 0));
        self.run = Some((since, count.saturating_add(1)));
    }

    /// Notes whether it has fallen silent, which ends a run of answers.
    pub(crate) fn judge(&mut self, now: Instant) {
        self.silent |= now >= self.heard.unwrap_or(self.since) + SILENCE && self.overdue(now) >= LOST;
        if self.silent {
            self.run = None;
            self.round_trip = None;
        }
    }

    /// Whether it was asked often enough, for long enough, without an answer, when it was last judged.
    pub(crate) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether it answers, as far as is known.
    pub(crate) const fn answers(&self) -> bool {
        self.run.is_some()
    }

    /// Since when it answers, and how many times it has.
    pub(crate) const fn run(&self) -> Option<(Instant, u32)> {
        self.run
    }

    /// Whether it is in doubt: a probe is out for longer than is usual of this way, and nothing else comes either.
    pub(crate) fn is_suspect(&self, longest: Duration, now: Instant) -> bool {
        self.doubts(longest, now) > 0
    }

    /// Whether a probe is out.
    pub(crate) fn is_asked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many probes put it in doubt.
    pub(crate) fn doubts(&self, longest: Duration, now: Instant) -> usize {
        self.waiting.values().filter(|at| self.doubtful_at(**at, longest) <= now).count()
    }

    /// When a probe that was sent then puts the way in doubt.
    fn doubtful_at(&self, sent: Instant, longest: Duration) -> Instant {
        self.heard.map_or(sent, |heard| heard.max(sent)) + self.patience.min(longest)
    }

    pub(crate) const fn since(&self) -> Instant {
        self.since
    }

    /// When the last answer came.
    pub(crate) const fn last_heard(&self) -> Option<Instant> {
        self.heard
    }

    /// When the newest probe was sent that came back: then, the other end's agent was yet to answer.
    pub(crate) const fn proof(&self) -> Option<Instant> {
        self.proof
    }

    /// How long an answer may take before something is amiss.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// When the next small probe is due, if there is to be one every `interval`.
    pub(crate) fn due(&self, interval: Duration, haste: Haste) -> Instant {
        let Some((last, nonce)) = self.last_sent else { return self.since };
        let regular = last + jittered(interval, nonce);
        match self.waiting.values().min() {
            // Enough are out to judge by.
            Some(_) if self.waiting.len() > ENOUGH => regular.max(last + CALM),
            Some(&oldest) if self.answers() => {
                regular.min(self.doubtful_at(oldest, haste.longest).max(last + haste.pace))
            }
            Some(_) | None => regular,
        }
    }

    /// How many probes that were sent since then are overdue.
    pub(crate) fn overdue_since(&self, since: Instant, now: Instant) -> usize {
        self.waiting.values().filter(|at| **at >= since && **at + TIMEOUT <= now).count()
    }

    fn overdue(&self, now: Instant) -> u32 {
        u32::try_from(self.overdue_since(self.since, now)).unwrap_or(u32::MAX)
    }
}

/// A little less than `interval`, differently each time, so that the probes to many peers do not march in step.
fn jittered(interval: Duration, nonce: u64) -> Duration {
    interval * (256 - drawn(nonce)) / 256
}

/// A number below 32 that looks as if it were drawn.
pub(crate) fn drawn(nonce: u64) -> u32 {
    u32::try_from(nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59).unwrap_or(0)
}
