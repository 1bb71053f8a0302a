//! Where the network lets only the control connection through, pods talk beside it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::capture::Capture;
use weave_netns::host::{Host, UPLINK};
use weave_netns::probe::{self, Flow};
use weave_netns::wait::throughout;
use weave_netns::{eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(20);
/// The pace of a flow that notices a gap.
const PACE: Duration = Duration::from_millis(20);
/// Strong enough that nothing is warned of.
const PASSWORD: &str = "--password=Ndq0zJk1fR2uQmTg7xVwYb4cHs8eLpAo";
/// The network between the nodes lets neither VXLAN nor sealed UDP records through.
const BLOCK: &str = "table bridge block {\n chain forward {\n  type filter hook forward priority 0;\n  \
                     udp dport { 6784, 6785 } drop\n }\n}\n";
const UNBLOCK: &str = "delete table bridge block\n";

/// The method to the only peer, and why no better one.
fn method(host: &Host) -> Result<(String, String)> {
    let connections = host.status(&["connections"])?;
    let method = &connections[0]["method"];
    Ok((method["name"].as_str().unwrap_or_default().to_owned(), method.to_string()))
}

fn wait_for(host: &Host, name: &str, patience: Duration) -> Result<String> {
    eventually(patience, &format!("{name} is used"), || {
        let (used, told) = method(host)?;
        ensure!(used == name, "{told}");
        Ok(told)
    })
}

#[test]
fn where_both_tunnels_are_blocked_pods_talk_by_quic_and_a_running_flow_goes_there_and_back_unbroken() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        wait_for(&hosts[0], "fastdp", PATIENCE)?;
        let needless = || {
            let (_, told) = method(&hosts[0])?;
            ensure!(told.contains("not made while a better way answers"), "{told}");
            Ok(())
        };
        // The kernel's way is in use before anything has answered, until when a connection might be needed.
        eventually(PATIENCE, "a better way answers", needless)?;
        // Nothing is there that nobody needs.
        throughout(Duration::from_secs(5), "no connection is made beside the link", needless)?;
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
        // It must have begun before the way is blocked.
        throughout(Duration::from_secs(1), "the flow runs", || probe::ping(one.ns(), other.address()))?;
        lab.underlay().nft(BLOCK)?;
        eventually(PATIENCE, "the pods talk in spite of the block", || {
            probe::ping(one.ns(), other.address())?;
            let (used, told) = method(&hosts[0])?;
            ensure!(used == "quic", "{told}");
            Ok(())
        })?;
        let told = wait_for(&hosts[1], "quic", PATIENCE)?;
        for better in ["fastdp", "sleeve"] {
            ensure!(told.contains(&format!("{{\"name\":\"{better}\",\"reason\":\"no answer for")), "{told}");
        }
        probe::bulk(one.ns(), other.service(), 4 << 20)?;
        probe::bulk(other.ns(), one.service(), 4 << 20)?;
        probe::reach(&*hosts[0].ns()?, other.service(), "other")?;
        lab.underlay().nft(UNBLOCK)?;
        wait_for(&hosts[0], "fastdp", PATIENCE * 3)?;
        wait_for(&hosts[1], "fastdp", PATIENCE * 3)?;
        probe::reach(one.ns(), other.service(), "other")?;
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 20, "{report:?}");
        Ok(())
    });
}

#[test]
fn with_a_password_nothing_of_a_pods_packet_is_seen_on_the_way_of_quic_and_a_changed_agent_takes_the_flows_over()
 {
    run_in_lab(|lab| {
        // What the server says of itself is looked for on the way.
        const WORD: &str = "xylophonequarry";
        let seen = |capture: Capture| -> Result<bool> {
            Ok(capture.finish()?.iter().any(|line| line.contains(WORD)))
        };
        lab.underlay().nft(BLOCK)?;
        let hosts = lab.mesh_with(&["a", "b"], |options| options.flag(PASSWORD))?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod(WORD)?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), WORD))?;
        wait_for(&hosts[0], "quic", PATIENCE)?;
        let node = hosts[0].ns()?;
        let tunnels = Capture::start(&node, UPLINK, "udp port 6784 or net 10.32.0.0/12")?;
        let outside = Capture::contents(&node, UPLINK, "ip or ip6")?;
        let inside = Capture::contents(one.ns(), "eth0", "ip")?;
        probe::reach(one.ns(), other.service(), WORD)?;
        outside.wait(PATIENCE)?;
        ensure!(seen(inside)?, "the pod's own packets do not show what is looked for");
        ensure!(!seen(outside)?, "what a pod's packet holds was seen on the way");
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
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
            wait_for(host, "quic", PATIENCE).context("after a restart")?;
        }
        eventually(PATIENCE, "new flows, too", || probe::reach(one.ns(), other.service(), WORD))?;
        let report = flow.finish()?;
        ensure!(report.sent > 20 && report.lost == 0, "{report:?}");
        let in_clear = tunnels.finish()?;
        ensure!(in_clear.is_empty(), "seen in clear: {in_clear:?}");
        Ok(())
    });
}

#[test]
fn with_quic_as_the_only_method_pods_talk_by_it_and_a_changed_secret_breaks_no_flow() {
    run_in_lab(|lab| {
        const OLD: &str = "Vn3pQe8sXk1dWz6tRb9mYf2hLc7gJa4u";
        const NEW: &str = "Hq5wTz2vNc8xKe1rBy7pMd4sGf9jLa3o";
        let quic =
            |options: weave_netns::AgentOptions| options.secret(OLD).flag("--encrypt").flag("--methods=quic");
        let hosts = lab.mesh_with(&["a", "b"], quic)?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        let _servers = [one.serve()?, other.serve()?];
        eventually(PATIENCE, "the pods talk", || probe::reach(one.ns(), other.service(), "other"))?;
        let others = Capture::start(&*hosts[0].ns()?, UPLINK, "udp port 6784 or udp port 6785")?;
        let flow = Flow::tcp(one.ns(), other.service(), PACE)?;
        for round in [format!("{OLD}\n{NEW}\n"), format!("{NEW}\n{OLD}\n"), format!("{NEW}\n")] {
            for host in &hosts {
                std::fs::write(host.data_dir().with_extension("secret"), &round)?;
            }
            // Each agent looks at its file every two seconds.
            throughout(Duration::from_secs(6), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        }
        // What the retired secret had let in is closed ten seconds later.
        throughout(Duration::from_secs(12), "the pods talk", || probe::ping(one.ns(), other.address()))?;
        wait_for(&hosts[0], "quic", PATIENCE)?;
        let report = flow.finish()?;
        ensure!(report.lost == 0 && report.sent > 500, "{report:?}");
        let elsewhere = others.finish()?;
        ensure!(elsewhere.is_empty(), "seen on other ports: {elsewhere:?}");
        Ok(())
    });
}
