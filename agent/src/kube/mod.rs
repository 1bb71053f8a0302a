//! The agent in a Kubernetes cluster: what it reads there, what it writes there, and what it does about it.
//!
//! ```text
//!   Nodes ───────────────> targets of the mesh, the register of peers, who is gone for good
//!   Secret ──────────────> the cluster secret: created by whoever is first, copied to each node
//!   ConfigMap ───────────> the first split: created by whoever is first; who was removed for good
//!   status of the agent ─> the conflist, conditions of the Node, Events
//! ```
//!
//! No type of Kubernetes leaves this room. Nothing here is needed for pods to go on talking, and nothing is concluded
//! from an API server that does not answer: an agent that has a ring starts without it and runs without it.
//!
//! What the service account must be allowed, and why:
//!
//! | resource | verbs | for |
//! |---|---|---|
//! | nodes | list, watch | peers and the register: [`nodes`], [`reclaim`] |
//! | nodes/status | patch | the register's entry and two conditions of the own Node |
//! | services `kubernetes` in `default` | get | the range must not hold its address: [`service`] |
//! | servicecidrs (networking.k8s.io) | list | the same, on clusters that have them |
//! | secrets, own namespace | create | [`secret`]: only a name that exists can be named in a rule |
//! | secret `weave-net-secret`, own namespace | get, list, watch | [`secret`] |
//! | configmaps, own namespace | create | [`universe`] |
//! | configmap `weave-net-universe`, own namespace | get, list, watch, patch | [`universe`] |
//! | events in `default` | create | what an operator should know of the Node: [`report`] |

mod api;
mod attend;
mod backoff;
mod enter;
mod follow;
mod keep;
mod nodes;
mod objects;
mod reclaim;
mod report;
mod secret;
mod service;
mod universe;
mod vigil;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use weave_proto::{Cidr, PeerName};

use crate::config::{IpallocInit, Settings, Target};
use crate::task::{self, Task};
use api::{Access, Api, Place};
use follow::View;

pub use api::AccessError;
pub use attend::{RemovedForGood, Surroundings};
pub use enter::Entered;
pub use reclaim::GRACE;
pub use secret::FILE as SECRET_COPY;

/// This agent's place in the cluster.
pub struct Cluster {
    api: Api,
    /// Where the agent's own objects are.
    namespace: String,
    /// The name of this Node.
    node: String,
    /// This peer.
    name: PeerName,
    range: Cidr,
    init: IpallocInit,
    /// Whether the store holds a ring.
    has_ring: bool,
    /// Where the copy of the secret is; none if the operator gave a secret.
    secret_copy: Option<PathBuf>,
    /// Whether the Nodes are the peers to look for, and not a list of the operator's.
    follows_nodes: bool,
    /// How long a peer must be gone before it is removed.
    grace: Duration,
    nodes: watch::Receiver<View<objects::Node>>,
    _following: Task,
}

/// Why an agent cannot run in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It does not know the name of its Node.
    #[error(
        "--kubernetes needs the name of this Node: set NODE_NAME from spec.nodeName in the manifest, or give \
         --node-name"
    )]
    NoName,
    /// It does not know where the API server is.
    #[error(
        "--kubernetes needs the API server's address: in a pod KUBERNETES_SERVICE_HOST and _PORT are there by \
         themselves, elsewhere give --api-server https://HOST:PORT"
    )]
    NoServer,
    /// It cannot use what it was given.
    #[error(transparent)]
    Access(#[from] AccessError),
}

impl Cluster {
    /// The cluster that the settings name; none if they name none. `name` is this peer's. Asks nothing of the API
    /// server yet.
    ///
    /// # Errors
    /// Something is missing in the settings or in the folder of the service account.
    pub fn open(settings: &Settings, name: PeerName, has_ring: bool) -> Result<Option<Self>, ClusterError> {
        let given = &settings.kubernetes;
        if !given.kubernetes {
            return Ok(None);
        }
        let node = given.node_name().ok_or(ClusterError::NoName)?.to_owned();
        let server = given.api_server().ok_or(ClusterError::NoServer)?;
        let account = given.service_account.clone();
        let namespace = api::namespace(&account)?;
        let api = Api::new(&Access { server, account })?;
        let (view, nodes) = watch::channel(View::default());
        let following = task::spawn("the Nodes", follow::follow(api.clone(), Place::nodes(), None, view));
        let is_given = settings.identity.secret_file.is_some();
        Ok(Some(Self {
            api,
            namespace,
            node,
            name,
            range: settings.ipam.range,
            init: settings.ipam.init.clone(),
            has_ring,
            secret_copy: (!is_given).then(|| settings.paths.data_dir.join(secret::FILE)),
            follows_nodes: given.kube_peers.0.is_empty(),
            grace: given.reclaim_after,
            nodes,
            _following: following,
        }))
    }

    /// The name of this Node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether the cluster's object decides the first split, and not the operator's word.
    const fn is_decided_by_object(&self) -> bool {
        !self.has_ring && matches!(self.init, IpallocInit::Consensus(_))
    }

    /// Settles with the cluster what must be settled before this agent can take part, for as long as that takes;
    /// `waiting` hears of everything that is waited for. May be dropped at any time.
    pub async fn enter(&self, waiting: impl FnMut(String)) -> Entered {
        enter::Entrance::new(self).enter(waiting).await
    }
}
