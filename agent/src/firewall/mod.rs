//! The nftables tables of the agent: `inet weave` (what is routed) and `bridge weave` (the guard at the pods' ports).
//! Ours alone; nobody else's table is read or written (with the one exception in [`foreign`], which says why).
//!
//! # Two speeds
//!
//! The *skeleton* (chains, rules, counters, the sets' types) changes when the node's address or an option changes:
//! almost never. It is rendered whole ([`render`]) and replaced in one transaction by the `nft` program
//! ([`program`]), which understands the language that people read and write, and which every version of the kernel
//! was tested with.
//! The *elements* (pods, peers, their ranges) change all the time, some of them while a container runtime waits.
//! They are a difference of two sets, written by a small encoder of our own ([`elements`]) in one transaction
//! without starting a program.
//!
//! # How a change by somebody else is noticed
//!
//! The kernel counts transactions (the generation id); the owner reads it once a second, which costs one system
//! call, and looks closer only when it moved ([`inspect`]). What it then compares is the digest of the kernel's own
//! description of our tables with the digest taken right after we applied them. That digest, and that of the text
//! that was applied, are kept *in the kernel*, as the name of an empty counter (the seal): so an agent that restarts
//! knows that all is as it should be, without a copy of the kernel's description that could be stale, without
//! comparing `nft`'s output (which differs between versions) with its input, and without touching anything.

pub(crate) mod conntrack;
pub mod elements;
pub mod foreign;
pub mod inspect;
pub mod program;
pub mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use weave_proto::local::cni::PodPort;
use weave_proto::{Cidr, Span};

pub use elements::{Element, Family, RawElement, Set};
pub use inspect::{Count, Counters};
pub use render::{Drop, Facts};

use crate::net::NodeState;
use crate::net::names::Mac;

/// What the tables are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// What the skeleton is rendered from.
    pub facts: Facts,
    /// The digest of the rendered skeleton.
    pub text: Digest,
    /// What is in each set.
    pub sets: BTreeMap<Set, BTreeSet<Element>>,
}

/// What the tables are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The seal, if there is one (and only one).
    pub seal: Option<Seal>,
    /// The digest of the kernel's description of the tables now; none if one of them is missing.
    pub kernel: Option<Digest>,
    /// What is in each set.
    pub sets: BTreeMap<Set, BTreeSet<RawElement>>,
}

/// The first half of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

/// What was applied: the digest of the text, and that of what the kernel made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// The digest of the skeleton's text.
    pub text: Digest,
    /// The digest of the kernel's description right after it was applied.
    pub kernel: Digest,
}

/// One change to the tables.
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    /// Replace both tables, elements included, in one transaction.
    Replace {
        /// What to render and apply.
        desired: Box<Desired>,
        /// Why.
        reason: &'static str,
    },
    /// Add and remove elements in one transaction.
    Elements {
        /// What is missing.
        add: BTreeSet<(Set, RawElement)>,
        /// What is too much.
        remove: BTreeSet<(Set, RawElement)>,
    },
}

/// As many blocks are let in by one look-up: twice what one universe has, and half of what the set holds.
const BLOCKS_AT_MOST: usize = 512;

/// The tables for a state.
#[must_use]
pub fn desired(state: &NodeState) -> Desired {
    let facts = Facts::of(state);
    let text = Digest::of([facts.skeleton().as_bytes()]);
    let mut sets: BTreeMap<Set, BTreeSet<Element>> = Set::ALL.map(|set| (set, BTreeSet::new())).into();
    let guests = state.pods.iter().filter(|pod| !state.universe.contains(pod.address)).filter_map(guest);
    let elements = state
        .pods
        .iter()
        .flat_map(|pod| pod_elements(pod, facts.mac))
        .chain(guests)
        .chain(peer_elements(state));
    for element in elements {
        sets.entry(element.set()).or_default().insert(element);
    }
    if let Some(blocks) = sets.get_mut(&Set::Blocks) {
        // More than the universe has is only while peers contradict each other; the rest goes the longer way.
        if let Some(surplus) = blocks.iter().nth(BLOCKS_AT_MOST).cloned() {
            drop(blocks.split_off(&surplus));
        }
    }
    Desired { facts, text, sets }
}

/// What lets a pod's packets in. `gateway` is the bridge's MAC address.
pub fn pod_elements(pod: &PodPort, gateway: Mac) -> impl Iterator<Item = Element> + use<> {
    let (port, mac) = (pod.host_interface.clone(), Mac(pod.mac));
    let IpAddr::V4(address) = pod.address else { return Vec::new().into_iter() };
    vec![
        Element::Frame { port: port.clone(), gateway, mac, address },
        Element::Pod { port: port.clone(), mac, address },
        Element::PortMac { port: port.clone(), mac },
        Element::Port { port },
    ]
    .into_iter()
}

/// What has a pod's packets to the outside masqueraded although its address is not of the universe.
pub fn guest(pod: &PodPort) -> Option<Element> {
    if let IpAddr::V4(address) = pod.address { Some(Element::Guest(address)) } else { None }
}

