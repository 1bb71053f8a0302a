//! Everything that can be configured, read once: a flag or its environment variable becomes a typed field of the
//! one room that uses it.
//!
//! Reading is checking: a [`Settings`] that exists holds no value that its room would have to refuse for its
//! form (a range with host bits, a port 0, a peer that is no address). Environment variables keep the names that
//! Weave Net gave them. A variable that is set to the empty text counts as not set, because manifests often pass
//! on variables that nobody filled in.
//!
//! A switch with a variable (`NO_MASQ_LOCAL`) is off for `0`, `false`, `no` and `off`, on for anything else.

mod init;
mod kubernetes;
mod listen;
mod tunnels;
mod variables;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use weave_proto::{Cidr, Nickname};

use crate::dataplane::sleeve;
use crate::net::names::VXLAN_PORT;

pub use init::{IpallocInit, IpallocInitError};
pub use kubernetes::KubernetesSettings;
pub use listen::{ListenAddress, ListenAddressError};
pub use tunnels::{Method, TunnelSettings};
pub use weave_topology::Target;

/// Weave's control port.
pub const DEFAULT_PORT: u16 = 6783;
/// Where the sockets are.
pub const DEFAULT_RUN_DIR: &str = "/run/weave";
/// Where the state is that must survive a reboot.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/weave";
/// Weave's range.
pub const DEFAULT_RANGE: &str = "10.32.0.0/12";

/// The settings of one agent, a struct a room.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Settings {
    /// Who this peer is, and whom it trusts.
    #[command(flatten)]
    pub identity: IdentitySettings,
    /// How it finds others.
    #[command(flatten)]
    pub mesh: MeshSettings,
    /// What addresses it shares out.
    #[command(flatten)]
    pub ipam: IpamSettings,
    /// How packets may travel to other nodes.
    #[command(flatten)]
    pub tunnels: TunnelSettings,
    /// What it does to its node.
    #[command(flatten)]
    pub node: NodeSettings,
    /// How it finds its place in a Kubernetes cluster.
    #[command(flatten)]
    pub kubernetes: KubernetesSettings,
    /// Where it can be watched.
    #[command(flatten)]
    pub watch: WatchSettings,
    /// What it writes down.
    #[command(flatten)]
    pub log: LogSettings,
    /// Where its files are.
    #[command(flatten)]
    pub paths: PathSettings,
    /// What an operator should know of the environment's variables: see [`Self::note_variables`].
    #[arg(skip)]
    pub notes: Vec<String>,
}

/// Who this peer is, and whom it trusts.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Identity and trust")]
pub struct IdentitySettings {
    /// File with the cluster secret: only peers that hold the same one can take part in the mesh
    ///
    /// The file is watched: a new secret is used without a restart. Without a secret anybody who reaches the
    /// port can join, and the agent says so at every start and in `weave status`. The secret authenticates the
    /// peers; --encrypt has the packets of pods encrypted, too.
    #[arg(long, value_name = "FILE", env = "WEAVE_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,

    /// The name that people read [default: the host name]
    #[arg(long, value_name = "NAME", value_parser = parse_nickname)]
    pub nickname: Option<Nickname>,

    /// Stands in for the machine's id, so that several agents can run on one machine in tests
    ///
    /// The identity of a peer is bound to its machine: a disk that was cloned makes a new identity elsewhere.
    #[arg(long, value_name = "ID", value_parser = parse_machine_id)]
    pub machine_id: Option<String>,
}

/// How this peer finds others.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Mesh")]
pub struct MeshSettings {
    /// The address to listen on [default: all]
    #[arg(long, value_name = "IP")]
    pub host: Option<IpAddr>,

    /// The UDP port of the control plane
    ///
    /// Pod packets travel on UDP 6784 whatever this port is.
    #[arg(long, value_name = "PORT", value_parser = parse_port,
          default_value_t = NonZeroU16::MIN.saturating_add(DEFAULT_PORT - 1))]
    pub port: NonZeroU16,

    /// Use the peers that the agent knew when it last ran, not the ones given here
    #[arg(long)]
    pub resume: bool,

    /// Do not dial peers that were learned from other peers
    #[arg(long)]
    pub no_discovery: bool,

    /// Keep at most about this many connections; 0 for no limit
    ///
    /// The limit is soft: connections that hold the mesh together are kept beyond it.
    #[arg(long, value_name = "N", env = "CONN_LIMIT", default_value = "200")]
    pub conn_limit: ConnLimit,

    /// Peers to look for: host or host:port, an IPv6 address with a port in brackets
    ///
    /// Knowing one peer is enough; it tells of the others. With no peer at all this one starts a mesh of its own.
    #[arg(value_name = "PEER")]
    pub peers: Vec<Target>,
}

