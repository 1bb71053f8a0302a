//! The packets of *sleeve*, the tunnel in user space.
//!
//! Everything a node sends to another through sleeve is a **record**: sixteen bytes of header, a sealed part, a tag
//! ([`header`] draws it; `docs/wire-sleeve.md` is the description for other implementers). This crate turns packets
//! of a TUN device into records and back. It owns no socket, device or thread, and reads no clock.
//!
//! What makes it fast is decided here, so it is argued here:
//!
//! * **Super-packets travel whole.** The kernel hands out TCP in super-packets of up to 64 KiB and takes them back
//!   the same way. Cutting them into records at segment borders and joining the records again costs no checksum
//!   and no flow table, because both ends are ours: a piece carries the headers of its super-packet, one bit says
//!   "continues the record before", and what must be computed (lengths, checksums) is computed once a
//!   super-packet, at the receiving end ([`cut`], [`inbox`]).
//! * **A lost record costs its own segment.** Each piece is a packet in itself. What arrived of a super-packet is
//!   delivered, in as many super-packets as there are gaps.
//! * **The cipher is the copy.** Sealing reads the packet where the device put it and writes it where the socket
//!   takes it; opening writes it behind the piece before. Nothing else moves payload ([`keys`]).
//! * **Small packets share a record** ([`outbox`]), and an acknowledgement takes the place of one that waits and says
//!   less.
//!
//! What makes it safe:
//!
//! * A key belongs to one (session, direction, queue, epoch), and its counter is taken before it is used; there is
//!   no way to seal twice with one nonce ([`lane`], [`keys`]).
//! * A record is compared with the replay window before it is opened and enters it only when authentic ([`replay`]).
//! * Epochs follow each other without a message and without losing a record ([`session`]).
//! * Lengths inside an authentic record are still not believed: a peer may have been taken over. A packet's source
//!   must be the peer's ([`inbox::Deliver::admits`], [`ranges`]).
//! * A record that another node has to pass on stays sealed from end to end ([`relay`]).
//! * Congestion marks cross the tunnel in both directions ([`ecn`]).
//!
//! Nothing is allocated, locked or logged for a packet. The two buffers, [`outbox::Outbox`] and [`inbox::Inbox`],
//! allocate when they are made.

pub mod cut;
pub mod ecn;
pub mod header;
pub mod inbox;
pub mod inner;
pub mod keys;
pub mod lane;
pub mod outbox;
mod overtaken;
pub mod ranges;
pub mod relay;
pub mod replay;
pub mod session;
pub mod vnet;

#[cfg(test)]
mod tests;
