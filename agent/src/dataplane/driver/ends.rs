//! What is known of each link, and how two offers become a session.
//!
//! ```text
//!   up ── own offer said, and said again until the session is heard ──┐
//!                                                                     ├──> agreed: the keys of both numbers
//!   up ── peer's offer heard, the newest one kept ────────────────────┘
//! ```
//!
//! Nothing here counts on a message that arrives. Either end says its offer again, ever less often, until something
//! authentic has come in the session that follows from it; and whatever one end has heard it keeps, so that a number
//! that it draws anew needs no other word from the other end. An offer is never an answer to an offer: two ends that
//! answered each other so would never end. Whoever hears one twice greets with a record, which the other end may lack.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_proto::peer::Offer;
use weave_sleeve::keys::{Role, Suite};
use weave_sleeve::session::Config;
use weave_topology::LinkId;
use zeroize::Zeroizing;

use super::sessions::{Sessions, is_due};
use crate::dataplane::sleeve::SessionSettings;

/// How soon an offer is said again, at first: a session is usually heard within two round trips.
const AGAIN: Duration = Duration::from_secs(1);

/// How often it is said in the end, if nothing is ever heard: on most such paths nothing will be.
const SELDOM: Duration = Duration::from_secs(30);

/// A link, from this end.
#[derive(Debug, Clone)]
struct Link {
    peer: PeerName,
    dialled: bool,
    addr: SocketAddr,
    own: Option<Own>,
    /// What the peer has said last.
    heard: Option<Offer>,
    /// Both numbers of the session that was opened: the same again would be the same keys again.
    agreed: Option<(u32, u32)>,
    /// Why there is no session.
    trouble: Option<String>,
}

