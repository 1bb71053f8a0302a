//! Keys with peers that no link leads to, agreed on through the mesh.
//!
//! ```text
//!   the lower name:   far ── begin ──> under way ── last flight heard ──> agreed
//!                      ^                   │                                │
//!                      └── not over in time, or asked to begin anew ────────┴── its secret was retired
//!   the higher name:  far ── ask ──> answering ── third flight heard ──> agreed
//! ```
//!
//! The lower name begins, the higher asks it to. Nothing that is lost is repeated: whoever has no keys begins or asks
//! again, ever less often; and whoever is asked begins at once, so an end that has lost its keys, as one does that was
//! killed, has new ones soon. What is heard of others costs a bounded effort: there is one handshake a peer, only with
//! peers that the brain knows to be in the mesh and without a link, and each end begins or answers one only so often.
//!
//! Nothing is believed but what TLS proves: the key in the certificate must be the one that the peer's records tell of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weave_proto::PeerName;
use weave_proto::codec;
use weave_proto::peer::{Handshake as Word, Message, Offer, Step, WireVersion};
use weave_router::Distant;

use crate::peer::{Handshake, HandshakeError, MeshTrust, Met, Proof};

/// How soon an attempt is made anew, at first: some round trips through the mesh and back.
const AGAIN: Duration = Duration::from_secs(1);

/// How often in the end, if no attempt succeeds.
const SELDOM: Duration = Duration::from_secs(60);

/// How long the higher name waits to be called before it asks.
const COURTESY: Duration = Duration::from_millis(500);

/// The least time between two attempts of one peer that are answered.
const LEAST: Duration = Duration::from_millis(200);

/// For how long an attempt is waited for before another is made because somebody asks.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many attempts are begun at once: each takes a millisecond, and a mesh may have hundreds of peers.
const BURST: usize = 32;

/// The layout of what is said.
const VERSION: WireVersion = WireVersion(1);

/// What is to be said to a peer through the mesh.
pub(super) type Said = (PeerName, Vec<u8>);

/// What has been agreed on with a peer.
pub(super) struct Agreed {
    pub(super) distant: Distant,
    pub(super) dialled: bool,
    /// What this end has offered.
    pub(super) own: Offer,
    pub(super) met: Met,
}

/// All peers that no link leads to.
pub(super) struct Far {
    me: PeerName,
    trust: MeshTrust,
    peers: BTreeMap<PeerName, One>,
}

struct One {
    distant: Distant,
    talk: Option<Talk>,
    /// The session whose keys were agreed on last, and what the peer has proven itself by.
    session: Option<(u32, Proof)>,
    /// When to begin, or to ask; not while all is well.
    next: Option<Instant>,
    pause: Duration,
    /// When a handshake was last begun or answered.
    last: Option<Instant>,
    trouble: Option<String>,
}

/// A handshake under way.
struct Talk {
    attempt: u64,
    dialled: bool,
    /// How many flights have come and gone.
    heard: u8,
    said: u8,
    handshake: Handshake,
}

impl Far {
    pub(super) const fn new(me: PeerName, trust: MeshTrust) -> Self {
        Self { me, trust, peers: BTreeMap::new() }
    }

    /// These are all of them now. Returns the sessions of those that are no more among them.
    pub(super) fn set(&mut self, distant: Vec<Distant>, now: Instant) -> Vec<u32> {
        let mut before = std::mem::take(&mut self.peers);
        for distant in distant {
            let one = match before.remove(&distant.name) {
                Some(one) if one.distant.key == distant.key => One { distant, ..one },
                _ => self.fresh(distant, now),
            };
            self.peers.insert(one.distant.name, one);
        }
        before.into_values().filter_map(|one| one.session).map(|(index, _)| index).collect()
    }

    fn fresh(&self, distant: Distant, now: Instant) -> One {
        let wait = if self.begins(distant.name) { Duration::ZERO } else { COURTESY };
        let next = Some(now + wait);
        One { distant, talk: None, session: None, next, pause: AGAIN, last: None, trouble: None }
    }

    /// Whether it is for this end to begin.
    fn begins(&self, peer: PeerName) -> bool {
        self.me < peer
    }

