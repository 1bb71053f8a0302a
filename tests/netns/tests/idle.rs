//! What an agent costs while nothing happens, and that the first packet finds it awake.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use weave_netns::wait::pause;
use weave_netns::{eventually, probe, run_in_lab};

/// Between the last change and the count: everything that reacts to change has done so.
const SETTLING: Duration = Duration::from_secs(15);
/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const WINDOW: Duration = Duration::from_secs(20);
/// How often the threads of an agent with three peers may be woken in a second while no pod sends anything. With every
/// way probed as if it carried traffic it is 70.
const WAKE_UPS: f64 = 60.0;

#[test]
fn an_agent_with_three_peers_at_rest_sleeps_nearly_all_the_time() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b", "c", "d"])?;
        let _pods = [hosts[0].pod("one")?, hosts[1].pod("other")?];
        pause(SETTLING);
        let pid = hosts[0].pid()?;
        let before = wake_ups(pid)?;
        pause(WINDOW);
        let per_second = (wake_ups(pid)? - before) / WINDOW.as_secs_f64();
        ensure!(per_second <= WAKE_UPS, "{per_second:.1} wake-ups a second, {WAKE_UPS} are allowed");
        Ok(())
    });
}

#[test]
fn a_way_that_died_while_nobody_sent_is_left_within_seconds_of_the_first_packet() {
    /// Three seconds for both ends at once, and a ping's own patience on a busy machine.
    const NOTICED: Duration = Duration::from_millis(4500);
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let (one, other) = (hosts[0].pod("one")?, hosts[1].pod("other")?);
        eventually(PATIENCE, "the pods talk", || probe::ping(one.ns(), other.address()))?;
        // Longer than a peer counts as one with traffic.
        pause(Duration::from_secs(15));
        hosts[0].wait_proven(&hosts[1], "fastdp", PATIENCE)?;
        hosts[1].wait_proven(&hosts[0], "fastdp", PATIENCE)?;
        lab.underlay().nft(
            "table bridge block {\n chain forward {\n  type filter hook forward priority 0;\n  udp dport 6784 drop\n }\n}\n",
        )?;
        let start = Instant::now();
        eventually(PATIENCE, "the pods talk again", || probe::ping(one.ns(), other.address()))?;
        let took = start.elapsed();
        ensure!(took <= NOTICED, "it took {took:?}");
        Ok(())
    });
}

/// How often the threads of a process have gone to sleep of their own accord so far.
fn wake_ups(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("listing the agent's threads")? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count: f64 = line.context("no count of switches")?.trim().parse()?;
        total += count;
    }
    Ok(total)
}
