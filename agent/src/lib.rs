//! The doers of the weave agent, and the command line that starts and asks it.
//!
//! What *decides* lives in the pure crates under `agent/crates` and is joined by `weave_router`. What is here *acts*:
//! each room below does one kind of thing to the outside world, knows no other room's business, and is told what to do
//! in values.
//!
//! ```text
//!   cli      the words of the command line          launch   the rooms wired into one agent
//!   config   flags and environment, read once       brain    the loop around the router
//!   peer     QUIC links                             store    what must survive: one redb file
//!   net      the node's kernel state                firewall the nftables tables
//!   cni      the six verbs                          control  the operator's socket
//!   http     status and metrics, read-only          render   status as text
//!   kube     the agent's place in a Kubernetes cluster
//!   identity who this peer is                       task     tasks with a name, an owner and an end
//!   dataplane tunnels in user space: the sleeve engine, not yet chosen by any peer
//! ```

pub mod brain;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod firewall;
pub mod former;
pub mod http;
pub mod identity;
pub mod kube;
pub mod launch;
pub mod net;
pub mod peer;
pub mod render;
pub mod store;
pub mod task;
