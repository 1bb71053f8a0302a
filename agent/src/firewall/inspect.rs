//! What the kernel says about our tables.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use rustix::io::Errno;

use super::elements::{Family, Message, NEWOBJ, NEWSETELEM, TABLE};
use super::{Digest, Drop, Observed, RawElement, Seal, Set};
use crate::net::{NetError, Netlink};

const NEWTABLE: u16 = 10 << 8;
const GETTABLE: u16 = NEWTABLE | 1;
pub(super) const NEWCHAIN: u16 = NEWTABLE | 3;
pub(super) const GETCHAIN: u16 = NEWTABLE | 4;
const NEWRULE: u16 = NEWTABLE | 6;
const GETRULE: u16 = NEWTABLE | 7;
const NEWSET: u16 = NEWTABLE | 9;
const GETSET: u16 = NEWTABLE | 10;
const GETSETELEM: u16 = NEWTABLE | 13;
const GETGEN: u16 = NEWTABLE | 16;
const GETOBJ: u16 = NEWTABLE | 19;
/// Bytes of `nfgenmsg` before a netfilter message's attributes.
pub(super) const GENERIC: usize = 4;

/// Which attributes of an object describe it, as opposed to counting it, numbering it or pointing at it:
/// of a table name and flags; of a chain table, name, hook, policy, type and flags; of a rule table, chain,
/// expressions and comment; of a set table, name, flags, and the types of key and data.
const DESCRIBING: [(u16, u16, &[u16]); 4] = [
    (GETTABLE, NEWTABLE, &[1, 2]),
    (GETCHAIN, NEWCHAIN, &[1, 3, 4, 5, 7, 10]),
    (GETRULE, NEWRULE, &[1, 2, 4, 7]),
    (GETSET, NEWSET, &[1, 2, 3, 4, 5, 6, 7, 15]),
];

/// Packets and bytes of a counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the counters of drops say.
pub type Counters = BTreeMap<Drop, Count>;

/// The number of the last transaction that changed any table of this network namespace.
///
/// # Errors
/// The kernel could not be asked.
pub(crate) fn generation(netfilter: &mut Netlink) -> Result<u32, NetError> {
    let observe = |error| NetError::Observe { what: "the nftables generation", error };
    let reply = netfilter.get(&Message::new(GETGEN, NLM_F_REQUEST, 0).finish()).map_err(observe)?;
    let mut generation = None;
    crate::net::attributes(reply.payload.get(GENERIC..).unwrap_or_default(), |kind, value| {
        if kind == 1 {
            generation = value.try_into().ok().map(u32::from_be_bytes);
        }
    });
    generation.ok_or_else(|| observe(io::ErrorKind::InvalidData.into()))
}

/// Everything about our tables that could differ from what is wanted.
///
/// # Errors
/// The kernel could not be asked.
pub(crate) fn observe(netfilter: &mut Netlink) -> Result<Observed, NetError> {
    let (kernel, complete) = describe(netfilter)?;
    if !complete {
        return Ok(Observed::default());
    }
    let mut observed = Observed { kernel: Some(kernel), ..Observed::default() };
    for set in Set::ALL {
        observed.sets.insert(set, elements(netfilter, set)?);
    }
    let (_, mut seals) = objects(netfilter)?;
    // Two seals cannot both be true.
    observed.seal = seals.pop().filter(|_| seals.is_empty());
    Ok(observed)
}

/// The digest of the kernel's description of both tables, and whether both exist.
pub(crate) fn describe(netfilter: &mut Netlink) -> Result<(Digest, bool), NetError> {
    let mut description: Vec<u8> = Vec::new();
    let mut tables = 0;
    for family in Family::ALL {
        for (request, answer, describing) in DESCRIBING {
            for attributes in list(netfilter, (request, answer, family), |_| {})? {
                let named = attributes.iter().any(|(kind, value)| *kind == 1 && is_table_name(value));
                if !named {
                    continue;
                }
                tables += usize::from(request == GETTABLE);
                description.extend(answer.to_ne_bytes());
                for (kind, value) in attributes.iter().filter(|(kind, _)| describing.contains(kind)) {
                    description.extend(kind.to_ne_bytes());
                    description.extend(value.len().to_ne_bytes());
                    description.extend(value);
                }
            }
        }
    }
    Ok((Digest::of([description.as_slice()]), tables == 2))
}

/// What the counters of drops say.
///
/// # Errors
/// The kernel could not be asked.
pub(crate) fn counters(netfilter: &mut Netlink) -> Result<Counters, NetError> {
    Ok(objects(netfilter)?.0)
}