/// What addresses are shared out.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Addresses")]
pub struct IpamSettings {
    /// The range that the peers share out; the same on all of them
    ///
    /// It must not overlap with a network that the hosts use.
    #[arg(long = "ipalloc-range", value_name = "CIDR", env = "IPALLOC_RANGE", default_value = DEFAULT_RANGE,
          value_parser = parse_range)]
    pub range: Cidr,

    /// Who takes part in the first split of the range: consensus[=N], seed=NAME,… or observer
    ///
    /// consensus=N: the first N peers agree, and none can start without a majority of them; N must be the same
    /// on all. consensus: N is learned from a peer; an agent that is given no peer founds the mesh alone.
    /// seed=NAME,…: the peers listed, without any agreement; the same list on all. observer: this peer waits for
    /// the others and then asks for a share. Once the range is split, the flag has no effect.
    #[arg(long = "ipalloc-init", value_name = "MODE", env = "IPALLOC_INIT", default_value = "consensus")]
    pub init: IpallocInit,
}

/// What the agent does to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeSettings {
    /// The largest packet of a pod; 0 to derive it from the underlay device
    #[arg(long, value_name = "BYTES", env = "WEAVE_MTU", default_value = "0", value_parser = parse_mtu)]
    pub mtu: Mtu,

    /// Keep the client's address where traffic from outside enters a pod of this node
    ///
    /// For Services with externalTrafficPolicy: Local. In a Kubernetes cluster this is so unless it is switched off.
    #[arg(long, value_name = "SWITCH", env = "NO_MASQ_LOCAL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = FalseyValueParser::new())]
    no_masq_local: Option<bool>,

    /// What to do when another firewall drops forwarded packets
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub forward_accept: ForwardAccept,
}

/// Where the agent can be watched.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Watching")]
pub struct WatchSettings {
    /// Where to serve status and report, read-only: IP:PORT, the path of a unix socket, or off
    #[arg(long, value_name = "ADDR", env = "WEAVE_HTTP_ADDR", default_value = "127.0.0.1:6784")]
    pub http_addr: ListenAddress,

    /// Where to serve metrics for Prometheus: IP:PORT, the path of a unix socket, or off
    #[arg(long, value_name = "ADDR", env = "WEAVE_METRICS_ADDR", default_value = "127.0.0.1:6782")]
    pub metrics_addr: ListenAddress,
}

/// What is written down, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
#[command(next_help_heading = "Log")]
pub struct LogSettings {
    /// How much to write: error, warning, info, debug or trace
    #[arg(long = "log-level", value_name = "LEVEL", default_value = "info")]
    pub level: LogLevel,

    /// How to write it
    #[arg(long = "log-format", value_name = "FORMAT", default_value = "text")]
    pub format: LogFormat,
}

/// Where the agent's files are.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Files")]
pub struct PathSettings {
    /// Where to keep what must survive a reboot: identity, ring and addresses
    #[arg(long, value_name = "DIR", env = "WEAVE_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,

    /// Where the kernel's settings are; in a container /proc/sys is read-only, and the host's net is mounted elsewhere
    #[arg(long, value_name = "DIR", env = "WEAVE_PROC_SYS", default_value = "/proc/sys")]
    pub proc_sys: PathBuf,

    /// Where the sockets are; set from the flag that all commands share.
    #[arg(skip)]
    pub run_dir: PathBuf,
}

/// A soft limit of connections; none if it was given as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnLimit(pub Option<NonZeroU32>);

impl FromStr for ConnLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(limit) => Ok(Self(NonZeroU32::new(limit))),
            Err(_) => Err("write a number of connections, or 0 for no limit"),
        }
    }
}

/// The largest packet of a pod; none if the agent shall derive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu(pub Option<NonZeroU16>);

impl Mtu {
    /// The least that every IPv4 host must take (RFC 791); less would only be a mistake.
    pub const MIN: u16 = 576;
}

/// What to do when another firewall drops forwarded packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ForwardAccept {
    /// Add one accept rule to the iptables FORWARD chain if a probe shows that it is needed
    Auto,
    /// Change nothing and warn
    Never,
}

/// How much is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    /// What is broken.
    Error,
    /// What somebody should look at.
    #[value(alias = "warn")]
    Warning,
    /// Changes of state that one operator would tell another.
    Info,
    /// Every decision.
    Debug,
    /// Everything.
    Trace,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people, in Weave Net's form
    Text,
    /// A JSON object a line, for programs
    Json,
}

