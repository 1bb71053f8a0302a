//! Packets are as large as the network between the nodes allows, and no larger.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::host::UPLINK;
use weave_netns::probe::{self, Flow};
use weave_netns::wait::throughout;
use weave_netns::{AgentOptions, HostOptions, Lab, Pair, Pod, Way, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// The pace of a flow that notices a gap.
const PACE: Duration = Duration::from_millis(20);
/// How long a flow runs before and after what may disturb it.
const RUN: Duration = Duration::from_millis(500);
/// The narrowest that IPv6 could be spoken over.
const NARROW: u32 = 1280;
const JUMBO: u32 = 9000;

/// What a way adds to a packet of a pod. By QUIC, the search for a path's size may end below the truth, and where a path
/// has shrunk it begins anew at 1200 bytes.
const fn overhead(way: Way) -> RangeInclusive<u32> {
    match way {
        Way::Kernel => 50..=50,
        Way::Sealed => 60..=60,
        Way::Quic => 90..=150,
        Way::Relayed => 80..=80,
    }
}

/// The largest packet that passes between the pods over an underlay of `mtu`, both ways.
fn largest_is_right(pair: &Pair, way: Way, mtu: u32) -> Result<()> {
    let (least, most) = (mtu - overhead(way).end(), mtu - overhead(way).start());
    for (from, to) in [(&pair.one, &pair.other), (&pair.other, &pair.one)] {
        eventually(PATIENCE, &format!("a packet of {least} bytes passes"), || {
            probe::ping_sized(from.ns(), to.address(), least)
        })?;
        eventually(PATIENCE, "a larger one is refused", || is_told(from, to, most + 1))?;
    }
    Ok(())
}

/// A packet of that size does not pass, and its sender is told so rather than left in silence.
fn is_told(from: &Pod, to: &Pod, size: u32) -> Result<()> {
    let told = probe::ping_sized(from.ns(), to.address(), size);
    let told = format!("{:#}", told.err().with_context(|| format!("a packet of {size} bytes passed"))?);
    ensure!(told.contains("too long") || told.contains("Frag needed"), "{told}");
    Ok(())
}

/// The MTU of a pod's interface.
fn mtu_of(pod: &Pod) -> Result<u32> {
    let shown = pod.ns().ip("-o link show dev eth0")?;
    let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    mtu.and_then(|mtu| mtu.parse().ok()).with_context(|| format!("no MTU in {shown}"))
}

#[test]
fn over_a_narrow_underlay_pods_send_what_fits() {
    run_in_lab(|lab| fits(lab, Way::Kernel, NARROW));
}

#[test]
fn over_a_narrow_underlay_pods_send_what_fits_sealed() {
    run_in_lab(|lab| fits(lab, Way::Sealed, NARROW));
}

#[test]
fn over_a_narrow_underlay_pods_send_what_fits_by_quic() {
    run_in_lab(|lab| fits(lab, Way::Quic, NARROW));
}

#[test]
fn over_a_narrow_underlay_pods_send_what_fits_through_a_relay() {
    run_in_lab(|lab| fits(lab, Way::Relayed, NARROW));
}

#[test]
fn jumbo_frames_are_used() {
    run_in_lab(|lab| fits(lab, Way::Kernel, JUMBO));
}

#[test]
fn jumbo_frames_are_used_sealed() {
    run_in_lab(|lab| fits(lab, Way::Sealed, JUMBO));
}

fn fits(lab: &Lab, way: Way, underlay: u32) -> Result<()> {
    let pair = Pair::over(lab, way, underlay)?;
    let (mtu, expected) = (mtu_of(&pair.one)?, underlay - overhead_of_pods(way));
    ensure!(mtu == expected, "a pod's MTU over an underlay of {underlay} bytes is {mtu}");
    largest_is_right(&pair, way, underlay)?;
    pair.transfer(2 << 20)
}

/// What a pod's interface leaves room for: the most direct of the ways that its node may use.
const fn overhead_of_pods(way: Way) -> u32 {
    match way {
        Way::Kernel => 50,
        Way::Sealed | Way::Quic | Way::Relayed => 60,
    }
}

#[test]
fn an_underlay_that_changes_while_pods_talk_is_followed() {
    run_in_lab(|lab| changes(lab, Way::Kernel));
}

#[test]
fn an_underlay_that_changes_while_pods_talk_sealed_is_followed() {
    run_in_lab(|lab| changes(lab, Way::Sealed));
}

#[test]
fn an_underlay_that_changes_while_pods_talk_by_quic_is_followed() {
    run_in_lab(|lab| changes(lab, Way::Quic));
}

#[test]
fn an_underlay_that_changes_while_pods_talk_through_a_relay_is_followed() {
    run_in_lab(|lab| changes(lab, Way::Relayed));
}

fn changes(lab: &Lab, way: Way) -> Result<()> {
    let pair = Pair::by(lab, way)?;
    let flow = Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?;
    let runs = || throughout(RUN, "the pods talk", || probe::ping(pair.one.ns(), pair.other.address()));
    runs()?;
    resize(lab, &pair, NARROW)?;
    // Running pods keep their interfaces; their node tells them what passes.
    largest_is_right(&pair, way, NARROW)?;
    pair.transfer(1 << 20)?;
    resize(lab, &pair, JUMBO)?;
    let [fresh, far] = ["fresh", "far"];
    let (fresh, far) = eventually(PATIENCE, "new pods have jumbo frames", || {
        let (one, other) = (pair.hosts[0].pod(fresh)?, pair.hosts[1].pod(far)?);
        for (pod, host) in [(&one, &pair.hosts[0]), (&other, &pair.hosts[1])] {
            let mtu = mtu_of(pod)?;
            if mtu != JUMBO - overhead_of_pods(way) {
                pod.call(host, "DEL")?;
                anyhow::bail!("the MTU of a new pod on {} is {mtu}", host.name());
            }
        }
        Ok((one, other))
    })?;
    eventually(PATIENCE, "a jumbo frame passes", || {
        probe::ping_sized(fresh.ns(), far.address(), JUMBO - overhead(way).end())
    })?;
    pair.transfer(1 << 20)?;
    runs()?;
    let report = flow.finish()?;
    ensure!(report.lost == 0 && report.sent > 10, "{report:?}");
    pair.ensure_methods([way.method(); 2])
}

/// Gives every uplink another size, on both of its ends.
fn resize(lab: &Lab, pair: &Pair, mtu: u32) -> Result<()> {
    for host in &pair.hosts {
        let port = format!("p{}", host.address().octets()[3]);
        host.ns()?.ip(&format!("link set {UPLINK} mtu {mtu}"))?;
        lab.underlay().ip(&format!("link set {port} mtu {mtu}"))?;
    }
    Ok(())
}

/// What the router between the nodes lets through.
const MIDDLE: u32 = 1400;

#[test]
fn a_smaller_network_in_the_middle_that_cuts_packets_is_passed() {
    run_in_lab(|lab| middle(lab, Way::Kernel, Router::Speaks));
}

#[test]
fn a_smaller_network_in_the_middle_that_says_so_is_respected_sealed() {
    run_in_lab(|lab| middle(lab, Way::Sealed, Router::Speaks));
}

#[test]
fn a_smaller_network_in_the_middle_that_says_nothing_is_found_out() {
    run_in_lab(|lab| middle(lab, Way::Kernel, Router::Silent));
}

#[test]
fn a_smaller_network_in_the_middle_that_says_nothing_is_found_out_sealed() {
    run_in_lab(|lab| middle(lab, Way::Sealed, Router::Silent));
}

/// What becomes of a packet that is too large for the network behind the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Router {
    /// Its sender is told, unless it may be cut.
    Speaks,
    /// It vanishes.
    Silent,
}

