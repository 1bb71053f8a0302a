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
//! [`CONTESTS_TOLERATED`] rounds in [`CONTEST_WINDOW`] we stop answering, and say what must be done. Mostly it shows
//! sooner: the other holder calls us or one of our neighbours, and whoever sees both tells both ([`Own::beware`]).

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
    twin: Option<Twin>,
}

/// What is known of another holder of our identity.
#[derive(Debug)]
struct Twin {
    text: String,
    heard: Instant,
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
        Self { record, published: None, due: None, contests: VecDeque::new(), twin: None }
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

    /// Another holder of our identity was met: by us, by a peer that turned us away because it talks to the other one,
    /// or by a peer that turned the other one away. Attempts are repeated within [`CONTEST_WINDOW`], so that this is
    /// renewed for as long as it is true. Whether it is news.
    pub(crate) fn beware(&mut self, text: String, now: Instant) -> bool {
        let is_news = self.twin(now).is_none();
        self.twin = Some(Twin { text, heard: now });
        is_news
    }

    /// Who else goes on speaking as us, in a sentence with the remedy.
    pub(crate) fn twin(&self, now: Instant) -> Option<&str> {
        self.twin.as_ref().filter(|twin| now < twin.heard + CONTEST_WINDOW).map(|twin| twin.text.as_str())
    }

    /// When the other holder will have been silent for so long that it does not matter any more.
    pub(crate) fn twin_fades(&self) -> Option<Instant> {
        self.twin.as_ref().map(|twin| twin.heard + CONTEST_WINDOW)
    }

    /// Forgets another holder that has been silent; whether there was one.
    pub(crate) fn forget_twin(&mut self, now: Instant) -> bool {
        let faded = self.twin_fades().is_some_and(|at| at <= now);
        if faded {
            self.twin = None;
        }
        faded
    }
}

#[cfg(test)]
mod tests;
