//! Between the nodes lies a network that loses, delays, translates and blocks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use weave_netns::host::UPLINK;
use weave_netns::lab::GATEWAY;
use weave_netns::probe::{self, Flow, Server};
use weave_netns::reorder::{Late, LateCable};
use weave_netns::wait::throughout;
use weave_netns::{AgentOptions, Host, HostOptions, Lab, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// The pace of a flow that notices a gap.
const PACE: Duration = Duration::from_millis(20);
/// Strong enough that nothing is warned of.
const PASSWORD: &str = "--password=Ndq0zJk1fR2uQmTg7xVwYb4cHs8eLpAo";

/// Two nodes, a serving pod on each, and the pods talk.
struct Pair {
    hosts: Vec<Arc<Host>>,
    one: Pod,
    other: Pod,
    _servers: [Server; 2],
}

impl Pair {
    fn new(lab: &Lab, flags: &[&str]) -> Result<Self> {
        Self::of(lab.mesh_with(&["a", "b"], |options| {
            flags.iter().fold(options, |options, flag| options.flag(flag))
        })?)
    }

    fn of(hosts: Vec<Arc<Host>>) -> Result<Self> {
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let servers = [one.serve()?, other.serve()?];
        let pair = Self { hosts, one, other, _servers: servers };
        eventually(PATIENCE, "the pods talk", || pair.talk())?;
        Ok(pair)
    }

    fn talk(&self) -> Result<()> {
        probe::reach(self.one.ns(), self.other.service(), "other")?;
        probe::reach(self.other.ns(), self.one.service(), "one").map(drop)
    }

    fn methods(&self) -> Result<[String; 2]> {
        let [a, b] = [&self.hosts[0], &self.hosts[1]];
        Ok([a.method_to(b)?, b.method_to(a)?])
    }

    fn wait_methods(&self, wanted: [&str; 2]) -> Result<()> {
        eventually(PATIENCE, &format!("the nodes use {wanted:?}"), || {
            let methods = self.methods()?;
            ensure!(methods == wanted, "{methods:?}");
            Ok(())
        })
    }
}

#[test]
fn where_the_kernel_s_port_is_blocked_one_way_pods_talk_both_ways() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab, &[])?;
        pair.wait_methods(["fastdp", "fastdp"])?;
        let flows = [
            Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?,
            Flow::tcp(pair.other.ns(), pair.one.service(), PACE)?,
        ];
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (pair.hosts[from].address(), pair.hosts[to].address());
            lab.impose("block", &format!("ip saddr {from} ip daddr {to} udp dport 6784 drop"))?;
            // An answer proves both directions, so neither end goes on using the way that is half open.
            pair.wait_methods(["sleeve", "sleeve"])?;
            eventually(PATIENCE, "the pods talk in spite of the block", || pair.talk())?;
            lab.lift("block")?;
            pair.wait_methods(["fastdp", "fastdp"])?;
        }
        for flow in flows {
            // It may wait for TCP's next try after each switch, and so pause for several seconds; it must not break.
            let report = flow.finish()?;
            ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
        }
        Ok(())
    });
}

#[test]
fn one_packet_in_a_hundred_lost_changes_no_way_and_stops_nothing() {
    run_in_lab(|lab| lossy(lab, &Pair::new(lab, &[])?, 1, 8 << 20));
}

#[test]
fn one_packet_in_a_hundred_lost_changes_no_sealed_way_and_stops_nothing() {
    run_in_lab(|lab| lossy(lab, &Pair::new(lab, &[PASSWORD])?, 1, 8 << 20));
}

#[test]
fn one_packet_in_ten_lost_changes_no_way_and_stops_nothing() {
    run_in_lab(|lab| lossy(lab, &Pair::new(lab, &[])?, 10, 1 << 18));
}

#[test]
fn one_packet_in_ten_lost_changes_no_sealed_way_and_stops_nothing() {
    run_in_lab(|lab| lossy(lab, &Pair::new(lab, &[PASSWORD])?, 10, 1 << 18));
}

