//! Pairs of nodes joined by other people's tunnels.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use weave_netns::command;
use weave_netns::host::wire;
use weave_netns::measure::Path;
use weave_netns::ns::Netns;
use weave_netns::wait::eventually;
use weave_netns::{Host, HostOptions, Lab};

use crate::dataplane::load_nat;

/// The underlay's 1500 less what WireGuard adds, over IPv6 too.
const MTU: u32 = 1420;

/// How a pair of nodes is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boringtun,
    WireguardGo,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Boringtun => "bt",
            Self::WireguardGo => "go",
        }
    }

    /// The program that it is.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Boringtun => "boringtun-cli",
            Self::WireguardGo => "wireguard-go",
        }
    }
}

/// A program that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two nodes joined by a tunnel, with a pod each.
pub(super) struct Tunnel {
    pub(super) nodes: [Arc<Netns>; 2],
    pods: [Netns; 2],
    _hosts: [Arc<Host>; 2],
    _running: Vec<Running>,
}

const fn pod_address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 48, node, 2)
}

impl Tunnel {
    /// Lays it, and waits until it carries packets.
    pub(super) fn set_up(lab: &Lab, kind: Kind) -> Result<Self> {
        let make = |node: u8| {
            let name = format!("{}-{node}", kind.name());
            lab.host_with(HostOptions::new(&name).without_uplink())
        };
        let hosts = [make(1)?, make(2)?];
        let nodes = [hosts[0].ns()?, hosts[1].ns()?];
        wire(&hosts[0], &hosts[1])?;
        let running = wireguard(lab, kind, &hosts)?;
        let device = |node: u8| format!("{}{node}", kind.name());
        let pods = [pod(&hosts[0], (1, 2), &device(1))?, pod(&hosts[1], (2, 1), &device(2))?];
        nodes.iter().try_for_each(|node| load_nat(node, "10.48.0.0/16"))?;
        let tunnel = Self { nodes, pods, _hosts: hosts, _running: running };
        let ping = format!("ping -c 1 -W 1 {}", pod_address(2));
        eventually(PATIENCE, &format!("{kind:?} carries packets"), || tunnel.pods[0].run(&ping).map(drop))?;
        Ok(tunnel)
    }

    pub(super) fn path(&self) -> Path<'_> {
        Path { from: &self.pods[0], to: &self.pods[1], address: pod_address(2) }
    }
}

/// How long a tunnel may take to carry its first packet.
const PATIENCE: Duration = Duration::from_secs(10);

fn wireguard(lab: &Lab, kind: Kind, hosts: &[Arc<Host>; 2]) -> Result<Vec<Running>> {
    let (program, nodes) = (kind.program(), [hosts[0].ns()?, hosts[1].ns()?]);
    let mut running = Vec::new();
    let mut keys = Vec::new();
    for (node, number) in nodes.iter().zip(1_u8..) {
        let device = format!("{}{number}", kind.name());
        let mut command = if kind == Kind::Boringtun {
            command::words(program, ["--foreground", "--disable-drop-privileges", &device])
        } else {
            command::words(program, ["-f", &device])
        };
        command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        running.push(Running(node.start(command)?));
        eventually(PATIENCE, &format!("{program} has its device"), || {
            node.ip(&format!("link show {device}")).map(drop)
        })?;
        let private = node.run("wg genkey")?;
        let file = lab.scratch().join(format!("{device}.key"));
        std::fs::write(&file, &private)?;
        node.run(&format!("wg set {device} listen-port 51820 private-key {}", file.display()))?;
        keys.push(node.succeed(command::words("wg", ["pubkey"]), &private)?.trim().to_owned());
    }
    for (node, number) in nodes.iter().zip(1_u8..) {
        let (device, other) = (format!("{}{number}", kind.name()), 3 - number);
        let place = usize::from(other) - 1;
        let (key, outer) = (&keys[place], hosts[place].address());
        node.run(&format!(
            "wg set {device} peer {key} endpoint {outer}:51820 allowed-ips 10.48.{other}.0/24"
        ))?;
    }
    Ok(running)
}

/// A pod behind a node, and the node's way to the pods of the other.
fn pod(host: &Host, (number, other): (u8, u8), device: &str) -> Result<Netns> {
    let (node, pod) = (host.ns()?, host.bare_pod(&format!("p{number}"))?);
    let address = pod_address(number);
    node.sysctl("net.ipv4.ip_forward", "1")?;
    node.ip_batch(&format!(
        "link set {device} mtu {MTU} up\n\
         link add pod0 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {}\n\
         addr add 10.48.{number}.1/32 dev pod0\n\
         link set pod0 up\n\
         route add {address}/32 dev pod0\n\
         route add 10.48.{other}.0/24 dev {device}\n",
        pod.name()
    ))?;
    pod.ip_batch(&format!(
        "addr add {address}/32 dev eth0\n\
         link set eth0 up\n\
         route add 10.48.{number}.1/32 dev eth0\n\
         route add default via 10.48.{number}.1\n"
    ))?;
    Ok(pod)
}
