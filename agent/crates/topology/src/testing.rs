//! Small words for the tests of this crate.
#![expect(clippy::disallowed_methods, reason = "a virtual clock must begin somewhere")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use weave_proto::peer::{Features, Hello, LinkRecord, PeerRecord, RecordVersion, WireVersion};
use weave_proto::{Nickname, PeerKey, PeerName, PeerUid};

use crate::{Direction, LinkId, LinkUp};

pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn name(number: u8) -> PeerName {
    PeerName::from_bits([2, 0, 0, 0, 0, number])
}

pub(crate) fn key(number: u8) -> PeerKey {
    PeerKey([number; 32])
}

/// What stands for a hash here: the first byte of a key says whose it is.
pub(crate) fn name_of(key: &PeerKey) -> PeerName {
    name(key.0[0])
}

pub(crate) fn addr(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)), 6783)
}

pub(crate) fn record(number: u8, uid: u64, version: u64, links: &[u8]) -> PeerRecord {
    let link = |&peer: &u8| LinkRecord { peer: name(peer), addr: addr(peer), outbound: number < peer };
    let mut links: Vec<LinkRecord> = links.iter().map(link).collect();
    links.sort();
    PeerRecord {
        name: name(number),
        key: key(number),
        uid: PeerUid(uid),
        version: RecordVersion(version),
        nickname: Nickname::lossy(&format!("host{number}")),
        overlay: None,
        free: 0,
        features: Features::default(),
        links,
    }
}

pub(crate) fn hello(number: u8, uid: u64, nonce: u64) -> Hello {
    Hello {
        lowest: WireVersion(1),
        highest: WireVersion(1),
        name: name(number),
        uid: PeerUid(uid),
        nickname: Nickname::lossy(&format!("host{number}")),
        nonce,
        instance: u64::from(number) << 32 | uid,
        range: None,
        universe: None,
        founders: None,
        features: Features::default(),
    }
}

/// The link of that id with `other`, whose hello has `theirs` for its nonce; ours was `mine`.
pub(crate) fn link_up(id: u64, direction: Direction, other: u8, (mine, theirs): (u64, u64)) -> LinkUp {
    LinkUp {
        link: LinkId(id),
        dial: None,
        direction,
        addr: addr(other),
        key: key(other),
        nonce: mine,
        hello: hello(other, 1, theirs),
    }
}
