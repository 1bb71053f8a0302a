//! What two data planes tell each other before pod packets flow.
//!
//! All of these kinds were added after the first release of version 1. An agent that does not know them skips them: it
//! has no tunnel in user space, and its [`Features`](super::Features) say so.

use serde::{Deserialize, Serialize};

use crate::PeerName;

/// The most suites in an [`Offer`]: there are three, and room for what is to come.
pub const MAX_SUITES: usize = 16;

/// The longest body of a [`Routed`]: a TLS flight with two certificates takes about two kilobytes.
pub const MAX_ROUTED: usize = 16 * 1024;

/// The longest flight of a [`Handshake`]: three times what one takes with keys of twice today's size.
pub const MAX_FLIGHT: usize = 8 * 1024;

/// What a peer demands of pod packets between itself and the receiver. Said on each new link and whenever it changes;
/// until it has been said, a peer with [`Features::ENCRYPT`](super::Features::ENCRYPT) demands that all are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Whether they may travel as they are, because the sender trusts the network between the two.
    pub plain: bool,
}

/// How to send sealed records to the peer that says it, with keys from the connection on which it is said. An end says
/// it once it can open such records; a later one on the same connection takes the place of an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The number that must stand in records for the sender, so that it finds the keys.
    pub index: u32,
    /// The suites that it can do, best first, by their numbers; both ends come to the same choice.
    pub suites: Vec<u8>,
    /// How many queues it sends on.
    pub queues: u8,
    /// The UDP port that it receives on; 0 if it takes records in QUIC datagrams only.
    pub port: u16,
}

/// Bytes for one peer's data plane, forwarded along the shortest path like [`Directed`](super::Directed). Those who
/// forward it do not look inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// Who said it.
    pub src: PeerName,
    /// Who shall hear it.
    pub dst: PeerName,
    /// How many more peers may forward it; ends loops while routes change.
    pub hops_left: u8,
    /// What is said, at most [`MAX_ROUTED`] bytes: one frame of a [`Handshake`].
    pub body: Vec<u8>,
}

/// Two peers without a link agree on keys, by TLS whose bytes others carry. Only ever the body of a [`Routed`]: nothing
/// in it but what TLS proves is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// Drawn for each attempt by the end that makes it.
    pub attempt: u64,
    /// What is said.
    pub step: Step,
}

/// A step of a [`Handshake`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Please make an attempt: I have no keys for you any more, and it is not for me to begin. The number is of no use.
    Ask,
    /// Bytes of TLS.
    Flight {
        /// Whether the end that began says it: TLS' client.
        dialler: bool,
        /// Counts this end's flights from 0. One out of turn is of no use.
        number: u8,
        /// At most [`MAX_FLIGHT`].
        tls: Vec<u8>,
    },
}
