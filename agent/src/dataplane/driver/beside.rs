//! When a QUIC connection for pods' packets is made beside a link, and when it ends.
//!
//! ```text
//!            wanted, and the link was dialled from here
//!   none ────────────────────────────────────────────────> dialled ────> up
//!    ^                                                        │           │
//!    └────── a pause, twice as long after each failure ───────┴── lost ───┤
//!    └─────────── not wanted for LINGER, or no link for GRACE ────────────┘
//! ```
//!
//! There is none while a better way answers, so that it costs nothing: a handshake takes less than what it takes to
//! notice that the better way is gone. **Whoever dialled the link dials it**, since that direction is known to pass.
//! The other end takes what comes and closes nothing by itself but what is *retired*: what has lost the links that it was
//! made beside, whose secret may no longer be believed, still carries for [`RETIRED`], as the sessions do, while another
//! one is made beside a new link.
//!
//! Pure: what is done about it is returned. `C` is a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weave_proto::{PeerKey, PeerName};
use weave_topology::LinkId;

/// How long nothing is dialled while something better may still answer: it usually does, though not at once where many
/// peers start together on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many are dialled at once: each is a TLS handshake, and the way that they would replace may be slow because of too
/// many of them.
const MOST_DIALLED: usize = 4;

/// How long it is kept when it is not wanted any more. Longer than any hold of a better way at the other end, which may
/// still use it.
pub(super) const LINGER: Duration = Duration::from_secs(120);

/// How long it lives without a link, which may be on its way back.
const GRACE: Duration = Duration::from_secs(5);

/// How long one that has lost its links, or that was replaced, still carries.
const RETIRED: Duration = Duration::from_secs(10);

/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One that was up for so long has not failed when it is lost.
const STEADY: Duration = Duration::from_secs(10);

/// The most with one peer: one of either direction, and those that are retired. The oldest goes first.
const MOST: usize = 4;

/// The link that a connection would be beside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) addr: SocketAddr,
    pub(super) key: PeerKey,
    /// Whether this end dialled it.
    pub(super) dialled: bool,
    pub(super) since: Instant,
}

#[derive(Debug)]
struct Up<C> {
    connection: C,
    dialled: bool,
    since: Instant,
    /// The links of its time that are still up.
    links: BTreeSet<LinkId>,
    /// When it ends in any case.
    retired: Option<Instant>,
}

#[derive(Debug)]
struct One<C> {
    links: BTreeMap<LinkId, Link>,
    linkless: Option<Instant>,
    /// Whether it is wanted; if so, whether there is nothing better to wait for, and since when.
    wanted: Option<(bool, Instant)>,
    unwanted: Option<Instant>,
    dialling: bool,
    failures: u32,
    not_before: Option<Instant>,
    trouble: Option<String>,
    /// The newest last.
    up: Vec<Up<C>>,
}

