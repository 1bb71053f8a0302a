//! Who owns which address, and who has it.
//!
//! The first promise of the product is made here: no address is ever given out twice. It rests on three facts,
//! each of which has one home.
//!
//! 1. **Every address has one owner.** The [`ring`] says which peer owns which range; its form leaves neither gaps
//!    nor overlaps, and only an owner changes what it owns. How the first ring comes about without anybody in
//!    charge is told in [`election`], and what it looks like in [`split`].
//! 2. **Only the owner gives an address out**, from its own [`space`], entered in its own book, without asking
//!    anybody. So allocation works in every partition, and costs one write to the local disk.
//! 3. **Ownership moves by the owner's hand**, in a [`donation`]; or, when the owner is gone for good, by the word
//!    of a majority, in a removal: [`reclaim`].
//!
//! # How to drive it
//!
//! [`Ipam`] is a state machine without clock, socket, disk or chance. Feed it news (`handle_*`), then perform
//! what comes out of [`poll_output`](Ipam::poll_output) *in order* until nothing does; nothing behind an
//! [`Output::Persist`] may be done before that is durable. Call [`handle_timeout`](Ipam::handle_timeout) when
//! [`poll_timeout`](Ipam::poll_timeout) says so. Views ([`ranges`](Ipam::ranges), [`status`](Ipam::status), …)
//! may be read at any time.
//!
//! What peers tell each other is a whole state each time ([`state`](Ipam::state)). It may be lost, repeated,
//! reordered and sent over any detour; peers compare [`digest`](Ipam::digest)s now and then and send a state where
//! they differ. Free counts are hints outside of it, so an allocation causes no traffic.
//!
//! A crash at any point loses nothing that was promised: a promise (a vote, a lock, a donation, an
//! acknowledgement, an address) leaves behind the `Persist` that makes it durable, and the next start is given
//! everything that was persisted ([`Restored`]). A start without memory is the start of another peer.

pub mod allocator;
mod api;
mod book;
pub mod donation;
pub mod election;
mod hash;
mod ipam;
mod outbox;
pub mod reclaim;
mod refusal;
pub mod ring;
pub mod space;
pub mod split;
mod status;
mod waiting;

pub use allocator::PATIENCE;
pub use api::{
    Allocation, Answer, ClaimConflict, Config, Freed, Mode, Notice, Output, PortPlan, Request, RequestError,
    RequestId, Restored, StoreOp,
};
pub use hash::{digest, universe_id};
pub use ipam::{Ipam, PeerFacts};
pub use refusal::{RejectedUpdate, Rejection, RestoreError};
pub use waiting::WaitingFor;
