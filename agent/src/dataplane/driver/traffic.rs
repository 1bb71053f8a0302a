//! To whom packets are sent, those of pods of this node and those that it relays: their ways are probed closely, others'
//! rarely.
//!
//! The kernel's tunnel is asked for the last use of each peer's forwarding entry, and the engine for the records that it
//! has sealed. Both see only packets of pods and of this node itself, not probes. Asking costs one system call for
//! all peers, and happens on a thread for work that waits, since the kernel may be busy with its links.
//!
//! What is relayed is sealed, so that probes among it cannot be told apart; but probes are few ([`FEW`]).

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use weave_proto::PeerName;

use crate::dataplane::sys;
use crate::net::TunnelUse;
use crate::net::names;

/// How often it is asked. Together with the two seconds that a way with traffic takes to be found silent, it bounds how
/// late the death of an idle way is noticed when a packet is sent on it: 3 s.
const PACE: Duration = Duration::from_secs(1);

/// How much sooner it may be asked if the driver is awake anyway.
const EARLY: Duration = Duration::from_millis(300);

/// The kernel's ages are this coarse, and the thread that asks may have to wait for a processor.
const COARSE: Duration = Duration::from_millis(50);

/// So many frames a second that are relayed to one peer may all be probes: two ends in doubt of each other's ways send 7
/// each, and so do their answers.
const FEW: u64 = 30;

type Looked = (Option<TunnelUse>, Vec<PeerName>);

/// What was counted of a session so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    /// Records of packets sealed.
    pub(super) sealed: u64,
    /// Frames of others sent on.
    pub(super) relayed: u64,
}

/// To whom something was sent since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Sealed packets of pods.
    pub(super) sent: Vec<PeerName>,
    /// Frames of others, so many that they are not all probes.
    pub(super) relayed: Vec<PeerName>,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Traffic {
    asked: Option<Instant>,
    asking: Option<JoinHandle<Looked>>,
    kernel: Option<TunnelUse>,
    /// What was counted of each session.
    counted: BTreeMap<u32, Counts>,
}

impl Traffic {
    /// Asks, if it is about time: the kernel about its devices, whose answer comes from [`Self::heard`]. What the engine
    /// has sent, by the counts of its sessions. Needs a runtime, if the kernel is to be asked.
    pub(super) fn look(
        &mut self,
        sessions: impl Iterator<Item = (u32, PeerName, Counts)>,
        by_kernel: bool,
        now: Instant,
    ) -> Seen {
        if self.asked.is_some_and(|asked| now < asked + PACE - EARLY) {
            return Seen::default();
        }
        let span = self.asked.map_or(PACE, |asked| now.saturating_duration_since(asked));
        self.asked = Some(now);
        if by_kernel && self.asking.is_none() {
            let kernel = self.kernel.take();
            self.asking = Some(tokio::task::spawn_blocking(move || ask(kernel, span + COARSE)));
        }
        let before = std::mem::take(&mut self.counted);
        let few = FEW * u64::try_from(span.as_millis()).unwrap_or(u64::MAX) / 1000;
        let mut seen = Seen::default();
        for (session, peer, counts) in sessions {
            if let Some(before) = before.get(&session) {
                if before.sealed != counts.sealed {
                    seen.sent.push(peer);
                }
                if counts.relayed.saturating_sub(before.relayed) > few {
                    seen.relayed.push(peer);
                }
            }
            self.counted.insert(session, counts);
        }
        seen
    }

    /// The kernel's answer, when it is there. May be cancelled without loss.
    pub(super) async fn heard(&mut self) -> Vec<PeerName> {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let looked = asking.await;
        self.asking = None;
        let (kernel, sent) = looked.unwrap_or_default();
        self.kernel = kernel;
        sent
    }
}

/// Asks the kernel about both of its tunnel devices; the socket, if it can be used again.
fn ask(kernel: Option<TunnelUse>, span: Duration) -> Looked {
    let asked = || -> io::Result<Looked> {
        let mut kernel = match kernel {
            Some(kernel) => kernel,
            None => TunnelUse::open()?,
        };
        let mut sent = Vec::new();
        // A device that is not there carries nothing.
        for device in [names::VXLAN, names::VXLAN6].into_iter().filter_map(|name| sys::link_index(name).ok())
        {
            sent.extend(kernel.within(device, span)?);
        }
        Ok((Some(kernel), sent))
    };
    asked().unwrap_or_else(|error| {
        tracing::debug!(%error, "the kernel does not tell which tunnels are in use");
        Looked::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_this_node_count_from_the_first_and_relayed_ones_where_they_are_more_than_probes_are() {
        let (mut traffic, start) = (Traffic::default(), Instant::now());
        let [one, other] = [7, 8].map(|last| PeerName::from_bits([2, 0, 0, 0, 0, last]));
        let mut look = |second, sealed, relayed| {
            let counts = [(1, one, Counts { sealed, relayed: 0 }), (2, other, Counts { sealed: 0, relayed })];
            traffic.look(counts.into_iter(), false, start + Duration::from_secs(second))
        };
        assert_eq!(look(0, 5, 500), Seen::default(), "nothing to compare with");
        assert_eq!(look(1, 5, 500 + FEW), Seen::default());
        assert_eq!(look(2, 6, 501 + 2 * FEW), Seen { sent: vec![one], relayed: vec![other] });
    }
}
