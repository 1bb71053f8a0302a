//! What to do, given what is wanted and what there is. Pure, so that every rule here has a test without a kernel.
//!
//! # Order
//!
//! 1. The unreachable route, so that nothing done later can leak.
//! 2. The firewall: guard before ports, admission of peers before routes to them.
//! 3. Links, their settings and addresses.
//! 4. Neighbours and forwarding entries, then the routes that need them: a route's first packet finds its way.
//! 5. Ports of pods, each with the route to it.
//! 6. Removals, the last of them what the firewall no longer admits. A range that moves from one owner to another
//!    is replaced in one step, and a range that is cut up gets its parts before the whole goes: at no moment is
//!    there no route for an address that had and will have one.

use std::fmt;
use std::net::IpAddr;

use weave_proto::Cidr;
use weave_proto::local::cni::PodPort;

use super::desired::{Desired, Link, LinkKind, Resident, Route, RouteKey, to_pod};
use super::names::{BRIDGE, Mac, PORT_GROUP, PORT_PREFIX, TUN, VXLAN, VXLAN6};
use super::observe::{Observed, ObservedLink, Shape};
use super::sysctl;
use crate::firewall;

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of a step are what its sentence (Display) names")]
pub enum Step {
    /// Write a setting.
    Sysctl { key: String, value: String },
    /// Change the nftables tables.
    Firewall(firewall::Change),
    /// Make a link, up.
    CreateLink { name: &'static str, link: Link },
    /// Bring a link's changeable attributes back.
    AdjustLink { name: &'static str, change: LinkChange },
    /// Remove a link.
    DeleteLink { name: String, reason: String },
    /// Give a link the node's address.
    AddAddress { link: &'static str, address: IpAddr },
    /// Take an address from a link.
    DeleteAddress { link: &'static str, address: IpAddr, prefix: u8 },
    /// Add a route where there is none of this destination and metric.
    AddRoute { key: RouteKey, route: Route },
    /// Replace a route of ours.
    ReplaceRoute { key: RouteKey, route: Route, before: Route },
    /// Remove a route of ours.
    DeleteRoute { key: RouteKey, route: Route },
    /// Write a permanent neighbour.
    PutNeighbour { link: String, address: IpAddr, mac: Mac },
    /// Remove a neighbour.
    DeleteNeighbour { link: &'static str, address: IpAddr },
    /// Tell a tunnel device where a MAC address is.
    PutTunnel { link: &'static str, mac: Mac, underlay: IpAddr },
    /// Make a tunnel device forget a MAC address.
    DeleteTunnel { link: &'static str, mac: Mac },
    /// Make a pod's host interface a port of the bridge, and up.
    EnslavePort { port: String },
    /// Set a pod port's flags.
    SetPortFlags { port: String },
    /// Tell the bridge which MAC address is behind a pod's port.
    PutPortMac { port: String, mac: Mac },
    /// Make the bridge forget a MAC address behind a pod's port.
    DeletePortMac { port: String, mac: Mac },
}

impl Step {
    /// The link of ours that must be there for the step.
    #[must_use]
    pub fn link(&self) -> Option<&str> {
        match self {
            Self::CreateLink { name, .. } | Self::AdjustLink { name, .. } => Some(name),
            Self::AddAddress { link, .. }
            | Self::DeleteAddress { link, .. }
            | Self::DeleteNeighbour { link, .. }
            | Self::PutTunnel { link, .. }
            | Self::DeleteTunnel { link, .. } => Some(link),
            Self::PutNeighbour { link, .. } => Some(link),
            Self::AddRoute { route, .. } | Self::ReplaceRoute { route, .. } => match route {
                Route::Direct { link, .. } | Route::Via { link, .. } => Some(link),
                Route::Unreachable | Route::Other(_) => None,
            },
            Self::EnslavePort { .. }
            | Self::SetPortFlags { .. }
            | Self::PutPortMac { .. }
            | Self::DeletePortMac { .. } => Some(BRIDGE),
            Self::Sysctl { key, .. } => {
                let of_links =
                    key.strip_prefix("net/ipv4/conf/").or_else(|| key.strip_prefix("net/ipv6/conf/"));
                of_links?.split('/').next()
            }
            Self::Firewall(_) | Self::DeleteLink { .. } | Self::DeleteRoute { .. } => None,
        }
    }
}

/// What to change on a living link (besides setting it up). Only what differs: a MAC address that is written again,
/// even the same, makes the kernel flush the link's neighbours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// The MAC address.
    pub mac: Option<Mac>,
    /// The MTU.
    pub mtu: Option<u32>,
    /// The device group.
    pub group: Option<u32>,
    /// A bridge's own settings.
    pub bridge_settings: bool,
    /// Whether VLAN filtering must be turned off.
    pub filters_vlans: bool,
}

/// Steps, and what stands in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Foreign objects under our names, with the remedy. What depends on them is left out of the steps.
    pub conflicts: Vec<(String, String)>,
}

/// The steps from what there is to what is wanted.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut planner = Planner { desired, observed, plan: Plan::default(), replaced: Vec::new() };
    planner.unreachable_routes();
    planner.firewall_admissions();
    planner.links();
    planner.sysctls();
    planner.addresses();
    planner.neighbours();
    planner.tunnels();
    planner.routes();
    planner.ports();
    planner.removals();
    planner.plan
}

/// The steps that put one pod's port in force on a node whose state is otherwise applied. `source` is the node's own
/// address.
#[must_use]
pub fn attach_port(port: &str, resident: Resident, source: Option<IpAddr>) -> [Step; 6] {
    let Resident { mac, address } = resident;
    let name = || port.to_owned();
    let key = RouteKey { destination: Cidr::host(address), metric: 0 };
    [
        Step::EnslavePort { port: name() },
        Step::SetPortFlags { port: name() },
        Step::PutPortMac { port: name(), mac },
        Step::PutNeighbour { link: BRIDGE.to_owned(), address, mac },
        Step::PutNeighbour { link: name(), address, mac },
        Step::AddRoute { key, route: to_pod(port, source) },
    ]
}

/// The steps that take back what is left of a pod's port besides the guard's admission. The interface itself may be
/// gone, and with it the bridge's entry and the pod's route.
#[must_use]
pub fn detach_port(port: &str, resident: Resident) -> [Step; 3] {
    let Resident { mac, address } = resident;
    let key = RouteKey { destination: Cidr::host(address), metric: 0 };
    [
        Step::DeleteRoute { key, route: to_pod(port, None) },
        Step::DeleteNeighbour { link: BRIDGE, address },
        Step::DeletePortMac { port: port.to_owned(), mac },
    ]
}

/// Of the steps of a plan, those without which the pod's port is not in force. `gateway` is the bridge's MAC address.
#[must_use]
pub fn concerning<'a>(steps: &'a [Step], pod: &PodPort, gateway: Mac) -> Vec<&'a Step> {
    let elements: Vec<_> = firewall::pod_elements(pod, gateway)
        .chain(firewall::guest(pod))
        .map(|element| (element.set(), element.encode()))
        .collect();
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what is not about a pod's port or its guard is not about it"
    )]
    let concerns = |step: &&Step| match step {
        Step::EnslavePort { port } | Step::SetPortFlags { port } | Step::PutPortMac { port, .. } => {
            *port == pod.host_interface
        }
        Step::PutNeighbour { address, .. } => *address == pod.address,
        Step::AddRoute { key, .. } | Step::ReplaceRoute { key, .. } => {
            key.destination == Cidr::host(pod.address)
        }
        Step::CreateLink { name: BRIDGE, .. } | Step::Firewall(firewall::Change::Replace { .. }) => true,
        Step::Firewall(firewall::Change::Elements { add, .. }) => {
            elements.iter().any(|element| add.contains(element))
        }
        _ => false,
    };
    steps.iter().filter(concerns).collect()
}

