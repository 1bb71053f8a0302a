//! The one machine that the brain drives: topology, ipam and overlay joined.
//!
//! Each of the three rooms is a machine of its own with the same shape: news goes in by `handle_*`, what is to be
//! done comes out of one queue. This crate translates between them and puts all outputs into *one* queue, whose
//! order carries the promise that the whole program rests on:
//!
//! > Nothing that stands behind a [`Output::Persist`] may be performed before that is durable.
//!
//! So an allocation is `Persist`, then `Reply`; a vote is `Persist`, then `Send`; and crash safety is a property of a
//! list, which the simulator checks by cutting the power between any two of its elements.
//!
//! ```text
//!   links, messages ──> topology ──who is reachable──> ipam ──who owns what──> overlay ──> Publish
//!   requests ─────────────────────────────────────────> │
//!                          ^──── gossip, directed ────── │
//! ```
//!
//! What is decided here is only what belongs to no single room: that the node asks for an address of its own as soon
//! as it may ([`node`]), and that a peer's last known addresses outlive its link. A protocol rule found here is a rule
//! without a home.

mod news;
mod node;
mod router;
mod views;

pub use node::{Distant, NodeView};
pub use router::{Config, Notice, Output, Router, StoreOp};
