//! What is known of each link, and how two offers become a session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::time::Duration;

use weave_proto::PeerName;
use weave_proto::peer::Offer;
use weave_sleeve::header::OVERHEAD;
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::session::Config;
use weave_topology::LinkId;
use zeroize::Zeroizing;

use super::sessions::Sessions;
use crate::dataplane::sleeve::{PORT, SessionSettings};
use crate::net::{mtu, names};

/// Bytes that a sealed record adds to a packet beyond what VXLAN does: 60 against 50 over IPv4, 80 against 70 over IPv6.
pub const SEALED_MORE: u32 = 10;

/// How often the underlay's devices are asked how large a packet they take.
pub(super) const UNDERLAY_LOOK: Duration = Duration::from_secs(10);

/// A link, from this end.
#[derive(Debug, Clone)]
struct Link {
    peer: PeerName,
    dialled: bool,
    addr: SocketAddr,
    /// What this end has said, or will say, that records must carry.
    index: Option<u32>,
    /// The peer's index of the session that was opened: the same again would be the same keys again.
    theirs: Option<(u32, u32)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Links {
    all: BTreeMap<LinkId, Link>,
    /// The largest packet that fits a sealed record towards an address, as far as this node's devices know.
    largest: BTreeMap<IpAddr, u32>,
}

/// A session to open, and its secret.
pub(super) type Agreed = (SessionSettings, Zeroizing<[u8; 32]>);

impl Links {
    pub(super) fn up(&mut self, link: LinkId, peer: PeerName, dialled: bool, addr: SocketAddr) {
        self.largest.remove(&addr.ip());
        self.all.insert(link, Link { peer, dialled, addr, index: None, theirs: None });
    }

    pub(super) fn down(&mut self, link: LinkId) {
        self.all.remove(&link);
    }

    pub(super) fn ids(&self) -> Vec<LinkId> {
        self.all.keys().copied().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn peers(&self) -> BTreeSet<PeerName> {
        self.all.values().map(|link| link.peer).collect()
    }

    /// What this end says on a link: a number drawn anew.
    pub(super) fn offer(&mut self, link: LinkId, queues: u8, sessions: &Sessions) -> Option<Offer> {
        let taken: BTreeSet<u32> = self.all.values().filter_map(|link| link.index).collect();
        let link = self.all.get_mut(&link)?;
        let index = loop {
            let index = u32::from_ne_bytes(crate::peer::chance());
            if !taken.contains(&index) && !sessions.contains(index) {
                break index;
            }
        };
        link.index = Some(index);
        let suites = suites().iter().map(|&suite| suite as u8).collect();
        Some(Offer { index, suites, queues, port: PORT })
    }

    /// The session that follows from both offers; none if it is open already, or this end has not said its own.
    ///
    /// # Errors
    /// There is none: the sentence says why.
    pub(super) fn agree(
        &mut self,
        (link, peer): (LinkId, PeerName),
        offer: &Offer,
        queues: u8,
        export: impl Fn(&[u8]) -> Option<[u8; 32]>,
    ) -> Result<Option<Agreed>, String> {
        let Some(link) = self.all.get_mut(&link).filter(|link| link.peer == peer) else { return Ok(None) };
        let Some(index) = link.index else { return Ok(None) };
        if link.theirs == Some((index, offer.index)) {
            return Ok(None);
        }
        let theirs: Vec<Suite> =
            offer.suites.iter().filter_map(|&number| Suite::from_number(number)).collect();
        let suite = Suite::agreed(suites(), &theirs)
            .ok_or("the two ends have no cipher in common: upgrade the older one")?;
        let (Some(send_queues), Some(receive_queues)) =
            (NonZeroU8::new(queues), NonZeroU8::new(offer.queues))
        else {
            return Err("the peer offers no queue".to_owned());
        };
        if offer.port == 0 {
            return Err("the peer takes no sealed records by UDP".to_owned());
        }
        let role = if link.dialled { Role::Initiator } else { Role::Responder };
        // The dialler's number first: new numbers on the same link make new keys.
        let (first, second) = if link.dialled { (index, offer.index) } else { (offer.index, index) };
        let context = [first.to_be_bytes(), second.to_be_bytes()].concat();
        let Some(secret) = export(&context) else { return Ok(None) };
        link.theirs = Some((index, offer.index));
        let remote = SocketAddr::new(link.addr.ip(), offer.port);
        let record_len = usize::try_from(self.largest(remote.ip())).unwrap_or(usize::MAX) + OVERHEAD;
        let config =
            Config { role, suite, send_queues, receive_queues, remote_index: offer.index, record_len };
        Ok(Some((SessionSettings { index, peer, remote, config }, Zeroizing::new(secret))))
    }

    /// Has the underlay asked again.
    pub(super) fn look_again(&mut self) {
        self.largest.clear();
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

/// What this processor does well, best first.
fn suites() -> &'static [Suite] {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    let has_aes = false;
    Suite::offered(has_aes)
}
