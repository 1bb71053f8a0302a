//! containerd drives the plugin as it does in a cluster: its own namespaces, its own cache, its own idea of what an
//! error means, and the standard plugins behind ours.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use weave_netns::containerd::{Plan, Sandbox, image};
use weave_netns::fingerprint::difference;
use weave_netns::lab::told;
use weave_netns::probe;
use weave_netns::wait::pause;
use weave_netns::{AgentOptions, Containerd, Host, Lab, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);

/// A node with an agent and a runtime, and its links before the first pod.
struct Node {
    runtime: Containerd,
    links: BTreeSet<String>,
    host: Arc<Host>,
}

impl Node {
    /// One that is a mesh by itself.
    fn alone(lab: &Lab) -> Result<Self> {
        let host = lab.host("node")?;
        host.launch(&AgentOptions::default())?;
        Self::new(host, &image(lab)?)
    }

    fn new(host: Arc<Host>, image: &Path) -> Result<Self> {
        let runtime = Containerd::start(&host, image)?;
        host.wait_ready()?;
        host.setup_cni()?;
        runtime.wait_network_ready()?;
        Ok(Self { runtime, links: host.links()?, host })
    }

    /// Two nodes of one mesh.
    fn pair(lab: &Lab) -> Result<[Self; 2]> {
        let image = image(lab)?;
        let hosts: [Arc<Host>; 2] =
            lab.mesh(&["one", "two"])?.try_into().map_err(|_| anyhow!("not two nodes"))?;
        let [one, two] = hosts;
        Ok([Self::new(one, &image)?, Self::new(two, &image)?])
    }

    fn stop_and_remove(&self, sandbox: &Sandbox) -> Result<()> {
        self.runtime.stop(sandbox)?;
        self.runtime.remove(sandbox)
    }

    /// Waits until the addresses that weave has given out are those that containerd tells of these sandboxes. The
    /// agent's status follows its answers within a moment.
    fn wait_addresses(&self, sandboxes: &[&Sandbox]) -> Result<()> {
        let of = |sandbox: &&Sandbox| (sandbox.id().to_owned(), sandbox.address().to_string());
        let expected: BTreeMap<_, _> = sandboxes.iter().map(of).collect();
        eventually(PATIENCE, "weave and containerd agree about addresses", || {
            let given = self.host.allocations()?;
            ensure!(given == expected, "weave says {given:?}, containerd {expected:?}");
            Ok(())
        })
    }

    /// Waits until nothing of any pod is left: no address, no link, no namespace.
    fn wait_empty(&self) -> Result<()> {
        self.wait_addresses(&[])?;
        eventually(PATIENCE, "no pod has left any device", || self.ensure_no_devices())
    }

    fn ensure_no_devices(&self) -> Result<()> {
        let links = self.host.links()?;
        ensure!(links == self.links, "links were {:?} and are {links:?}", self.links);
        let namespaces = self.runtime.namespaces()?;
        ensure!(namespaces.is_empty(), "namespaces are left: {namespaces:?}");
        Ok(())
    }

    /// The agent dies and comes back, as it was launched.
    fn relaunch(&self) -> Result<()> {
        self.host.relaunch()?;
        self.host.wait_ready()
    }
}

#[test]
fn containerd_is_ready_for_pods_once_the_network_is_installed_and_not_before() {
    run_in_lab(|lab| {
        let host = lab.host("node")?;
        let runtime = Containerd::start(&host, &image(lab)?)?;
        let why = runtime.network_ready()?.err().context("ready without a network")?;
        ensure!(why.contains("cni"), "not ready because: {why}");
        host.launch(&AgentOptions::default())?;
        host.wait_ready()?;
        ensure!(runtime.network_ready()?.is_err(), "the agent alone does not make a runtime ready");
        let said = host.setup_cni()?;
        ensure!(said.contains("10-weave.conflist"), "setup-cni said {said}");
        runtime.wait_network_ready()
    });
}

#[test]
fn sandboxes_on_two_nodes_reach_each_other_and_go_without_a_trace() {
    run_in_lab(|lab| {
        let nodes = Node::pair(lab)?;
        let [one, two] = &nodes;
        let (left, right) = (one.runtime.run(&Plan::new("left"))?, two.runtime.run(&Plan::new("right"))?);
        one.wait_addresses(&[&left])?;
        two.wait_addresses(&[&right])?;
        let (_left, _right) = (left.serve()?, right.serve()?);
        eventually(PATIENCE, "the pods reach each other", || {
            probe::reach(left.ns(), right.service(), "right")?;
            probe::reach(right.ns(), left.service(), "left")
        })?;
        for (node, sandbox) in [(one, &left), (two, &right)] {
            node.runtime.stop(sandbox)?;
            node.runtime.stop(sandbox).context("a second time")?;
            node.wait_addresses(&[]).context("StopPodSandbox kept the address")?;
            node.runtime.remove(sandbox)?;
            ensure!(!node.runtime.knows(sandbox), "containerd knows a removed sandbox");
            node.wait_empty()?;
        }
        Ok(())
    });
}

