//! What others delete is back within seconds, and until then nothing goes around the overlay.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::capture::Capture;
use weave_netns::fingerprint::difference;
use weave_netns::host::UPLINK;
use weave_netns::ns::Netns;
use weave_netns::probe::{self, Flow, Server};
use weave_netns::wait::throughout;
use weave_netns::{Host, Lab, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);
/// "Within seconds."
const REPAIR: Duration = Duration::from_secs(5);
/// Long enough for dozens of packets to take the wrong road.
const EXPOSURE: Duration = Duration::from_millis(400);
/// Whatever of the pods' traffic shows on an uplink outside of the tunnel.
const IN_THE_CLEAR: &str = "net 10.32.0.0/12";

/// Two nodes and a pod on each, which talk.
struct Pair {
    hosts: Vec<Arc<Host>>,
    near: Pod,
    neighbour: Pod,
    far: Pod,
    _servers: [Server; 3],
}

impl Pair {
    fn new(lab: &Lab) -> Result<Self> {
        let hosts = lab.mesh(&["a", "b"])?;
        let (near, neighbour, far) =
            (hosts[0].pod("near")?, hosts[0].pod("neighbour")?, hosts[1].pod("far")?);
        let servers = [near.serve()?, neighbour.serve()?, far.serve()?];
        let pair = Self { hosts, near, neighbour, far, _servers: servers };
        eventually(PATIENCE, "the pods talk", || pair.talk())?;
        // What the first answers teach of the way is written into the kernel, too.
        pair.hosts[0].wait_proven(&pair.hosts[1], "fastdp", PATIENCE)?;
        pair.hosts[0].wait_unchanged(PATIENCE)?;
        Ok(pair)
    }

    fn node(&self) -> Result<Arc<Netns>> {
        self.hosts[0].ns()
    }

    fn talk(&self) -> Result<()> {
        probe::reach(self.near.ns(), self.far.service(), "far")?;
        probe::reach(self.far.ns(), self.near.service(), "near")?;
        probe::reach(self.near.ns(), self.neighbour.service(), "neighbour").map(drop)
    }

    /// Does some damage and waits until the node is exactly what it was and the pods talk.
    fn survives(&self, damage: &str) -> Result<()> {
        let (node, before) = (self.node()?, self.hosts[0].fingerprint()?);
        node.run(damage)?;
        eventually(REPAIR, &format!("`{damage}` is put right"), || {
            let after = self.hosts[0].fingerprint()?;
            ensure!(before == after, "{}", difference(&before, &after));
            Ok(())
        })?;
        eventually(REPAIR, &format!("the pods talk after `{damage}`"), || self.talk())
    }

    /// The overlay's routes of the first node, as `ip route` prints them.
    fn routes(&self) -> Result<Vec<String>> {
        let shown = self.node()?.ip("route show")?;
        let ours = |line: &&str| {
            line.contains("dev weave") || line.contains("dev vethwe") || line.starts_with("unreachable")
        };
        let routes: Vec<_> = shown.lines().filter(ours).map(|line| line.trim().to_owned()).collect();
        ensure!(!routes.is_empty(), "no routes of ours in:\n{shown}");
        Ok(routes)
    }
}

#[test]
fn a_flush_of_all_rules_is_repaired() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab)?;
        pair.survives("nft flush ruleset")?;
        pair.survives("nft delete table inet weave")?;
        pair.survives("nft flush table inet weave")
    });
}

#[test]
fn every_route_that_is_deleted_is_repaired() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab)?;
        for route in pair.routes()? {
            pair.survives(&format!("ip route del {}", deletable(&route)))?;
        }
        pair.survives("ip route flush dev weave-vx")
    });
}

#[test]
fn every_device_that_is_deleted_or_changed_is_repaired() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab)?;
        let port = pair.near.host_interface()?;
        for damage in [
            "ip link set weave-vx down",
            "ip link del weave-vx",
            "ip link set weave down",
            "ip link del weave",
            "ip addr flush dev weave",
            "ip link set weave mtu 900",
            &format!("ip link set {port} nomaster"),
            &format!("ip link set {port} down"),
            &format!("bridge link set dev {port} learning on"),
            &format!("bridge link set dev {port} hairpin off"),
        ] {
            pair.survives(damage).with_context(|| damage.to_owned())?;
        }
        Ok(())
    });
}

