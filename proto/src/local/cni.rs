//! What the CNI shim and the agent tell each other: one JSON line with file descriptors beside it, one JSON line
//! back, then the connection is closed.
//!
//! The shim is replaced when the agent is, but not at the same moment, and a node may run a shim that is older or
//! newer than its agent for a while. So every request carries [`PROTOCOL`], unknown keys are ignored on both
//! sides, and what the agent does not understand is answered with a [`Refusal`], never with silence.
//!
//! Two things here are shared by both sides because they must agree without talking: the names that an
//! attachment's interfaces get ([`AttachmentKey::host_interface`], [`AttachmentKey::pod_mac`]), and the
//! [`Tombstone`] that the shim leaves when the agent cannot answer a DEL.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Cidr;

/// The version of this exchange. It rises when an old agent could misread a new request.
pub const PROTOCOL: u32 = 1;

/// The socket's name inside the run directory.
pub const SOCKET: &str = "cni.sock";

/// The run directory where none is configured.
pub const RUN_DIR: &str = "/run/weave";

/// The data directory where none is configured.
pub const DATA_DIR: &str = "/var/lib/weave";

/// Where the shim leaves its tombstones, inside the data directory.
pub const TOMBSTONES: &str = "cni/del";

/// The longest request or answer in bytes. A GC list of a thousand attachments is about a tenth of it.
pub const MAX_LINE: usize = 1 << 20;

/// What the host's end of a pod's link is called, before seven hexadecimal digits. Weave Net's word.
pub const HOST_INTERFACE_PREFIX: &str = "vethwepl";

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

    /// Whether the key is one of the agent's own and no container's.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.container.starts_with("weave:")
    }

    /// The two names in one word without blanks, of at most 150 bytes: what is longer becomes a digest.
    #[must_use]
    pub fn label(&self) -> String {
        let plain = self.to_string();
        if plain.len() <= 150 { plain } else { format!("digest:{:016x}", self.digest(u64::MAX)) }
    }

    /// The name of the host's end of this attachment's link: stable, 15 bytes (the kernel's limit). Seven digits
    /// can collide, so there is a row of names: `attempt` counts through it.
    #[must_use]
    pub fn host_interface(&self, attempt: u8) -> String {
        format!("{HOST_INTERFACE_PREFIX}{:07x}", self.digest(u64::from(attempt)) >> 36)
    }

    /// The MAC address of the pod's end: stable, locally administered, unicast.
    #[must_use]
    pub fn pod_mac(&self) -> [u8; 6] {
        self.mac(POD_END)
    }

    /// The MAC address of the host's end: stable, locally administered, unicast, never the pod's.
    #[must_use]
    pub fn host_mac(&self) -> [u8; 6] {
        self.mac(HOST_END)
    }

    fn mac(&self, end: u64) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.digest(end).to_be_bytes();
        [(a | 0b10) & !0b1, b, c, d, e, f]
    }

    /// FNV-1a over the two names with a byte between them that neither can hold, then the finalizer of
    /// splitmix64, because FNV's high bits are weak for short inputs. It names things; it keeps nobody out.
    fn digest(&self, salt: u64) -> u64 {
        let bytes = self.container.bytes().chain([b'/']).chain(self.interface.bytes());
        let hash = bytes.chain(salt.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

/// Salts of the MAC digests, out of the way of the attempts of [`AttachmentKey::host_interface`].
const POD_END: u64 = 0x706f_6400;
const HOST_END: u64 = 0x686f_7374;

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

/// A moment on this node that can be compared with another one of the same boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The kernel's boot id.
    pub boot: String,
    /// Nanoseconds since boot, with time asleep counted in (CLOCK_BOOTTIME).
    pub nanoseconds: u64,
}

impl Moment {
    /// Whether this moment is certainly later than `other`. Moments of different boots cannot be compared.
    #[must_use]
    pub fn is_after(&self, other: &Self) -> bool {
        self.boot == other.boot && self.nanoseconds > other.nanoseconds
    }
}

/// What the shim sends, with the file descriptors that [`Call`] names beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// What is asked.
    #[serde(flatten)]
    pub call: Call,
}

