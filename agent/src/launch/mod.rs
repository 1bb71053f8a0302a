//! The rooms wired into one agent, and an agent's life from start to end.
//!
//! ```text
//!   check      may this agent run here at all? (range, settings)
//!   open       the store (one agent a data directory), the sockets
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

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rand::Rng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use weave_proto::local::status::{ControlTrust, DataEncryption, EncryptionStatus, NodeStatus, Status};
use weave_proto::peer::{Features, Hello};
use weave_router::Router;

use crate::brain::{self, Brain, BrainHandle, Doers, Input, snapshot};
use crate::cli::{self, ResetPaths, Trace};
use crate::config::{self, IpallocInit, Settings};
use crate::control::ControlSocket;
use crate::http::{MetricsServer, StatusServer};
use crate::identity::Machine;
use crate::net::{self, HostOptions, Node, NodeSettings, overlap};
use crate::peer::{self, PeerEvent, PeerNet, Secrets};
use crate::store::{Loaded, Store};
use crate::task;

/// Inputs that may wait for the brain. A burst of a few hundred requests fits; more wait at their own door.
const INPUTS: usize = 1024;

/// Batches of effects that may wait for the performer before the brain waits for it.
const EFFECTS: usize = 256;

/// Events of links that may wait to be passed on.
const PEER_EVENTS: usize = 256;

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
        let ended = runtime.block_on(run(settings));
        runtime.shutdown_background();
        ended
    }

    fn reset(&self, paths: &ResetPaths) -> Vec<Trace> {
        reset::reset(paths)
    }
}

/// Runs an agent until it is told to end.
async fn run(settings: Settings) -> Result<()> {
    let mut agent = Agent::start(settings).await?;
    let ended = agent.run().await;
    agent.end().await;
    ended
}
