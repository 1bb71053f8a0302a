//! An agent that has not come into its cluster yet: it says what it waits for, to everybody who asks.

use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::sync::watch;
use weave_proto::PeerName;
use weave_proto::local::control::{Failure, FailureCode};
use weave_proto::local::status::Status;
use weave_proto::peer::ipam::{Founding, IpamPhase};
use weave_topology::Target;

use super::wiring::first_status;
use crate::config::Settings;
use crate::control::{Control, ControlSocket};
use crate::http::{MetricsServer, StatusServer};
use crate::kube::{Cluster, Entered, RemovedForGood};
use crate::store::Loaded;
use crate::task;

/// An agent's cluster, which it has come into.
pub(super) struct Joined {
    pub(super) cluster: Cluster,
    /// The first split, if the store held it or this agent was told it.
    pub(super) founding: Option<Founding>,
    /// The peers that the operator named.
    pub(super) given: Vec<Target>,
    /// What the servers below show.
    pub(super) front: watch::Sender<Arc<Status>>,
    /// The servers of status and metrics.
    pub(super) watching: task::Group<()>,
}

/// Comes into the cluster that the settings name, if they name one, and completes them with what it says. Status,
/// metrics and the command line are answered meanwhile.
pub(super) async fn join(
    settings: &mut Settings,
    loaded: &Loaded,
    control: &ControlSocket,
) -> Result<Option<Joined>> {
    let stored = loaded.ipam.state.as_ref().and_then(|state| match &state.phase {
        IpamPhase::Founded(founded) => Some(founded.founding.clone()),
        IpamPhase::Electing(_) => None,
    });
    let cluster = Cluster::open(settings, loaded.identity.name(), stored.is_some())?;
    let Some(cluster) = cluster else { return Ok(None) };
    let (front, feed) = watch::channel(Arc::new(first_status(settings, &loaded.identity)));
    let mut watching = task::Group::new("watching");
    if let Some(server) = StatusServer::bind(&settings.watch.http_addr)? {
        watching.spawn(server.serve(feed.clone()));
    }
    if let Some(server) = MetricsServer::bind(&settings.watch.metrics_addr)? {
        watching.spawn(server.serve(feed.clone()));
    }
    let waiting = |why: String| {
        front.send_if_modified(|status| {
            if status.waiting_for == [why.as_str()] {
                return false;
            }
            tracing::info!("Not in the cluster yet: {why}");
            Arc::make_mut(status).waiting_for = vec![why];
            true
        });
    };
    let entered = tokio::select! {
        entered = cluster.enter(waiting) => entered,
        () = control.serve(feed, Closed) => bail!("the operators' socket has ended"),
    };
    let Entered { founding, targets, secret_file, removed } = entered;
    if removed {
        let ports = loaded.ipam.allocations.iter().filter_map(|allocation| allocation.port.as_ref());
        cluster.tell_removal(&ports.filter_map(|port| port.pod.clone()).collect()).await;
        bail!(RemovedForGood);
    }
    settings.mesh.peers.extend(settings.kubernetes.kube_peers.0.iter().cloned());
    let given = settings.mesh.peers.clone();
    settings.mesh.peers.extend(targets);
    settings.identity.secret_file = secret_file.or_else(|| settings.identity.secret_file.take());
    Ok(Some(Joined { cluster, founding: stored.or(founding), given, front, watching }))
}

/// The operators' door while there is nobody behind it.
struct Closed;

impl Closed {
    fn failure() -> Failure {
        let message = "the agent has not come into its cluster yet: `weave status` says what it waits for";
        Failure::new(FailureCode::NotReady, message.to_owned())
    }
}

impl Control for Closed {
    async fn connect(&self, _: Vec<Target>, _: bool) -> Result<(), Failure> {
        Err(Self::failure())
    }

    async fn forget(&self, _: Vec<Target>) -> Result<(), Failure> {
        Err(Self::failure())
    }

    async fn remove_peer(&self, _: PeerName, _: bool) -> Result<u64, Failure> {
        Err(Self::failure())
    }

    async fn shutdown(&self) -> Result<(), Failure> {
        Err(Self::failure())
    }
}