struct Planner<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    plan: Plan,
    /// Links that this plan makes anew: what the kernel shows on them goes with them.
    replaced: Vec<&'static str>,
}

impl Planner<'_> {
    fn push(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    fn unreachable_routes(&mut self) {
        for (&key, route) in self.desired.routes.iter().filter(|(_, route)| **route == Route::Unreachable) {
            self.put_route(key, route);
        }
    }

    fn firewall_admissions(&mut self) {
        let changes = firewall::admissions(&self.desired.firewall, &self.observed.firewall);
        self.plan.steps.extend(changes.map(Step::Firewall));
    }

    fn links(&mut self) {
        for (&name, wanted) in &self.desired.links {
            match self.observed.links.get(name) {
                None if wanted.kind == LinkKind::Tun => {
                    let reason = "it is gone; whoever reads it makes it anew".to_owned();
                    self.plan.conflicts.push((format!("the link {name}"), reason));
                }
                None => self.create(name, wanted),
                Some(found) => match Fit::of(wanted, found) {
                    Fit::Same => {}
                    Fit::Adjustable(change) => self.push(Step::AdjustLink { name, change }),
                    Fit::Rebuild(reason) => {
                        self.push(Step::DeleteLink { name: name.to_owned(), reason });
                        self.create(name, wanted);
                    }
                    Fit::Foreign(reason) => self.plan.conflicts.push((format!("the link {name}"), reason)),
                },
            }
        }
    }

    fn create(&mut self, name: &'static str, link: &Link) {
        self.replaced.push(name);
        self.push(Step::CreateLink { name, link: link.clone() });
    }

    /// Whether the kernel's link of this name is, and stays, what we want there.
    fn stands(&self, name: &str) -> bool {
        !self.replaced.contains(&name)
    }

    /// Whether a link of this name will be ours once the steps so far are done.
    fn usable(&self, name: &str) -> bool {
        let label = format!("the link {name}");
        !self.plan.conflicts.iter().any(|(object, _)| *object == label)
    }

    fn sysctls(&mut self) {
        let of_all = self.observed.sysctls.get(sysctl::REVERSE_PATH_OF_ALL).map(String::as_str);
        for (key, wanted) in &self.desired.sysctls {
            let value = wanted.value(of_all);
            let replaced = self.replaced.iter().any(|link| key.contains(&format!("/{link}/")));
            let found = self.observed.sysctls.get(key);
            // A setting that does not exist (IPv6 compiled out) cannot be wrong, unless its link is yet to be made.
            let absent = found.is_none() && !(replaced && self.observed.can_have(key));
            if !absent && (replaced || found.is_none_or(|found| found != value)) {
                self.push(Step::Sysctl { key: key.clone(), value: value.to_owned() });
            }
        }
    }

    fn addresses(&mut self) {
        for &(link, address) in &self.desired.addresses {
            let there = self.stands(link)
                && self
                    .observed
                    .addresses
                    .iter()
                    .any(|found| found.link == link && found.address == address && found.fits());
            if !there && self.usable(link) {
                // The same address with another prefix length is another address to the kernel, and stays the first.
                self.push(Step::AddAddress { link, address });
            }
        }
    }

    fn neighbours(&mut self) {
        for (&(link, address), &mac) in &self.desired.neighbours {
            let there =
                self.stands(link) && self.observed.neighbours.get(&(link, address)) == Some(&Some(mac));
            if !there && self.usable(link) {
                self.push(Step::PutNeighbour { link: link.to_owned(), address, mac });
            }
        }
    }

    fn tunnels(&mut self) {
        for (&(link, mac), &underlay) in &self.desired.tunnels {
            let there = self.stands(link) && self.observed.tunnels.get(&(link, mac)) == Some(&underlay);
            if !there && self.usable(link) {
                self.push(Step::PutTunnel { link, mac, underlay });
            }
        }
    }

    fn routes(&mut self) {
        for (&key, route) in self.desired.routes.iter().filter(|(_, route)| **route != Route::Unreachable) {
            // The routes to pods come with their ports.
            let to_port = route.link().is_some_and(|link| self.desired.ports.contains_key(link));
            if !to_port && route.link().is_none_or(|link| self.usable(link)) {
                self.put_route(key, route);
            }
        }
    }

    fn put_route(&mut self, key: RouteKey, route: &Route) {
        // A route goes with its link, and (without a word) with the source address that it names.
        let gone = |found: &Route| found.link().is_some_and(|link| !self.stands(link));
        match self.observed.routes.get(&key) {
            Some(found) if found == route && !gone(found) => {}
            Some(found) if !gone(found) => {
                let before = found.clone();
                self.push(Step::ReplaceRoute { key, route: route.clone(), before });
            }
            _ => self.push(Step::AddRoute { key, route: route.clone() }),
        }
    }

    fn ports(&mut self) {
        let bridge = self.observed.links.get(BRIDGE).filter(|_| self.stands(BRIDGE)).map(|link| link.index);
        if !self.usable(BRIDGE) {
            return;
        }
        for (port, &resident) in &self.desired.ports {
            let Resident { mac, address } = resident;
            // The interface of a pod that is being made or removed is not there yet, or no longer.
            let Some(found) = self.observed.links.get(port) else { continue };
            let enslaved = found.up && found.master.is_some() && found.master == bridge;
            if !enslaved || found.group != PORT_GROUP {
                self.push(Step::EnslavePort { port: port.clone() });
            }
            if !enslaved || !found.port_fits {
                self.push(Step::SetPortFlags { port: port.clone() });
            }
            if !enslaved || !self.observed.port_macs.contains(&(port.clone(), mac)) {
                self.push(Step::PutPortMac { port: port.clone(), mac });
            }
            if !self.observed.residents.contains(&(port.clone(), address, mac)) {
                self.push(Step::PutNeighbour { link: port.clone(), address, mac });
            }
            let key = RouteKey { destination: Cidr::host(address), metric: 0 };
            if let Some(route) = self.desired.routes.get(&key) {
                self.put_route(key, route);
            }
        }
    }

    fn removals(&mut self) {
        for (&key, route) in &self.observed.routes {
            if !self.desired.routes.contains_key(&key) && route.link().is_none_or(|link| self.stands(link)) {
                self.push(Step::DeleteRoute { key, route: route.clone() });
            }
        }
        for &(link, address) in self.observed.neighbours.keys() {
            let ours = self.stands(link) && self.desired.universe.contains(address);
            let permanent = self.observed.neighbours.get(&(link, address)).is_some_and(Option::is_some);
            if ours && permanent && !self.desired.neighbours.contains_key(&(link, address)) {
                self.push(Step::DeleteNeighbour { link, address });
            }
        }
        for &(link, mac) in self.observed.tunnels.keys() {
            if self.stands(link) && !self.desired.tunnels.contains_key(&(link, mac)) {
                self.push(Step::DeleteTunnel { link, mac });
            }
        }
        for (port, mac) in &self.observed.port_macs {
            let ours = port.starts_with(PORT_PREFIX) && self.stands(BRIDGE);
            if ours && self.desired.ports.get(port).map(|resident| resident.mac) != Some(*mac) {
                self.push(Step::DeletePortMac { port: port.clone(), mac: *mac });
            }
        }
        for found in &self.observed.addresses {
            let wanted = self.desired.addresses.contains(&(found.link, found.address)) && found.fits();
            if self.stands(found.link) && self.desired.universe.contains(found.address) && !wanted {
                let (link, address, prefix) = (found.link, found.address, found.prefix);
                self.push(Step::DeleteAddress { link, address, prefix });
            }
        }
        for name in [VXLAN, VXLAN6, TUN] {
            let ours = self
                .observed
                .links
                .get(name)
                .is_some_and(|link| matches!(link.shape, Shape::Vxlan { .. } | Shape::Tun));
            if ours && !self.desired.links.contains_key(name) {
                self.push(Step::DeleteLink { name: name.to_owned(), reason: "no peer needs it".to_owned() });
            }
        }
        let changes = firewall::expulsions(&self.desired.firewall, &self.observed.firewall);
        self.plan.steps.extend(changes.map(Step::Firewall));
    }
}

