//! The status document: put together from the rooms' own views. Whoever was answered that something has changed reads
//! it in the document; what changes by itself is published at a bounded pace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weave_proto::local::status::{EncryptionStatus, NodeStatus, RouterStatus, Status};
use weave_router::Router;

use super::{FIGURES_PACE, SNAPSHOT_PACE, SNAPSHOT_SHARE};
use crate::dataplane::driver::Counted;

/// Where readers find the newest status.
pub type StatusReceiver = watch::Receiver<Arc<Status>>;

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// The UDP port of the control plane.
    pub port: u16,
    /// Whether peers learned from others are dialled.
    pub discovery: bool,
    /// The soft limit of connections.
    pub conn_limit: Option<u32>,
    /// What is encrypted, and with what.
    pub encryption: EncryptionStatus,
    /// What an operator should know from the start.
    pub warnings: Vec<String>,
}

/// Publishes a new document when something has changed: at once before somebody is answered that it has, else at
/// most one a [`SNAPSHOT_PACE`].
pub struct Publisher {
    base: Status,
    fixed: Fixed,
    node: watch::Receiver<NodeStatus>,
    notes: watch::Receiver<BTreeMap<&'static str, String>>,
    to: watch::Sender<Arc<Status>>,
    changed: bool,
    aged: bool,
    last: Option<Instant>,
    /// How long the last document took.
    took: Duration,
    counted: Option<Counted>,
}

impl Publisher {
    /// A publisher, and where its documents appear. `base` is what is known before anything has happened, `notes` what
    /// an operator should know of the cluster, by topic.
    #[must_use]
    pub fn new(
        base: Status,
        fixed: Fixed,
        node: watch::Receiver<NodeStatus>,
        notes: watch::Receiver<BTreeMap<&'static str, String>>,
    ) -> (Self, StatusReceiver) {
        let (to, reader) = watch::channel(Arc::new(base.clone()));
        (
            Self {
                base,
                fixed,
                node,
                notes,
                to,
                changed: true,
                aged: false,
                last: None,
                took: Duration::ZERO,
                counted: None,
            },
            reader,
        )
    }

    /// Something has changed that the document shows.
    pub(super) const fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// Figures may have changed, such as round trips and how long something has been silent.
    pub(super) const fn mark_aged(&mut self) {
        self.aged = true;
    }

    /// The data plane has counted so much.
    pub(super) fn count(&mut self, counted: Counted) {
        self.counted = Some(counted);
        self.changed = true;
    }

    /// When the next document is due, if something has changed since the last one.
    pub(super) fn due(&self) -> Option<Instant> {
        // Where many peers come and go, documents do not take more than a part of the time.
        let pace = SNAPSHOT_PACE.max(self.took.saturating_mul(SNAPSHOT_SHARE)).min(FIGURES_PACE);
        match (self.changed, self.aged) {
            (true, _) => Some(self.last? + pace),
            (false, true) => Some(self.last? + FIGURES_PACE),
            (false, false) => None,
        }
    }

    /// Publishes if something has changed and the last document is old enough.
    pub(super) fn publish_if_due(&mut self, router: &Router, now: Instant) {
        if self.last.is_none() || self.due().is_some_and(|at| at <= now) {
            self.publish(router, now);
        }
    }

    /// Publishes now.
    pub(super) fn publish(&mut self, router: &Router, now: Instant) {
        (self.changed, self.aged) = (false, false);
        self.last = Some(now);
        let begun = Instant::now();
        let document = self.document(router, now);
        self.to.send_replace(Arc::new(document));
        self.took = begun.elapsed();
    }

    fn document(&mut self, router: &Router, now: Instant) -> Status {
        let mut node = self.node.borrow_and_update().clone();
        node.pods = router.ipam().allocations().filter(|allocation| allocation.port.is_some()).count() as u64;
        let notes = self.notes.borrow_and_update();
        let ipam = router.ipam_status(now);
        let mut connections = router.connections(node.mtu, now);
        if let Some(counted) = &self.counted {
            for connection in &mut connections {
                if let (Some(method), Some(peer)) = (&mut connection.method, &connection.peer) {
                    method.session = counted.sessions.get(peer).copied();
                }
            }
        }
        let mut waiting_for = Vec::new();
        if !ipam.ready {
            waiting_for.push(ipam.state.clone());
        } else if node.address.is_none() {
            waiting_for.push("waiting for the bridge to come up with the node's own address".to_owned());
        }
        waiting_for.extend(node.problems.iter().cloned());
        Status {
            waiting_for,
            warnings: self
                .fixed
                .warnings
                .iter()
                .chain(&node.warnings)
                .chain(notes.values())
                .cloned()
                .chain(router.warnings())
                .collect(),
            router: RouterStatus {
                port: self.fixed.port,
                discovery: self.fixed.discovery,
                conn_limit: self.fixed.conn_limit,
                encryption: self.fixed.encryption,
                targets: router.targets(),
                peers: router.peers(node.mtu, now),
                terminations: router.terminations(),
                refused: router.refused().clone(),
                connections,
            },
            ipam: Some(ipam),
            node,
            tunnels: self.counted.as_ref().map(|counted| counted.tunnels.clone()),
            ..self.base.clone()
        }
    }
}
