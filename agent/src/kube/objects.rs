//! What is read of the cluster's objects: the few fields that decide something. Everything else in a Node, which has
//! some ten kilobytes, is passed over while it is read and never takes memory.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// What every object says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) resource_version: String,
    pub(super) annotations: Annotations,
}

/// The annotations of ours: see [`super::nodes`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Annotations {
    #[serde(rename = "weave-net/peer")]
    pub(super) peer: Option<String>,
    #[serde(rename = "weave-net/universe")]
    pub(super) universe: Option<String>,
}

/// An object that can be followed.
pub(super) trait Object:
    Clone + PartialEq + for<'de> Deserialize<'de> + Send + Sync + 'static
{
    fn metadata(&self) -> &Metadata;
    fn metadata_mut(&mut self) -> &mut Metadata;
}

macro_rules! object {
    ($kind:ty) => {
        impl Object for $kind {
            fn metadata(&self) -> &Metadata {
                &self.metadata
            }
            fn metadata_mut(&mut self) -> &mut Metadata {
                &mut self.metadata
            }
        }
    };
}

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    pub(super) status: NodeStatus,
}
object!(Node);

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    pub(super) addresses: Vec<NodeAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct NodeAddress {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) address: String,
}

/// A Secret. Never printed.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Secret {
    pub(super) metadata: Metadata,
    pub(super) data: BTreeMap<String, ByteString>,
}
object!(Secret);

/// A ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigMap {
    pub(super) metadata: Metadata,
    pub(super) data: BTreeMap<String, String>,
}
object!(ConfigMap);

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    pub(super) metadata: Metadata,
    pub(super) spec: ServiceSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Vec<String>,
}

/// A range of Service addresses, on clusters that know such objects.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidr {
    pub(super) metadata: Metadata,
    pub(super) spec: ServiceCidrSpec,
}
object!(ServiceCidr);

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidrSpec {
    pub(super) cidrs: Vec<String>,
}

/// A page of objects.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound = "T: for<'d> Deserialize<'d>")]
pub(super) struct Page<T> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    #[serde(default = "Vec::new")]
    pub(super) items: Vec<T>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMetadata {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// An answer of which nothing is of interest.
pub(super) type Anything = IgnoredAny;
