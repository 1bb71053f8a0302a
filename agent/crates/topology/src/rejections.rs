//! Who called and was turned down, for a while: what an operator finds in `weave status connections` on the side that
//! did not dial.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use weave_proto::{Nickname, PeerName};

/// How long a call is shown. A peer that is turned down for good calls every 30 s, so it is shown as long as it does.
pub(crate) const SHOWN: Duration = Duration::from_secs(90);
/// How many callers are shown: more than a person reads, less than a stranger could fill memory with.
const MAX_SHOWN: usize = 64;

/// One caller that was turned down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) addr: SocketAddr,
    pub(crate) caller: Option<(PeerName, Nickname)>,
    pub(crate) text: String,
    until: Instant,
}

impl Rejection {
    pub(crate) fn new(
        addr: SocketAddr,
        caller: Option<(PeerName, Nickname)>,
        text: &str,
        now: Instant,
    ) -> Self {
        Self { addr, caller, text: text.to_owned(), until: now + SHOWN }
    }
}

/// The callers of the last while, one for each address.
#[derive(Debug, Default)]
pub(crate) struct Rejections {
    by_ip: BTreeMap<IpAddr, Rejection>,
}

impl Rejections {
    /// Notes a call; whether it differs from the last one from there.
    pub(crate) fn note(&mut self, rejection: Rejection) -> bool {
        let ip = rejection.addr.ip();
        if self.by_ip.len() >= MAX_SHOWN && !self.by_ip.contains_key(&ip) {
            return false;
        }
        let text = rejection.text.clone();
        self.by_ip.insert(ip, rejection).is_none_or(|last| last.text != text)
    }

    /// A peer at this address was let in: what was before is settled.
    pub(crate) fn settle(&mut self, addr: SocketAddr) {
        self.by_ip.remove(&addr.ip());
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        self.by_ip.retain(|_, rejection| now < rejection.until);
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.by_ip.values().map(|rejection| rejection.until).min()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rejection> {
        self.by_ip.values()
    }
}