/// The verbs: the first five are those of `weave-net`, the others those of `weave-ipam`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Call {
    /// Attach a pod. Descriptors: the network namespace, a route netlink socket opened inside it.
    Add(Add),
    /// Detach a pod. Descriptors: as for ADD where the namespace still exists, otherwise none.
    Del(Del),
    /// Compare a pod with what ADD made. Descriptors: as for ADD.
    Check(Check),
    /// Remove what no container holds. No descriptors.
    Gc(Gc),
    /// Whether ADD would be served. No descriptors.
    Status,
    /// Give out an address for another plugin's interface. No descriptors.
    Allocate(Allocate),
    /// Take it back. No descriptors.
    Release(Release),
    /// Whether it is still given out. No descriptors.
    Verify(Verify),
    /// Take back what no container holds of another plugin's addresses. No descriptors.
    Prune(Gc),
}

/// Attach a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// The network's name in the configuration.
    pub network: String,
    /// The namespace's path, for people and for the start-up sweep.
    pub netns: String,
    /// When the shim started.
    pub begun: Moment,
    /// `namespace/name` where Kubernetes told us.
    pub pod: Option<String>,
    /// What the configuration wants.
    pub settings: Settings,
    /// The address that a delegated IPAM plugin gave.
    pub given: Option<Given>,
}

/// The keys of the network configuration that reach the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The bridge that the configuration expects. The agent has one; another name is refused.
    pub bridge: Option<String>,
    /// Whether a pod may reach itself through a Service. A setting of the node; a contradiction is refused.
    pub hairpin: Option<bool>,
    /// The largest MTU wanted; the overlay's own is used where that is smaller.
    pub mtu: Option<u32>,
    /// The range that the configuration expects. The agent has one; another is refused.
    pub subnet: Option<Cidr>,
    /// Routes instead of a default route. An empty list means no routes at all.
    pub routes: Option<Vec<Route>>,
}

/// A route inside the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: Cidr,
    /// Through which gateway; the network's own where none is given.
    pub gw: Option<IpAddr>,
}

/// An address that another IPAM plugin gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix.
    pub prefix: u8,
    /// The gateway it names.
    pub gateway: Option<IpAddr>,
}

/// Detach a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Del {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// The network's name in the configuration.
    pub network: String,
    /// When the shim started: an attachment made later is not this DEL's to undo.
    pub begun: Moment,
}

/// Compare a pod with what ADD made and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// The network's name in the configuration.
    pub network: String,
    /// What ADD answered, from the runtime's prevResult.
    pub expected: Expected,
}

/// The part of a prevResult that is this attachment's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Interfaces on the host: name, MAC.
    pub host: Vec<Link>,
    /// The interface in the pod.
    pub pod: Option<Link>,
    /// Addresses of the pod's interface.
    pub addresses: Vec<Address>,
    /// Routes.
    pub routes: Vec<Route>,
}

/// Remove what no container holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    /// The network whose attachments are meant. Those of other networks are left alone.
    pub network: String,
    /// When the shim started: attachments made later are not in its list.
    pub begun: Moment,
    /// What containers hold.
    pub valid: Vec<AttachmentKey>,
}

/// Give out an address for another plugin's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocate {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// The network's name in the configuration.
    pub network: String,
    /// The namespace's path, for people.
    pub netns: String,
    /// When the shim started.
    pub begun: Moment,
    /// `namespace/name` where Kubernetes told us.
    pub pod: Option<String>,
    /// What the configuration wants; only the range matters here.
    pub settings: Settings,
}

/// Take an address back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// When the shim started.
    pub begun: Moment,
}

/// Whether an address is still given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    /// Which interface of which container.
    pub key: AttachmentKey,
    /// The addresses of its interface, from the runtime's prevResult.
    pub addresses: Vec<Address>,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// ADD: what was made.
    Attached(Attached),
    /// `weave-ipam` ADD: what was given out.
    Allocated(Allocated),
    /// All others: it is so.
    Done,
    /// It was not done, or is not so.
    Refused(Refusal),
}

/// What ADD made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The bridge.
    pub bridge: Link,
    /// The host's end of the link.
    pub host: Link,
    /// The pod's end.
    pub pod: Link,
    /// The pod's addresses.
    pub addresses: Vec<Address>,
    /// The pod's routes, without those to the gateways themselves.
    pub routes: Vec<Route>,
}

