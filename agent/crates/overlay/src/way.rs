//! The words that this crate and its callers share: ways to a peer, and what is heard and asked of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use weave_proto::PeerName;

/// A way to carry a pod's packet to another node, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The kernel's VXLAN on UDP 6784: in clear, nothing in user space.
    FastDp,
    /// Sealed records on UDP 6785.
    Sleeve,
    /// Sealed records in datagrams of a QUIC connection on UDP 6783.
    Quic,
}

impl Method {
    /// Every method, best first.
    pub const ALL: [Self; 3] = [Self::FastDp, Self::Sleeve, Self::Quic];

    /// Whether what it carries can be read and forged on its way by nobody but the two ends.
    #[must_use]
    pub const fn is_sealed(self) -> bool {
        match self {
            Self::FastDp => false,
            Self::Sleeve | Self::Quic => true,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FastDp => "fastdp",
            Self::Sleeve => "sleeve",
            Self::Quic => "quic",
        })
    }
}

/// Whether another peer stands between the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// None does.
    Direct,
    /// This one takes the sealed record and passes it on, without being able to read it.
    Relay(PeerName),
}

/// One way to one peer. Through a relay, the method is the one that leads to the relay; the record is sealed between
/// the two ends whatever carries it. Ordered from best to worst: any direct way before any relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Way {
    /// What carries it on the first hop.
    pub method: Method,
    /// Where that hop ends.
    pub via: Via,
}

impl Way {
    /// Straight to the peer.
    #[must_use]
    pub const fn direct(method: Method) -> Self {
        Self { method, via: Via::Direct }
    }

    /// Whether nobody on the way can read or forge what it carries.
    #[must_use]
    pub const fn is_sealed(self) -> bool {
        matches!(self.via, Via::Relay(_)) || self.method.is_sealed()
    }

    /// By way of another peer.
    #[must_use]
    pub const fn relay(method: Method, hop: PeerName) -> Self {
        Self { method, via: Via::Relay(hop) }
    }
}

impl Ord for Way {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.via, self.method).cmp(&(other.via, other.method))
    }
}

impl PartialOrd for Way {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.via {
            Via::Direct => write!(f, "{}", self.method),
            Via::Relay(hop) => write!(f, "{} to relay {hop}", self.method),
        }
    }
}

/// What can carry packets to a peer: told by the doer, for each peer by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// A method straight to the peer: the device and its FDB entry; the session of the link and its remote address;
    /// the second QUIC connection.
    Direct(Method),
    /// A session end to end, whose records others may carry: of a link, or agreed on through the mesh. Which relay
    /// carries them is decided here.
    Relay,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(method) => write!(f, "{method}"),
            Self::Relay => f.write_str("relay"),
        }
    }
}

/// A carrier exists, or does not. Said again whenever anything of it changes; of a carrier that nothing was said about,
/// nothing is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WayNews {
    /// Probes can be sent with it.
    Up {
        /// To whom.
        peer: PeerName,
        /// What carries.
        carrier: Carrier,
        /// The largest pod packet that it could carry if nothing on the path is smaller than this node's device:
        /// the upper bound of the search.
        largest: u32,
    },
    /// It cannot be used.
    Down {
        /// To whom.
        peer: PeerName,
        /// What would carry.
        carrier: Carrier,
        /// Why, with the remedy, for the operator.
        why: String,
    },
}

/// Something to be sent on a way and answered at once by the other end's doer, on the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// To whom.
    pub peer: PeerName,
    /// On which way.
    pub way: Way,
    /// Tells answers apart.
    pub nonce: u64,
    /// The pod packet that it stands for, in bytes: it must be as long on the wire as one of that size. 0 asks for the
    /// smallest that there is. The answer is small.
    pub len: u32,
    /// Whether packets of pods for the peer may be lost: then it is to look after its own way, too, which its answers
    /// will need.
    pub hasty: bool,
}

/// Packets of pods for a peer take another way than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// For whom.
    pub peer: PeerName,
    /// The way that they took.
    pub from: Way,
    /// The way that they take; none if they cannot be sent any more.
    pub to: Option<Way>,
    /// Why, for the operator.
    pub why: String,
    /// How many changes before this one were not told, since there were so many.
    pub untold: u32,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            Some(to) => write!(f, "packets take {to} instead of {}", self.from)?,
            None => write!(f, "packets cannot be sent by {} any more", self.from)?,
        }
        write!(f, ": {}", self.why)?;
        match self.untold {
            0 => Ok(()),
            count => write!(f, " ({count} changes before this one were too many to be told)"),
        }
    }
}

/// A probe has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// Who answered.
    pub peer: PeerName,
    /// On which way the probe had been sent.
    pub way: Way,
    /// The probe's.
    pub nonce: u64,
    /// The size that arrived at the other end, as in the probe.
    pub len: u32,
}
