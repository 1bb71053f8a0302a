//! Many peers, one virtual clock, a reference model.
//!
//! The real thinkers run here (`weave_router` with everything in it), joined by a simulated network; only sockets, disks
//! and the clock are made up. Every message goes through the real codec. What can happen to the peers is a list of plain
//! values ([`Step`]); what must be true whatever happens is a list of [`invariants`].
//!
//! ```text
//!   Step (allocate, free, partition, crash between two outputs, restart, wipe, rmpeer …)
//!      |
//!   World ── links with delay, partitions, 3 s until a dead link is noticed
//!      |
//!   Peer ── Router ── outputs performed one at a time ── Disk (what a commit made durable)
//! ```
//!
//! A seed is a bug report: the same seed gives the same run, to the last message.

pub mod disk;
pub mod invariants;
pub mod world;

pub use disk::Disk;
pub use world::{Effort, Step, World};
