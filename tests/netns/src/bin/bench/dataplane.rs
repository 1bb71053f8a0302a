//! Packets: ours against the hand-made network, and the hand-made network against the bare underlay.
//!
//! Each network has two nodes joined by a cable of their own. The same NAT table is loaded on all four nodes, so
//! that connections are tracked on both sides, and `bridge-nf-call-iptables` is on, as kubelet sets it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use weave_netns::host::{UPLINK, wire};
use weave_netns::measure::{self, Flood, Path};
use weave_netns::ns::Netns;
use weave_netns::reference::{self, ReferenceNode, ReferencePod};
use weave_netns::settings::Settings;
use weave_netns::{AgentOptions, Host, HostOptions, Lab, Pod};

use crate::rows::{Goal, Row};

/// How long one sample of a tunnel takes.
pub(crate) const PERIOD: Duration = Duration::from_millis(700);
/// How long a network is measured until it is another's turn: short, since a machine that does other work, or whose
/// host does, is slow in bursts that last for seconds.
const SLICE: Duration = Duration::from_millis(230);
/// How many turns of each network make one round, whose value is their mean.
const SLICES: u8 = 3;
/// Fastdp's share of the hand-made network's speed that must be reached.
const SHARE: f64 = 0.95;
/// The range of ours.
pub(crate) const UNIVERSE: &str = "10.32.0.0/12";

/// What is measured on a path. The order is that of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measurement {
    Tcp1,
    Tcp4,
    Udp,
    RoundTrip,
    RoundTripLoaded,
    Tcp1NoOffload,
}

impl Measurement {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Tcp1, Self::Tcp4, Self::Udp, Self::RoundTrip, Self::RoundTripLoaded, Self::Tcp1NoOffload];

    /// Those that a part of this part of the bench consists of.
    pub(crate) fn named(name: &str) -> Option<&'static [Self]> {
        match name {
            "streams" => Some(&[Self::Tcp1, Self::Tcp4, Self::Tcp1NoOffload]),
            "floods" => Some(&[Self::Udp]),
            "trips" => Some(&[Self::RoundTrip, Self::RoundTripLoaded]),
            _ => None,
        }
    }

    /// The rows it yields: name, unit and goal.
    fn rows(self) -> Vec<(&'static str, &'static str, Goal)> {
        let (high, low) = (Goal::AtLeast(SHARE), Goal::AtMost(1.0 / SHARE));
        match self {
            Self::Tcp1 => vec![("tcp1", "Gb/s", high)],
            Self::Tcp4 => vec![("tcp4", "Gb/s", high)],
            Self::Udp => vec![("udp_pps", "kpps", high), ("udp_cpu", "ns", Goal::None)],
            Self::RoundTrip => vec![("rtt_p50", "us", low), ("rtt_p99", "us", Goal::None)],
            Self::RoundTripLoaded => {
                vec![("rtt_p50_loaded", "us", low), ("rtt_p99_loaded", "us", Goal::None)]
            }
            Self::Tcp1NoOffload => vec![("tcp1_nooffload", "Gb/s", high)],
        }
    }

    /// Measures once: one value a row.
    fn take(self, path: Path<'_>) -> Result<Vec<f64>> {
        let both = |trips: measure::RoundTrips| vec![trips.p50, trips.p99];
        Ok(match self {
            Self::Tcp1 | Self::Tcp1NoOffload => vec![measure::tcp_gigabits(path, 1, SLICE)?],
            Self::Tcp4 => vec![measure::tcp_gigabits(path, 4, SLICE)?],
            Self::Udp => {
                let flood = measure::udp_flood(path, Flood::SMALLEST, SLICE)?;
                vec![flood.kilopackets, flood.nanoseconds]
            }
            Self::RoundTrip => both(measure::round_trips(path, SLICE)?),
            Self::RoundTripLoaded => both(measure::round_trips_loaded(path, SLICE)?),
        })
    }
}

/// Two nodes that are not ours, with a pod each.
struct HandMade {
    hosts: [Arc<Host>; 2],
    nodes: [Arc<Netns>; 2],
    pods: [ReferencePod; 2],
}

impl HandMade {
    fn set_up(lab: &Lab) -> Result<Self> {
        let hosts = pair(lab, "hand")?;
        let made = [ReferenceNode::set_up(&hosts[0], 1)?, ReferenceNode::set_up(&hosts[1], 2)?];
        made[0].know(&hosts[0], &made[1])?;
        made[1].know(&hosts[1], &made[0])?;
        let pods = [made[0].pod(&hosts[0], "a")?, made[1].pod(&hosts[1], "b")?];
        let nodes = [hosts[0].ns()?, hosts[1].ns()?];
        nodes.iter().try_for_each(|node| load_nat(node, reference::UNIVERSE))?;
        Ok(Self { hosts, nodes, pods })
    }

    fn path(&self) -> Path<'_> {
        Path { from: &self.pods[0].namespace, to: &self.pods[1].namespace, address: self.pods[1].address }
    }

    fn underlay(&self) -> Path<'_> {
        Path { from: &self.nodes[0], to: &self.nodes[1], address: self.hosts[1].address() }
    }
}

/// Two nodes of ours, with a pod each.
pub(crate) struct Ours {
    hosts: [Arc<Host>; 2],
    nodes: [Arc<Netns>; 2],
    pods: [Pod; 2],
}

impl Ours {
    pub(crate) fn set_up(lab: &Lab) -> Result<Self> {
        Self::with(lab, "weave", |options| options)
    }

