//! Pods of nodes that cannot reach each other talk through a third node, which cannot read what it carries.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weave_netns::capture::Capture;
use weave_netns::cni::INTERFACE;
use weave_netns::host::UPLINK;
use weave_netns::pair::{GAP, PASSWORD};
use weave_netns::probe::{self, Flow, MARK};
use weave_netns::recording::{self, Recording};
use weave_netns::wait::throughout;
use weave_netns::{AgentOptions, Host, Lab, Pair, Way, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// Silence is noticed within 3 s, and the next probe is answered soon after.
const SOON: Duration = Duration::from_secs(5);
/// The pace of a flow that notices a gap.
const PACE: Duration = Duration::from_millis(20);
/// Packets of pods in no tunnel, or in the kernel's, which also carries probes.
const IN_CLEAR: &str = "net 10.32.0.0/12 or (udp dst port 6784 and udp[28:2] == 0x0800)";

/// The peer name of a host.
fn name_of(host: &Host) -> Result<Value> {
    Ok(host.status(&["peers"])?[0]["name"].clone())
}

fn ensure_relayed(host: &Host, other: &Host, relay: &Host) -> Result<()> {
    ensure_relayed_by("sleeve", host, other, relay)
}

/// `by` is what carries the packets to the relay.
fn ensure_relayed_by(by: &str, host: &Host, other: &Host, relay: &Host) -> Result<()> {
    let (way, relay) = (host.way_to(other)?, name_of(relay)?);
    ensure!(way["name"] == "relay" && way["via"] == relay, "{way}");
    ensure!(way["encrypted"] == true && way["by"] == by, "{way}");
    Ok(())
}

fn ensure_method(host: &Host, other: &Host, name: &str) -> Result<()> {
    let way = host.way_to(other)?;
    ensure!(way["name"] == name, "{way}");
    Ok(())
}

/// How two hosts reach each other, for people.
fn ways(one: &Host, other: &Host) -> String {
    format!("there {:?}, and back {:?}", one.way_to(other), other.way_to(one))
}

/// Waits until a relay between two hosts has been found to answer, both ways.
fn wait_for_reserve(one: &Host, other: &Host) -> Result<()> {
    let ready = |from: &Host, to: &Host| {
        let way = from.way_to(to)?;
        let rejected = way["rejected"].as_array().context("no list of ways")?;
        let answers = |way: &&Value| {
            way["name"].as_str().is_some_and(|name| name.starts_with("relay"))
                && way["reason"].as_str().is_some_and(|reason| reason.starts_with("answers"))
        };
        rejected.iter().find(answers).with_context(|| way.to_string()).map(drop)
    };
    eventually(PATIENCE, "a relay stands ready", || ready(one, other).and_then(|()| ready(other, one)))
}

/// Two nodes that have never had a link, and one in between.
fn far_apart(lab: &Lab, choose: impl Fn(AgentOptions) -> AgentOptions) -> Result<[std::sync::Arc<Host>; 3]> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.cut(&[&a], &[&c])?;
    a.launch(&choose(AgentOptions::founder(3, &[&b])))?;
    b.launch(&choose(AgentOptions::founder(3, &[])))?;
    c.launch(&choose(AgentOptions::founder(3, &[&b])))?;
    for host in [&a, &b, &c] {
        host.wait_ready()?;
    }
    Ok([a, b, c])
}

#[test]
fn what_cannot_reach_each_other_any_more_talks_through_a_third_node_and_directly_again_afterwards() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b", "c"])?;
        let (a, b, c) = (&hosts[0], &hosts[1], &hosts[2]);
        let (one, other) = (a.pod("one")?, c.pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        wait_for_reserve(a, c)?;
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
        let clear = Capture::start(&*b.ns()?, UPLINK, IN_CLEAR)?;
        lab.cut(&[a], &[c])?;
        eventually(SOON, "the pods talk in spite of the block", || {
            probe::ping(one.ns(), other.address()).with_context(|| ways(a, c))
        })?;
        eventually(SOON, "through the third node", || {
            ensure_relayed(a, c, b)?;
            ensure_relayed(c, a, b)
        })?;
        // The old keys outlive the link for a minute, and there are others from the mesh before.
        throughout(Duration::from_secs(3), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        probe::bulk(one.ns(), other.service(), 4 << 20)?;
        let shown = a.weave(&["status", "peers"])?;
        ensure!(shown.contains("encrypted relay through") && shown.contains("(b) (sleeve)"), "{shown}");
        let shown = a.weave(&["status", "connections"])?;
        ensure!(shown.contains("encrypted relay through"), "{shown}");
        lab.heal()?;
        eventually(PATIENCE * 3, "the direct way is used again", || {
            ensure_method(a, c, "fastdp")?;
            ensure_method(c, a, "fastdp")
        })?;
        throughout(Duration::from_secs(2), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.longest_silence < SOON * 2, "{report:?}");
        let seen = clear.finish()?;
        ensure!(seen.is_empty(), "the third node could read {seen:?}");
        Ok(())
    });
}

