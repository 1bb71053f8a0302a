//! Packets reach the right pod, from the right address, and go on doing so while agents come and go.

use std::time::Duration;

use anyhow::{Result, ensure};
use weave_netns::host::UPLINK;
use weave_netns::lab::OUTSIDE;
use weave_netns::probe::{self, Flow, Server};
use weave_netns::{eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(5);

#[test]
fn pods_of_one_node_and_of_two_nodes_talk_and_see_each_other_s_own_address() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let pods = [hosts[0].pod("a1")?, hosts[0].pod("a2")?, hosts[1].pod("b1")?, hosts[1].pod("b2")?];
        let _servers: Vec<Server> = pods.iter().map(|pod| pod.serve()).collect::<Result<_>>()?;
        for from in &pods {
            for to in &pods {
                let seen = eventually(PATIENCE, "a pod reaches a pod", || {
                    probe::reach(from.ns(), to.service(), to.name())
                })?;
                ensure!(
                    seen.client.ip() == from.address(),
                    "{} sees {} instead of {} ({})",
                    to.name(),
                    seen.client.ip(),
                    from.name(),
                    from.address()
                );
            }
        }
        Ok(())
    });
}

#[test]
fn large_transfers_arrive_whole_between_pods_and_nodes() {
    run_in_lab(|lab| {
        const SIZE: usize = 8 << 20;
        let hosts = lab.mesh(&["a", "b"])?;
        let (one, neighbour, far) = (hosts[0].pod("one")?, hosts[0].pod("neighbour")?, hosts[1].pod("far")?);
        let _servers = [neighbour.serve()?, far.serve()?];
        let node = hosts[0].ns()?;
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), far.service(), "far"))?;
        for to in [&neighbour, &far] {
            probe::bulk(one.ns(), to.service(), SIZE)?;
            probe::bulk(&node, to.service(), SIZE)?;
        }
        // A network card that cannot cut packets inside of a tunnel leaves that to the kernel.
        node.run("ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off tx off")?;
        probe::bulk(one.ns(), far.service(), SIZE)?;
        probe::bulk(&node, far.service(), SIZE)
    });
}

#[test]
fn a_node_reaches_its_own_pods_and_those_of_other_nodes_and_they_reach_it() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (near, far) = (hosts[0].pod("near")?, hosts[1].pod("far")?);
        let _servers = [near.serve()?, far.serve()?];
        let node = hosts[0].ns()?;
        let _node_server = Server::start(&node, "node", probe::PORT)?;
        let status = hosts[0].status(&[])?;
        let own = status["node"]["address"].as_str().unwrap_or_default().to_owned();
        for pod in [&near, &far] {
            let seen = eventually(PATIENCE, "the node reaches a pod", || {
                probe::reach(&node, pod.service(), pod.name())
            })?;
            ensure!(seen.client.ip().to_string() == own, "{} sees the node as {}", pod.name(), seen.client);
            let answer = probe::ask_tcp(pod.ns(), format!("{own}:{}", probe::PORT).parse()?)?;
            ensure!(answer.server == "node", "{own} is {}", answer.server);
        }
        Ok(())
    });
}

#[test]
fn pods_reach_the_world_outside_behind_their_node_s_address() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let pod = hosts[0].pod("pod")?;
        let address = format!("{OUTSIDE}:{}", probe::PORT).parse()?;
        let _world = Server::start_at(lab.underlay(), "world", address)?;
        let seen =
            eventually(PATIENCE, "a pod reaches the world", || probe::reach(pod.ns(), address, "world"))?;
        ensure!(seen.client.ip() == hosts[0].address(), "the world sees {}", seen.client);
        Ok(())
    });
}

#[test]
fn the_largest_packet_of_a_pod_passes_the_tunnel_unfragmented_and_a_larger_one_is_refused_at_once() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (pod, other) = (hosts[0].pod("pod")?, hosts[1].pod("other")?);
        let shown = pod.ns().ip("-o link show dev eth0")?;
        let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap_or_default();
        let mtu: u32 = mtu.parse()?;
        ensure!((1280..=1450).contains(&mtu), "a pod's MTU over an uplink of 1500 bytes is {mtu}");
        eventually(PATIENCE, "a small packet passes", || probe::ping(pod.ns(), other.address()))?;
        eventually(PATIENCE, "the largest passes", || probe::ping_sized(pod.ns(), other.address(), mtu))?;
        ensure!(probe::ping_sized(pod.ns(), other.address(), mtu + 1).is_err(), "too large a packet passed");
        Ok(())
    });
}

