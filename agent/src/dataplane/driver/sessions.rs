//! Which sessions there are, which of a peer's is sent with, and when one is of no use any more.
//!
//! ```text
//!   link up ── own offer said ── peer's offer heard ──> open ── anything authentic heard ──> heard
//!                                                        |                                     |
//!   link down ───────────────────────────────────────────┴──> orphan ── successor heard, or silence ──> closed
//! ```
//!
//! A session outlives its link: packets need no control connection. Of several sessions with one peer one
//! that has been heard is sent with, best one whose link is up, and of those the newest; so a new link, or two of them
//! at once, interrupts nothing. That its link is up is what both ends see alike: of two links that were made at once
//! they may not agree which is the newer, and one end would close what the other sends with. Where the
//! secret that let its peer in was withdrawn it ends soon in any case: a peer that holds the new one is back before.
//!
//! A session that was agreed on through the mesh has no link from the beginning, and is an orphan when its peer gets one,
//! is out of reach, or has agreed on a newer one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_topology::LinkId;

/// How long an orphan still opens records after its successor was heard: longer than anything is on its way.
const LINGER: Duration = Duration::from_secs(10);

/// How long an orphan without a successor may be silent: its peer may only have lost the control connection.
const SILENCE: Duration = Duration::from_secs(60);

/// How often a new session greets the other end, which may open it a little later.
pub(super) const GREETING: Duration = Duration::from_millis(200);

/// How often in the end, if nothing is ever heard.
const SELDOM: Duration = Duration::from_secs(10);

/// Whether something that is repeated until it has its effect is due: after `least` at first, ever less often, and
/// after `most` in the end.
pub(super) fn is_due(
    since: Instant,
    last: Option<Instant>,
    (least, most): (Duration, Duration),
    now: Instant,
) -> bool {
    let pause = (now.saturating_duration_since(since) / 4).clamp(least, most);
    last.is_none_or(|last| now >= last + pause)
}

/// One session.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) peer: PeerName,
    /// The link whose keys it has, while that is up; none too of one that was agreed on through the mesh.
    pub(super) link: Option<LinkId>,
    /// Where the peer was when it began.
    pub(super) remote: SocketAddr,
    /// The order in which sessions were opened.
    number: u64,
    opened: Instant,
    greeted: Option<Instant>,
    /// How much was received when that was last looked at.
    received: u64,
    heard: Option<Instant>,
    orphan: Option<Instant>,
    /// Whether it must end soon, whatever is heard.
    withdrawn: bool,
}

/// All of them, by the own index.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: BTreeMap<u32, Session>,
    opened: u64,
}

