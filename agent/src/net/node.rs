//! The handle to the node's kernel state.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use weave_proto::Cidr;
use weave_proto::local::cni::PodPort;

use super::names::Mac;
use super::owner::{self, Command};
use super::{NetError, NodeState, sysctl};
use crate::firewall::Counters;

/// Requests that may wait for the owner. An ADD holds one; containerd starts at most a few hundred at a time, and
/// whoever comes later waits for a place.
const QUEUE: usize = 256;

/// What the owner needs from the configuration.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Where kernel settings are: `/proc/sys`, or where the host's is mounted.
    pub sysctl_root: PathBuf,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self { sysctl_root: sysctl::ROOT.into() }
    }
}

/// What others need to know to build a pod's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The bridge's number.
    pub bridge_index: u32,
    /// The bridge's MAC address: the pods' gateway.
    pub bridge_mac: Mac,
    /// The bridge's address, if the node has one yet.
    pub address: Option<std::net::IpAddr>,
    /// The pods' MTU.
    pub mtu: u32,
    /// The range that the mesh shares out.
    pub universe: Cidr,
}

/// How the kernel's state compares with what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether a state has been applied, whole, and nothing is known to have changed since.
    pub in_force: bool,
    /// What is wrong, for people.
    pub problems: Vec<String>,
    /// How often something that was in force had to be put back.
    pub repairs: u64,
    /// That a foreign firewall drops what is forwarded for pods, and the remedy.
    pub foreign_firewall: Option<String>,
}

/// The node's kernel state, owned by a thread of its own, which ends when the last handle is dropped; the kernel's
/// state stays.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    wanted: watch::Sender<Option<Arc<NodeState>>>,
    commands: mpsc::Sender<Command>,
    facts: watch::Receiver<Option<Facts>>,
    health: watch::Receiver<Health>,
}

impl Node {
    /// Starts the owner, in the network namespace of the calling thread. Nothing is changed until [`Self::set`].
    ///
    /// # Errors
    /// The thread or its sockets could not be had.
    pub fn start(settings: NodeSettings) -> Result<Self, NetError> {
        let (wanted, newest) = watch::channel(None);
        let (commands, queue) = mpsc::channel(QUEUE);
        let (facts_out, facts) = watch::channel(None);
        let (health_out, health) = watch::channel(Health::default());
        owner::start(settings, owner::Ends { newest, queue, facts: facts_out, health: health_out })?;
        Ok(Self { inner: Arc::new(Inner { wanted, commands, facts, health }) })
    }

    /// Sets what is to be. The newest wins; states in between may never be applied.
    pub fn set(&self, state: NodeState) {
        self.inner.wanted.send_replace(Some(Arc::new(state)));
    }

    /// Waits until the newest state has been tried.
    ///
    /// # Errors
    /// No state was set, or something of it could not be applied.
    pub async fn settled(&self) -> Result<(), NetError> {
        self.ask(|reply| Command::Settle { reply }).await?
    }

    /// Puts a pod's port in force: port of the bridge with its flags, up, guarded, known to bridge and host. The
    /// host's end must exist.
    ///
    /// # Errors
    /// It could not be done; then nothing of it is left.
    pub async fn attach(&self, pod: PodPort) -> Result<(), NetError> {
        self.ask(|reply| Command::Attach { pod, reply }).await?
    }

    /// Takes back what attaching did. Succeeds when there is nothing to take back.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn detach(&self, host_interface: String) -> Result<(), NetError> {
        self.ask(|reply| Command::Detach { port: host_interface, reply }).await?
    }

    /// Whether everything that attaching does for a pod is in force.
    ///
    /// # Errors
    /// It is not, and the error says what is missing; or the kernel could not be asked.
    pub async fn check(&self, pod: PodPort) -> Result<(), NetError> {
        self.ask(|reply| Command::Check { pod, reply }).await?
    }

    /// What the counters of drops say.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub async fn counters(&self) -> Result<Counters, NetError> {
        self.ask(|reply| Command::Counters { reply }).await?
    }

    /// What others need to know to build a pod's end; none until a state has been applied.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        self.inner.facts.borrow().clone()
    }

    /// The facts as they change.
    #[must_use]
    pub fn watch_facts(&self) -> watch::Receiver<Option<Facts>> {
        self.inner.facts.clone()
    }

    /// How the kernel's state compares with what is wanted.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.health.borrow().clone()
    }

    /// The health as it changes.
    #[must_use]
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, NetError> {
        let (reply, answer) = oneshot::channel();
        self.inner.commands.send(command(reply)).await.map_err(|_| NetError::Ended)?;
        answer.await.map_err(|_| NetError::Ended)
    }
}
