//! What probes may cost this node, towards all peers together.
//!
//! ```text
//!   pressing   300 a second, 900 at once     ways with traffic and what replaces them, what is new
//!   steady      60 a second,  60 at once     ways in use without traffic, better ones that are silent
//!   doubts      12 a second,  24 at once     what is in doubt, without traffic
//!   spare       40 a second,  40 at once     everything else
//!   sizes       64 KiB a second and at once  how large a packet passes
//!   lines        1 a second,  20 at once     in the log, of changes of ways
//! ```
//!
//! Each kind has an allowance of its own, so none starves another. Within a kind whoever is overdue the longest comes
//! first, and the pace of each is slowed by the number of all ([`Budget::interval`]): in quiet times nobody is refused
//! anything, and the wait of each has a bound that depends on nothing but how many ways there are.
//!
//! When many ways without traffic are in doubt together, it is this node or its uplink that is slow or dead: asking more
//! would be of no use, and of harm if it is slow. So what is spent on doubts is little.
//!
//! The figures: a small probe is about 110 bytes on the wire, so all of them together are below 50 kB a second. At the
//! pace of 200 peers with traffic a dead way is still left within 3 s; more are probed more slowly. If the ways of a
//! hundred such peers die in one moment, what is saved up is enough to leave all of them in time: that takes eight lost
//! probes each and some of what replaces it.

use std::time::{Duration, Instant};

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Packets of pods depend on the answer.
    Pressing,
    /// They would if there were any.
    Steady,
    /// They would if the way in use failed.
    Spare,
    /// They would if there were any, and the way in use may have failed.
    Doubt,
}

/// How often a way is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It is in use, traffic has begun, and it has not answered since.
    Checked,
    /// It is in doubt, and so may be what packets depend on.
    Pressed,
    /// The one in use is in doubt: who else answers?
    Urgent,
    /// It carries traffic: found silent within 3 s.
    Used,
    /// It has only just become possible, or is asked for since the one in use is in doubt.
    New,
    /// It would be used if it answered.
    Wanted,
    /// It, or the one in use, is in doubt, and nobody sends anything.
    Doubted,
    /// It is in use, and nobody sends anything.
    Idle,
    /// It is worse than the one in use, or has not answered for long, and there is traffic.
    Spare,
    /// The same without traffic.
    Rare,
}

impl Pace {
    /// The time between two probes where there are few ways.
    const fn base(self) -> Duration {
        match self {
            Self::Checked | Self::Pressed => Duration::from_millis(150),
            Self::Urgent => Duration::from_millis(250),
            Self::Used | Self::New | Self::Doubted => Duration::from_millis(500),
            Self::Wanted => Duration::from_secs(1),
            Self::Idle | Self::Spare => Duration::from_secs(5),
            Self::Rare => Duration::from_secs(15),
        }
    }

    /// What it is paid from.
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Checked | Self::Pressed | Self::Urgent | Self::Used | Self::New => Kind::Pressing,
            Self::Wanted | Self::Idle => Kind::Steady,
            Self::Spare | Self::Rare => Kind::Spare,
            Self::Doubted => Kind::Doubt,
        }
    }
}

/// How many ways are probed, by kind.
pub(crate) type Counts = [u32; 4];

/// An allowance that fills up again by itself.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// Units a second.
    rate: u32,
    /// Units at once.
    most: u32,
    /// When it will be full, or was.
    full: Option<Instant>,
}

/// See the module's docs.
#[derive(Debug)]
pub(crate) struct Budget {
    kinds: [Allowance; 4],
    sizes: Allowance,
    lines: Allowance,
    ways: Counts,
}

/// Small probes a second and at once, by kind.
const PROBES: [(u32, u32); 4] = [(300, 900), (60, 60), (40, 40), (12, 24)];

/// Bytes a second and at once of probes for size. One probe of any size fits.
const SIZES: u32 = 64 * 1024;

/// Lines of the log a second and at once: a node that loses its uplink tells of few of its peers.
const LINES: (u32, u32) = (1, 20);

/// The share of a rate that the regular paces may take, in a hundredth; the rest is for jitter and for what has been
/// lost.
const REGULAR: u32 = 83;

/// The least time until somebody who was refused asks again: so that a crowd is served in groups.
const PATIENCE: Duration = Duration::from_millis(50);

impl Budget {
    pub(crate) fn new() -> Self {
        let of = |(rate, most)| Allowance { rate, most, full: None };
        Self { kinds: PROBES.map(of), sizes: of((SIZES, SIZES)), lines: of(LINES), ways: [0; 4] }
    }

    /// A peer has `after` ways of each kind, and had `before`.
    pub(crate) fn count(&mut self, before: Counts, after: Counts) {
        for ((all, before), after) in self.ways.iter_mut().zip(before).zip(after) {
            *all = all.saturating_sub(before).saturating_add(after);
        }
    }

    /// The time between two probes of a way, with so many of them around.
    pub(crate) fn interval(&self, pace: Pace) -> Duration {
        let kind = pace.kind() as usize;
        let regular = PROBES[kind].0 * REGULAR / 100;
        // Haste is short, and paid from what is saved up.
        let stretched = match pace {
            Pace::Checked | Pace::Pressed | Pace::Urgent => Duration::ZERO,
            Pace::Used | Pace::New | Pace::Wanted | Pace::Doubted | Pace::Idle | Pace::Spare | Pace::Rare => {
                Duration::from_secs(1) * self.ways[kind] / regular
            }
        };
        pace.base().max(stretched)
    }

    /// Takes one small probe out of the allowance.
    ///
    /// # Errors
    /// Nothing is left: when to ask again.
    pub(crate) fn take(&mut self, kind: Kind, now: Instant) -> Result<(), Instant> {
        self.kinds[kind as usize].take(1, now)
    }

    /// Takes one line of the log out of the allowance; whether there is one left.
    pub(crate) fn take_line(&mut self, now: Instant) -> bool {
        self.lines.take(1, now).is_ok()
    }

    /// Takes a probe of `len` bytes out of the allowance for sizes.
    ///
    /// # Errors
    /// Nothing is left: when to ask again.
    pub(crate) fn take_size(&mut self, len: u32, now: Instant) -> Result<(), Instant> {
        self.sizes.take(len.min(SIZES), now)
    }
}

impl Allowance {
    fn take(&mut self, units: u32, now: Instant) -> Result<(), Instant> {
        let time = |units: u32| Duration::from_secs(1) * units / self.rate;
        let full = self.full.map_or(now, |full| full.max(now)) + time(units);
        let latest = now + time(self.most);
        if full > latest {
            return Err(now + (full - latest).max(PATIENCE));
        }
        self.full = Some(full);
        Ok(())
    }
}