/// The packets that a counter of any inet table has counted; 0 if there is none.
pub(crate) fn count_of(netfilter: &mut Netlink, table: &str, counter: &str) -> Result<u64, NetError> {
    let mut message = Message::new(GETOBJ, NLM_F_REQUEST, Family::Inet.number());
    message.text(1, table);
    message.text(2, counter);
    // The type: a counter.
    message.bytes(3, &1_u32.to_be_bytes());
    let reply = match netfilter.get(&message.finish()) {
        Ok(reply) => reply,
        Err(error) if crate::net::errno(&error) == Some(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(NetError::Observe { what: "an nftables counter", error }),
    };
    let mut packets = 0;
    crate::net::attributes(reply.payload.get(GENERIC..).unwrap_or_default(), |kind, value| {
        if kind == 4 {
            packets = count(value).packets;
        }
    });
    Ok(packets)
}

fn elements(netfilter: &mut Netlink, set: Set) -> Result<BTreeSet<RawElement>, NetError> {
    let replies = list(netfilter, (GETSETELEM, NEWSETELEM, set.family()), |message| {
        message.text(2, set.name());
    })?;
    let mut elements = BTreeSet::new();
    for (_, list) in replies.iter().flatten().filter(|(kind, _)| *kind == 3) {
        crate::net::attributes(list, |_, element| elements.extend(raw_element(element)));
    }
    Ok(elements)
}

fn raw_element(element: &[u8]) -> Option<RawElement> {
    let (mut key, mut end) = (None, None);
    crate::net::attributes(element, |kind, data| {
        let slot = match kind {
            1 => &mut key,
            10 => &mut end,
            _ => return,
        };
        crate::net::attributes(data, |kind, value| {
            if kind == 1 {
                *slot = Some(value.to_vec());
            }
        });
    });
    let key = key?;
    Some(RawElement { end: end.unwrap_or_else(|| key.clone()), key })
}

/// The counters of drops, and the seals.
fn objects(netfilter: &mut Netlink) -> Result<(Counters, Vec<Seal>), NetError> {
    let (mut counters, mut seals) = (Counters::new(), Vec::new());
    for family in Family::ALL {
        for attributes in list(netfilter, (GETOBJ, NEWOBJ, family), |_| {})? {
            let value_of =
                |wanted| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| &value[..]);
            if !value_of(1).is_some_and(is_table_name) {
                continue;
            }
            let name = value_of(2).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
            let name = name.trim_end_matches('\0');
            seals.extend(Seal::parse(name));
            if let Some(reason) = Drop::ALL.into_iter().find(|reason| reason.name() == name) {
                counters.insert(reason, count(value_of(4).unwrap_or_default()));
            }
        }
    }
    Ok((counters, seals))
}

fn count(data: &[u8]) -> Count {
    let mut count = Count::default();
    crate::net::attributes(data, |kind, value| {
        let number = value.try_into().map_or(0, u64::from_be_bytes);
        match kind {
            1 => count.bytes = number,
            2 => count.packets = number,
            _ => {}
        }
    });
    count
}

fn is_table_name(value: &[u8]) -> bool {
    value.strip_suffix(&[0]) == Some(TABLE.as_bytes())
}

type Attributes = Vec<(u16, Vec<u8>)>;

/// A list of objects of our table, as attributes. Kernels filter some lists by table and some not, so callers check
/// the table's name. Nothing at all where the table does not exist.
fn list(
    netfilter: &mut Netlink,
    (request, answer, family): (u16, u16, Family),
    more: impl FnOnce(&mut Message),
) -> Result<Vec<Attributes>, NetError> {
    let mut message = Message::new(request, NLM_F_REQUEST | NLM_F_DUMP, family.number());
    message.text(1, TABLE);
    more(&mut message);
    let replies = match netfilter.dump(&message.finish()) {
        Ok(replies) => replies,
        Err(error) if crate::net::errno(&error) == Some(Errno::NOENT) => Vec::new(),
        Err(error) => return Err(NetError::Observe { what: "nftables objects", error }),
    };
    Ok(replies
        .iter()
        .filter(|reply| reply.kind == answer)
        .map(|reply| {
            let mut attributes = Vec::new();
            crate::net::attributes(reply.payload.get(GENERIC..).unwrap_or_default(), |kind, value| {
                attributes.push((kind, value.to_vec()));
            });
            attributes
        })
        .collect())
}
