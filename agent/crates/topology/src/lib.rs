//! Who is there, who is linked to whom, and whom to dial.
//!
//! Peers form a mesh of links. No peer is special and none has to know all others beforehand: each one says about
//! itself who it is and which links it has (a [`PeerRecord`](weave_proto::peer::PeerRecord)), and repeats what it has
//! heard from others. From the records every peer draws the same graph, and from the graph it computes where to send
//! what is meant for a peer that it is not linked to.
//!
//! ```text
//!   hello.rs      may these two talk at all?        links.rs   which of two links of one pair stays?
//!   peers.rs      the records, and who is gone      own.rs     our own record, and how often it may change
//!   gossip.rs     push, forward, compare            routes.rs  the graph and the next hops
//!   survey.rs     the mesh as seen at one moment    limit.rs   whom to keep when links are limited
//!   connector.rs  whom to dial, and where           book.rs    how each address fared, and when to try again
//!   lookup.rs     the addresses of names            status.rs  what people see
//! ```
//!
//! [`Topology`] joins them. It is a machine without a clock, a socket or a thread: news goes in by `handle_*`, `now` is
//! a parameter, and what is to be done comes out of one queue ([`Topology::poll_output`]). Three properties hold
//! whatever the order of news is:
//!
//! * **Records converge.** A record is replaced only by one with a larger (uid, version) of the same key, so merging
//!   is commutative, associative and idempotent, and it does not matter what was lost on the way: digests find it.
//! * **Both ends choose alike.** Where two peers must decide the same thing (which of two links stays, whether they may
//!   talk), the rule is a function of what both know, never of who noticed first.
//! * **Nothing is tried in a tight loop.** Each address has its own back-off, which only a link that has lived for a
//!   while resets; our own record changes at a bounded pace; each deadline that [`Topology::poll_timeout`] names lies
//!   in the future once it has been handled.
//!
//! Links are dialled to targets that people gave, to addresses that other peers report (unless discovery is off), and
//! to the last known addresses of peers that were lost. The mesh need not be full: `limit.rs` says how it stays
//! in one piece when each peer may have a few links only.

mod api;
mod backoff;
mod book;
mod connector;
mod gossip;
pub mod hello;
mod limit;
mod links;
mod lookup;
mod machine;
mod own;
mod peers;
mod rejections;
mod routes;
mod status;
mod survey;
mod target;
#[cfg(test)]
mod testing;

pub use api::{
    Config, DialId, Direction, KnownPeer, LinkId, LinkUp, Notice, Output, OwnFacts, PeerView, Reason,
    RejectedGossip, Unroutable,
};
pub use machine::Topology;
pub use target::{Target, TargetError};
