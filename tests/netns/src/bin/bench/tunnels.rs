//! Tunnels in user space: sleeve, QUIC and relay against fastdp, and against other people's.
//!
//! Ours are real agents, which differ in `--methods` and, for relay, in a third node between the two ([`relayed`]);
//! other people's are laid by hand ([`laid`]). Every node has the pods, the NAT table and the cable of the others, and
//! all of them take turns. A tool that is not installed has no row.

mod calls;
mod laid;
mod relayed;

use std::time::Duration;

use anyhow::Result;
use weave_netns::Lab;
use weave_netns::command;
use weave_netns::host::UPLINK;
use weave_netns::measure::{self, Flood, Path, RoundTrips};
use weave_netns::ns::Netns;
use weave_netns::settings::Settings;

use self::calls::Calls;
use self::laid::{Kind, Tunnel};
use self::relayed::Relayed;
use crate::dataplane::{Ours, PERIOD};
use crate::rows::{Goal, Row};

/// Sleeve's part of fastdp's speed, with a cable that segments and with one that does not.
const SLEEVE_SHARE: f64 = 0.6;
const SLEEVE_SHARE_NO_OFFLOAD: f64 = 0.35;
/// QUIC's part of fastdp's.
const QUIC_SHARE: f64 = 0.15;
/// A relay's part of sleeve's.
const RELAY_SHARE: f64 = 0.4;
/// Times the others' speed that sleeve must have: what fastdp's share comes to where fastdp is as fast as it should be.
const TIMES_BORINGTUN: f64 = 16.0;
const TIMES_WIREGUARD_GO: f64 = 2.3;
/// Sleeve's part of what fastdp delivers of a flood, and of one that the sender leaves to the kernel to cut.
const UDP_SHARE: f64 = 0.7;
const UDP_SHARE_UNCUT: f64 = 1.0;
/// Microseconds that sleeve may add to an idle round trip, and to the slowest hundredth beside a stream.
const ADDED_IDLE: f64 = 50.0;
const ADDED_LOADED: f64 = 2000.0;
/// System calls of a node for thousand packets of a stream.
const CALLS: f64 = 60.0;

/// The content of a flood's packets, and how many fit one call of a sender that has them cut.
const FLOOD: Flood = Flood { len: 1200, a_call: 1 };
const FLOOD_UNCUT: Flood = Flood { len: 1200, a_call: 50 };
/// What a packet of a stream carries through sleeve: the underlay's 1500, less 60 of the tunnel, and 52 of IPv4 and TCP.
const STREAM_PAYLOAD: f64 = 1388.0;

/// How long agents may take to agree on a method.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a program can be started.
fn is_installed(program: &str) -> bool {
    command::finish(command::words("which", [program]), "").is_ok_and(|finished| finished.code == Some(0))
}

/// One value a path, round by round, in changing order.
fn turns<T: Clone>(
    rounds: usize,
    paths: &[Path<'_>],
    take: impl Fn(Path<'_>) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut samples = vec![Vec::new(); paths.len()];
    for round in 0..rounds {
        for turn in 0..paths.len() {
            let place = (round + turn) % paths.len();
            samples[place].push(take(paths[place])?);
        }
    }
    Ok(samples)
}

fn tcp(path: Path<'_>) -> Result<f64> {
    measure::tcp_gigabits(path, 1, PERIOD)
}

/// Rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Streams,
    Floods,
    Trips,
    Calls,
}

impl Group {
    pub(crate) const ALL: [Self; 4] = [Self::Streams, Self::Floods, Self::Trips, Self::Calls];

    /// The group of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "streams" => Self::Streams,
            "floods" => Self::Floods,
            "trips" => Self::Trips,
            "calls" => Self::Calls,
            _ => return None,
        })
    }

    /// Whether it compares more than fastdp and sleeve.
    const fn compares_all(self) -> bool {
        matches!(self, Self::Streams | Self::Trips)
    }
}

/// All that is compared.
struct Field {
    fastdp: Ours,
    sleeve: Ours,
    /// QUIC and relay, where more than the two above are compared.
    rest: Option<(Ours, Relayed)>,
    boringtun: Option<Tunnel>,
    wireguard_go: Option<Tunnel>,
}

