//! The agent at rest: three peers, twenty pods, nobody asks anything.
//!
//! Processor time is what the scheduler counted for the agent's threads (/proc/PID/task/*/schedstat, in
//! nanoseconds; the kernel's work for a packet that the agent sends runs on its account), and what the machine's
//! soft interrupts took more than while the three agents are stopped, a third of it for each. The second part is
//! read in ticks and disturbed by whatever else the machine does; it cannot make the result smaller.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use weave_netns::settings::Settings;
use weave_netns::wait::{eventually, pause};
use weave_netns::{AgentOptions, Host, Lab, Pod};

use crate::rows::Row;

const PEERS: usize = 3;
const PODS: usize = 20;
/// What an agent may hold in memory.
const MEMORY_MIB: f64 = 25.0;
/// What an agent may take of one processor.
const PERCENT: f64 = 0.3;
/// Between the last change and the first measurement: everything that reacts to change has done so.
const SETTLING: Duration = Duration::from_secs(10);
/// One round.
const WINDOW: Duration = Duration::from_secs(5);
/// USER_HZ, the unit of /proc/stat; fixed on Linux for every architecture that runs Kubernetes.
const TICKS_A_SECOND: f64 = 100.0;

/// The rows of this part.
pub(crate) fn measure(settings: &Settings, rounds: usize) -> Result<Vec<Row>> {
    let lab = Lab::new(settings)?;
    let hosts: Vec<_> = (0..PEERS).map(|number| lab.host(&format!("n{number}"))).collect::<Result<_>>()?;
    let everybody: Vec<&Host> = hosts.iter().map(Arc::as_ref).collect();
    for host in &hosts {
        host.launch(&AgentOptions::founder(PEERS, &everybody))?;
    }
    hosts.iter().try_for_each(|host| host.wait_ready())?;
    let _pods: Vec<Pod> =
        (0..PODS).map(|number| hosts[0].pod(&format!("p{number}"))).collect::<Result<_>>()?;
    pause(SETTLING);
    let (mut memory, mut own, mut interrupts) = (Vec::new(), Vec::new(), Vec::new());
    let pid = hosts[0].pid()?;
    for _ in 0..rounds.max(5) {
        let (before, soft, start) = (nanoseconds(pid)?, soft_ticks()?, Instant::now());
        pause(WINDOW);
        let seconds = start.elapsed().as_secs_f64();
        own.push((nanoseconds(pid)? - before) / 1e9 / seconds * 100.0);
        interrupts.push((soft_ticks()? - soft) / TICKS_A_SECOND / seconds * 100.0);
        memory.push(resident_mib(pid)?);
    }
    let quiet = quiet_interrupts(&hosts, rounds)?;
    let share = |while_running: &f64| f64::max(0.0, while_running - quiet) / 3.0;
    let total: Vec<_> = own.iter().zip(&interrupts).map(|(own, soft)| own + share(soft)).collect();
    Ok(vec![
        Row::budget("agent_rss", "MiB", &memory, MEMORY_MIB),
        Row::budget("agent_idle_cpu", "%", &total, PERCENT),
        Row::budget("agent_idle_cpu_own", "%", &own, PERCENT),
    ])
}

/// What soft interrupts take while the agents are stopped.
fn quiet_interrupts(hosts: &[Arc<Host>], rounds: usize) -> Result<f64> {
    hosts.iter().try_for_each(|host| host.signal(Signal::STOP))?;
    let mut values = Vec::new();
    for _ in 0..rounds.max(5) {
        let (soft, start) = (soft_ticks()?, Instant::now());
        pause(WINDOW);
        values.push((soft_ticks()? - soft) / TICKS_A_SECOND / start.elapsed().as_secs_f64() * 100.0);
    }
    hosts.iter().try_for_each(|host| host.signal(Signal::CONT))?;
    Ok(weave_netns::measure::median(&values))
}

/// What the threads of a process have run so far.
fn nanoseconds(pid: u32) -> Result<f64> {
    // A thread may end between the listing and the reading.
    eventually(Duration::from_secs(1), "the threads hold still", || {
        let mut total = 0.0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("listing the agent's threads")? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let ran: f64 = text.split(' ').next().unwrap_or_default().parse().context("reading schedstat")?;
            total += ran;
        }
        Ok(total)
    })
}

/// What soft interrupts have taken on the whole machine.
fn soft_ticks() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let all = stat.lines().next().unwrap_or_default();
    all.split_whitespace().nth(7).context("no softirq in /proc/stat")?.parse().context("reading /proc/stat")
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the agent's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("reading VmRSS")?;
    Ok(kib / 1024.0)
}
