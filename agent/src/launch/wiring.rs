//! Which room hears from which: channels made, tasks started.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, watch};
use weave_proto::local::status::{ControlTrust, DataEncryption, EncryptionStatus, NodeStatus, Status};
use weave_proto::peer::ipam::Founding;
use weave_proto::peer::{Features, Hello};
use weave_router::{NodeView, Router};
use weave_topology::Direction;

use super::doors::{AddressDoor, ControlDoor, PortDoor};
use super::kernel::KernelTask;
use super::waiting::Joined;
use super::{Agent, Ended, PERFORMER};
use crate::brain::{Brain, BrainHandle, Doers, Input, StatusReceiver, performer, snapshot};
use crate::cni::conflist::{self, Conflist};
use crate::cni::server::Server;
use crate::cni::{Cni, Paths, tombstones};
use crate::config::{IpallocInit, Method, Settings};
use crate::control::ControlSocket;
use crate::dataplane::driver::{self, Driver, Order, QuicDoor, Tunnel};
use crate::dataplane::sleeve;
use crate::http::{MetricsServer, StatusServer};
use crate::identity::{self, Identity};
use crate::kube::Surroundings;
use crate::net::{ForwardAccept, HostOptions, Node};
use crate::peer::{self, Data, DataEvent, PeerEvent, PeerNet, Secrets};
use crate::store::{Loaded, Presence, Store};
use crate::task;

/// Inputs that may wait for the brain. A burst of a few hundred requests fits; more wait at their own door.
const INPUTS: usize = 1024;

/// Batches of effects that may wait for the performer before the brain waits for it.
const EFFECTS: usize = 256;

/// Events of links that may wait to be passed on.
const PEER_EVENTS: usize = 256;

/// The ends of the channels while the rooms are being started.
pub(super) struct Wiring {
    pub(super) agent: Agent,
    rejoin: mpsc::Sender<()>,
    identity: Identity,
    port: u16,
    router: Option<Router>,
    hello: watch::Sender<Hello>,
    inputs: mpsc::Sender<Input>,
    inbox: Option<mpsc::Receiver<Input>>,
    /// The receiver is as old as the sender: one made later would take for seen what the brain published before.
    views: (watch::Sender<Option<NodeView>>, watch::Receiver<Option<NodeView>>),
    node_status: watch::Sender<NodeStatus>,
    notes: watch::Sender<BTreeMap<&'static str, String>>,
    publisher: Option<snapshot::Publisher>,
    status: StatusReceiver,
    brain: BrainHandle,
    goodbye: watch::Receiver<bool>,
    orders: mpsc::UnboundedSender<Order>,
    tunnel: Option<(Result<Tunnel, String>, mpsc::UnboundedReceiver<Order>)>,
    has_tun: bool,
}

impl Wiring {
    /// The router with what the store held, and all channels.
    pub(super) fn new(
        settings: &Settings,
        loaded: Loaded,
        founding: Option<Founding>,
        secrets: &Secrets,
    ) -> Result<Self> {
        let identity = loaded.identity.clone();
        let nickname = settings.nickname();
        tracing::info!("Our name is {}({nickname}), start number {}", identity.name(), identity.uid());
        let tunnel = tunnel(settings, &identity);
        let has_tun = tunnel.is_ok();
        let config = router_config(settings, loaded, founding, has_tun)?;
        let router = Router::new(config, seed()?, Instant::now())?;
        for warning in router.warnings() {
            tracing::warn!("{warning}");
        }
        let hello = router.topology().hello().clone();

        let (inputs, inbox) = mpsc::channel(INPUTS);
        let (stop_sender, stop) = mpsc::channel(1);
        let (rejoin_sender, rejoin) = mpsc::channel(1);
        // Without bounds of its own: it holds a few orders a peer and second, and whoever gives them must not wait.
        let (orders, inbox_of_driver) = mpsc::unbounded_channel();
        let (goodbye_sender, goodbye) = watch::channel(false);
        let (node_status, node) = watch::channel(NodeStatus::default());
        let (notes, noted) = watch::channel(BTreeMap::new());
        let base = first_status(settings, &identity);
        let fixed = fixed(settings, secrets, tunnel.as_ref().err());
        let (publisher, status) = snapshot::Publisher::new(base, fixed, node, noted);
        Ok(Self {
            agent: Agent { tasks: task::Group::new("agent"), stop, rejoin, goodbye: goodbye_sender },
            rejoin: rejoin_sender,
            identity,
            port: settings.mesh.port.get(),
            router: Some(router),
            hello: watch::Sender::new(hello),
            brain: BrainHandle::new(inputs.clone(), stop_sender),
            inputs,
            inbox: Some(inbox),
            views: watch::channel(None),
            node_status,
            notes,
            publisher: Some(publisher),
            status,
            goodbye,
            orders,
            tunnel: Some((tunnel, inbox_of_driver)),
            has_tun,
        })
    }

