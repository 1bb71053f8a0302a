//! Beside other programs' rules: Docker's, firewalld's, kube-proxy's.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weave_netns::lab::GATEWAY;
use weave_netns::ns::Netns;
use weave_netns::probe::{self, Flow, PORT, Server};
use weave_netns::rules::{self, Service};
use weave_netns::wait::pause;
use weave_netns::{AgentOptions, Host, Lab, Pod, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(15);
const UNIVERSE: &str = "10.32.0.0/12";
const NODE_PORT: u16 = 30080;
const BRIDGE_SWITCH: &str = "net.bridge.bridge-nf-call-iptables";

#[test]
fn docker_s_dropping_forward_chain_does_not_stop_pods() {
    run_in_lab(|lab| {
        let hosts = [lab.host("a")?, lab.host("b")?];
        hosts.iter().try_for_each(|host| rules::docker(&*host.ns()?))?;
        found(&hosts)?;
        let pods = pods_that_talk(&hosts)?;
        let node = hosts[0].ns()?;
        // Docker restarts and loads its chains anew, in front of ours.
        node.run("iptables -F FORWARD")?;
        rules::docker(&node)?;
        eventually(PATIENCE, "the pods talk again", || talk(&pods))?;
        hosts[0].reset()?;
        let left = node.run("iptables-save")?;
        ensure!(!left.contains("weave"), "a rule of ours is left in:\n{left}");
        ensure!(left.contains("DOCKER-USER"), "Docker's rules are gone:\n{left}");
        Ok(())
    });
}

#[test]
fn docker_s_dropping_forward_chain_is_left_alone_and_named_where_the_operator_wants_that() {
    run_in_lab(|lab| {
        let hosts = [lab.host("a")?, lab.host("b")?];
        hosts.iter().try_for_each(|host| rules::docker(&*host.ns()?))?;
        let before = hosts[0].ns()?.run("iptables-save -t filter")?;
        for (host, other) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
            host.launch(&AgentOptions::founder(2, &[other]).flag("--forward-accept=never"))?;
        }
        hosts.iter().try_for_each(|host| host.wait_ready())?;
        let _pod = hosts[0].pod("pod")?;
        eventually(PATIENCE, "the status names the firewall", || {
            let status = hosts[0].status(&[])?.to_string();
            ensure!(status.to_lowercase().contains("forward"), "{status}");
            Ok(())
        })?;
        let after = hosts[0].ns()?.run("iptables-save -t filter")?;
        let rules = |text: &str| {
            text.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect::<Vec<_>>()
        };
        ensure!(rules(&before) == rules(&after), "the foreign rules changed:\n{before}\n{after}");
        Ok(())
    });
}

#[test]
fn firewalld_with_our_devices_in_its_trusted_zone_does_not_stop_pods() {
    run_in_lab(|lab| {
        let hosts = [lab.host("a")?, lab.host("b")?];
        for host in &hosts {
            rules::firewalld(&*host.ns()?, &["weave", "weave-vx"])?;
        }
        found(&hosts)?;
        pods_that_talk(&hosts).map(drop)
    });
}

#[test]
fn firewalld_that_rejects_what_passes_is_named_in_the_status() {
    run_in_lab(|lab| {
        let hosts = [lab.host("a")?, lab.host("b")?];
        hosts.iter().try_for_each(|host| rules::firewalld(&*host.ns()?, &[]))?;
        found(&hosts)?;
        let _pods = [hosts[0].pod("one")?, hosts[1].pod("other")?];
        eventually(PATIENCE, "the status names the firewall", || {
            let status = hosts[0].status(&[])?;
            let told = format!("{} {}", status["warnings"], status["node"]["problems"]).to_lowercase();
            ensure!(told.contains("firewall") || told.contains("forward"), "{told}");
            Ok(())
        })
    });
}

#[test]
fn services_work_with_bridged_packets_passing_iptables() {
    run_in_lab(|lab| services(lab, "1"));
}

#[test]
fn services_work_with_bridged_packets_bypassing_iptables() {
    run_in_lab(|lab| services(lab, "0"));
}

#[test]
fn services_work_with_an_imitation_of_kube_proxy_s_nftables_mode_which_keeps_local_clients_addresses() {
    run_in_lab(|lab| {
        let cluster = Cluster::with(lab, "1", Proxy::Nftables)?;
        for switch in ["1", "0"] {
            cluster.hosts.iter().try_for_each(|host| host.ns()?.sysctl(BRIDGE_SWITCH, switch))?;
            eventually(PATIENCE, "every service answers", || cluster.all_answer())?;
            eventually(PATIENCE, "local ones see the world", || {
                cluster.the_world_is_seen_where_the_policy_is_local()
            })?;
        }
        Ok(())
    });
}