/// How a link that exists compares with the one that is wanted.
enum Fit {
    Same,
    Adjustable(LinkChange),
    Rebuild(String),
    Foreign(String),
}

impl Fit {
    fn of(wanted: &Link, found: &ObservedLink) -> Self {
        let mut change = LinkChange {
            mac: (found.mac != Some(wanted.mac) && wanted.kind != LinkKind::Tun).then_some(wanted.mac),
            mtu: (found.mtu != wanted.mtu).then_some(wanted.mtu),
            group: (found.group != wanted.kind.group()).then_some(wanted.kind.group()),
            ..LinkChange::default()
        };
        match (wanted.kind, &found.shape) {
            (LinkKind::Bridge, Shape::Bridge { plain, filters_vlans }) => {
                change.bridge_settings = !plain;
                change.filters_vlans = *filters_vlans;
            }
            (LinkKind::Vxlan | LinkKind::Vxlan6, Shape::Vxlan { difference: Some(difference) }) => {
                return Self::Rebuild(difference.clone());
            }
            (LinkKind::Vxlan | LinkKind::Vxlan6, Shape::Vxlan { difference: None })
            | (LinkKind::Tun, Shape::Tun) => {}
            (_, _) => return Self::Foreign(foreign_kind(found)),
        }
        if found.up && change == LinkChange::default() { Self::Same } else { Self::Adjustable(change) }
    }
}

