//! A laboratory: real agents, real shims and real kernels in network namespaces, judged by independent tools.
//!
//! Nothing here knows how the agent works inside. A node is a network namespace with an uplink into an underlay;
//! its agent is the binary `weave`, started as an operator would start it; a pod is a namespace that the binary
//! `weave-net` attached as a container runtime would; and what is true is what `ip`, `nft`, `ping`, `tcpdump`
//! and plain sockets say. A fault that shows only where the product is put together shows here, and a test that
//! could be written against one room alone belongs there instead.
//!
//! ```text
//!   underlay namespace            node namespace                  pod namespace
//!   +------------------+          +--------------------+          +-----------+
//!   | br0  172.30.0.254|--veth----| eth0  172.30.0.N   |          |           |
//!   |  (the "internet" |          | weave  weave-vx    |--veth----| eth0 /32  |
//!   |   203.0.113.1)   |          | agent `weave`      |          |           |
//!   +------------------+          +--------------------+          +-----------+
//! ```
//!
//! **Threads stand where commands would.** A thread of the test moves itself into a namespace and opens ordinary
//! sockets there ([`ns::Netns::enter`]); what it starts lives there too. So a probe costs a thread, not a
//! process, and no link is ever made in the machine's own namespace.
//!
//! **Guards clean up, and a sweep cleans up after guards.** Everything is owned by a [`lab::Lab`], which ends its
//! processes by the ids it recorded and deletes its namespaces, also when a test fails; [`run_in_lab`] then
//! checks that nothing is left. The names carry the process id of the test, so that the next run can remove
//! what a killed run left behind, and two runs never meet.
//!
//! **No test sleeps.** [`wait::eventually`] polls a condition up to a deadline and reports the last reason why
//! it did not hold; it is the only place that waits.
//!
//! Where privileges are missing, a test says that it is skipped; with `CI=true` it fails instead.

pub mod agent;
pub mod attack;
pub mod capture;
pub mod cgroup;
pub mod cni;
pub mod command;
pub mod containerd;
pub mod fingerprint;
pub mod host;
pub mod lab;
pub mod leak;
pub mod measure;
pub mod ns;
pub mod packet;
pub mod pair;
pub mod pod;
pub mod podman;
pub mod probe;
pub mod recording;
pub mod reference;
pub mod reorder;
pub mod rules;
pub mod seed;
pub mod settings;
pub mod userland;
pub mod wait;
pub mod way;

pub use agent::AgentOptions;
pub use containerd::Containerd;
pub use host::{Host, HostOptions};
pub use lab::{Lab, run_in_lab};
pub use pair::{Pair, Way};
pub use pod::Pod;
pub use podman::Podman;
pub use wait::eventually;
