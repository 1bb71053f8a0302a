//! A pod's link in the kernel: made, configured, found, removed.
//!
//! The two ends of the link are made by one message that carries both names, both MAC addresses, both MTUs, the
//! bridge as the host end's master and the pod's namespace as the other end's home. So nothing is renamed or
//! moved, and no MAC address is changed afterwards: where udev is told to give new links persistent addresses, it
//! leaves alone what was set at creation.
//!
//! The host end's alias says whose it is and when its ADD began ([`Tag`]). It lives exactly as long as the link,
//! needs no file, and people see it in `ip link`.
//!
//! IPv6 is told to make no addresses of its own on either end: the guard would drop what they send, and their
//! duplicate detection and multicast reports are noise on every node.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel says many things that do not matter here, and more each year"
)]

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use weave_proto::addr::family_bits;
use weave_proto::local::cni::{AttachmentKey, Moment, Route};

use super::netlink::{Netlink, NetlinkError, Step};

/// The least MTU with which a link may have IPv6 at all (RFC 8200 section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The pod's side, as the shim passed it: the namespace to put the link into, and a socket that acts inside it.
#[derive(Debug)]
pub struct PodNetns {
    namespace: OwnedFd,
    netlink: Netlink,
}

/// What to make.
#[derive(Debug, Clone)]
pub struct LinkPlan {
    /// Whose it is.
    pub key: AttachmentKey,
    /// The network's name.
    pub network: String,
    /// When the ADD began.
    pub begun: Moment,
    /// The name of the host's end.
    pub host_interface: String,
    /// The index of the bridge.
    pub bridge: u32,
    /// The MTU of both ends.
    pub mtu: u32,
}

/// What to configure inside the pod.
#[derive(Debug, Clone)]
pub struct PodPlan {
    /// The interface's name.
    pub interface: String,
    /// The pod's address.
    pub address: IpAddr,
    /// The gateways, each reached directly, and the one MAC address behind which they all are.
    pub gateways: Vec<IpAddr>,
    /// The bridge's MAC address.
    pub gateway_mac: [u8; 6],
    /// Routes through them.
    pub routes: Vec<Route>,
    /// The link's MTU.
    pub mtu: u32,
}

/// Why there is no link.
#[derive(Debug)]
pub enum CreateError {
    /// Another link of the node has the name.
    HostNameTaken,
    /// The pod has such an interface already.
    PodNameTaken,
    /// The kernel refused.
    Kernel(NetlinkError),
}

impl From<NetlinkError> for CreateError {
    fn from(error: NetlinkError) -> Self {
        Self::Kernel(error)
    }
}

/// Whose a host end is, as its alias says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    network: String,
    key: String,
    begun: u64,
}

/// The kernel's limit for an alias is 255 bytes; names this long are cut or digested.
const MAX_TAGGED_NETWORK: usize = 64;

impl Tag {
    fn of(plan: &LinkPlan) -> Self {
        let network = cut(&plan.network).to_owned();
        Self { network, key: plan.key.label(), begun: plan.begun.nanoseconds }
    }

    /// The tag in an alias; none if it is no alias of ours.
    #[must_use]
    pub fn parse(alias: &str) -> Option<Self> {
        let mut words = alias.strip_prefix("weave ")?.split(' ');
        let (network, key, begun) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
        words.next().is_none().then(|| Self { network: network.to_owned(), key: key.to_owned(), begun })
    }

    /// Whether it names this attachment.
    #[must_use]
    pub fn names(&self, key: &AttachmentKey) -> bool {
        self.key == key.label()
    }

    /// The attachment it names; none if its names are too long for a label.
    #[must_use]
    pub fn key(&self) -> Option<AttachmentKey> {
        let (container, interface) = self.key.split_once('/')?;
        Some(AttachmentKey { container: container.to_owned(), interface: interface.to_owned() })
    }

    /// Whether it names one of these attachments, given by their labels.
    #[must_use]
    pub fn is_among(&self, labels: &std::collections::BTreeSet<String>) -> bool {
        labels.contains(&self.key)
    }

    /// Whether the link belongs to this network.
    #[must_use]
    pub fn is_of(&self, network: &str) -> bool {
        self.network == cut(network)
    }

    /// Whether the link's ADD began after `moment`. Links do not survive a reboot, so a moment of another boot is
    /// always before.
    #[must_use]
    pub fn is_after(&self, moment: &Moment, boot: &str) -> bool {
        moment.boot != boot || self.begun > moment.nanoseconds
    }
}

