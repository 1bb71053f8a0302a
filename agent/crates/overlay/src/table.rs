//! From what is known of each peer to the table that the kernel is made to hold.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weave_proto::peer::Features;
use weave_proto::{Cidr, PeerName};

use crate::Way;

/// What is known of a peer, live or from before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerFacts {
    /// What its data plane can do.
    pub features: Features,
    /// Where its packets come from and go to: the remote address of the present link, or of the last one.
    pub underlay: Option<IpAddr>,
    /// Its own address on its bridge: the next hop of its routes.
    pub overlay: Option<IpAddr>,
    /// The addresses it owns, in aligned blocks.
    pub ranges: Vec<Cidr>,
    /// The neighbours that might relay to it, the best first.
    pub relays: Vec<PeerName>,
}

/// The last way to a peer, for a restart: until answers say otherwise, it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownWay {
    /// The peer.
    pub peer: PeerName,
    /// The way, if there was one.
    pub way: Option<Way>,
    /// The largest pod packet that was sent.
    pub mtu: Option<u32>,
    /// Whether the peer had allowed packets in clear.
    pub plain: bool,
}

/// How one peer's pods are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPath {
    /// The peer. Its name is also the MAC address of its VTEP.
    pub peer: PeerName,
    /// The way: its method is the device that the routes point to.
    pub way: Way,
    /// Where the peer itself is; none if that is not known, as may be of one behind a relay.
    pub underlay: Option<IpAddr>,
    /// The next hop of the routes.
    pub overlay: IpAddr,
    /// The destinations, ascending.
    pub ranges: Vec<Cidr>,
    /// The largest pod packet that is known to pass; none if only the devices limit it.
    pub mtu: Option<u32>,
}

/// A peer to whose kernel VXLAN may be sent, for packets or for probes: it has a permanent neighbour and an FDB entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtep {
    /// The peer. Its name is also the MAC address of its VTEP.
    pub peer: PeerName,
    /// Where its kernel listens.
    pub underlay: IpAddr,
    /// Its address on its bridge.
    pub overlay: IpAddr,
}

/// From which underlay addresses VXLAN is let in. What is not let in is dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlainFrom {
    /// From all, less those (ascending) of peers with which every packet is sealed.
    AnybodyBut(Vec<IpAddr>),
    /// From these alone, ascending: this node wants packets sealed.
    Only(Vec<IpAddr>),
}

impl Default for PlainFrom {
    fn default() -> Self {
        Self::AnybodyBut(Vec::new())
    }
}

/// What this node demands of packets on their way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encryption {
    /// Whether they are to be sealed.
    pub wanted: bool,
    /// Networks in which a peer may be sent to and heard in clear nevertheless.
    pub trusted: Vec<Cidr>,
}

/// Why a peer's pods cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoPath {
    /// It owns no addresses, so there is nothing to reach.
    OwnsNothing,
    /// It has not told which address its bridge has.
    NoOverlayAddress,
    /// There has never been a direct link to it, so where its packets should go is unknown.
    NoDirectLink,
    /// One of the two data planes cannot do any method that the other can.
    NoCommonMethod,
    /// Encryption is due, and the two data planes have no sealed method in common.
    NoSealedMethod,
    /// There are methods, but no device, session or connection for any of them yet.
    NotReady,
    /// Nothing that was tried has ever answered.
    NoAnswer,
}

impl fmt::Display for NoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnsNothing => "owns no addresses yet",
            Self::NoOverlayAddress => "has not announced its bridge address yet",
            Self::NoDirectLink => "no direct link yet: open UDP 6783 and 6784 between the two nodes",
            Self::NoCommonMethod => "no common method: a kernel without VXLAN at one end",
            Self::NoSealedMethod => {
                "encryption is due, and the two nodes have no encrypted method in common: allow \
                sleeve or quic at both (--methods), and let /dev/net/tun be used"
            }
            Self::NotReady => "no method is ready yet",
            Self::NoAnswer => "no answer on any method yet: open UDP 6783 to 6785 between the two nodes",
        })
    }
}

/// What was decided for one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Its pods are reached like this.
    Path(PeerPath),
    /// Its pods cannot be reached.
    None(NoPath),
}

/// The paths to all peers that have one, in the order of names. Equal facts give equal tables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ForwardingTable {
    /// One path a peer.
    pub paths: Vec<PeerPath>,
    /// Everybody to whose kernel VXLAN may be sent, whether that is the path or not.
    pub vteps: Vec<Vtep>,
    /// From whom VXLAN is let in.
    pub plain_from: PlainFrom,
    /// How sealed records of others go on to a peer, for which this node relays. Only ways that answer.
    pub forwards: Vec<Forward>,
    /// With whom there should be a QUIC connection for packets.
    pub quic: Vec<QuicWanted>,
}

/// A peer with which there should be a QUIC connection for packets: no better way answers, or it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuicWanted {
    /// The peer.
    pub peer: PeerName,
    /// Whether there is nothing better to wait for.
    pub soon: bool,
}

/// How sealed records of others go on to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The peer.
    pub peer: PeerName,
    /// A sealed way straight to it, or the next relay.
    pub way: Way,
}

impl Encryption {
    /// Whether an address is in a trusted network.
    #[must_use]
    pub fn trusts(&self, addr: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(addr))
    }
}