    fn spawn(&mut self, room: &'static str, work: impl Future<Output = Result<()>> + Send + 'static) {
        self.agent.tasks.spawn(async move { Ended { room, result: work.await } });
    }

    /// Opens the socket for links, at the first of the addresses that this machine has.
    pub(super) async fn bind_peers(&mut self, settings: &Settings, secrets: Secrets) -> Result<PeerNet> {
        let (events, mut news) = mpsc::channel::<PeerEvent>(PEER_EVENTS);
        let (inputs, orders) = (self.inputs.clone(), self.orders.clone());
        self.spawn("the way from the peers to the brain", async move {
            while let Some(event) = news.recv().await {
                let order = order_of(&event);
                if inputs.send(Input::Peer(event)).await.is_err() {
                    break;
                }
                // After the brain, which must know the link before anything is said on it.
                if order.is_some_and(|order| orders.send(order).is_err()) {
                    break;
                }
            }
            bail!("the brain or the links have ended")
        });
        let (data, connections) = data(settings, self.has_tun).unzip();
        let mut refused = None;
        for listen in settings.mesh.listen() {
            let at = peer::Settings { listen, data: data.clone() };
            let bound = PeerNet::bind(
                at,
                self.identity.clone(),
                secrets.clone(),
                self.hello.subscribe(),
                events.clone(),
            );
            match bound.await {
                Ok(peers) => {
                    tracing::info!("Listening for peers on UDP {listen}");
                    self.follow_secrets(settings, &peers, secrets);
                    self.spawn_driver(settings, &peers, connections);
                    return Ok(peers);
                }
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.map_or_else(|| anyhow::anyhow!("there is no address to listen on"), Into::into))
    }

    /// A secret that is changed in its file is used without a restart.
    fn follow_secrets(&mut self, settings: &Settings, peers: &PeerNet, secrets: Secrets) {
        if let Some(path) = settings.identity.secret_file.clone() {
            let watch = peers.watch_secrets(path, secrets);
            self.spawn("the watch of the secret file", async move {
                watch.finished().await;
                bail!("it has ended")
            });
        }
    }

    /// Starts what makes and ends sessions with the links, and the way from it to the brain.
    fn spawn_driver(
        &mut self,
        settings: &Settings,
        peers: &PeerNet,
        connections: Option<mpsc::UnboundedReceiver<DataEvent>>,
    ) {
        let Some((tunnel, orders)) = self.tunnel.take() else { return };
        let (reports, mut news) = mpsc::unbounded_channel();
        let quic = connections.map(|events| QuicDoor { door: peers.data_door(), events });
        let doors = (peers.keys(), peers.mesh_trust(), quic);
        let driver = Driver::new(driver_settings(settings, &self.identity), tunnel, doors, orders, reports);
        self.spawn("the driver of the tunnels", async move {
            driver.run().await;
            bail!("the brain has ended")
        });
        let inputs = self.inputs.clone();
        self.spawn("the way from the tunnels to the brain", async move {
            while let Some(report) = news.recv().await {
                if inputs.send(Input::Tunnel(report)).await.is_err() {
                    break;
                }
            }
            bail!("the brain or the driver has ended")
        });
    }

    /// Starts the brain and the performer.
    pub(super) fn spawn_brain(&mut self, store: Store, peers: PeerNet) {
        let (effects, queue) = mpsc::channel(EFFECTS);
        let (Some(router), Some(inbox), Some(publisher)) =
            (self.router.take(), self.inbox.take(), self.publisher.take())
        else {
            return;
        };
        let brain = Brain::new(router, inbox, effects, publisher);
        self.spawn("the brain", async move {
            brain.run().await;
            bail!("the performer has ended")
        });
        let doers = Doers {
            store: Arc::new(store),
            peers,
            hello: self.hello.clone(),
            view: self.views.0.clone(),
            tunnel: self.orders.clone(),
            port: self.port,
            rejoin: self.rejoin.clone(),
            inputs: self.inputs.clone(),
        };
        let goodbye = self.goodbye.clone();
        self.spawn(PERFORMER, async move {
            performer(queue, doers, goodbye).await.context("what was promised cannot be made durable")
        });
    }

    /// Starts the way from the brain's view of the node to the kernel.
    pub(super) fn spawn_kernel(&mut self, settings: &Settings, node: Node, presence: Option<Presence>) {
        let kernel = KernelTask {
            name: self.identity.name(),
            node,
            data_dir: settings.paths.data_dir.clone(),
            presence,
            mtu: settings.node.mtu.0.map(|mtu| u32::from(mtu.get())),
            seals: settings.tunnels.wants_encryption() || !settings.tunnels.allows(Method::FastDp),
            has_tun: self.has_tun,
            options: HostOptions {
                masquerade: true,
                keep_client_addresses: settings.keeps_client_addresses(),
                forward_accept: match settings.node.forward_accept {
                    crate::config::ForwardAccept::Auto => ForwardAccept::Auto,
                    crate::config::ForwardAccept::Never => ForwardAccept::Never,
                },
            },
            views: self.views.1.clone(),
            status: self.node_status.clone(),
            brain: self.inputs.clone(),
        };
        self.spawn("the way from the brain to the kernel", async move {
            kernel.run().await;
            bail!("the brain or the kernel's room has ended")
        });
    }

    /// Starts the doors for containers and operators.
    pub(super) fn spawn_doors(
        &mut self,
        settings: &Settings,
        node: Node,
        control: ControlSocket,
    ) -> Result<()> {
        let door = ControlDoor { brain: self.brain.clone() };
        let status = self.status.clone();
        self.spawn("the operators' socket", async move {
            control.serve(status, door).await;
            bail!("it has ended")
        });
        let addresses = AddressDoor { brain: self.brain.clone(), status: self.status.clone() };
        let ports = PortDoor { node, universe: settings.ipam.range };
        let paths =
            Paths { run_dir: settings.paths.run_dir.clone(), data_dir: settings.paths.data_dir.clone() };
        let cni = Arc::new(Cni::new(addresses, ports, paths));
        let mut goodbye = self.goodbye.clone();
        let watched = Arc::clone(&cni);
        let server = Server::bind(cni).with_context(|| {
            format!("cannot make the containers' socket in {}", settings.paths.run_dir.display())
        })?;
        self.spawn("the containers' socket", async move {
            server.run(async move { drop(goodbye.wait_for(|end| *end).await) }).await;
            bail!("it has ended")
        });
        self.spawn("the watch for detachments that were left behind", async move {
            tombstones::watch(watched).await.context("cannot watch their folder")?;
            bail!("it has ended")
        });
        Ok(())
    }

    /// Starts what the agent does for its cluster, and has those who have looked on since the start see the new
    /// status.
    pub(super) fn spawn_cluster(&mut self, settings: &Settings, joined: Joined) {
        // Whoever attends to the cluster tells it of this peer's removal before the agent ends.
        self.agent.rejoin = mpsc::channel(1).1;
        let Joined { cluster, founding, given, front, mut watching } = joined;
        let mut status = self.status.clone();
        self.spawn("the servers for those who look on", async move {
            loop {
                tokio::select! {
                    changed = status.changed() => match changed {
                        Ok(()) => drop(front.send_replace(Arc::clone(&status.borrow_and_update()))),
                        Err(_) => bail!("the brain has ended"),
                    },
                    _ = watching.next() => bail!("one of them has ended"),
                }
            }
        });
        let around = Surroundings {
            brain: self.brain.clone(),
            status: self.status.clone(),
            given,
            network: network(settings),
            founding,
            notes: self.notes.clone(),
        };
        self.spawn("the cluster", async move { Err(cluster.attend(around).await.into()) });
    }

    /// Starts the servers for those who only look.
    pub(super) fn spawn_watching(&mut self, status: Option<StatusServer>, metrics: Option<MetricsServer>) {
        let feed = self.status.clone();
        if let Some(server) = status {
            self.spawn("the status server", async move {
                server.serve(feed).await;
                bail!("it has ended")
            });
        }
        let feed = self.status.clone();
        if let Some(server) = metrics {
            self.spawn("the metrics server", async move {
                server.serve(feed).await;
                bail!("it has ended")
            });
        }
    }
}

/// The status of an agent that has begun to start.
pub(super) fn first_status(settings: &Settings, identity: &Identity) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        ..Status::starting(identity.name(), settings.nickname(), identity.uid())
    }
}

