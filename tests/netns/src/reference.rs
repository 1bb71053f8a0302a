//! The network that ours is compared with, made by hand with `ip` alone, in the shape that flannel makes: a
//! bridge that is the pods' gateway, a routed VXLAN with one permanent neighbour and one FDB entry a peer, and
//! masquerading of what leaves the cluster.
//!
//! Nothing guards its pods: it is what the kernel can do when nobody checks anything, and so the mark to reach.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::host::{Host, UPLINK};
use crate::ns::Netns;

/// The range of the hand-made network; node N has 10.244.N.0/24.
pub const UNIVERSE: &str = "10.244.0.0/16";
/// Its bridge.
pub const BRIDGE: &str = "cni0";
const VXLAN: &str = "flannel.1";
const NETWORK: u32 = 1;
const PORT: u16 = 8472;
/// The underlay's 1500 less VXLAN's headers.
const MTU: u32 = 1450;

/// One node of the hand-made network.
#[derive(Debug)]
pub struct ReferenceNode {
    number: u8,
    underlay: Ipv4Addr,
    pods: std::cell::Cell<u8>,
}

/// A pod of the hand-made network.
#[derive(Debug)]
pub struct ReferencePod {
    /// Its namespace.
    pub namespace: Netns,
    /// Its address.
    pub address: Ipv4Addr,
}

impl ReferenceNode {
    /// Makes the bridge and the tunnel device on a host without an agent.
    ///
    /// # Errors
    /// A command fails.
    pub fn set_up(host: &Host, number: u8) -> Result<Self> {
        let node = host.ns()?;
        let underlay = host.address();
        node.ip_batch(&format!(
            "link add {BRIDGE} mtu {MTU} type bridge\n\
             addr add 10.244.{number}.1/24 dev {BRIDGE}\n\
             link set {BRIDGE} up\n\
             link add {VXLAN} mtu {MTU} address {} type vxlan id {NETWORK} dstport {PORT} local {underlay} dev {UPLINK} nolearning\n\
             addr add 10.244.{number}.0/32 dev {VXLAN}\n\
             link set {VXLAN} up\n",
            vtep_mac(number)
        ))?;
        Ok(Self { number, underlay, pods: std::cell::Cell::new(1) })
    }

    /// Adds the route, the neighbour and the FDB entry for another node.
    ///
    /// # Errors
    /// A command fails.
    pub fn know(&self, host: &Host, other: &Self) -> Result<()> {
        let (node, number, mac) = (host.ns()?, other.number, vtep_mac(other.number));
        node.ip_batch(&format!(
            "neigh add 10.244.{number}.0 lladdr {mac} dev {VXLAN} nud permanent\n\
             route add 10.244.{number}.0/24 via 10.244.{number}.0 dev {VXLAN} onlink\n"
        ))?;
        node.run(&format!("bridge fdb append {mac} dev {VXLAN} dst {}", other.underlay)).map(drop)
    }

    /// Attaches a pod.
    ///
    /// # Errors
    /// A command fails.
    pub fn pod(&self, host: &Host, name: &str) -> Result<ReferencePod> {
        self.pods.set(self.pods.get() + 1);
        let (node, namespace) = (host.ns()?, host.bare_pod(name)?);
        let (number, place) = (self.number, self.pods.get());
        let address = Ipv4Addr::new(10, 244, number, place);
        let port = format!("veth{place}");
        node.ip(&format!(
            "link add {port} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {}",
            namespace.name()
        ))?;
        node.ip(&format!("link set {port} master {BRIDGE} up"))?;
        node.run(&format!("bridge link set dev {port} hairpin on"))?;
        namespace.ip_batch(&format!(
            "addr add {address}/24 dev eth0\n\
             link set eth0 up\n\
             route add default via 10.244.{number}.1\n\
             route add {UNIVERSE} via 10.244.{number}.1\n"
        ))?;
        Ok(ReferencePod { namespace, address })
    }
}

fn vtep_mac(number: u8) -> String {
    format!("02:24:40:00:00:{number:02x}")
}
