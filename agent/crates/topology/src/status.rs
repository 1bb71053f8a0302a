//! What can be looked at: views of the state, and the documents that the command line shows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use weave_proto::local::status::{ConnectionState, ConnectionStatus, PeerLinkStatus, PeerStatus};
use weave_proto::peer::{Hello, LinkRecord, PeerRecord, WireVersion};
use weave_proto::{Nickname, PeerName};

use crate::book::{Phase, Place, Urgency};
use crate::links::Link;
use crate::rejections::Rejection;
use crate::{Direction, KnownPeer, LinkId, PeerView, Target, Topology};

impl Topology {
    /// All peers of the mesh in the order of their names, this one included, those that departed not.
    pub fn peers(&self) -> impl Iterator<Item = PeerView<'_>> {
        let own = PeerView { record: self.own.record(), reachable: true };
        let (before, after): (Vec<_>, Vec<_>) = self
            .peers
            .present()
            .map(|record| PeerView { record, reachable: self.is_reachable(record.name) })
            .partition(|view| view.record.name < own.record.name);
        before.into_iter().chain([own]).chain(after)
    }

    /// What this peer says about itself.
    #[must_use]
    pub const fn own_record(&self) -> &PeerRecord {
        self.own.record()
    }

    /// One peer of the mesh.
    #[must_use]
    pub fn peer(&self, name: PeerName) -> Option<PeerView<'_>> {
        if name == self.me() {
            return Some(PeerView { record: self.own.record(), reachable: true });
        }
        let record = self.peers.present_one(name)?;
        Some(PeerView { record, reachable: self.is_reachable(name) })
    }

    /// What is remembered of every other peer, whether it can be reached, departed, or was only found in the store.
    pub fn known_peers(&self) -> impl Iterator<Item = &KnownPeer> {
        self.peers.known()
    }

    /// Whether there is a path to a peer. A neighbour is known to be reachable before the graph is drawn anew.
    #[must_use]
    pub fn is_reachable(&self, peer: PeerName) -> bool {
        peer == self.me() || self.links.to(peer).is_some() || self.peers.is_reachable(peer)
    }

    /// The link in use with a neighbour, and where it is.
    #[must_use]
    pub fn link_to(&self, peer: PeerName) -> Option<(LinkId, SocketAddr)> {
        self.links.to(peer).map(|link| (link.id, link.addr))
    }

    /// How many peers there are links with, pending or in use.
    #[must_use]
    pub fn neighbours(&self) -> usize {
        self.links.count()
    }

    /// The peer at the other end of a link.
    #[must_use]
    pub fn peer_of(&self, link: LinkId) -> Option<PeerName> {
        self.links.by_id(link).map(Link::peer)
    }

    /// The wire version spoken on a link.
    #[must_use]
    pub fn version_of(&self, link: LinkId) -> Option<WireVersion> {
        self.links.by_id(link).map(|link| link.version)
    }

    /// The neighbour to whom to hand what is meant for a peer; the peer itself if it is a neighbour.
    #[must_use]
    pub fn next_hop(&self, peer: PeerName) -> Option<PeerName> {
        self.link_towards(peer).map(Link::peer)
    }

    /// The neighbours that might pass something on to a peer, without this peer in between: those linked to it, or else
    /// the next hop. At most [`MAX_RELAYS`], the same ones as long as the mesh stays the same, and different ones for
    /// different pairs, so that no peer relays for all.
    #[must_use]
    pub fn relays(&self, peer: PeerName) -> Vec<PeerName> {
        let neighbours = self.links.in_use().map(Link::peer).filter(|&neighbour| neighbour != peer);
        let mut relays = self.survey.graph.between(neighbours, peer);
        if relays.is_empty() {
            relays.extend(self.survey.routes.to(peer).map(|hop| hop.via).filter(|&via| via != peer));
        }
        relays.sort_by_cached_key(|&relay| (lot(&[self.me(), relay, peer]), relay));
        relays.truncate(MAX_RELAYS);
        relays
    }

    /// The targets that people gave.
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        self.connector.targets()
    }

    /// Which other running agent goes on speaking in this peer's name, in a sentence with the remedy. As long as there is
    /// one, nothing that only one holder of the name may do is safe.
    #[must_use]
    pub fn twin(&self, now: Instant) -> Option<&str> {
        self.own.twin(now)
    }

    /// What this peer says on new connections, less the nonce.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The links, the attempts and the callers that were turned down.
    #[must_use]
    pub fn connections(&self, now: Instant) -> Vec<ConnectionStatus> {
        let mut connections: Vec<ConnectionStatus> = self.links.in_use().map(established).collect();
        connections.extend(self.links.pending().map(|link| ConnectionStatus {
            state: ConnectionState::Pending,
            info: "waiting for the other side's answer".to_owned(),
            ..established(link)
        }));
        let places = self.connector.book().places();
        connections.extend(places.filter_map(|(addr, place)| self.attempt(addr, place, now)));
        connections.extend(self.connector.lookups().troubles().map(|(target, text, again)| {
            let unknown = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), target.port().unwrap_or(0));
            let info = format!("cannot look up {target}: {text}");
            let state = if again.is_some() { ConnectionState::Retrying } else { ConnectionState::Connecting };
            ConnectionStatus {
                retry_in_seconds: again.map(|again| seconds(again, now)),
                ..connection(unknown, state, info)
            }
        }));
        connections.extend(self.rejections.iter().map(turned_down));
        connections
    }

    /// Why a target's name could not be looked up the last time, if it could not.
    #[must_use]
    pub fn lookup_trouble(&self, target: &Target) -> Option<&str> {
        self.connector.lookups().troubles().find(|(other, ..)| *other == target).map(|(_, text, _)| text)
    }

    /// All peers of the mesh and their links, this one first, then by name.
    #[must_use]
    pub fn peers_status(&self) -> Vec<PeerStatus> {
        let mut peers: Vec<PeerStatus> = self.peers().map(|view| self.peer_status(view)).collect();
        peers.sort_by_key(|peer| (peer.name != self.me(), peer.name));
        peers
    }

    fn peer_status(&self, view: PeerView<'_>) -> PeerStatus {
        let PeerView { record, reachable } = view;
        PeerStatus {
            name: record.name,
            nickname: record.nickname.clone(),
            uid: record.uid,
            version: record.version.0,
            overlay: record.overlay,
            reachable,
            links: record.links.iter().map(|link| self.link_status(record, link)).collect(),
            method: None,
        }
    }

    fn link_status(&self, record: &PeerRecord, link: &LinkRecord) -> PeerLinkStatus {
        PeerLinkStatus {
            peer: link.peer,
            nickname: self.nickname(link.peer),
            address: link.addr,
            outbound: link.outbound,
            established: self.survey.graph.has(record.name, link.peer),
        }
    }

    fn nickname(&self, peer: PeerName) -> Option<Nickname> {
        if peer == self.me() {
            return Some(self.hello.nickname.clone());
        }
        self.peers.record(peer).map(|record| record.nickname.clone())
    }

    fn attempt(&self, addr: SocketAddr, place: &Place, now: Instant) -> Option<ConnectionStatus> {
        let trouble = place.trouble.as_ref().map(|reason| reason.text.clone());
        let (state, retry) = match place.phase {
            // There is a link by now: an attempt from before it will find that out.
            Phase::Dialing { .. } | Phase::Resting { .. } if place.interest.urgency == Urgency::No => {
                return None;
            }
            Phase::Dialing { .. } => (ConnectionState::Connecting, None),
            Phase::Never => (ConnectionState::Failed, None),
            Phase::Resting { .. } if trouble.is_none() && !place.interest.target => return None,
            // A full peer that we need not reach is no news to anybody.
            Phase::Resting { .. } if place.found_full() && place.interest.urgency == Urgency::May => {
                return None;
            }
            Phase::Resting { .. } => (ConnectionState::Retrying, place.due().map(|due| seconds(due, now))),
        };
        Some(ConnectionStatus {
            outbound: true,
            peer: place.peer,
            nickname: place.peer.and_then(|peer| self.nickname(peer)),
            retry_in_seconds: retry,
            ..connection(addr, state, trouble.unwrap_or_default())
        })
    }
}