/// Chance for the router, which draws all of its own from it.
fn seed() -> Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok().context("the system has no random numbers")?;
    Ok(u64::from_ne_bytes(bytes))
}

fn router_config(
    settings: &Settings,
    loaded: Loaded,
    founding: Option<Founding>,
    has_tun: bool,
) -> Result<weave_router::Config> {
    let me = loaded.identity.name();
    let given = settings.mesh.peers.clone();
    // In a cluster the Nodes are read as soon as the API server answers; until then what was known last must do.
    let from_store = settings.mesh.resume || (settings.kubernetes.kubernetes && given.is_empty());
    let targets = if from_store { loaded.targets.unwrap_or(given) } else { given };
    let (mode, founders) = match &settings.ipam.init {
        _ if founding.is_some() => {
            (founding.map_or(weave_ipam::Mode::Observer, weave_ipam::Mode::Decided), None)
        }
        IpallocInit::Consensus(founders) => {
            (weave_ipam::Mode::Consensus { founders: *founders }, founders.map(std::num::NonZeroU16::get))
        }
        IpallocInit::Seed(names) => (weave_ipam::Mode::Seed(names.clone()), None),
        IpallocInit::Observer => (weave_ipam::Mode::Observer, None),
    };
    let alone = targets.is_empty();
    Ok(weave_router::Config {
        topology: weave_topology::Config {
            name: me,
            key: loaded.identity.key(),
            name_of: identity::name_of,
            uid: loaded.identity.uid(),
            nickname: settings.nickname(),
            features: features(settings, has_tun),
            targets,
            discovery: !settings.mesh.no_discovery,
            conn_limit: settings.mesh.conn_limit.0.map(NonZeroUsize::try_from).transpose()?,
            port: settings.mesh.port.get(),
            range: Some(settings.ipam.range),
            founders,
            known: loaded.peers,
        },
        ipam: weave_ipam::Config { me, universe: settings.ipam.range, mode, alone },
        restored: loaded.ipam,
        encryption: weave_overlay::Encryption {
            wanted: settings.tunnels.wants_encryption(),
            trusted: settings.tunnels.trusted_subnets.clone(),
        },
        ways: loaded.ways,
    })
}

