//! What the owner has said and the sessions' machines have decided, and the table that follows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use weave_proto::{Cidr, PeerName};
use weave_sleeve::outbox::{Outbox, Road};
use weave_sleeve::ranges::Ranges;
use weave_sleeve::session::{Config, Output, SealEpoch, Session};

use super::counters::Counters;
use super::socket::{Exit, Socket};
use super::table::{Live, OpenKeys, OpenSession, PeerRoute, SendRoad, Table};

/// One peer, as the owner wants it reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub peer: PeerName,
    /// The inner addresses that are its own: packets for them go to it, and packets from it must come from them.
    pub ranges: Vec<Cidr>,
    /// The session to send with, by the own index; none sends nothing (another method carries its packets), but
    /// what comes from it is still taken.
    pub send_with: Option<u32>,
    /// Bytes of the longest UDP payload that the path takes.
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

#[derive(Default)]
pub(super) struct Control {
    peers: BTreeMap<PeerName, Peer>,
    sessions: BTreeMap<u32, OneSession>,
    prober: Outbox,
    changed: bool,
}

struct OneSession {
    machine: Session,
    peer: PeerName,
    remote: SocketAddr,
    seal: Option<Arc<SealEpoch>>,
    open: Vec<Arc<OpenKeys>>,
    live: Arc<Live>,
}

/// A probe to be sent.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    pub(super) content: &'a [u8],
    /// Bytes of UDP payload in all.
    pub(super) len: usize,
}

impl Control {
    pub(super) fn set_peers(&mut self, peers: Vec<Peer>) {
        self.peers = peers.into_iter().map(|peer| (peer.peer, peer)).collect();
        self.changed = true;
    }

    pub(super) fn open_session(&mut self, settings: SessionSettings, exported: &[u8], now: Instant) {
        let SessionSettings { index, peer, remote, config } = settings;
        let machine = Session::new(config, exported, now);
        let mut session =
            OneSession { machine, peer, remote, seal: None, open: Vec::new(), live: Arc::default() };
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

    pub(super) fn probe(&mut self, index: u32, probe: Probe<'_>, socket: &Socket, count: &Counters) -> bool {
        let Probe { content, len } = probe;
        let Some(session) = self.sessions.get(&index) else { return false };
        let Some(lane) = session.seal.as_ref().and_then(|seal| seal.lanes.first()) else { return false };
        let confirmed = session.live.opened.load(Ordering::Relaxed);
        let road = Road { lane, confirmed, record_len: len };
        let mut out = Exit { socket, remote: &session.remote, count };
        self.prober.push_probe(content, len, &road, &mut out).is_ok()
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
        }
    }

    fn road(&self, peer: &Peer) -> Option<Arc<SendRoad>> {
        let session = self.sessions.get(&peer.send_with?).filter(|session| session.peer == peer.peer)?;
        Some(Arc::new(SendRoad {
            remote: session.remote,
            record_len: peer.record_len,
            seal: Arc::clone(session.seal.as_ref()?),
            live: Arc::clone(&session.live),
        }))
    }
}

impl OneSession {
    /// Whether anything came out of the machine.
    fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.machine.poll_output() {
            any = true;
            match output {
                Output::Open(epoch) => self.open.push(Arc::new(OpenKeys::new(epoch))),
                Output::Forget(number) => self.open.retain(|keys| keys.epoch != number),
                Output::Seal(epoch) => self.seal = Some(Arc::new(epoch)),
            }
        }
        any
    }
}
