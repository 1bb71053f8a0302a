//! A real Kubernetes for tests: the API server, controllers, scheduler, kubelets, kube-proxy and containerd as they are
//! shipped, in network namespaces of one machine, without an image registry.
//!
//! ```text
//!   lab's underlay 172.30.0.0/24
//!     +-- control  172.30.0.1   etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//!     +-- node1    172.30.0.2   containerd, kubelet, kube-proxy   (the agent comes as a DaemonSet)
//!     +-- node2    172.30.0.3
//!     +-- node3    172.30.0.4
//! ```
//!
//! A node is a [`weave_netns::Host`] with a [`weave_netns::userland::Userland`]: processes, mounts and control groups of
//! its own, which end together. The programs come from a folder outside the clone, which `build-kubernetes.sh` fills
//! once ([`programs`]). A test that needs no pods starts a [`ControlPlane`] alone, which takes a few seconds; one that
//! needs them starts a [`Cluster`].

pub mod agents;
pub mod asking;
pub mod cluster;
pub mod control_plane;
mod daemon;
pub mod image;
pub mod kubectl;
pub mod node;
pub mod programs;

pub use cluster::Cluster;
pub use control_plane::ControlPlane;
pub use kubectl::Kubectl;
pub use node::Node;
