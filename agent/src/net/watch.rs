//! Hears when somebody changes the kernel's state, so that nothing need be polled.
//!
//! The kernel multicasts changes to links, addresses, routes, neighbours (and forwarding entries) and per-link
//! settings. Most of them are none of our business: the underlay's neighbours change state every few seconds. Only
//! those about our objects wake the owner; what they say is not used, for the owner looks for itself. A lost
//! notification (the socket overflowed) counts as one about us.
//!
//! nftables multicasts every transaction, and kube-proxy's are many and large. Of these only what names our tables
//! and was not sent by the owner itself counts ([`FirewallWatch`]); how often it may wake the owner is the owner's
//! matter.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_REPLACE;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::net::RecvFlags;

use super::names::{BRIDGE, PORT_PREFIX, ROUTE_PROTOCOL, TUN, VXLAN, VXLAN6};
use super::transport::{Header, Netlink, attributes, split, word};
use super::{NetError, observe};
use crate::firewall::elements::{SUBSYSTEM, TABLE};

/// Groups: links, neighbours, IPv4 addresses, IPv4 routes, IPv4 settings (linux/rtnetlink.h, RTNLGRP_…).
const GROUPS: [u32; 5] = [1, 3, 5, 7, 24];

/// The group of links alone.
const LINKS: [u32; 1] = [1];

/// The group of nftables' transactions (linux/nfnetlink.h, NFNLGRP_NFTABLES).
const FIREWALL_GROUP: u32 = 7;

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const NEWNETCONF: u16 = 80;
const AF_BRIDGE: u8 = 7;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const NDA_DST: u16 = 1;
const NETCONFA_IFINDEX: u16 = 1;
/// Bytes read at once; a notification about a link is the longest, at about 2 KiB.
const BUFFER: usize = 32 * 1024;
/// "All links" in a notification about settings.
const ALL_LINKS: u32 = u32::MAX;

/// What a notification must be about to be about us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// The numbers of our links and ports.
    pub(super) links: BTreeSet<u32>,
    /// The neighbours that we keep.
    pub(super) neighbours: BTreeSet<IpAddr>,
}

/// A socket in the kernel's groups.
pub(super) struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Joins the groups. Must be called within the runtime that will wait.
    pub(super) fn open() -> Result<Self, NetError> {
        let socket = join(NETLINK_ROUTE, &GROUPS)
            .map_err(|error| NetError::Socket { what: "route notification", error })?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Waits until something about us has changed, or was lost.
    pub(super) async fn changed(&mut self, interest: &Interest) {
        until(&mut self.socket, &mut self.buffer, &mut |header, payload| interest.covers(header, payload))
            .await;
    }

    /// Reads what has come, and tells whether any of it was about us.
    pub(super) fn drain(&mut self, interest: &Interest) -> bool {
        drain(&self.socket, &mut self.buffer, &mut |header, payload| interest.covers(header, payload))
    }
}

/// Hears when the size of a link's packets changes: what fits into a tunnel over it changes at that moment, and what is
/// found out later was lost until then.
pub(crate) struct SizeWatch {
    socket: TokioSocket,
    buffer: Vec<u8>,
    /// The sizes, by the links' numbers.
    known: BTreeMap<u32, u32>,
}

impl SizeWatch {
    /// Joins the group, and looks at what there is. Must be called within the runtime that will wait.
    pub(crate) fn open() -> Result<Self, NetError> {
        let cannot = |what| move |error| NetError::Socket { what, error };
        let socket = join(NETLINK_ROUTE, &LINKS).map_err(cannot("link notification"))?;
        let mut route = Netlink::open(NETLINK_ROUTE).map_err(cannot("route netlink"))?;
        let known = observe::links(&mut route)?.values().map(|link| (link.index, link.mtu)).collect();
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER), known })
    }

    /// Waits until a link that was there has another size.
    pub(crate) async fn changed(&mut self) {
        let known = &mut self.known;
        until(&mut self.socket, &mut self.buffer, &mut |header, payload| {
            let Some(index) = word(payload, 4) else { return false };
            match (header.kind, mtu(payload)) {
                (NEWLINK, Some(mtu)) => known.insert(index, mtu).is_some_and(|before| before != mtu),
                (DELLINK, _) => {
                    // A port that leaves a bridge is announced so, too, by the bridge's family.
                    if payload.first() != Some(&AF_BRIDGE) {
                        known.remove(&index);
                    }
                    false
                }
                _ => false,
            }
        })
        .await;
    }
}

/// The size in a notification about a link.
fn mtu(payload: &[u8]) -> Option<u32> {
    let mut found = None;
    attributes(payload.get(16..).unwrap_or_default(), |kind, value| {
        if kind == IFLA_MTU {
            found = word(value, 0);
        }
    });
    found
}

/// A socket in the group of nftables' transactions.
pub(super) struct FirewallWatch {
    socket: TokioSocket,
    buffer: Vec<u8>,
    /// The number of the socket whose transactions are our own.
    own: u32,
}