impl Settings {
    /// Why these settings, readable though they are, must not be used.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        // In a cluster the secret comes from the API server, which is asked later.
        let has_secret = self.identity.secret_file.is_some() || self.kubernetes.kubernetes;
        let password_too = self.identity.secret_file.is_some();
        self.tunnels.refusal(if self.tunnels.password().is_some() { password_too } else { has_secret })
    }

    /// Whether the client's address is kept where traffic from outside enters a pod of this node.
    #[must_use]
    pub fn keeps_client_addresses(&self) -> bool {
        self.node.no_masq_local.unwrap_or(self.kubernetes.kubernetes)
    }

    /// Takes note of the variables that are set to no effect; `known` are those that some flag reads.
    pub fn note_variables(&mut self, known: &BTreeSet<String>) {
        let set: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        self.notes = variables::notes(set.iter().map(|(name, value)| (name.as_str(), value.as_str())), known);
    }

    /// The name that people read: the one given, or that of the Node, or the host name.
    #[must_use]
    pub fn nickname(&self) -> Nickname {
        let node = self.kubernetes.node_name().filter(|_| self.kubernetes.kubernetes);
        let given = self.identity.nickname.clone();
        given.or_else(|| node.map(Nickname::lossy)).unwrap_or_else(host_name)
    }

    /// Whether the agent was told of no peer, and so founds a mesh of its own unless it remembers one.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.mesh.peers.is_empty() && !self.mesh.resume
    }
}

impl MeshSettings {
    /// The addresses to listen on, best first: where the first cannot be used because the machine has no IPv6,
    /// the second serves.
    #[must_use]
    pub fn listen(&self) -> Vec<SocketAddr> {
        let port = self.port.get();
        match self.host {
            Some(host) => vec![SocketAddr::new(host, port)],
            None => {
                vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
            }
        }
    }
}

impl PathSettings {
    /// The socket of the command line.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.run_dir)
    }
}

/// The socket of the command line in this run directory.
#[must_use]
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join(weave_proto::local::control::SOCKET)
}

fn host_name() -> Nickname {
    Nickname::lossy(&rustix::system::uname().nodename().to_string_lossy())
}

fn parse_nickname(text: &str) -> Result<Nickname, String> {
    let nickname = Nickname::lossy(text);
    if nickname.as_str() == text {
        Ok(nickname)
    } else {
        Err(format!("a nickname has 1 to {} printable letters", Nickname::MAX_LEN))
    }
}

fn parse_machine_id(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("a machine id is not empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// A range that can be shared out. What it must not overlap with is found out on the node.
fn parse_range(text: &str) -> Result<Cidr, String> {
    let range: Cidr = text.parse().map_err(|error: weave_proto::CidrError| error.to_string())?;
    let IpAddr::V4(first) = range.first() else {
        return Err("this version shares out IPv4 addresses only, such as 10.32.0.0/12".to_owned());
    };
    if range.prefix() < 8 || range.prefix() > 29 {
        return Err("a range to share out is between a /8 and a /29".to_owned());
    }
    if first.is_loopback() || first.is_multicast() || first.is_link_local() || first.octets()[0] == 0 {
        return Err("these addresses are reserved; take private ones, such as 10.32.0.0/12".to_owned());
    }
    if first.octets()[0] >= 240 {
        return Err("hosts do not accept addresses from 240.0.0.0 on; take private ones".to_owned());
    }
    Ok(range)
}

fn parse_port(text: &str) -> Result<NonZeroU16, String> {
    match text.parse::<NonZeroU16>() {
        Ok(port) if [VXLAN_PORT, sleeve::PORT].contains(&port.get()) => {
            Err(format!("packets of pods travel on UDP {port}: take another, such as {DEFAULT_PORT}"))
        }
        Ok(port) => Ok(port),
        Err(_) => Err(format!("write a number from 1 to {}", u16::MAX)),
    }
}

fn parse_mtu(text: &str) -> Result<Mtu, String> {
    match text.parse::<u16>() {
        Ok(0) => Ok(Mtu(None)),
        Ok(mtu) if mtu >= Mtu::MIN => Ok(Mtu(NonZeroU16::new(mtu))),
        Ok(_) | Err(_) => Err(format!("write a number from {} to {}, or 0 to derive it", Mtu::MIN, u16::MAX)),
    }
}

#[cfg(test)]
mod tests;
