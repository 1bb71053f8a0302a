//! Sessions with peers that no link leads to: what [`Far`](super::far::Far) agrees on becomes one, and says what it
//! needs said.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use weave_proto::PeerName;
use weave_proto::peer::Offer;
use weave_router::Distant;
use weave_sleeve::header::OVERHEAD;
use weave_sleeve::relay::RELAYED_OVERHEAD;

use super::ends::{self, Ends};
use super::far::Agreed;
use super::telling::SMALLEST;
use super::word::WORD_LEN;
use super::{Driver, Report};
use crate::dataplane::sleeve::Carrier;

impl Driver {
    /// These are all peers without a link.
    pub(super) fn on_distant(&mut self, distant: Vec<Distant>) {
        let now = Instant::now();
        for index in self.far.set(distant, now) {
            self.sessions.orphan(index, false, now);
        }
        self.approach(now);
        self.settle();
    }

    /// The secrets have changed.
    pub(super) fn on_secrets(&mut self) {
        let now = Instant::now();
        for index in self.far.retired(now) {
            self.sessions.orphan(index, true, now);
        }
        self.approach(now);
        self.settle();
    }

    /// Begins to agree on keys with those that it is due with.
    pub(super) fn approach(&mut self, now: Instant) {
        let Ok(tunnel) = &self.tunnel else { return };
        let (sessions, takes) = (&self.sessions, (tunnel.queues, self.port()));
        for (to, body) in self.far.poll(|| own_offer(sessions, takes), now) {
            self.tell(Report::Routed(to, body));
        }
    }

    /// A peer's data plane says something through the mesh.
    pub(super) fn on_routed(&mut self, from: PeerName, body: &[u8]) {
        let Ok(tunnel) = &self.tunnel else { return };
        let (now, sessions, takes) = (Instant::now(), &self.sessions, (tunnel.queues, self.port()));
        let (said, agreed) = self.far.take((from, body), || own_offer(sessions, takes), now);
        if let Some((to, body)) = said {
            self.tell(Report::Routed(to, body));
        }
        match agreed {
            Some(agreed) => self.meet(&agreed, now),
            // Whoever asks is called.
            None => self.approach(now),
        }
    }

    /// Opens the session that both ends have agreed on.
    fn meet(&mut self, agreed: &Agreed, now: Instant) {
        let Agreed { distant, dialled, own, met } = agreed;
        let peer = distant.name;
        let direct = distant.underlay.map(|at| self.underlay.largest(at));
        let largest = self.largest_relayed(peer, direct).max(direct.unwrap_or(SMALLEST));
        let Ok(tunnel) = &self.tunnel else { return };
        // Nowhere, if nobody knows where the peer is or it takes nothing by UDP: relays alone carry then.
        let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let known = distant.underlay.map(|at| SocketAddr::new(at, met.offer.port));
        let remote = known.filter(|remote| remote.port() != 0).unwrap_or(nowhere);
        let ends = Ends { peer, remote, dialled: *dialled, own: own.index };
        let record_len = |_| usize::try_from(largest).unwrap_or(usize::MAX) + OVERHEAD;
        let session = ends.session(&met.offer, tunnel.queues, record_len, |context| met.export(context));
        let (settings, secret) = match session {
            Ok(Some(session)) => session,
            Ok(None) => return,
            Err(why) => {
                tracing::warn!(%peer, why, "no sealed records can be exchanged");
                return;
            }
        };
        tracing::debug!(%peer, "keys agreed on through the mesh");
        let index = settings.index;
        tunnel.engine.open_session(settings, &secret[..], now);
        for older in self.sessions.without_link(peer) {
            self.sessions.orphan(older, false, now);
        }
        self.sessions.open(index, (peer, None), remote, now);
        self.far.opened(peer, index, met.proof.clone());
        self.look();
    }

    /// Greets a peer without a link by every way that may lead to it.
    pub(super) fn greet_distant(&self, index: u32, peer: PeerName, greeting: &[u8]) {
        let (Ok(tunnel), Some(distant)) = (&self.tunnel, self.far.distant(peer)) else { return };
        for &hop in &distant.relays {
            // Lost or refused, the next one will do.
            let _sent =
                tunnel.engine.probe(index, &Carrier::Relay(hop), greeting, RELAYED_OVERHEAD + WORD_LEN);
        }
    }

    /// The largest packet that fits a relayed record towards a peer, as far as this node's devices know: what the first
    /// hop takes.
    pub(super) fn largest_relayed(&mut self, peer: PeerName, direct: Option<u32>) -> u32 {
        let hops = self.far.distant(peer).map(|distant| distant.relays.clone()).unwrap_or_default();
        let first: Vec<IpAddr> =
            hops.iter().filter_map(|&hop| Some(self.sessions.to(hop)?.1.remote.ip())).collect();
        let largest = first.into_iter().map(|at| self.underlay.largest(at)).max();
        let more = u32::try_from(RELAYED_OVERHEAD - OVERHEAD).unwrap_or(0);
        largest.or(direct).unwrap_or(SMALLEST).saturating_sub(more)
    }
}

/// What this end offers in a handshake: a number that no session has.
fn own_offer(sessions: &super::Sessions, takes: (u8, u16)) -> Offer {
    loop {
        let index = u32::from_ne_bytes(crate::peer::chance());
        if !sessions.contains(index) {
            return ends::offer(index, takes);
        }
    }
}
