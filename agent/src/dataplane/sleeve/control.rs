//! What the owner has said and the sessions' machines have decided, and the table that follows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use weave_proto::{Cidr, PeerName};
use weave_sleeve::outbox::{Outbox, Road};
use weave_sleeve::ranges::Ranges;
use weave_sleeve::relay::{MAX_HOPS, Relay};
use weave_sleeve::session::{Config, Output, SealEpoch, Session};

use super::carrier::{Carrier, Exit, Hop, Outlet, SendWith};
use super::counters::Counters;
use super::socket::Socket;
use super::table::{Forward, Live, OpenKeys, OpenSession, PeerRoute, SendRoad, Table};

/// One peer, as the owner wants it reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub peer: PeerName,
    /// The inner addresses that are its own: packets for them go to it, and packets from it must come from them.
    pub ranges: Vec<Cidr>,
    /// How its packets are sent; none sends nothing (another method carries them), but what comes from it is still
    /// taken.
    pub send_with: Option<SendWith>,
    /// How relay frames get to it, for it or for others behind it; none sends none.
    pub hop: Option<Hop>,
    /// Bytes of the longest datagram that the way of `send_with` takes: a UDP payload or a QUIC datagram, with the
    /// header of a relay frame where that is due.
    pub record_len: usize,
}

/// A session to be opened.
#[derive(Debug, Clone, Copy)]
pub struct SessionSettings {
    /// The own number of the session, which stands in what is received. Unique among the open sessions, and best
    /// chosen at random, so that a record for a forgotten session finds no other one.
    pub index: u32,
    /// Whose it is.
    pub peer: PeerName,
    /// Where to send until the peer is heard from.
    pub remote: SocketAddr,
    /// What both ends agreed on.
    pub config: Config,
}

pub(super) struct Control {
    name: PeerName,
    peers: BTreeMap<PeerName, Peer>,
    sessions: BTreeMap<u32, OneSession>,
    prober: Outbox,
    changed: bool,
}

struct OneSession {
    machine: Session,
    peer: PeerName,
    /// The number by which the peer knows it.
    remote_index: u32,
    remote: SocketAddr,
    seal: Option<Arc<SealEpoch>>,
    open: Vec<Arc<OpenKeys>>,
    live: Arc<Live>,
    /// How many records of `seal` were probes.
    probes: u64,
    /// How many records of packets were sealed with earlier keys.
    sealed_before: u64,
}

/// A probe to be sent.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    pub(super) session: u32,
    pub(super) carrier: &'a Carrier,
    pub(super) content: &'a [u8],
    /// Bytes of the datagram in all.
    pub(super) len: usize,
}

/// A way, resolved: where datagrams leave, and the relay header in front of them where one is due.
struct Leaving {
    outlet: Outlet,
    envelope: Option<Relay>,
}

impl Control {
    pub(super) fn new(name: PeerName) -> Self {
        let (peers, sessions) = (BTreeMap::new(), BTreeMap::new());
        Self { name, peers, sessions, prober: Outbox::new(), changed: false }
    }

    pub(super) fn set_peers(&mut self, peers: Vec<Peer>) {
        self.peers = peers.into_iter().map(|peer| (peer.peer, peer)).collect();
        self.changed = true;
    }

    pub(super) fn open_session(&mut self, settings: SessionSettings, exported: &[u8], now: Instant) {
        let SessionSettings { index, peer, remote, config } = settings;
        let remote_index = config.remote_index;
        let machine = Session::new(config, exported, now);
        let mut session = OneSession {
            machine,
            peer,
            remote_index,
            remote,
            seal: None,
            open: Vec::new(),
            live: Arc::default(),
            probes: 0,
            sealed_before: 0,
        };
        session.drain();
        self.sessions.insert(index, session);
        self.changed = true;
    }

    pub(super) fn close_session(&mut self, index: u32) {
        self.changed |= self.sessions.remove(&index).is_some();
    }