impl Field {
    fn set_up(lab: &Lab, all: bool) -> Result<Self> {
        let by = |method: &str| {
            let ours = Ours::with(lab, method, |options| options.flag(&format!("--methods={method}")))?;
            let [here, there] = ours.hosts();
            here.wait_method(there, method, PATIENCE)?;
            there.wait_method(here, method, PATIENCE)?;
            Ok::<_, anyhow::Error>(ours)
        };
        let (fastdp, sleeve) = (by("fastdp")?, by("sleeve")?);
        let rest = all.then(|| Ok::<_, anyhow::Error>((by("quic")?, Relayed::set_up(lab)?))).transpose()?;
        let other = |kind: Kind| {
            let here = all && is_installed(kind.program()) && is_installed("wg");
            here.then(|| Tunnel::set_up(lab, kind)).transpose()
        };
        let (boringtun, wireguard_go) = (other(Kind::Boringtun)?, other(Kind::WireguardGo)?);
        Ok(Self { fastdp, sleeve, rest, boringtun, wireguard_go })
    }

    /// fastdp, sleeve, QUIC, relay, and the others that are there.
    fn paths(&self) -> Vec<Path<'_>> {
        let rest = self.rest.iter().flat_map(|(quic, relay)| [quic.path(), relay.path()]);
        let others = self.others().map(|(_, tunnel)| tunnel.path());
        self.two().into_iter().chain(rest).chain(others).collect()
    }

    /// In the order of [`Self::paths`], by name, with what sleeve's speed is to be over theirs.
    fn others(&self) -> impl Iterator<Item = ((&'static str, f64), &Tunnel)> {
        let boringtun = self.boringtun.iter().map(|tunnel| (("boringtun", TIMES_BORINGTUN), tunnel));
        let wireguard_go =
            self.wireguard_go.iter().map(|tunnel| (("wireguard_go", TIMES_WIREGUARD_GO), tunnel));
        boringtun.chain(wireguard_go)
    }

    /// The ends of all cables: a node and its device.
    fn cables(&self) -> impl Iterator<Item = (&Netns, &str)> {
        let quic = self.rest.iter().flat_map(|(quic, _)| quic.nodes());
        let laid = self.others().flat_map(|(_, tunnel)| &tunnel.nodes);
        let pairs = self.fastdp.nodes().chain(self.sleeve.nodes()).chain(quic).chain(laid);
        let row = self.rest.iter().flat_map(|(_, relay)| relay.cables());
        pairs.map(|node| (&**node, UPLINK)).chain(row)
    }

    /// fastdp and sleeve.
    fn two(&self) -> [Path<'_>; 2] {
        [self.fastdp.path(), self.sleeve.path()]
    }
}

/// The rows of these groups.
pub(crate) fn measure(settings: &Settings, rounds: usize, groups: &[Group]) -> Result<Vec<Row>> {
    let lab = Lab::new(settings)?;
    let field = Field::set_up(&lab, groups.iter().any(|group| group.compares_all()))?;
    let mut rows = Vec::new();
    for group in groups {
        rows.extend(match group {
            Group::Streams => throughput(&field, rounds),
            Group::Floods => floods(&field, rounds),
            Group::Trips => round_trips(&field, rounds),
            Group::Calls => system_calls(&field, rounds),
        }?);
    }
    Ok(rows)
}

fn throughput(field: &Field, rounds: usize) -> Result<Vec<Row>> {
    let with = turns(rounds, &field.paths(), tcp)?;
    field.cables().try_for_each(|cable| cable_offload(cable, "off"))?;
    let without = turns(rounds, &field.paths(), tcp)?;
    field.cables().try_for_each(|cable| cable_offload(cable, "on"))?;
    let row = |name: &str, goal, ours, reference| Row::paired(name, "Gb/s", goal, ours, reference);
    let mut rows = vec![
        row("sleeve_tcp1", Goal::AtLeast(SLEEVE_SHARE), &with[1], &with[0]),
        row("quic_tcp1", Goal::AtLeast(QUIC_SHARE), &with[2], &with[0]),
        row("relay_tcp1", Goal::AtLeast(RELAY_SHARE), &with[3], &with[1]),
        row("sleeve_tcp1_nooffload", Goal::AtLeast(SLEEVE_SHARE_NO_OFFLOAD), &without[1], &without[0]),
        row("quic_tcp1_nooffload", Goal::None, &without[2], &without[0]),
        row("relay_tcp1_nooffload", Goal::None, &without[3], &without[1]),
    ];
    for (place, ((name, times), _)) in (4..).zip(field.others()) {
        let goal = Goal::AtLeast(times);
        rows.push(row(&format!("sleeve_vs_{name}_tcp1"), goal, &with[1], &with[place]));
        rows.push(row(&format!("sleeve_vs_{name}_tcp1_nooffload"), Goal::None, &without[1], &without[place]));
    }
    Ok(rows)
}

