//! What pods send to other nodes can be read by nobody on the way, where that is wanted.

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::capture::Capture;
use weave_netns::cni::INTERFACE;
use weave_netns::host::UPLINK;
use weave_netns::lab::others;
use weave_netns::packet;
use weave_netns::pair::PASSWORD;
use weave_netns::probe::{self, Flow};
use weave_netns::wait::throughout;
use weave_netns::{AgentOptions, Host, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// The pace of a flow that notices a gap.
const PACE: Duration = Duration::from_millis(20);
/// What must not be seen on an uplink: the kernel's tunnel, and packets of pods that are in no tunnel.
const IN_CLEAR: &str = "udp port 6784 or net 10.32.0.0/12";

#[test]
fn with_a_password_packets_of_pods_travel_sealed_and_nothing_of_them_in_clear() {
    run_in_lab(|lab| {
        let hosts = lab.mesh_with(&["a", "b"], |options| options.flag(PASSWORD))?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        let node = hosts[0].ns()?;
        let clear = Capture::start(&node, UPLINK, IN_CLEAR)?;
        let sealed = Capture::start(&node, UPLINK, "udp port 6785")?;
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        probe::bulk(one.ns(), other.service(), 4 << 20)?;
        probe::bulk(other.ns(), one.service(), 4 << 20)?;
        probe::reach(&node, other.service(), "other")?;
        sealed.wait(PATIENCE)?;
        let seen = clear.finish()?;
        ensure!(seen.is_empty(), "seen in clear: {seen:?}");
        hosts[0].wait_method(&hosts[1], "sleeve", PATIENCE)?;
        let connection = hosts[0].connection_to(&hosts[1])?;
        ensure!(connection["method"]["encrypted"] == true, "{connection}");
        Ok(())
    });
}

#[test]
fn the_largest_packet_passes_sealed_and_a_larger_one_is_refused_at_once() {
    run_in_lab(|lab| {
        let hosts = lab.mesh_with(&["a", "b"], |options| options.flag(PASSWORD))?;
        let (pod, other) = (hosts[0].pod("pod")?, hosts[1].pod("other")?);
        let shown = pod.ns().ip("-o link show dev eth0")?;
        let mtu = shown.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap_or_default();
        let mtu: u32 = mtu.parse()?;
        ensure!(mtu == 1440, "60 of the uplink's 1500 bytes are needed, and a pod's MTU is {mtu}");
        eventually(PATIENCE, "a small packet passes", || probe::ping(pod.ns(), other.address()))?;
        eventually(PATIENCE, "the largest passes", || probe::ping_sized(pod.ns(), other.address(), mtu))?;
        ensure!(probe::ping_sized(pod.ns(), other.address(), mtu + 1).is_err(), "too large a packet passed");
        Ok(())
    });
}

#[test]
fn an_agent_that_dies_leaks_nothing_and_its_successor_takes_the_flows_over() {
    run_in_lab(|lab| {
        let hosts = lab.mesh_with(&["a", "b"], |options| options.flag(PASSWORD))?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        let clear = Capture::start(&*hosts[0].ns()?, UPLINK, IN_CLEAR)?;
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
        // It must have begun before somebody dies.
        throughout(Duration::from_secs(1), "the flow runs", || probe::ping(one.ns(), other.address()))?;
        for host in &hosts {
            host.kill_agent()?;
            ensure!(
                probe::ping(one.ns(), other.address()).is_err(),
                "somebody carries packets without an agent"
            );
            host.relaunch()?;
            host.wait_ready()?;
            eventually(PATIENCE, "the pods talk again", || probe::ping(one.ns(), other.address()))?;
        }
        // A TCP flow outlives the gap.
        eventually(PATIENCE, "new flows, too", || probe::reach(one.ns(), other.service(), "other"))?;
        let report = flow.finish()?;
        ensure!(report.sent > 20 && report.lost == 0, "{report:?}");
        let seen = clear.finish()?;
        ensure!(seen.is_empty(), "seen in clear: {seen:?}");
        Ok(())
    });
}

#[test]
fn without_a_password_the_kernel_carries_packets_and_where_its_port_is_blocked_they_travel_sealed() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        hosts[0].wait_method(&hosts[1], "fastdp", PATIENCE)?;
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
        // It must have begun before the way is blocked.
        throughout(Duration::from_secs(1), "the flow runs", || probe::ping(one.ns(), other.address()))?;
        lab.impose("block", "udp dport 6784 drop")?;
        hosts[0].wait_method(&hosts[1], "sleeve", PATIENCE)?;
        eventually(PATIENCE, "the pods talk in spite of the block", || {
            probe::ping(one.ns(), other.address())
        })?;
        lab.lift("block")?;
        hosts[0].wait_method(&hosts[1], "fastdp", PATIENCE * 3)?;
        probe::reach(one.ns(), other.service(), "other")?;
        let report = flow.finish()?;
        ensure!(report.lost == 0, "{report:?}");
        Ok(())
    });
}