/// Loses some packets for a while: the nodes go on using what they use, a transfer of so many bytes arrives, a flow
/// goes on, and afterwards the nodes are linked.
fn lossy(lab: &Lab, pair: &Pair, percent: u8, bytes: usize) -> Result<()> {
    let used = pair.methods()?;
    let flow = Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?;
    lab.lose(percent, &[&pair.hosts[0]], &[&pair.hosts[1]])?;
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| probe::bulk(pair.one.ns(), pair.other.service(), bytes));
        // Longer than it takes to leave a way that is silent.
        throughout(Duration::from_secs(8), "no way is changed", || {
            let methods = pair.methods()?;
            ensure!(methods == used, "{methods:?} instead of {used:?}");
            Ok(())
        })?;
        transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))?
    })?;
    let report = flow.finish()?;
    ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
    lab.heal()?;
    pair.hosts[0].wait_connected(&[&pair.hosts[1]])?;
    eventually(PATIENCE, "the pods talk without loss", || pair.talk())
}

#[test]
fn packets_that_overtake_each_other_are_all_delivered_by_the_kernel_s_tunnel() {
    run_in_lab(|lab| reordered(lab, &Pair::new(lab, &[])?));
}

#[test]
fn packets_that_overtake_each_other_are_all_delivered_by_the_sealed_tunnel() {
    run_in_lab(|lab| reordered(lab, &Pair::new(lab, &[PASSWORD])?));
}

fn reordered(lab: &Lab, pair: &Pair) -> Result<()> {
    let late = Late { percent: 20, delay: Duration::from_millis(10) };
    let cable = LateCable::lay(lab, &pair.hosts[1], late)?;
    eventually(PATIENCE, "the pods talk over the new cable", || pair.talk())?;
    let used = pair.methods()?;
    let before = cable.overtaken();
    let pace = Duration::from_millis(1);
    let flows = [
        Flow::udp(pair.one.ns(), pair.other.service(), pace)?,
        Flow::udp(pair.other.ns(), pair.one.service(), pace)?,
    ];
    throughout(Duration::from_secs(3), "the ways stay", || {
        let methods = pair.methods()?;
        ensure!(methods == used, "{methods:?} instead of {used:?}");
        Ok(())
    })?;
    for flow in flows {
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 2000, "a packet that was late was lost: {report:?}");
    }
    let overtaken = cable.overtaken() - before;
    ensure!(overtaken > 500, "only {overtaken} packets were overtaken: nothing was tested");
    probe::bulk(pair.one.ns(), pair.other.service(), 4 << 20)?;
    probe::bulk(pair.other.ns(), pair.one.service(), 4 << 20)
}

#[test]
fn a_node_whose_address_changes_is_found_again_and_its_flows_go_on() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab, &[])?;
        readdress(&pair, "172.30.0.2", "172.30.0.77")
    });
}

#[test]
fn a_node_whose_address_changes_is_found_again_and_its_sealed_flows_go_on() {
    run_in_lab(|lab| {
        let pair = Pair::new(lab, &[PASSWORD])?;
        readdress(&pair, "172.30.0.2", "172.30.0.77")
    });
}

fn readdress(pair: &Pair, old: &str, new: &str) -> Result<()> {
    let flow = Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?;
    throughout(Duration::from_secs(1), "the flow runs", || probe::ping(pair.one.ns(), pair.other.address()))?;
    let node = pair.hosts[1].ns()?;
    // The last address of a link takes the link's routes with it.
    node.ip_batch(&format!(
        "addr del {old}/24 dev {UPLINK}\naddr add {new}/24 dev {UPLINK}\nroute add default via {GATEWAY}\n"
    ))?;
    eventually(PATIENCE, "the pods talk again", || pair.talk())?;
    eventually(PATIENCE, "the connection is shown at its new address", || {
        let connection = pair.hosts[0].connection_to(&pair.hosts[1])?;
        ensure!(connection["state"] == "established", "{connection}");
        ensure!(connection["address"].as_str().unwrap_or_default().starts_with(new), "{connection}");
        Ok(())
    })?;
    let report = flow.finish()?;
    ensure!(report.lost == 0 && report.sent > 50, "{report:?}");
    Ok(())
}

