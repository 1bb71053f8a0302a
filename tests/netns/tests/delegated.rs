//! Pods whose address another IPAM plugin gives, from outside the universe: reached by their node, clients of
//! everything, and guarded like any other pod.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weave_netns::cni::{self, Call, INTERFACE};
use weave_netns::lab::OUTSIDE;
use weave_netns::ns::Netns;
use weave_netns::probe::{self, Flow, PORT, Server};
use weave_netns::{AgentOptions, Host, eventually, run_in_lab};

const PATIENCE: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(5);
/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// A pod with an address of `host-local`.
struct Guest<'a> {
    host: &'a Host,
    namespace: Netns,
    conf: Value,
    result: Value,
    address: Ipv4Addr,
}

impl<'a> Guest<'a> {
    fn attach(host: &'a Host, name: &str) -> Result<Self> {
        let namespace = host.bare_pod(name)?;
        let mut conf = cni::weave_conf("1.0.0", &host.run_dir());
        conf["ipam"] = json!({
            "type": "host-local", "subnet": "10.22.0.0/16", "dataDir": leases(host), "routes": [{ "dst": "0.0.0.0/0" }],
        });
        let result = call(host, "ADD", &namespace, &conf)?;
        let address = cni::first_address(&result)?;
        Ok(Self { host, namespace, conf, result, address })
    }

    fn call(&self, verb: &str) -> Result<Value> {
        let mut conf = self.conf.clone();
        conf["prevResult"] = self.result.clone();
        call(self.host, verb, &self.namespace, &conf)
    }

    fn service(&self) -> SocketAddr {
        SocketAddr::from((self.address, PORT))
    }
}

/// Where host-local keeps what it has given out on a host.
fn leases(host: &Host) -> PathBuf {
    host.run_dir().join("leases")
}

fn call(host: &Host, verb: &str, namespace: &Netns, conf: &Value) -> Result<Value> {
    let call = Call {
        plugin: host.shim_program().to_owned(),
        verb,
        container: namespace.name(),
        netns: Some(namespace.path()),
        interface: INTERFACE,
        args: None,
        path: Path::new(REFERENCE),
        input: conf,
    };
    call.succeed(&*host.ns()?)
}

#[test]
fn a_pod_with_an_address_of_host_local_talks_to_its_node_to_pods_and_to_the_world() {
    run_in_lab(|lab| {
        let hosts = lab.mesh(&["a", "b"])?;
        let node = hosts[0].ns()?;
        let (near, far) = (hosts[0].pod("near")?, hosts[1].pod("far")?);
        let guest = Guest::attach(&hosts[0], "guest")?;
        let other = Guest::attach(&hosts[0], "other")?;
        ensure!(guest.address.octets()[..2] == [10, 22], "host-local gave {}", guest.address);
        let world = SocketAddr::new(OUTSIDE.parse()?, PORT);
        let _servers = [
            near.serve()?,
            far.serve()?,
            Server::start(&guest.namespace, "guest", PORT)?,
            Server::start(&other.namespace, "other", PORT)?,
            Server::start_at(lab.underlay(), "world", world)?,
        ];
        let talk = |from: &Netns, to: SocketAddr, name: &str| {
            eventually(PATIENCE, "a guest talks", || probe::reach(from, to, name))
                .with_context(|| format!("{} to {name}", from.name()))
        };
        for (from, address) in [(near.ns(), near.address()), (&other.namespace, other.address)] {
            let seen = talk(from, guest.service(), "guest")?;
            ensure!(seen.client.ip() == address, "the guest sees {} instead of {address}", seen.client);
        }
        talk(&node, guest.service(), "guest")?;
        let own = hosts[0].status(&[])?["node"]["address"].as_str().unwrap_or_default().to_owned();
        // Towards pods of the range it is a client from outside, which appears as its node unless that is told otherwise.
        for pod in [&near, &far] {
            let seen = talk(&guest.namespace, pod.service(), pod.name())?;
            ensure!(seen.client.ip().to_string() == own, "{} sees {}", pod.name(), seen.client);
        }
        let seen = talk(&guest.namespace, world, "world")?;
        ensure!(seen.client.ip() == hosts[0].address(), "the world sees {}", seen.client);
        guest.call("CHECK")?;

        // It sends from its own address only.
        guest.namespace.ip(&format!("addr add 10.22.9.9/32 dev {INTERFACE}"))?;
        let forged = guest.namespace.run(&format!("ping -n -q -c 1 -W 1 -I 10.22.9.9 {}", near.address()));
        ensure!(forged.is_err(), "a forged address passed");

        // A restart of the agent is noticed by nobody, and the DEL that it missed is made up for.
        let flow = Flow::udp(&guest.namespace, far.service(), PACE)?;
        hosts[0].kill_agent()?;
        hosts[0].relaunch()?;
        hosts[0].wait_ready()?;
        hosts[0].wait_connected(&[&hosts[1]])?;
        guest.call("CHECK")?;
        let report = flow.finish()?;
        ensure!(report.lost == 0, "a restart was noticed: {report:?}");

        guest.call("DEL")?;
        guest.call("DEL")?;
        let routes = node.ip("route show")?;
        ensure!(!routes.contains(&guest.address.to_string()), "DEL left its route:\n{routes}");
        ensure!(routes.contains(&other.address.to_string()), "DEL took another pod's route:\n{routes}");
        other.call("CHECK")?;
        Ok(())
    });
}

#[test]
fn an_address_of_host_local_that_the_node_routes_elsewhere_is_refused_and_given_back() {
    run_in_lab(|lab| {
        let host = lab.host("node")?;
        host.launch(&AgentOptions::default())?;
        host.wait_ready()?;
        host.ns()?.ip("route add 10.22.0.2/32 dev lo")?;
        let refused = Guest::attach(&host, "refused").err().context("it was attached")?;
        let said = format!("{refused:#}");
        ensure!(said.contains("10.22.0.2"), "it does not say why: {said}");
        host.ns()?.ip("route del 10.22.0.2/32 dev lo")?;
        let held = std::fs::read_dir(leases(&host).join(cni::NETWORK))?;
        let held: Vec<PathBuf> = held.filter_map(|entry| Some(entry.ok()?.path())).collect();
        let lease = held.iter().find(|path| path.ends_with("10.22.0.2"));
        ensure!(lease.is_none(), "host-local still holds {held:?}");
        let guest = Guest::attach(&host, "guest")?;
        probe::ping(&*host.ns()?, guest.address)
    });
}