fn floods(field: &Field, rounds: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, flood, goal) in [
        ("sleeve_udp_pps", FLOOD, Goal::AtLeast(UDP_SHARE)),
        ("sleeve_udp_pps_gso", FLOOD_UNCUT, Goal::AtLeast(UDP_SHARE_UNCUT)),
        ("sleeve_udp_pps_smallest", Flood::SMALLEST, Goal::None),
    ] {
        let rates =
            turns(rounds, &field.two(), |path| Ok(measure::udp_flood(path, flood, PERIOD)?.kilopackets))?;
        rows.push(Row::paired(name, "kpps", goal, &rates[1], &rates[0]));
    }
    Ok(rows)
}

/// One of the values of a measurement.
type Value = fn(&RoundTrips) -> f64;

fn round_trips(field: &Field, rounds: usize) -> Result<Vec<Row>> {
    let idle = turns(rounds, &field.paths(), |path| measure::round_trips(path, PERIOD))?;
    let loaded = turns(rounds, &field.paths(), |path| measure::round_trips_loaded(path, PERIOD))?;
    let values =
        |trips: &[RoundTrips], value: fn(&RoundTrips) -> f64| trips.iter().map(value).collect::<Vec<_>>();
    let row = |name: &str, trips: &[Vec<RoundTrips>], place: usize, value| {
        let (ours, fastdp) = (values(&trips[place], value), values(&trips[0], value));
        Row::paired(name, "us", Goal::None, &ours, &fastdp)
    };
    let added = |name, trips: &[Vec<RoundTrips>], value: fn(&RoundTrips) -> f64, budget| {
        let pairs = trips[1].iter().zip(&trips[0]);
        let added: Vec<_> = pairs.map(|(ours, fastdp)| value(ours) - value(fastdp)).collect();
        Row::budget(name, "us", &added, budget)
    };
    let (p50, p99): (Value, Value) = (|trips| trips.p50, |trips| trips.p99);
    let mut rows = vec![
        added("sleeve_rtt_added", &idle, p50, ADDED_IDLE),
        added("sleeve_rtt_p99_loaded", &loaded, p99, ADDED_LOADED),
    ];
    let others = field.others().map(|((name, _), _)| name);
    for (place, name) in ["sleeve", "quic", "relay"].into_iter().chain(others).enumerate() {
        rows.push(row(&format!("{name}_rtt"), &idle, place + 1, p50));
        rows.push(row(&format!("{name}_rtt_loaded"), &loaded, place + 1, p50));
        rows.push(row(&format!("{name}_rtt_loaded_p99"), &loaded, place + 1, p99));
    }
    Ok(rows)
}

/// Both ends of one stream at once; the row that has a goal is of the end with more.
fn system_calls(field: &Field, rounds: usize) -> Result<Vec<Row>> {
    let (mut sender, mut receiver) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let [here, there] = field.sleeve.hosts();
        let (sends, receives) = (Calls::of(here)?, Calls::of(there)?);
        let thousands = measure::tcp_bytes(field.sleeve.path(), PERIOD)? / STREAM_PAYLOAD / 1e3;
        sender.push(sends.finish()? / thousands);
        receiver.push(receives.finish()? / thousands);
    }
    let most: Vec<_> = sender.iter().zip(&receiver).map(|(one, other)| one.max(*other)).collect();
    let row = |name, calls: &[f64]| Row::budget(name, "/1000", calls, CALLS);
    Ok(vec![
        row("sleeve_syscalls", &most),
        row("sleeve_syscalls_sender", &sender),
        row("sleeve_syscalls_receiver", &receiver),
    ])
}

/// Whether the cable carries segmented sends and tunnelled super-packets whole.
fn cable_offload((node, device): (&Netns, &str), value: &str) -> Result<()> {
    let features = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp-segmentation"];
    let each = features.map(|feature| format!("{feature} {value}")).join(" ");
    node.run(&format!("ethtool -K {device} {each}")).map(drop)
}
