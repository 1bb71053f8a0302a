//! The words that this crate and its callers share.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weave_proto::peer::{
    Directed, Features, Hello, Message, Offer, PeerRecord, Refusal, RefusalCode, Routed, Terms, UniverseId,
};
use weave_proto::{Cidr, Nickname, PeerKey, PeerName, PeerUid};

use crate::Target;

/// Names an established connection. Given by the doer, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Names an attempt at a connection. Given by this crate, never reused: an answer to an attempt that no longer matters
/// is recognised by it and does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// Who made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The other end dialled.
    Inbound,
    /// This peer dialled.
    Outbound,
}

/// What this peer is and what it was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The short name, from the key.
    pub name: PeerName,
    /// The identity.
    pub key: PeerKey,
    /// The name that follows from a key. A record that says otherwise is not believed.
    pub name_of: fn(&PeerKey) -> PeerName,
    /// The incarnation.
    pub uid: PeerUid,
    /// The host name.
    pub nickname: Nickname,
    /// What the data plane can do.
    pub features: Features,
    /// Whom people want to be reached.
    pub targets: Vec<Target>,
    /// Whether peers that others report are dialled too.
    pub discovery: bool,
    /// How many links to have, unless the mesh would fall apart; none for no limit.
    pub conn_limit: Option<NonZeroUsize>,
    /// The port of targets that name none.
    pub port: u16,
    /// The range that is shared out; none without IPAM.
    pub range: Option<Cidr>,
    /// How many founders the first split is to have, if that was given.
    pub founders: Option<u16>,
    /// What the store held of other peers.
    pub known: Vec<KnownPeer>,
}

/// What other rooms want to be told to the mesh about this peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnFacts {
    /// The node's own address in the overlay, once it has one.
    pub overlay: Option<IpAddr>,
    /// About how many addresses could be given away.
    pub free: u64,
    /// The first split, once there is one.
    pub universe: Option<UniverseId>,
    /// How many founders it is to have, once that is known.
    pub founders: Option<u16>,
}

/// A connection whose ends have said hello and proven their keys.
#[derive(Debug, Clone)]
pub struct LinkUp {
    /// The name that the doer gave to it.
    pub link: LinkId,
    /// The attempt that it came from; none if inbound.
    pub dial: Option<DialId>,
    /// Who made it.
    pub direction: Direction,
    /// Where the other end is.
    pub addr: SocketAddr,
    /// The other end's proven key.
    pub key: PeerKey,
    /// The nonce in the hello that *this* end sent.
    pub nonce: u64,
    /// What the other end said.
    pub hello: Hello,
}

/// Why an attempt failed or a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The sentence for people.
    pub text: String,
    /// The other end's code, if it was the other end that refused in so many words.
    pub refused: Option<RefusalCode>,
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self { text, refused: None }
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is worth remembering of a peer whose agent is down: enough to keep the data path to its pods and to find it
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// The peer.
    pub name: PeerName,
    /// Its key.
    pub key: PeerKey,
    /// Its host name.
    pub nickname: Nickname,
    /// What its data plane can do.
    pub features: Features,
    /// Its own address in the overlay.
    pub overlay: Option<IpAddr>,
    /// Where it was last seen: by this peer, or else by others.
    pub underlay: Option<SocketAddr>,
}

/// A peer of the mesh, this one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerView<'a> {
    /// What it says about itself.
    pub record: &'a PeerRecord,
    /// Whether there is a path to it over links.
    pub reachable: bool,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Say this on new connections from now on, with a nonce drawn for each.
    Hello(Hello),
    /// Send a message.
    Send {
        /// On which link.
        link: LinkId,
        /// What.
        message: Message,
    },
    /// Try to reach an address, and answer with a link or a failure of that name.
    Dial {
        /// Names the attempt.
        dial: DialId,
        /// Where.
        addr: SocketAddr,
    },
    /// Look up a name and answer by [`Topology::handle_resolved`](crate::Topology::handle_resolved).
    Resolve(Target),
    /// Tell why, and close. The link counts as gone already: nothing is expected to follow.
    Close {
        /// Which link.
        link: LinkId,
        /// Why.
        refusal: Refusal,
    },
    /// These are the targets now: keep them.
    PersistTargets(Vec<Target>),
    /// These peers' last known facts are new: keep them, each in the place of an older one of its name.
    PersistPeers(Vec<KnownPeer>),
    /// A record or who is reachable has changed.
    PeersChanged,
    /// A link came or went.
    LinksChanged,
    /// The peer at the other end of this link knows something else about ownership than we do: send it our state.
    IpamDiffers {
        /// The link.
        link: LinkId,
    },
    /// A message for this peer has arrived.
    Directed(Directed),
    /// Bytes for this peer's data plane have arrived.
    Routed(Routed),
    /// A neighbour says what it demands of pod packets between the two.
    Terms {
        /// The neighbour.
        from: PeerName,
        /// What it demands.
        terms: Terms,
    },
    /// A neighbour's data plane says how to send sealed records to it with the keys of this link.
    Offer {
        /// The link.
        link: LinkId,
        /// The neighbour.
        from: PeerName,
        /// What it said.
        offer: Offer,
    },
    /// Something for the log.
    Notify(Notice),
}