    /// Everybody.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerName> {
        self.peers.keys().copied()
    }

    /// Why there is no session with a peer, if that is known.
    pub(super) fn trouble(&self, peer: PeerName) -> Option<&str> {
        self.peers.get(&peer)?.trouble.as_deref()
    }

    /// One of them.
    pub(super) fn distant(&self, peer: PeerName) -> Option<&Distant> {
        self.peers.get(&peer).map(|one| &one.distant)
    }

    /// When there is something to begin.
    pub(super) fn due(&self) -> Option<Instant> {
        self.peers.values().filter_map(|one| one.next).min()
    }

    /// The session with a peer that was agreed on is open under this number.
    pub(super) fn opened(&mut self, peer: PeerName, index: u32, proof: Proof) {
        if let Some(one) = self.peers.get_mut(&peer) {
            one.session = Some((index, proof));
        }
    }

    /// All keys of this end are lost.
    pub(super) fn start_again(&mut self, now: Instant) {
        for one in self.peers.values_mut() {
            (one.talk, one.session, one.next, one.pause) = (None, None, Some(now), AGAIN);
        }
    }

    /// Waits until the secrets have changed. May be cancelled.
    pub(super) async fn changed(&mut self) {
        self.trust.changed().await;
    }

    /// After a change of the secrets: the sessions of those who have proven themselves by one that is retired.
    pub(super) fn retired(&mut self, now: Instant) -> Vec<u32> {
        let mut gone = Vec::new();
        for one in self.peers.values_mut() {
            let retired = one.session.take_if(|(_, proof)| !self.trust.believes(proof));
            gone.extend(retired.map(|(index, _)| index));
            // Who was refused may be believed now, and may believe this end.
            if one.session.is_none() {
                (one.next, one.pause) = (Some(now), AGAIN);
            }
        }
        gone
    }

    /// Begins or asks where that is due; `offer` draws what this end offers.
    pub(super) fn poll(&mut self, mut offer: impl FnMut() -> Offer, now: Instant) -> Vec<Said> {
        let (me, trust) = (self.me, &self.trust);
        let due = self.peers.iter_mut().filter(|(_, one)| one.next.is_some_and(|next| next <= now));
        let mut said = Vec::new();
        for (&peer, one) in due.take(BURST) {
            one.next = Some(now + one.pause);
            one.pause = (one.pause * 2).min(SELDOM);
            if me < peer {
                one.last = Some(now);
                let attempt = u64::from_ne_bytes(crate::peer::chance());
                match trust.begin(offer()) {
                    Ok(handshake) => {
                        let talk = Talk { attempt, dialled: true, heard: 0, said: 0, handshake };
                        said.extend(one.talk.insert(talk).flight().map(|body| (peer, body)));
                    }
                    Err(error) => one.fail(&error),
                }
            } else {
                said.extend(frame(Word { attempt: 0, step: Step::Ask }).map(|body| (peer, body)));
            }
        }
        said
    }

    /// A peer has said something through the mesh: what is to be answered, and what has come of it.
    pub(super) fn take(
        &mut self,
        (from, body): (PeerName, &[u8]),
        offer: impl FnOnce() -> Offer,
        now: Instant,
    ) -> (Option<Said>, Option<Agreed>) {
        let Ok(Some(Message::Handshake(word))) = codec::decode_frame(VERSION, body) else {
            tracing::debug!(peer = %from, "something was said through the mesh that is not understood");
            return (None, None);
        };
        let begins = self.begins(from);
        let Some(one) = self.peers.get_mut(&from) else {
            tracing::debug!(peer = %from, "who is no peer without a link wants to agree on keys");
            return (None, None);
        };
        match word.step {
            Step::Ask => {
                if begins {
                    one.on_asked(now);
                }
                (None, None)
            }
            Step::Flight { dialler, number, tls } => {
                if dialler == begins {
                    return (None, None);
                }
                if dialler && number == 0 && one.last.is_none_or(|last| now >= last + LEAST) {
                    one.last = Some(now);
                    one.answer(word.attempt, self.trust.answer(offer()));
                }
                let (flight, agreed) = one.hear((word.attempt, number), &tls);
                (flight.map(|body| (from, body)), agreed)
            }
        }
    }
}

impl One {
    /// The peer has no keys. That it asks does not make the next attempt more likely to succeed: the pause stays.
    fn on_asked(&mut self, now: Instant) {
        let soonest = self.last.map_or(now, |last| now.max(last + PATIENCE));
        if self.next.is_none_or(|next| next > soonest) {
            self.next = Some(soonest);
        }
    }

    fn answer(&mut self, attempt: u64, handshake: Result<Handshake, HandshakeError>) {
        match handshake {
            Ok(handshake) => {
                self.talk = Some(Talk { attempt, dialled: false, heard: 0, said: 0, handshake });
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &HandshakeError) {
        self.talk = None;
        let text = error.to_string();
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(peer = %self.distant.name, why = text, "no keys could be agreed on through the mesh");
        }
        self.trouble = Some(text);
    }

    /// A flight of the handshake under way; any other is of no use.
    fn hear(&mut self, (attempt, number): (u64, u8), tls: &[u8]) -> (Option<Vec<u8>>, Option<Agreed>) {
        let Some(talk) = self.talk.as_mut().filter(|talk| (talk.attempt, talk.heard) == (attempt, number))
        else {
            return (None, None);
        };
        talk.heard += 1;
        let taken = talk.handshake.take(tls);
        // An alert, if it went wrong.
        let flight = talk.flight();
        match taken {
            Ok(None) => (flight, None),
            Ok(Some(offer)) => (flight, self.agree(offer)),
            Err(error) => {
                self.fail(&error);
                (flight, None)
            }
        }
    }

    fn agree(&mut self, offer: Offer) -> Option<Agreed> {
        let Talk { dialled, handshake, .. } = self.talk.take()?;
        let own = handshake.own().clone();
        let met = handshake.meet(offer).filter(|met| met.key == self.distant.key);
        let Some(met) = met else {
            self.fail(&HandshakeError::other_key());
            return None;
        };
        (self.next, self.pause, self.trouble) = (None, AGAIN, None);
        Some(Agreed { distant: self.distant.clone(), dialled, own, met })
    }
}

impl Talk {
    /// What TLS wants said now, as the body of a message.
    fn flight(&mut self) -> Option<Vec<u8>> {
        let tls = self.handshake.give();
        if tls.is_empty() {
            return None;
        }
        let number = self.said;
        self.said = self.said.saturating_add(1);
        frame(Word { attempt: self.attempt, step: Step::Flight { dialler: self.dialled, number, tls } })
    }
}

/// The word as the body of a message. None if it is too long for one, which TLS with such certificates never is.
fn frame(word: Word) -> Option<Vec<u8>> {
    match codec::encode(&Message::Handshake(word), VERSION) {
        Ok(frame) => Some(frame),
        Err(error) => {
            tracing::error!(%error, "a flight of TLS could not be sent through the mesh");
            None
        }
    }
}

#[cfg(test)]
mod tests;