fn middle(lab: &Lab, way: Way, manner: Router) -> Result<()> {
    let near = lab.host("a")?;
    let router = lab.host("router")?;
    let far = lab.host_with(HostOptions::new("b").without_uplink())?;
    let (middle, node) = (router.ns()?, far.ns()?);
    node.ip(&format!("link add {UPLINK} type veth peer name in0 netns {}", middle.name()))?;
    node.ip_batch(&format!(
        "addr add 192.168.60.2/24 dev {UPLINK}\nlink set {UPLINK} up\nroute add default via 192.168.60.1\n"
    ))?;
    middle.ip_batch(&format!(
        "addr add 192.168.60.1/24 dev in0\nlink set in0 up\n\
         route add 192.168.60.2/32 dev in0 mtu lock {MIDDLE}\nroute add {} dev {UPLINK} mtu lock {MIDDLE}\n",
        near.address()
    ))?;
    if manner == Router::Silent {
        // Fragments of what may be fragmented would pass; here, nothing does that is too large.
        middle.nft(&format!(
            "table ip hole {{\n chain forward {{\n type filter hook forward priority 0;\n ip length > {MIDDLE} drop\n }}\n\
             chain output {{\n type filter hook output priority 0;\n icmp type destination-unreachable drop\n }}\n}}\n"
        ))?;
        for (namespace, link) in [(&node, UPLINK), (&near.ns()?, UPLINK)] {
            namespace.run(&format!("ethtool -K {link} tx off tso off gso off tx-udp-segmentation off"))?;
        }
    }
    near.ns()?.ip(&format!("route add 192.168.60.0/24 via {}", router.address()))?;
    let flagged =
        |options: AgentOptions| way.flags().iter().fold(options, |options, flag| options.flag(flag));
    near.launch(&flagged(AgentOptions::founder(2, &[])))?;
    far.launch(&flagged(AgentOptions::founder(2, &[&near])))?;
    let pair = Pair::of(vec![near, far])?;
    // At once, before the path's size is known: it may pause, and must not die.
    pair.transfer(1 << 20)?;
    if manner == Router::Speaks && way == Way::Kernel {
        // The kernel's tunnel lets routers cut its packets, so what is too large for them passes all the same.
        let [one, other] = [&pair.one, &pair.other];
        let all = mtu_of(one)?;
        return eventually(PATIENCE, "the largest packets pass", || {
            probe::ping_sized(one.ns(), other.address(), all)?;
            probe::ping_sized(other.ns(), one.address(), all)
        });
    }
    eventually(PATIENCE, "the pods are told what passes", || {
        is_told(&pair.one, &pair.other, MIDDLE - overhead(Way::Kernel).start() + 1)?;
        is_told(&pair.other, &pair.one, MIDDLE - overhead(Way::Kernel).start() + 1)
    })?;
    // The search for the size ends a few bytes below the truth. Pods that were told less meanwhile believe it for ten
    // minutes, as the kernel does; new ones do not.
    let found = MIDDLE - overhead(Way::Sealed).end() - 8;
    for (host, peer) in [(0, 1), (1, 0)] {
        let (host, peer) = (&pair.hosts[host], &pair.hosts[peer]);
        eventually(PATIENCE, "the path's size is found", || {
            let connection = host.connection_to(peer)?;
            let mtu = connection["method"]["mtu"].as_u64().unwrap_or_default();
            ensure!(
                (u64::from(found)..=u64::from(MIDDLE - overhead(Way::Kernel).start())).contains(&mtu),
                "{connection}"
            );
            Ok(())
        })?;
    }
    let fresh = [pair.hosts[0].pod("fresh")?, pair.hosts[1].pod("far")?];
    eventually(PATIENCE, "nearly the largest passes", || {
        probe::ping_sized(fresh[0].ns(), fresh[1].address(), found)?;
        probe::ping_sized(fresh[1].ns(), fresh[0].address(), found)
    })?;
    pair.transfer(1 << 20)
}
