//! Pairs of nodes joined by one tunnel: ours by the rig, other people's by their programs.
//!
//! The rig (`agent/examples/tunnel_rig.rs`) has fixed keys and chooses nothing.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use weave_netns::command;
use weave_netns::host::UPLINK;
use weave_netns::measure::Path;
use weave_netns::ns::Netns;
use weave_netns::wait::eventually;
use weave_netns::{Host, HostOptions, Lab};

use crate::dataplane::load_nat;

/// The underlay's 1500 less what a tunnel adds: a relayed record, WireGuard over IPv6.
const RELAYED_MTU: u32 = 1400;
const QUIC_MTU: u32 = 1380;
const WIREGUARD_MTU: u32 = 1420;
/// The longest UDP payload that the underlay takes.
const RECORD: &str = "1472";

/// How a pair of nodes is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Quic,
    /// By way of a third node.
    Relay,
    Boringtun,
    WireguardGo,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Quic => "qu",
            Self::Relay => "re",
            Self::Boringtun => "bt",
            Self::WireguardGo => "go",
        }
    }

    const fn mtu(self) -> u32 {
        match self {
            Self::Quic => QUIC_MTU,
            Self::Relay => RELAYED_MTU,
            Self::Boringtun | Self::WireguardGo => WIREGUARD_MTU,
        }
    }

    /// The program that a WireGuard of this kind is.
    pub(super) const fn program(self) -> Option<&'static str> {
        match self {
            Self::Boringtun => Some("boringtun-cli"),
            Self::WireguardGo => Some("wireguard-go"),
            Self::Quic | Self::Relay => None,
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
    pub(super) nodes: Vec<Arc<Netns>>,
    pods: [Netns; 2],
    _hosts: Vec<Arc<Host>>,
    _running: Vec<Running>,
}

const fn outer(network: u8, node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, network, node)
}

const fn pod_address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 48, node, 2)
}

impl Tunnel {
    /// Lays it, and waits until it carries packets.
    pub(super) fn set_up(lab: &Lab, kind: Kind) -> Result<Self> {
        let ends: &[u8] = if kind == Kind::Relay { &[1, 3, 2] } else { &[1, 2] };
        let make = |&node: &u8| {
            let name = format!("{}-{node}", kind.name());
            lab.host_with(HostOptions::new(&name).without_uplink())
        };
        let hosts = ends.iter().map(make).collect::<Result<Vec<_>>>()?;
        let nodes = hosts.iter().map(|host| host.ns()).collect::<Result<Vec<_>>>()?;
        cable(&nodes[0], UPLINK, &nodes[1], UPLINK, (77, ends[0], ends[1]))?;
        if let [_, middle, far] = nodes.as_slice() {
            cable(middle, "uplink2", far, UPLINK, (78, ends[1], ends[2]))?;
        }
        let mut running = Vec::new();
        match kind {
            Kind::Quic => {
                running.push(rig(lab, &nodes[0], 1, &[peer(2, outer(77, 2), "quic")])?);
                running.push(rig(lab, &nodes[1], 2, &[peer(1, outer(77, 1), "quic")])?);
            }
            Kind::Relay => {
                let nowhere = Ipv4Addr::UNSPECIFIED;
                let (one, two) = (peer(1, outer(77, 1), "udp"), peer(2, outer(78, 2), "udp"));
                running.push(rig(lab, &nodes[1], 3, &[one, two])?);
                let (by, far) = (peer(3, outer(77, 3), "udp"), peer(2, nowhere, "via-3"));
                running.push(rig(lab, &nodes[0], 1, &[by, far])?);
                let (by, far) = (peer(3, outer(78, 3), "udp"), peer(1, nowhere, "via-3"));
                running.push(rig(lab, &nodes[2], 2, &[by, far])?);
            }
            Kind::Boringtun | Kind::WireguardGo => running = wireguard(lab, kind, &nodes)?,
        }
        let device = |node: u8| {
            if kind.program().is_some() { format!("{}{node}", kind.name()) } else { TUN.to_owned() }
        };
        let last = nodes.len() - 1;
        let pods = [
            pod(&hosts[0], (1, 2), &device(1), kind.mtu())?,
            pod(&hosts[last], (2, 1), &device(2), kind.mtu())?,
        ];
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

/// The device of the rig.
const TUN: &str = "weave-tun";

/// A peer for the rig's command line.
fn peer(number: u8, outer: Ipv4Addr, way: &str) -> String {
    format!("{number},{outer},{way},10.48.{number}.0/24,10.48.0.{number}/32")
}

fn rig(lab: &Lab, node: &Netns, number: u8, peers: &[String]) -> Result<Running> {
    let program = lab.settings().binary("examples/tunnel_rig")?;
    let fixed = [number.to_string(), TUN.to_owned(), RECORD.to_owned(), "1".to_owned(), "aes128".to_owned()];
    let mut command = command::words(program, fixed.iter().chain(peers));
    command.stdout(Stdio::null()).stdin(Stdio::null());
    let running = Running(node.start(command)?);
    eventually(PATIENCE, "the rig has its device", || node.ip(&format!("link show {TUN}")).map(drop))?;
    Ok(running)
}

fn wireguard(lab: &Lab, kind: Kind, nodes: &[Arc<Netns>]) -> Result<Vec<Running>> {
    let program = kind.program().context("a WireGuard has a program")?;
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
        let key = &keys[usize::from(other) - 1];
        node.run(&format!(
            "wg set {device} peer {key} endpoint {}:51820 allowed-ips 10.48.{other}.0/24",
            outer(77, other)
        ))?;
    }
    Ok(running)
}

/// Joins two nodes. The network and their numbers make the addresses.
fn cable(a: &Netns, a_link: &str, b: &Netns, b_link: &str, (network, one, two): (u8, u8, u8)) -> Result<()> {
    a.ip(&format!("link add {a_link} type veth peer name {b_link} netns {}", b.name()))?;
    for (node, link, number) in [(a, a_link, one), (b, b_link, two)] {
        let address = outer(network, number);
        node.ip_batch(&format!("addr add {address}/24 dev {link}\nlink set {link} up\n"))?;
    }
    Ok(())
}

/// A pod behind a node, and the node's way to the pods of the other.
fn pod(host: &Host, (number, other): (u8, u8), device: &str, mtu: u32) -> Result<Netns> {
    let (node, pod) = (host.ns()?, host.bare_pod(&format!("p{number}"))?);
    let address = pod_address(number);
    node.sysctl("net.ipv4.ip_forward", "1")?;
    node.ip_batch(&format!(
        "link set {device} mtu {mtu} up\n\
         link add pod0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
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
