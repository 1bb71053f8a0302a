//! Elements of our sets, and the transactions that add and remove them: a small encoder of the kernel's nfnetlink
//! messages, since starting a program for each pod would cost more than all the rest of an ADD.
//!
//! ```text
//! batch begin │ NEWSETELEM │ DELSETELEM │ … │ batch end       one datagram, one transaction
//!              └ nfgenmsg(family) │ table │ set │ elements ─ list ─ elem ┬ key ─ value
//!                                                                      └ key end ─ value (ranges)
//! ```
//! A key of several fields is their concatenation, each padded to four bytes: an interface name is 16 bytes, a MAC
//! address 6 and 2 of padding.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};
use weave_proto::Span;

use crate::net::names::Mac;

/// The name of both tables.
pub const TABLE: &str = "weave";

/// The number of nftables among netfilter's subsystems, as it stands in a message's type.
pub(crate) const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
pub(super) const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const DELTABLE: u16 = SUBSYSTEM | 2;
pub(super) const NEWOBJ: u16 = SUBSYSTEM | 18;
pub(super) const NESTED: u16 = 0x8000;
const OBJECT_COUNTER: u32 = 1;
/// Elements in one message: a nested list's length is a 16-bit number, and an element takes at most 100 bytes.
const ELEMENTS_A_MESSAGE: usize = 256;
/// Bytes of an interface name in a key.
const NAME: usize = 16;
/// The type of a frame that carries an IPv4 packet (RFC 894).
const IPV4: [u8; 2] = [8, 0];

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// What is routed, IPv4 and IPv6.
    Inet,
    /// What is bridged.
    Bridge,
}

impl Family {
    /// Both of ours.
    pub const ALL: [Self; 2] = [Self::Inet, Self::Bridge];

    /// The family's name in nft.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }

    /// The family's number in the kernel (NFPROTO_…).
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Bridge => 7,
        }
    }
}

/// A set of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// How each pod's packets begin: what the guard lets in at once.
    Frames,
    /// Port, MAC and address of each pod, which its ARP must have.
    Pods,
    /// Port and MAC of each pod, to tell a forged MAC from a forged address.
    PortMacs,
    /// The ports of pods, to tell an unknown port from a forged MAC.
    Ports,
    /// Underlay addresses of peers.
    Peers4,
    /// The same over IPv6.
    Peers6,
    /// Tunnel end point's MAC and address range of each peer: what may come out of the tunnel.
    Sources,
    /// Tunnel end point's MAC of each peer and the first address of each whole block ([`super::block_mask`]) of its
    /// ranges. What is here is also in [`Set::Sources`], and is found here much faster.
    Blocks,
    /// Addresses of this node's pods that are not of the universe.
    Guests,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Frames,
        Self::Pods,
        Self::PortMacs,
        Self::Ports,
        Self::Peers4,
        Self::Peers6,
        Self::Sources,
        Self::Blocks,
        Self::Guests,
    ];

    /// The set's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Pods => "pods",
            Self::PortMacs => "port_macs",
            Self::Ports => "ports",
            Self::Peers4 => "peers4",
            Self::Peers6 => "peers6",
            Self::Sources => "sources",
            Self::Blocks => "blocks",
            Self::Guests => "guests",
        }
    }

    /// The set's type, in nft's words. With a size the kernel takes a table that does not grow, which is faster; a
    /// full one refuses, so the sizes are far above what can be: of peers more than a mesh has, of blocks twice what is
    /// ever asked for, since new ones come before old ones go.
    #[must_use]
    pub const fn type_text(self) -> &'static str {
        match self {
            Self::Frames => "typeof iifname . @ll,0,112 . @nh,96,32",
            Self::Pods => "type ifname . ether_addr . ipv4_addr",
            Self::PortMacs => "type ifname . ether_addr",
            Self::Ports => "type ifname",
            Self::Peers4 => "type ipv4_addr; size 8192",
            Self::Guests => "type ipv4_addr",
            Self::Peers6 => "type ipv6_addr",
            Self::Sources => "type ether_addr . ipv4_addr; flags interval",
            Self::Blocks => "typeof @ll,48,64 . @nh,96,32; size 1024",
        }
    }

    /// The table it is in.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Frames | Self::Pods | Self::PortMacs | Self::Ports => Family::Bridge,
            Self::Peers4 | Self::Peers6 | Self::Sources | Self::Blocks | Self::Guests => Family::Inet,
        }
    }
}

