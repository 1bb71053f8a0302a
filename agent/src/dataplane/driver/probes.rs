//! Probes that are sent, and the words that come: what peers ask is answered at once.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use weave_overlay::{Method, Probe, ProbeAnswer, Via, Way};
use weave_proto::PeerName;
use weave_sleeve::header::OVERHEAD;
use weave_sleeve::relay::RELAYED_OVERHEAD;

use super::prober::{Heard, Prober};
use super::word::{Kind, WORD_LEN, Word};
use super::{Driver, Report};
use crate::dataplane::sleeve::{Carrier, Source};

/// How long the answer to a probe is waited for: longer than anybody who asked does.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

impl Driver {
    /// A word came in a sealed record.
    pub(super) fn on_word(&mut self, peer: PeerName, session: u32, from: Source, content: &[u8]) {
        let Some(word) = Word::parse(content) else { return };
        match word.kind {
            Kind::Probe => {
                let Ok(tunnel) = &self.tunnel else { return };
                let (carrier, overhead) = match from {
                    Source::Udp(_) => (Carrier::Udp, OVERHEAD),
                    Source::Relay(hop) => (Carrier::Relay(hop), RELAYED_OVERHEAD),
                    Source::Quic(peer) => match self.quic_to(peer) {
                        Some(link) => (Carrier::Quic(link.clone()), OVERHEAD),
                        None => return,
                    },
                };
                let answer = Word { kind: Kind::Answer, hasty: false, ..word };
                // A lost answer is a lost probe, which will be repeated.
                let _sent = tunnel.engine.probe(session, &carrier, &answer.to_bytes(), overhead + WORD_LEN);
                self.on_probed(peer, word);
            }
            Kind::Answer => {
                let is_sealed = |way: Way| way.method.is_sealed();
                self.on_answer(peer, word, is_sealed);
            }
            Kind::Greeting => {}
        }
        // The first word of a session is what it waits for.
        if !self.sessions.is_heard(session) {
            self.look();
        }
    }

    /// A word came through the kernel's tunnel.
    pub(super) fn on_frame(&mut self, heard: Heard) {
        let Heard { from, word } = heard;
        let Some(vtep) = self.table.vteps.iter().find(|vtep| vtep.peer == from) else { return };
        match word.kind {
            Kind::Probe => {
                let answer = Word { kind: Kind::Answer, hasty: false, ..word };
                let sent = prober(&mut self.probers, vtep.underlay).send(from, answer, 0);
                if let Err(error) = sent {
                    tracing::debug!(peer = %from, %error, "a probe of the kernel's tunnel could not be answered");
                }
                self.on_probed(from, word);
            }
            Kind::Answer => self.on_answer(from, word, |way| !way.method.is_sealed()),
            Kind::Greeting => {}
        }
    }

    /// What was asked has been answered; is there more to it?
    fn on_probed(&self, peer: PeerName, word: Word) {
        if word.hasty {
            self.tell(Report::Haste(peer));
        }
    }

    /// Believed only from whom it was asked of, and on a way of the kind that it was asked on.
    fn on_answer(&mut self, peer: PeerName, word: Word, fits: impl Fn(Way) -> bool) {
        let Some((probe, _)) = self.asked.get(&word.nonce) else { return };
        if probe.peer == peer && probe.len == word.len && fits(probe.way) {
            let answer = ProbeAnswer { peer, way: probe.way, nonce: word.nonce, len: word.len };
            self.asked.remove(&word.nonce);
            self.tell(Report::Answer(answer));
        }
    }

    pub(super) fn probe(&mut self, probe: Probe) {
        let now = Instant::now();
        // Nonces rise, so the first is the oldest.
        while let Some(first) =
            self.asked.first_entry().filter(|first| now >= first.get().1 + ANSWER_PATIENCE)
        {
            first.remove();
        }
        let Probe { peer, way, nonce, len, hasty } = probe;
        let word = Word { kind: Kind::Probe, hasty, nonce, len };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(usize::from(u16::MAX));
        let sent = match (way.method, way.via) {
            (Method::FastDp, _) => self.probe_kernel(peer, word, len),
            (Method::Sleeve, Via::Direct) => self.probe_sealed(peer, &Carrier::Udp, word, len + OVERHEAD),
            (Method::Sleeve | Method::Quic, Via::Relay(hop)) => {
                self.probe_sealed(peer, &Carrier::Relay(hop), word, len + RELAYED_OVERHEAD)
            }
            (Method::Quic, Via::Direct) => match self.quic_to(peer).cloned() {
                Some(link) => self.probe_sealed(peer, &Carrier::Quic(link), word, len + OVERHEAD),
                None => false,
            },
        };
        if sent {
            self.asked.insert(nonce, (probe, now));
        }
    }

    fn probe_kernel(&mut self, peer: PeerName, word: Word, len: usize) -> bool {
        let Some(vtep) = self.table.vteps.iter().find(|vtep| vtep.peer == peer) else { return false };
        match prober(&mut self.probers, vtep.underlay).send(peer, word, len) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%peer, %error, "the kernel's tunnel could not be probed");
                false
            }
        }
    }

    fn probe_sealed(&self, peer: PeerName, carrier: &Carrier, word: Word, len: usize) -> bool {
        let (Ok(tunnel), Some((index, _))) = (&self.tunnel, self.sessions.to(peer)) else { return false };
        let shortest =
            WORD_LEN + if matches!(carrier, Carrier::Relay(_)) { RELAYED_OVERHEAD } else { OVERHEAD };
        tunnel.engine.probe(index, carrier, &word.to_bytes(), len.max(shortest))
    }
}

/// The prober of the device towards an address.
pub(super) fn prober(probers: &mut [Prober; 2], underlay: IpAddr) -> &mut Prober {
    let [four, six] = probers;
    if underlay.is_ipv4() { four } else { six }
}
