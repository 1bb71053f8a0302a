//! The way that carries pods' packets changes, again and again, and nobody who uses it notices more than a pause.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::cni::INTERFACE;
use weave_netns::lab::{BRIDGE, GATEWAY, OUTSIDE, others};
use weave_netns::pair::PASSWORD;
use weave_netns::probe::{self, Flow, MARK, PORT, Server};
use weave_netns::recording::{self, Recording};
use weave_netns::rules::{self, Service};
use weave_netns::{Host, Lab, Pod, eventually, run_in_lab};

/// How long all nodes together may take for one switch: 3 s to notice a silence, and on the way back the time for
/// which a way that has failed before must answer again.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pace of a flow that notices a gap.
const PACE: Duration = Duration::from_millis(20);
/// How often a way is blocked and opened again.
const ROUNDS: usize = 2;
/// Enough nodes for a hundred switches in so many rounds: each decides for itself about each of the others.
const NODES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const UNIVERSE: &str = "10.32.0.0/12";
const CLUSTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 1), 80);
const NODE_PORT: u16 = 30080;
const HOST_PORT: u16 = 8080;

#[test]
fn a_hundred_switches_between_the_kernel_s_tunnel_and_the_sealed_one_break_no_flow() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&NODES)?;
        let pods = Pods::new(&hosts)?;
        let mut flows = pods.flows()?;
        let services = Services::new(lab, &hosts, &pods)?;
        flows.extend(services.flows(lab, &hosts, &pods)?);
        let switches = switch(lab, &hosts, ["fastdp", "sleeve"], "udp dport 6784 drop")?;
        ensure!(switches >= 100, "only {switches} switches");
        for (name, flow) in flows {
            let report = flow.finish().with_context(|| format!("the flow {name}"))?;
            ensure!(report.lost == 0 && report.sent > 20, "{name}: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn a_hundred_switches_between_sealed_ways_break_no_flow_and_show_nothing_in_clear() {
    run_in_lab(|lab| {
        let hosts = lab.mesh_with(&NODES, |options| options.flag(PASSWORD))?;
        let pods = Pods::new(&hosts)?;
        // All but what never enters the network of pods, since one end of it is no node, or a pod asks a node for it; what a
        // node refuses it quotes.
        let between = format!("not (host {GATEWAY} or host {OUTSIDE} or tcp port {HOST_PORT})");
        let wire = Recording::start(lab.underlay(), BRIDGE, &between, &lab.scratch().join("wire.pcap"))?;
        let inside = Recording::start(pods.pods[0].ns(), INTERFACE, "", &lab.scratch().join("pod.pcap"))?;
        let mut flows = pods.flows()?;
        let services = Services::new(lab, &hosts, &pods)?;
        flows.extend(services.flows(lab, &hosts, &pods)?);
        let silent = Flow::udp(pods.pods[0].ns(), pods.pods[1].service(), PACE)?;
        let switches = switch(lab, &hosts, ["sleeve", "quic"], "udp dport 6785 drop")?;
        ensure!(switches >= 100, "only {switches} switches");
        // Another way to lose the way: the device is gone, with every route to it.
        hosts[0].ns()?.ip("link del weave-tun")?;
        wait_everywhere(&hosts, "sleeve")?;
        for (name, flow) in flows {
            let report = flow.finish().with_context(|| format!("the flow {name}"))?;
            ensure!(report.lost == 0 && report.sent > 50, "{name}: {report:?}");
        }
        let report = silent.finish()?;
        ensure!(report.sent > 100 && report.lost < report.sent / 2, "{report:?}");
        let seen = recording::count(&inside.finish()?, MARK);
        ensure!(seen > 100, "the pod's own packets show {seen} marks: nothing was tested");
        let seen = recording::count(&wire.finish()?, MARK);
        ensure!(seen == 0, "{seen} packets of pods could be read");
        Ok(())
    });
}

/// Blocks the way in use everywhere and opens it again, [`ROUNDS`] times; returns the number of switches.
fn switch(lab: &Lab, hosts: &[Arc<Host>], [first, second]: [&str; 2], block: &str) -> Result<usize> {
    let mut switches = 0;
    wait_everywhere(hosts, first)?;
    for _ in 0..ROUNDS {
        lab.impose("block", block)?;
        switches += wait_everywhere(hosts, second)?;
        lab.lift("block")?;
        switches += wait_everywhere(hosts, first)?;
    }
    Ok(switches)
}

/// Waits until each node reaches each other by this method; returns how many ways these are.
fn wait_everywhere(hosts: &[Arc<Host>], method: &str) -> Result<usize> {
    let mut ways = 0;
    for host in hosts {
        let peers = others(hosts, host);
        eventually(PATIENCE, &format!("{} uses {method} only", host.name()), || {
            let connections = host.status(&["connections"])?;
            let used = connections.as_array().into_iter().flatten();
            let used = used.filter(|one| one["method"]["name"] == method).count();
            ensure!(used == peers.len(), "{connections}");
            Ok(())
        })?;
        ways += peers.len();
    }
    Ok(ways)
}

/// A pod on each node, that serves.
struct Pods {
    pods: Vec<Pod>,
    _servers: Vec<Server>,
}

impl Pods {
    fn new(hosts: &[Arc<Host>]) -> Result<Self> {
        let pods: Vec<Pod> = hosts.iter().map(|host| host.pod("pod")).collect::<Result<_>>()?;
        let servers = pods.iter().map(Pod::serve).collect::<Result<_>>()?;
        Ok(Self { pods, _servers: servers })
    }

    /// A connection from each pod to each on another node.
    fn flows(&self) -> Result<Vec<(String, Flow)>> {
        let mut flows = Vec::new();
        for (number, from) in self.pods.iter().enumerate() {
            for (other, to) in self.pods.iter().enumerate().filter(|(other, _)| *other != number) {
                let name = format!("{} to {}", NODES[number], NODES[other]);
                eventually(PATIENCE, &name, || probe::ask_tcp(from.ns(), to.service()))?;
                flows.push((name, Flow::tcp(from.ns(), to.service(), PACE)?));
            }
        }
        Ok(flows)
    }
}

/// What else passes between nodes than packets from pod to pod: a Service with a port on every node, in kube-proxy's
/// manner, in front of the pod of node b; that pod at a port of its node; and a server outside.
struct Services {
    _world: Server,
}

impl Services {
    fn new(lab: &Lab, hosts: &[Arc<Host>], pods: &Pods) -> Result<Self> {
        let endpoint = SocketAddrV4::new(pods.pods[1].address(), PORT);
        let service = Service { cluster: CLUSTER, node_port: NODE_PORT, endpoint };
        for host in &hosts[..2] {
            rules::kube_proxy(&*host.ns()?, UNIVERSE, &[service])?;
        }
        hosts[1].ns()?.nft(&format!(
            "table ip hostport {{\n chain prerouting {{\n type nat hook prerouting priority dstnat;\n\
             ip daddr {} tcp dport {HOST_PORT} dnat to {endpoint}\n }}\n}}\n",
            hosts[1].address()
        ))?;
        Ok(Self { _world: Server::start_at(lab.underlay(), "world", outside())? })
    }

    fn flows(&self, lab: &Lab, hosts: &[Arc<Host>], pods: &Pods) -> Result<Vec<(String, Flow)>> {
        let node = hosts[0].ns()?;
        let (world, pod) = (lab.underlay(), pods.pods[0].ns());
        let node_port = SocketAddr::from((hosts[0].address(), NODE_PORT));
        let host_port = SocketAddr::from((hosts[1].address(), HOST_PORT));
        let wanted = [
            ("from outside to a port of every node, masqueraded", world, node_port),
            ("from outside to a port of the pod's node", world, host_port),
            ("from a pod to a port of the pod's node", pod, host_port),
            ("from a pod to the Service", pod, CLUSTER.into()),
            ("from a node to the Service", &*node, CLUSTER.into()),
            ("from a pod to the world, masqueraded", pod, outside()),
        ];
        let start = |(name, from, to): (&str, _, SocketAddr)| {
            eventually(PATIENCE, name, || probe::ask_tcp(from, to))?;
            Ok((name.to_owned(), Flow::tcp(from, to, PACE)?))
        };
        wanted.into_iter().map(start).collect()
    }
}

fn outside() -> SocketAddr {
    SocketAddr::from((OUTSIDE.parse().unwrap_or(Ipv4Addr::UNSPECIFIED), PORT))
}
