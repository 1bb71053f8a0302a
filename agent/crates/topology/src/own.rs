//! Our own record: when it changes, how fast, and who else may claim it.
//!
//! Each change of our links or addresses makes a new version, and each version is sent to all neighbours. When a node
//! of a large mesh starts, its links come up within a second or so, and so do everybody else's: without a bound, a
//! full mesh of n peers would send n versions of n records over n² links. So the first change goes out at once, and the
//! next ones wait for a pause that grows with the number of links. What is only a hint (the free count) waits longer
//! still.
//!
//! **Somebody speaks as us.** A record with our key that is larger than ours is one of three things: what an earlier
//! incarnation left in the mesh although our store says otherwise (a restored backup), a damaged counter, or another
//! running agent with our identity. The first two end when we go above it once. The third does not end, so after
//! [`CONTESTS_TOLERATED`] rounds in [`CONTEST_WINDOW`] we stop answering, and say what must be done.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use weave_proto::peer::topology::MAX_LINKS;
use weave_proto::peer::{LinkRecord, PeerRecord, RecordVersion};

use crate::{Config, OwnFacts, peers};

/// The pause between two versions, for a peer without links.
const PAUSE: Duration = Duration::from_millis(50);
/// What each link adds to the pause: with 200 links a version a second, of about 8 KiB, to 200 neighbours.
const PAUSE_PER_LINK: Duration = Duration::from_millis(5);
/// The pause after which a change of the free count alone makes a version. Who asks for space looks at counts that
/// differ by thousands; a few seconds' allocations do not change the choice.
const HINT_PAUSE: Duration = Duration::from_secs(5);
/// How often somebody may outrank us before we believe that it is alive. A leftover needs one round; a few more may
/// come over longer paths.
const CONTESTS_TOLERATED: usize = 8;
/// The time in which that many rounds mean a living holder.
const CONTEST_WINDOW: Duration = Duration::from_secs(60);

/// Whether another agent holds our identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Contest {
    /// We have gone above the other record.
    Answered,
    /// There are too many of them: we keep silent. Said once.
    GivenUp,
    /// Nothing new.
    Ignored,
}

/// Our own record and its pace.
#[derive(Debug)]
pub(crate) struct Own {
    record: PeerRecord,
    published: Option<Instant>,
    due: Option<Instant>,
    contests: VecDeque<Instant>,
    turned_away: Option<Instant>,
}

impl Own {
    pub(crate) fn new(config: &Config) -> Self {
        let record = PeerRecord {
            name: config.name,
            key: config.key,
            uid: config.uid,
            version: RecordVersion(1),
            nickname: config.nickname.clone(),
            overlay: None,
            free: 0,
            features: config.features,
            links: Vec::new(),
        };
        Self { record, published: None, due: None, contests: VecDeque::new(), turned_away: None }
    }

    pub(crate) const fn record(&self) -> &PeerRecord {
        &self.record
    }

    /// When the next version is due, if one is wanted.
    pub(crate) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Makes a new version if `facts` and `links` differ from the last one and the pause is over; whether it did.
    pub(crate) fn publish(&mut self, facts: &OwnFacts, mut links: Vec<LinkRecord>, now: Instant) -> bool {
        links.truncate(MAX_LINKS);
        let hint_matters = (facts.free == 0) != (self.record.free == 0);
        let firm = facts.overlay != self.record.overlay || links != self.record.links || hint_matters;
        let pause = match (firm, facts.free != self.record.free) {
            (true, _) => PAUSE + PAUSE_PER_LINK * u32::try_from(links.len()).unwrap_or(u32::MAX),
            (false, true) => HINT_PAUSE,
            (false, false) => {
                self.due = None;
                return false;
            }
        };
        match self.published.map(|published| published + pause).filter(|&due| due > now) {
            Some(due) => {
                self.due = Some(due);
                false
            }
            None => {
                self.record.overlay = facts.overlay;
                self.record.free = facts.free;
                self.record.links = links;
                self.record.version.0 += 1;
                self.published = Some(now);
                self.due = None;
                true
            }
        }
    }

    /// Somebody passed on a record with our key. If it is larger than ours, goes above it.
    pub(crate) fn contest(&mut self, record: &PeerRecord, now: Instant) -> Contest {
        if !peers::outranks(record, &self.record) {
            return Contest::Ignored;
        }
        while self.contests.front().is_some_and(|&first| now >= first + CONTEST_WINDOW) {
            self.contests.pop_front();
        }
        if self.contests.len() > CONTESTS_TOLERATED {
            return Contest::Ignored;
        }
        self.contests.push_back(now);
        if self.contests.len() > CONTESTS_TOLERATED {
            return Contest::GivenUp;
        }
        if record.uid == self.record.uid {
            self.record.version = RecordVersion(record.version.0.saturating_add(1));
        } else {
            self.record.uid = peers::above(record.uid);
        }
        Contest::Answered
    }

    /// A peer has turned us away because it talks to somebody else of our name. Refused attempts are repeated within
    /// [`CONTEST_WINDOW`], so that this is renewed for as long as it is true.
    pub(crate) const fn turned_away(&mut self, now: Instant) {
        self.turned_away = Some(now);
    }

    /// Whether somebody else goes on speaking as us.
    pub(crate) fn is_contested(&self, now: Instant) -> bool {
        let is_recent = |last: &Instant| now < *last + CONTEST_WINDOW;
        self.contests.len() > CONTESTS_TOLERATED && self.contests.back().is_some_and(is_recent)
            || self.turned_away.as_ref().is_some_and(is_recent)
    }
}

#[cfg(test)]
mod tests;