impl Sessions {
    pub(super) fn open(
        &mut self,
        index: u32,
        (peer, link): (PeerName, Option<LinkId>),
        remote: SocketAddr,
        now: Instant,
    ) {
        self.opened += 1;
        let number = self.opened;
        let session = Session {
            peer,
            link,
            remote,
            number,
            opened: now,
            greeted: None,
            received: 0,
            heard: None,
            orphan: None,
            withdrawn: false,
        };
        self.all.insert(index, session);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn get(&self, index: u32) -> Option<&Session> {
        self.all.get(&index)
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.all.contains_key(&index)
    }

    /// Every session, by the own index, and whose it is.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, PeerName)> {
        self.all.iter().map(|(&index, session)| (index, session.peer))
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    /// The own index of the session to send to a peer with, and the session.
    pub(super) fn to(&self, peer: PeerName) -> Option<(u32, &Session)> {
        let theirs = self.all.iter().filter(|(_, session)| session.peer == peer);
        theirs
            .max_by_key(|(_, session)| (session.heard.is_some(), session.link.is_some(), session.number))
            .map(|(&index, session)| (index, session))
    }

    /// Everybody with whom there is one.
    pub(super) fn peers(&self) -> std::collections::BTreeSet<PeerName> {
        self.all.values().map(|session| session.peer).collect()
    }

    /// The link is gone; `withdrawn` if the secret that had let the peer in is no longer believed.
    pub(super) fn link_down(&mut self, link: LinkId, withdrawn: bool, now: Instant) {
        for session in self.all.values_mut().filter(|session| session.link == Some(link)) {
            session.link = None;
            session.orphan = Some(now);
            session.withdrawn = withdrawn;
        }
    }

    /// Nobody vouches for a session any more; `withdrawn` if the secret that had let the peer in is no longer believed.
    pub(super) fn orphan(&mut self, index: u32, withdrawn: bool, now: Instant) {
        if let Some(session) = self.all.get_mut(&index) {
            session.link = None;
            session.orphan.get_or_insert(now);
            session.withdrawn |= withdrawn;
        }
    }

    /// Those with a peer that no link vouches for.
    pub(super) fn without_link(&self, peer: PeerName) -> Vec<u32> {
        let theirs = self.all.iter().filter(|(_, session)| session.peer == peer && session.link.is_none());
        theirs.map(|(&index, _)| index).collect()
    }

    /// Notes how much each has received, and returns those to be closed, which are forgotten here.
    pub(super) fn look(&mut self, received: impl Fn(u32) -> Option<u64>, now: Instant) -> Vec<u32> {
        for (&index, session) in &mut self.all {
            let count = received(index).unwrap_or(0);
            if count != session.received {
                session.received = count;
                session.heard = Some(now);
            }
        }
        let is_over = |index: &u32, session: &Session| {
            let Some(orphan) = session.orphan else { return false };
            let succeeded = self.to(session.peer).is_some_and(|(newest, _)| newest != *index);
            let silent_since = session.heard.map_or(orphan, |heard| heard.max(orphan));
            ((succeeded || session.withdrawn) && now >= orphan + LINGER) || now >= silent_since + SILENCE
        };
        let over: Vec<u32> = self
            .all
            .iter()
            .filter(|(index, session)| is_over(index, session))
            .map(|(&index, _)| index)
            .collect();
        for index in &over {
            self.all.remove(index);
        }
        over
    }

    /// Those that are to greet the other end now.
    pub(super) fn greeting(&mut self, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        for (&index, session) in self.all.iter_mut().filter(|(_, session)| session.heard.is_none()) {
            if is_due(session.opened, session.greeted, (GREETING, SELDOM), now) {
                session.greeted = Some(now);
                due.push(index);
            }
        }
        due
    }

    /// Whether one of them is yet to be heard, so that it should be looked at soon.
    pub(super) fn are_unheard(&self) -> bool {
        self.all.values().any(|session| session.heard.is_none())
    }

    /// Whether something authentic has come in a session.
    pub(super) fn is_heard(&self, index: u32) -> bool {
        self.all.get(&index).is_some_and(|session| session.heard.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerName = PeerName::from_bits([2, 0, 0, 0, 0, 7]);

    fn two() -> (Sessions, Instant) {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let remote = SocketAddr::from(([192, 0, 2, 1], 6785));
        sessions.open(11, (PEER, Some(LinkId(1))), remote, now);
        sessions.look(|index| (index == 11).then_some(5), now);
        sessions.open(22, (PEER, Some(LinkId(2))), remote, now);
        (sessions, now)
    }

    fn sent_with(sessions: &Sessions) -> Option<u32> {
        sessions.to(PEER).map(|(index, _)| index)
    }

    #[test]
    fn sending_moves_to_a_new_session_when_something_was_heard_in_it() {
        let (mut sessions, now) = two();
        assert_eq!(sent_with(&sessions), Some(11));
        assert_eq!(sessions.greeting(now), [22]);
        assert!(sessions.greeting(now).is_empty());
        assert_eq!(sessions.greeting(now + GREETING), [22]);
        sessions.look(|_| Some(5), now);
        assert_eq!(sent_with(&sessions), Some(22));
        assert!(sessions.greeting(now + SELDOM).is_empty());
    }

    #[test]
    fn a_session_that_is_never_heard_greets_for_ever_but_ever_less_often() {
        let (mut sessions, now) = two();
        let greets = |sessions: &mut Sessions, from: u64, to: u64| {
            let moments = (from * 10..to * 10).map(|tenth| now + Duration::from_millis(tenth * 100));
            moments.filter(|&at| !sessions.greeting(at).is_empty()).count()
        };
        assert!(greets(&mut sessions, 0, 5) > 8);
        let later = greets(&mut sessions, 600, 700);
        assert!((9..=11).contains(&later), "{later}");
    }

    #[test]
    fn a_session_whose_link_is_up_is_preferred_to_a_newer_one_without() {
        let (mut sessions, now) = two();
        sessions.look(|_| Some(5), now);
        sessions.link_down(LinkId(2), false, now);
        assert_eq!(sent_with(&sessions), Some(11));
        assert_eq!(sessions.look(|_| Some(6), now + LINGER), [22]);
    }

    #[test]
    fn a_session_outlives_its_link_until_its_successor_was_heard_or_nothing_is_heard_for_long() {
        let (mut sessions, now) = two();
        sessions.link_down(LinkId(1), false, now);
        assert!(sessions.look(|_| Some(5), now).is_empty());
        assert_eq!(sessions.look(|_| Some(5), now + LINGER), [11]);
        assert_eq!(sent_with(&sessions), Some(22));
        sessions.link_down(LinkId(2), false, now + LINGER);
        assert!(sessions.look(|_| Some(6), now + SILENCE).is_empty());
        assert!(sessions.look(|_| Some(6), now + SILENCE + LINGER).is_empty());
        assert_eq!(sessions.look(|_| Some(6), now + SILENCE * 2), [22]);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_session_whose_secret_was_withdrawn_ends_soon_whatever_is_heard() {
        let (mut sessions, now) = two();
        sessions.link_down(LinkId(1), true, now);
        assert!(sessions.look(|_| Some(6), now).is_empty());
        assert_eq!(sessions.look(|index| Some(u64::from(index)), now + LINGER), [11]);
        sessions.link_down(LinkId(2), true, now);
        assert_eq!(sessions.look(|_| Some(99), now + LINGER), [22]);
    }
}
