//! How large a packet the devices below take.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::net::{mtu, names};

/// Bytes that a sealed record adds to a packet beyond what VXLAN does: 60 against 50 over IPv4, 80 against 70 over IPv6.
pub const SEALED_MORE: u32 = 10;

/// How often the underlay's devices are asked how large a packet they take.
pub(super) const UNDERLAY_LOOK: Duration = Duration::from_secs(10);

/// What this node's devices have answered.
#[derive(Debug, Default)]
pub(super) struct Underlay {
    largest: BTreeMap<IpAddr, u32>,
}

impl Underlay {
    /// Has them asked again about all addresses.
    pub(super) fn look_again(&mut self) {
        self.largest.clear();
    }

    /// Has them asked again about one address.
    pub(super) fn look_again_at(&mut self, at: IpAddr) {
        self.largest.remove(&at.to_canonical());
    }

    /// The largest packet that fits a sealed record towards `at`, as far as this node's devices know.
    pub(super) fn largest(&mut self, at: IpAddr) -> u32 {
        let at = at.to_canonical();
        *self.largest.entry(at).or_insert_with(|| {
            let guess = mtu::ETHERNET_MTU - names::VXLAN_OVERHEAD;
            mtu::underlay(&[at]).map_or(guess, |underlay| underlay.overlay_mtu).saturating_sub(SEALED_MORE)
        })
    }
}