#[test]
fn services_and_running_flows_survive_the_switch_being_flipped() {
    run_in_lab(|lab| {
        let cluster = Cluster::new(lab, "1")?;
        eventually(PATIENCE, "every service answers", || cluster.all_answer())?;
        cluster.hosts[0].wait_proven(&cluster.hosts[1], "fastdp", PATIENCE)?;
        let flows = [
            Flow::tcp(cluster.client.ns(), cluster.near.service(), Duration::from_millis(5))?,
            Flow::tcp(cluster.client.ns(), cluster.far.service(), Duration::from_millis(5))?,
            Flow::udp(cluster.client.ns(), cluster.far.service(), Duration::from_millis(5))?,
        ];
        for value in ["0", "1", "0", "1"] {
            cluster.hosts[0].ns()?.sysctl(BRIDGE_SWITCH, value)?;
            eventually(PATIENCE, &format!("every service answers with {value}"), || cluster.all_answer())?;
        }
        for flow in flows {
            let report = flow.finish()?;
            ensure!(report.lost == 0, "a flow was disturbed: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn services_under_load_lose_no_connection() {
    run_in_lab(|lab| {
        let cluster = Cluster::new(lab, "1")?;
        eventually(PATIENCE, "every service answers", || cluster.all_answer())?;
        cluster.hosts[0].wait_proven(&cluster.hosts[1], "fastdp", PATIENCE)?;
        let (ending, service) = (AtomicBool::new(false), cluster.service(&cluster.far));
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| -> Result<u32> {
                        let mut asked = 0;
                        while !ending.load(Ordering::Relaxed) {
                            probe::ask_tcp(cluster.client.ns(), service)?;
                            asked += 1;
                        }
                        Ok(asked)
                    })
                })
                .collect();
            pause(Duration::from_secs(3));
            ending.store(true, Ordering::Relaxed);
            asking.into_iter().try_for_each(|asking| {
                let asked = asking.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
                ensure!(asked > 20, "only {asked} connections in three seconds");
                Ok(())
            })
        })
    });
}

/// Two nodes with kube-proxy's rules: a client and a server on the first, a server on the second.
struct Cluster<'a> {
    world: &'a Netns,
    hosts: [Arc<Host>; 2],
    client: Pod,
    near: Pod,
    far: Pod,
    _servers: [Server; 3],
}

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Iptables,
    Nftables,
}

impl<'a> Cluster<'a> {
    fn new(lab: &'a Lab, bridge_switch: &str) -> Result<Self> {
        Self::with(lab, bridge_switch, Proxy::Iptables)
    }

