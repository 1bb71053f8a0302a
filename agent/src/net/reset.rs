//! Removes every trace.
//!
//! In the opposite order of building, so that at no moment a pod's packet has a way around the overlay: the ports
//! and links first, the routes next, the tables after them, and the unreachable route last. Every step is tried,
//! whatever became of the others.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteHeader, RouteProtocol};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::desired::Route;
use super::messages::{self, Indices};
use super::names::{BRIDGE, PORT_PREFIX, ROUTE_PROTOCOL, TUN, VXLAN, VXLAN6};
use super::plan::Step;
use super::{NetError, Netlink, observe};
use crate::firewall;

/// What a reset did.
#[derive(Debug, Default)]
pub struct Report {
    /// What was removed, as sentences.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub errors: Vec<NetError>,
}

/// Removes everything of ours from the network namespace of the calling thread. Kernel settings stay: others may
/// have come to rely on forwarding. The agent must not be running, for it would put everything back.
///
/// # Errors
/// The kernel could not be asked what there is; then nothing was removed.
pub fn reset() -> Result<Report, NetError> {
    let open = |protocol, what| Netlink::open(protocol).map_err(|error| NetError::Socket { what, error });
    let mut route = open(NETLINK_ROUTE, "route netlink")?;
    let mut netfilter = open(NETLINK_NETFILTER, "netfilter netlink")?;
    let links = observe::links(&mut route)?;
    let bridge = links.get(BRIDGE).map(|bridge| bridge.index);
    let port = |name: &str| {
        let master = links.get(name).and_then(|link| link.master);
        name.starts_with(PORT_PREFIX) && bridge.is_some() && master == bridge
    };
    let ports = links.keys().filter(|name| port(name)).cloned();
    let devices =
        [TUN, VXLAN, VXLAN6, BRIDGE].map(str::to_owned).into_iter().filter(|name| links.contains_key(name));
    let links_first: Vec<Step> =
        ports.chain(devices).map(|name| Step::DeleteLink { name, reason: "reset".to_owned() }).collect();
    let indices: Indices = links.iter().map(|(name, link)| (name.clone(), link.index)).collect();

    let mut report = Report::default();
    remove(&mut route, &links_first, &indices, &mut report);
    let (unreachable, others) = our_routes(&mut route, &mut report);
    remove(&mut route, &others, &indices, &mut report);
    remove_tables(&mut netfilter, &mut report);
    report.removed.extend(firewall::foreign::remove_accepts());
    remove(&mut route, &unreachable, &indices, &mut report);
    Ok(report)
}

fn remove(route: &mut Netlink, steps: &[Step], indices: &Indices, report: &mut Report) {
    for step in steps {
        match super::netlink::send_alone(route, step, indices) {
            Ok(()) => report.removed.push(what(step)),
            Err(error) => report.errors.push(error),
        }
    }
}

/// Removes one link of somebody else's, at an operator's word. One that is gone already is no error.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn delete_link(name: &str, index: u32) -> Result<(), NetError> {
    let open = |error| NetError::Socket { what: "route netlink", error };
    let mut route = Netlink::open(NETLINK_ROUTE).map_err(open)?;
    let step = Step::DeleteLink { name: name.to_owned(), reason: "reset".to_owned() };
    super::netlink::send_alone(&mut route, &step, &Indices::from([(name.to_owned(), index)]))
}

/// What a step takes away, as people call it.
fn what(step: &Step) -> String {
    if let Step::DeleteLink { name, .. } = step {
        let kind = if name == BRIDGE { "bridge" } else { "device" };
        return format!("{kind} {name}");
    }
    step.to_string().trim_start_matches("remove ").to_owned()
}

/// Our routes: the unreachable ones, and the others.
fn our_routes(route: &mut Netlink, report: &mut Report) -> (Vec<Step>, Vec<Step>) {
    let replies = match observe::dump(route, "routes", &messages::list_routes(true)) {
        Ok(replies) => replies,
        Err(error) => {
            report.errors.push(error);
            Vec::new()
        }
    };
    let steps = replies.into_iter().filter_map(|reply| {
        let RouteNetlinkMessage::NewRoute(message) = reply else { return None };
        let ours = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
            && message.header.table == RouteHeader::RT_TABLE_MAIN;
        let (key, route) =
            observe::our_route(&message, &std::collections::BTreeMap::new()).filter(|_| ours)?;
        Some(Step::DeleteRoute { key, route })
    });
    steps.partition(|step| matches!(step, Step::DeleteRoute { route: Route::Unreachable, .. }))
}

fn remove_tables(netfilter: &mut Netlink, report: &mut Report) {
    for family in firewall::Family::ALL {
        match netfilter.transaction(&firewall::elements::delete_table(family)) {
            Ok(()) => report.removed.push(format!("nftables table {} weave", family.name())),
            Err(error) if super::errno(&error) == Some(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                let step = format!("remove the nftables table {} weave", family.name());
                report.errors.push(NetError::Step { step, error });
            }
        }
    }
}
