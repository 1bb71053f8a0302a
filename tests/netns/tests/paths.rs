//! Between the nodes lies a network that loses, delays, translates and blocks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use weave_netns::host::UPLINK;
use weave_netns::lab::GATEWAY;
use weave_netns::pair::{GAP, NARROWS, PASSWORD};
use weave_netns::probe::{self, Flow};
use weave_netns::reorder::{Late, LateCable};
use weave_netns::wait::throughout;
use weave_netns::{AgentOptions, Host, HostOptions, Lab, Pair, Way, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// The pace of a flow that notices a gap.
const PACE: Duration = Duration::from_millis(20);
/// Between two packets whose loss would be told: a gap is known to within this.
const FINE: Duration = Duration::from_millis(5);

#[test]
fn where_the_tunnels_are_blocked_one_way_pods_talk_both_ways() {
    run_in_lab(|lab| {
        let blocks = [("udp dport 6784 drop", "sleeve"), ("udp dport { 6784, 6785 } drop", "quic")];
        blocked_one_way(lab, &Pair::by(lab, Way::Kernel)?, &blocks)
    });
}

#[test]
fn where_the_sealed_tunnel_is_blocked_one_way_pods_talk_both_ways() {
    run_in_lab(|lab| blocked_one_way(lab, &Pair::by(lab, Way::Sealed)?, &[("udp dport 6785 drop", "quic")]));
}

/// Blocks more and more in one direction and then in the other: a flow goes by the best way that passes both ways.
fn blocked_one_way(lab: &Lab, pair: &Pair, blocks: &[(&str, &str)]) -> Result<()> {
    let before = pair.methods()?;
    let flows = [
        Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?,
        Flow::tcp(pair.other.ns(), pair.one.service(), PACE)?,
    ];
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (pair.hosts[from].address(), pair.hosts[to].address());
        for (block, refuge) in blocks {
            let gap = Flow::udp(pair.one.ns(), pair.other.service(), FINE)?;
            lab.impose("block", &format!("ip saddr {from} ip daddr {to} {block}"))?;
            // An answer proves both directions, so neither end goes on using the way that is half open.
            pair.wait_methods([refuge; 2])?;
            pair.wait_talk("the pods talk in spite of the block")?;
            let report = gap.finish()?;
            ensure!(report.longest_silence < GAP, "{block}: {report:?}");
        }
        lab.lift("block")?;
        pair.wait_methods([&before[0], &before[1]])?;
    }
    for flow in flows {
        // It may wait for TCP's next try after each switch, and so pause for several seconds; it must not break.
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
    }
    Ok(())
}

#[test]
fn where_links_are_blocked_one_way_pods_talk_on_in_clear() {
    run_in_lab(|lab| deaf(lab, &Pair::by(lab, Way::Kernel)?));
}

#[test]
fn where_links_are_blocked_one_way_pods_talk_on_sealed() {
    run_in_lab(|lab| deaf(lab, &Pair::by(lab, Way::Sealed)?));
}

/// Blocks the link of the nodes in one direction: it ends, and what carries packets is left alone.
fn deaf(lab: &Lab, pair: &Pair) -> Result<()> {
    let before = pair.methods()?;
    let [a, b] = [&pair.hosts[0], &pair.hosts[1]];
    let flow = Flow::udp(pair.one.ns(), pair.other.service(), PACE)?;
    lab.impose("block", &format!("ip saddr {} ip daddr {} udp dport 6783 drop", a.address(), b.address()))?;
    eventually(PATIENCE, "both ends notice that the link is dead", || {
        for (host, peer) in [(a, b), (b, a)] {
            let connections = host.status(&["connections"])?;
            ensure!(!connections.to_string().contains("established"), "{}: {connections}", peer.name());
        }
        Ok(())
    })?;
    throughout(Duration::from_secs(5), "the pods talk without a link", || pair.talk())?;
    lab.lift("block")?;
    a.wait_connected(&[b])?;
    b.wait_connected(&[a])?;
    throughout(Duration::from_secs(1), "the pods talk over the new link", || pair.talk())?;
    pair.ensure_methods([&before[0], &before[1]])?;
    let report = flow.finish()?;
    ensure!(report.lost == 0 && report.sent > 300, "{report:?}");
    Ok(())
}

#[test]
fn packets_that_are_lost_change_no_way_and_stop_nothing_in_the_kernel_s_tunnel() {
    run_in_lab(|lab| lossy(lab, Way::Kernel));
}

#[test]
fn packets_that_are_lost_change_no_way_and_stop_nothing_in_the_sealed_tunnel() {
    run_in_lab(|lab| lossy(lab, Way::Sealed));
}

#[test]
fn packets_that_are_lost_change_no_way_and_stop_nothing_by_quic() {
    run_in_lab(|lab| lossy(lab, Way::Quic));
}

#[test]
fn packets_that_are_lost_change_no_way_and_stop_nothing_through_a_relay() {
    run_in_lab(|lab| lossy(lab, Way::Relayed));
}

/// Loses one packet in a hundred for a while, and then one in ten: the nodes go on using what they use, a transfer of so
/// bytes arrives, a flow goes on, and afterwards the nodes are linked. No log tells of a change of a way, either.
fn lossy(lab: &Lab, way: Way) -> Result<()> {
    let pair = Pair::by(lab, way)?;
    let [near, next] = [&pair.hosts[0], pair.next()];
    let changes = || pair.hosts.iter().map(|host| changes_of_ways(host)).collect::<Vec<_>>();
    let before = changes();
    let flow = Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?;
    for (percent, bytes) in [(1, 8 << 20), (10, 1 << 17)] {
        lab.lose(percent, &[near], &[next])?;
        std::thread::scope(|scope| {
            let transfer = scope.spawn(|| probe::bulk(pair.one.ns(), pair.other.service(), bytes));
            // Longer than it takes to leave a way that is silent.
            throughout(Duration::from_secs(4), "no way is changed", || {
                pair.ensure_methods([way.method(); 2])
            })?;
            transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))?
        })?;
        lab.heal()?;
    }
    let report = flow.finish()?;
    ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
    near.wait_connected(&[next])?;
    pair.wait_talk("the pods talk without loss")?;
    ensure!(changes() == before, "first {before:?}, then {:?}", changes());
    Ok(())
}