impl<C> Default for One<C> {
    fn default() -> Self {
        Self {
            links: BTreeMap::new(),
            linkless: None,
            wanted: None,
            unwanted: None,
            dialling: false,
            failures: 0,
            not_before: None,
            trouble: None,
            up: Vec::new(),
        }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act<C> {
    /// Make a connection with this peer.
    Dial(SocketAddr, PeerKey),
    /// Close this one, and say why.
    Close(C, &'static str),
}

/// The connections with all peers.
#[derive(Debug)]
pub(super) struct Beside<C> {
    peers: BTreeMap<PeerName, One<C>>,
}

impl<C> Default for Beside<C> {
    fn default() -> Self {
        Self { peers: BTreeMap::new() }
    }
}

impl<C> Beside<C> {
    pub(super) fn link_up(&mut self, id: LinkId, peer: PeerName, link: Link) {
        let one = self.peers.entry(peer).or_default();
        // The peer may have made it before this end had heard of the link.
        for up in one.up.iter_mut().filter(|up| up.links.is_empty()) {
            up.links.insert(id);
        }
        one.links.insert(id, link);
        one.linkless = None;
        // A new link is a new chance.
        (one.failures, one.not_before) = (0, None);
    }

    /// A link is gone; `withdrawn` if the secret that had let the peer in is no longer believed.
    pub(super) fn link_down(&mut self, id: LinkId, withdrawn: bool, now: Instant) {
        for one in self.peers.values_mut() {
            if one.links.remove(&id).is_none() {
                continue;
            }
            if one.links.is_empty() {
                one.linkless = Some(now);
            }
            for up in &mut one.up {
                if up.links.remove(&id) && (withdrawn || up.links.is_empty()) {
                    up.retire(now);
                }
            }
        }
    }

    /// With whom a connection is wanted, and whether there is nothing better to wait for.
    pub(super) fn want(&mut self, wanted: &BTreeMap<PeerName, bool>, now: Instant) {
        for &peer in wanted.keys() {
            self.peers.entry(peer).or_default();
        }
        for (peer, one) in &mut self.peers {
            let since = one.wanted.map_or(now, |(_, since)| since);
            one.wanted = wanted.get(peer).map(|&soon| (soon, since));
            one.unwanted = if one.wanted.is_some() { None } else { one.unwanted.or(Some(now)) };
        }
    }

    /// A connection is up.
    pub(super) fn opened(&mut self, peer: PeerName, dialled: bool, connection: C, now: Instant) {
        let one = self.peers.entry(peer).or_default();
        if one.links.is_empty() {
            one.linkless = one.linkless.or(Some(now));
        }
        if dialled {
            (one.dialling, one.trouble) = (false, None);
        }
        one.up.iter_mut().filter(|up| up.dialled == dialled).for_each(|up| up.retire(now));
        let links = one.links.keys().copied().collect();
        one.up.push(Up { connection, dialled, since: now, links, retired: None });
        if let Some(excess) = one.up.len().checked_sub(MOST) {
            one.up.iter_mut().take(excess).for_each(|up| up.retired = Some(now));
        }
    }

    /// One could not be had.
    pub(super) fn failed(&mut self, peer: PeerName, why: String, now: Instant) {
        let Some(one) = self.peers.get_mut(&peer) else { return };
        one.dialling = false;
        one.fail(why, now);
    }

    /// One has ended by itself.
    pub(super) fn lost(&mut self, is_it: impl Fn(&C) -> bool, why: &str, now: Instant) {
        for one in self.peers.values_mut() {
            let Some(at) = one.up.iter().position(|up| is_it(&up.connection)) else { continue };
            let lost = one.up.remove(at);
            if lost.retired.is_some() || !lost.dialled {
                continue;
            }
            if now >= lost.since + STEADY {
                one.failures = 0;
            }
            one.fail(format!("it was lost: {why}"), now);
        }
    }

    /// Forgets all connections.
    pub(super) fn clear(&mut self) {
        self.peers.values_mut().for_each(|one| one.up.clear());
    }

    /// What is to be done now.
    pub(super) fn acts(&mut self, now: Instant) -> Vec<Act<C>> {
        let mut acts = Vec::new();
        let mut dialling = self.peers.values().filter(|one| one.dialling).count();
        for one in self.peers.values_mut() {
            let linkless = one.linkless.is_some_and(|since| now >= since + GRACE);
            let unwanted = one.unwanted.is_some_and(|since| now >= since + LINGER);
            for up in std::mem::take(&mut one.up) {
                if linkless {
                    acts.push(Act::Close(up.connection, "the link is gone"));
                } else if up.retired.is_some_and(|at| now >= at) {
                    acts.push(Act::Close(up.connection, "another one has taken its place"));
                } else if up.dialled && unwanted {
                    acts.push(Act::Close(up.connection, "a better way answers"));
                } else {
                    one.up.push(up);
                }
            }
            if let Some(link) = one.to_dial(now).filter(|_| dialling < MOST_DIALLED) {
                one.dialling = true;
                dialling += 1;
                acts.push(Act::Dial(link.addr, link.key));
            }
        }
        self.peers.retain(|_, one| !one.is_idle());
        acts
    }

    /// The connection to send to a peer by.
    pub(super) fn to(&self, peer: PeerName) -> Option<&C> {
        let up = &self.peers.get(&peer)?.up;
        let best = up.iter().rev().find(|up| up.retired.is_none()).or_else(|| up.last());
        best.map(|up| &up.connection)
    }

    /// Why there is none with a peer.
    pub(super) fn why_not(&self, peer: PeerName) -> String {
        let Some(one) = self.peers.get(&peer).filter(|one| !one.links.is_empty()) else {
            return "there is no link with the peer that a connection could go beside".to_owned();
        };
        match (&one.trouble, one.wanted) {
            (_, None) => "its connection is not made while a better way answers".to_owned(),
            (Some(why), Some(_)) => format!("its connection could not be made: {why}"),
            (None, Some(_)) if one.dialling => "its connection is being made".to_owned(),
            (None, Some(_)) if one.links.values().all(|link| !link.dialled) => {
                "the peer, which dialled the link, has not made the connection".to_owned()
            }
            (None, Some((true, _))) => "its connection is about to be made".to_owned(),
            (None, Some((false, _))) => {
                "its connection is not made while a better way may still answer".to_owned()
            }
        }
    }
}

impl<C> Up<C> {
    fn retire(&mut self, now: Instant) {
        self.retired = self.retired.or(Some(now + RETIRED));
    }
}

impl<C> One<C> {
    /// The link beside which a connection is to be dialled now.
    fn to_dial(&self, now: Instant) -> Option<Link> {
        let (soon, since) = self.wanted?;
        let is_up = self.up.iter().any(|up| up.retired.is_none());
        if is_up || self.dialling || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let link = self.links.values().rev().find(|link| link.dialled)?;
        (soon || now >= link.since.max(since) + PATIENCE).then_some(*link)
    }

    fn fail(&mut self, why: String, now: Instant) {
        let (first, longest) = PAUSES;
        let pause = first * 2_u32.saturating_pow(self.failures.min(6));
        self.failures += 1;
        self.not_before = Some(now + pause.min(longest));
        self.trouble = Some(why);
    }

    fn is_idle(&self) -> bool {
        self.links.is_empty() && self.up.is_empty() && self.wanted.is_none() && !self.dialling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerName = PeerName::from_bits([2, 0, 0, 0, 0, 7]);
    const LINK: LinkId = LinkId(1);
    const OTHER: LinkId = LinkId(2);

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn link(dialled: bool, since: Instant) -> Link {
        let addr = SocketAddr::from(([192, 0, 2, 1], 6783));
        Link { addr, key: PeerKey([7; 32]), dialled, since }
    }

    /// A link that this end dialled, beside which a connection is wanted.
    fn wanting() -> (Beside<u32>, Instant) {
        let (mut beside, now) = (Beside::default(), Instant::now());
        beside.link_up(LINK, PEER, link(true, now));
        beside.want(&BTreeMap::from([(PEER, true)]), now);
        (beside, now)
    }

    fn dials(acts: &[Act<u32>]) -> usize {
        acts.iter().filter(|act| matches!(act, Act::Dial(..))).count()
    }

    fn closed(acts: &[Act<u32>]) -> Vec<u32> {
        let one = |act: &Act<u32>| match act {
            Act::Close(connection, _) => Some(*connection),
            Act::Dial(..) => None,
        };
        acts.iter().filter_map(one).collect()
    }

    #[test]
    fn nothing_is_dialled_while_a_better_way_answers_or_may_still_answer() {
        let (mut beside, now) = (Beside::<u32>::default(), Instant::now());
        beside.link_up(LINK, PEER, link(true, now));
        assert_eq!(beside.acts(now + secs(100)), []);
        beside.want(&BTreeMap::from([(PEER, false)]), now);
        assert_eq!(beside.acts(now), []);
        assert!(beside.why_not(PEER).contains("while a better way may still answer"));
        assert_eq!(dials(&beside.acts(now + PATIENCE)), 1);
        assert!(beside.why_not(PEER).contains("is being made"));
        // One attempt at a time.
        assert_eq!(beside.acts(now + secs(100)), []);
    }

    #[test]
    fn something_better_is_waited_for_from_when_it_is_missed_and_a_few_are_dialled_at_once() {
        let (mut beside, now) = (Beside::<u32>::default(), Instant::now());
        let peers: Vec<PeerName> = (0..10).map(|last| PeerName::from_bits([2, 0, 0, 0, 0, last])).collect();
        for (&peer, id) in peers.iter().zip(10..) {
            beside.link_up(LinkId(id), peer, link(true, now));
        }
        // Until it is wanted, the age of the link counts for nothing.
        let missed = now + secs(100);
        let wanted: BTreeMap<PeerName, bool> = peers.iter().map(|&peer| (peer, false)).collect();
        beside.want(&wanted, missed);
        assert_eq!(beside.acts(missed), []);
        beside.want(&wanted, missed + secs(1));
        assert_eq!(dials(&beside.acts(missed + PATIENCE)), MOST_DIALLED);
        assert_eq!(dials(&beside.acts(missed + PATIENCE)), 0);
        beside.opened(peers[0], true, 1, missed + PATIENCE);
        beside.failed(peers[1], "no answer".to_owned(), missed + PATIENCE);
        assert_eq!(dials(&beside.acts(missed + PATIENCE)), 2);
    }

    #[test]
    fn the_end_that_dialled_the_link_dials_and_the_other_takes_what_comes() {
        let (mut beside, now) = (Beside::<u32>::default(), Instant::now());
        beside.link_up(LINK, PEER, link(false, now));
        beside.want(&BTreeMap::from([(PEER, true)]), now);
        assert_eq!(beside.acts(now + secs(100)), []);
        beside.opened(PEER, false, 1, now);
        assert_eq!(beside.to(PEER), Some(&1));
        // Whoever dialled it closes it.
        beside.want(&BTreeMap::new(), now);
        assert_eq!(beside.acts(now + LINGER * 2), []);
        assert_eq!(beside.to(PEER), Some(&1));
    }

    #[test]
    fn one_that_is_not_wanted_any_more_is_closed_after_a_while_unless_it_is_wanted_again() {
        let (mut beside, now) = wanting();
        beside.acts(now);
        beside.opened(PEER, true, 1, now);
        beside.want(&BTreeMap::new(), now);
        assert_eq!(beside.acts(now + LINGER - secs(1)), []);
        beside.want(&BTreeMap::from([(PEER, false)]), now + LINGER - secs(1));
        beside.want(&BTreeMap::new(), now + LINGER);
        assert_eq!(beside.acts(now + LINGER + secs(1)), []);
        assert_eq!(closed(&beside.acts(now + LINGER * 2)), [1]);
        assert_eq!(beside.to(PEER), None);
    }

    #[test]
    fn after_each_failure_the_pause_is_twice_as_long_and_a_connection_that_held_makes_up_for_them() {
        let (mut beside, mut now) = wanting();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let failed = now;
            while dials(&beside.acts(now)) == 0 {
                now += secs(1);
            }
            pauses.push((now - failed).as_secs());
            beside.failed(PEER, "no answer".to_owned(), now);
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(beside.why_not(PEER).contains("no answer"));
        now += secs(60);
        assert_eq!(dials(&beside.acts(now)), 1);
        beside.opened(PEER, true, 1, now);
        beside.lost(|&connection| connection == 1, "silence", now + STEADY);
        assert_eq!(beside.to(PEER), None);
        assert_eq!(dials(&beside.acts(now + STEADY + secs(1))), 1);
    }

    #[test]
    fn it_is_made_anew_beside_a_new_link_and_ends_with_the_last() {
        let (mut beside, now) = wanting();
        beside.acts(now);
        beside.opened(PEER, true, 1, now);
        beside.link_down(LINK, false, now);
        assert_eq!(beside.acts(now + secs(1)), []);
        beside.link_up(OTHER, PEER, link(true, now + secs(2)));
        assert_eq!(dials(&beside.acts(now + secs(2))), 1);
        assert_eq!(beside.to(PEER), Some(&1));
        beside.opened(PEER, true, 2, now + secs(3));
        assert_eq!(closed(&beside.acts(now + RETIRED)), [1]);
        assert_eq!(beside.acts(now + secs(100)), []);
        beside.link_down(OTHER, false, now + secs(100));
        assert_eq!(closed(&beside.acts(now + secs(100) + GRACE)), [2]);
    }

    #[test]
    fn one_that_came_before_its_link_was_heard_of_lives_with_it() {
        let (mut beside, now) = (Beside::<u32>::default(), Instant::now());
        beside.opened(PEER, false, 1, now);
        beside.link_up(LINK, PEER, link(false, now));
        beside.link_up(OTHER, PEER, link(false, now));
        assert_eq!(beside.acts(now + secs(100)), []);
        beside.link_down(LINK, false, now + secs(100));
        assert_eq!(closed(&beside.acts(now + secs(100) + RETIRED)), [1]);
    }

    #[test]
    fn one_without_a_link_ends_soon() {
        let (mut beside, now) = (Beside::<u32>::default(), Instant::now());
        beside.opened(PEER, false, 1, now);
        assert_eq!(closed(&beside.acts(now + GRACE)), [1]);
    }

    #[test]
    fn where_a_secret_was_withdrawn_another_one_is_made_and_what_was_there_ends_soon() {
        let (mut beside, now) = wanting();
        beside.acts(now);
        beside.opened(PEER, true, 1, now);
        beside.link_up(OTHER, PEER, link(true, now));
        beside.link_down(LINK, true, now);
        assert_eq!(dials(&beside.acts(now)), 1);
        assert_eq!(beside.to(PEER), Some(&1));
        beside.opened(PEER, true, 2, now + secs(1));
        assert_eq!(beside.to(PEER), Some(&2));
        assert_eq!(closed(&beside.acts(now + RETIRED)), [1]);
        assert_eq!(beside.to(PEER), Some(&2));
    }

    #[test]
    fn a_peer_that_makes_one_after_the_other_holds_no_more_than_a_few() {
        let (mut beside, now) = (Beside::default(), Instant::now());
        beside.link_up(LINK, PEER, link(false, now));
        (0..20).for_each(|connection| beside.opened(PEER, false, connection, now));
        assert_eq!(closed(&beside.acts(now)).len(), 20 - MOST);
        assert_eq!(beside.to(PEER), Some(&19));
    }
}
