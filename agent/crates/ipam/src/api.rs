//! What goes in and what comes out.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use weave_proto::local::cni::{AttachmentKey, PodPort};
use weave_proto::peer::ipam::{Founding, IpamState};
use weave_proto::peer::{IpamDirected, UniverseId};
use weave_proto::{Cidr, PeerName, Span};

use crate::waiting::WaitingFor;

/// How a peer comes by the first split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Agrees on it with the others.
    Consensus {
        /// How many founders there are. Without the number, a peer that is [`alone`](Config::alone) is the only
        /// founder, and any other adopts the number from a peer that was told.
        founders: Option<NonZeroU16>,
    },
    /// Computes it from a list that all peers were given.
    Seed(BTreeSet<PeerName>),
    /// Was told it by somebody who decides for all peers, such as an object that exists once in a cluster.
    Decided(Founding),
    /// Takes no part and waits for the others.
    Observer,
}

/// What a peer must be told to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This peer.
    pub me: PeerName,
    /// The range to share out.
    pub universe: Cidr,
    /// How the first split comes about, if it has not yet.
    pub mode: Mode,
    /// Whether the peer was launched without any other peer to connect to.
    pub alone: bool,
}

/// What the store held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restored {
    /// The last [`StoreOp::PutState`].
    pub state: Option<IpamState>,
    /// Every allocation put and not deleted.
    pub allocations: Vec<Allocation>,
    /// Every lost allocation put and not deleted.
    pub lost: Vec<Allocation>,
    /// Every freed address put and not deleted.
    pub freed: Vec<Freed>,
    /// The last [`StoreOp::PutGeneration`]; zero if there was none.
    pub generation: u64,
}

/// An address that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Who.
    pub key: AttachmentKey,
    /// The address.
    pub address: IpAddr,
    /// The port on the bridge that was made for it, if it is a pod's.
    pub port: Option<PodPort>,
    /// Which ADD this is: every allocation of this peer has a larger number than all before it.
    pub generation: u64,
}

/// An address that nobody has any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// The address.
    pub address: IpAddr,
    /// Larger than that of every address freed before.
    pub order: u64,
}

/// A pod's port as far as it is known before there is an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// The name of the host's end of the veth pair.
    pub host_interface: String,
    /// The pod end's MAC address.
    pub mac: [u8; 6],
    /// The path of the network namespace.
    pub netns: String,
    /// The pod's name as `namespace/name`, where known.
    pub pod: Option<String>,
}

impl PortPlan {
    /// The port with its address.
    #[must_use]
    pub fn at(self, address: IpAddr) -> PodPort {
        let Self { host_interface, mac, netns, pod } = self;
        PodPort { host_interface, mac, address, netns, pod }
    }
}

/// Names a request until it is answered. Chosen by the caller, never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What may be asked of the allocator. Every request is answered once, at once or after at most
/// [`PATIENCE`](crate::PATIENCE), unless it is cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// An address for this key: the one it has, or any free one.
    Allocate {
        /// For whom.
        key: AttachmentKey,
        /// The port that it is for.
        port: Option<PortPlan>,
    },
    /// This address for this key.
    Claim {
        /// For whom.
        key: AttachmentKey,
        /// Which.
        address: IpAddr,
    },
    /// The key needs its address no more. Frees nothing where there is nothing.
    Free {
        /// Whose.
        key: AttachmentKey,
        /// If given, a later allocation than this one is left alone.
        generation: Option<u64>,
    },
    /// The container needs none of its addresses any more.
    FreeContainer {
        /// Whose.
        container: String,
    },
    /// Nobody needs an address but these keys, and the reserved ones (which begin with `weave:`).
    KeepOnly {
        /// Who does.
        valid: BTreeSet<AttachmentKey>,
    },
    /// Which address has this key?
    Lookup {
        /// Whose.
        key: AttachmentKey,
    },
    /// This peer is gone for good: take over what it owns.
    RemovePeer {
        /// Which.
        peer: PeerName,
        /// Even if it is alive.
        force: bool,
    },
}

/// The answer to a request that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To Allocate and Claim.
    Allocated {
        /// The address, and for whom.
        allocation: Allocation,
        /// Whether it was given out just now, so that traces of a former holder must be wiped.
        fresh: bool,
    },
    /// To Free, FreeContainer and KeepOnly: what was freed.
    Freed(Vec<Allocation>),
    /// To Lookup.
    Found(Option<Allocation>),
    /// To RemovePeer: the removal is decided.
    Removed {
        /// Who inherits.
        heir: PeerName,
        /// How many addresses this peer gained.
        addresses: u64,
    },
}

/// Why a request failed. The text is for people: the object and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no ring yet.
    #[error("no address for {object}: {waiting_for}")]
    NotReady {
        /// For whom.
        object: String,
        /// What is missing.
        waiting_for: WaitingFor,
    },
    /// Nobody that can be reached has a free address.
    #[error("no address for {object}: {waiting_for}")]
    NoSpace {
        /// For whom.
        object: String,
        /// What is missing.
        waiting_for: WaitingFor,
    },
    /// The others did not answer in time.
    #[error("{object} took too long: {waiting_for}")]
    TimedOut {
        /// What was to be done.
        object: String,
        /// What is missing.
        waiting_for: WaitingFor,
    },
    /// The address cannot be claimed.
    #[error("{key} cannot have {address}: {reason}")]
    Conflict {
        /// For whom.
        key: AttachmentKey,
        /// Which.
        address: IpAddr,
        /// Why not.
        reason: ClaimConflict,
    },
    /// A living peer is not removed by accident.
    #[error("{0} is alive and connected: stop it first, or use --force")]
    StillAlive(PeerName),
    /// A peer does not remove itself.
    #[error("{0} is this peer itself: run `weave reset` here, then `weave rmpeer` on another node")]
    RemovesItself(PeerName),
    /// The ring does not know the peer.
    #[error("{0} owns no addresses, so there is nothing to take over: see `weave status ipam` for who does")]
    OwnsNothing(PeerName),
    /// This peer has been removed by the others.
    #[error(
        "this peer was removed from the mesh for good, and {heir} has its addresses: it joins again as a new peer in a \
         moment"
    )]
    Removed {
        /// Who inherited.
        heir: PeerName,
    },
    /// Somebody else acts as this peer, and gives out the same addresses.
    #[error("no address is given out while another agent would give out the same ones: {0}")]
    IdentityHeldTwice(String),
    /// Another request ended this one.
    #[error("the address for {0} was given up while it was awaited")]
    GivenUp(AttachmentKey),
}