/// The network to tell the container runtime of, and the folder for it.
fn network(settings: &Settings) -> (Conflist, PathBuf) {
    let (chained, missing) = conflist::look_around(&settings.kubernetes.cni_bin_dir);
    for lost in missing {
        tracing::warn!("{lost}");
    }
    let paths = Paths { run_dir: settings.paths.run_dir.clone(), data_dir: settings.paths.data_dir.clone() };
    let network = Conflist { name: "weave".to_owned(), hairpin: true, mtu: None, paths, chained };
    (network, settings.kubernetes.cni_conf_dir.clone())
}

/// What the data plane needs to hear of a link.
fn order_of(event: &PeerEvent) -> Option<Order> {
    match event {
        PeerEvent::LinkUp(up) => Some(Order::LinkUp {
            link: up.link,
            dialled: up.direction == Direction::Outbound,
            addr: up.addr,
            peer: up.hello.name,
            key: up.key,
        }),
        PeerEvent::LinkDown { link, reason } => {
            Some(Order::LinkDown { link: *link, withdrawn: reason.text.contains(peer::SECRET_WITHDRAWN) })
        }
        PeerEvent::DialFailed { .. } | PeerEvent::Refused { .. } | PeerEvent::Message { .. } => None,
    }
}

fn driver_settings(settings: &Settings, identity: &Identity) -> driver::Settings {
    let by_udp = settings.tunnels.allows(Method::Sleeve);
    driver::Settings { name: identity.name(), host: settings.mesh.host, by_udp }
}