/// What `weave-ipam` gave out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocated {
    /// The addresses, with the range's prefix and the node's own address as gateway.
    pub addresses: Vec<Address>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(with = "mac_text")]
    pub mac: [u8; 6],
    /// Its MTU, where known.
    pub mtu: Option<u32>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix.
    pub prefix: u8,
    /// The gateway.
    pub gateway: Option<IpAddr>,
}

/// Why the agent did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The CNI specification's error code.
    pub code: ErrorCode,
    /// What was tried, on which object, and what went wrong.
    pub msg: String,
    /// What may help, or more of the circumstances. May be empty.
    #[serde(default)]
    pub details: String,
}

/// The error codes of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum ErrorCode {
    /// 1: this version of the specification, or this verb under it, is not supported.
    IncompatibleVersion,
    /// 2: a field has a value that is not supported.
    UnsupportedField,
    /// 3: the container is gone; there is nothing to clean up.
    UnknownContainer,
    /// 4: a CNI_ variable is missing or wrong.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: the JSON could not be read.
    Decode,
    /// 7: the configuration makes no sense.
    InvalidConfig,
    /// 8: the network namespace is no pod's.
    InvalidNetns,
    /// 11: it may work later.
    TryAgain,
    /// 50: ADD cannot be served.
    NotAvailable,
    /// 51: ADD cannot be served, and pods may be cut off.
    LimitedConnectivity,
    /// 100: CHECK found a difference.
    Differs,
    /// 101: the pod already has such an interface.
    AlreadyAttached,
    /// 102: the kernel refused.
    Kernel,
    /// 999: something else.
    Internal,
    /// A code of another plugin's.
    Other(u32),
}

impl From<u32> for ErrorCode {
    fn from(code: u32) -> Self {
        match code {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decode,
            7 => Self::InvalidConfig,
            8 => Self::InvalidNetns,
            11 => Self::TryAgain,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            100 => Self::Differs,
            101 => Self::AlreadyAttached,
            102 => Self::Kernel,
            999 => Self::Internal,
            other => Self::Other(other),
        }
    }
}

impl From<ErrorCode> for u32 {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::IncompatibleVersion => 1,
            ErrorCode::UnsupportedField => 2,
            ErrorCode::UnknownContainer => 3,
            ErrorCode::InvalidEnvironment => 4,
            ErrorCode::Io => 5,
            ErrorCode::Decode => 6,
            ErrorCode::InvalidConfig => 7,
            ErrorCode::InvalidNetns => 8,
            ErrorCode::TryAgain => 11,
            ErrorCode::NotAvailable => 50,
            ErrorCode::LimitedConnectivity => 51,
            ErrorCode::Differs => 100,
            ErrorCode::AlreadyAttached => 101,
            ErrorCode::Kernel => 102,
            ErrorCode::Internal => 999,
            ErrorCode::Other(other) => other,
        }
    }
}

impl Refusal {
    /// A refusal without details.
    #[must_use]
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, " ({})", self.details) }
    }
}

/// A DEL that the agent could not be told of, left as a file. It is carried out later by the same code as a DEL
/// over the socket, and like it, undoes only what was made before it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The DEL.
    #[serde(flatten)]
    pub del: Del,
    /// The name of the host's end of the link, where the runtime's prevResult told it.
    pub host_interface: Option<String>,
    /// Whether it stands for a DEL of `weave-ipam`, which has no link.
    #[serde(default)]
    pub ipam_only: bool,
}

impl Tombstone {
    /// The file's name: the two names with a colon between, which neither can hold. What would be too long
    /// for a file name is replaced by a digest; the key inside the file is what counts.
    #[must_use]
    pub fn file_name(key: &AttachmentKey) -> String {
        key.label().replace('/', ":")
    }
}

/// A MAC address in the form people know.
#[must_use]
pub fn mac_to_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A MAC address from its text; none if it is not six bytes with colons between.
#[must_use]
pub fn mac_from_text(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|part| part.len() == 2)?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

mod mac_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(mac: &[u8; 6], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::mac_to_text(*mac))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 6], D::Error> {
        let text = String::deserialize(deserializer)?;
        super::mac_from_text(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no MAC address")))
    }
}

#[cfg(test)]
mod tests;
