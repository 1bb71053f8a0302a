//! Attaching and detaching through the real shim: fast, durable, exact, and undone without a trace.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use weave_netns::cni::{self, Call, INTERFACE};
use weave_netns::command;
use weave_netns::fingerprint::difference;
use weave_netns::ns::Netns;
use weave_netns::probe::{self, Flow};
use weave_netns::{AgentOptions, Host, Lab, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);
/// How far the status may lag behind the agent.
const STATUS_PACE: Duration = Duration::from_secs(2);
/// As many pods as a Kubernetes node holds, and how long they may take together.
const FULL_NODE: usize = 110;
const FULL_NODE_PATIENCE: Duration = Duration::from_secs(3);

fn alone(lab: &Lab) -> Result<std::sync::Arc<Host>> {
    let host = lab.host("node")?;
    host.launch(&AgentOptions::default())?;
    host.wait_ready()?;
    Ok(host)
}

/// A machine that does other work at the same time may need a second chance; an agent that is slow needs more.
#[test]
fn a_full_node_of_110_pods_is_attached_in_parallel_in_less_than_three_seconds() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let mut best = Duration::MAX;
        for attempt in 0..3 {
            let (pods, elapsed) = attach_all(&host, attempt)?;
            best = best.min(elapsed);
            let mut addresses: Vec<_> = pods.iter().map(Pod::address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            ensure!(addresses.len() == FULL_NODE, "{} addresses for {FULL_NODE} pods", addresses.len());
            for pod in &pods {
                probe::ping(&*host.ns()?, pod.address()).with_context(|| pod.container().to_owned())?;
                probe::ping(pod.ns(), pods[0].address())?;
            }
            if best < FULL_NODE_PATIENCE {
                return Ok(());
            }
            for pod in pods {
                pod.detach(&host)?;
            }
        }
        ensure!(best < FULL_NODE_PATIENCE, "it took {best:?}");
        Ok(())
    });
}

fn attach_all(host: &Host, attempt: usize) -> Result<(Vec<Pod>, Duration)> {
    let namespaces: Vec<Netns> =
        (0..FULL_NODE).map(|_| host.bare_pod(&format!("full{attempt}"))).collect::<Result<_>>()?;
    let start = Instant::now();
    let pods: Vec<Pod> = std::thread::scope(|scope| {
        let adding: Vec<_> = namespaces
            .into_iter()
            .map(|namespace| scope.spawn(move || Pod::attach(host, namespace, "full")))
            .collect();
        adding
            .into_iter()
            .map(|add| add.join().map_err(|_| anyhow!("an ADD panicked"))?)
            .collect::<Result<_>>()
    })?;
    Ok((pods, start.elapsed()))
}

/// Nothing of what ADD promises may wait for, or be undone by, the work for other pods.
#[test]
fn a_pod_talks_from_the_moment_that_add_returns_while_others_come_and_go() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let far = hosts[1].pod("far")?;
        let steady = hosts[0].pod("steady")?;
        let _servers = [far.serve()?, steady.serve()?];
        eventually(PATIENCE, "the mesh is up", || probe::reach(steady.ns(), far.service(), "far"))?;
        let flow = Flow::udp(far.ns(), steady.service(), Duration::from_millis(10))?;
        let (node, hosts) = (hosts[0].ns()?, &hosts);
        let come_and_go = &|visitor: usize| -> Result<()> {
            for turn in 0..12 {
                let pod = hosts[0].pod(&format!("v{visitor}t{turn}"))?;
                let told = || format!("{} ({}) after ADD", pod.container(), pod.address());
                probe::ask_udp(pod.ns(), far.service()).with_context(told)?;
                probe::ping(&node, pod.address()).with_context(told)?;
                probe::ask_udp(pod.ns(), steady.service()).with_context(told)?;
                pod.detach(&hosts[0])?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let visitors: Vec<_> = (0..3).map(|visitor| scope.spawn(move || come_and_go(visitor))).collect();
            visitors
                .into_iter()
                .try_for_each(|visitor| visitor.join().map_err(|_| anyhow!("a visitor panicked"))?)
        })?;
        let report = flow.finish()?;
        ensure!(report.lost == 0, "another pod noticed: {report:?}");
        Ok(())
    });
}

