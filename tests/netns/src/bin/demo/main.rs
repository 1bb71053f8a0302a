//! `make demo`: three nodes, six pods, and two accidents.

#![expect(clippy::print_stdout, reason = "a program for people")]

mod matrix;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use weave_netns::lab::{Lab, told};
use weave_netns::settings::Settings;
use weave_netns::{AgentOptions, Host};

use matrix::Tenant;

const NODES: usize = 3;
const PODS: [&str; 2] = ["red", "blue"];
/// The name of a demonstration that stays up.
const KEPT: &str = "wvdemo";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe demonstration failed: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let settings = Settings::read()?;
    ensure!(rustix::process::geteuid().is_root(), "network namespaces need root: run `sudo make demo`");
    Lab::remove(KEPT, &settings)?;
    if std::env::args().any(|argument| argument == "--clean") {
        println!("nothing of a demonstration is left");
        return Ok(());
    }
    settings.binary("weave")?;
    settings.binary("weave-net")?;
    let start = Instant::now();
    let mut lab = if settings.keep { Lab::named(KEPT, &settings)? } else { Lab::new(&settings)? };
    match show(&lab) {
        Ok(tenants) if settings.keep => leave_up(&mut lab, tenants),
        Ok(tenants) => {
            drop(tenants);
            lab.tear_down()?;
            println!("\nEverything is removed again. `make demo KEEP=1` leaves it up to look around.");
        }
        Err(error) => {
            println!("{}", lab.diagnosis());
            return Err(error);
        }
    }
    println!("It took {:.1} s.", start.elapsed().as_secs_f64());
    Ok(())
}

/// The whole demonstration.
fn show(lab: &Lab) -> Result<Vec<Tenant>> {
    let hosts = found_a_mesh(lab)?;
    let mut tenants = attach_pods(&hosts)?;
    heading("Every pod reaches every other: ping, then TCP");
    matrix::whole(&tenants)?;
    heading(&format!("{}: weave status", hosts[0].name()));
    for topic in [&["status"][..], &["status", "connections"], &["status", "ipam"]] {
        println!("$ weave {}\n{}", topic.join(" "), hosts[0].weave(topic)?.trim_end());
    }
    kill_an_agent(&hosts[1], &tenants)?;
    lose_a_node(&hosts, &mut tenants)?;
    Ok(tenants)
}

fn found_a_mesh(lab: &Lab) -> Result<Vec<Arc<Host>>> {
    heading("Three nodes, each a network namespace with an uplink, each told the other two");
    let start = Instant::now();
    let hosts: Vec<_> =
        (1..=NODES).map(|number| lab.host(&format!("node{number}"))).collect::<Result<_>>()?;
    for host in &hosts {
        let others: Vec<&Host> =
            hosts.iter().filter(|other| other.name() != host.name()).map(Arc::as_ref).collect();
        let peers = others.iter().map(|other| other.address().to_string()).collect::<Vec<_>>().join(" ");
        println!("{}$ weave launch --ipalloc-init consensus={NODES} {peers}", host.name());
        host.launch(&AgentOptions::founder(NODES, &others))?;
    }
    hosts.iter().try_for_each(|host| host.wait_ready())?;
    println!("The mesh gives out addresses after {:.1} s.", start.elapsed().as_secs_f64());
    Ok(hosts)
}

fn attach_pods(hosts: &[Arc<Host>]) -> Result<Vec<Tenant>> {
    heading("Two pods a node, attached by the CNI plugin weave-net");
    let mut tenants = Vec::new();
    for host in hosts {
        tenants.extend(attach_pods_of(host)?);
    }
    Ok(tenants)
}

fn attach_pods_of(host: &Arc<Host>) -> Result<Vec<Tenant>> {
    PODS.iter()
        .map(|name| {
            let start = Instant::now();
            let tenant = Tenant::attach(host, name)?;
            let milliseconds = start.elapsed().as_secs_f64() * 1e3;
            println!("{:<12} {:<16} {milliseconds:.1} ms", tenant.name(), tenant.address());
            Ok(tenant)
        })
        .collect()
}

fn kill_an_agent(host: &Host, tenants: &[Tenant]) -> Result<()> {
    heading(&format!("kill -9 of {}'s agent: its pods talk on without it", host.name()));
    host.kill_agent()?;
    matrix::whole(tenants).context("while an agent was dead")?;
    host.relaunch()?;
    host.wait_ready()?;
    println!("The agent is back.");
    Ok(())
}

fn lose_a_node(hosts: &[Arc<Host>], tenants: &mut Vec<Tenant>) -> Result<()> {
    let lost = &hosts[NODES - 1];
    heading(&format!("{} loses power: the rest is whole", lost.name()));
    tenants.retain(|tenant| tenant.node() != lost.name());
    lost.power_off()?;
    matrix::whole(tenants).context("while a node was off")?;
    heading(&format!("{} returns with its disk, and with new pods", lost.name()));
    lost.power_on()?;
    let start = Instant::now();
    lost.relaunch()?;
    lost.wait_ready()?;
    println!("It gives out addresses after {:.1} s.", start.elapsed().as_secs_f64());
    tenants.extend(attach_pods_of(lost)?);
    matrix::whole(tenants).context("after the node's return")
}

/// Lets go of everything, and says how to look at it and how to remove it.
fn leave_up(lab: &mut Lab, tenants: Vec<Tenant>) {
    let hosts = lab.hosts();
    lab.keep();
    heading("It stays up. To look around:");
    if let [first, ..] = hosts.as_slice() {
        let weave = lab.settings().binaries.join("weave");
        let (weave, run) = (weave.display(), first.run_dir());
        let node = format!("{KEPT}-{}", first.name());
        println!("  ip netns exec {node} {weave} --run-dir {} status connections", run.display());
        println!("  ip netns exec {node} {weave} --run-dir {} status ipam", run.display());
        println!("  ip netns exec {node} ip route");
        println!("  ip netns exec {node} nft list ruleset");
        println!("  ip netns exec {node} bridge -d link");
        println!("  tail -f {}", first.log_file().display());
    }
    if let [first, .., last] = tenants.as_slice() {
        println!(
            "  ip netns exec {} ping {}    # {} to {}",
            first.netns(),
            last.address(),
            first.name(),
            last.name()
        );
    }
    println!("The nodes are the namespaces {KEPT}-node1 to {KEPT}-node{NODES}. To remove all of it:");
    println!("  make demo-clean");
    for tenant in tenants {
        tenant.keep();
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}