#[test]
fn nodes_that_have_never_had_a_link_agree_on_keys_through_the_mesh_and_recover_from_any_agents_death() {
    run_in_lab(|lab| {
        let hosts = far_apart(lab, |options| options.flag(PASSWORD))?;
        let [a, b, c] = &hosts;
        let (one, other) = (a.pod("one")?, c.pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        let clear = Capture::start(&*b.ns()?, UPLINK, "udp port 6784 or net 10.32.0.0/12")?;
        let sealed = Capture::start(&*b.ns()?, UPLINK, "udp port 6785")?;
        eventually(SOON, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        probe::bulk(one.ns(), other.service(), 4 << 20)?;
        eventually(PATIENCE, "by sealed records", || ensure_relayed(a, c, b))?;
        sealed.wait(PATIENCE)?;
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
        // It must have begun before somebody dies.
        throughout(Duration::from_secs(1), "the flow runs", || probe::ping(one.ns(), other.address()))?;
        for host in [b, a, c] {
            host.kill_agent()?;
            host.relaunch()?;
            host.wait_ready()?;
            eventually(PATIENCE, &format!("the pods talk again after {} died", host.name()), || {
                probe::ping(one.ns(), other.address())
            })?;
            throughout(Duration::from_secs(2), "the pods talk on", || {
                probe::ping(one.ns(), other.address())
            })?;
        }
        let report = flow.finish()?;
        ensure!(report.lost == 0, "{report:?}");
        let seen = clear.finish()?;
        ensure!(seen.is_empty(), "seen in clear: {seen:?}");
        Ok(())
    });
}

#[test]
fn when_the_relay_dies_another_one_carries_on_within_seconds() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b", "c", "d"])?;
        let (a, c) = (&hosts[0], &hosts[2]);
        lab.cut(&[a], &[c])?;
        let (one, other) = (a.pod("one")?, c.pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        let is_relayed = |host: &Host, other: &Host| {
            ensure_method(host, other, "relay")?;
            host.way_to(other).map(|way| way["via"].clone())
        };
        eventually(PATIENCE, "both ways are relayed", || is_relayed(a, c).and_then(|_| is_relayed(c, a)))?;
        wait_for_reserve(a, c)?;
        let flow = Flow::udp(one.ns(), other.service(), PACE)?;
        throughout(Duration::from_secs(1), "the flow runs", || probe::ping(one.ns(), other.address()))?;
        let used = is_relayed(a, c)?;
        let (mut dead, mut spare) = (&hosts[1], &hosts[3]);
        if name_of(dead)? != used {
            std::mem::swap(&mut dead, &mut spare);
        }
        dead.kill_agent()?;
        eventually(SOON, "the other relay is used", || {
            ensure_relayed(a, c, spare)?;
            ensure_relayed(c, a, spare)?;
            probe::ping(one.ns(), other.address())
        })?;
        let report = flow.finish()?;
        ensure!(report.longest_silence < SOON, "{report:?}");
        dead.relaunch()?;
        dead.wait_ready()?;
        throughout(Duration::from_secs(3), "the pods talk on", || probe::ping(one.ns(), other.address()))
    });
}

#[test]
fn a_block_in_one_direction_only_is_gone_round_in_both() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b", "c"])?;
        let (a, b, c) = (&hosts[0], &hosts[1], &hosts[2]);
        let (one, other) = (a.pod("one")?, c.pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        wait_for_reserve(a, c)?;
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
        lab.impose("oneway", &format!("ip saddr {} ip daddr {} drop", a.address(), c.address()))?;
        eventually(SOON, "the pods talk in spite of the block", || {
            probe::ping(one.ns(), other.address()).with_context(|| ways(a, c))
        })?;
        eventually(SOON, "through the third node", || {
            ensure_relayed(a, c, b)?;
            ensure_relayed(c, a, b)
        })?;
        throughout(Duration::from_secs(3), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        lab.lift("oneway")?;
        eventually(PATIENCE * 3, "the direct way is used again", || {
            ensure_method(a, c, "fastdp")?;
            ensure_method(c, a, "fastdp")
        })?;
        let report = flow.finish()?;
        ensure!(report.lost == 0, "{report:?}");
        Ok(())
    });
}

#[test]
fn where_only_links_are_blocked_sealed_records_go_straight_with_keys_from_the_mesh() {
    run_in_lab(|lab| {
        let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
        let ends = format!("{}, {}", a.address(), c.address());
        lab.impose("links", &format!("ip saddr {{ {ends} }} ip daddr {{ {ends} }} udp dport 6783 drop"))?;
        let choose = |options: AgentOptions| options.flag(PASSWORD);
        b.launch(&choose(AgentOptions::founder(3, &[])))?;
        a.launch(&choose(AgentOptions::founder(3, &[&b])))?;
        c.launch(&choose(AgentOptions::founder(3, &[&b])))?;
        for host in [&a, &b, &c] {
            host.wait_ready()?;
        }
        let (one, other) = (a.pod("one")?, c.pod("other")?);
        eventually(PATIENCE, "the pods talk", || probe::ping(one.ns(), other.address()))?;
        eventually(PATIENCE, "without a relay", || {
            ensure_method(&a, &c, "sleeve")?;
            ensure_method(&c, &a, "sleeve")
        })?;
        probe::ping(one.ns(), other.address())
    });
}