/// A bridge without a pod has no carrier, and gets one from its first pod: the slowest case.
#[test]
fn a_nodes_only_pod_answers_from_the_moment_that_add_returns_however_busy_the_machine() {
    const TURNS: u32 = 60;
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let node = host.ns()?;
        let lost = while_busy(|| {
            let mut lost = Vec::new();
            for turn in 0..TURNS {
                let pod = host.pod("only")?;
                // An echo that was lost was lost; the next would hide it.
                lost.extend(probe::ping(&node, pod.address()).err().map(|_| turn));
                pod.detach(&host)?;
                eventually(PATIENCE, "the bridge has no carrier", || {
                    let bridge = node.ip("link show dev weave")?;
                    ensure!(bridge.contains("NO-CARRIER"), "{bridge}");
                    Ok(())
                })?;
            }
            Ok(lost)
        })?;
        ensure!(lost.is_empty(), "{} of {TURNS} pods did not answer at first: {lost:?}", lost.len());
        Ok(())
    });
}

/// Does the work while every processor computes.
fn while_busy<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let ending = AtomicBool::new(false);
    let spin = || {
        while !ending.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..processors * 2 {
            scope.spawn(spin);
        }
        let result = work();
        ending.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn check_is_exact_and_del_is_idempotent() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let (pod, other) = (host.pod("pod")?, host.pod("other")?);
        pod.call(&host, "CHECK")?;
        pod.ns().ip(&format!("addr add 192.0.2.7/32 dev {INTERFACE}"))?;
        pod.call(&host, "CHECK").context("CHECK minds what was added")?;
        pod.ns().ip("route del default")?;
        ensure!(pod.call(&host, "CHECK").is_err(), "CHECK does not notice that the default route is gone");
        other.ns().ip(&format!("addr del {}/32 dev {INTERFACE}", other.address()))?;
        ensure!(other.call(&host, "CHECK").is_err(), "CHECK does not notice that the address is gone");
        for _ in 0..3 {
            pod.call(&host, "DEL")?;
        }
        ensure!(!pod.ns().has_link(INTERFACE)?, "DEL left the interface");
        is_free(&host, &pod)?;
        Ok(())
    });
}

#[test]
fn what_was_answered_is_in_the_status_that_is_asked_for_next() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        for turn in 0..20 {
            let pod = host.pod("pod")?;
            let shown = host.allocations()?;
            ensure!(shown.contains_key(pod.container()), "turn {turn}: ADD is not shown in {shown:?}");
            pod.call(&host, "DEL")?;
            let shown = host.allocations()?;
            ensure!(!shown.contains_key(pod.container()), "turn {turn}: DEL is not shown in {shown:?}");
        }
        Ok(())
    });
}

#[test]
fn a_data_directory_that_was_deleted_is_told_and_nothing_is_given_out_on_it() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let (pod, namespace) = (host.pod("pod")?, host.bare_pod("late")?);
        std::fs::remove_dir_all(host.data_dir()).context("deleting the data directory")?;
        eventually(PATIENCE, "the status tells of it", || {
            let told = host.status(&[])?["warnings"].to_string();
            ensure!(told.contains("was deleted or replaced"), "{told}");
            Ok(())
        })?;
        let conf = cni::weave_conf("1.0.0", &host.run_dir());
        shim(lab, "ADD", &namespace, &conf)?.refused(&*host.ns()?)?;
        ensure!(!namespace.has_link(INTERFACE)?, "an ADD that was refused left its interface");
        probe::ping(&*host.ns()?, pod.address())
    });
}

#[test]
fn every_version_of_the_protocol_is_spoken() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let namespace = host.bare_pod("version")?;
            let conf = cni::weave_conf(version, &host.run_dir());
            let result = shim(lab, "ADD", &namespace, &conf)?.succeed(&*host.ns()?)?;
            ensure!(result["cniVersion"] == version, "asked for {version}, got {result}");
            probe::ping(&*host.ns()?, cni::first_address(&result)?)?;
            shim(lab, "DEL", &namespace, &conf)?.succeed(&*host.ns()?)?;
        }
        let namespace = host.bare_pod("future")?;
        let error = shim(lab, "ADD", &namespace, &cni::weave_conf("9.0.0", &host.run_dir()))?
            .refused(&*host.ns()?)?;
        ensure!(error["code"] == 1, "an unknown version is {error}");
        holds_nothing(&host)?;
        Ok(())
    });
}

