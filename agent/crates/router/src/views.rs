//! What can be seen of the machine: the node's view for the kernel, and the parts of the status document.

use std::collections::BTreeMap;
use std::time::Instant;

use weave_ipam::{Ipam, RequestError};
use weave_overlay::{PeerFacts, Report, Via};
use weave_proto::local::status::{
    ConnectionState, ConnectionStatus, IpamStatus, MethodStatus, PeerStatus, RejectedMethod, TargetStatus,
};
use weave_proto::peer::{Features, Message};
use weave_proto::{Cidr, Nickname, PeerName, Span};
use weave_topology::{KnownPeer, Topology};

use crate::node::{Distant, Expose, NodeView};
use crate::router::{Output, Router, StoreOp};

impl Router {
    /// Tells the overlay what is known of the peers, tells them what it demands of them, and publishes the node's view if
    /// it has changed.
    pub(crate) fn publish(&mut self, now: Instant) {
        let graph_changed = std::mem::take(&mut self.graph_changed);
        if !std::mem::take(&mut self.facts_changed) && !graph_changed {
            return self.publish_if_rerouted();
        }
        if graph_changed {
            let peers = self.topology.known_peers().map(|peer| peer.name).filter(|&peer| peer != self.me);
            self.relays = peers.map(|peer| (peer, self.topology.relays(peer))).collect();
        }
        let ranges = self.ipam.ranges();
        let facts: BTreeMap<PeerName, PeerFacts> = self
            .topology
            .known_peers()
            .filter(|peer| peer.name != self.me)
            .map(|peer| {
                let facts = PeerFacts {
                    features: peer.features,
                    underlay: peer.underlay.map(|addr| addr.ip()),
                    overlay: peer.overlay,
                    ranges: blocks(&ranges, peer.name),
                    relays: self.relays.get(&peer.name).cloned().unwrap_or_default(),
                };
                (peer.name, facts)
            })
            .collect();
        self.overlay.handle_facts(facts, now);
        self.tell_terms();
        self.tell_distant();
        self.follow_overlay();
        self.overlay.take_changed();
        let own = blocks(&ranges, self.me);
        self.publish_view(own);
    }

    /// After news that concern the overlay alone: publishes the node's view if its routes have changed.
    fn publish_if_rerouted(&mut self) {
        self.follow_overlay();
        if self.overlay.take_changed() {
            let own = blocks(&self.ipam.ranges(), self.me);
            self.publish_view(own);
        }
    }

    /// Passes on what the overlay wants done, which stands ahead of the view that follows from it.
    fn follow_overlay(&mut self) {
        while let Some(output) = self.overlay.poll_output() {
            match output {
                weave_overlay::Output::Probe(probe) => self.outputs.push_back(Output::Probe(probe)),
                // A neighbour that has not heard of a removal yet may go on telling of the removed peer.
                weave_overlay::Output::Persist(known) if self.removed.contains(&known.peer) => {}
                weave_overlay::Output::Persist(known) => self.persist(StoreOp::Way(known)),
                weave_overlay::Output::Tell(moved) => {
                    let nickname = self.nickname(moved.peer);
                    self.outputs.push_back(Output::Notify(crate::Notice::Overlay(moved, nickname)));
                }
            }
        }
    }

    /// Says on each link, once and whenever it changes, whether packets may travel in clear.
    fn tell_terms(&mut self) {
        let linked: Vec<_> = self
            .relays
            .keys()
            .filter_map(|&peer| Some((peer, self.topology.link_to(peer)?.0, self.overlay.terms(peer)?)))
            .collect();
        for (peer, link, terms) in linked {
            if self.terms.insert(peer, (link, terms)) != Some((link, terms)) {
                self.outputs.push_back(Output::Send { link, message: Message::Terms(terms) });
            }
        }
    }

    /// Says who is reached through others only, whenever that changes.
    fn tell_distant(&mut self) {
        let seals = |features: Features| features.has(Features::SLEEVE) || features.has(Features::QUIC);
        if !seals(self.topology.own_record().features) {
            return;
        }
        let is_distant = |peer: &&KnownPeer| {
            seals(peer.features)
                && peer.name != self.me
                && self.topology.link_to(peer.name).is_none()
                && self.topology.is_reachable(peer.name)
        };
        let distant: Vec<Distant> = self
            .topology
            .known_peers()
            .filter(is_distant)
            .map(|peer| Distant {
                name: peer.name,
                key: peer.key,
                underlay: peer.underlay.map(|addr| addr.ip()),
                relays: self.relays.get(&peer.name).cloned().unwrap_or_default(),
            })
            .collect();
        if distant != self.distant {
            self.distant.clone_from(&distant);
            self.outputs.push_back(Output::Distant(distant));
        }
    }

    fn publish_view(&mut self, own: Vec<Cidr>) {
        let view = NodeView {
            universe: self.universe,
            address: match self.expose {
                Expose::Held(address) => Some(address),
                Expose::Asked | Expose::Again(_) => None,
            },
            own,
            table: self.overlay.table(),
            pods: self.ipam.allocations().filter_map(|allocation| allocation.port.clone()).collect(),
        };
        // A pod that comes or goes is attached or detached by the one who makes or removes its link; the list of pods is
        // for the kernel's first look and for those that follow for other reasons.
        let same = |old: &NodeView| {
            NodeView { pods: Vec::new(), ..old.clone() } == NodeView { pods: Vec::new(), ..view.clone() }
        };
        if !self.view.as_ref().is_some_and(same) {
            self.outputs.push_back(Output::Publish(view.clone()));
            self.view = Some(view);
        }
    }

