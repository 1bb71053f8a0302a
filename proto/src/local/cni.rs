//! The CNI shim's requests: one JSON line with file descriptors beside it, one JSON line back.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Names one interface of one container: what an address is given to. Reserved container ids start with
/// `weave:` (a CNI container id cannot hold a colon), such as `weave:expose`, the node's own address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The container id (CNI_CONTAINERID).
    pub container: String,
    /// The interface's name inside the container (CNI_IFNAME).
    pub interface: String,
}

impl AttachmentKey {
    /// The key of the node's own address on the bridge.
    #[must_use]
    pub fn expose() -> Self {
        Self { container: "weave:expose".to_owned(), interface: "weave".to_owned() }
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.interface)
    }
}

/// A pod's port on the bridge, as ADD made it: enough to guard, check and remove it without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPort {
    /// The name of the host's end of the veth pair.
    pub host_interface: String,
    /// The pod end's MAC address.
    pub mac: [u8; 6],
    /// The pod's address.
    pub address: IpAddr,
    /// The path of the network namespace at ADD (CNI_NETNS), for people and for the start-up sweep.
    pub netns: String,
    /// The pod's name as `namespace/name` where Kubernetes told us, for people.
    pub pod: Option<String>,
}
