//! The rooms wired into one agent, and an agent's life from start to end.
//!
//! ```text
//!   check      may this agent run here at all? (range, settings)
//!   open       the store (one agent a data directory), the sockets
//!   enter      in a cluster, and without a ring: secret and first split from the API server, for as long as it takes
//!   wire       brain, performer, peers, kernel, cni, control, http
//!   run        until a signal, a request to end, or a room that cannot go on
//!   end        goodbye to the peers; the kernel keeps what it has, so pods talk on
//! ```
//!
//! The tasks, their owner is [`Agent`], and each may be dropped at any `await`: what has not been promised may be
//! forgotten, and what has is on the disk. A room that ends by itself ends the agent, with its reason as the exit.

mod doors;
mod kernel;
mod reset;
mod waiting;
mod wiring;

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::cli::{self, ResetPaths, Trace};
use crate::config::Settings;
use crate::control::ControlSocket;
use crate::former::Places;
use crate::http::{MetricsServer, StatusServer};
use crate::identity::Machine;
use crate::kube::RemovedForGood;
use crate::net::{Node, NodeSettings, overlap};
use crate::peer::Secrets;
use crate::store::Store;
use crate::task;
use wiring::Wiring;

/// The room that says goodbye when the agent ends.
const PERFORMER: &str = "the store";

/// How long peers may take to hear a goodbye. The links themselves give up after a second.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(2);

/// What the command line asks for, done on this machine.
#[derive(Debug, Clone, Copy)]
pub struct ThisMachine;

impl cli::Doers for ThisMachine {
    fn launch(&self, settings: Settings) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8)
            .thread_name("weave")
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let data_dir = settings.paths.data_dir.clone();
        let ended = runtime.block_on(run(settings));
        if ended.as_ref().is_err_and(anyhow::Error::is::<RemovedForGood>) {
            runtime.shutdown_timeout(GOODBYE_PATIENCE);
            return begin_anew(&data_dir);
        }
        runtime.shutdown_background();
        ended
    }

    fn reset(&self, paths: &ResetPaths) -> Vec<Trace> {
        reset::reset(paths)
    }

    fn weave_net(&self, places: &Places, remove: bool) -> io::Result<Vec<Trace>> {
        reset::weave_net(places, remove)
    }
}

/// Starts this program over as another peer, in the same process: all tasks, sockets and locks of the former life are
/// gone by then.
fn begin_anew(data_dir: &Path) -> Result<()> {
    use std::os::unix::process::CommandExt;
    match Store::set_aside(data_dir)? {
        Some(former) => tracing::warn!(
            "This peer begins anew under another name; the store of the former one is kept in {}",
            former.display()
        ),
        None => tracing::warn!("This peer begins anew under another name"),
    }
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    Err(std::process::Command::new(program).args(std::env::args_os().skip(1)).exec())
        .context("cannot start this program again")
}

/// Runs an agent until it is told to end.
async fn run(settings: Settings) -> Result<()> {
    let mut signals = Signals::new()?;
    let mut agent = tokio::select! {
        started = Agent::start(settings) => started?,
        () = signals.any() => return Ok(()),
    };
    let ended = agent.run(&mut signals).await;
    agent.end().await;
    ended
}

/// The signals that end an agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for one of them.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("Told to end by SIGTERM; pods keep their network"),
            _ = self.interrupt.recv() => tracing::info!("Told to end by SIGINT; pods keep their network"),
        }
    }
}

/// A running agent: the tasks, and what must be ended in order.
struct Agent {
    tasks: task::Group<Ended>,
    stop: mpsc::Receiver<()>,
    rejoin: mpsc::Receiver<()>,
    goodbye: watch::Sender<bool>,
}

/// Which room ended, and how.
struct Ended {
    room: &'static str,
    result: Result<()>,
}

impl Agent {
    /// Checks, opens and wires everything. On an error nothing was changed in the kernel.
    async fn start(mut settings: Settings) -> Result<Self> {
        let universe = settings.ipam.range;
        if let Some(overlap) = overlap::find(universe)? {
            bail!(overlap);
        }
        let machine = match &settings.identity.machine_id {
            Some(id) => Machine::named(id),
            None => Machine::this(),
        };
        let (store, loaded) = Store::open(&settings.paths.data_dir, &machine)?;
        let control = ControlSocket::bind(&settings.paths.run_dir)?;
        let joined = waiting::join(&mut settings, &loaded, &control).await?;
        let secrets = secrets(&settings)?;
        let (status_server, metrics_server) = match &joined {
            // They have been answering all the while.
            Some(_) => (None, None),
            None => (
                StatusServer::bind(&settings.watch.http_addr)?,
                MetricsServer::bind(&settings.watch.metrics_addr)?,
            ),
        };
        let node = Node::start(NodeSettings { sysctl_root: settings.paths.proc_sys.clone() })?;

        let founding = joined.as_ref().and_then(|joined| joined.founding.clone());
        let mut wiring = Wiring::new(&settings, loaded, founding, &secrets)?;
        let peers = wiring.bind_peers(&settings, secrets).await?;
        let presence = store.presence();
        wiring.spawn_brain(store, peers);
        wiring.spawn_kernel(&settings, node.clone(), presence);
        wiring.spawn_doors(&settings, node, control)?;
        wiring.spawn_watching(status_server, metrics_server);
        if let Some(joined) = joined {
            wiring.spawn_cluster(&settings, joined);
        }
        Ok(wiring.agent)
    }

    /// Waits until the agent is told to end, or a room cannot go on.
    async fn run(&mut self, signals: &mut Signals) -> Result<()> {
        tokio::select! {
            () = signals.any() => {}
            _ = self.stop.recv() => {
                tracing::info!("Told to end by `weave reset`, which takes down the network of this node's pods next");
            }
            Some(()) = self.rejoin.recv() => bail!(RemovedForGood),
            ended = self.tasks.next() => {
                let Some(Ended { room, result }) = ended else { bail!("a room died; see the log above") };
                return result.with_context(|| format!("{room} cannot go on"));
            }
        }
        Ok(())
    }

    /// Says goodbye to the peers, so that they need not notice from the silence.
    async fn end(mut self) {
        self.goodbye.send_replace(true);
        let performer = async {
            while let Some(ended) = self.tasks.next().await {
                if ended.room == PERFORMER {
                    return;
                }
            }
        };
        // Whoever has not answered by then notices from the silence after all.
        let _ = tokio::time::timeout(GOODBYE_PATIENCE, performer).await;
    }
}

/// The secrets in the file, or the password, or the secret that everybody knows.
fn secrets(settings: &Settings) -> Result<Secrets> {
    match (&settings.identity.secret_file, settings.tunnels.password()) {
        (Some(path), _) => Ok(Secrets::from_file(path)?),
        (None, Some(password)) => Ok(Secrets::from_lines(password, "--password (or WEAVE_PASSWORD)")?),
        (None, None) => Ok(Secrets::public()),
    }
}