/// What the node's log tells of changes of the ways that pods' packets take.
fn changes_of_ways(host: &Host) -> Vec<String> {
    host.log().lines().filter(|line| line.contains("[overlay]")).map(str::to_owned).collect()
}

#[test]
fn packets_that_overtake_each_other_are_all_delivered_by_the_kernel_s_tunnel() {
    run_in_lab(|lab| reordered(lab, Way::Kernel));
}

#[test]
fn packets_that_overtake_each_other_are_all_delivered_by_the_sealed_tunnel() {
    run_in_lab(|lab| reordered(lab, Way::Sealed));
}

#[test]
fn packets_that_overtake_each_other_are_all_delivered_by_quic() {
    run_in_lab(|lab| reordered(lab, Way::Quic));
}

#[test]
fn packets_that_overtake_each_other_are_all_delivered_through_a_relay() {
    run_in_lab(|lab| reordered(lab, Way::Relayed));
}

fn reordered(lab: &Lab, way: Way) -> Result<()> {
    let pair = Pair::by(lab, way)?;
    let late = Late { percent: 20, delay: Duration::from_millis(10) };
    let cable = LateCable::lay(lab, &pair.hosts[1], late)?;
    pair.wait_talk("the pods talk over the new cable")?;
    pair.wait_proven(way)?;
    let before = cable.overtaken();
    let pace = Duration::from_millis(1);
    let flows = [
        Flow::udp(pair.one.ns(), pair.other.service(), pace)?,
        Flow::udp(pair.other.ns(), pair.one.service(), pace)?,
    ];
    throughout(Duration::from_secs(3), "the way stays", || pair.ensure_methods([way.method(); 2]))?;
    for flow in flows {
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 2000, "a packet that was late was lost: {report:?}");
    }
    let overtaken = cable.overtaken() - before;
    ensure!(overtaken > 500, "only {overtaken} packets were overtaken: nothing was tested");
    pair.transfer(4 << 20)
}

#[test]
fn a_node_whose_address_changes_is_found_again_and_its_flows_go_on() {
    run_in_lab(|lab| readdress(lab, Way::Kernel));
}

#[test]
fn a_node_whose_address_changes_is_found_again_and_its_sealed_flows_go_on() {
    run_in_lab(|lab| readdress(lab, Way::Sealed));
}

#[test]
fn a_node_whose_address_changes_is_found_again_and_its_flows_by_quic_go_on() {
    run_in_lab(|lab| readdress(lab, Way::Quic));
}

#[test]
fn a_node_whose_address_changes_is_found_again_and_its_flows_through_a_relay_go_on() {
    run_in_lab(|lab| readdress(lab, Way::Relayed));
}

fn readdress(lab: &Lab, way: Way) -> Result<()> {
    const NEW: &str = "172.30.0.77";
    let pair = Pair::by(lab, way)?;
    let neighbour = pair.hosts.get(2).unwrap_or(&pair.hosts[0]);
    let flow = Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?;
    throughout(Duration::from_secs(1), "the flow runs", || probe::ping(pair.one.ns(), pair.other.address()))?;
    let node = pair.hosts[1].ns()?;
    // The last address of a link takes the link's routes with it.
    node.ip_batch(&format!(
        "addr del {}/24 dev {UPLINK}\naddr add {NEW}/24 dev {UPLINK}\nroute add default via {GATEWAY}\n",
        pair.hosts[1].address()
    ))?;
    pair.wait_talk("the pods talk again")?;
    eventually(PATIENCE, "the connection is shown at its new address", || {
        let connection = neighbour.connection_to(&pair.hosts[1])?;
        ensure!(connection["state"] == "established", "{connection}");
        ensure!(connection["address"].as_str().unwrap_or_default().starts_with(NEW), "{connection}");
        Ok(())
    })?;
    let report = flow.finish()?;
    ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
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
    run_in_lab(|lab| translated(lab, &[], Way::Sealed));
}

#[test]
fn a_node_behind_address_translation_is_reached_sealed_and_outlives_a_change_of_the_translation() {
    run_in_lab(|lab| translated(lab, &[PASSWORD], Way::Sealed));
}

#[test]
fn a_node_behind_address_translation_is_reached_by_quic_and_outlives_a_change_of_the_translation() {
    run_in_lab(|lab| {
        lab.impose("narrows", NARROWS)?;
        translated(lab, &[PASSWORD], Way::Quic)
    });
}

fn translated(lab: &Lab, flags: &[&str], way: Way) -> Result<()> {
    let Translated { router, pair } = Translated::new(lab, flags)?;
    // A sealed record from elsewhere is enough to be followed. Links and connections beside them must be given up first,
    // after 3 s, and dialled anew, after a random pause.
    let found_again = Duration::from_secs(if way == Way::Quic { 10 } else { 5 });
    pair.wait_proven(way)?;
    pair.transfer(1 << 20)?;
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
        eventually(found_again, "the open node's pod reaches the hidden one's", || {
            probe::ping(pair.one.ns(), pair.other.address())
        })?;
    }
    pair.talk()?;
    for flow in flows {
        let report = flow.finish()?;
        // TCP's own pause after two such gaps may be longer than all the rest.
        ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
    }
    Ok(())
}