    pub(super) fn maintain(&mut self, now: Instant) -> Option<Instant> {
        for session in self.sessions.values_mut() {
            let busiest = session.seal.iter().flat_map(|seal| &seal.lanes).map(|lane| lane.used()).max();
            session.machine.handle_sealed(busiest.unwrap_or(0), now);
            session.machine.handle_timeout(now);
            self.changed |= session.drain();
        }
        self.sessions.values().filter_map(|session| session.machine.poll_timeout()).map(|(at, _)| at).min()
    }

    pub(super) fn handle_opened(&mut self, index: u32, epoch: u8, now: Instant) {
        if let Some(session) = self.sessions.get_mut(&index) {
            session.machine.handle_opened(epoch, now);
            session.live.opened.store(session.machine.opened_epoch(), Ordering::Relaxed);
            self.changed |= session.drain();
        }
    }

    pub(super) fn handle_confirmed(&mut self, index: u32, epoch: u8) {
        if let Some(session) = self.sessions.get_mut(&index) {
            session.machine.handle_confirmed(epoch);
            session.live.confirmed.store(epoch, Ordering::Relaxed);
            session.live.ever_confirmed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether that is news: the thread that asks may have an old table.
    pub(super) fn handle_source(&mut self, index: u32, from: SocketAddr) -> bool {
        let Some(session) = self.sessions.get_mut(&index) else { return false };
        let moved = session.remote != from;
        session.remote = from;
        self.changed |= moved;
        moved
    }

    /// Whether it could be sent.
    pub(super) fn probe(&mut self, probe: Probe<'_>, socket: &Socket, count: &Counters) -> bool {
        let Probe { session: index, carrier, content, len } = probe;
        let Some(session) = self.sessions.get(&index) else { return false };
        let Some(lane) = session.seal.as_ref().and_then(|seal| seal.lanes.first()) else { return false };
        let Some(Leaving { outlet, envelope }) = self.leaving(session, carrier) else { return false };
        let envelope = envelope.map(Relay::to_bytes);
        let envelope = envelope.as_ref().map_or(&[][..], |envelope| envelope);
        let confirmed = session.live.opened.load(Ordering::Relaxed);
        let road = Road { lane, confirmed, datagram_len: len, envelope };
        let mut out = Exit { socket, outlet: &outlet, count };
        let sent = self.prober.push_probe(content, len, &road, &mut out).is_ok();
        if let Some(session) = self.sessions.get_mut(&index).filter(|_| sent) {
            session.probes += 1;
        }
        sent
    }

    /// How many records of packets were sealed in a session.
    pub(super) fn sealed(&self, index: u32) -> Option<u64> {
        self.sessions.get(&index).map(OneSession::sealed)
    }

    /// How many frames of others were sent on to the peer of a session.
    pub(super) fn relayed(&self, index: u32) -> Option<u64> {
        Some(self.sessions.get(&index)?.live.relayed.load(Ordering::Relaxed))
    }

    pub(super) fn received(&self, index: u32) -> Option<u64> {
        Some(self.sessions.get(&index)?.live.received.load(Ordering::Relaxed))
    }

    #[cfg(test)]
    pub(super) fn sending_epoch(&self, index: u32) -> Option<u64> {
        Some(self.sessions.get(&index)?.machine.sending_epoch())
    }

    /// The new table, if anything has changed since it was last asked for.
    pub(super) fn take_table(&mut self) -> Option<Table> {
        std::mem::take(&mut self.changed).then(|| self.table())
    }

    #[expect(clippy::cast_possible_truncation, reason = "there are not four thousand million peers")]
    fn table(&self) -> Table {
        let slots = || self.peers.values().zip(0_u32..);
        let prefixes = slots().flat_map(|(peer, slot)| peer.ranges.iter().map(move |&range| (range, slot)));
        let slot_of = |name: PeerName| self.peers.keys().position(|&peer| peer == name).map(|at| at as u32);
        let opening = |(&index, session): (&u32, &OneSession)| OpenSession {
            index,
            peer: session.peer,
            slot: slot_of(session.peer).unwrap_or(u32::MAX),
            remote: session.remote,
            epochs: session.open.clone(),
            live: Arc::clone(&session.live),
        };
        Table {
            ranges: Ranges::new(prefixes),
            peers: self.peers.values().map(|peer| PeerRoute { road: self.road(peer) }).collect(),
            sessions: self.sessions.iter().map(opening).collect(),
            forwards: self
                .peers
                .iter()
                .filter_map(|(&name, peer)| Some((name, self.forward(peer)?)))
                .collect(),
        }
    }

    fn road(&self, peer: &Peer) -> Option<Arc<SendRoad>> {
        let SendWith { session, carrier } = peer.send_with.as_ref()?;
        let session = self.session_with(*session, peer.peer)?;
        let seal = Arc::clone(session.seal.as_ref()?);
        let Leaving { outlet, envelope } = self.leaving(session, carrier)?;
        let queues = (0..=u8::MAX).take(seal.lanes.len());
        let envelopes = envelope
            .map_or_else(Vec::new, |relay| queues.map(|queue| Relay { queue, ..relay }.to_bytes()).collect());
        let live = Arc::clone(&session.live);
        Some(Arc::new(SendRoad { outlet, datagram_len: peer.record_len, envelopes, seal, live }))
    }

    fn session_with(&self, index: u32, peer: PeerName) -> Option<&OneSession> {
        self.sessions.get(&index).filter(|session| session.peer == peer)
    }

    fn leaving(&self, session: &OneSession, carrier: &Carrier) -> Option<Leaving> {
        match carrier {
            Carrier::Udp => Some(Leaving { outlet: Outlet::Udp(session.remote), envelope: None }),
            Carrier::Quic(link) => Some(Leaving { outlet: Outlet::Quic(link.clone()), envelope: None }),
            Carrier::Relay(next) => {
                let Forward { outlet, receiver, .. } = self.direct(*next)?;
                let (to, from) = (session.peer, self.name);
                let envelope = Relay { hops_left: MAX_HOPS, queue: 0, receiver, to, from };
                Some(Leaving { outlet, envelope: Some(envelope) })
            }
        }
    }

    /// How frames get to `peer`, directly or by one other node.
    fn forward(&self, peer: &Peer) -> Option<Forward> {
        match peer.hop.as_ref()? {
            Hop::Next(next) => self.direct(*next),
            Hop::Udp { .. } | Hop::Quic { .. } => self.direct(peer.peer),
        }
    }

    /// How frames get to `next`, if it is a neighbour.
    fn direct(&self, next: PeerName) -> Option<Forward> {
        let peer = self.peers.get(&next)?;
        let (session, outlet) = match peer.hop.as_ref()? {
            Hop::Udp { session } => {
                let session = self.session_with(*session, next)?;
                (session, Outlet::Udp(session.remote))
            }
            Hop::Quic { session, link } => (self.session_with(*session, next)?, Outlet::Quic(link.clone())),
            Hop::Next(_) => return None,
        };
        Some(Forward { next, receiver: session.remote_index, outlet, live: Arc::clone(&session.live) })
    }
}

impl OneSession {
    /// How many records of packets were sealed.
    fn sealed(&self) -> u64 {
        let lanes = self.seal.iter().flat_map(|seal| &seal.lanes);
        let all: u64 = lanes.map(|lane| lane.used()).sum();
        self.sealed_before + all.saturating_sub(self.probes)
    }

    /// Whether anything came out of the machine.
    fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.machine.poll_output() {
            any = true;
            match output {
                Output::Open(epoch) => self.open.push(Arc::new(OpenKeys::new(epoch))),
                Output::Forget(number) => self.open.retain(|keys| keys.epoch != number),
                Output::Seal(epoch) => {
                    self.sealed_before = self.sealed();
                    (self.seal, self.probes) = (Some(Arc::new(epoch)), 0);
                }
            }
        }
        any
    }
}