/// A node behind a router that masquerades, and one in front of it.
struct Translated {
    router: Arc<Host>,
    pair: Pair,
}

impl Translated {
    fn new(lab: &Lab, flags: &[&str]) -> Result<Self> {
        let flagged = |options: AgentOptions| flags.iter().fold(options, |options, flag| options.flag(flag));
        let open = lab.host("a")?;
        let router = lab.host("router")?;
        let hidden = lab.host_with(HostOptions::new("b").without_uplink())?;
        let (inside, outside) = (hidden.ns()?, router.ns()?);
        inside.ip(&format!("link add {UPLINK} type veth peer name in0 netns {}", outside.name()))?;
        outside.ip_batch("addr add 192.168.50.1/24 dev in0\nlink set in0 up\n")?;
        inside.ip_batch(&format!(
            "addr add 192.168.50.2/24 dev {UPLINK}\nlink set {UPLINK} up\nroute add default via 192.168.50.1\n"
        ))?;
        masquerade(&router, "masquerade fully-random")?;
        open.launch(&flagged(AgentOptions::founder(2, &[])))?;
        hidden.launch(&flagged(AgentOptions::founder(2, &[&open])))?;
        open.wait_ready()?;
        hidden.wait_ready()?;
        Ok(Self { router, pair: Pair::of(vec![open, hidden])? })
    }
}

/// From now on the router translates so, also what is on its way already.
fn masquerade(router: &Host, how: &str) -> Result<()> {
    let node = router.ns()?;
    node.nft(&format!(
        "table ip nat\ndelete table ip nat\ntable ip nat {{\n chain postrouting {{\n\
         type nat hook postrouting priority srcnat;\n ip saddr 192.168.50.0/24 oifname {UPLINK} {how}\n }}\n}}\n"
    ))?;
    node.run("conntrack -F").map(drop)
}

#[test]
fn a_node_behind_address_translation_is_part_of_the_network_and_outlives_a_change_of_the_translation() {
    run_in_lab(|lab| translated(lab, &[]));
}

#[test]
fn a_node_behind_address_translation_is_reached_sealed_and_outlives_a_change_of_the_translation() {
    run_in_lab(|lab| translated(lab, &[PASSWORD]));
}

fn translated(lab: &Lab, flags: &[&str]) -> Result<()> {
    let Translated { router, pair } = Translated::new(lab, flags)?;
    pair.wait_methods(["sleeve", "sleeve"])?;
    probe::bulk(pair.one.ns(), pair.other.service(), 1 << 20)?;
    probe::bulk(pair.other.ns(), pair.one.service(), 1 << 20)?;
    let flows = [
        Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?,
        Flow::tcp(pair.other.ns(), pair.one.service(), PACE)?,
    ];
    throughout(Duration::from_secs(1), "the pods talk", || probe::ping(pair.one.ns(), pair.other.address()))?;
    // New ports of the same address, then another address.
    for how in ["masquerade fully-random", "snat to 172.30.0.99 fully-random"] {
        router.ns()?.ip(&format!("addr replace 172.30.0.99/24 dev {UPLINK}"))?;
        masquerade(&router, how)?;
        // From the open node nothing can be sent until the hidden one has spoken.
        eventually(Duration::from_secs(5), "the open node's pod reaches the hidden one's", || {
            probe::ping(pair.one.ns(), pair.other.address())
        })?;
    }
    pair.talk()?;
    for flow in flows {
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 50, "{report:?}");
    }
    Ok(())
}
