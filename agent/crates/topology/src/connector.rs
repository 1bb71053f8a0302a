//! Whom to dial, where and when.
//!
//! Three sources say where peers may be: the targets that people gave, the addresses at which other peers see them, and
//! for peers that were lost, where they were last seen. From these and from the links in place a list of [`Interest`]s
//! is drawn up each time something has changed; the [`Book`] remembers how each address fared.
//!
//! * **One link a peer.** An address is left alone while there is a link with the peer that answered there last, or a
//!   link with that very address. So a target that turned out to be a second address of a neighbour is dialled once,
//!   found to be a duplicate, and not dialled again before the neighbour is lost.
//! * **Discovered peers are dialled by one end.** Two peers that hear of each other would both dial. The one with the
//!   smaller name does so at once, the other one after [`YIELD`], for the case that the first cannot.
//! * **A few at once.** Of peers that are told of each other and start together, each begins with a few in an order of
//!   its own, and is called by most of the others meanwhile.
//! * **Limits.** See [`crate::limit`]: what the mesh needs is dialled always, the rest as far as the limit allows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use rand::Rng;
use weave_proto::PeerName;
use weave_proto::peer::RefusalCode;

use crate::backoff::Backoff;
use crate::book::{Book, FRESH, Interest, MAX_DIALING, MAX_FRESH, Phase, Urgency};
use crate::links::{Link, Links};
use crate::lookup::Lookups;
use crate::peers::Peers;
use crate::survey::Survey;
use crate::{Config, DialId, Notice, Output, Reason, Target, limit};

/// How long the peer with the larger name waits for the one with the smaller name to dial: an attempt through an open
/// path takes milliseconds, one that fails is noticed by its absence.
pub(crate) const YIELD: Duration = Duration::from_secs(2);
/// The time between the first attempts at several addresses of one peer. Mostly the first one answers.
const STAGGER: Duration = Duration::from_secs(1);
/// How much longer than after an ordinary failure a peer waits to fill up its links after it met a full one: from 5 s to
/// 5 minutes. Where most peers are full, the rest would otherwise ask around for ever.
const FILL_FACTOR: u32 = 10;

/// What the connector looks at.
#[derive(Clone, Copy)]
pub(crate) struct Sight<'a> {
    pub(crate) links: &'a Links,
    pub(crate) peers: &'a Peers,
    pub(crate) survey: &'a Survey,
}

/// See the module's docs.
#[derive(Debug)]
pub(crate) struct Connector {
    me: PeerName,
    lookups: Lookups,
    book: Book,
    discovery: bool,
    limit: Option<NonZeroUsize>,
    salt: u64,
    /// When the next address is due that nothing but time keeps from being dialled.
    due: Option<Instant>,
    /// How long to wait with dials that are not needed, after a peer has had links enough.
    fill: Backoff,
    fill_after: Instant,
    /// Whether something has changed since the interests were drawn up.
    outdated: bool,
}

impl Connector {
    pub(crate) fn new(config: &Config, salt: u64, now: Instant) -> Self {
        let mut lookups = Lookups::new(config.port);
        for target in &config.targets {
            lookups.add(target.clone(), now);
        }
        Self {
            me: config.name,
            lookups,
            book: Book::default(),
            discovery: config.discovery,
            limit: config.conn_limit,
            salt,
            due: None,
            fill: Backoff::default(),
            fill_after: now,
            outdated: true,
        }
    }

    /// Something has changed that decides whom to dial.
    pub(crate) const fn outdate(&mut self) {
        self.outdated = true;
    }

    pub(crate) const fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    pub(crate) const fn book(&self) -> &Book {
        &self.book
    }

    pub(crate) fn targets(&self) -> Vec<Target> {
        self.lookups.targets()
    }

    /// People want these, and with `replace` no others.
    pub(crate) fn connect(&mut self, targets: Vec<Target>, replace: bool, now: Instant) {
        self.outdate();
        let wanted: BTreeSet<Target> = targets.into_iter().collect();
        if replace {
            self.lookups.retain(|target| wanted.contains(target));
        }
        for target in wanted {
            for addr in self.lookups.addresses_of(&target) {
                self.book.renew(addr, now);
            }
            self.lookups.add(target, now);
        }
    }

