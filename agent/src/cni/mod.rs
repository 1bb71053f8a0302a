//! The agent's side of CNI: pods are attached, detached, compared and cleared away here.
//!
//! The shim passes a request and two descriptors, the pod's network namespace and a netlink socket that was opened
//! inside it ([`server`]). With them the whole work is done in one place without entering the namespace: the link
//! is made from the node's side straight into the pod ([`pod`]), and the passed socket configures the pod's end.
//!
//! What CNI needs of the other rooms stands in two small traits, [`Addresses`] and [`Ports`], with in-memory twins
//! in [`memory`] for tests.
//!
//! Rules that hold throughout:
//!
//! * **One thing at a time for one attachment** ([`locks`]), everything in parallel for different ones.
//! * **ADD undoes itself.** After a failure the node is as before: no link, no guard, no address given out. An ADD
//!   whose asker went away counts as failed, since the runtime saw it fail.
//! * **An address is freed last.** Whoever may still hold it, in a link that could not be removed, keeps it.
//! * **Nothing older undoes anything newer.** Every request carries the moment its shim started, and each link's
//!   label has the moment of its ADD. A DEL that comes late, over the socket or as a tombstone
//!   ([`tombstones`]), leaves alone what began after it.
//! * **Nothing is decided by the pod.** What a container does inside its namespace may break its own network and
//!   the CHECK of it, never the DEL.
//!
//! Tasks: [`server::Server::run`] and each request it accepted (a request is never cut short, only its asker may
//! stop waiting), and [`tombstones::watch`], which may be stopped at any time.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;
use weave_proto::Cidr;
use weave_proto::local::cni::{AttachmentKey, DATA_DIR, ErrorCode, Moment, PodPort, RUN_DIR, Refusal};

use self::locks::KeyLocks;
use self::netlink::{Netlink, NetlinkError};
use self::records::Records;

pub mod add;
pub mod check;
pub mod conflist;
pub mod del;
mod forwarding;
pub mod gc;
pub mod ipam;
pub mod locks;
pub mod memory;
pub mod netlink;
pub mod plan;
pub mod pod;
pub mod records;
pub mod server;
pub mod status;
pub mod tombstones;

/// Where an attachment's address comes from. The integrator's answer is the brain; a fake is
/// [`memory::MemoryAddresses`].
pub trait Addresses: Send + Sync + 'static {
    /// Gives out an address, durably, with the port it is for. The same key again gets the same address, and the
    /// port given now replaces the one before. Waits a bounded time.
    fn allocate(
        &self,
        key: AttachmentKey,
        port: Option<PortPlan>,
    ) -> impl Future<Output = Result<Allocation, AddressError>> + Send;

    /// Takes an address back, durably. Fine if there is none. With a generation: only that one.
    fn free(
        &self,
        key: AttachmentKey,
        generation: Option<u64>,
    ) -> impl Future<Output = Result<(), AddressError>> + Send;

    /// What is given out to a key.
    fn lookup(
        &self,
        key: AttachmentKey,
    ) -> impl Future<Output = Result<Option<Allocation>, AddressError>> + Send;

    /// Everything given out on this node, the agent's own included.
    fn list(&self) -> impl Future<Output = Result<Vec<Allocation>, AddressError>> + Send;

    /// Whether an address could be given out now; otherwise what is waited for, for people. At once.
    fn ready(&self) -> Result<(), String>;
}

/// What makes a pod's port safe and reachable. The integrator's answer is the network room; a fake is
/// [`memory::MemoryPorts`].
pub trait Ports: Send + Sync + 'static {
    /// The bridge as it is now; otherwise why there is none, for people. At once.
    fn facts(&self) -> Result<Facts, String>;

    /// The bridge once it has an address. Waits a bounded time for both, since an agent that has just started is a
    /// moment away from them; then why there is none, for people.
    fn settled_facts(&self) -> impl Future<Output = Result<Facts, String>> + Send;

    /// Puts guard, neighbour, forwarding entry and port flags in force. When it returns, they are.
    fn attach(&self, port: PodPort) -> impl Future<Output = Result<(), String>> + Send;

    /// Takes them away, whichever are left. The link may be gone.
    fn detach(&self, port: PodPort) -> impl Future<Output = Result<(), String>> + Send;

    /// Whether all of them are in force; otherwise what is missing.
    fn check(&self, port: PodPort) -> impl Future<Output = Result<(), String>> + Send;
}

/// A port that is about to exist: a [`PodPort`] without its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// The name of the host's end.
    pub host_interface: String,
    /// The pod end's MAC address.
    pub mac: [u8; 6],
    /// The namespace's path.
    pub netns: String,
    /// The pod as `namespace/name`, where known.
    pub pod: Option<String>,
}