impl FirewallWatch {
    /// Joins the group. `own` is the number of the socket from which our own transactions are sent. Must be called
    /// within the runtime that will wait.
    pub(super) fn open(own: u32) -> Result<Self, NetError> {
        let socket = join(NETLINK_NETFILTER, &[FIREWALL_GROUP])
            .map_err(|error| NetError::Socket { what: "netfilter notification", error })?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER), own })
    }

    /// Waits until somebody else has changed our tables, or a notification was lost.
    pub(super) async fn changed(&mut self) {
        let own = self.own;
        until(&mut self.socket, &mut self.buffer, &mut |header, payload| {
            foreign_change(own, header, payload)
        })
        .await;
    }

    /// Forgets what has come.
    pub(super) fn drain(&mut self) {
        drain(&self.socket, &mut self.buffer, &mut |_, _| false);
    }
}

/// Whether a notification is about our tables and of somebody else's doing. In every kind that names a table its name
/// is the first attribute.
fn foreign_change(own: u32, header: Header, payload: &[u8]) -> bool {
    let mut ours = false;
    if header.kind & 0xff00 == SUBSYSTEM && header.sender != own {
        attributes(payload.get(4..).unwrap_or_default(), |kind, value| {
            ours |= kind == 1 && value.strip_suffix(&[0]) == Some(TABLE.as_bytes());
        });
    }
    ours
}

fn join(protocol: isize, groups: &[u32]) -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    groups.iter().try_for_each(|&group| socket.socket_mut().add_membership(group))?;
    Ok(socket)
}

/// Waits for a notification that counts.
async fn until(
    socket: &mut TokioSocket,
    buffer: &mut Vec<u8>,
    counts: &mut impl FnMut(Header, &[u8]) -> bool,
) {
    loop {
        buffer.clear();
        let received = poll_fn(|context| socket.poll_recv(context, buffer)).await;
        // The one error of this socket is that it overflowed.
        let mut about_us = received.is_err();
        split(buffer, &mut |header, payload| about_us |= counts(header, payload));
        if drain(socket, buffer, counts) || about_us {
            return;
        }
    }
}

/// Reads what has come, and tells whether any of it counts.
fn drain(socket: &TokioSocket, buffer: &mut Vec<u8>, counts: &mut impl FnMut(Header, &[u8]) -> bool) -> bool {
    let mut about_us = false;
    buffer.resize(BUFFER, 0);
    loop {
        match rustix::net::recv(socket.socket_ref(), &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => split(&buffer[..length], &mut |header, payload| {
                about_us |= counts(header, payload);
            }),
            Err(rustix::io::Errno::AGAIN) => return about_us,
            Err(rustix::io::Errno::INTR) => {}
            // Overflow. The socket works on; what was lost may have been about us.
            Err(rustix::io::Errno::NOBUFS) => about_us = true,
            Err(_) => return true,
        }
    }
}

impl Interest {
    /// Whether a notification is about us.
    fn covers(&self, header: Header, payload: &[u8]) -> bool {
        let ours = |at| word(payload, at).is_some_and(|index| self.links.contains(&index));
        let family = payload.first().copied().unwrap_or(0);
        match header.kind {
            NEWLINK | DELLINK => ours(4) || has_our_name(payload.get(16..).unwrap_or_default()),
            NEWADDR | DELADDR => ours(4),
            // A route that replaces ours is announced with its own protocol, and ours is not announced as gone.
            NEWROUTE | DELROUTE => {
                payload.get(5) == Some(&ROUTE_PROTOCOL) || header.flags & NLM_F_REPLACE != 0
            }
            NEWNEIGH | DELNEIGH if family == AF_BRIDGE => ours(4),
            NEWNEIGH | DELNEIGH => ours(4) && self.is_kept(payload.get(12..).unwrap_or_default()),
            NEWNETCONF => {
                let mut about_us = false;
                attributes(payload.get(4..).unwrap_or_default(), |kind, value| {
                    let index = word(value, 0);
                    about_us |= kind == NETCONFA_IFINDEX
                        && index.is_some_and(|index| index == ALL_LINKS || self.links.contains(&index));
                });
                about_us
            }
            _ => false,
        }
    }

    /// Whether a neighbour is one that we keep. Others come and go as somebody scans the range.
    fn is_kept(&self, list: &[u8]) -> bool {
        let mut kept = false;
        attributes(list, |kind, value| {
            if let (NDA_DST, Ok(v4)) = (kind, <[u8; 4]>::try_from(value)) {
                kept |= self.neighbours.contains(&IpAddr::from(v4));
            }
        });
        kept
    }
}

fn has_our_name(list: &[u8]) -> bool {
    let mut ours = false;
    attributes(list, |kind, value| {
        if kind == IFLA_IFNAME {
            let name = std::str::from_utf8(value).unwrap_or_default().trim_end_matches('\0');
            ours |= [BRIDGE, VXLAN, VXLAN6, TUN].contains(&name) || name.starts_with(PORT_PREFIX);
        }
    });
    ours
}

#[cfg(test)]
mod tests;
