//! By which way a peer is reached, and the forwarding table that follows.
//!
//! The kernel's routing table is the switch: a peer's ranges are routes, and the method chosen for the peer is
//! the device they point to. So all that has to be decided here is, for each peer, *which method* and *towards
//! which underlay address*; the answer is a [`ForwardingTable`], an immutable value that the doers render into
//! routes, neighbours and FDB entries. No packet ever passes through this crate.
//!
//! The choice is made by probes ([`Overlay`]). Three rules shape it:
//!
//! * **The data path outlives the control path.** A peer whose agent is down, restarting or out of reach keeps
//!   its path: its pods are most likely still there. Only what *replaces* the knowledge (a link from another
//!   address, a new owner of the range) or a removal for good changes a path. That is why [`PeerFacts`] carries
//!   the last known addresses rather than the live ones only.
//! * **No path is better than a wrong one.** Where an address is missing, nothing is guessed: the peer's ranges
//!   stay unreachable, by the route under all others, and [`NoPath`] says what is missing in words for the
//!   operator.
//! * **Never in clear where encryption is due**, whatever happens in whatever order: it is decided before anything is
//!   preferred.
//!
//! Methods are ordered from best to worst by the order of [`Method`]'s variants.

mod select;
mod table;
mod way;

pub use select::{Config, Output, Overlay, Report};
pub use table::{
    Choice, Encryption, Forward, ForwardingTable, KnownWay, NoPath, PeerFacts, PeerPath, PlainFrom,
    QuicWanted, Vtep,
};
pub use way::{Carrier, Method, Moved, Probe, ProbeAnswer, Via, Way, WayNews};