impl PortPlan {
    /// The port with this address.
    #[must_use]
    pub fn with_address(self, address: IpAddr) -> PodPort {
        let Self { host_interface, mac, netns, pod } = self;
        PodPort { host_interface, mac, address, netns, pod }
    }
}

/// An address given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// To whom.
    pub key: AttachmentKey,
    /// The address.
    pub address: IpAddr,
    /// The port, if it is for a pod of ours.
    pub port: Option<PodPort>,
    /// Tells this allocation from earlier and later ones of the same key.
    pub generation: u64,
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It may work later: what is waited for.
    #[error("{0}")]
    Later(String),
    /// It will not, until somebody does something.
    #[error("{0}")]
    Failed(String),
}

impl From<AddressError> for Refusal {
    fn from(error: AddressError) -> Self {
        let code = match error {
            AddressError::Later(_) => ErrorCode::TryAgain,
            AddressError::Failed(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NetlinkError> for Refusal {
    fn from(error: NetlinkError) -> Self {
        Self::new(ErrorCode::Kernel, error.to_string())
    }
}

/// The bridge and the network as ADD needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The bridge's name.
    pub bridge: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The node's own address on it, which is the pods' gateway.
    pub address: Option<IpAddr>,
    /// The MTU of pods.
    pub mtu: u32,
    /// Whether ports carry the hairpin flag (HAIRPIN_MODE).
    pub hairpin: bool,
    /// The range that the mesh shares out.
    pub universe: Cidr,
}

/// Where the room keeps its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// For the socket.
    pub run_dir: PathBuf,
    /// For tombstones and records.
    pub data_dir: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { run_dir: RUN_DIR.into(), data_dir: DATA_DIR.into() }
    }
}

/// How many threads may wait for the kernel at once. It configures networks under one lock, but a thread that
/// removes a link waits mostly for other processors to forget it, without the lock: with four threads fifty DELs
/// took 0.5 s, with sixteen 0.25 s, and more made no difference.
const KERNEL_THREADS: usize = 16;

/// The room: everything that a request needs.
#[derive(Debug)]
pub struct Cni<A, P> {
    addresses: A,
    ports: P,
    paths: Paths,
    boot: String,
    locks: KeyLocks,
    records: Records,
    kernel: Arc<Semaphore>,
}

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// The room over these two.
    #[must_use]
    pub fn new(addresses: A, ports: P, paths: Paths) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let records = Records::new(&paths.data_dir);
        let kernel = Arc::new(Semaphore::new(KERNEL_THREADS));
        Self {
            addresses,
            ports,
            paths,
            boot: boot.trim().to_owned(),
            locks: KeyLocks::default(),
            records,
            kernel,
        }
    }

    /// Where addresses come from.
    pub const fn addresses(&self) -> &A {
        &self.addresses
    }

    /// What guards ports.
    pub const fn ports(&self) -> &P {
        &self.ports
    }

    /// Runs netlink work of the node on a thread for blocking work, with a fresh socket.
    async fn kernel<T: Send + 'static, E: Send + 'static + From<NetlinkError>>(
        &self,
        work: impl FnOnce(&Netlink) -> Result<T, E> + Send + 'static,
    ) -> Result<T, KernelError<E>> {
        self.blocking(move || work(&Netlink::open()?)).await
    }

    /// Runs work that blocks.
    async fn blocking<T: Send + 'static, E: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, KernelError<E>> {
        // The semaphore is never closed; without a permit the work is merely less bounded.
        let permit = Arc::clone(&self.kernel).acquire_owned().await.ok();
        let done = tokio::task::spawn_blocking(move || {
            let _held = permit;
            work()
        });
        match done.await {
            Ok(done) => done.map_err(KernelError::Work),
            Err(died) => Err(KernelError::Died(died.to_string())),
        }
    }

    /// This moment, comparable with the shim's.
    fn now(&self) -> Moment {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0);
        Moment { boot: self.boot.clone(), nanoseconds }
    }
}

/// Why work on a thread of its own failed.
#[derive(Debug)]
enum KernelError<E> {
    /// The work itself failed.
    Work(E),
    /// Its thread died: a bug.
    Died(String),
}

impl<E: Into<Self>> From<KernelError<E>> for Refusal {
    fn from(error: KernelError<E>) -> Self {
        match error {
            KernelError::Work(error) => error.into(),
            KernelError::Died(why) => Self::new(ErrorCode::Internal, format!("a thread died: {why}")),
        }
    }
}