/// How many relays to a peer are worth being watched: one in use and one in reserve.
const MAX_RELAYS: usize = 2;

/// A number that depends on all of these names and their order (FNV-1a).
fn lot(names: &[PeerName]) -> u64 {
    let bytes = names.iter().flat_map(|name| name.mac());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn established(link: &Link) -> ConnectionStatus {
    ConnectionStatus {
        outbound: link.direction == Direction::Outbound,
        peer: Some(link.peer()),
        nickname: Some(link.hello.nickname.clone()),
        ..connection(link.addr, ConnectionState::Established, String::new())
    }
}

fn turned_down(rejection: &Rejection) -> ConnectionStatus {
    let (peer, nickname) = rejection.caller.clone().unzip();
    ConnectionStatus {
        outbound: false,
        peer,
        nickname,
        ..connection(rejection.addr, ConnectionState::Failed, rejection.text.clone())
    }
}

const fn connection(address: SocketAddr, state: ConnectionState, info: String) -> ConnectionStatus {
    ConnectionStatus {
        address,
        outbound: true,
        state,
        peer: None,
        nickname: None,
        info,
        retry_in_seconds: None,
        method: None,
    }
}

/// Seconds until then, begun ones counted.
fn seconds(then: Instant, now: Instant) -> u64 {
    let left = then.saturating_duration_since(now);
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}