#[test]
fn status_and_gc_answer_for_the_whole_network() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let (stays, goes) = (host.pod("stays")?, host.pod("goes")?);
        let mut conf = cni::weave_conf("1.1.0", &host.run_dir());
        shim(lab, "STATUS", stays.ns(), &conf)?.succeed(&*host.ns()?)?;
        conf["cni.dev/valid-attachments"] =
            json!([{ "containerID": stays.container(), "ifname": INTERFACE }]);
        shim(lab, "GC", stays.ns(), &conf)?.succeed(&*host.ns()?)?;
        is_free(&host, &goes)?;
        let left = host.allocations()?;
        ensure!(left.contains_key(stays.container()), "GC took a valid attachment: {left:?}");
        probe::ping(&*host.ns()?, stays.address())?;
        host.stop_agent()?;
        let error = shim(lab, "STATUS", stays.ns(), &cni::weave_conf("1.1.0", &host.run_dir()))?
            .refused(&*host.ns()?)?;
        ensure!(error["code"] == 50 || error["code"] == 51, "without an agent STATUS says {error}");
        Ok(())
    });
}

#[test]
fn del_succeeds_without_a_namespace_and_without_an_agent_and_is_caught_up_with_later() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let (vanished, orphan) = (host.pod("vanished")?, host.pod("orphan")?);
        let conf = cni::weave_conf("1.0.0", &host.run_dir());
        let mut call = shim(lab, "DEL", vanished.ns(), &conf)?;
        call.netns = Some(PathBuf::new());
        call.succeed(&*host.ns()?)?;
        is_free(&host, &vanished)?;
        host.kill_agent()?;
        let start = Instant::now();
        orphan.call(&host, "DEL")?;
        ensure!(start.elapsed() < Duration::from_secs(8), "DEL without an agent took {:?}", start.elapsed());
        host.relaunch()?;
        host.wait_ready()?;
        is_free(&host, &orphan)?;
        Ok(())
    });
}

#[test]
fn a_failed_add_leaves_neither_a_device_nor_an_address() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let before = host.wait_unchanged(PATIENCE)?;
        let namespace = host.bare_pod("taken")?;
        namespace.ip(&format!("link add {INTERFACE} type veth peer name peer0"))?;
        let conf = cni::weave_conf("1.0.0", &host.run_dir());
        shim(lab, "ADD", &namespace, &conf)?.refused(&*host.ns()?)?;
        holds_nothing(&host)?;
        eventually(PATIENCE, "the node is as before", || {
            let after = host.fingerprint()?;
            ensure!(before == after, "{}", difference(&before, &after));
            Ok(())
        })
    });
}

#[test]
fn hostport_through_the_chained_portmap_plugin_reaches_the_pod() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let pod = host.pod("pod")?;
        let _server = pod.serve()?;
        let portmap = lab.settings().plugins.join("portmap");
        let conf = json!({
            "cniVersion": "1.0.0", "name": cni::NETWORK, "type": "portmap", "snat": true,
            "capabilities": { "portMappings": true }, "prevResult": pod.result(),
            "runtimeConfig": { "portMappings": [
                { "hostPort": 8081, "containerPort": probe::PORT, "protocol": "tcp" },
            ] },
        });
        let mut call = shim(lab, "ADD", pod.ns(), &conf)?;
        call.plugin = portmap;
        call.succeed(&*host.ns()?)?;
        let answer = eventually(PATIENCE, "the host's port answers", || {
            probe::ask_tcp(lab.underlay(), (host.address(), 8081).into())
        })?;
        ensure!(answer.server == "pod", "{answer:?}");
        call.verb = "DEL";
        call.succeed(&*host.ns()?).map(drop)
    });
}