#[test]
fn between_nodes_that_both_trust_the_network_packets_travel_in_clear_and_elsewhere_sealed() {
    run_in_lab(|lab| {
        const TRUST: &str = "--trusted-subnets=172.30.0.0/24";
        let hosts = [lab.host("a")?, lab.host("b")?, lab.host("c")?];
        let [a, b, c] = &hosts;
        for host in &hosts {
            let options = AgentOptions::founder(3, &others(&hosts, host)).flag(PASSWORD);
            host.launch(&if host.name() == "c" { options } else { options.flag(TRUST) })?;
        }
        hosts.iter().try_for_each(|host| host.wait_ready())?;
        let pods = [a.pod("one")?, b.pod("two")?, c.pod("three")?];
        let _servers = [pods[0].serve()?, pods[1].serve()?, pods[2].serve()?];
        let clear = Capture::start(&*c.ns()?, UPLINK, IN_CLEAR)?;
        let trusted = Capture::start(&*a.ns()?, UPLINK, &format!("udp port 6784 and host {}", b.address()))?;
        for (from, to, method) in [(a, b, "fastdp"), (b, a, "fastdp"), (b, c, "sleeve"), (c, b, "sleeve")] {
            from.wait_method(to, method, PATIENCE)?;
        }
        for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
            let (from, to) = (&pods[from], &pods[to]);
            eventually(PATIENCE, "the pods talk", || probe::reach(from.ns(), to.service(), to.name()))?;
        }
        trusted.wait(PATIENCE)?;
        let seen = clear.finish()?;
        ensure!(seen.is_empty(), "seen in clear: {seen:?}");
        Ok(())
    });
}

#[test]
fn a_secret_is_changed_in_its_file_without_a_lost_packet_or_one_in_clear_and_the_retired_one_lets_nobody_in()
{
    run_in_lab(|lab| {
        const OLD: &str = "Vn3pQe8sXk1dWz6tRb9mYf2hLc7gJa4u";
        const NEW: &str = "Hq5wTz2vNc8xKe1rBy7pMd4sGf9jLa3o";
        let hosts = lab.mesh_with(&["a", "b"], |options| options.secret(OLD).flag("--encrypt"))?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        let clear = Capture::start(&*hosts[0].ns()?, UPLINK, IN_CLEAR)?;
        let flow = Flow::udp(one.ns(), other.service(), PACE)?;
        for round in [format!("{OLD}\n{NEW}\n"), format!("{NEW}\n{OLD}\n"), format!("{NEW}\n")] {
            for host in &hosts {
                std::fs::write(host.data_dir().with_extension("secret"), &round)?;
            }
            // Each agent looks at its file every two seconds.
            throughout(Duration::from_secs(6), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        }
        hosts[0].wait_connected(&[&hosts[1]])?;
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 500, "{report:?}");
        let seen = clear.finish()?;
        ensure!(seen.is_empty(), "seen in clear: {seen:?}");
        let late = lab.host("late")?;
        let retired = AgentOptions::dialling(&[&hosts[0]]).secret(OLD).flag("--encrypt");
        late.launch(&retired)?;
        eventually(PATIENCE, "the retired secret is refused in so many words", || {
            let connections = late.status(&["connections"])?.to_string();
            ensure!(connections.contains("secret") && !connections.contains("established"), "{connections}");
            Ok(())
        })
    });
}

#[test]
fn where_encryption_is_due_nobody_s_plain_packet_is_let_in_and_each_is_counted() {
    run_in_lab(|lab| {
        const SECRET: &str = "Vn3pQe8sXk1dWz6tRb9mYf2hLc7gJa4u";
        let hosts = lab.mesh_with(&["a", "b"], |options| options.secret(SECRET))?;
        let stranger = lab.host("stranger")?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        eventually(PATIENCE, "the pods talk", || probe::ping(one.ns(), other.address()))?;
        let forged = forged(&hosts[1], (&other, &one), &hosts[0])?;
        let seen = || Capture::inbound(one.ns(), INTERFACE, &format!("udp port {FORGED_PORT}"));
        // While packets may travel in clear, a peer's arrives: the forger knows its trade.
        let honest = seen()?;
        send_plain(&hosts[1], &hosts[0], &forged)?;
        honest.wait(PATIENCE).context("where it is allowed, a plain packet does not arrive")?;
        for host in &hosts {
            host.stop_agent()?;
            host.launch(&AgentOptions::founder(2, &others(&hosts, host)).secret(SECRET).flag("--encrypt"))?;
        }
        hosts[0].wait_method(&hosts[1], "sleeve", PATIENCE)?;
        hosts[1].wait_method(&hosts[0], "sleeve", PATIENCE)?;
        eventually(PATIENCE, "the pods talk, sealed", || probe::ping(one.ns(), other.address()))?;
        let (seen, before) = (seen()?, hosts[0].drops("forged_vxlan")?);
        for from in [&hosts[1], &stranger] {
            for _ in 0..10 {
                send_plain(from, &hosts[0], &forged)?;
            }
        }
        eventually(PATIENCE, "the drops are counted", || {
            let now = hosts[0].drops("forged_vxlan")?;
            ensure!(now >= before + 20, "{before} before, {now} now");
            Ok(())
        })?;
        let seen = seen.finish()?;
        ensure!(seen.is_empty(), "sent in clear, and the pod saw {seen:#?}");
        Ok(())
    });
}

/// Where the forged packet goes in the pod.
const FORGED_PORT: u16 = 9999;

/// What the kernel of `sender` would put into its tunnel for a datagram between these pods.
fn forged(sender: &Host, (from, to): (&Pod, &Pod), receiver: &Host) -> Result<Vec<u8>> {
    const NETWORK: u32 = 6784;
    let macs = (receiver.ns()?.mac("weave")?, sender.ns()?.mac("weave")?);
    let (from, to) =
        (SocketAddrV4::new(from.address(), FORGED_PORT), SocketAddrV4::new(to.address(), FORGED_PORT));
    Ok(packet::vxlan(NETWORK, &packet::udp_frame(macs, from, to, b"forged")))
}

fn send_plain(from: &Host, to: &Host, payload: &[u8]) -> Result<()> {
    let target = (to.address(), 6784);
    from.ns()?.enter(|| -> Result<()> {
        let socket = UdpSocket::bind((from.address(), 0))?;
        socket.send_to(payload, target).map(drop).context("sending")
    })?
}