#[test]
fn host_ports_and_bandwidth_limits_work_through_the_chain_that_setup_cni_writes() {
    run_in_lab(|lab| {
        let [one, two] = Node::pair(lab)?;
        let plan = Plan::new("web")
            .host_port(8080)
            .annotation("kubernetes.io/ingress-bandwidth", "50M")
            .annotation("kubernetes.io/egress-bandwidth", "50M");
        let (web, client) = (one.runtime.run(&plan)?, two.runtime.run(&Plan::new("client"))?);
        let _server = web.serve()?;
        let port = (one.host.address(), 8080).into();
        let (node, stranger) = (two.host.ns()?, one.host.ns()?);
        for from in [&*node, client.ns(), lab.underlay(), web.ns(), &*stranger] {
            let answer = eventually(PATIENCE, "the node's port answers", || probe::ask_tcp(from, port))?;
            ensure!(answer.server == "web", "{} was answered by {}", from.name(), answer.server);
        }
        let limits = one.host.ns()?.run("tc qdisc show")?;
        let shaped = |link: &str| limits.lines().any(|line| line.contains("tbf") && line.contains(link));
        ensure!(shaped("dev vethwepl"), "nothing limits what enters the pod:\n{limits}");
        ensure!(limits.matches("tbf").count() == 2, "nothing limits what leaves the pod:\n{limits}");
        one.stop_and_remove(&web)?;
        ensure!(probe::ask_tcp(&node, port).is_err(), "the port answers after the pod is gone");
        two.stop_and_remove(&client)?;
        one.wait_empty()?;
        two.wait_empty()
    });
}

#[test]
fn forty_sandboxes_are_made_and_removed_in_parallel() {
    const PODS: usize = 40;
    run_in_lab(|lab| {
        let node = Node::alone(lab)?;
        let sandboxes = in_parallel((0..PODS).map(|number| {
            let (runtime, plan) = (&node.runtime, Plan::new(&format!("pod{number}")));
            move || runtime.run(&plan)
        }))?;
        let addresses: BTreeSet<_> = sandboxes.iter().map(Sandbox::address).collect();
        ensure!(addresses.len() == PODS, "{} addresses for {PODS} pods", addresses.len());
        for sandbox in &sandboxes {
            probe::ping(&*node.host.ns()?, sandbox.address())?;
            probe::ping(sandbox.ns(), sandboxes[0].address())?;
        }
        let node = &node;
        in_parallel(sandboxes.iter().map(|sandbox| move || node.stop_and_remove(sandbox)))?;
        node.wait_empty()
    });
}

/// The agent dies at several moments of a DEL, and is away for others: containerd hears of success each time, and the
/// agent catches up.
#[test]
fn sandboxes_stop_while_the_agent_dies_and_their_addresses_are_free_after_its_return() {
    run_in_lab(|lab| {
        let node = Node::alone(lab)?;
        for moment in [0, 30, 60] {
            let during = [node.runtime.run(&Plan::new("a"))?, node.runtime.run(&Plan::new("b"))?];
            let after = node.runtime.run(&Plan::new("c"))?;
            std::thread::scope(|scope| {
                let stopping = during.each_ref().map(|sandbox| scope.spawn(|| node.runtime.stop(sandbox)));
                pause(Duration::from_millis(moment));
                let killed = node.host.kill_agent();
                let stopped = stopping
                    .into_iter()
                    .try_for_each(|stop| stop.join().map_err(|_| anyhow!("a thread panicked"))?);
                killed.and(stopped)
            })
            .with_context(|| format!("the agent was killed after {moment} ms"))?;
            let start = Instant::now();
            node.runtime.stop(&after)?;
            let elapsed = start.elapsed();
            ensure!(elapsed < Duration::from_secs(10), "without an agent stopping took {elapsed:?}");
            for sandbox in during.iter().chain([&after]) {
                node.runtime.remove(sandbox)?;
            }
            node.relaunch()?;
            node.wait_empty().with_context(|| format!("the agent was killed after {moment} ms"))?;
            let log = node.host.log();
            let caught_up = |line: &str| line.contains("carried out a DEL") && line.contains(after.id());
            ensure!(log.lines().any(caught_up), "the agent never heard of the DEL that it missed:\n{log}");
        }
        let again = node.runtime.run(&Plan::new("again"))?;
        probe::ping(&*node.host.ns()?, again.address())?;
        node.stop_and_remove(&again)
    });
}

