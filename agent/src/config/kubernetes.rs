//! How an agent finds its place in a Kubernetes cluster.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use weave_topology::{Target, TargetError};

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How an agent finds its place in a Kubernetes cluster.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesSettings {
    /// Take peers, secret and first split from the Kubernetes API, and tell the cluster when pods can be attached
    ///
    /// Peers are the Nodes. The secret is the Secret weave-net-secret, which the first agent creates unless
    /// --secret-file gives another; the first split is decided by the ConfigMap weave-net-universe. An agent that has
    /// addresses starts and runs without the API server.
    #[arg(long)]
    pub kubernetes: bool,

    /// The name of this Node
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,

    /// What Weave Net's manifest calls the Node, where NODE_NAME is not set.
    #[arg(long, value_name = "NAME", env = "HOSTNAME", hide = true)]
    hostname: Option<String>,

    /// Peers to look for instead of those of the Nodes, as Weave Net took them: separated by blanks or commas
    #[arg(long, value_name = "PEERS", env = "KUBE_PEERS", default_value = "", hide_default_value = true)]
    pub kube_peers: Peers,

    /// The API server [default: https:// and KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT]
    #[arg(long, value_name = "URL")]
    api_server: Option<String>,

    /// Set by the kubelet, or in the manifest where kube-proxy is not there when the agent starts.
    #[arg(long, value_name = "HOST", env = "KUBERNETES_SERVICE_HOST", hide = true)]
    kubernetes_service_host: Option<String>,

    /// Set by the kubelet, or in the manifest where kube-proxy is not there when the agent starts.
    #[arg(long, value_name = "PORT", env = "KUBERNETES_SERVICE_PORT", hide = true)]
    kubernetes_service_port: Option<NonZeroU16>,

    /// The folder with token, ca.crt and namespace of the service account
    #[arg(long, value_name = "DIR", default_value = SERVICE_ACCOUNT)]
    pub service_account: PathBuf,

    /// How many seconds a peer that no Node names any more must be unseen before its addresses go to another
    #[arg(long, value_name = "SECONDS", env = "WEAVE_RECLAIM_AFTER", default_value = "600", value_parser = parse_seconds)]
    pub reclaim_after: Duration,

    /// Where the container runtime looks for CNI plugins
    #[arg(long, value_name = "DIR", env = "WEAVE_CNI_PLUGIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// Where the container runtime looks for networks; the agent writes 10-weave.conflist there when it is ready
    #[arg(long, value_name = "DIR", env = "WEAVE_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
}

/// A list of peers in one text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers(pub Vec<Target>);

impl FromStr for Peers {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words = text.split([' ', ',', '\n', '\t']).filter(|word| !word.is_empty());
        words.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl KubernetesSettings {
    /// The name of this Node, if it is known.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.node_name.as_deref().or(self.hostname.as_deref())
    }

    /// Where the API server is, as a URL.
    #[must_use]
    pub fn api_server(&self) -> Option<String> {
        if let Some(given) = self.api_server.clone() {
            return Some(given);
        }
        let host = self.kubernetes_service_host.as_deref()?;
        let port = self.kubernetes_service_port.map_or(443, NonZeroU16::get);
        Some(match host.parse::<IpAddr>() {
            Ok(address) => format!("https://{}", SocketAddr::new(address, port)),
            Err(_) => format!("https://{host}:{port}"),
        })
    }
}

fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse().map(Duration::from_secs).map_err(|_| "write a number of seconds")
}
