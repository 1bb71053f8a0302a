//! This node as the kernel should see it, and the address that it asks for itself.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use weave_overlay::ForwardingTable;
use weave_proto::local::cni::PodPort;
use weave_proto::{Cidr, PeerKey, PeerName};

/// How long to wait before the node asks again for an address of its own. The answer to a refused request is
/// either news from the mesh, which comes when it comes, or an operator, who takes longer than this.
pub(crate) const EXPOSE_RETRY: Duration = Duration::from_secs(2);

/// The node as the kernel should see it. Equal views need no work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The range that is shared out.
    pub universe: Cidr,
    /// The node's own address, once it has one.
    pub address: Option<IpAddr>,
    /// The ranges that this peer owns, in aligned blocks, ascending.
    pub own: Vec<Cidr>,
    /// How the other peers are reached.
    pub table: ForwardingTable,
    /// The ports of this node's pods that hold an address of ours, by host interface.
    pub pods: Vec<PodPort>,
}

/// A peer that the mesh reaches and no link does: only through others can keys be agreed on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distant {
    /// The peer.
    pub name: PeerName,
    /// Its key, by its own records.
    pub key: PeerKey,
    /// Where others see it, or where it was last: it may be reached there by what is not a link.
    pub underlay: Option<IpAddr>,
    /// The neighbours that might relay to it.
    pub relays: Vec<PeerName>,
}

/// How far the node has come with an address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expose {
    /// A request for it is with the allocator.
    Asked,
    /// The allocator refused; ask again then.
    Again(Instant),
    /// The node has it.
    Held(IpAddr),
}