fn cut(network: &str) -> &str {
    network.get(..MAX_TAGGED_NETWORK).unwrap_or(network)
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weave {} {} {}", self.network, self.key, self.begun)
    }
}

impl PodNetns {
    /// The pod's side from the two descriptors that the shim passed.
    ///
    /// # Errors
    /// The second is no route netlink socket.
    pub fn new(namespace: OwnedFd, netlink: OwnedFd) -> Result<Self, NetlinkError> {
        Ok(Self { namespace, netlink: Netlink::from_fd(netlink)? })
    }

    /// The namespace.
    #[must_use]
    pub const fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }

    /// The socket inside it.
    #[must_use]
    pub const fn netlink(&self) -> &Netlink {
        &self.netlink
    }
}

/// Makes the link, with the host's end up and on the bridge and the pod's end down.
///
/// # Errors
/// One of the two names is taken, or the kernel refuses. Then there is no link.
pub fn create_link(host: &Netlink, pod: &PodNetns, plan: &LinkPlan) -> Result<(), CreateError> {
    let name = &plan.host_interface;
    let mut steps = vec![Step::create(
        format!("creating link {name} for {}", plan.key),
        RouteNetlinkMessage::NewLink(veth(plan, pod.namespace.as_fd().as_raw_fd())),
    )];
    let mut settings = vec![LinkAttribute::IfAlias(Tag::of(plan).to_string())];
    settings.extend(no_ipv6_addresses(plan.mtu));
    steps.push(Step::change(format!("labelling link {name}"), set_link(name, settings, LinkFlags::empty())));
    steps.push(Step::change(format!("setting link {name} up"), set_link(name, Vec::new(), LinkFlags::Up)));
    match host.apply(steps) {
        Ok(()) => Ok(()),
        Err(error) if error.errno() == Some(Errno::EXIST) => {
            // The kernel does not say which of the two names is taken.
            if pod.netlink.link(&plan.key.interface)?.is_some() {
                return Err(CreateError::PodNameTaken);
            }
            Err(if host.link(name)?.is_some() { CreateError::HostNameTaken } else { error.into() })
        }
        Err(error) => {
            // Made but not as it should be: a later step was refused.
            remove_own(host, name, &plan.key)?;
            Err(error.into())
        }
    }
}

fn veth(plan: &LinkPlan, namespace: std::os::fd::RawFd) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(plan.key.interface.clone()),
        LinkAttribute::Address(plan.key.pod_mac().to_vec()),
        LinkAttribute::Mtu(plan.mtu),
        LinkAttribute::NetNsFd(namespace),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(plan.host_interface.clone()),
        LinkAttribute::Address(plan.key.host_mac().to_vec()),
        LinkAttribute::Mtu(plan.mtu),
        LinkAttribute::Controller(plan.bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    message
}

fn set_link(name: &str, mut attributes: Vec<LinkAttribute>, flags: LinkFlags) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = flags;
    message.header.change_mask = flags;
    attributes.insert(0, LinkAttribute::IfName(name.to_owned()));
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

/// The setting that keeps IPv6 from making addresses, where the link has IPv6 at all.
fn no_ipv6_addresses(mtu: u32) -> Option<LinkAttribute> {
    // The file is there if and only if the kernel speaks IPv6, in this namespace as in any other.
    let spoken = mtu >= IPV6_MIN_MTU && std::path::Path::new("/proc/net/if_inet6").exists();
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    spoken.then(|| LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]))
}

/// Gives the pod's end its address, sets it up, and adds neighbours and routes.
///
/// # Errors
/// The kernel refuses a step. The caller removes the link.
pub fn configure(pod: &PodNetns, plan: &PodPlan) -> Result<(), NetlinkError> {
    let name = &plan.interface;
    let Some(link) = pod.netlink.link(name)? else {
        let gone =
            Step::change(format!("configuring {name} of the pod"), set_link(name, Vec::new(), LinkFlags::Up));
        return pod.netlink.apply(vec![gone]);
    };
    let index = link.header.index;
    let mut steps = Vec::new();
    if let Some(setting) = no_ipv6_addresses(plan.mtu) {
        let quiet = set_link(name, vec![setting], LinkFlags::empty());
        steps.push(Step::change(format!("quieting IPv6 on {name} of the pod"), quiet));
    }
    steps.push(Step::create(
        format!("giving {name} the address {}", plan.address),
        address(index, plan.address),
    ));
    let up = set_link(name, Vec::new(), LinkFlags::Up);
    steps.push(Step::change(format!("setting {name} of the pod up"), up));
    for &gateway in &plan.gateways {
        let neighbour = neighbour(index, gateway, plan.gateway_mac);
        steps.push(Step::create(format!("adding neighbour {gateway} on {name}"), neighbour));
        let direct = Route { dst: weave_proto::Cidr::host(gateway), gw: None };
        steps.push(Step::create(format!("adding a route to {gateway} on {name}"), route(index, &direct)));
    }
    for one in &plan.routes {
        steps.push(Step::create(format!("adding a route to {} on {name}", one.dst), route(index, one)));
    }
    pod.netlink.apply(steps)
}