/// What lets a peer's packets in: its underlay address outside, its ranges inside.
fn peer_elements(state: &NodeState) -> impl Iterator<Item = Element> + '_ {
    state.peers.iter().chain(&state.probed).flat_map(|path| {
        let mac = Mac(path.peer.mac());
        let mut spans: Vec<Span> = path.ranges.iter().copied().map(Span::from).collect();
        // The peer's own address is normally in one of its ranges, but need not stay there when ranges move.
        spans.extend(Span::new(path.overlay, path.overlay));
        let spans = merged(spans);
        let blocks: Vec<_> = spans.iter().flat_map(|&span| whole_blocks(state.universe, span)).collect();
        spans
            .into_iter()
            .filter_map(move |span| Element::source(mac, span))
            .chain(blocks.into_iter().map(move |first| Element::Block { mac, first }))
            .chain(std::iter::once(Element::peer(path.underlay)))
    })
}

/// The bits of an address that tell its block: the universe is cut into 256 blocks of equal size, so that whole ones
/// can be looked up as one value, where a range of any length needs a search. Peers own runs of them as long as the
/// range is not cut into smaller parts.
#[must_use]
pub fn block_mask(universe: Cidr) -> Ipv4Addr {
    Ipv4Addr::from(!block_rest(universe))
}

/// The bits of an address within its block.
fn block_rest(universe: Cidr) -> u32 {
    u32::MAX.checked_shr(u32::from(universe.prefix()) + 8).unwrap_or(0)
}

/// The first addresses of the blocks that lie in a span as a whole.
fn whole_blocks(universe: Cidr, span: Span) -> Vec<Ipv4Addr> {
    let (IpAddr::V4(first), IpAddr::V4(last)) = (span.first(), span.last()) else { return Vec::new() };
    let (first, last) = (u64::from(u32::from(first)), u64::from(u32::from(last)));
    let rest = u64::from(block_rest(universe));
    let starts = std::iter::successors(Some((first + rest) & !rest), |start| Some(start + rest + 1));
    starts
        .take_while(|start| start + rest <= last)
        .filter_map(|start| u32::try_from(start).ok().map(Ipv4Addr::from))
        .collect()
}

/// The same addresses in the fewest spans: an interval set refuses overlapping elements.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    use weave_proto::addr::position;
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if position(span.first()) <= position(last.last()).saturating_add(1) => {
                let end = span.last().max(last.last());
                *last = Span::new(last.first(), end).unwrap_or(*last);
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// The change that must come first: what lets packets in, or the tables themselves.
pub fn admissions(desired: &Desired, observed: &Observed) -> impl Iterator<Item = Change> + use<> {
    let change = match reason_to_replace(desired, observed) {
        Some(reason) => Some(Change::Replace { desired: Box::new(desired.clone()), reason }),
        None => elements_change(desired, observed, true),
    };
    change.into_iter()
}

/// The change that must come last: what no longer lets packets in.
pub fn expulsions(desired: &Desired, observed: &Observed) -> impl Iterator<Item = Change> + use<> {
    let change = match reason_to_replace(desired, observed) {
        Some(_) => None,
        None => elements_change(desired, observed, false),
    };
    change.into_iter()
}

fn reason_to_replace(desired: &Desired, observed: &Observed) -> Option<&'static str> {
    match (observed.seal, observed.kernel) {
        (_, None) => Some("missing"),
        (None, Some(_)) => Some("not sealed by this agent"),
        (Some(seal), Some(_)) if seal.text != desired.text => Some("of another state"),
        (Some(seal), Some(kernel)) if seal.kernel != kernel => Some("changed by somebody else"),
        (Some(_), Some(_)) => None,
    }
}

fn elements_change(desired: &Desired, observed: &Observed, adding: bool) -> Option<Change> {
    let (mut add, mut remove) = (BTreeSet::new(), BTreeSet::new());
    for (&set, elements) in &desired.sets {
        let wanted: BTreeSet<RawElement> = elements.iter().map(Element::encode).collect();
        let nothing = BTreeSet::new();
        let found = observed.sets.get(&set).unwrap_or(&nothing);
        if adding {
            // What overlaps an element to be added must go in the same transaction.
            let missing: Vec<_> = wanted.difference(found).cloned().collect();
            let surplus = found.difference(&wanted).filter(|old| missing.iter().any(|new| old.overlaps(new)));
            remove.extend(surplus.map(|element| (set, element.clone())));
            add.extend(missing.into_iter().map(|element| (set, element)));
        } else {
            let missing: Vec<_> = wanted.difference(found).collect();
            let surplus =
                found.difference(&wanted).filter(|old| !missing.iter().any(|new| old.overlaps(new)));
            remove.extend(surplus.map(|element| (set, element.clone())));
        }
    }
    (!add.is_empty() || !remove.is_empty()).then_some(Change::Elements { add, remove })
}

impl Digest {
    /// The digest of some bytes, given in pieces.
    #[must_use]
    pub fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        pieces.into_iter().for_each(|piece| context.update(piece));
        let mut short = [0; 16];
        short.copy_from_slice(&context.finish().as_ref()[..16]);
        Self(short)
    }

    fn parse(text: &str) -> Option<Self> {
        let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Seal {
    /// How the seal's name begins.
    const PREFIX: &'static str = "seal_";

    /// The seal with this name, if it is one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (text, kernel) = name.strip_prefix(Self::PREFIX)?.split_once('_')?;
        Some(Self { text: Digest::parse(text)?, kernel: Digest::parse(kernel)? })
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}_{}", Self::PREFIX, self.text, self.kernel)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace { reason, .. } => write!(f, "replace the nftables tables, which are {reason}"),
            Self::Elements { add, remove } => {
                write!(f, "change nftables set elements (add {}, remove {})", add.len(), remove.len())
            }
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
