//! Forgets the connections of an address that no longer belongs to anybody.
//!
//! The kernel remembers connections for minutes (UDP) to days (established TCP). If an address goes from one pod to
//! another meanwhile, packets of the old pod's connections are taken for replies: they pass policies that the new
//! pod's own packets would not, and translations made for the old pod are applied to the new one. So the entries go
//! when the pod goes, well before the address is given out again.
//!
//! An entry is the pod's if the pod opened the connection (it is the source of the first direction) or answers it (it
//! is the source of the second, which is also true where a Service's address was translated to the pod's).

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rustix::io::Errno;

use super::elements::{Message, NESTED};
use super::inspect::GENERIC;
use crate::net::{Netlink, attributes, errno};

const CONNTRACK: u16 = 1 << 8;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;
const AF_INET: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// "Compare the source address" in a filter.
const FILTER_SOURCE: u32 = 1;

/// Up to so many addresses are asked for one by one, which walks the kernel's table twice an address but copies only
/// what is theirs; more of them are picked from a copy of everything.
const ASKED_SINGLY: usize = 2;

/// Removes the entries of these addresses, and returns how many there were.
///
/// # Errors
/// The kernel refused.
pub(crate) fn forget(netfilter: &mut Netlink, addresses: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
    let mut requests = Vec::new();
    if addresses.len() <= ASKED_SINGLY {
        for &address in addresses {
            requests.push(list(TUPLE_ORIGINAL, FILTER_ORIGINAL, address));
            requests.push(list(TUPLE_REPLY, FILTER_REPLY, address));
        }
    } else {
        requests.push(Message::new(GET, NLM_F_REQUEST | NLM_F_DUMP, AF_INET).finish());
    }
    // Kernels before 5.8 do not know the filter and list everything, and an entry may be found twice.
    let mut removals = BTreeSet::new();
    for request in requests {
        for reply in netfilter.dump(&request)? {
            let entry = reply.payload.get(GENERIC..).unwrap_or_default();
            let is_theirs =
                |direction| source(entry, direction).is_some_and(|from| addresses.contains(&from));
            if is_theirs(TUPLE_ORIGINAL) || is_theirs(TUPLE_REPLY) {
                removals.insert(removal(entry));
            }
        }
    }
    let removals: Vec<Vec<u8>> = removals.into_iter().collect();
    for answer in netfilter.requests(&removals)? {
        match answer {
            Err(error) if errno(&error) != Some(Errno::NOENT) => return Err(error),
            // Gone, or ended by itself meanwhile.
            _ => {}
        }
    }
    Ok(removals.len())
}

fn list(tuple: u16, filter: u16, address: Ipv4Addr) -> Vec<u8> {
    let mut message = Message::new(GET, NLM_F_REQUEST | NLM_F_DUMP, AF_INET);
    message.nest(tuple, |tuple| tuple.nest(1, |ip| ip.bytes(1, &address.octets())));
    message.nest(FILTER, |flags| {
        for direction in [FILTER_ORIGINAL, FILTER_REPLY] {
            let compared = if direction == filter { FILTER_SOURCE } else { 0 };
            flags.bytes(direction, &compared.to_ne_bytes());
        }
    });
    message.finish()
}

fn source(entry: &[u8], direction: u16) -> Option<Ipv4Addr> {
    let mut source = None;
    attributes(entry, |kind, tuple| {
        if kind != direction {
            return;
        }
        attributes(tuple, |kind, ip| {
            if kind == 1 {
                attributes(ip, |kind, value| {
                    if kind == 1 {
                        source = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
                    }
                });
            }
        });
    });
    source
}

/// The request that removes exactly this entry: by its first direction, its zone and its number.
fn removal(entry: &[u8]) -> Vec<u8> {
    let mut message = Message::new(DELETE, NLM_F_REQUEST | NLM_F_ACK, AF_INET);
    attributes(entry, |kind, value| match kind {
        TUPLE_ORIGINAL => message.bytes(kind | NESTED, value),
        ID | ZONE => message.bytes(kind, value),
        _ => {}
    });
    message.finish()
}