#[test]
fn without_an_agent_no_sandbox_starts_the_reason_is_told_and_nothing_leaks() {
    run_in_lab(|lab| {
        let node = Node::alone(lab)?;
        node.host.kill_agent()?;
        let start = Instant::now();
        let error = node.runtime.run(&Plan::new("early")).err().context("a pod without an agent")?;
        let (elapsed, error) = (start.elapsed(), told(&error));
        ensure!(elapsed < Duration::from_secs(10), "the refusal took {elapsed:?}");
        ensure!(
            error.contains("cni.sock") && error.contains("is the agent running"),
            "containerd was told: {error}"
        );
        node.ensure_no_devices()?;
        node.relaunch()?;
        node.wait_empty()?;
        let late = node.runtime.run(&Plan::new("late"))?;
        node.wait_addresses(&[&late])?;
        node.stop_and_remove(&late)?;
        node.wait_empty()
    });
}

/// What containerd was promised is kept; what it was refused leaves nothing, whenever the agent dies.
#[test]
fn sandboxes_start_while_the_agent_dies_and_only_those_that_started_have_addresses() {
    run_in_lab(|lab| {
        let node = Node::alone(lab)?;
        for moment in [60, 120, 180] {
            let made = std::thread::scope(|scope| {
                let starting: Vec<_> = (0..4)
                    .map(|number| {
                        let runtime = &node.runtime;
                        scope.spawn(move || runtime.run(&Plan::new(&format!("pod{number}"))))
                    })
                    .collect();
                pause(Duration::from_millis(moment));
                node.host.kill_agent()?;
                let made = starting.into_iter().filter_map(|start| start.join().ok()?.ok());
                anyhow::Ok(made.collect::<Vec<_>>())
            })?;
            node.relaunch()?;
            node.wait_addresses(&made.iter().collect::<Vec<_>>())?;
            for sandbox in &made {
                probe::ping(&*node.host.ns()?, sandbox.address())?;
                node.stop_and_remove(sandbox)?;
            }
            node.wait_empty().with_context(|| format!("the agent was killed after {moment} ms"))?;
        }
        Ok(())
    });
}

/// Two hundred sandboxes are made and removed by a runtime that is asked for several at once, and the agent is killed in
/// each round of making and of removing.
#[test]
fn storms_of_two_hundred_sandboxes_with_agents_killed_leave_neither_address_nor_device_nor_rule() {
    const ROUNDS: usize = 4;
    const PODS: usize = 50;
    run_in_lab(|lab| {
        let node = Node::alone(lab)?;
        let before = node.host.wait_unchanged(PATIENCE)?;
        for round in 0..ROUNDS {
            // What the runtime is refused while the agent is away, a kubelet asks for again.
            let made = while_the_agent_dies(&node, 0..PODS, |number| {
                let plan = Plan::new(&format!("pod{round}-{number}"));
                eventually(PATIENCE, "the sandbox is made", || node.runtime.run(&plan))
            })?;
            node.wait_addresses(&made.iter().collect::<Vec<_>>())?;
            while_the_agent_dies(&node, made.iter(), |sandbox| node.stop_and_remove(sandbox))?;
            node.wait_empty().with_context(|| format!("round {round}"))?;
        }
        eventually(PATIENCE, "the node is as it was", || {
            let after = node.host.fingerprint()?;
            ensure!(before == after, "{}", difference(&before, &after));
            Ok(())
        })
    });
}

/// Does the work for all items, some at once, while the agent is killed and comes back.
fn while_the_agent_dies<I: Send, T: Send>(
    node: &Node,
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    const AT_ONCE: usize = 8;
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let thread = || std::iter::from_fn(&next).map(&work).collect::<Result<Vec<_>>>();
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(thread)).collect();
        pause(Duration::from_millis(150));
        let killed = node.host.kill_agent().and_then(|()| node.relaunch());
        let done: Result<Vec<_>> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect();
        killed?;
        Ok(done?.into_iter().flatten().collect())
    })
}

#[test]
fn a_sandbox_whose_namespace_lost_its_path_is_still_detached() {
    run_in_lab(|lab| {
        let node = Node::alone(lab)?;
        let sandbox = node.runtime.run(&Plan::new("lost"))?;
        node.runtime.lose_namespace(&sandbox)?;
        node.stop_and_remove(&sandbox)?;
        node.wait_empty()?;
        ensure!(!sandbox.ns().has_link("eth0")?, "the pod kept its interface");
        Ok(())
    });
}

/// Runs all at once; all results, or one of the errors.
fn in_parallel<T: Send, F: FnOnce() -> Result<T> + Send>(work: impl Iterator<Item = F>) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = work.map(|work| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
    })
}