/// An element of a set of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// How the packets of a pod begin: a frame's header, as one number, and the source address.
    Frame {
        /// The pod's host interface.
        port: String,
        /// Whom its packets are for: the bridge.
        gateway: Mac,
        /// Its MAC address.
        mac: Mac,
        /// Its address.
        address: Ipv4Addr,
    },
    /// A pod.
    Pod {
        /// Its host interface.
        port: String,
        /// Its MAC address.
        mac: Mac,
        /// Its address.
        address: Ipv4Addr,
    },
    /// A pod's port and MAC address.
    PortMac {
        /// Its host interface.
        port: String,
        /// Its MAC address.
        mac: Mac,
    },
    /// A pod's port.
    Port {
        /// Its host interface.
        port: String,
    },
    /// A peer's underlay address.
    Peer4(Ipv4Addr),
    /// A peer's underlay address.
    Peer6(Ipv6Addr),
    /// Addresses that a peer's packets may come from.
    Source {
        /// The peer's tunnel end point.
        mac: Mac,
        /// The first address.
        first: Ipv4Addr,
        /// The last address.
        last: Ipv4Addr,
    },
    /// A whole block of addresses that a peer's packets may come from.
    Block {
        /// The peer's tunnel end point.
        mac: Mac,
        /// The block's first address.
        first: Ipv4Addr,
    },
    /// The address of a pod of this node that is not of the universe.
    Guest(Ipv4Addr),
}

/// An element as the kernel keeps it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawElement {
    /// The key, or the first of an interval.
    pub key: Vec<u8>,
    /// The last of an interval; the key itself where there is none.
    pub end: Vec<u8>,
}

impl RawElement {
    /// Whether both hold some key. Fields are compared as one number, which is exact for us: all but the last field
    /// of an interval are single values.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.key <= other.end && other.key <= self.end
    }
}

impl fmt::Debug for RawElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        write!(f, "{}-{}", hex(&self.key), hex(&self.end))
    }
}

impl Element {
    /// The element for a peer's underlay address.
    #[must_use]
    pub fn peer(underlay: IpAddr) -> Self {
        // An IPv4 address in IPv6 clothes (as a dual-stack socket reports it) is seen bare by the firewall.
        match underlay.to_canonical() {
            IpAddr::V4(v4) => Self::Peer4(v4),
            IpAddr::V6(v6) => Self::Peer6(v6),
        }
    }

    /// The element for a peer's addresses; none for IPv6 ones, which the overlay does not carry.
    #[must_use]
    pub const fn source(mac: Mac, span: Span) -> Option<Self> {
        match (span.first(), span.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some(Self::Source { mac, first, last }),
            _ => None,
        }
    }

    /// The set it belongs to.
    #[must_use]
    pub const fn set(&self) -> Set {
        match self {
            Self::Frame { .. } => Set::Frames,
            Self::Pod { .. } => Set::Pods,
            Self::PortMac { .. } => Set::PortMacs,
            Self::Port { .. } => Set::Ports,
            Self::Peer4(_) => Set::Peers4,
            Self::Peer6(_) => Set::Peers6,
            Self::Source { .. } => Set::Sources,
            Self::Block { .. } => Set::Blocks,
            Self::Guest(_) => Set::Guests,
        }
    }

    /// The element as the kernel keeps it.
    #[must_use]
    pub fn encode(&self) -> RawElement {
        let key = match self {
            Self::Frame { port, gateway, mac, address } => {
                let header = [&gateway.0[..], &mac.0, &IPV4, &[0, 0]].concat();
                [name_field(port), header, address.octets().to_vec()].concat()
            }
            Self::Pod { port, mac, address } => {
                [name_field(port), mac_field(*mac), address.octets().to_vec()].concat()
            }
            Self::PortMac { port, mac } => [name_field(port), mac_field(*mac)].concat(),
            Self::Port { port } => name_field(port),
            Self::Peer4(address) | Self::Guest(address) => address.octets().to_vec(),
            Self::Peer6(address) => address.octets().to_vec(),
            Self::Block { mac, first } => [&mac.0[..], &IPV4, &first.octets()].concat(),
            Self::Source { mac, first, last } => {
                let field = |address: &Ipv4Addr| [mac_field(*mac), address.octets().to_vec()].concat();
                return RawElement { key: field(first), end: field(last) };
            }
        };
        RawElement { end: key.clone(), key }
    }
}

/// The element in nft's words.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { port, gateway, mac, address } => {
                write!(f, "\"{port}\" . {} . {:#010x}", number(&[&gateway.0, &mac.0]), u32::from(*address))
            }
            Self::Pod { port, mac, address } => write!(f, "\"{port}\" . {mac} . {address}"),
            Self::PortMac { port, mac } => write!(f, "\"{port}\" . {mac}"),
            Self::Port { port } => write!(f, "\"{port}\""),
            Self::Peer4(address) | Self::Guest(address) => write!(f, "{address}"),
            Self::Peer6(address) => write!(f, "{address}"),
            Self::Block { mac, first } => {
                write!(f, "{} . {:#010x}", number(&[&mac.0]), u32::from(*first))
            }
            Self::Source { mac, first, last } if first == last => write!(f, "{mac} . {first}"),
            Self::Source { mac, first, last } => write!(f, "{mac} . {first}-{last}"),
        }
    }
}