/// How QUIC connections for packets are shaped, and where they go; none if there are none.
fn data(settings: &Settings, has_tun: bool) -> Option<(Data, mpsc::UnboundedReceiver<DataEvent>)> {
    if !has_tun || !settings.tunnels.allows(Method::Quic) {
        return None;
    }
    let (events, connections) = mpsc::unbounded_channel();
    Some((Data { tune: sleeve::tune, max_udp_payload: sleeve::MAX_UDP_PAYLOAD, events }, connections))
}

/// The tunnels in user space, or why there are none.
fn tunnel(settings: &Settings, identity: &Identity) -> Result<Tunnel, String> {
    if !settings.tunnels.allows_user_space() {
        return Err("not among --methods".to_owned());
    }
    let tunnel = Tunnel::start(&driver_settings(settings, identity));
    if let Err(why) = &tunnel {
        tracing::warn!(why, "there are no sealed tunnels");
    }
    tunnel
}

/// What this node's data plane can do.
fn features(settings: &Settings, has_tun: bool) -> Features {
    let tunnels = &settings.tunnels;
    let mut features = Features::default();
    for (has, feature) in [
        (tunnels.allows(Method::FastDp), Features::FASTDP),
        (has_tun && tunnels.allows(Method::Sleeve), Features::SLEEVE),
        (has_tun && tunnels.allows(Method::Quic), Features::QUIC),
        (has_tun && tunnels.allows_user_space(), Features::RELAY),
        (tunnels.wants_encryption(), Features::ENCRYPT),
    ] {
        if has {
            features = features.with(feature);
        }
    }
    features
}

fn fixed(settings: &Settings, secrets: &Secrets, no_tunnel: Option<&String>) -> snapshot::Fixed {
    let mut warnings = secrets.warnings();
    warnings.extend(settings.notes.iter().cloned());
    if settings.node.mtu.0.is_some_and(|mtu| u32::from(mtu.get()) > 8950) {
        warnings.push("--mtu is larger than a jumbo frame leaves room for".to_owned());
    }
    if let Some(why) = no_tunnel.filter(|_| settings.tunnels.allows_user_space()) {
        warnings.push(format!("there are no sealed tunnels (methods sleeve and quic): {why}"));
    }
    snapshot::Fixed {
        port: settings.mesh.port.get(),
        discovery: !settings.mesh.no_discovery,
        conn_limit: settings.mesh.conn_limit.0.map(std::num::NonZeroU32::get),
        encryption: EncryptionStatus {
            data: if settings.tunnels.wants_encryption() {
                DataEncryption::Enabled
            } else {
                DataEncryption::Disabled
            },
            control: if secrets.is_public() {
                ControlTrust::PublicSecret
            } else {
                ControlTrust::ClusterSecret
            },
        },
        warnings,
    }
}