/// What this end says that records must carry.
#[derive(Debug, Clone, Copy)]
struct Own {
    index: u32,
    /// Since when the other end should be heard.
    since: Instant,
    said: Option<Instant>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Links {
    all: BTreeMap<LinkId, Link>,
}

/// A session to open, and its secret.
pub(super) type Agreed = (SessionSettings, Zeroizing<[u8; 32]>);

impl Links {
    pub(super) fn up(&mut self, link: LinkId, peer: PeerName, dialled: bool, addr: SocketAddr) {
        let new = Link { peer, dialled, addr, own: None, heard: None, agreed: None, trouble: None };
        self.all.insert(link, new);
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

    /// Why there is no session with a peer, where the links tell.
    pub(super) fn trouble(&self, peer: PeerName) -> Option<&str> {
        self.all.values().filter(|link| link.peer == peer).find_map(|link| link.trouble.as_deref())
    }

    /// Draws a number for the records that this end takes with the keys of a link.
    pub(super) fn draw(&mut self, link: LinkId, sessions: &Sessions, now: Instant) {
        let taken: BTreeSet<u32> =
            self.all.values().filter_map(|link| link.own).map(|own| own.index).collect();
        let Some(link) = self.all.get_mut(&link) else { return };
        let index = loop {
            let index = u32::from_ne_bytes(crate::peer::chance());
            if !taken.contains(&index) && !sessions.contains(index) {
                break index;
            }
        };
        link.own = Some(Own { index, since: now, said: None });
    }

    /// What is to be said now: every offer for the first time, and those that nothing has come of.
    pub(super) fn offers(
        &mut self,
        (queues, port): (u8, u16),
        sessions: &Sessions,
        now: Instant,
    ) -> Vec<(LinkId, Offer)> {
        let mut offers = Vec::new();
        for (&id, link) in &mut self.all {
            let Some(own) = &mut link.own else { continue };
            // Who is heard has this offer: without it there would be no keys.
            if !sessions.is_heard(own.index) && is_due(own.since, own.said, (AGAIN, SELDOM), now) {
                own.said = Some(now);
                offers.push((id, offer(own.index, (queues, port))));
            }
        }
        offers
    }

    /// A peer has said how it takes records; the number of the session that it goes with, if that is open already.
    pub(super) fn hear(&mut self, link: LinkId, peer: PeerName, offer: Offer) -> Option<u32> {
        let link = self.all.get_mut(&link).filter(|link| link.peer == peer)?;
        let theirs = offer.index;
        link.heard = Some(offer);
        let own = link.own.filter(|own| link.agreed == Some((own.index, theirs)))?;
        Some(own.index)
    }

    /// The session that follows from both offers of a link, if it is not open already.
    pub(super) fn agree(
        &mut self,
        link: LinkId,
        queues: u8,
        (record_len, now): (impl FnOnce(SocketAddr) -> usize, Instant),
        export: impl FnOnce(&[u8]) -> Option<[u8; 32]>,
    ) -> Option<Agreed> {
        let link = self.all.get_mut(&link)?;
        let (own, offer) = (link.own?.index, link.heard.clone()?);
        if link.agreed == Some((own, offer.index)) {
            return None;
        }
        let ends = Ends {
            peer: link.peer,
            remote: SocketAddr::new(link.addr.ip(), offer.port),
            dialled: link.dialled,
            own,
        };
        // None if the link is gone, which will be told next.
        let agreed = match ends.session(&offer, queues, record_len, export) {
            Ok(agreed) => agreed?,
            Err(why) => {
                if link.trouble.as_deref() != Some(why) {
                    tracing::warn!(peer = %link.peer, why, "no sealed records can be exchanged");
                    link.trouble = Some(why.to_owned());
                }
                return None;
            }
        };
        link.agreed = Some((own, offer.index));
        link.trouble = None;
        // The other end has drawn anew, and may have forgotten what this one had said.
        if let Some(own) = &mut link.own {
            own.since = now;
        }
        Some(agreed)
    }
}

/// The two ends of a session to be.
pub(super) struct Ends {
    pub(super) peer: PeerName,
    pub(super) remote: SocketAddr,
    /// Whether this end began the handshake whose keys they are.
    pub(super) dialled: bool,
    /// This end's number.
    pub(super) own: u32,
}

impl Ends {
    /// The session that follows from what the other end has offered; none without a secret.
    ///
    /// # Errors
    /// The two have nothing in common: a sentence that says what.
    pub(super) fn session(
        &self,
        offer: &Offer,
        queues: u8,
        record_len: impl FnOnce(SocketAddr) -> usize,
        export: impl FnOnce(&[u8]) -> Option<[u8; 32]>,
    ) -> Result<Option<Agreed>, &'static str> {
        let (suite, send_queues, receive_queues) = common(offer, queues)?;
        let role = if self.dialled { Role::Initiator } else { Role::Responder };
        // The dialler's number first: new numbers on the same link make new keys.
        let (first, second) = if self.dialled { (self.own, offer.index) } else { (offer.index, self.own) };
        let context = [first.to_be_bytes(), second.to_be_bytes()].concat();
        let Some(secret) = export(&context) else { return Ok(None) };
        let record_len = record_len(self.remote);
        let config =
            Config { role, suite, send_queues, receive_queues, remote_index: offer.index, record_len };
        let settings = SessionSettings { index: self.own, peer: self.peer, remote: self.remote, config };
        Ok(Some((settings, Zeroizing::new(secret))))
    }
}

/// What this end offers under a number.
pub(super) fn offer(index: u32, (queues, port): (u8, u16)) -> Offer {
    let suites = suites().iter().map(|&suite| suite as u8).collect();
    Offer { index, suites, queues, port }
}

/// What both ends can do.
fn common(offer: &Offer, queues: u8) -> Result<(Suite, NonZeroU8, NonZeroU8), &'static str> {
    let theirs: Vec<Suite> = offer.suites.iter().filter_map(|&number| Suite::from_number(number)).collect();
    let suite = Suite::agreed(suites(), &theirs)
        .ok_or("the two ends have no cipher in common: upgrade the older one")?;
    let send = NonZeroU8::new(queues).ok_or("this node has no queue")?;
    let receive = NonZeroU8::new(offer.queues).ok_or("the peer offers no queue")?;
    Ok((suite, send, receive))
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

#[cfg(test)]
mod tests;