/// Something that an operator would tell a colleague.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A link with a peer is up, and there was none.
    LinkUp {
        /// The peer.
        peer: PeerName,
        /// Its host name.
        nickname: Nickname,
        /// Where it is.
        addr: SocketAddr,
    },
    /// The last link with a peer is gone.
    LinkDown {
        /// The peer.
        peer: PeerName,
        /// Its host name.
        nickname: Nickname,
        /// Where it was.
        addr: SocketAddr,
        /// Why.
        text: String,
    },
    /// This peer wants no link with another, or has one too many.
    Refused {
        /// Where the other is.
        addr: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// A target does not answer. Said once for each new reason.
    DialFailed {
        /// Where.
        addr: SocketAddr,
        /// Why.
        text: String,
        /// When it is tried again; never if none.
        retry: Option<Duration>,
    },
    /// A target's name cannot be looked up. Said once for each new reason.
    Unresolved {
        /// The target.
        target: Target,
        /// Why.
        text: String,
    },
    /// Two keys claim one short name. The record that was known first stays.
    NameCollision {
        /// The name.
        name: PeerName,
        /// The key that it is known with.
        known: PeerKey,
        /// The key that claims it too.
        claimed: PeerKey,
        /// The host name of the claimant.
        nickname: Nickname,
    },
    /// Another running agent speaks as this peer: who and where, and the remedy.
    IdentityHeldTwice(String),
    /// Nobody else has spoken as this peer for a while.
    IdentityHeldOnce,
    /// A peer has not been reachable for so long that it is no longer counted as part of the mesh.
    PeerDeparted {
        /// The peer.
        peer: PeerName,
        /// Its host name.
        nickname: Nickname,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkUp { peer, nickname, addr } => {
                write!(f, "link with {peer}({nickname}) at {addr} is up")
            }
            Self::LinkDown { peer, nickname, addr, text } => {
                write!(f, "link with {peer}({nickname}) at {addr} is gone: {text}")
            }
            Self::Refused { addr, refusal } => {
                write!(f, "refused the connection with {addr}: {}", refusal.text)
            }
            Self::DialFailed { addr, text, retry: Some(retry) } => {
                write!(f, "cannot reach {addr}: {text}; next attempt in {:.1} s", retry.as_secs_f64())
            }
            Self::DialFailed { addr, text, retry: None } => {
                write!(f, "cannot reach {addr}: {text}; not tried again")
            }
            Self::Unresolved { target, text } => write!(f, "cannot look up {target}: {text}"),
            Self::NameCollision { name, known, claimed, nickname } => write!(
                f,
                "peer {nickname} claims the name {name} with key {claimed}, but that is the name of key {known}: stop \
                 one of the two, remove its data directory and start it again"
            ),
            Self::IdentityHeldTwice(text) => {
                write!(f, "until one of them ends, no address is given out here: {text}")
            }
            Self::IdentityHeldOnce => {
                f.write_str("no other agent has spoken as this peer for a minute: all is well again")
            }
            Self::PeerDeparted { peer, nickname } => {
                write!(f, "peer {peer}({nickname}) has been out of reach for a while and no longer counts")
            }
        }
    }
}

/// A message that was not believed. The link stays; what was good in the message was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RejectedGossip {
    /// The link is not, or no longer, one of ours.
    #[error("message on a link that is closed")]
    NoSuchLink,
    /// A record breaks the rules for records.
    #[error("peer {from} passed on a record of {about} that {what}")]
    Malformed {
        /// Who sent it.
        from: PeerName,
        /// Whose record it is.
        about: PeerName,
        /// What is wrong.
        what: &'static str,
    },
    /// A message has no place on an established link.
    #[error("peer {from} sent {what} on an established link")]
    Unexpected {
        /// Who sent it.
        from: PeerName,
        /// Which kind of message.
        what: &'static str,
    },
}

/// There is no path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no path to peer {0} over the links of the mesh")]
pub struct Unroutable(pub PeerName);