fn address(index: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = family_bits(address);
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    if address.is_ipv6() {
        // The allocator has made sure that nobody else has it.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
    RouteNetlinkMessage::NewAddress(message)
}

fn neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        }),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn route(index: u32, route: &Route) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.first());
    message.header.destination_prefix_length = route.dst.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if route.gw.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if route.dst.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.dst.first().into()));
    }
    message.attributes.extend(route.gw.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    message.attributes.push(RouteAttribute::Oif(index));
    RouteNetlinkMessage::NewRoute(message)
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The attributes of a link that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The index.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The MAC address.
    pub mac: Option<[u8; 6]>,
    /// The MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// The index of the bridge it is a port of.
    pub master: Option<u32>,
    /// The index of the other end.
    pub peer: Option<u32>,
    /// Whether it is one end of a veth pair.
    pub veth: bool,
    /// Whose it is.
    pub tag: Option<Tag>,
}

impl Seen {
    /// Whether it is the host's end of this attachment. The tag says so; a link from between its creation and its
    /// labelling is known by its MAC address.
    #[must_use]
    pub fn is_host_end_of(&self, key: &AttachmentKey) -> bool {
        let tagged = self.tag.as_ref().map(|tag| tag.names(key));
        self.veth && tagged.unwrap_or_else(|| self.mac == Some(key.host_mac()))
    }
}

impl From<&LinkMessage> for Seen {
    fn from(link: &LinkMessage) -> Self {
        let mut seen = Self {
            index: link.header.index,
            up: link.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => seen.name.clone_from(name),
                LinkAttribute::Address(mac) => seen.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => seen.mtu = *mtu,
                LinkAttribute::Controller(master) => seen.master = Some(*master),
                LinkAttribute::Link(peer) => seen.peer = Some(*peer),
                LinkAttribute::IfAlias(alias) => seen.tag = Tag::parse(alias),
                LinkAttribute::LinkInfo(info) => {
                    seen.veth = info.iter().any(|one| matches!(one, LinkInfo::Kind(InfoKind::Veth)));
                }
                _ => {}
            }
        }
        seen
    }
}

/// The link of this name, if there is one.
///
/// # Errors
/// The kernel refuses to say.
pub fn see(netlink: &Netlink, name: &str) -> Result<Option<Seen>, NetlinkError> {
    Ok(netlink.link(name)?.as_ref().map(Seen::from))
}

/// Every veth of the node with a tag of ours.
///
/// # Errors
/// The kernel refuses to say.
pub fn tagged_links(host: &Netlink) -> Result<Vec<Seen>, NetlinkError> {
    let links = host.dump("listing links", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let seen = links.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Seen::from(link)),
        _ => None,
    });
    Ok(seen.filter(|link| link.veth && link.tag.is_some()).collect())
}

/// Removes the link of this index; its other end goes with it. One that is gone already is fine.
///
/// # Errors
/// The kernel refuses.
pub fn remove(netlink: &Netlink, link: &Seen) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    let step = Step::change(format!("removing link {}", link.name), RouteNetlinkMessage::DelLink(message));
    match netlink.apply(vec![step]) {
        Err(error) if error.errno() != Some(Errno::NODEV) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the link of this name if it is the host's end of this attachment.
///
/// # Errors
/// The kernel refuses.
pub fn remove_own(host: &Netlink, name: &str, key: &AttachmentKey) -> Result<(), NetlinkError> {
    match see(host, name)? {
        Some(link) if link.is_host_end_of(key) => remove(host, &link),
        Some(_) | None => Ok(()),
    }
}