/// MAC addresses and the type of what follows, as they stand in the header of a frame with an IPv4 packet, as one number.
fn number(macs: &[&[u8; 6]]) -> String {
    let bytes = macs.iter().copied().flatten().chain(&IPV4);
    bytes.fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn name_field(name: &str) -> Vec<u8> {
    let mut field = name.as_bytes().to_vec();
    field.resize(NAME, 0);
    field
}

fn mac_field(mac: Mac) -> Vec<u8> {
    [&mac.0[..], &[0, 0]].concat()
}

/// The messages of one transaction that removes and adds elements, in this order.
#[must_use]
pub fn transaction<'a>(
    add: impl IntoIterator<Item = &'a (Set, RawElement)>,
    remove: impl IntoIterator<Item = &'a (Set, RawElement)>,
) -> Vec<Vec<u8>> {
    let mut body = Vec::new();
    for (kind, flags, list) in [
        (DELSETELEM, 0, remove.into_iter().collect::<Vec<_>>()),
        (NEWSETELEM, NLM_F_CREATE, add.into_iter().collect()),
    ] {
        for of_set in list.chunk_by(|one, next| one.0 == next.0) {
            for chunk in of_set.chunks(ELEMENTS_A_MESSAGE) {
                body.push(elements_message((kind, flags), chunk));
            }
        }
    }
    batch(body)
}

/// The messages of a transaction that writes the seal: an empty counter with this name in the inet table.
#[must_use]
pub fn seal(name: &str) -> Vec<Vec<u8>> {
    let mut message = Message::new(NEWOBJ, NLM_F_REQUEST | NLM_F_CREATE, Family::Inet.number());
    message.text(1, TABLE);
    message.text(2, name);
    message.bytes(3, &OBJECT_COUNTER.to_be_bytes());
    // The counter's (empty) data.
    message.bytes(4 | NESTED, &[]);
    batch(vec![message.finish()])
}

/// The messages of a transaction that removes one of the tables, which fails where there is none.
#[must_use]
pub fn delete_table(family: Family) -> Vec<Vec<u8>> {
    let mut message = Message::new(DELTABLE, NLM_F_REQUEST, family.number());
    message.text(1, TABLE);
    batch(vec![message.finish()])
}

fn elements_message((kind, flags): (u16, u16), elements: &[&(Set, RawElement)]) -> Vec<u8> {
    let set = elements.first().map_or(Set::Pods, |element| element.0);
    let mut message = Message::new(kind, NLM_F_REQUEST | flags, set.family().number());
    message.text(1, TABLE);
    message.text(2, set.name());
    message.nest(3, |list| {
        for (_, element) in elements.iter().copied() {
            list.nest(1, |item| {
                item.nest(1, |key| key.bytes(1, &element.key));
                if set == Set::Sources {
                    item.nest(10, |end| end.bytes(1, &element.end));
                }
            });
        }
    });
    message.finish()
}

/// Wraps messages into a transaction. Only the last of them asks for an answer; errors are answered in any case.
fn batch(mut body: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    if let Some(flags) = body.last_mut().and_then(|last| last.get_mut(6..8)) {
        let asking = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
        flags.copy_from_slice(&asking.to_ne_bytes());
    }
    let edge = |kind| {
        let mut message = Message::new(kind, NLM_F_REQUEST, 0);
        // The subsystem that the transaction is for, in network order.
        message.0[18..20].copy_from_slice(&(SUBSYSTEM >> 8).to_be_bytes());
        message.finish()
    };
    body.insert(0, edge(BATCH_BEGIN));
    body.push(edge(BATCH_END));
    body
}

/// A netfilter message under construction.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Header and `nfgenmsg`; the length is filled in at the end, the sequence number by the transport.
    pub(crate) fn new(kind: u16, flags: u16, family: u8) -> Self {
        Self::with_header(kind, flags, [family, 0, 0, 0])
    }

    /// The same with the four bytes in which other families of netlink differ.
    pub(crate) fn with_header(kind: u16, flags: u16, header: [u8; 4]) -> Self {
        let mut bytes = vec![0; 20];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[16..].copy_from_slice(&header);
        Self(bytes)
    }

    /// Bytes that are no attribute, where a family wants some.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat());
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let at = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(at);
    }

    pub(super) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let at = self.open(kind | NESTED);
        inside(self);
        self.close(at);
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        // Lists are cut so that this cannot overflow (ELEMENTS_A_MESSAGE).
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests;
