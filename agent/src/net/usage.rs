//! To whom the kernel's tunnel was sent to of late.
//!
//! The kernel notes for each forwarding entry when it was last looked up. Probes have entries of their own
//! ([`super::names::probe_mac`]), so that those of the peers' own addresses tell of pods' packets alone.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use weave_proto::PeerName;

use super::messages;
use super::transport::{Netlink, attributes, word};

/// `struct ndmsg`, which stands before the attributes.
const HEADER: usize = 12;
/// NDA_LLADDR: the MAC address.
const ADDRESS: u16 = 2;
/// NDA_CACHEINFO: four numbers, of which the second and the third are the ages of the last use and the last change.
const AGES: u16 = 3;
/// USER_HZ, the unit of ages; fixed on Linux for every architecture that matters here.
const TICKS_A_SECOND: u128 = 100;

/// A socket to ask by.
pub(crate) struct TunnelUse {
    route: Netlink,
}

impl TunnelUse {
    /// In the network namespace of this thread.
    ///
    /// # Errors
    /// There is no such socket to be had.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { route: Netlink::open(NETLINK_ROUTE)? })
    }

    /// To whom packets were sent by the tunnel device of this number within the last `span`. May wait while the kernel's
    /// links are changed by others.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub(crate) fn within(&mut self, device: u32, span: Duration) -> io::Result<Vec<PeerName>> {
        let span = u32::try_from(span.as_millis() * TICKS_A_SECOND / 1000).unwrap_or(u32::MAX);
        let entries = self.route.dump(&messages::list_tunnels(device))?;
        Ok(entries.iter().filter_map(|entry| used(entry.payload.get(HEADER..)?, span)).collect())
    }
}

/// Whose entry this is, if it was used within `span` ticks. One that was never used is as old as it is unchanged.
fn used(entry: &[u8], span: u32) -> Option<PeerName> {
    let (mut address, mut ages) = (None, None);
    attributes(entry, |kind, value| match kind {
        ADDRESS => address = value.try_into().ok(),
        AGES => ages = word(value, 4).zip(word(value, 8)),
        _ => {}
    });
    let ((last, changed), address) = (ages?, address?);
    let peer = PeerName::from_bits(address);
    // The entries for probes are of addresses that no peer has.
    (peer.mac() == address && last <= span && last != changed).then_some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::names::{Mac, probe_mac};

    const PEER: PeerName = PeerName::from_bits([0x7a, 0, 0, 0, 0, 9]);

    fn entry(Mac([first, ..]): Mac, used: u32, changed: u32) -> Vec<u8> {
        let mut entry = vec![10, 0, 2, 0, first, 0, 0, 0, 0, 9, 0, 0, 20, 0, 3, 0];
        entry.extend([0, used, changed, 1].into_iter().flat_map(u32::to_ne_bytes));
        entry
    }

    #[test]
    fn an_entry_tells_whether_it_was_used_of_late() {
        let own = Mac(PEER.mac());
        assert_eq!(used(&entry(own, 99, 5000), 100), Some(PEER));
        assert_eq!(used(&entry(own, 101, 5000), 100), None);
        assert_eq!(used(&entry(own, 7, 7), 100), None, "made and never used");
        assert_eq!(used(&entry(own, 7, 9)[..12], 100), None);
        assert_eq!(used(&entry(probe_mac(PEER), 99, 5000), 100), None, "probes are no traffic");
    }
}
