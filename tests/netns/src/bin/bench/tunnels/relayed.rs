//! Two nodes of ours that cannot reach each other, and one between them that carries their packets on.
//!
//! ```text
//! a ── eth0 ── eth0 b uplink2 ── eth0 ── c
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use weave_netns::host::{UPLINK, wire};
use weave_netns::measure::Path;
use weave_netns::ns::Netns;
use weave_netns::{AgentOptions, Host, HostOptions, Lab, Pod};

use crate::dataplane::{UNIVERSE, load_nat};

/// The relay's second cable.
const SECOND: &str = "uplink2";
/// How long the ends may take to find the relay.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Relayed {
    nodes: [Arc<Netns>; 3],
    pods: [Pod; 2],
}

impl Relayed {
    /// Lays it, and waits until the ends use the relay.
    pub(super) fn set_up(lab: &Lab) -> Result<Self> {
        let make = |end: &str| lab.host_with(HostOptions::new(&format!("relay-{end}")).without_uplink());
        let (a, b, c) = (make("a")?, make("b")?, make("c")?);
        let nodes = [a.ns()?, b.ns()?, c.ns()?];
        wire(&a, &b)?;
        second_cable(&b, &c)?;
        let launch = |host: &Host, peers: &[&Host]| {
            host.launch(&AgentOptions::founder(3, peers).flag("--methods=sleeve"))
        };
        launch(&a, &[&b])?;
        launch(&b, &[])?;
        launch(&c, &[&b])?;
        [&a, &b, &c].into_iter().try_for_each(|host| host.wait_ready())?;
        let pods = [a.pod("a")?, c.pod("c")?];
        a.wait_method(&c, "relay", PATIENCE)?;
        c.wait_method(&a, "relay", PATIENCE)?;
        nodes.iter().try_for_each(|node| load_nat(node, UNIVERSE))?;
        Ok(Self { nodes, pods })
    }

    /// The ends of its cables: a node and its device.
    pub(super) fn cables(&self) -> [(&Netns, &str); 4] {
        let [a, b, c] = &self.nodes;
        [(a, UPLINK), (b, UPLINK), (b, SECOND), (c, UPLINK)]
    }

    pub(super) fn path(&self) -> Path<'_> {
        Path { from: self.pods[0].ns(), to: self.pods[1].ns(), address: self.pods[1].address() }
    }
}

/// Joins the relay to the far node under the address that it has at the near one. Each end has all of the network at
/// its own cable and asks there for the other, whom nobody answers for.
fn second_cable(relay: &Host, far: &Host) -> Result<()> {
    let (node, other) = (relay.ns()?, far.ns()?);
    let (address, far) = (relay.address(), far.address());
    other.ip(&format!("link add {UPLINK} type veth peer name {SECOND} netns {}", node.name()))?;
    other.ip_batch(&format!("addr add {far}/24 dev {UPLINK}\nlink set {UPLINK} up\n"))?;
    node.ip_batch(&format!(
        "addr add {address}/32 dev {SECOND}\n\
         link set {SECOND} up\n\
         route add {far}/32 dev {SECOND}\n"
    ))
    .map(drop)
}