    /// The same under another name and with flags of one's choice.
    pub(crate) fn with(lab: &Lab, name: &str, choose: impl Fn(AgentOptions) -> AgentOptions) -> Result<Self> {
        let hosts = pair(lab, name)?;
        hosts[0].launch(&choose(AgentOptions::founder(2, &[&hosts[1]])))?;
        hosts[1].launch(&choose(AgentOptions::founder(2, &[&hosts[0]])))?;
        hosts.iter().try_for_each(|host| host.wait_ready())?;
        hosts[0].wait_connected(&[&hosts[1]])?;
        let pods = [hosts[0].pod("a")?, hosts[1].pod("b")?];
        let nodes = [hosts[0].ns()?, hosts[1].ns()?];
        nodes.iter().try_for_each(|node| load_nat(node, UNIVERSE))?;
        Ok(Self { hosts, nodes, pods })
    }

    /// Its hosts.
    pub(crate) const fn hosts(&self) -> &[Arc<Host>; 2] {
        &self.hosts
    }

    /// Its nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Netns>> {
        self.nodes.iter()
    }

    pub(crate) fn path(&self) -> Path<'_> {
        Path { from: self.pods[0].ns(), to: self.pods[1].ns(), address: self.pods[1].address() }
    }
}

/// Ours against the hand-made network; and the underlay beside them, for orientation.
pub(crate) fn ours(settings: &Settings, rounds: usize, ways: &[Measurement]) -> Result<Vec<Row>> {
    let lab = Lab::new(settings)?;
    let (hand_made, ours) = (HandMade::set_up(&lab)?, Ours::set_up(&lab)?);
    let nodes: Vec<_> = hand_made.nodes.iter().chain(&ours.nodes).map(Arc::as_ref).collect();
    let paths = [ours.path(), hand_made.path(), hand_made.underlay()];
    let mut rows = Vec::new();
    for &measurement in ways {
        let samples = take_turns(measurement, &paths, &nodes, rounds)?;
        for ((name, unit, goal), values) in measurement.rows().into_iter().zip(samples) {
            let [ours, hand_made, underlay] = values.as_slice() else { continue };
            rows.push(Row::paired(&format!("fastdp_{name}"), unit, goal, ours, hand_made));
            rows.push(Row::paired(&format!("fastdp_{name}_to_underlay"), unit, Goal::None, ours, underlay));
        }
    }
    Ok(rows)
}

/// The hand-made network against the underlay.
pub(crate) fn hand_made(settings: &Settings, rounds: usize) -> Result<Vec<Row>> {
    let lab = Lab::new(settings)?;
    let hand_made = HandMade::set_up(&lab)?;
    let nodes: Vec<_> = hand_made.nodes.iter().map(Arc::as_ref).collect();
    let mut rows = Vec::new();
    for measurement in Measurement::ALL {
        let samples = take_turns(measurement, &[hand_made.path(), hand_made.underlay()], &nodes, rounds)?;
        for ((name, unit, _), values) in measurement.rows().into_iter().zip(samples) {
            let [hand_made, underlay] = values.as_slice() else { continue };
            rows.push(Row::paired(&format!("handmade_{name}"), unit, Goal::None, hand_made, underlay));
        }
    }
    Ok(rows)
}

/// For each row of the measurement, for each path, the value of each round.
fn take_turns(
    measurement: Measurement,
    paths: &[Path<'_>],
    nodes: &[&Netns],
    rounds: usize,
) -> Result<Vec<Vec<Vec<f64>>>> {
    let mut samples = vec![vec![Vec::new(); paths.len()]; measurement.rows().len()];
    let plain = matches!(measurement, Measurement::Tcp1NoOffload);
    if plain {
        nodes.iter().try_for_each(|node| tunnel_offload(node, "off"))?;
    }
    for round in 0..rounds {
        let mut sums = vec![vec![0.0; paths.len()]; samples.len()];
        for turn in 0..usize::from(SLICES) * paths.len() {
            let place = (round + turn) % paths.len();
            for (row, value) in measurement.take(paths[place])?.into_iter().enumerate() {
                sums[row][place] += value;
            }
        }
        for (row, sums) in samples.iter_mut().zip(sums) {
            row.iter_mut().zip(sums).for_each(|(values, sum)| values.push(sum / f64::from(SLICES)));
        }
    }
    if plain {
        nodes.iter().try_for_each(|node| tunnel_offload(node, "on"))?;
    }
    Ok(samples)
}

/// Two nodes joined by a cable.
fn pair(lab: &Lab, name: &str) -> Result<[Arc<Host>; 2]> {
    let make = |end: &str| lab.host_with(HostOptions::new(&format!("{name}-{end}")).without_uplink());
    let hosts = [make("a")?, make("b")?];
    wire(&hosts[0], &hosts[1])?;
    Ok(hosts)
}

/// The NAT table of a node of a cluster: a service nobody asks for, and masquerading of what leaves.
pub(crate) fn load_nat(node: &Netns, universe: &str) -> Result<()> {
    node.sysctl("net.bridge.bridge-nf-call-iptables", "1")?;
    node.nft(&format!(
        "table ip cluster_nat {{\n\
         chain services {{ ip daddr 10.96.0.10 udp dport 53 dnat to 10.96.0.11:53; }}\n\
         chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain output {{ type nat hook output priority -100; jump services; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat;\n\
           ip saddr {universe} ip daddr != {universe} masquerade; }}\n}}\n"
    ))
    .map(drop)
}

/// Whether the uplink carries whole super-packets inside a tunnel, as a good network card does, or the kernel
/// must cut them itself.
fn tunnel_offload(node: &Netns, value: &str) -> Result<()> {
    node.run(&format!(
        "ethtool -K {UPLINK} tx-udp_tnl-segmentation {value} tx-udp_tnl-csum-segmentation {value}"
    ))
    .map(drop)
}