#[test]
fn an_address_is_on_disk_before_it_is_answered() {
    run_in_lab(|lab| {
        let host = alone(lab)?;
        let trace = lab.scratch().join("trace");
        let tracer = Tracer::start(host.pid()?, &trace)?;
        let pod = host.pod("pod")?;
        tracer.finish()?;
        let text = std::fs::read_to_string(&trace).context("reading the trace")?;
        let lines: Vec<_> = text.lines().collect();
        let address = format!("\\\"{}\\\"", pod.address());
        let answered = lines
            .iter()
            .position(|line| is_write(line) && line.contains(&address))
            .with_context(|| format!("no answer with {address} in:\n{text}"))?;
        let asked = lines.iter().position(|line| line.contains(pod.container())).unwrap_or(0);
        let synced =
            lines[asked..answered].iter().any(|line| line.contains("fsync(") || line.contains("fdatasync("));
        ensure!(synced, "nothing was synced between the question and the answer:\n{text}");
        Ok(())
    });
}

/// The status is told at a bounded pace: what has happened shows in it a moment later.
fn is_free(host: &Host, pod: &Pod) -> Result<()> {
    eventually(STATUS_PACE, &format!("the address of {} is free", pod.container()), || {
        let left = host.allocations()?;
        ensure!(!left.contains_key(pod.container()), "{left:?}");
        Ok(())
    })
}

fn holds_nothing(host: &Host) -> Result<()> {
    eventually(STATUS_PACE, "no address is given out", || {
        let left = host.allocations()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

fn is_write(line: &str) -> bool {
    ["write(", "writev(", "sendto(", "sendmsg("].iter().any(|call| line.contains(call))
}

/// `strace` on a running process.
struct Tracer(Child);

impl Tracer {
    fn start(pid: u32, output: &std::path::Path) -> Result<Self> {
        let calls = "trace=fsync,fdatasync,write,writev,sendto,sendmsg,recvmsg,recvfrom,read";
        let mut command =
            command::words("strace", ["-f", "-q", "-s", "2048", "-e", calls, "-p", &pid.to_string()]);
        command.arg("-o").arg(output).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let tracer = Self(command.spawn().context("starting strace")?);
        eventually(PATIENCE, "strace is attached", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let attached = status.lines().any(|line| line == format!("TracerPid:\t{}", tracer.0.id()));
            ensure!(attached, "no tracer");
            Ok(())
        })?;
        Ok(tracer)
    }

    fn finish(mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("no process id")?, rustix::process::Signal::INT)?;
        self.0.wait().context("waiting for strace").map(drop)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn reset_leaves_no_trace() {
    run_in_lab(|lab| {
        let (host, other) = (lab.host("node")?, lab.host("other")?);
        let before = host.fingerprint()?;
        host.launch(&AgentOptions::founder(2, &[&other]))?;
        other.launch(&AgentOptions::founder(2, &[&host]))?;
        host.wait_ready()?;
        let pods = [host.pod("one")?, host.pod("two")?];
        ensure!(host.fingerprint()? != before, "the agent did nothing");
        host.reset()?;
        ensure!(!host.is_running()?, "the agent runs on after reset --force");
        let after = host.fingerprint()?;
        ensure!(before == after, "{}", difference(&before, &after));
        for folder in [host.data_dir(), host.run_dir()] {
            let left: Vec<_> = std::fs::read_dir(&folder)
                .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
                .unwrap_or_default();
            ensure!(left.is_empty(), "{} holds {left:?}", folder.display());
        }
        ensure!(!pods[0].ns().has_link(INTERFACE)?, "a pod kept an interface of a network that is gone");
        Ok(())
    });
}

/// A call of the shim for a namespace.
fn shim<'a>(lab: &Lab, verb: &'a str, namespace: &'a Netns, conf: &'a Value) -> Result<Call<'a>> {
    Ok(Call {
        plugin: lab.settings().binary("weave-net")?,
        verb,
        container: namespace.name(),
        netns: Some(namespace.path()),
        interface: INTERFACE,
        args: None,
        path: std::path::Path::new("/nonexistent"),
        input: conf,
    })
}
