//! Many nodes at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use weave_netns::lab::others;
use weave_netns::wait::{eventually, pause};
use weave_netns::{AgentOptions, Host, Pod, probe, run_in_lab};

/// How many start together.
const NODES: usize = 24;
/// For all of them to find each other, on two processors that also run a build's other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often an agent is asked whether it is connected.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// What an agent may hold with so many peers: its budget and room for an unoptimised build.
const MEMORY_KIB: u64 = 96 * 1024;
/// The part of one processor that an agent may take while nothing happens, in an unoptimised build.
const IDLE_SHARE: f64 = 0.05;

#[test]
fn two_dozen_nodes_that_start_together_all_reach_each_other_and_rest() {
    run_in_lab(|lab| {
        let names: Vec<String> = (0..NODES).map(|number| format!("n{number}")).collect();
        let hosts: Vec<_> = names.iter().map(|name| lab.host(name)).collect::<Result<_>>()?;
        for host in &hosts {
            host.launch(&AgentOptions::founder(NODES, &others(&hosts, host)))?;
        }
        let deadline = Instant::now() + PATIENCE;
        for host in &hosts {
            wait_for_all(host, deadline.saturating_duration_since(Instant::now()))?;
        }
        let pods: Vec<Pod> = hosts.iter().map(|host| host.pod("pod")).collect::<Result<_>>()?;
        // Each to a near, a middling and a far one, so that every pod is asked three times.
        for (number, from) in pods.iter().enumerate() {
            for step in [1, 7, 12] {
                let to = &pods[(number + step) % NODES];
                eventually(PATIENCE, "a pod reaches a pod", || probe::ping(from.ns(), to.address()))?;
            }
        }
        rest(&hosts)
    });
}

/// Waits until one node has an established connection to every other.
fn wait_for_all(host: &Host, patience: Duration) -> Result<()> {
    eventually(patience, &format!("{} is connected to all others", host.name()), || {
        // Asking costs, too.
        pause(LOOK_AGAIN);
        let connections = host.status(&["connections"])?;
        let all = connections.as_array().into_iter().flatten();
        let up = all.filter(|one| one["state"] == "established").count();
        ensure!(up == NODES - 1, "{up} connections are established: {connections}");
        Ok(())
    })
}

/// Nobody takes much memory, nor, once everything has been said, processor time while nothing happens.
fn rest(hosts: &[Arc<Host>]) -> Result<()> {
    const WATCH: Duration = Duration::from_secs(3);
    let pids: Vec<u32> = hosts.iter().map(|host| host.pid()).collect::<Result<_>>()?;
    let taken = || pids.iter().try_fold(Duration::ZERO, |sum, &pid| anyhow::Ok(sum + processor_time(pid)?));
    eventually(PATIENCE, "the agents rest", || {
        let before = taken()?;
        pause(WATCH);
        let share = (taken()? - before).as_secs_f64() / WATCH.as_secs_f64() / NODES as f64;
        ensure!(share < IDLE_SHARE, "an agent at rest takes {share:.3} of a processor");
        Ok(())
    })?;
    for (host, pid) in hosts.iter().zip(pids) {
        let memory = resident_kib(pid)?;
        ensure!(memory < MEMORY_KIB, "{} holds {memory} KiB", host.name());
    }
    Ok(())
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("reading VmRSS")
}

/// What a process has taken of the processors, from /proc/PID/schedstat, in nanoseconds a thread.
fn processor_time(pid: u32) -> Result<Duration> {
    let mut total = 0_u64;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}