fn foreign_kind(found: &ObservedLink) -> String {
    format!(
        "it is of kind {:?}, left by something else: remove it with `ip link delete` (or its own tool) and the agent \
         makes its own",
        found.kind
    )
}

impl Route {
    /// The link that the route is on, if it is on one.
    #[must_use]
    pub fn link(&self) -> Option<&str> {
        match self {
            Self::Direct { link, .. } | Self::Via { link, .. } => Some(link),
            Self::Unreachable | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.metric {
            0 => write!(f, "{}", self.destination),
            metric => write!(f, "{} metric {metric}", self.destination),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("unreachable"),
            Self::Direct { link, source: None, .. } => write!(f, "dev {link}"),
            Self::Direct { link, source: Some(source), .. } => write!(f, "dev {link} src {source}"),
            Self::Via { link, gateway, source, .. } => write!(f, "via {gateway} dev {link} src {source}"),
            Self::Other(text) => f.write_str(text),
        }?;
        match self {
            Self::Direct { mtu: Some(mtu), .. } | Self::Via { mtu: Some(mtu), .. } => write!(f, " mtu {mtu}"),
            Self::Direct { .. } | Self::Via { .. } | Self::Unreachable | Self::Other(_) => Ok(()),
        }
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("up")?;
        self.mac.map_or(Ok(()), |mac| write!(f, ", MAC {mac}"))?;
        self.mtu.map_or(Ok(()), |mtu| write!(f, ", MTU {mtu}"))?;
        self.group.map_or(Ok(()), |group| write!(f, ", group {group}"))?;
        f.write_str(if self.bridge_settings { ", plain bridge" } else { "" })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { key, value } => write!(f, "set {key} to {value}"),
            Self::Firewall(change) => write!(f, "{change}"),
            Self::CreateLink { name, link } => write!(f, "create the link {name} (MTU {})", link.mtu),
            Self::AdjustLink { name, change } => write!(f, "adjust the link {name} ({change})"),
            Self::DeleteLink { name, reason } => write!(f, "remove the link {name} ({reason})"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::DeleteAddress { link, address, prefix } => {
                write!(f, "remove address {address}/{prefix} from {link}")
            }
            Self::AddRoute { key, route } => write!(f, "add route {key} {route}"),
            Self::ReplaceRoute { key, route, before } => {
                write!(f, "change route {key} from {before} to {route}")
            }
            Self::DeleteRoute { key, route } => write!(f, "remove route {key} {route}"),
            Self::PutNeighbour { link, address, mac } => {
                write!(f, "set neighbour {address} to {mac} on {link}")
            }
            Self::DeleteNeighbour { link, address } => write!(f, "remove neighbour {address} from {link}"),
            Self::PutTunnel { link, mac, underlay } => {
                write!(f, "send frames for {mac} to {underlay} on {link}")
            }
            Self::DeleteTunnel { link, mac } => write!(f, "forget where {mac} is on {link}"),
            Self::EnslavePort { port } => write!(f, "make {port} a port of {BRIDGE}"),
            Self::SetPortFlags { port } => write!(f, "set the port flags of {port}"),
            Self::PutPortMac { port, mac } => write!(f, "bind {mac} to port {port}"),
            Self::DeletePortMac { port, mac } => write!(f, "unbind {mac} from port {port}"),
        }
    }
}

#[cfg(test)]
mod tests;