#[test]
fn a_small_uplink_makes_the_pods_packets_smaller() {
    run_in_lab(|lab| {
        let hosts = [
            lab.host_with(weave_netns::HostOptions::new("a").mtu(1400))?,
            lab.host_with(weave_netns::HostOptions::new("b").mtu(1400))?,
        ];
        hosts[0].launch(&weave_netns::AgentOptions::founder(2, &[&hosts[1]]))?;
        hosts[1].launch(&weave_netns::AgentOptions::founder(2, &[&hosts[0]]))?;
        hosts.iter().try_for_each(|host| host.wait_ready())?;
        let (pod, other) = (hosts[0].pod("pod")?, hosts[1].pod("other")?);
        let shown = pod.ns().ip("-o link show dev eth0")?;
        let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap_or_default();
        let mtu: u32 = mtu.parse()?;
        ensure!(mtu <= 1350, "a pod's MTU over an uplink of 1400 bytes is {mtu}");
        eventually(PATIENCE, "the largest packet passes", || {
            probe::ping_sized(pod.ns(), other.address(), mtu)
        })
    });
}

#[test]
fn a_restart_of_the_agent_loses_no_packet_of_a_running_flow() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (one, neighbour, other) =
            (hosts[0].pod("one")?, hosts[0].pod("neighbour")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, neighbour.serve()?, other.serve()?];
        for to in [&neighbour, &other] {
            eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), to.service(), to.name()))?;
        }
        // Only the kernel's tunnel needs no agent.
        hosts[0].wait_proven(&hosts[1], "fastdp", PATIENCE)?;
        hosts[1].wait_proven(&hosts[0], "fastdp", PATIENCE)?;
        let flows = [
            Flow::udp(one.ns(), other.service(), PACE)?,
            Flow::udp(other.ns(), one.service(), PACE)?,
            Flow::udp(one.ns(), neighbour.service(), PACE)?,
            Flow::tcp(one.ns(), other.service(), PACE)?,
            Flow::tcp(neighbour.ns(), one.service(), PACE)?,
        ];
        for host in &hosts {
            host.stop_agent()?;
            host.relaunch()?;
            host.wait_ready()?;
            host.kill_agent()?;
            host.relaunch()?;
            host.wait_ready()?;
        }
        hosts[0].wait_connected(&[&hosts[1]])?;
        // What a fresh agent does to the kernel once it knows its peers again belongs to the restart.
        weave_netns::wait::throughout(Duration::from_secs(2), "the flows run", || {
            probe::ping(one.ns(), other.address())
        })?;
        for flow in flows {
            let report = flow.finish()?;
            ensure!(report.lost == 0 && report.sent > 100, "a restart was noticed: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn pods_talk_on_while_every_agent_is_down() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        hosts[0].wait_proven(&hosts[1], "fastdp", PATIENCE)?;
        hosts[1].wait_proven(&hosts[0], "fastdp", PATIENCE)?;
        hosts[0].kill_agent()?;
        hosts[1].stop_agent()?;
        // New flows, not only running ones; and longer than any timer that could take the path down.
        weave_netns::wait::throughout(Duration::from_secs(6), "the pods talk without agents", || {
            probe::reach(one.ns(), other.service(), "other").map(drop)
        })
    });
}

#[test]
fn a_broken_path_is_noticed_within_seconds_and_used_again_when_it_returns() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        let _flow = Flow::udp(one.ns(), other.service(), PACE)?;
        lab.cut(&[&hosts[0]], &[&hosts[1]])?;
        // Three seconds for the agent, a little for the look itself.
        eventually(Duration::from_millis(3500), "the dead link is noticed", || {
            let connections = hosts[0].status(&["connections"])?;
            ensure!(
                connections.as_array().is_some_and(|all| all.iter().all(|one| one["state"] != "established")),
                "{connections}"
            );
            Ok(())
        })?;
        lab.heal()?;
        eventually(Duration::from_secs(40), "the pods talk again", || {
            probe::reach(one.ns(), other.service(), "other")
        })?;
        hosts[0].wait_connected(&[&hosts[1]])?;
        ensure!(hosts[0].ns()?.has_link(UPLINK)?, "the uplink is gone");
        Ok(())
    });
}
