//! Metrics for Prometheus, made from the status document at each scrape.
//!
//! Names are an interface: dashboards and alerts for Weave Net exist and shall go on working, so its names, labels
//! and meanings come first and exactly; ours stand beside them. Two of Weave's have no counterpart here and are
//! left out rather than faked: `weave_dns_entries` and `weave_flows` (Open vSwitch). All names and their help texts
//! stand in this file; a test compares all of them with a list.

mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use weave_proto::local::status::{CLAIM, ConnectionState, IpamStatus, Status, TunnelStatus};

use process::Process;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own format, as Weave Net wrote it.
    Classic,
    /// OpenMetrics 1.0, where the scraper asks for it.
    OpenMetrics,
}

impl Format {
    /// Its name in HTTP.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All metrics of this moment.
///
/// # Errors
/// Never, as far as is known: writing to memory does not fail.
pub fn render(status: Arc<Status>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot { status, process: Process::observe() }));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(match format {
        Format::OpenMetrics => out,
        Format::Classic => classic(&out),
    })
}

/// OpenMetrics names a counter without the `_total` of its samples; the classic format names it with.
fn classic(open: &str) -> String {
    let counters: Vec<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(open.len());
    for line in open.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(&name) => {
                out.extend(["# ", kind, " ", name, "_total ", rest]);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// The document as a source of metrics.
#[derive(Debug)]
struct Snapshot {
    status: Arc<Status>,
    process: Process,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut out = Writer(encoder);
        out.connections(&self.status)?;
        if let Some(ipam) = &self.status.ipam {
            out.addresses(ipam)?;
        }
        out.mesh(&self.status)?;
        out.node(&self.status)?;
        if let Some(tunnels) = &self.status.tunnels {
            out.tunnels(tunnels)?;
        }
        out.process(&self.process)
    }
}

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn connections(&mut self, status: &Status) -> fmt::Result {
        let mut counts = BTreeMap::new();
        for connection in &status.router.connections {
            let method = connection.method.as_ref();
            let method_name = method.map_or("unknown", |method| method.name.as_str());
            let encryption = if method.is_some_and(|method| method.encrypted) { "yes" } else { "" };
            *counts.entry((connection.state, method_name, encryption)).or_insert(0_u64) += 1;
        }
        // A state in which nothing is counts 0: a series that vanishes is hard to alert on.
        for state in ConnectionState::ALL {
            if !counts.keys().any(|(counted, _, _)| *counted == state) {
                counts.insert((state, "unknown", ""), 0);
            }
        }
        let samples = counts.into_iter().map(|((state, method, encryption), count)| {
            ([("state", state.word()), ("type", method), ("encryption", encryption)], float(count))
        });
        self.gauges("weave_connections", "Number of peer-to-peer connections.", samples)?;
        let help = "Number of peer-to-peer connections terminated.";
        self.counter("weave_connection_terminations", help, status.router.terminations)
    }

    fn addresses(&mut self, ipam: &IpamStatus) -> fmt::Result {
        let used = [([("state", "local-used")], float(ipam.allocations.len()))];
        self.gauges("weave_ips", "Number of IP addresses.", used.into_iter())?;
        let all = float(ipam.range.len());
        self.gauge("weave_max_ips", "Size of IP address space used by allocator.", all)?;
        let lost = || ipam.shares.iter().filter(|share| !share.reachable);
        let help = "Number of unreachable peers that own IPAM addresses.";
        self.gauge("weave_ipam_unreachable_count", help, float(lost().count()))?;
        let lost_addresses: u128 = lost().map(|share| u128::from(share.addresses)).sum();
        let help = "Percentage of all IP addresses owned by unreachable peers.";
        self.gauge("weave_ipam_unreachable_percentage", help, float(lost_addresses) * 100.0 / all)?;
        let claims = ipam.pending.iter().filter(|pending| pending.starts_with(CLAIM)).count();
        let allocates = ipam.pending.len() - claims;
        self.gauge("weave_ipam_pending_allocates", "Number of pending allocates.", float(allocates))?;
        self.gauge("weave_ipam_pending_claims", "Number of pending claims.", float(claims))?;
        self.gauge("weave_ipam_ready", "Whether an address could be given out now.", flag(ipam.ready))?;
        let own: u64 = ipam.shares.first().map_or(0, |share| share.addresses);
        self.gauge("weave_ipam_owned_ips", "Number of IP addresses that this peer owns.", float(own))?;
        let help = "Number of IP addresses freed a short while ago and not given out again yet.";
        self.gauge("weave_ipam_quarantined_ips", help, float(ipam.quarantined))
    }

    fn mesh(&mut self, status: &Status) -> fmt::Result {
        let reachable = status.router.peers.iter().filter(|peer| peer.reachable).count();
        let lost = status.router.peers.len() - reachable;
        let states =
            [([("state", "reachable")], float(reachable)), ([("state", "unreachable")], float(lost))];
        self.gauges("weave_peers", "Number of peers known, this one included.", states.into_iter())?;
        let targets = float(status.router.targets.len());
        self.gauge("weave_targets", "Number of places where the agent was told to find peers.", targets)?;
        let help = "Number of messages of peers that were not believed.";
        self.counters("weave_refused_messages", help, "reason", &status.router.refused)
    }

    fn node(&mut self, status: &Status) -> fmt::Result {
        let node = &status.node;
        self.gauge("weave_ready", "Whether a pod could be attached now.", flag(status.is_ready()))?;
        let warnings = float(status.warnings.len());
        self.gauge("weave_warnings", "Number of warnings that `weave status` shows.", warnings)?;
        self.gauge("weave_pods", "Number of pods attached on this node.", float(node.pods))?;
        if let Some(mtu) = node.mtu {
            self.gauge("weave_pod_mtu_bytes", "The largest packet that a pod may send.", float(mtu))?;
        }
        let help = "Number of things on this node that could not be brought into the desired state.";
        self.gauge("weave_node_problems", help, float(node.problems.len()))?;
        let help = "Number of times that something on this node was found changed or missing and put right.";
        self.counters("weave_node_repairs", help, "object", &node.repairs)?;
        let help = "Number of packets that this node refused.";
        self.counters("weave_dropped_packets", help, "reason", &node.drops)?;
        let build = [([("version", status.version.as_str())], 1.0)];
        self.gauges("weave_build_info", "The version that runs, as a label.", build.into_iter())?;
        let started = float(status.started_at);
        self.gauge("weave_start_time_seconds", "When the agent started, in seconds since 1970.", started)
    }

    fn tunnels(&mut self, tunnels: &TunnelStatus) -> fmt::Result {
        let counts = [
            (
                "weave_tunnel_sent_bytes",
                "Bytes of datagrams sent by the tunnels in user space, probes included.",
                tunnels.sent_bytes,
            ),
            (
                "weave_tunnel_received_bytes",
                "Bytes of datagrams received by the tunnels in user space, whatever they were.",
                tunnels.received_bytes,
            ),
            (
                "weave_tunnel_opened_records",
                "Number of authentic sealed records received.",
                tunnels.opened_records,
            ),
            (
                "weave_tunnel_relayed_frames",
                "Number of sealed records sent on for other peers.",
                tunnels.relayed_frames,
            ),
        ];
        counts.into_iter().try_for_each(|(name, help, count)| self.counter(name, help, count))?;
        let help = "Number of packets and sealed records that the tunnels in user space did not pass on.";
        self.counters("weave_tunnel_drops", help, "reason", &tunnels.drops)?;
        let help = "Number of times that something took a slow way since the kernel had no fast one.";
        self.counters("weave_tunnel_fallbacks", help, "kind", &tunnels.fallbacks)
    }

    fn process(&mut self, process: &Process) -> fmt::Result {
        if let Some(seconds) = process.cpu_seconds {
            let help = "Total user and system CPU time spent in seconds.";
            let counter = ConstCounter::new(seconds);
            let encoder =
                self.0.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?;
            counter.encode(encoder)?;
        }
        let gauges = [
            ("process_open_fds", "Number of open file descriptors.", process.open_fds),
            ("process_max_fds", "Maximum number of open file descriptors.", process.max_fds),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes.", process.virtual_bytes),
            ("process_resident_memory_bytes", "Resident memory size in bytes.", process.resident_bytes),
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                process.started,
            ),
            ("process_threads", "Number of threads.", process.threads),
        ];
        // What the kernel does not tell is left out.
        gauges
            .into_iter()
            .try_for_each(|(name, help, value)| value.map_or(Ok(()), |it| self.gauge(name, help, it)))
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        let encoder = self.0.encode_descriptor(name, help, None, gauge.metric_type())?;
        gauge.encode(encoder)
    }

    fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = ([(&'static str, &'a str); N], f64)>,
    ) -> fmt::Result {
        let kind = ConstGauge::new(0.0).metric_type();
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        let encoder = self.0.encode_descriptor(name, help, None, counter.metric_type())?;
        counter.encode(encoder)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        counts: &BTreeMap<String, u64>,
    ) -> fmt::Result {
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (value, count) in counts {
            ConstCounter::new(*count).encode(encoder.encode_family(&[(label, value.as_str())])?)?;
        }
        Ok(())
    }
}

/// A count as Prometheus keeps it: a double, exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "Prometheus keeps doubles")]
fn float(count: impl TryInto<u128>) -> f64 {
    count.try_into().unwrap_or(u128::MAX) as f64
}

const fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests;
