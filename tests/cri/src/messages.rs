//! The few messages of the Container Runtime Interface, version 1, that a sandbox needs.
//!
//! Field numbers are those of `runtime/v1/api.proto` in the Kubernetes repository `cri-api`; fields that the tests do
//! not use are left out, which protobuf allows on both sides.

use std::collections::HashMap;

/// Names a sandbox for people.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxMetadata {
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The pod's uid.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The pod's namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// How often the pod's sandbox has been made before.
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Protocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
}

/// A port of the node that leads to the pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PortMapping {
    /// TCP or UDP.
    #[prost(enumeration = "Protocol", tag = "1")]
    pub protocol: i32,
    /// The pod's port.
    #[prost(int32, tag = "2")]
    pub container_port: i32,
    /// The node's port.
    #[prost(int32, tag = "3")]
    pub host_port: i32,
}

/// What a sandbox is to be on Linux.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LinuxPodSandboxConfig {
    /// The control group that its own is made in.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

/// What a sandbox is to be.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxConfig {
    /// Its names.
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    /// The host name inside.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Where logs go.
    #[prost(string, tag = "3")]
    pub log_directory: String,
    /// Ports of the node that lead to it.
    #[prost(message, repeated, tag = "5")]
    pub port_mappings: Vec<PortMapping>,
    /// Annotations, such as those of the bandwidth plugin.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// What is Linux's own.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// Asks for a sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RunPodSandboxRequest {
    /// What it is to be.
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
}

/// Names a sandbox: the request to stop, remove or describe one, and the answer of making one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxId {
    /// The runtime's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Whether everything is to be told.
    #[prost(bool, tag = "2")]
    pub verbose: bool,
}

/// Nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

/// A sandbox's address.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxNetworkStatus {
    /// The first one.
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// A sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxStatus {
    /// 0 ready, 1 not ready.
    #[prost(int32, tag = "3")]
    pub state: i32,
    /// Its address.
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
}

/// Describes a sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSandboxStatusResponse {
    /// The sandbox.
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
    /// More, as JSON texts by name.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// One condition of the runtime.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeCondition {
    /// Which: `RuntimeReady` or `NetworkReady`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Whether it holds.
    #[prost(bool, tag = "2")]
    pub status: bool,
    /// Why not.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// All conditions of the runtime.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuntimeStatus {
    /// The conditions.
    #[prost(message, repeated, tag = "1")]
    pub conditions: Vec<RuntimeCondition>,
}

/// Describes the runtime.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    /// The runtime.
    #[prost(message, optional, tag = "1")]
    pub status: Option<RuntimeStatus>,
}
