//! The node's kernel state: the bridge, the tunnel device, addresses, routes, neighbours, forwarding entries,
//! kernel settings, and (with [`crate::firewall`]) the nftables tables.
//!
//! # Describe, diff, apply, verify
//!
//! Nothing here patches from memory. A [`NodeState`] says what is to be so; [`desired`] turns it into the complete
//! set of kernel objects; [`observe`] reads what there is; [`plan`] is a pure function from the two to an ordered
//! list of steps; [`netlink`] executes them; then everything is observed again and must leave nothing to do. First
//! start, a restart of the agent, a change of the mesh and the repair of what somebody deleted all take this one
//! road, so the road is well trodden. The one shortcut is [`Node::attach`], which writes exactly the steps that the
//! plan would have found for one pod, without reading the rest of the machine first: an ADD waits for it.
//!
//! # What is ours
//!
//! An object is ours by its name (links, tables), by being on a link of ours (addresses of the universe, neighbours,
//! forwarding entries), or by the routing protocol number [`names::ROUTE_PROTOCOL`] (routes). Everything else
//! belongs to somebody else and is neither changed nor removed: a foreign route in the way is reported, not
//! replaced.
//!
//! # Never around the overlay
//!
//! `unreachable UNIVERSE` with the worst metric is the first thing written and the last thing removed, and only
//! `reset` removes it. Whatever else goes missing, a packet for a pod finds this route before the default route.
//! The firewall says the same a second time (see [`crate::firewall::render`]).
//!
//! # Who runs what
//!
//! One thread, `weave-net`, owns the netlink sockets and does all of this in order; netlink calls are synchronous
//! (the kernel has done the work when `send` returns), so they would block a shared executor. The thread ends when
//! the last [`Node`] handle is dropped. It changes nothing in the kernel when it ends: pods talk on.

pub mod desired;
pub mod mtu;
pub mod names;
pub mod netlink;
pub mod node;
pub mod observe;
pub mod overlap;
pub mod plan;
pub mod probe;
pub mod reset;
pub mod sysctl;

mod error;
mod messages;
mod owner;
mod pods;
mod state;
mod transport;
mod usage;
mod watch;

pub use error::NetError;
pub use node::{Facts, Health, Node, NodeSettings};
pub use state::{ForwardAccept, HostOptions, NodeState, PeerPath, SealedPath};

pub(crate) use transport::{Netlink, Reply, attributes, errno};
pub(crate) use usage::TunnelUse;
pub(crate) use watch::SizeWatch;

#[cfg(test)]
mod tests;