#[test]
fn neighbours_and_forwarding_entries_that_are_deleted_are_repaired() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab)?;
        pair.survives("ip neigh flush dev weave nud permanent")?;
        pair.survives("ip neigh flush dev weave-vx nud permanent")?;
        let shown = pair.node()?.run("bridge fdb show dev weave-vx")?;
        let entry = shown.lines().find(|line| line.contains(" dst ")).context("no entry for the peer")?;
        let mac = entry.split_whitespace().next().unwrap_or_default();
        let to =
            entry.split(" dst ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
        pair.survives(&format!("bridge fdb del {mac} dev weave-vx dst {to}"))?;
        let port = pair.near.host_interface()?;
        let pod_mac = pair.near.mac()?.map(|byte| format!("{byte:02x}")).join(":");
        pair.survives(&format!("bridge fdb del {pod_mac} dev {port} master"))
    });
}

#[test]
fn switches_that_are_turned_are_turned_back() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab)?;
        for switch in
            ["net.ipv4.ip_forward", "net.ipv4.conf.weave.rp_filter", "net.ipv4.conf.weave-vx.rp_filter"]
        {
            let node = pair.node()?;
            let before = node.read_sysctl(switch)?;
            let turned = if before == "1" { "0" } else { "1" };
            node.sysctl(switch, turned)?;
            eventually(REPAIR, &format!("{switch} is {before} again"), || {
                let now = node.read_sysctl(switch)?;
                ensure!(now == before, "it is {now}");
                Ok(())
            })?;
            eventually(REPAIR, "the pods talk", || pair.talk())?;
        }
        Ok(())
    });
}

/// With the agent dead nobody repairs anything: what holds now is what holds in the worst moment.
#[test]
fn with_each_device_and_route_deleted_in_turn_no_pod_packet_shows_on_the_uplink() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab)?;
        let mut damages: Vec<String> =
            pair.routes()?.iter().map(|route| format!("ip route del {}", deletable(route))).collect();
        damages.extend(
            [
                "ip link set weave-vx down",
                "ip link del weave-vx",
                "ip link set weave down",
                "ip link del weave",
                "ip addr flush dev weave",
                "nft flush ruleset",
                "ip neigh flush dev weave-vx nud permanent",
            ]
            .map(str::to_owned),
        );
        for damage in damages {
            nothing_leaks(&pair, &damage).with_context(|| format!("after `{damage}`"))?;
        }
        Ok(())
    });
}

#[test]
fn an_address_of_the_range_that_nobody_owns_is_unreachable_and_stays_inside() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab)?;
        let capture = Capture::start(&*pair.node()?, UPLINK, IN_THE_CLEAR)?;
        for nobody in ["10.47.255.254", "10.40.0.77"] {
            ensure!(
                probe::ping(pair.near.ns(), nobody.parse::<std::net::Ipv4Addr>()?).is_err(),
                "{nobody} answers"
            );
        }
        let seen = capture.finish()?;
        ensure!(seen.is_empty(), "it went out in the clear: {seen:#?}");
        Ok(())
    });
}

fn nothing_leaks(pair: &Pair, damage: &str) -> Result<()> {
    let node = pair.node()?;
    pair.hosts[0].kill_agent()?;
    let capture = Capture::start(&node, UPLINK, IN_THE_CLEAR)?;
    node.run(damage)?;
    let flows = [
        Flow::udp(pair.near.ns(), pair.far.service(), Duration::from_millis(5))?,
        Flow::udp(pair.near.ns(), "10.47.255.254:7000".parse()?, Duration::from_millis(5))?,
        Flow::udp(&node, pair.far.service(), Duration::from_millis(5))?,
    ];
    throughout(EXPOSURE, "the flows run", || Ok(()))?;
    for flow in flows {
        flow.finish()?;
    }
    let seen = capture.finish()?;
    ensure!(seen.is_empty(), "pod packets went out in the clear: {seen:#?}");
    pair.hosts[0].relaunch()?;
    pair.hosts[0].wait_ready()?;
    eventually(PATIENCE, "the pods talk again", || pair.talk())
}

/// A route as `ip route show` prints it, as `ip route del` wants it.
fn deletable(route: &str) -> String {
    route.replace(" linkdown", "").replace(" dead", "").replace(" onlink", "")
}
