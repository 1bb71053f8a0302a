//! To whom pods send packets: their ways are probed closely, others' rarely.
//!
//! The kernel's tunnel is asked for the last use of each peer's forwarding entry, and the engine for the records that it
//! has sealed. Both see only packets of pods and of this node itself, not probes. Asking costs one system call for
//! all peers, and happens on a thread for work that waits, since the kernel may be busy with its links.

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

type Looked = (Option<TunnelUse>, Vec<PeerName>);

/// See the module's text.
#[derive(Default)]
pub(super) struct Traffic {
    asked: Option<Instant>,
    asking: Option<JoinHandle<Looked>>,
    kernel: Option<TunnelUse>,
    /// How many records of pods' packets each session has sealed.
    sealed: BTreeMap<u32, u64>,
}

impl Traffic {
    /// Asks, if it is about time: the kernel about these devices, whose answer comes from [`Self::heard`]. Those to whom
    /// sealed records were sent, of the sessions with the counts of `sessions`. Needs a runtime.
    pub(super) fn look(
        &mut self,
        sessions: impl Iterator<Item = (u32, PeerName, u64)>,
        by_kernel: bool,
        now: Instant,
    ) -> Vec<PeerName> {
        if self.asked.is_some_and(|asked| now < asked + PACE - EARLY) {
            return Vec::new();
        }
        let span = self.asked.map_or(PACE, |asked| now.saturating_duration_since(asked));
        self.asked = Some(now);
        if by_kernel && self.asking.is_none() {
            let kernel = self.kernel.take();
            self.asking = Some(tokio::task::spawn_blocking(move || ask(kernel, span + COARSE)));
        }
        let before = std::mem::take(&mut self.sealed);
        let mut sent = Vec::new();
        for (session, peer, count) in sessions {
            if before.get(&session).is_some_and(|before| *before != count) {
                sent.push(peer);
            }
            self.sealed.insert(session, count);
        }
        sent
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