    /// Connections and attempts, each with the method to its peer; `mtu` is what a pod may send on this node.
    #[must_use]
    pub fn connections(&self, mtu: Option<u32>, now: Instant) -> Vec<ConnectionStatus> {
        let mut connections = self.topology.connections(now);
        for connection in &mut connections {
            let report = connection.peer.and_then(|peer| self.overlay.report(peer, now));
            let no_path = report.as_ref().is_none_or(|report| report.way.is_none());
            connection.method = report.map(|report| method(report, mtu));
            if connection.state == ConnectionState::Established && no_path {
                connection.state = ConnectionState::Pending;
            }
        }
        connections
    }

    /// All peers known, this one first, each with how its pods are reached; `mtu` is what a pod may send on this node.
    #[must_use]
    pub fn peers(&self, mtu: Option<u32>, now: Instant) -> Vec<PeerStatus> {
        let mut peers = self.topology.peers_status();
        for peer in &mut peers {
            peer.method = self.overlay.report(peer.name, now).map(|report| method(report, mtu));
        }
        peers
    }

    /// Where people want peers reached.
    #[must_use]
    pub fn targets(&self) -> Vec<TargetStatus> {
        self.topology
            .targets()
            .iter()
            .map(|target| TargetStatus {
                target: target.to_string(),
                problem: self
                    .topology
                    .lookup_trouble(target)
                    .map(|why| format!("cannot be looked up: {why}")),
            })
            .collect()
    }

    /// The allocator, to look at.
    #[must_use]
    pub const fn ipam(&self) -> &Ipam {
        &self.ipam
    }

    /// The mesh, to look at.
    #[must_use]
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// How many established links have ended.
    #[must_use]
    pub const fn terminations(&self) -> u64 {
        self.terminations
    }

    /// Messages of peers that were not believed, by reason.
    #[must_use]
    pub const fn refused(&self) -> &BTreeMap<String, u64> {
        &self.refused
    }

    fn nickname(&self, peer: PeerName) -> Option<Nickname> {
        let known = || self.topology.known_peers().find(|known| known.name == peer);
        self.topology
            .peer(peer)
            .map(|view| view.record.nickname.clone())
            .or_else(|| known().map(|known| known.nickname.clone()))
    }

    /// What an operator should know and change: containers with lost addresses, and a list of seeds that cannot be right,
    /// which is believed without asking anybody, so that nobody else notices.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.seeds.is_empty() && !self.seeds.contains(&self.me) {
            warnings.push(format!(
                "this peer, {}, is not in its own list --ipalloc-init seed=…, so it has no share but what the others \
                 give it: if it belongs there, put it into the list on every peer, after `weave reset` on each; if \
                 not, launch it with --ipalloc-init observer",
                self.me
            ));
        }
        let lost: Vec<_> = self.ipam.lost().map(|lost| format!("{} ({})", lost.key, lost.address)).collect();
        if !lost.is_empty() {
            warnings.push(format!(
                "containers of this node hold addresses that are another peer's now, since this node was removed from the \
                 mesh, and are cut off: restart {}",
                lost.join(", ")
            ));
        }
        let ranges = self.ipam.ranges();
        let is_known = |peer: &PeerName| {
            *peer == self.me
                || self.topology.peer(*peer).is_some()
                || self.topology.known_peers().any(|known| known.name == *peer)
        };
        for peer in self.seeds.iter().filter(|peer| ranges.contains_key(peer) && !is_known(peer)) {
            warnings.push(format!(
                "the list --ipalloc-init seed=… names {peer}, which this peer has never heard of and which owns a share \
                 of the range all the same: start it; or if the name is wrong, `weave rmpeer {peer}` gives its share \
                 to this peer"
            ));
        }
        warnings
    }

    /// What the allocator believes.
    #[must_use]
    pub fn ipam_status(&self, now: Instant) -> IpamStatus {
        let mut status = self.ipam.status(now);
        for share in &mut status.shares {
            share.nickname = self.nickname(share.peer);
        }
        if let Some(twin) = self.topology.twin(now) {
            status.ready = false;
            status.state = RequestError::IdentityHeldTwice(twin.to_owned()).to_string();
        }
        status
    }
}

fn blocks(ranges: &BTreeMap<PeerName, Vec<Span>>, peer: PeerName) -> Vec<Cidr> {
    ranges.get(&peer).into_iter().flatten().copied().flat_map(Span::cidrs).collect()
}

/// A report for the status document; `mtu` is what the node's devices allow.
fn method(report: Report, mtu: Option<u32>) -> MethodStatus {
    let via = report.way.map_or(Via::Direct, |way| way.via);
    MethodStatus {
        name: match (report.way, via) {
            (None, _) => "none".to_owned(),
            (Some(_), Via::Relay(_)) => "relay".to_owned(),
            (Some(way), Via::Direct) => way.method.to_string(),
        },
        reason: report.reason,
        mtu: report.way.and_then(|_| [report.mtu, mtu].into_iter().flatten().min()),
        encrypted: report.encrypted,
        via: match via {
            Via::Direct => None,
            Via::Relay(hop) => Some(hop),
        },
        by: report.way.filter(|way| way.via != Via::Direct).map(|way| way.method.to_string()),
        round_trip_us: report.round_trip.map(|trip| u64::try_from(trip.as_micros()).unwrap_or(u64::MAX)),
        rejected: report.rejected.into_iter().map(|(name, reason)| RejectedMethod { name, reason }).collect(),
        // Known to the data plane alone.
        session: None,
    }
}

#[cfg(test)]
mod tests;