/// Why an address cannot be claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimConflict {
    /// Not in the range.
    #[error("it is not in {0}")]
    Outside(Cidr),
    /// Never given out.
    #[error("it is the first or last address of {0}, which is never given out")]
    Reserved(Cidr),
    /// Somebody has it.
    #[error("{0} has it")]
    Held(AttachmentKey),
    /// It is another peer's to give.
    #[error("it belongs to the range of peer {0}: claim it there")]
    Foreign(PeerName),
    /// The key has another.
    #[error("it has {0} already")]
    HasAnother(IpAddr),
}

/// What is to be done, in this order. Nothing behind a `Persist` may be done before it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Make these changes durable, all or none.
    Persist(Vec<StoreOp>),
    /// Tell the neighbours, who may not know it yet.
    Gossip {
        /// What.
        state: Box<IpamState>,
        /// The [`digest`](crate::Ipam::digest) of it.
        digest: u64,
        /// Who has said all that is new in it, and tells its own neighbours; nobody if some of it comes from here.
        heard_from: Option<PeerName>,
    },
    /// Tell one neighbour, who knew less when it last spoke.
    GossipTo {
        /// Whom.
        peer: PeerName,
        /// What.
        state: Box<IpamState>,
        /// The [`digest`](crate::Ipam::digest) of it.
        digest: u64,
    },
    /// Tell one peer, over any number of hops.
    Directed {
        /// Whom.
        to: PeerName,
        /// What.
        body: IpamDirected,
    },
    /// Answer a request.
    Reply {
        /// Which.
        request: RequestId,
        /// What came of it.
        result: Result<Answer, RequestError>,
    },
    /// Somebody's ranges have changed: see [`Ipam::ranges`](crate::Ipam::ranges).
    RangesChanged,
    /// These allocations are void, since their addresses are another peer's now: cut off and report who holds
    /// them. Comes before the `Persist` that forgets them, and again if that was not reached.
    Lost(Vec<Allocation>),
    /// About how many addresses this peer could give away has changed.
    FreeHint(u64),
    /// Something an operator would tell a colleague.
    Notify(Notice),
}

/// One change of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreOp {
    /// What this peer knows and has promised; replaces what was put before.
    PutState(Box<IpamState>),
    /// Replaces the key's allocation, if it has one.
    PutAllocation(Allocation),
    /// The key has no allocation.
    DeleteAllocation(AttachmentKey),
    /// The key's container holds an address that is another peer's now. Replaces what was put before.
    PutLost(Allocation),
    /// The key's container does not hold a lost address any more.
    DeleteLost(AttachmentKey),
    /// Replaces the address's record, if it has one.
    PutFreed(Freed),
    /// The address is not remembered as freed.
    DeleteFreed(IpAddr),
    /// The last generation or order given; replaces what was put before.
    PutGeneration(u64),
}

/// A state change that belongs into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The first split is decided.
    Founded {
        /// The range.
        universe: Cidr,
        /// Its name.
        id: UniverseId,
        /// Who shares it.
        founders: BTreeSet<PeerName>,
    },
    /// This peer votes in the first split with these peers.
    Locked(BTreeSet<PeerName>),
    /// Part of this peer's space was given away.
    Gave {
        /// What.
        block: Cidr,
        /// To whom.
        to: PeerName,
    },
    /// This peer owns something else than before.
    OwnRanges(Vec<Span>),
    /// An address was given out in spite of its quarantine.
    QuarantineCut(IpAddr),
    /// A peer was removed for good.
    Removed {
        /// Which.
        peer: PeerName,
        /// Who takes its ranges.
        heir: PeerName,
    },
    /// The removal of a peer was given up, since it was seen again.
    RemovalWithdrawn(PeerName),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Founded { universe, id, founders } => {
                write!(f, "{universe} is shared out among {} (universe {:016x})", List(founders), id.0)
            }
            Self::Locked(members) => write!(f, "the first split is decided by {}", List(members)),
            Self::Gave { block, to } => write!(f, "gave {block} to {to}"),
            Self::OwnRanges(spans) if spans.is_empty() => f.write_str("this peer owns no addresses"),
            Self::OwnRanges(spans) => write!(f, "this peer owns {}", List(spans)),
            Self::QuarantineCut(address) => {
                write!(f, "{address} is given out again early, since no other address is free anywhere")
            }
            Self::Removed { peer, heir } => {
                write!(f, "{peer} is removed for good; {heir} takes its addresses")
            }
            Self::RemovalWithdrawn(peer) => {
                write!(f, "{peer} is not removed: it was seen again before the others had agreed")
            }
        }
    }
}

/// Things in a row.
pub(crate) struct List<T>(pub(crate) T);

impl<T: IntoIterator<Item: fmt::Display> + Copy> fmt::Display for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.into_iter().enumerate() {
            write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
