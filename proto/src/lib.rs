//! Every byte that leaves a weave process.
//!
//! This crate is the vocabulary that all rooms share, and the only place where bytes are parsed:
//!
//! * [`name`]: who is who ([`PeerName`], [`PeerKey`], [`PeerUid`], [`Nickname`]);
//! * [`addr`]: what is shared out ([`Cidr`], [`Span`]), either address family;
//! * [`peer`]: what two agents tell each other, a message kind each, versioned;
//! * [`codec`]: how a message becomes a frame and back, with limits;
//! * [`local`]: what the CNI shim and the CLI tell the agent of their own node, as JSON.
//!
//! Three rules hold throughout. A decoder has a maximum and rejects trailing bytes. A type that has been
//! constructed is proof of what its name says (a [`Cidr`] has no host bits, a [`Span`] is never empty). A wire
//! message never changes after a release: a new version stands beside the old one.
//!
//! Nothing here reads a clock, a file or a socket.

pub mod addr;
pub mod codec;
pub mod local;
pub mod name;
pub mod peer;

pub use addr::{Cidr, CidrError, Span};
pub use name::{Nickname, PeerKey, PeerName, PeerUid};
