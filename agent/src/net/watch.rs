//! Hears when somebody changes the kernel's state, so that nothing need be polled.
//!
//! The kernel multicasts changes to links, addresses, routes, neighbours (and forwarding entries) and per-link
//! settings. Most of them are none of our business: the underlay's neighbours change state every few seconds. Only
//! those about our objects wake the owner; what they say is not used, for the owner looks for itself. A lost
//! notification (the socket overflowed) counts as one about us.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_REPLACE;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::net::RecvFlags;

use super::NetError;
use super::names::{BRIDGE, PORT_PREFIX, ROUTE_PROTOCOL, TUN, VXLAN, VXLAN6};
use super::transport::{Header, attributes, split, word};

/// Groups: links, neighbours, IPv4 addresses, IPv4 routes, IPv4 settings (linux/rtnetlink.h, RTNLGRP_…).
const GROUPS: [u32; 5] = [1, 3, 5, 7, 24];

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
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            GROUPS.iter().try_for_each(|&group| socket.socket_mut().add_membership(group))?;
            Ok(socket)
        };
        let socket = open().map_err(|error| NetError::Socket { what: "route notification", error })?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Waits until something about us has changed, or was lost.
    pub(super) async fn changed(&mut self, interest: &Interest) {
        loop {
            self.buffer.clear();
            let received = poll_fn(|context| self.socket.poll_recv(context, &mut self.buffer)).await;
            // The one error of this socket is that it overflowed.
            let mut about_us = received.is_err();
            split(&self.buffer, &mut |header, payload| about_us |= interest.covers(header, payload));
            if self.drain(interest) || about_us {
                return;
            }
        }
    }

    /// Reads what has come, and tells whether any of it was about us.
    pub(super) fn drain(&mut self, interest: &Interest) -> bool {
        let mut about_us = false;
        self.buffer.resize(BUFFER, 0);
        loop {
            match rustix::net::recv(self.socket.socket_ref(), &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => split(&self.buffer[..length], &mut |header, payload| {
                    about_us |= interest.covers(header, payload);
                }),
                Err(rustix::io::Errno::AGAIN) => return about_us,
                Err(rustix::io::Errno::INTR) => {}
                // Overflow. The socket works on; what was lost may have been about us.
                Err(rustix::io::Errno::NOBUFS) => about_us = true,
                Err(_) => return true,
            }
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