#[test]
fn the_secret_of_relayed_nodes_is_changed_without_a_lost_packet() {
    run_in_lab(|lab| {
        const OLD: &str = "Vn3pQe8sXk1dWz6tRb9mYf2hLc7gJa4u";
        const NEW: &str = "Hq5wTz2vNc8xKe1rBy7pMd4sGf9jLa3o";
        let hosts = far_apart(lab, |options| options.secret(OLD).flag("--encrypt"))?;
        let [a, b, c] = &hosts;
        let (one, other) = (a.pod("one")?, c.pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        let flow = Flow::udp(one.ns(), other.service(), PACE)?;
        for round in [format!("{OLD}\n{NEW}\n"), format!("{NEW}\n{OLD}\n"), format!("{NEW}\n")] {
            for host in [a, b, c] {
                std::fs::write(host.data_dir().with_extension("secret"), &round)?;
            }
            // Each agent looks at its file every two seconds.
            throughout(Duration::from_secs(6), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        }
        // The keys of the retired secret linger for 10 s.
        throughout(Duration::from_secs(10), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        eventually(PATIENCE, "through the third node", || ensure_relayed(a, c, b))?;
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 1000, "{report:?}");
        Ok(())
    });
}

#[test]
fn a_flow_through_a_relay_goes_on_when_one_hop_is_left_with_quic_alone_and_the_relay_reads_nothing() {
    run_in_lab(|lab| {
        let pair = Pair::by(lab, Way::Relayed)?;
        let [a, c, b] = &pair.hosts[..] else { anyhow::bail!("three hosts were asked for") };
        let flow = Flow::tcp(pair.one.ns(), pair.other.service(), PACE)?;
        let read = Recording::start(&*b.ns()?, "any", "", &lab.scratch().join("relay.pcap"))?;
        let inside = Recording::start(pair.one.ns(), INTERFACE, "", &lab.scratch().join("pod.pcap"))?;
        let wire = Capture::start(&*b.ns()?, UPLINK, "udp port 6785")?;
        throughout(Duration::from_secs(1), "the flow runs", || pair.talk())?;
        ensure_relayed(a, c, b)?;
        wire.wait(PATIENCE)?;
        let ends = format!("{}, {}", a.address(), b.address());
        let gap = Flow::udp(pair.one.ns(), pair.other.service(), PACE)?;
        lab.impose(
            "narrow",
            &format!("ip saddr {{ {ends} }} ip daddr {{ {ends} }} udp dport {{ 6784, 6785 }} drop"),
        )?;
        eventually(PATIENCE, "one hop by QUIC, the other as before", || {
            ensure_relayed_by("quic", a, c, b)?;
            ensure_relayed(c, a, b)?;
            ensure_method(b, a, "quic")?;
            ensure_method(b, c, "sleeve")
        })?;
        pair.wait_talk("the pods talk over the changed hop")?;
        let report = gap.finish()?;
        ensure!(report.longest_silence < GAP, "{report:?}");
        pair.transfer(4 << 20)?;
        lab.lift("narrow")?;
        eventually(PATIENCE * 2, "the better hop is used again", || ensure_relayed(a, c, b))?;
        pair.transfer(1 << 20)?;
        let report = flow.finish()?;
        // It may wait for TCP's next try after each change, and so pause for several seconds; it must not break.
        ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
        let seen = recording::count(&inside.finish()?, MARK);
        ensure!(seen > 100, "the pod's own packets show {seen} marks: nothing was tested");
        let seen = recording::count(&read.finish()?, MARK);
        ensure!(seen == 0, "the relay could read {seen} packets");
        Ok(())
    });
}

#[test]
fn the_ends_of_a_row_of_four_talk_over_two_relays() {
    run_in_lab(|lab| {
        let hosts: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| lab.host(name)).collect::<Result<_>>()?;
        let [a, b, c, d] = &hosts[..] else { anyhow::bail!("four hosts were asked for") };
        lab.cut(&[a], &[c, d])?;
        lab.cut(&[b], &[d])?;
        let choose = |peers: &[&Host]| AgentOptions::founder(4, peers).flag(PASSWORD);
        a.launch(&choose(&[]))?;
        b.launch(&choose(&[a]))?;
        c.launch(&choose(&[b]))?;
        d.launch(&choose(&[c]))?;
        for host in &hosts {
            host.wait_ready()?;
        }
        let (one, other) = (a.pod("one")?, d.pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        eventually(PATIENCE, "through the next node", || {
            ensure_relayed(a, d, b)?;
            ensure_relayed(d, a, c)
        })?;
        probe::bulk(one.ns(), other.service(), 1 << 20)
    });
}
