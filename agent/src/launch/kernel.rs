//! Between the brain's view of the node and the room that makes the kernel so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use weave_overlay::{ForwardingTable, Method, PlainFrom};
use weave_proto::PeerName;
use weave_proto::local::status::NodeStatus;
use weave_router::NodeView;

use crate::brain::Input;
use crate::cni::records::delegated_ports;
use crate::net::{self, HostOptions, Node, NodeState, PeerPath, SealedPath, mtu};
use crate::store::Presence;

/// How often the counters of refused packets are read. They are shown to people and scraped by Prometheus, which asks
/// every 15 s or so.
const COUNTERS_PACE: Duration = Duration::from_secs(10);

/// Bytes that a sealed record adds to a packet beyond what VXLAN does.
const SEALED_MORE: u32 = crate::dataplane::driver::SEALED_MORE;

/// What does not change while the agent runs.
pub(super) struct KernelTask {
    /// This peer.
    pub(super) name: PeerName,
    /// The room.
    pub(super) node: Node,
    /// Where the pods are recorded whose addresses other IPAM plugins gave.
    pub(super) data_dir: PathBuf,
    /// By which it shows that the store was deleted.
    pub(super) presence: Option<Presence>,
    /// The MTU that the operator chose; none to derive it.
    pub(super) mtu: Option<u32>,
    /// Whether pods' packets are small enough to be sealed from the start, since they will be.
    pub(super) seals: bool,
    /// Whether there is a device of tunnels in user space.
    pub(super) has_tun: bool,
    /// What the operator chose about the host.
    pub(super) options: HostOptions,
    /// The newest view.
    pub(super) views: watch::Receiver<Option<NodeView>>,
    /// What the status document says of the node.
    pub(super) status: watch::Sender<NodeStatus>,
    /// To have the status document built again.
    pub(super) brain: mpsc::Sender<Input>,
}

impl KernelTask {
    /// Hands each new view to the kernel's room and keeps the node's status. Ends with the brain; the kernel keeps
    /// what it has. May be dropped at any time.
    pub(super) async fn run(mut self) {
        let mut health = self.node.watch_health();
        let mut pace = tokio::time::interval(COUNTERS_PACE);
        loop {
            tokio::select! {
                changed = self.views.changed() => match changed {
                    Ok(()) => self.apply(),
                    Err(_) => return,
                },
                changed = health.changed() => if changed.is_err() { return },
                _ = pace.tick() => {}
            }
            self.report().await;
        }
    }

    fn apply(&mut self) {
        let view = self.views.borrow_and_update().clone();
        if let Some(view) = view {
            self.node.set(self.state(view));
        }
    }

    fn state(&self, view: NodeView) -> NodeState {
        let Roads { peers, probed, sealed } = Roads::of(&view.table);
        let towards: Vec<IpAddr> = view.table.paths.iter().filter_map(|path| path.underlay).collect();
        let mtu =
            self.mtu.unwrap_or_else(|| derived_mtu(&towards) - if self.seals { SEALED_MORE } else { 0 });
        NodeState {
            name: self.name,
            universe: view.universe,
            address: view.address,
            own: view.own,
            mtu,
            peers,
            probed,
            sealed,
            has_tun: self.has_tun,
            pods: view.pods.into_iter().chain(delegated_ports(&self.data_dir)).collect(),
            options: self.options.clone(),
        }
    }

    /// That what is given out cannot be made durable, if so.
    fn lost_store(&self) -> Option<String> {
        self.presence.as_ref()?.check().err().map(|gone| gone.to_string())
    }

    /// Puts the node's part of the status together, and has a new document built if it differs.
    async fn report(&self) {
        let health = self.node.health();
        let facts = self.node.facts();
        let drops = self.node.counters().await.unwrap_or_default();
        let status = NodeStatus {
            bridge: net::names::BRIDGE.to_owned(),
            address: facts.as_ref().and_then(|facts| facts.address),
            mtu: facts.map(|facts| facts.mtu),
            // Counted by the brain, which gives out their addresses.
            pods: 0,
            problems: health.problems,
            warnings: health.foreign_firewall.into_iter().chain(self.lost_store()).collect(),
            repairs: BTreeMap::from([("kernel state".to_owned(), health.repairs)]),
            drops: drops.iter().map(|(drop, count)| (drop.name().to_owned(), count.packets)).collect(),
        };
        let changed = self.status.send_if_modified(|old| {
            let differs = *old != status;
            *old = status;
            differs
        });
        if changed {
            // A full queue has enough in it to have the document built again.
            let _ = self.brain.try_send(Input::Refresh);
        }
    }
}

/// The table, as the kernel's room wants it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Roads {
    peers: Vec<PeerPath>,
    probed: Vec<PeerPath>,
    sealed: Vec<SealedPath>,
}

impl Roads {
    fn of(table: &ForwardingTable) -> Self {
        let mut roads = Self::default();
        let admitted = |underlay: IpAddr| match &table.plain_from {
            PlainFrom::AnybodyBut(not) => !not.contains(&underlay),
            PlainFrom::Only(only) => only.contains(&underlay),
        };
        for path in &table.paths {
            let (peer, overlay, ranges) = (path.peer, path.overlay, path.ranges.clone());
            match (path.way.method, path.underlay) {
                (Method::FastDp, Some(underlay)) => {
                    roads.peers.push(PeerPath { peer, underlay, overlay, ranges, mtu: path.mtu });
                }
                (Method::FastDp, None) => {}
                (Method::Sleeve | Method::Quic, underlay) => {
                    let of_devices = || underlay.map(|at| derived_mtu(&[at]) - SEALED_MORE);
                    let mtu = path.mtu.or_else(of_devices);
                    roads.sealed.push(SealedPath { peer, overlay, ranges, mtu });
                }
            }
        }
        for vtep in table.vteps.iter().filter(|vtep| admitted(vtep.underlay)) {
            if roads.peers.iter().all(|path| path.peer != vtep.peer) {
                let path = table.paths.iter().find(|path| path.peer == vtep.peer);
                let ranges = path.map(|path| path.ranges.clone()).unwrap_or_default();
                let (peer, underlay, overlay) = (vtep.peer, vtep.underlay, vtep.overlay);
                roads.probed.push(PeerPath { peer, underlay, overlay, ranges, mtu: None });
            }
        }
        roads
    }
}

/// What fits through the tunnel to all of these peers.
fn derived_mtu(towards: &[IpAddr]) -> u32 {
    mtu::underlay(towards).map_or_else(
        |error| {
            tracing::warn!(%error, "cannot find out the MTU of the underlay, so the overlay's is made for Ethernet");
            mtu::ETHERNET_MTU - net::names::VXLAN_OVERHEAD
        },
        |underlay| underlay.overlay_mtu,
    )
}