    fn with(lab: &'a Lab, bridge_switch: &str, proxy: Proxy) -> Result<Self> {
        let hosts = [lab.host("a")?, lab.host("b")?];
        hosts.iter().try_for_each(|host| host.ns()?.sysctl(BRIDGE_SWITCH, bridge_switch))?;
        found(&hosts)?;
        let (client, near, far) = (hosts[0].pod("client")?, hosts[0].pod("near")?, hosts[1].pod("far")?);
        let servers = [client.serve()?, near.serve()?, far.serve()?];
        let cluster = Self { world: lab.underlay(), hosts, client, near, far, _servers: servers };
        let services: Vec<_> = [(&cluster.client, 0), (&cluster.near, 1), (&cluster.far, 2)]
            .map(|(pod, number)| Service {
                cluster: SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10 + number), 80),
                node_port: NODE_PORT + u16::from(number),
                endpoint: SocketAddrV4::new(pod.address(), PORT),
            })
            .into();
        for (number, host) in cluster.hosts.iter().enumerate() {
            let pods = [&cluster.client, &cluster.near, &cluster.far];
            let here = pods.iter().filter(|pod| (pod.name() == "far") == (number == 1));
            match proxy {
                Proxy::Iptables => rules::kube_proxy(&*host.ns()?, UNIVERSE, &services)?,
                Proxy::Nftables => {
                    let here = here.map(|pod| pod.address()).collect();
                    rules::kube_proxy_nftables(&*host.ns()?, UNIVERSE, &services, &here)?;
                }
            }
        }
        Ok(cluster)
    }

    /// The Service in front of a pod.
    fn service(&self, pod: &Pod) -> SocketAddr {
        let number = if pod.name() == "client" { 0 } else { 1 + u8::from(pod.name() == "far") };
        SocketAddr::from((Ipv4Addr::new(10, 96, 0, 10 + number), 80))
    }

    /// The Service of a pod at a port of a node.
    fn node_port(&self, node: usize, pod: &Pod) -> SocketAddr {
        let number = if pod.name() == "client" { 0 } else { 1 + u16::from(pod.name() == "far") };
        SocketAddr::from((self.hosts[node].address(), NODE_PORT + number))
    }

    fn all_answer(&self) -> Result<()> {
        self.pods_answer_pods().context("from a pod")?;
        self.pods_answer_nodes().context("from a node")?;
        self.pods_answer_the_world().context("from outside")
    }

    /// Same node, oneself (hairpin), the other node.
    fn pods_answer_pods(&self) -> Result<()> {
        for to in [&self.near, &self.client, &self.far] {
            let seen = asked(self.client.ns(), self.service(to), to.name())?;
            let masqueraded = to.name() == self.client.name();
            ensure!(
                masqueraded || seen.ip() == self.client.address(),
                "{} sees {seen} instead of the client",
                to.name()
            );
            asked(self.client.ns(), self.node_port(0, to), to.name())?;
            asked(self.client.ns(), self.node_port(1, to), to.name())?;
        }
        asked(self.far.ns(), self.service(&self.near), self.near.name()).map(drop)
    }

    fn pods_answer_nodes(&self) -> Result<()> {
        for host in &self.hosts {
            for to in [&self.near, &self.far] {
                asked(&*host.ns()?, self.service(to), to.name())
                    .with_context(|| format!("{} to {}", host.name(), to.name()))?;
            }
        }
        Ok(())
    }

    /// Ports of a policy `Local`: on the pod's node they keep the client's address, on others nobody answers.
    fn the_world_is_seen_where_the_policy_is_local(&self) -> Result<()> {
        for (node, pod, other) in [(0, &self.near, 1), (1, &self.far, 0)] {
            let port = |node| {
                let mut port = self.node_port(node, pod);
                port.set_port(port.port() + 100);
                port
            };
            let seen = asked(self.world, port(node), pod.name())?;
            ensure!(seen.ip().to_string() == GATEWAY, "{} sees {seen} instead of {GATEWAY}", pod.name());
            ensure!(probe::ask_tcp(self.world, port(other)).is_err(), "a node without the pod answers");
        }
        Ok(())
    }

    /// `--random-fully` masquerades these on the way to the other node.
    fn pods_answer_the_world(&self) -> Result<()> {
        for node in [0, 1] {
            for to in [&self.near, &self.far] {
                asked(self.world, self.node_port(node, to), to.name())
                    .with_context(|| format!("node {node} for {}", to.name()))?;
            }
        }
        Ok(())
    }
}

/// Asks by TCP and UDP; the answers must be by `name`. Returns the client that the server saw.
fn asked(from: &Netns, service: SocketAddr, name: &str) -> Result<SocketAddr> {
    let (tcp, udp) = (probe::ask_tcp(from, service)?, probe::ask_udp(from, service)?);
    ensure!(tcp.server == name && udp.server == name, "{service} is {} and {}", tcp.server, udp.server);
    Ok(tcp.client)
}

fn services(lab: &Lab, bridge_switch: &str) -> Result<()> {
    let cluster = Cluster::new(lab, bridge_switch)?;
    eventually(PATIENCE, "every service answers", || cluster.all_answer())
}

fn found(hosts: &[Arc<Host>; 2]) -> Result<()> {
    // As in a cluster.
    for (host, other) in [(&hosts[0], &hosts[1]), (&hosts[1], &hosts[0])] {
        host.launch(&AgentOptions::founder(2, &[other]).flag("--no-masq-local"))?;
    }
    hosts.iter().try_for_each(|host| host.wait_ready())?;
    hosts[0].wait_connected(&[&hosts[1]])
}

fn pods_that_talk(hosts: &[Arc<Host>; 2]) -> Result<Vec<(Pod, Server)>> {
    let pods = [hosts[0].pod("one")?, hosts[0].pod("two")?, hosts[1].pod("three")?];
    let pods: Vec<_> = pods
        .into_iter()
        .map(|pod| {
            let server = pod.serve()?;
            Ok((pod, server))
        })
        .collect::<Result<_>>()?;
    eventually(PATIENCE, "the pods talk", || talk(&pods))?;
    Ok(pods)
}

fn talk(pods: &[(Pod, Server)]) -> Result<()> {
    for (from, _) in pods {
        for (to, _) in pods {
            probe::reach(from.ns(), to.service(), to.name())?;
        }
    }
    Ok(())
}