    /// People no longer want these. Links that are up stay up.
    pub(crate) fn forget(&mut self, targets: &[Target]) {
        self.outdate();
        self.lookups.retain(|target| !targets.contains(target));
    }

    pub(crate) fn on_resolved(
        &mut self,
        target: &Target,
        found: Result<Vec<SocketAddr>, String>,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Output> {
        self.outdate();
        self.lookups.on_resolved(target, found, rng, now)
    }

    /// A link has come from this attempt, or from nowhere, and we have nothing against it.
    pub(crate) fn on_link(&mut self, dial: Option<DialId>, link: &Link, now: Instant) {
        self.outdate();
        let dialled = dial.and_then(|dial| self.book.take_dial(dial)).unwrap_or(link.addr);
        self.book.on_link(dialled, link.peer(), now);
        self.book.on_link(link.addr, link.peer(), now);
    }

    /// The other end wants the link too.
    pub(crate) const fn on_link_confirmed(&mut self) {
        self.fill.reset();
        self.outdate();
    }

    /// The last link with a peer is gone.
    pub(crate) fn on_link_lost(&mut self, link: &Link, reason: &Reason, rng: &mut impl Rng, now: Instant) {
        self.outdate();
        self.book.on_link_lost(link, reason, rng, now);
    }

    /// An attempt failed; a notice if that concerns a person.
    pub(crate) fn on_dial_failed(
        &mut self,
        dial: DialId,
        reason: Reason,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Output> {
        let addr = self.book.take_dial(dial)?;
        self.on_failure(addr, reason, rng, now)
    }

    /// What was found at this address is not to be talked to.
    pub(crate) fn on_failure(
        &mut self,
        addr: SocketAddr,
        reason: Reason,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Output> {
        self.outdate();
        if reason.refused == Some(RefusalCode::Limit) {
            self.fill_after = now + self.fill.next(rng) * FILL_FACTOR;
        }
        let text = reason.text.clone();
        let is_news = self.book.on_failure(addr, reason, rng, now);
        let place = self.book.place(addr).filter(|place| is_news && place.interest.target)?;
        let retry = match place.phase {
            Phase::Resting { until, .. } => Some(until.saturating_duration_since(now)),
            Phase::Dialing { .. } | Phase::Never => None,
        };
        Some(Output::Notify(Notice::DialFailed { addr, text, retry }))
    }

    /// Draws up what is wanted now and dials what is due.
    pub(crate) fn plan(&mut self, sight: Sight<'_>, rng: &mut impl Rng, now: Instant) -> Vec<Output> {
        let mut outputs = self.lookups.on_timeout(rng, now);
        for dial in self.book.overdue(now) {
            outputs.extend(self.on_dial_failed(dial, Reason::from("no answer to the attempt"), rng, now));
        }
        let outdated = std::mem::take(&mut self.outdated);
        if outdated {
            let interests = self.interests(sight);
            self.book.set_interests(&interests, now);
        }
        if outdated || self.due.is_some_and(|due| due <= now) {
            outputs.extend(self.dial_due(sight, now));
        }
        outputs
    }

    /// When [`Self::plan`] has something to do although nothing has happened.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        [self.due, self.lookups.next_timeout(), self.book.next_overdue()].into_iter().flatten().min()
    }

    fn dial_due(&mut self, sight: Sight<'_>, now: Instant) -> Vec<Output> {
        let mut waiting: Vec<(Urgency, bool, u64, SocketAddr, Instant)> = self
            .book
            .places()
            .filter_map(|(addr, place)| {
                // Everybody in an order of its own, lest all begin with the same one.
                let luck = place.peer.map_or_else(
                    || limit::luck_of_address(self.salt, addr),
                    |peer| limit::luck(self.salt, peer),
                );
                let due = match place.interest.urgency {
                    Urgency::Must => place.due()?,
                    Urgency::May | Urgency::No => place.due()?.max(self.fill_after),
                };
                Some((place.interest.urgency, place.peer.is_some(), luck, addr, due))
            })
            .collect();
        waiting.sort_unstable();
        let mut outputs = Vec::new();
        let mut allowance = limit::allowance(self.limit, sight.links.count() + self.book.dialing());
        let mut fresh = self.book.fresh(now);
        self.due = None;
        let later = |due: Option<Instant>, at: Instant| Some(due.map_or(at, |first| first.min(at)));
        for (urgency, _, _, addr, due) in waiting {
            if self.book.dialing() >= MAX_DIALING || (urgency == Urgency::May && allowance == 0) {
                // Not time but a free place is waited for, and what frees one leads here again.
                continue;
            }
            if due > now {
                self.due = later(self.due, due);
            } else if let Some(&end) = fresh.first().filter(|_| fresh.len() >= MAX_FRESH) {
                self.due = later(self.due, end);
            } else if let Some(dial) = self.book.dial(addr, now) {
                allowance = allowance.saturating_sub(1);
                fresh.push(now + FRESH);
                outputs.push(Output::Dial { dial, addr });
            }
        }
        outputs
    }

    /// The addresses that matter and why.
    fn interests(&self, sight: Sight<'_>) -> BTreeMap<SocketAddr, Interest> {
        let linked = sight.links.addresses();
        let urgency = |addr: SocketAddr, peer: Option<PeerName>| {
            let found = self.book.place(addr).and_then(|place| place.peer).or(peer);
            match found {
                _ if linked.contains_key(&addr) => Urgency::No,
                Some(peer) if sight.links.has(peer) => Urgency::No,
                Some(peer) if !limit::is_needed(self.me, peer, sight.survey) => Urgency::May,
                Some(_) | None => Urgency::Must,
            }
        };
        let idle = |(&addr, &peer): (&SocketAddr, &PeerName)| {
            let (urgency, delay) = (Urgency::No, Duration::ZERO);
            (addr, Interest { urgency, target: false, peer: Some(peer), delay })
        };
        let mut interests: BTreeMap<SocketAddr, Interest> = linked.iter().map(idle).collect();
        for addr in self.lookups.addresses() {
            let (urgency, delay) = (urgency(addr, None), Duration::ZERO);
            interests.insert(addr, Interest { urgency, target: true, peer: None, delay });
        }
        for (peer, addr, delay) in self.discovered(sight) {
            let (urgency, peer) = (urgency(addr, Some(peer)), Some(peer));
            interests.entry(addr).or_insert(Interest { urgency, target: false, peer, delay });
        }
        interests
    }

    /// The peers that there is no link with and where they might be.
    fn discovered(&self, sight: Sight<'_>) -> impl Iterator<Item = (PeerName, SocketAddr, Duration)> {
        let (me, discovery) = (self.me, self.discovery);
        let reported = sight.survey.addresses.iter().flat_map(|(&peer, addresses)| {
            let turns = (0_u32..).map(|turn| STAGGER * turn);
            addresses.iter().zip(turns).map(move |(&addr, turn)| (peer, addr, turn))
        });
        let yielding = move |peer: PeerName| if me < peer { Duration::ZERO } else { YIELD };
        reported
            .chain(sight.peers.lost().map(|(peer, addr)| (peer, addr, Duration::ZERO)))
            .filter(move |&(peer, ..)| discovery && peer != me && !sight.links.has(peer))
            .map(move |(peer, addr, turn)| (peer, addr, yielding(peer) + turn))
    }

    /// The links to let go because there are too many.
    pub(crate) fn surplus(&self, sight: Sight<'_>, now: Instant) -> Vec<PeerName> {
        let Some(limit) = self.limit else { return Vec::new() };
        let luck = |peer| limit::luck(self.salt, peer);
        limit::surplus(self.me, limit, (sight.links, sight.survey), luck, now)
    }

    /// Whether there are more links than the limit allows.
    pub(crate) fn is_above_limit(&self, links: usize) -> bool {
        self.limit.is_some_and(|limit| links > limit.get())
    }

    /// Whether a link that another peer asks for must be turned down.
    pub(crate) fn is_full_for(&self, peer: PeerName, sight: Sight<'_>) -> bool {
        let is_full = self.limit.is_some_and(|limit| sight.links.count() >= limit.get());
        is_full && !sight.links.has(peer) && !limit::is_needed(self.me, peer, sight.survey)
    }
}
