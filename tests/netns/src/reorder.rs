//! A cable on which some packets are late: overtaken by others, never lost.
//!
//! ```text
//!   node           underlay namespace
//!   eth0 ══ pN <── two threads ──> lateN ══ lateN-br ── br0
//! ```
//! Each thread takes frames on one side and sends them on the other, most at once and some a little later. What it
//! sends passes the other thread's socket, too; frames are told apart by whether the node is their source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::attack::RawLink;
use crate::host::{Host, UPLINK};
use crate::lab::{BRIDGE, Lab};
use crate::seed::Chance;

/// How often a thread looks whether it shall end.
const TICK: Duration = Duration::from_millis(50);
/// Longer than any frame without offloads, jumbo frames included.
const LONGEST: usize = 10_000;

/// Which packets are late, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Late {
    /// How many of a hundred.
    pub percent: u64,
    /// By how much at most; a tenth of it at least.
    pub delay: Duration,
}

/// A cable of the kind that the module describes; ends when dropped, and the node is without a cable then.
#[derive(Debug)]
pub struct LateCable {
    ending: Arc<AtomicBool>,
    overtaken: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl LateCable {
    /// Puts such a cable in the place of a node's. Offloads of the node's uplink are switched off, so that what passes
    /// are packets as a wire carries them.
    ///
    /// # Errors
    /// A link cannot be made.
    pub fn lay(lab: &Lab, host: &Host, late: Late) -> Result<Self> {
        let (node, underlay) = (host.ns()?, lab.underlay());
        let index = host.address().octets()[3];
        let (port, near, far) = (format!("p{index}"), format!("late{index}"), format!("late{index}-br"));
        underlay.ip_batch(&format!(
            "link add {near} type veth peer name {far}\nlink set {port} nomaster\n\
             link set {far} master {BRIDGE} up\nlink set {near} up\n"
        ))?;
        for (namespace, link) in [(&*node, UPLINK), (underlay, far.as_str())] {
            namespace.run(&format!("ethtool -K {link} tx off tso off gso off tx-udp-segmentation off"))?;
        }
        let mac = node.mac(UPLINK)?;
        let (ending, overtaken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = [(&port, &near, true), (&near, &port, false)].map(|(from, to, outbound)| {
            let (from, to) = (RawLink::listen(underlay, from)?, RawLink::open(underlay, to)?);
            let (ending, overtaken) = (Arc::clone(&ending), Arc::clone(&overtaken));
            let mut chance = Chance::of_run(lab.settings(), u64::from(outbound));
            underlay.spawn(move || {
                let wanted = |frame: &[u8]| (frame.get(6..12) == Some(&mac[..])) == outbound;
                forward((&from, &to), wanted, late, (&mut chance, &overtaken), &ending)
            })
        });
        Ok(Self { ending, overtaken, threads: threads.into_iter().collect::<Result<_>>()? })
    }

    /// How many packets were overtaken by others so far.
    #[must_use]
    pub fn overtaken(&self) -> u64 {
        self.overtaken.load(Ordering::Relaxed)
    }
}

impl Drop for LateCable {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn forward(
    (from, to): (&RawLink, &RawLink),
    wanted: impl Fn(&[u8]) -> bool,
    late: Late,
    (chance, overtaken): (&mut Chance, &AtomicU64),
    ending: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; LONGEST];
    // By time, and by number among those of one time.
    let mut waiting: BTreeMap<(Instant, u64), Vec<u8>> = BTreeMap::new();
    let mut number = 0_u64;
    while !ending.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some(first) = waiting.first_entry().filter(|first| first.key().0 <= now) {
            to.send(&first.remove()).context("sending a late frame")?;
        }
        let patience =
            waiting.first_key_value().map_or(TICK, |(key, _)| key.0.saturating_duration_since(now));
        let Some(frame) = from.receive(patience.min(TICK), &mut buffer)? else { continue };
        if !wanted(frame) {
            continue;
        }
        if chance.below(100) < late.percent {
            let delay = late.delay.mul_f64(0.1 + 0.9 * unit(chance));
            waiting.insert((Instant::now() + delay, number), frame.to_vec());
            number += 1;
        } else {
            overtaken.fetch_add(waiting.len() as u64, Ordering::Relaxed);
            to.send(frame).context("sending a frame")?;
        }
    }
    Ok(())
}

/// A number from 0 to 1.
fn unit(chance: &mut Chance) -> f64 {
    f64::from(u32::try_from(chance.below(1 << 16)).unwrap_or_default()) / f64::from(1_u32 << 16)
}
